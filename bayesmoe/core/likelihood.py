"""The conditional log-likelihood, its gradient and its Hessian, chunk by chunk.

Observations are laid out in contiguous rows of `CHUNK`, one row per covariate and expert, and the
number of chunks in use is data, not shape: one compiled program serves every sample size up to
the capacity of its storage, and memory beyond the data does not grow with n. Up to `FEW`
observations are laid out in shorter rows, so that they are not outnumbered by the padding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from bayesmoe.core.density import log_sum_exp, log_sum_exp_and_shares
from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import GateParameters, MixingMeasure
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.selection import ALL, Selection, spread, take

CHUNK = 512
SHORT_CHUNK = 64
FEW = 3 * SHORT_CHUNK
_SMALLEST_CAPACITY = 32  # chunks; larger data go to storages four times as large
_LOG_2PI = float(np.log(2 * np.pi))


class Data(NamedTuple):
    """Standardised observations in chunks of m = `CHUNK` or `SHORT_CHUNK`, padded to c chunks.

    Attributes
    ----------
    gate_x, expert_x
        The designs, shape ``(c, d, m)``, each with its selected covariates alone.
    y
        The response, shape ``(c, m)``.
    mask
        One for observations, zero for padding, shape ``(c, m)``.
    n_observations, n_chunks
        How many of each are in use, shape ``()``, integers.
    """

    gate_x: Array
    expert_x: Array
    y: Array
    mask: Array
    n_observations: Array
    n_chunks: Array


class Evaluation(NamedTuple):
    """Value ``()``, gradient ``(p,)`` and Hessian ``(p, p)`` of a function of coordinates."""

    value: Array
    gradient: Array
    hessian: Array


def make_data(x: ArrayLike, y: ArrayLike, scaling: Scaling, selection: Selection = ALL) -> Data:
    """Standardise and lay out x ``(n, d)`` and y ``(n,)``."""
    covariates, response = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n = response.shape[0]
    length = SHORT_CHUNK if n <= FEW else CHUNK
    n_chunks = -(-n // length)
    capacity = _SMALLEST_CAPACITY
    while capacity < n_chunks:
        capacity *= 4

    def rows(values: np.ndarray) -> Array:
        padded = np.zeros((capacity * length, *values.shape[1:]))
        padded[:n] = values
        chunks = padded.reshape(capacity, length, *values.shape[1:])
        return jnp.asarray(np.moveaxis(chunks, 1, -1))

    gate_x = (covariates - np.asarray(scaling.gate_shift)) / np.asarray(scaling.gate_scale)
    expert_x = (covariates - np.asarray(scaling.x_shift)) / np.asarray(scaling.x_scale)
    return Data(
        rows(take(gate_x, selection.gate)),
        rows(take(expert_x, selection.experts)),
        rows((response - np.asarray(scaling.y_shift)) / np.asarray(scaling.y_scale)),
        rows(np.ones(n)),
        jnp.asarray(n),
        jnp.asarray(n_chunks),
    )


class Layout(NamedTuple):
    """How a mixing measure of one gate is flattened into identifiable coordinates.

    The order is: gate coordinates, slopes a, intercepts b, log variances log ν. Covariates that are
    not selected have no coordinates: gate and experts see designs without them (`Data`), and their
    slopes are zeros of the mixing measure.
    """

    gate: Gate
    n_experts: int
    n_covariates: int
    selection: Selection = ALL  # resolved: None where nothing is left out

    @property
    def n_gate_covariates(self) -> int:
        columns = self.selection.gate
        return self.n_covariates if columns is None else len(columns)

    @property
    def n_expert_covariates(self) -> int:
        columns = self.selection.experts
        return self.n_covariates if columns is None else len(columns)

    @property
    def n_gate(self) -> int:
        return self.gate.n_coordinates(self.n_experts, self.n_gate_covariates)

    @property
    def size(self) -> int:
        """The number of free parameters."""
        return self.n_gate + self.n_experts * (self.n_expert_covariates + 2)

    def split(self, coordinates: Array) -> tuple[Array, Array, Array, Array]:
        """Gate coordinates, slope ``(k, d)``, intercept ``(k,)`` and log variance ``(k,)``.

        The slopes, and the d here, are those of the experts' covariates.
        """
        k, d = self.n_experts, self.n_expert_covariates
        gate, slope, intercept, log_variance = jnp.split(
            coordinates, np.cumsum([self.n_gate, k * d, k]).tolist()
        )
        return gate, slope.reshape(k, d), intercept, log_variance

    def gate_parameters(self, gate: Array) -> GateParameters:
        """The gate's parameters at its coordinates, over the covariates of `Data.gate_x`."""
        return self.gate.from_coordinates(gate, self.n_experts, self.n_gate_covariates)

    def measure(self, gate: GateParameters, *experts: Array) -> MixingMeasure:
        """The mixing measure of parameters over selected covariates: zeros for the others."""
        slope, d = gate.slope, self.n_covariates
        gate = gate._replace(slope=spread(slope, self.selection.gate, d))
        return MixingMeasure(*gate, spread(experts[0], self.selection.experts, d), *experts[1:])

    def unpack(self, coordinates: Array) -> MixingMeasure:
        """The mixing measure (of standardised data) at ``coordinates`` of shape ``(p,)``."""
        gate, slope, intercept, log_variance = self.split(coordinates)
        return self.measure(self.gate_parameters(gate), slope, intercept, jnp.exp(log_variance))

    def pack(self, measure: MixingMeasure) -> Array:
        """The inverse of `unpack`; slopes of covariates left out do not count."""
        return jnp.concatenate(
            [
                self.gate.to_coordinates(self._selected(measure.gate)),
                take(measure.slope, self.selection.experts).ravel(),
                measure.intercept,
                jnp.log(measure.variance),
            ]
        )

    def log_jacobian(self, measure: MixingMeasure) -> Array:
        """log |∂(paper's parameters)/∂coordinates|."""
        gate = self._selected(measure.gate)
        return self.gate.log_jacobian(gate) + jnp.sum(jnp.log(measure.variance))

    def _selected(self, gate: GateParameters) -> GateParameters:
        return gate._replace(slope=take(gate.slope, self.selection.gate))

    def check(self, name: str, measure: MixingMeasure) -> None:
        """Raise ValueError if a slope that the layout has no coordinate for is not zero.

        Traced values pass unchecked.
        """
        if self.selection.is_all or isinstance(measure.slope, jax.core.Tracer):
            return
        relative = measure.gate_slope
        if self.gate.linear:  # a translation of all slopes leaves the gate unchanged
            relative = relative - relative[..., -1:, :]
        blocks = (
            ("gate_slope", relative, self.selection.gate),
            ("slope", measure.slope, self.selection.experts),
        )
        for field, values, columns in blocks:
            for column in range(self.n_covariates):
                left_out = columns is not None and column not in columns
                if left_out and np.any(np.asarray(values[..., column]) != 0):
                    raise ValueError(
                        f"{name} has a {field} of covariate {column}, which the model leaves out: "
                        "it must be zero; pass what was fitted with this model"
                    )

    def expert_order(self) -> np.ndarray:
        """Where each coordinate of the experts stands in `_Terms`: ``(k (d+2),)``.

        There one expert follows the other: slopes, intercept and log variance.
        """
        k, d = self.n_experts, self.n_expert_covariates
        place = np.arange(k * (d + 2)).reshape(k, d + 2)
        return np.concatenate([place[:, :-2].ravel(), place[:, -2], place[:, -1]])

    def gate_seeds(self) -> np.ndarray:
        """Directions ``(c, n_gate)`` that together show every derivative of the logits.

        If each logit depends on its own expert's coordinates alone, one direction moves the same
        coordinate of all experts.
        """
        if not self.gate.separable:
            return np.eye(self.n_gate)
        return np.minimum(self.gate_rows().sum(axis=0), 1.0)

    def gate_rows(self) -> np.ndarray:
        """Which coordinate of each expert a seed moves: ``(k, c, n_gate)``, zeros and ones."""
        k, d, g = self.n_experts, self.n_gate_covariates, self.n_gate
        if not self.gate.separable:
            return np.tile(np.eye(g), (k, 1, 1))
        rows = np.zeros((k, d + 1 + int(self.gate.has_temperature), g))
        for expert in range(k - 1):  # the reference has no coordinates but τ's
            rows[expert, np.arange(d), expert * d + np.arange(d)] = 1.0
            rows[expert, d, (k - 1) * d + expert] = 1.0
        if self.gate.has_temperature:
            rows[:, -1, -1] = 1.0
        return rows


