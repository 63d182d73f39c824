"""The conditional log-likelihood, its gradient and its Hessian, summed over chunks of data."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.density import log_sum_exp, log_sum_exp_and_shares
from bayesmoe.core.gate import Gate
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.observations import Data, sum_over_chunks

_LOG_2PI = float(np.log(2 * np.pi))


class Evaluation(NamedTuple):
    """Value ``()``, gradient ``(p,)`` and Hessian ``(p, p)`` of a function of coordinates."""

    value: Array
    gradient: Array
    hessian: Array


def log_density(gate: Gate, measure: MixingMeasure, x: Array, y: Array) -> Array:
    """log g_G(y_j|x_j) of one measure, shape ``(n,)``, for x ``(n, d)`` and y ``(n,)``."""
    means = measure.slope @ x.T + measure.intercept[:, None]
    logits = gate.logits(measure.gate, x.T)
    # a measure may come from anywhere: a log density added to a logit of 1e12 loses its digits
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=0))
    return _log_mixture(logits - largest, y, means, jnp.log(measure.variance))


def _log_mixture(logits: Array, y: Array, means: Array, log_variance: Array) -> Array:
    """log g for logits and means ``(k, m)``, log variances ``(k,)``: shape ``(m,)``."""
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
    rows = _log_mixture(layout.gate.logits(parameters, gate_x), y, means, log_variance)
    return jnp.sum(jnp.where(mask > 0, rows, 0.0))  # the padding may well be -inf


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def log_likelihood(layout: Layout, coordinates: Array, data: Data) -> Array:
    """Σ_j log g_G(y_j|x_j) at coordinates of shape ``(p,)``, a scalar."""

    def terms(index: Array) -> Array:
        return _chunk_log_likelihood(layout, coordinates, _chunk(data, index))

    return sum_over_chunks(data, terms)


def _log_likelihood_forward(layout: Layout, coordinates: Array, data: Data) -> tuple[Array, Array]:
    # the gradient is summed on the way forward: a loop of unknown length has no reverse pass
    def terms(index: Array) -> tuple[Array, Array]:
        return jax.value_and_grad(_chunk_log_likelihood, argnums=1)(
            layout, coordinates, _chunk(data, index)
        )

    return sum_over_chunks(data, terms)


def _log_likelihood_backward(
    layout: Layout, gradient: Array, cotangent: Array
) -> tuple[Array, None]:
    return cotangent * gradient, None


log_likelihood.defvjp(_log_likelihood_forward, _log_likelihood_backward)


def evaluate_log_likelihood(layout: Layout, coordinates: Array, data: Data) -> Evaluation:
    """Value, gradient and exact Hessian of the log-likelihood in one pass."""

    def terms(index: Array) -> _Terms:
        return _evaluate_chunk(layout, coordinates, _chunk(data, index))

    return _assemble(layout, sum_over_chunks(data, terms))


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
