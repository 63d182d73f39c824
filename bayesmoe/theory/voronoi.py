"""The Voronoi loss of mixing measures, modulo what the gate cannot tell apart.

With w_i = exp(β0_i/τ), cells A_j of fitted atoms nearest to the true atom j in θ = (β1, a, b, ν), and
Δ the differences to that atom,

    D(G, G*) = inf  Σ_j [ Σ_{i∈A_j} w_i (‖Δβ1‖^e1 + |Δτ|^e2 + ‖Δa‖^e3 + |Δb|^e4 + |Δν|^e5)
                          + |Σ_{i∈A_j} w_i - w*_j| ],

the exponents being the gate's, by the size of the cell. A top-K gate has the maximum over K-subsets
of cells in place of the sum over cells. The infimum runs over the gate's gauge: permutations,
translations and flips; for the identified loss over its rays as well.

How it is computed. Given the cells, the loss is convex in u = (s, t), where the representative has
slopes sβ1_i + t and temperature sτ (s = 1 off the rays, t = 0 where slopes cannot be translated), and
convex and piecewise linear in W = exp(t0/τ), which multiplies all fitted weights: the best W is one of
finitely many kinks, found exactly. Every value is the loss by definition at some u, cells recomputed;
u runs over the points where fitted slopes meet true ones and over damped Newton paths from the best of
them, on which the norms are smoothed ever less.

References: Nguyen, Nguyen & Ho, NeurIPS 2023 (arXiv 2305.03288); Nguyen, Akbarian, Yan & Ho, ICLR
2024 (arXiv 2309.13850); after Nguyen, Akbarian & Ho, ICML 2024 (arXiv 2401.13875).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import FIELDS, MixingMeasure

#: cells with one fitted atom, and with several
CELL_KINDS = ("single", "shared")
#: kinds of weights: w_i = exp(β0_i/τ), the definition, or w_i = E_X[π_i(X)]
WEIGHTS = ("intercept", "probability")

_CHUNK = 64  # draws a compiled call takes: one compilation serves every number of draws
_STARTS = 4  # Newton paths a draw
_STEPS = 30  # steps a path
_SHRINK = 0.5  # of the smoothing, at each step
_RADII = (100.0, 10.0, 1.0)  # of the damped steps, in units of the smoothing
_EMPTY = 1e9  # ranks representatives with an empty cell behind all others


class Truth(Protocol):
    """What an estimate is judged against; a scenario is one."""

    @property
    def gate(self) -> Gate:
        """The true gate."""
        ...

    @property
    def measure(self) -> MixingMeasure:
        """The true mixing measure G*, a single one."""
        ...

    @property
    def quadrature_x(self) -> Array:
        """Equally weighted points of the law of X, shape ``(m, d)``."""
        ...


class VoronoiResult(NamedTuple):
    """The loss and what it is made of; ``...`` are the batch axes of the estimate.

    Attributes
    ----------
    loss
        D(G, G*), shape ``(...)``; with the penalty if a cell is empty.
    block_errors
        Shape ``(..., 5, 2)``: for each of `PARAMETER_BLOCKS` and each of `CELL_KINDS`, the sum over
        the cells of that kind of the weighted mean of ‖Δ‖ in the cell, at the best representative;
        NaN where no cell is of that kind. The temperature is shared by all experts: its error |Δτ|
        is the same for both kinds.
    empty_cell
        Whether some true atom has no fitted atom in every representative, shape ``(...)``.
    cell_sizes
        Fitted atoms in each cell, shape ``(..., k*)``.
    """

    loss: Array
    block_errors: Array
    empty_cell: Array
    cell_sizes: Array


def voronoi_loss(
    estimate: Any, truth: Truth, identified: bool = False, *, weights: str = "intercept"
) -> Array:
    """The Voronoi loss D(G, G*); see `voronoi`, which also says what it is made of.

    Returns
    -------
    The losses, of the estimate's batch shape; ``(chain, draw)`` for a DataTree.
    """
    return voronoi(estimate, truth, identified=identified, weights=weights).loss


def voronoi(
    estimate: Any, truth: Truth, *, identified: bool = False, weights: str = "intercept"
) -> VoronoiResult:
    """The Voronoi loss with its errors by block and its cells.

    Parameters
    ----------
    estimate
        A `MixingMeasure` with any batch axes, or a DataTree whose group "posterior" holds its
        fields, with dimensions ``(chain, draw, ...)``.
    truth
        The true gate, measure and law of X; a scenario.
    identified
        Take the infimum along the gate's rays, too: what is left is what data can determine. The
        same as the plain loss for gates without rays.
    weights
        "intercept" for the definition, w_i = exp(β0_i/τ); it depends on which expert is the
        reference, and is at most Σ w*_j if no cell is empty, since W may go to zero.
        "probability" for w_i = E_X[π_i(X)], which is the same for all representatives.

    Notes
    -----
    Representatives without empty cells are preferred. If there are none, as for k < k*, the loss is
    D plus the penalty Σ_j w*_j (1 + max_{j,l} ‖θ*_j - θ*_l‖): large, finite and flagged. An estimate
    with NaN has the loss NaN.

    Raises
    ------
    ValueError
        If ``weights`` is unknown, the truth is a batch, a field is missing from the posterior, or
        the numbers of covariates differ.
    """
    measure = _as_measure(estimate)
    _check(measure, truth, weights)
    batch, size = measure.batch_shape, int(np.prod(measure.batch_shape, dtype=int))
    flat = jax.tree_util.tree_map(
        lambda leaf: leaf.reshape(size, *leaf.shape[len(batch) :]), measure
    )
    truths = _representatives(truth.gate, truth.measure)
    options = _Options(truth.gate, identified and truth.gate.ray, weights == "probability")
    chunks = [
        _compare_chunk(options, _padded(flat, start), truths, truth.quadrature_x)
        for start in range(0, max(size, 1), _CHUNK)
    ]
    joined = jax.tree_util.tree_map(lambda *parts: jnp.concatenate(parts)[:size], *chunks)
    return jax.tree_util.tree_map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), joined)


def contraction_radius(losses: Array, level: float = 0.9) -> Array:
    """The radius ε with posterior probability ``level`` that D(G, G*) <= ε.

    Parameters
    ----------
    losses
        Losses of draws, shape ``(..., chain, draw)``.
    level
        Between 0 and 1.

    Returns
    -------
    The quantiles over the last two axes, shape ``(...)``.

    Raises
    ------
    ValueError
        If ``level`` is not between 0 and 1, or ``losses`` lacks the axes.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level!r}; use 0.9 for 90 %")
    if jnp.ndim(losses) < 2:
        raise ValueError(
            f"losses must have shape (..., chain, draw), got {jnp.shape(losses)}; "
            "add an axis for the one chain"
        )
    return jnp.quantile(jnp.asarray(losses), level, axis=(-2, -1))


