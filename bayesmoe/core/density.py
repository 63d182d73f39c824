"""The conditional density g_G(y|x) as a NumPyro distribution."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from numpyro.distributions import constraints

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure


class GaussianMixture(dist.Distribution):
    """A univariate Gaussian mixture; its components are summed out.

    Parameters
    ----------
    log_weights
        Normalised log weights, shape ``(..., k)``; -inf excludes a component.
    locs, scales
        Component means and standard deviations, shape ``(..., k)``.
    """

    arg_constraints = {
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

    def component_log_prob(self, value: Array) -> Array:
        """log of weight times density of each component, shape ``(..., k)``."""
        value = jnp.asarray(value)[..., None]
        return self.log_weights + norm.logpdf(value, self.locs, self.scales)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        return logsumexp(self.component_log_prob(value), axis=-1)

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

    def cdf(self, value: Array) -> Array:
        component = norm.cdf(jnp.asarray(value)[..., None], self.locs, self.scales)
        return jnp.sum(jnp.exp(self.log_weights) * component, axis=-1)


def conditional_density(gate: Gate, measure: MixingMeasure, x: Array) -> GaussianMixture:
    """g_G(·|x) of a single measure at x of shape ``(n, d)``: batch shape ``(n,)``."""
    log_weights = gate.log_probabilities(measure.gate, x.T).T
    means = x @ measure.slope.T + measure.intercept
    return GaussianMixture(log_weights, means, jnp.sqrt(measure.variance))