def log_density(gate: Gate, measure: MixingMeasure, x: Array, y: Array) -> Array:
    """log g_G(y_j|x_j) of one measure, shape ``(n,)``, for x ``(n, d)`` and y ``(n,)``."""
    means = measure.slope @ x.T + measure.intercept[:, None]
    return _log_mixture(gate, measure.gate, x.T, y, means, jnp.log(measure.variance))


def _log_mixture(
    gate: Gate, parameters: GateParameters, x: Array, y: Array, means: Array, log_variance: Array
) -> Array:
    """log g for x ``(d, m)``, means ``(k, m)``, log variances ``(k,)``: shape ``(m,)``."""
    logits = gate.logits(parameters, x)
    residual = (y - means) * jnp.exp(-0.5 * log_variance)[:, None]
    log_normal = -0.5 * (_LOG_2PI + log_variance[:, None] + residual**2)
    return log_sum_exp(logits + log_normal, 0) - log_sum_exp(logits, 0)


def _chunk(data: Data, index: Array) -> tuple[Array, Array, Array, Array]:
    return data.gate_x[index], data.expert_x[index], data.y[index], data.mask[index]


def _chunk_log_likelihood(layout: Layout, coordinates: Array, chunk: tuple[Array, ...]) -> Array:
    gate_x, expert_x, y, mask = chunk
    gate, slope, intercept, log_variance = layout.split(coordinates)
    parameters = layout.gate_parameters(gate)
    means = slope @ expert_x + intercept[:, None]
    rows = _log_mixture(layout.gate, parameters, gate_x, y, means, log_variance)
    return jnp.sum(jnp.where(mask > 0, rows, 0.0))  # the padding may well be -inf


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def log_likelihood(layout: Layout, coordinates: Array, data: Data) -> Array:
    """Σ_j log g_G(y_j|x_j) at coordinates of shape ``(p,)``, a scalar."""

    def add(index: Array, total: Array) -> Array:
        return total + _chunk_log_likelihood(layout, coordinates, _chunk(data, index))

    return jax.lax.fori_loop(0, data.n_chunks, add, jnp.zeros(()))