# ---------------------------------------------------------------- input


def _as_measure(estimate: Any) -> MixingMeasure:
    if isinstance(estimate, MixingMeasure):
        return estimate
    try:
        posterior = estimate["posterior"]
    except (KeyError, TypeError, IndexError):
        raise ValueError(
            f"estimate must be a MixingMeasure or a DataTree with a group 'posterior', got "
            f"{type(estimate).__name__}"
        ) from None
    missing = [field for field in FIELDS if field not in posterior]
    if missing:
        raise ValueError(
            f"the posterior lacks {', '.join(missing)}; it must hold all of {', '.join(FIELDS)}"
        )
    arrays = (posterior[field].transpose("chain", "draw", ...).values for field in FIELDS)
    return MixingMeasure(*arrays)


def _check(measure: MixingMeasure, truth: Truth, weights: str) -> None:
    if weights not in WEIGHTS:
        raise ValueError(f"unknown weights {weights!r}; choose one of {', '.join(WEIGHTS)}")
    if truth.measure.batch_shape:
        raise ValueError(
            f"the truth must be a single measure, got batch shape {truth.measure.batch_shape}; "
            "index it first"
        )
    d, d_true = measure.n_covariates, truth.measure.n_covariates
    if d != d_true:
        raise ValueError(
            f"the estimate has d = {d} covariates but the truth has {d_true}; they must agree: "
            "compare fits to data simulated from this truth"
        )


