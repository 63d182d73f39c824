"""The conditional density g_G(y|x) as a NumPyro distribution."""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure

_LOG_2PI = math.log(2 * math.pi)
_Search = tuple[Array, Array, Array, Array]  # a point, its bracket, the size of the last step


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
    largest, powers, total = powers_and_sum(terms, axis)
    shares = powers / jnp.expand_dims(jnp.where(total > 0, total, 1.0), axis)
    return jnp.log(total) + largest, shares


def powers_and_sum(terms: Array, axis: int) -> tuple[Array, Array, Array]:
    """The largest term along ``axis`` (zero if that is infinite), exp(terms - largest), its sum."""
    largest = jax.lax.stop_gradient(jnp.max(terms, axis=axis))
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    powers = jnp.exp(terms - jnp.expand_dims(largest, axis))
    return largest, powers, jnp.sum(powers, axis=axis)


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
        below = jnp.sum(jnp.exp(self.log_weights) * component, axis=-1)
        return jnp.minimum(below, 1.0)  # weights add up to one but for rounding

    def icdf(self, q: ArrayLike) -> Array:
        """Quantiles of levels 0 < q < 1, which have the batch shape or broadcast to it.

        Relative errors are a few units of rounding where the density is not zero; where it is,
        between modes far apart, any value there may be returned for their level.
        """
        level = jnp.broadcast_to(jnp.asarray(q, dtype=float), self.batch_shape)
        # upper tails are lower ones of the mirrored mixture, for 1 - cdf would cancel there
        sign = jnp.where(level > 0.5, -1.0, 1.0)
        tail = jnp.where(level > 0.5, 1.0 - level, level)
        mirrored = GaussianMixture(self.log_weights, sign[..., None] * self.locs, self.scales)
        return sign * _lower_quantile(mirrored, tail)


def _lower_quantile(law: GaussianMixture, level: Array) -> Array:
    """Where the cdf of ``law`` is ``level`` <= 1/2, of the batch shape as both of these.

    Newton's method on the logarithm of the cdf, which bends little in the tail, kept in a
    bracket: a step that leaves it, or is longer than half the step before, gives way to halving.
    """
    weights, locs, scales = jnp.exp(law.log_weights), law.locs, law.scales
    # at the least of the components' own quantiles no cdf has passed the level, at the largest all
    ends = locs + ndtri(level)[..., None] * scales
    low = jnp.min(jnp.where(weights > 0, ends, jnp.inf), axis=-1)
    high = jnp.max(jnp.where(weights > 0, ends, -jnp.inf), axis=-1)
    finest = jnp.min(jnp.where(weights > 0, scales, jnp.inf), axis=-1)

    def tolerance(at: Array) -> Array:
        # the next step of a method that converges quadratically would be below rounding
        return 4 * jnp.finfo(float).eps * jnp.abs(at) + 1e-10 * finest

    def refine(state: _Search) -> _Search:
        at, low, high, last = state
        z = (at[..., None] - locs) / scales
        below = jnp.sum(weights * ndtr(z), axis=-1)
        slope = jnp.sum(weights * jnp.exp(-0.5 * z**2) / scales, axis=-1) / math.sqrt(2 * math.pi)
        low, high = jnp.where(below < level, at, low), jnp.where(below < level, high, at)
        newton = at + jnp.log(level / below) * below / slope
        good = (newton >= low) & (newton <= high) & (jnp.abs(newton - at) <= 0.5 * last)
        new = jnp.where(good, newton, low + 0.5 * (high - low))
        # those that have arrived stay: what one row needs must not depend on the others
        new = jnp.where(last > tolerance(at), new, at)
        return new, low, high, jnp.abs(new - at)

    def unfinished(state: _Search) -> Array:
        return jnp.any(state[3] > tolerance(state[0]))

    guess = law.mean + ndtri(level) * jnp.sqrt(law.variance)
    guess = jnp.where(jnp.isfinite(guess), jnp.clip(guess, low, high), low)
    return jax.lax.while_loop(unfinished, refine, (guess, low, high, high - low))[0]


def conditional_density(gate: Gate, measure: MixingMeasure, x: Array) -> GaussianMixture:
    """g_G(·|x) of a single measure at x of shape ``(n, d)``: batch shape ``(n,)``."""
    log_weights = gate.log_probabilities(measure.gate, x.T).T
    means = x @ measure.slope.T + measure.intercept
    return GaussianMixture(log_weights, means, jnp.sqrt(measure.variance))


def predictive_density(gate: Gate, measures: MixingMeasure, x: Array) -> GaussianMixture:
    """The average of g_G(·|x) over S measures, a batch ``(S,)``, at x of shape ``(n, d)``.

    A mixture of batch shape ``(n,)`` with S k components, those of a measure side by side.
    """
    laws = jax.vmap(lambda one: conditional_density(gate, one, x))(measures)

    def merged(values: Array) -> Array:
        return jnp.moveaxis(values, 0, 1).reshape(x.shape[0], -1)

    log_weights = merged(laws.log_weights) - math.log(measures.batch_shape[0])
    return GaussianMixture(log_weights, merged(laws.locs), merged(laws.scales))