def _log_likelihood_forward(layout: Layout, coordinates: Array, data: Data) -> tuple[Array, Array]:
    # the gradient is summed on the way forward: a loop of unknown length has no reverse pass
    def add(index: Array, total: tuple[Array, Array]) -> tuple[Array, Array]:
        value, gradient = jax.value_and_grad(_chunk_log_likelihood, argnums=1)(
            layout, coordinates, _chunk(data, index)
        )
        return total[0] + value, total[1] + gradient

    start = (jnp.zeros(()), jnp.zeros_like(coordinates))
    return jax.lax.fori_loop(0, data.n_chunks, add, start)


def _log_likelihood_backward(
    layout: Layout, gradient: Array, cotangent: Array
) -> tuple[Array, None]:
    return cotangent * gradient, None


log_likelihood.defvjp(_log_likelihood_forward, _log_likelihood_backward)


def evaluate_log_likelihood(layout: Layout, coordinates: Array, data: Data) -> Evaluation:
    """Value, gradient and exact Hessian of the log-likelihood in one pass."""

    def terms(index: Array) -> _Terms:
        return _evaluate_chunk(layout, coordinates, _chunk(data, index))

    shapes = jax.eval_shape(terms, jnp.zeros((), int))
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total = jax.lax.fori_loop(
        0, data.n_chunks, lambda index, sum_: jax.tree.map(jnp.add, sum_, terms(index)), start
    )
    return _assemble(layout, total)


class _Terms(NamedTuple):
    """What one chunk adds to value, gradient and Hessian, before it is put into coordinates.

    Rows of the experts come expert by expert: slopes, intercept, log variance, q = d + 2 each.
    """

    value: Array
    score: Array  # (g + k q,) Σ r_i ∇A_i
    gate_mean: Array  # (g,) Σ π_i ∇z_i
    gate: Array  # (k, c, c) Σ (r_i - π_i) (∇z_i ∇z_iᵀ + ∇²z_i), c being the seeds
    gate_expert: Array  # (k, c, q) Σ r_i ∇z_i ∇(log N_i)ᵀ
    expert: Array  # (3 k, monomials) Σ r_i (∇² log N_i + ∇ log N_i ∇ log N_iᵀ)
    outer: Array  # (g + k q, g + k q) of the scores with themselves
    gate_outer: Array  # (g, g) of the gate's means with themselves