def _padded(flat: MixingMeasure, start: int) -> MixingMeasure:
    """``_CHUNK`` measures from ``start`` on; zeros fill the last chunk."""

    def pad(leaf: Array) -> Array:
        part = leaf[start : start + _CHUNK]
        return jnp.pad(part, [(0, _CHUNK - part.shape[0])] + [(0, 0)] * (part.ndim - 1))

    return jax.tree_util.tree_map(pad, flat)


def _representatives(gate: Gate, truth: MixingMeasure) -> MixingMeasure:
    """The true measure and, where the gate has the flip, the flipped one: batch shape (1,) or (2,).

    σ(u) - σ(v) = σ(-v) - σ(-u), so with exactly two distinct slopes the flip changes no
    difference of logits and needs no change of β0.
    """
    slopes = [np.asarray(truth.gate_slope)]
    distinct, label = np.unique(slopes[0], axis=0, return_inverse=True)
    if gate.flip and len(distinct) == 2:
        slopes.append(-distinct[::-1][label.ravel()])
    repeated = jax.tree_util.tree_map(lambda leaf: jnp.stack([leaf] * len(slopes)), truth)
    return repeated.replace(gate_slope=np.stack(slopes))


# ---------------------------------------------------------------- one draw against one truth


@dataclasses.dataclass(frozen=True)
class _Options:
    """What is static in a comparison."""

    gate: Gate
    identified: bool
    probability: bool


class _Problem(NamedTuple):
    """A draw against a truth, with k fitted and k* true atoms and u = (s, t) of length p = d + 1."""

    basis: Array  # (k, p, d): the slope of atom i at u is basis_iᵀ u
    temperature: Array  # (): at u it is s times this
    free: Array  # (p,): one where u may move
    targets: Array  # (k*, d)
    target_temperature: Array  # ()
    distances: Array  # (k, k*): squared, of the experts
    norms: Array  # (k, k*, 3): ‖Δa‖, |Δb|, |Δν|
    weights: Array  # (k,)
    target_weights: Array  # (k*,)
    exponents: Array  # (k + 1, 5), by cell size
    rest: Array  # (k, k*, k + 1): the experts' cost, by atom, cell and cell size
    penalty: Array  # ()


class _Value(NamedTuple):
    """The loss by definition at u, and how it came about."""

    rank: Array  # the loss over W > 0, raised where a cell is empty: what is minimised
    loss: Array
    scale: Array  # W
    cells: Array  # (k, k*), one-hot


@functools.partial(jax.jit, static_argnums=0)
def _compare_chunk(
    options: _Options, measures: MixingMeasure, truths: MixingMeasure, x: Array
) -> VoronoiResult:
    def compare(measure: MixingMeasure) -> VoronoiResult:
        found = jax.vmap(lambda truth: _compare(options, measure, truth, x))(truths)
        best = jnp.argmin(found[0])
        return jax.tree_util.tree_map(lambda leaf: leaf[best], found[1])

    return jax.vmap(compare)(measures)


def _compare(
    options: _Options, measure: MixingMeasure, truth: MixingMeasure, x: Array
) -> tuple[Array, VoronoiResult]:
    """The rank and the result of one measure against one representative of the truth."""
    problem = _make_problem(options, measure, truth, x)
    candidates = _candidates(options, problem)
    values = jax.vmap(lambda u: _evaluate(options, problem, u))(candidates)
    _, chosen = jax.lax.top_k(-values.rank, min(_STARTS, len(candidates)))
    polished = jax.vmap(lambda u: _descend(options, problem, u))(candidates[chosen])
    ranks = jax.vmap(lambda u: _evaluate(options, problem, u).rank)(polished)
    u = polished[jnp.argmin(ranks)]
    value = _evaluate(options, problem, u)
    sizes = jnp.sum(value.cells, axis=0)
    empty = jnp.any(sizes == 0)
    loss = jnp.where(empty, value.loss + problem.penalty, value.loss)
    result = VoronoiResult(loss, _block_errors(problem, u, value.cells), empty, sizes.astype(int))
    return value.rank, result


