"""The conditional log-likelihood and its gradient, summed over chunks of data."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.density import log_sum_exp, powers_and_sum
from bayesmoe.core.gate import Gate
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.observations import Data, sum_over_chunks

_LOG_2PI = float(np.log(2 * np.pi))


def log_density(gate: Gate, measure: MixingMeasure, x: Array, y: Array) -> Array:
    """log g_G(y_j|x_j) of one measure, shape ``(n,)``, for x ``(n, d)`` and y ``(n,)``."""
    means = measure.slope @ x.T + measure.intercept[:, None]
    logits = gate.logits(measure.gate, x.T)
    # a measure may come from anywhere: a log density added to a logit of 1e12 loses its digits
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=0))
    logits = logits - largest
    log_variance = jnp.log(measure.variance)[:, None]
    residual = (y - means) * jnp.exp(-0.5 * log_variance)
    log_normal = -0.5 * (_LOG_2PI + log_variance + residual**2)
    return log_sum_exp(logits + log_normal, 0) - log_sum_exp(logits, 0)


def chunk_of(data: Data, index: Array) -> tuple[Array, Array, Array, Array]:
    """The gate's design ``(d, m)``, the experts', the response ``(m,)`` and the mask of a chunk."""
    return data.gate_x[index], data.expert_x[index], data.y[index], data.mask[index]


class Shares(NamedTuple):
    """Of one chunk: Σ log g, responsibilities r and gate probabilities π, both ``(k, m)``.

    The padding counts for nothing: its r and π are zero.
    """

    value: Array
    responsibility: Array
    prior: Array


def shares(log_joint: Array, logits: Array, mask: Array) -> Shares:
    """From z_i + log N_i, but for the constant of the normal law, and z_i, both ``(k, m)``."""
    peak, joint, evidence = powers_and_sum(log_joint, 0)
    gate_peak, powers, total = powers_and_sum(logits, 0)
    used = mask > 0  # the padding may well be -inf
    value = jnp.sum(jnp.where(used, peak - gate_peak - 0.5 * _LOG_2PI, 0.0))
    value += _sum_of_logs(jnp.where(used, evidence / total, 1.0))
    responsibility = mask * joint / jnp.where(evidence > 0, evidence, 1.0)
    return Shares(value, responsibility, mask * powers / total)


def _sum_of_logs(ratios: Array) -> Array:
    """Σ log of ratios ``(m,)`` of two sums of k terms whose largest is one, or zero.

    A logarithm costs as much as four powers: one is taken of products of up to 32 ratios. Each is
    at least 1/k and at most k, so that no product leaves the floating-point range.
    """
    return jnp.sum(jnp.log(jnp.prod(ratios.reshape(32, -1), axis=0)))


def _score_chunk(
    layout: Layout, coordinates: Array, chunk: tuple[Array, ...]
) -> tuple[Array, Array]:
    """What one chunk adds to value and gradient: only the logits are differentiated by JAX."""
    gate_x, expert_x, y, mask = chunk
    gate, slope, intercept, log_variance = layout.split(coordinates)
    logits, pull_back = jax.vjp(
        lambda free: layout.gate.logits(layout.gate_parameters(free), gate_x), gate
    )
    inverse_scale = jnp.exp(-0.5 * log_variance)
    residual = (y - (slope @ expert_x + intercept[:, None])) * inverse_scale[:, None]
    square = residual**2
    value, r, prior = shares(logits - 0.5 * (log_variance[:, None] + square), logits, mask)
    # finite, so that an expert without responsibility adds zero and not 0 * inf
    pull, spread = r * jnp.clip(residual, -1e150, 1e150), r * (jnp.minimum(square, 1e200) - 1.0)
    one = jnp.ones_like(y)  # products with it: sums take twice as long
    gradient = [
        *pull_back(r - prior),
        ((pull @ expert_x.T) * inverse_scale[:, None]).ravel(),
        (pull @ one) * inverse_scale,
        0.5 * (spread @ one),
    ]
    return value, jnp.concatenate(gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def log_likelihood(layout: Layout, coordinates: Array, data: Data) -> Array:
    """Σ_j log g_G(y_j|x_j) at coordinates of shape ``(p,)``, a scalar."""

    def terms(index: Array) -> Array:
        return _score_chunk(layout, coordinates, chunk_of(data, index))[0]

    return sum_over_chunks(data, terms)


def _log_likelihood_forward(layout: Layout, coordinates: Array, data: Data) -> tuple[Array, Array]:
    # the gradient is summed on the way forward: a loop of unknown length has no reverse pass
    def terms(index: Array) -> tuple[Array, Array]:
        return _score_chunk(layout, coordinates, chunk_of(data, index))

    return sum_over_chunks(data, terms)


def _log_likelihood_backward(
    layout: Layout, gradient: Array, cotangent: Array
) -> tuple[Array, None]:
    return cotangent * gradient, None


log_likelihood.defvjp(_log_likelihood_forward, _log_likelihood_backward)