def _evaluate_chunk(layout: Layout, coordinates: Array, chunk: tuple[Array, ...]) -> _Terms:
    """The closed form in responsibilities r and gate probabilities π.

    With A_i = z_i + log N_i, log g = LSE(A) - LSE(z), so
    ∇² log g = Σ r_i (∇²A_i + ∇A_i ∇A_iᵀ) - (Σ r_i ∇A_i)(Σ r_i ∇A_i)ᵀ - the same in (π, z).
    """
    gate_x, expert_x, y, mask = chunk
    gate, slope, intercept, log_variance = layout.split(coordinates)
    z, dz, d2z = _logits(layout, gate, gate_x)
    residual = y - (slope @ expert_x + intercept[:, None])
    square = (residual * jnp.exp(-0.5 * log_variance)[:, None]) ** 2
    log_joint = z - 0.5 * (_LOG_2PI + log_variance[:, None] + square)
    evidence, r = log_sum_exp_and_shares(log_joint, 0)
    total, prior = log_sum_exp_and_shares(z, 0)
    r, prior = mask * r, mask * prior

    # finite, so that an expert without responsibility adds zero and not 0 * inf
    precision = jnp.minimum(jnp.exp(-log_variance), 1e200)[:, None]
    d_mean, d_log_variance = residual * precision, 0.5 * (jnp.minimum(square, 1e200) - 1.0)
    design = jnp.concatenate([expert_x, jnp.ones_like(y)[None]])
    line, spread = r * d_mean, r * d_log_variance
    rows = [jnp.concatenate([design * line[i], spread[i : i + 1]]) for i in range(len(z))]
    # second derivatives in (mean, log variance); experts' blocks are these times monomials of x
    bends = [line * d_mean - r * precision, line * (d_log_variance - 1.0)]
    bends.append(spread * d_log_variance - r * (d_log_variance + 0.5))
    first, second = np.triu_indices(len(design))

    surplus = r - prior
    blocks = [(surplus[i] * dz[:, i]) @ dz[:, i].T for i in range(len(z))]
    own = layout.gate_rows()
    to_gate = jnp.asarray(own.transpose(2, 1, 0).reshape(layout.n_gate, dz[:, :, 0].size))
    gate_score, gate_mean = (
        to_gate @ (w * dz).reshape(to_gate.shape[1], len(y)) for w in (r, prior)
    )
    score = jnp.concatenate([gate_score, *rows])
    return _Terms(
        jnp.sum(jnp.where(mask > 0, evidence - total, 0.0)),
        jnp.sum(score, axis=1),
        jnp.sum(gate_mean, axis=1),
        jnp.stack(blocks) + d2z(surplus),
        jnp.stack([dz[:, i] @ rows[i].T for i in range(len(z))]),
        jnp.concatenate(bends) @ (design[first] * design[second]).T,
        score @ score.T,
        gate_mean @ gate_mean.T,
    )


def _logits(layout: Layout, gate: Array, x: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
    """Logits ``(k, m)``, their derivatives along the seeds ``(c, k, m)``, and a function.

    The function gives, for weights ``(k, m)``, each expert's weighted sum of second derivatives,
    ``(k, c, c)``.
    """
    seeds = jnp.asarray(layout.gate_seeds())

    def logits(free: Array) -> Array:
        return layout.gate.logits(layout.gate_parameters(free), x)

    def along(free: Array, seed: Array) -> Array:
        return jax.jvp(logits, (free,), (seed,))[1]

    def second(weights: Array) -> Array:
        c = len(seeds)
        if layout.gate.linear_in_coordinates:
            return jnp.zeros((layout.n_experts, c, c))
        pairs = np.triu_indices(c)
        bend = jax.vmap(
            lambda one, other: jax.jvp(lambda free: along(free, one), (gate,), (other,))[1]
        )(seeds[pairs[0]], seeds[pairs[1]])
        return _symmetric(jnp.sum(weights * bend, axis=-1).T, c)

    return logits(gate), jax.vmap(lambda seed: along(gate, seed))(seeds), second


def _symmetric(triangle: Array, size: int) -> Array:
    """Symmetric matrices from their upper triangles, row by row: ``(..., s(s+1)/2)``."""
    place = np.zeros((size, size), int)
    place[np.triu_indices(size)] = np.arange(triangle.shape[-1])
    return triangle[..., np.maximum(place, place.T)]


def _assemble(layout: Layout, terms: _Terms) -> Evaluation:
    """Put the sums over chunks into the order of the coordinates."""
    k, d, g = layout.n_experts, layout.n_expert_covariates, layout.n_gate
    own = layout.gate_rows()
    gate = jnp.einsum("ica,icd,idb->ab", own, terms.gate, own) + terms.gate_outer
    across = jnp.einsum("ica,icq->aiq", own, terms.gate_expert).reshape(g, k * (d + 2))
    line, cross, spread = (_symmetric(block, d + 1) for block in terms.expert.reshape(3, k, -1))
    cross = cross[:, :, -1:]  # the design's last column is one
    experts = jnp.block([[line, cross], [jnp.swapaxes(cross, 1, 2), spread[:, -1:, -1:]]])
    whole = jnp.block([[gate, across], [across.T, jax.scipy.linalg.block_diag(*experts)]])
    order = np.concatenate([np.arange(g), g + layout.expert_order()])
    return Evaluation(
        terms.value,
        terms.score.at[:g].add(-terms.gate_mean)[order],
        (whole - terms.outer)[np.ix_(order, order)],
    )