def _make_problem(
    options: _Options, measure: MixingMeasure, truth: MixingMeasure, x: Array
) -> _Problem:
    gate, d = options.gate, measure.n_covariates
    # along a ray the slope at the true temperature is what counts: then s = 1 is a good guess
    ratio = truth.temperature / measure.temperature if options.identified else jnp.ones(())
    slopes = measure.gate_slope * ratio
    axes = jnp.broadcast_to(jnp.eye(d), (measure.n_experts, d, d))
    norms = _expert_norms(measure, truth)
    table = gate.voronoi_exponents(jnp.arange(measure.n_experts + 1), identified=options.identified)
    exponents = jnp.stack(table, axis=-1)
    own, other = _log_weights(options, measure, x), _log_weights(options, truth, x)
    if not options.probability:
        own = own - jnp.max(own)  # W is free, and so nothing can overflow
    return _Problem(
        basis=jnp.concatenate([slopes[:, None], axes], axis=1),
        temperature=measure.temperature * ratio,
        free=jnp.asarray([float(options.identified)] + [float(gate.linear)] * d),
        targets=truth.gate_slope,
        target_temperature=truth.temperature,
        distances=jnp.sum(norms**2, axis=-1),
        norms=norms,
        weights=jnp.exp(own),
        target_weights=jnp.exp(other),
        exponents=exponents,
        rest=jnp.sum(norms[:, :, None] ** exponents[:, 2:], axis=-1),
        penalty=jnp.sum(jnp.exp(other)) * (1 + _diameter(truth)),
    )


def _log_weights(options: _Options, measure: MixingMeasure, x: Array) -> Array:
    """log w_i, shape ``(k,)``."""
    if not options.probability:
        return measure.gate_intercept / measure.temperature
    log_probabilities = options.gate.log_probabilities(measure.gate, x.T)
    return jnp.log(jnp.mean(jnp.exp(log_probabilities), axis=1))


def _expert_norms(measure: MixingMeasure, truth: MixingMeasure) -> Array:
    """‖Δa‖, |Δb| and |Δν| of every fitted against every true atom, shape ``(k, k*, 3)``."""
    slope = jnp.linalg.norm(measure.slope[:, None] - truth.slope, axis=-1)
    intercept = jnp.abs(measure.intercept[:, None] - truth.intercept)
    variance = jnp.abs(measure.variance[:, None] - truth.variance)
    return jnp.stack([slope, intercept, variance], axis=-1)


def _diameter(truth: MixingMeasure) -> Array:
    """max ‖θ*_j - θ*_l‖ over pairs of true atoms."""
    gate_slope = jnp.sum((truth.gate_slope[:, None] - truth.gate_slope) ** 2, axis=-1)
    return jnp.sqrt(jnp.max(gate_slope + jnp.sum(_expert_norms(truth, truth) ** 2, axis=-1)))


# ---------------------------------------------------------------- the loss by definition


def _evaluate(options: _Options, problem: _Problem, u: Array) -> _Value:
    """The loss at u of shape ``(p,)``, cells recomputed, the best W found."""
    residuals = _slopes(problem, u)[:, None] - problem.targets
    squared = jnp.sum(residuals**2, axis=-1)
    nearest = jnp.argmin(squared + problem.distances, axis=1)
    cells = jax.nn.one_hot(nearest, problem.targets.shape[0], dtype=u.dtype)
    own_size = _own_sizes(cells)
    exponents = problem.exponents[own_size]
    heat = jnp.abs(u[0] * problem.temperature - problem.target_temperature)
    atoms = (
        jnp.sum(cells * squared, axis=1) ** (exponents[:, 0] / 2)
        + heat ** exponents[:, 1]
        + problem.rest[jnp.arange(len(nearest)), nearest, own_size]
    )
    costs, masses = (problem.weights * atoms) @ cells, problem.weights @ cells
    empty = jnp.any(jnp.sum(cells, axis=0) == 0)
    return _best_scale(options, problem, costs, masses, cells, empty)


def _best_scale(
    options: _Options, problem: _Problem, costs: Array, masses: Array, cells: Array, empty: Array
) -> _Value:
    """The loss at the best W, given cost and mass ``(k*,)`` of the cells at W = 1."""
    targets, subsets = problem.target_weights, _subsets(options.gate, len(costs))
    scales = jnp.ones(1) if options.probability else _kinks(targets, costs, masses, len(subsets))
    each = scales[:, None] * costs + jnp.abs(scales[:, None] * masses - targets)
    totals = jnp.max(each @ subsets.T, axis=1)
    best = jnp.argmin(totals)
    # W → 0 is an infimum too, but the same at all u, so that it cannot lead the search
    limit = jnp.inf if options.probability else jnp.max(subsets @ targets)
    total = jnp.sum(targets)
    rank = totals[best] + jnp.where(empty, _EMPTY * total, 0.0)
    return _Value(rank, jnp.minimum(totals[best], limit), scales[best], cells)


