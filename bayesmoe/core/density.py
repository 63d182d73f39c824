"""The conditional density g_G(y|x) as a NumPyro distribution."""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.stats import norm
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure

_LOG_2PI = math.log(2 * math.pi)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_sum_exp(terms: Array, axis: int) -> Array:
    """log Σ exp(terms) along ``axis``; where the sum is zero, -inf with a gradient of zero.

    JAX's own has a gradient of NaN there, which would spoil the sum over all observations.
    """
    return log_sum_exp_and_shares(terms, axis)[0]


@log_sum_exp.defjvp
def _log_sum_exp_jvp(axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    value, shares = log_sum_exp_and_shares(primals[0], axis)
    return value, jnp.sum(shares * tangents[0], axis=axis)


def log_sum_exp_and_shares(terms: Array, axis: int) -> tuple[Array, Array]:
    """`log_sum_exp` and its gradient, the share of each term in the sum: zeros in a sum of zero."""
    largest = jax.lax.stop_gradient(jnp.max(terms, axis=axis))
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    powers = jnp.exp(terms - jnp.expand_dims(largest, axis))
    total = jnp.sum(powers, axis=axis)
    shares = powers / jnp.expand_dims(jnp.where(total > 0, total, 1.0), axis)
    return jnp.log(total) + largest, shares


class GaussianMixture(dist.Distribution):
    """A univariate Gaussian mixture; its components are summed out.

    Parameters
    ----------
    log_weights
        Normalised log weights, shape ``(..., k)``; -inf excludes a component.
    locs, scales
        Component means and standard deviations, shape ``(..., k)``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        # not a real vector: -inf is a weight of zero; the margin is for rounding
        "log_weights": constraints.independent(constraints.less_than(1e-9), 1),
        "locs": constraints.real_vector,
        "scales": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real
    pytree_data_fields = ("log_weights", "locs", "scales")

    def __init__(
        self,
        log_weights: Array,
        locs: Array,
        scales: Array,
        *,
        validate_args: bool | None = None,
    ) -> None:
        shape = jnp.broadcast_shapes(jnp.shape(log_weights), jnp.shape(locs), jnp.shape(scales))
        self.log_weights = jnp.broadcast_to(log_weights, shape)
        self.locs = jnp.broadcast_to(locs, shape)
        self.scales = jnp.broadcast_to(scales, shape)
        super().__init__(batch_shape=shape[:-1], validate_args=validate_args)

    def component_log_prob(self, value: ArrayLike) -> Array:
        """log of weight times density of each component, shape ``(..., k)``."""
        residual = (jnp.asarray(value)[..., None] - self.locs) / self.scales
        # not norm.logpdf: the derivative of its squared scale overflows below scales of 1e-77
        return self.log_weights - jnp.log(self.scales) - 0.5 * (_LOG_2PI + residual**2)

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        return log_sum_exp(self.component_log_prob(value), -1)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = tuple(sample_shape) + self.batch_shape
        label_key, noise_key = jax.random.split(key)
        label = jax.random.categorical(label_key, self.log_weights, axis=-1, shape=shape)[..., None]
        full = shape + self.locs.shape[-1:]
        loc = jnp.take_along_axis(jnp.broadcast_to(self.locs, full), label, -1)[..., 0]
        scale = jnp.take_along_axis(jnp.broadcast_to(self.scales, full), label, -1)[..., 0]
        return loc + scale * jax.random.normal(noise_key, shape)

    @property
    def mean(self) -> Array:
        return jnp.sum(jnp.exp(self.log_weights) * self.locs, axis=-1)

    @property
    def variance(self) -> Array:
        spread = self.scales**2 + (self.locs - self.mean[..., None]) ** 2
        return jnp.sum(jnp.exp(self.log_weights) * spread, axis=-1)

    def cdf(self, value: ArrayLike) -> Array:
        component = norm.cdf(jnp.asarray(value)[..., None], self.locs, self.scales)
        return jnp.sum(jnp.exp(self.log_weights) * component, axis=-1)


def conditional_density(gate: Gate, measure: MixingMeasure, x: Array) -> GaussianMixture:
    """g_G(·|x) of a single measure at x of shape ``(n, d)``: batch shape ``(n,)``."""
    log_weights = gate.log_probabilities(measure.gate, x.T).T
    means = x @ measure.slope.T + measure.intercept
    return GaussianMixture(log_weights, means, jnp.sqrt(measure.variance))
