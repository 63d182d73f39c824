"""The conditional log-likelihood, its gradient and its Hessian, chunk by chunk.

Observations are laid out in contiguous rows of `CHUNK`, one row per covariate and expert, and the
number of chunks in use is data, not shape: one compiled program serves every sample size up to
the capacity of its storage, and memory beyond the data does not grow with n.
"""

from __future__ import annotations

import functools
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

CHUNK = 512
_SMALLEST_CAPACITY = 32  # chunks; larger data go to storages four times as large
_LOG_2PI = float(np.log(2 * np.pi))


class Data(NamedTuple):
    """Standardised observations in chunks of m = `CHUNK`, padded to c chunks.

    Attributes
    ----------
    gate_x, expert_x
        The designs, shape ``(c, d, m)``.
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


def make_data(x: ArrayLike, y: ArrayLike, scaling: Scaling) -> Data:
    """Standardise and lay out x ``(n, d)`` and y ``(n,)``."""
    covariates, response = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n = response.shape[0]
    n_chunks = -(-n // CHUNK)
    capacity = _SMALLEST_CAPACITY
    while capacity < n_chunks:
        capacity *= 4

    def rows(values: np.ndarray) -> Array:
        padded = np.zeros((capacity * CHUNK, *values.shape[1:]))
        padded[:n] = values
        chunks = padded.reshape(capacity, CHUNK, *values.shape[1:])
        return jnp.asarray(np.moveaxis(chunks, 1, -1))

    return Data(
        rows((covariates - np.asarray(scaling.gate_shift)) / np.asarray(scaling.gate_scale)),
        rows((covariates - np.asarray(scaling.x_shift)) / np.asarray(scaling.x_scale)),
        rows((response - np.asarray(scaling.y_shift)) / np.asarray(scaling.y_scale)),
        rows(np.ones(n)),
        jnp.asarray(n),
        jnp.asarray(n_chunks),
    )


class Layout(NamedTuple):
    """How a mixing measure of one gate is flattened into identifiable coordinates.

    The order is: gate coordinates, slopes a, intercepts b, log variances log ν.
    """

    gate: Gate
    n_experts: int
    n_covariates: int

    @property
    def n_gate(self) -> int:
        return self.gate.n_coordinates(self.n_experts, self.n_covariates)

    @property
    def size(self) -> int:
        """The number of free parameters."""
        return self.n_gate + self.n_experts * (self.n_covariates + 2)

    def split(self, coordinates: Array) -> tuple[Array, Array, Array, Array]:
        """Gate coordinates, slope ``(k, d)``, intercept ``(k,)`` and log variance ``(k,)``."""
        k, d = self.n_experts, self.n_covariates
        gate, slope, intercept, log_variance = jnp.split(
            coordinates, np.cumsum([self.n_gate, k * d, k]).tolist()
        )
        return gate, slope.reshape(k, d), intercept, log_variance

    def unpack(self, coordinates: Array) -> MixingMeasure:
        """The mixing measure (of standardised data) at ``coordinates`` of shape ``(p,)``."""
        gate, slope, intercept, log_variance = self.split(coordinates)
        parameters = self.gate.from_coordinates(gate, self.n_experts, self.n_covariates)
        return MixingMeasure(*parameters, slope, intercept, jnp.exp(log_variance))

    def pack(self, measure: MixingMeasure) -> Array:
        """The inverse of `unpack`."""
        return jnp.concatenate(
            [
                self.gate.to_coordinates(measure.gate),
                measure.slope.ravel(),
                measure.intercept,
                jnp.log(measure.variance),
            ]
        )

    def log_jacobian(self, measure: MixingMeasure) -> Array:
        """log |∂(paper's parameters)/∂coordinates|."""
        return self.gate.log_jacobian(measure.gate) + jnp.sum(jnp.log(measure.variance))

    def expert_indices(self, expert: int) -> np.ndarray:
        """Where the gate, the line and the log variance of one expert stand: ``(n_gate+d+2,)``."""
        k, d, g = self.n_experts, self.n_covariates, self.n_gate
        slope = g + expert * d + np.arange(d)
        return np.concatenate([np.arange(g), slope, [g + k * d + expert, g + k * d + k + expert]])


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
    parameters = layout.gate.from_coordinates(gate, layout.n_experts, layout.n_covariates)
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

    def add(index: Array, total: Evaluation) -> Evaluation:
        terms = _evaluate_chunk(layout, coordinates, _chunk(data, index))
        return Evaluation(*(old + new for old, new in zip(total, terms, strict=True)))

    p = layout.size
    start = Evaluation(jnp.zeros(()), jnp.zeros(p), jnp.zeros((p, p)))
    return jax.lax.fori_loop(0, data.n_chunks, add, start)


def _evaluate_chunk(layout: Layout, coordinates: Array, chunk: tuple[Array, ...]) -> Evaluation:
    """The closed form in responsibilities r and gate probabilities π.

    With A_i = z_i + log N_i, log g = LSE(A) - LSE(z), so
    ∇² log g = Σ r_i (∇²A_i + ∇A_i ∇A_iᵀ) - (Σ r_i ∇A_i)(Σ r_i ∇A_i)ᵀ - the same in (π, z).
    """
    gate_x, expert_x, y, mask = chunk
    gate, slope, intercept, log_variance = layout.split(coordinates)

    def logits(free: Array) -> Array:
        parameters = layout.gate.from_coordinates(free, layout.n_experts, layout.n_covariates)
        return layout.gate.logits(parameters, gate_x)

    z = logits(gate)
    # dz[c, i] = ∂z_i/∂gate_c, shape (n_gate, k, m)
    dz = jax.vmap(lambda e: jax.jvp(logits, (gate,), (e,))[1])(jnp.eye(layout.n_gate))
    residual = y - (slope @ expert_x + intercept[:, None])
    square = (residual * jnp.exp(-0.5 * log_variance)[:, None]) ** 2
    log_joint = z - 0.5 * (_LOG_2PI + log_variance[:, None] + square)
    evidence, r = log_sum_exp_and_shares(log_joint, 0)
    total, prior = log_sum_exp_and_shares(z, 0)
    r, prior = mask * r, mask * prior
    # finite, so that an expert without responsibility adds zero and not 0 * inf
    square = jnp.minimum(square, 1e200)
    precision = jnp.minimum(jnp.exp(-log_variance), 1e200)[:, None]

    p, g = layout.size, layout.n_gate
    hessian, score = jnp.zeros((p, p)), jnp.zeros((p, mask.shape[0]))
    design = jnp.concatenate([expert_x, jnp.ones_like(y)[None]])
    for i in range(layout.n_experts):
        rows = layout.expert_indices(i)
        d_log_variance = 0.5 * (square[i] - 1.0)
        d_mean = residual[i] * precision[i]
        gradient = jnp.concatenate([dz[:, i], design * d_mean, d_log_variance[None]])
        score = score.at[rows].add(r[i] * gradient)
        block = (r[i] * gradient) @ gradient.T
        # ∇² log N_i in (line, log variance): means and log variances are linear in coordinates
        cross = -(design * r[i]) @ d_mean
        block = block.at[g:-1, g:-1].add(-precision[i] * (design * r[i]) @ design.T)
        block = block.at[g:-1, -1].add(cross).at[-1, g:-1].add(cross)
        block = block.at[-1, -1].add(-0.5 * jnp.sum(r[i] * square[i]))
        block = block.at[:g, :g].add(-(prior[i] * dz[:, i]) @ dz[:, i].T)
        hessian = hessian.at[np.ix_(rows, rows)].add(block)

    mean_dz = jnp.einsum("im,cim->cm", prior, dz)
    hessian = hessian - score @ score.T
    hessian = hessian.at[:g, :g].add(mean_dz @ mean_dz.T)
    surplus = jax.lax.stop_gradient(r - prior)
    bend = jax.hessian(lambda free: jnp.sum(_finite_product(surplus, logits(free))))(gate)
    hessian = hessian.at[:g, :g].add(bend)
    gradient = jnp.sum(score, axis=1).at[:g].add(-jnp.sum(mean_dz, axis=1))
    value = jnp.sum(jnp.where(mask > 0, evidence - total, 0.0))
    return Evaluation(value, gradient, hessian)


def _finite_product(weight: Array, logits: Array) -> Array:
    """weight · logits, an excluded expert (logit -inf, weight 0) counting as zero."""
    return jnp.where(jnp.isfinite(logits), weight * logits, 0.0)