def _kinks(targets: Array, costs: Array, masses: Array, n_subsets: int) -> Array:
    """All W > 0 where the loss, convex and piecewise linear in W, can be smallest.

    Where one cell's weights match, and for a maximum over subsets where two cells cost the same.
    """
    kinks = _ratio(targets, masses)
    if n_subsets > 1:
        sign = jnp.asarray([1.0, -1.0])
        rise = (costs + sign[:, None] * masses).ravel()  # cell j costs rise·W - drop
        drop = (sign[:, None] * targets).ravel()
        left, right = np.triu_indices(len(rise), 1)
        crossing = _ratio(drop[left] - drop[right], rise[left] - rise[right])
        kinks = jnp.concatenate([kinks, crossing])
    # a kink at W <= 0, or none at all, is replaced by a W that is harmless
    fallback = jnp.sum(targets) / jnp.sum(masses)
    return jnp.where(kinks > 0, kinks, fallback)


def _ratio(numerator: Array, denominator: Array) -> Array:
    usable = jnp.abs(denominator) > 0
    ratio = numerator / jnp.where(usable, denominator, 1.0)
    return jnp.where(usable & jnp.isfinite(ratio), ratio, 0.0)


def _subsets(gate: Gate, n_cells: int) -> np.ndarray:
    """Indicators of the cells summed over, shape ``(n_subsets, n_cells)``; one row for all."""
    size = n_cells if gate.subset_size is None else min(gate.subset_size, n_cells)
    chosen = list(itertools.combinations(range(n_cells), size))
    indicators = np.zeros((len(chosen), n_cells))
    for row, members in zip(indicators, chosen, strict=True):
        row[list(members)] = 1.0
    return indicators


def _slopes(problem: _Problem, u: Array) -> Array:
    """The gate slopes of the representative at u, shape ``(k, d)``."""
    return jnp.einsum("kpd,p->kd", problem.basis, u)


def _own_sizes(cells: Array) -> Array:
    """The size of each fitted atom's cell, shape ``(k,)``."""
    return (cells @ jnp.sum(cells, axis=0)).astype(int)


def _block_errors(problem: _Problem, u: Array, cells: Array) -> Array:
    """Shape ``(5, 2)``; see `VoronoiResult`."""
    slope = jnp.linalg.norm(_slopes(problem, u) - cells @ problem.targets, axis=-1)
    heat = jnp.abs(u[0] * problem.temperature - problem.target_temperature)
    experts = jnp.sum(cells[:, :, None] * problem.norms, axis=1)
    errors = jnp.stack([slope, jnp.full_like(slope, heat), *experts.T], axis=-1)
    mass = problem.weights @ cells
    # shares within a cell do not matter if all its weights underflow
    share = jnp.where(mass > 0, problem.weights[:, None] / jnp.where(mass > 0, mass, 1.0), 1.0)
    means = jnp.einsum("kj,kb->jb", cells * share, errors)
    means = means.at[:, 1].set(heat)
    sizes = jnp.sum(cells, axis=0)
    sums = []
    for kind in (sizes == 1, sizes >= 2):
        total = jnp.sum(jnp.where(kind[:, None], means, 0.0), axis=0).at[1].set(heat)
        sums.append(jnp.where(jnp.any(kind), total, jnp.nan))
    return jnp.stack(sums, axis=-1)


# ---------------------------------------------------------------- the infimum


def _candidates(options: _Options, problem: _Problem) -> Array:
    """Points u where fitted slopes meet true ones, and where nothing is moved: ``(m, p)``."""
    k, d = problem.basis.shape[0], problem.targets.shape[1]
    slopes, targets = problem.basis[:, 0], problem.targets
    points = [jnp.ones((1, 1))]
    shifts = [jnp.zeros((1, d))]
    if options.gate.linear:
        meet = (targets - slopes[:, None]).reshape(-1, d)
        points.append(jnp.ones((len(meet), 1)))
        shifts.append(meet)
    if options.identified:
        scale, shift = _scaled_candidates(options, slopes, targets, k)
        points.append(scale[:, None])
        shifts.append(shift)
    return jnp.concatenate([jnp.concatenate(points), jnp.concatenate(shifts)], axis=1)


