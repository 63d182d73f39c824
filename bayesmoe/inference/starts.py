"""Start protocols: `agnostic` knows the data alone, `near_truth` perturbs and splits the truth."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array
from jax.scipy.special import logsumexp

from bayesmoe.core.compilation import jit_quickly, jit_unoptimised
from bayesmoe.core.gate import Gate
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import GateParameters, MixingMeasure, check_positive
from bayesmoe.core.priors import weak
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.selection import ALL, Columns, Selection, take
from bayesmoe.inference.sharp_gate import sharpen_starts

_ROWS = 1000  # a start needs no more data than this
_GATE_ROWS = 512  # nor a gate more than this
_ROUNDS = 8
_GATES = 32
_LINES = 32

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]


def generator(key: Array) -> np.random.Generator:
    """A NumPy generator seeded by a JAX key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())


def starting_points(
    key: Array,
    layout: Layout,
    scaling: Scaling,
    x: Array,
    y: Array,
    n_starts: int,
    given: MixingMeasure | None,
) -> Array:
    """Coordinates ``(S, p)``: the measures ``given`` first, then ``n_starts`` agnostic ones.

    Where the gate has one active expert all are moved as by `sharpen_starts`.
    """
    batches = []
    if given is not None:
        _check_starts(layout, given)
        if not n_starts and 0 in given.batch_shape:
            raise ValueError("starts holds no measure and n_starts is 0; one must be at least 1")
        batch = jax.tree.map(lambda leaf: leaf if given.batch_shape else leaf[None], given)
        batches.append(pack(layout, scaling, batch))
    known: Scaling = jax.tree.map(np.asarray, scaling)  # JAX would compile anew for every n
    covariates, response = np.asarray(x), np.asarray(y)
    standard_x = (covariates - known.x_shift) / known.x_scale
    standard_y = (response - known.y_shift) / known.y_scale
    gate_x = (covariates - known.gate_shift) / known.gate_scale
    if n_starts:
        found = agnostic(
            key,
            layout.gate,
            layout.n_experts,
            standard_x,
            standard_y,
            n_starts,
            gate_x,
            layout.selection,
        )
        batches.append(pack(layout, Scaling.identity(x.shape[1]), found))
    points = jnp.concatenate(batches)
    if layout.n_experts > 1 and layout.gate.subset_size == 1:
        return sharpen_starts(layout, points, gate_x, standard_x, standard_y)
    return points


@jit_unoptimised(static_argnums=0)
def pack(layout: Layout, scaling: Scaling, batch: MixingMeasure) -> Array:
    """Coordinates ``(S, p)`` of a batch of S measures on the scale of the data."""
    return jax.vmap(lambda one: layout.pack(scaling.standardise(one)))(batch)


def _check_starts(layout: Layout, given: MixingMeasure) -> None:
    if not isinstance(given, MixingMeasure):
        raise ValueError(f"starts must be a MixingMeasure, got {type(given).__name__}")
    got = (given.n_experts, given.n_covariates)
    wanted = (layout.n_experts, layout.n_covariates)
    if got != wanted or len(given.batch_shape) > 1:
        raise ValueError(
            f"starts must be measures with (k, d) = {wanted} and at most one batch axis; "
            f"got (k, d) = {got} with batch shape {given.batch_shape}"
        )
    layout.check("a start", given)
    check_positive("starts", given)
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(given)):
        raise ValueError("starts must be finite, got NaN or infinite values")
    if not layout.gate.translates and bool(jnp.any(given.gate_slope[..., -1, :])):
        raise ValueError(
            "starts must have a gate_slope of zero for the last expert, the reference: "
            f"under the {layout.gate.label} gate it cannot be moved there"
        )