def _scaled_candidates(
    options: _Options, slopes: Array, targets: Array, k: int
) -> tuple[Array, Array]:
    """Least squares for s, and for t where it is free, of one or two atoms: ``(m,)``, ``(m, d)``."""
    n_true, d = targets.shape
    if not options.gate.linear:
        i, j = (index.ravel() for index in np.indices((k, n_true)))
        scale = jnp.maximum(
            _ratio(jnp.sum(slopes[i] * targets[j], axis=1), jnp.sum(slopes[i] ** 2, axis=1)), 0.0
        )
        return scale, jnp.zeros((len(scale), d))
    atoms = np.asarray(list(itertools.combinations(range(k), 2)), dtype=int).reshape(-1, 2)
    cells = np.asarray(list(itertools.permutations(range(n_true), 2)), dtype=int).reshape(-1, 2)
    i, j = np.repeat(atoms, len(cells), axis=0), np.tile(cells, (len(atoms), 1))
    own, other = slopes[i[:, 1]] - slopes[i[:, 0]], targets[j[:, 1]] - targets[j[:, 0]]
    scale = jnp.maximum(_ratio(jnp.sum(own * other, axis=1), jnp.sum(own**2, axis=1)), 0.0)
    shift = jnp.mean(targets[j] - scale[:, None, None] * slopes[i], axis=1)
    return scale, shift


def _descend(options: _Options, problem: _Problem, start: Array) -> Array:
    """The best u on a damped Newton path from ``start``, along which norms are smoothed less."""
    if not options.identified and not options.gate.linear:
        return start
    spread = jnp.max(jnp.abs(problem.targets)) + jnp.max(jnp.abs(problem.basis[:, 0]))

    def step(n: Array, state: tuple[Array, _Value]) -> tuple[Array, _Value]:
        u, value = state
        smoothing = 0.1 * (1e-3 + spread) * _SHRINK**n
        gradient, hessian = _model(options, problem, u, value, smoothing)
        moves = _moves(gradient, hessian, smoothing)
        trials = jnp.stack([u - move[: len(u)] for move in moves])
        trials = trials.at[:, 0].set(jnp.maximum(trials[:, 0], 0.0))
        values = jax.vmap(lambda trial: _evaluate(options, problem, trial))(trials)
        ranks = jnp.where(jnp.isfinite(values.rank), values.rank, jnp.inf)
        best = jnp.argmin(ranks)
        better = ranks[best] < value.rank
        new = (trials[best], jax.tree_util.tree_map(lambda leaf: leaf[best], values))
        return jax.tree_util.tree_map(lambda a, b: jnp.where(better, a, b), new, (u, value))

    u, _ = jax.lax.fori_loop(0, _STEPS, step, (start, _evaluate(options, problem, start)))
    return u


def _model(
    options: _Options, problem: _Problem, u: Array, value: _Value, smoothing: Array
) -> tuple[Array, Array]:
    """Gradient and Hessian of the smoothed loss at u, cells fixed.

    Over u alone where the loss is a sum over cells: then the best u does not depend on W. For a
    maximum over subsets over (u, log W), the maximum smoothed to a log-sum-exp.
    """
    costs, gradients, hessians = _smoothed_costs(problem, u, value.cells, smoothing)
    subsets = jnp.asarray(_subsets(options.gate, costs.shape[0]))
    if len(subsets) == 1:
        gradient, hessian, free = jnp.sum(gradients, 0), jnp.sum(hessians, 0), problem.free
    else:
        masses = problem.weights @ value.cells
        costs, gradients, hessians = _with_scale(
            costs, gradients, hessians, value.scale * masses, value.scale, problem, smoothing
        )
        width = smoothing * jnp.sum(problem.target_weights)
        share = jax.nn.softmax(subsets @ costs / width)
        each = subsets @ gradients
        gradient = share @ each
        centred = each - gradient
        hessian = jnp.einsum("s,sj,jpq->pq", share, subsets, hessians)
        hessian = hessian + jnp.einsum("s,sp,sq->pq", share, centred, centred) / width
        free = jnp.append(problem.free, 0.0 if options.probability else 1.0)
    return gradient * free, hessian * free[:, None] * free + jnp.diag(1 - free)


def _smoothed_costs(
    problem: _Problem, u: Array, cells: Array, smoothing: Array
) -> tuple[Array, Array, Array]:
    """Costs of the cells at W = 1, ‖r‖ smoothed to √(‖r‖² + smoothing²), with two derivatives.

    Shapes ``(k*,)``, ``(k*, p)``, ``(k*, p, p)``.
    """
    own_size = _own_sizes(cells)
    exponents = problem.exponents[own_size]
    residual = _slopes(problem, u) - cells @ problem.targets
    heat_basis = jnp.zeros_like(u).at[0].set(problem.temperature)
    heat = (heat_basis @ u - problem.target_temperature)[None]
    blocks = (
        (residual, problem.basis, exponents[:, 0]),
        (jnp.broadcast_to(heat, (len(own_size), 1)), heat_basis[None, :, None], exponents[:, 1]),
    )
    rest = jnp.einsum("kj,kjm,km->k", cells, problem.rest, jnp.eye(problem.rest.shape[2])[own_size])
    cost, gradient, hessian = rest, 0.0, 0.0
    for r, basis, e in blocks:
        square = jnp.sum(r**2, axis=1) + smoothing**2
        power = square ** (e / 2)
        first = e * power / square
        along = jnp.sum(basis * r[:, None], axis=2)
        inner = jnp.einsum("kpd,kqd->kpq", basis, basis)
        outer = along[:, :, None] * along[:, None, :]
        cost = cost + power
        gradient = gradient + first[:, None] * along
        bend = ((e - 2) / square)[:, None, None] * outer
        hessian = hessian + first[:, None, None] * (inner + bend)
    shares = cells * problem.weights[:, None]
    return cost @ shares, shares.T @ gradient, jnp.einsum("kj,kpq->jpq", shares, hessian)


def _with_scale(
    costs: Array,
    gradients: Array,
    hessians: Array,
    masses: Array,
    scale: Array,
    problem: _Problem,
    smoothing: Array,
) -> tuple[Array, Array, Array]:
    """The cells' costs and weight terms as functions of (u, log W), with two derivatives."""
    width = smoothing * jnp.sum(problem.target_weights)
    gap = masses - problem.target_weights
    height = jnp.sqrt(gap**2 + width**2)
    sign = gap / height
    costs, gradients, hessians = scale * costs, scale * gradients, scale * hessians
    last = costs + sign * masses
    corner = last + masses**2 * (1 - sign**2) / height
    right = jnp.concatenate([gradients, corner[:, None]], axis=1)
    hessians = jnp.concatenate([hessians, gradients[:, None]], axis=1)
    hessians = jnp.concatenate([hessians, right[:, :, None]], axis=2)
    return costs + height, jnp.concatenate([gradients, last[:, None]], axis=1), hessians


def _moves(gradient: Array, hessian: Array, smoothing: Array) -> list[Array]:
    """The Newton step and damped ones, no longer than `_RADII` times the smoothing."""
    size = jnp.linalg.norm(gradient) + jnp.finfo(gradient.dtype).tiny
    tiny = 1e-13 * jnp.trace(hessian) + jnp.finfo(gradient.dtype).tiny
    dampings = [tiny] + [size / (radius * smoothing) for radius in _RADII]
    identity = jnp.eye(len(gradient))
    return [_solve(hessian + damping * identity, gradient) for damping in dampings]


def _solve(matrix: Array, vector: Array) -> Array:
    """Gaussian elimination, unrolled: for a batch of tiny systems far faster than LAPACK."""
    rows = jnp.concatenate([matrix, vector[:, None]], axis=1)
    for i in range(len(vector)):
        rows = rows.at[i].divide(rows[i, i])
        others = jnp.ones(len(vector)).at[i].set(0.0)
        rows = rows - (others * rows[:, i])[:, None] * rows[i]
    return rows[:, -1]