def agnostic(
    key: Array,
    gate: Gate,
    n_experts: int,
    x: Floats,
    y: Floats,
    n: int,
    gate_x: Floats | None = None,
    selection: Selection = ALL,
) -> MixingMeasure:
    """``n`` starts from standardised data alone, as a batch.

    Experts come, in turn, from regression k-means with k groups, and from one with k - 1 groups
    and a line that would add much to the likelihood. Groups begin, in turn, as a partition of the
    rows along a random direction of x, as the rows nearest to k random rows, and as those nearest
    to lines through k random subsets. The gate and the order of the experts are the likeliest of
    some drawn from the weak prior and at random.

    Parameters
    ----------
    key
        A JAX key.
    gate, n_experts
        The gate and k.
    x, y
        Standardised covariates ``(n_obs, d)`` and response ``(n_obs,)``.
    n
        The number of starts.
    gate_x
        Covariates as standardised for the gate, if not x itself (the case of linear gates).
    selection
        The covariates that gate and experts depend on; groups may be told apart by all.
    """
    expert_key, gate_key = jax.random.split(key)
    rng = generator(expert_key)
    gate_rows = rng.choice(len(y), _GATE_ROWS)  # with replacement: one shape for any data
    seen = take((x if gate_x is None else gate_x)[gate_rows], selection.gate).T
    layout = Layout(gate, n_experts, x.shape[1], selection)
    gate_data = _Rows.of(x[gate_rows], y[gate_rows], selection.experts)
    rows = np.arange(len(y))
    if len(y) > _ROWS:
        rows = np.sort(rng.choice(len(y), _ROWS, replace=False))
    lines = _experts(rng, _Rows.of(x[rows], y[rows], selection.experts), n_experts, n)
    density = _log_normal(lines, gate_data)
    return _with_likeliest_gates(generator(gate_key), layout, seen, lines, density)


def near_truth(
    key: Array, truth: MixingMeasure, n_experts: int, n_obs: int, n: int
) -> MixingMeasure:
    """``n`` perturbed, split copies of the truth: the protocol of the papers' simulations.

    Each fitted atom copies a true one, under a random surjection that keeps the reference expert
    last; the copies share their atom's weight. The jitter has a standard deviation of
    0.05 n_obs^-1/12 (experts) and 0.005 n_obs^-1/12 (gate), relative to one.

    Raises
    ------
    ValueError
        If there are fewer fitted experts than true ones.
    """
    k_true = truth.n_experts
    if n_experts < k_true:
        raise ValueError(
            f"near_truth starts need n_experts >= {k_true}, the number of true experts; "
            f"got {n_experts}"
        )
    rng = generator(key)
    scale = n_obs ** (-1 / 12)
    copies = []
    for _ in range(n):
        extra = rng.integers(k_true, size=n_experts - k_true)
        origin = np.concatenate([extra, np.arange(k_true)])
        shares = np.log(np.bincount(origin, minlength=k_true))[origin]
        copies.append(_jittered_copy(rng, truth, origin, shares, scale))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *copies)


def _jittered_copy(
    rng: np.random.Generator, truth: MixingMeasure, origin: Floats, shares: Floats, scale: float
) -> MixingMeasure:
    def jitter(values: Array | Floats, size: float) -> Floats:
        return np.asarray(values) + size * scale * rng.standard_normal(np.shape(values))

    free = (np.arange(len(origin)) < len(origin) - 1).astype(float)
    gate_slope = jitter(truth.gate_slope[origin], 0.005)
    gate_intercept = jitter(truth.gate_intercept[origin], 0.005)
    gate_intercept = gate_intercept - np.asarray(truth.temperature) * (shares - shares[-1])
    return MixingMeasure(
        gate_slope * free[:, None],
        gate_intercept * free,
        truth.temperature,
        jitter(truth.slope[origin], 0.05),
        jitter(truth.intercept[origin], 0.05),
        np.asarray(truth.variance[origin]) * np.exp(jitter(np.zeros(len(origin)), 0.05)),
    )


class _Rows(NamedTuple):
    """Rows of data, with the terms of their moments for least squares."""

    place: Floats  # (m, e) all covariates
    x: Floats  # (m, d) those of the experts
    y: Floats  # (m,)
    moments: Floats  # (m, (d+1)² + d + 2): of (x, 1) with itself, with y, and y²

    @classmethod
    def of(cls, place: Floats, y: Floats, columns: Columns) -> _Rows:
        x = take(place, columns)
        design = np.column_stack([x, np.ones(len(y))])
        square = (design[:, :, None] * design[:, None, :]).reshape(len(y), -1)
        return cls(place, x, y, np.column_stack([square, design * y[:, None], y**2]))


class _Lines(NamedTuple):
    """Experts, with any leading axes."""

    slope: Floats  # (..., k, d)
    intercept: Floats  # (..., k)
    variance: Floats  # (..., k)


def _experts(rng: np.random.Generator, rows: _Rows, k: int, n: int) -> _Lines:
    """k lines for each of n starts."""
    n_added = n // 2 if k > 1 else 0
    lines = _regression_k_means(rng, rows, k, n - n_added)
    if not n_added:
        return lines
    fewer = _regression_k_means(rng, rows, k - 1, n_added)
    added = [
        _with_promising_line(rng, rows, _Lines(*(b[i] for b in fewer))) for i in range(n_added)
    ]
    in_turn = np.argsort(np.concatenate([np.arange(n - n_added), np.arange(n_added) + 0.5]))
    return _Lines(
        *(
            np.concatenate([block, np.stack(more)])[in_turn]
            for block, more in zip(lines, zip(*added, strict=True), strict=True)
        )
    )


def _regression_k_means(rng: np.random.Generator, rows: _Rows, k: int, n: int) -> _Lines:
    """Alternate lines for the groups and groups for the lines, n times from another partition."""
    partitions = (_by_direction, _by_neighbour, _by_lines)
    labels = np.stack([partitions[i % 3](rng, rows, k) for i in range(n)])
    for _ in range(_ROUNDS - 1):
        lines = _group_lines(rng, rows, labels, k)
        labels = np.argmax(_log_normal(lines, rows), axis=1)
    return _group_lines(rng, rows, labels, k)


def _group_lines(rng: np.random.Generator, rows: _Rows, labels: Labels, k: int) -> _Lines:
    """A line for each of k groups of rows, ``labels`` being ``(n, m)``; starved groups restart."""
    m, least = len(rows.y), rows.x.shape[1] + 2
    members = (labels[:, None, :] == np.arange(k)[:, None]).astype(float)
    for start, group in np.argwhere(members.sum(axis=-1) < least):
        members[start, group] = 0.0
        members[start, group, rng.choice(m, min(m, 2 * least), replace=False)] = 1.0
    return _least_squares(members @ rows.moments, rows.x.shape[1])


def _least_squares(moments: Floats, d: int) -> _Lines:
    """Lines from sums of moments, with a ridge that only matters for degenerate rows."""
    square, cross, total = np.split(moments, [(d + 1) ** 2, (d + 1) * (d + 2)], axis=-1)
    gram = square.reshape(*square.shape[:-1], d + 1, d + 1)
    line = np.linalg.solve(gram + 1e-4 * np.eye(d + 1), cross[..., None])[..., 0]
    fitted = np.einsum("...a,...ab,...b->...", line, gram, line)
    error = total[..., 0] - 2 * np.sum(line * cross, axis=-1) + fitted
    variance = np.maximum(error / gram[..., -1, -1], 1e-3)
    return _Lines(line[..., :-1], line[..., -1], variance)


def _with_promising_line(rng: np.random.Generator, rows: _Rows, lines: _Lines) -> _Lines:
    """Lines for k - 1 experts and the best of some lines through d + 1 rows of one group each.

    The gain in likelihood is that of a share w for the new line, the same for every row; the
    rows' shares among the other experts are those of the groups.
    """
    density = _log_normal(lines, rows)
    labels = np.argmax(density, axis=0)
    share = np.bincount(labels, minlength=len(density)) / len(labels)
    groups = rng.choice(len(share), _LINES, p=share)
    size = rows.x.shape[1] + 1
    chosen = np.stack([rng.choice(np.flatnonzero(labels == i), size) for i in groups])
    new = _least_squares(rows.moments[chosen].sum(axis=1), rows.x.shape[1])
    variance = np.concatenate([0.3 * lines.variance[groups], 0.03 * lines.variance[groups]])
    new = _Lines(np.tile(new.slope, (2, 1)), np.tile(new.intercept, 2), variance)
    with np.errstate(divide="ignore"):  # a group may have lost all its rows
        base = np.logaddexp.reduce(density + np.log(share)[:, None], axis=0)
    ratio = np.exp(np.minimum(_log_normal(new, rows) - base, 14.0))
    gain = [np.log1p(w * (ratio - 1.0)).mean(axis=1) for w in (0.03, 0.2)]
    best = int(np.argmax(np.max(gain, axis=0)))
    return _Lines(
        *(np.concatenate([old, more[best, None]]) for old, more in zip(lines, new, strict=True))
    )


def _log_normal(lines: _Lines, rows: _Rows) -> Floats:
    """log N(y_j | line, variance), shape ``(..., k, m)``, without the factor 2π."""
    residual = rows.y - lines.slope @ rows.x.T - lines.intercept[..., None]
    variance = lines.variance[..., None]
    return -0.5 * (residual**2 / variance + np.log(variance))


def _by_direction(rng: np.random.Generator, rows: _Rows, k: int) -> Labels:
    score = rows.place @ rng.standard_normal(rows.place.shape[1])
    cuts = np.sort(rng.uniform(0.1, 0.9, k - 1))
    return np.searchsorted(np.quantile(score, cuts), score)


def _by_neighbour(rng: np.random.Generator, rows: _Rows, k: int) -> Labels:
    points = np.column_stack([rows.place, rows.y])
    centres = points[rng.choice(len(points), k, replace=False)]
    return np.argmin(((points[:, None] - centres) ** 2).sum(axis=-1), axis=1)


def _by_lines(rng: np.random.Generator, rows: _Rows, k: int) -> Labels:
    size = min(len(rows.y), rows.x.shape[1] + 2)
    chosen = np.stack([rng.choice(len(rows.y), size, replace=False) for _ in range(k)])
    lines = _least_squares(rows.moments[chosen].sum(axis=1), rows.x.shape[1])
    residual = rows.y - lines.slope @ rows.x.T - lines.intercept[:, None]
    return np.argmin(np.abs(residual), axis=0)


def _with_likeliest_gates(
    rng: np.random.Generator, layout: Layout, gate_x: Floats, lines: _Lines, log_normal: Floats
) -> MixingMeasure:
    """For each start the gate and the order of its experts under which some rows are likeliest.

    ``gate_x`` has shape ``(d, m)``, the lines' ``log_normal`` density ``(n, k, m)``.
    """
    n, k = lines.intercept.shape
    draws = _draw_gates(rng, layout.gate, k, layout.n_gate_covariates, (n, _GATES))
    orders = rng.permuted(np.tile(np.arange(k), (n, _GATES, 1)), axis=-1)
    scores = np.asarray(_mean_log_density(layout.gate, draws, orders, gate_x, log_normal))
    start, best = np.arange(n), np.argmax(scores, axis=1)
    gates = GateParameters(*(block[start, best] for block in draws))
    experts: list[Any] = [block[start[:, None], orders[start, best]] for block in lines]
    return layout.measure(gates, *experts)


@jit_quickly(static_argnums=0)
def _mean_log_density(
    gate: Gate, draws: GateParameters, orders: Array, x: Array, log_normal: Array
) -> Array:
    """Of n starts' experts, put in an order ``(n, g, k)``, under each of g gates: ``(n, g)``."""

    def score(drawn: GateParameters, order: Array, density: Array) -> Array:
        return jnp.mean(logsumexp(gate.log_probabilities(drawn, x) + density[order], axis=0))

    return jax.vmap(jax.vmap(score, (0, 0, None)))(draws, orders, log_normal)


def _draw_gates(
    rng: np.random.Generator, gate: Gate, n_experts: int, n_covariates: int, shape: tuple[int, ...]
) -> GateParameters:
    """Gates from the weak prior, by NumPy: JAX would take half a second to compile it."""
    prior, free = weak(gate), n_experts - 1

    def draw(law: Any, *axes: int) -> Any:
        return float(law.loc) + float(law.scale) * rng.standard_normal((*shape, *axes))

    slope = draw(prior.gate_slope, free, n_covariates)
    intercept = draw(prior.gate_intercept, free)
    temperature: Any = np.ones(shape)
    if gate.has_temperature:
        temperature = np.exp(draw(prior.temperature))
    if prior.intercept_per_temperature:
        intercept = intercept * temperature[..., None]
    none = [(0, 0)] * len(shape)
    reference: tuple[Any, Any] = (
        np.pad(slope, [*none, (0, 1), (0, 0)]),
        np.pad(intercept, [*none, (0, 1)]),
    )
    return GateParameters(*reference, temperature)
