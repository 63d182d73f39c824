"""The posterior density in unconstrained identifiable coordinates.

Sampling moves in the gate's identifiable coordinates θ, flattened by `Layout`, with the Jacobian
that keeps the prior one of the paper's parameters. Where the prior's support is bounded, θ is a
soft clip of an unconstrained vector u, elementwise and close to the identity inside; its bounds may
depend on τ alone, so that the Jacobian is triangular.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import constraints

from bayesmoe.core.gate import Gate
from bayesmoe.core.hessian import Evaluation, evaluate_log_likelihood
from bayesmoe.core.layout import Layout
from bayesmoe.core.likelihood import log_likelihood
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.observations import Data
from bayesmoe.core.priors import Prior, check_positive

_EDGE = 1e-6  # a point on the boundary is moved inside by this much

_POSITIVE = ("temperature", "variance")  # their coordinates are logarithms

Bound = Array | float


class Target(NamedTuple):
    """What is sampled: a layout and a proper prior. Hashable, hence static under jit."""

    layout: Layout
    prior: Prior

    @property
    def bounded(self) -> bool:
        """Whether the prior bounds some parameters, so that u is not θ."""
        return any(True for _ in _bounded_blocks(self.layout, self.prior))

    def coordinates(self, u: Array) -> Array:
        """Identifiable coordinates θ at u, both of shape ``(p,)``."""
        return self._clip(u)[0]

    def unconstrain(self, coordinates: Array) -> Array:
        """The inverse of `coordinates`; points on or outside the boundary are moved inside."""
        u, inside = coordinates, coordinates
        for block in _bounded_blocks(self.layout, self.prior):
            bounds = block.bounds(self._temperature(inside))
            part = _invert(coordinates[block.where], *bounds)
            u = u.at[block.where].set(part)
            inside = inside.at[block.where].set(_soft_clip(part, *bounds)[0])
        return u

    def measure(self, u: Array) -> MixingMeasure:
        """The mixing measure of standardised data at u."""
        return self.layout.unpack(self.coordinates(u))

    def log_prior(self, u: Array) -> Array:
        """log density of u under the prior, Jacobian included."""
        return self._coordinates_and_log_prior(u)[1]

    def log_density(self, u: Array, data: Data) -> Array:
        """log posterior density of u, up to a constant."""
        theta, log_prior = self._coordinates_and_log_prior(u)
        return log_likelihood(self.layout, theta, data) + log_prior

    def evaluate(self, u: Array, data: Data) -> Evaluation:
        """`log_density` with gradient and Hessian."""
        inner = evaluate_log_likelihood(self.layout, self.coordinates(u), data)

        def tangent(v: Array) -> Array:
            """The log density with the likelihood replaced by its tangent in θ at u."""
            theta, log_prior = self._coordinates_and_log_prior(v)
            return inner.gradient @ theta + log_prior

        jacobian = jax.jacfwd(self.coordinates)(u)
        return Evaluation(
            inner.value + self.log_prior(u),
            jax.grad(tangent)(u),
            jacobian.T @ inner.hessian @ jacobian + jax.hessian(tangent)(u),
        )

    def _coordinates_and_log_prior(self, u: Array) -> tuple[Array, Array]:
        theta, log_derivative = self._clip(u)
        measure = self.layout.unpack(theta)
        density = self.prior.log_density(self.layout.gate, measure, self.layout.selection)
        return theta, density + self.layout.log_jacobian(measure) + log_derivative

    def _temperature(self, theta: Array) -> Array:
        layout = self.layout
        if not layout.gate.has_temperature:
            return jnp.ones(())
        return jnp.exp(theta[layout.n_gate - 1])

    def _clip(self, u: Array) -> tuple[Array, Array]:
        """θ, and the log determinant of its derivative in u."""
        theta, log_derivative = u, jnp.zeros(())
        for block in _bounded_blocks(self.layout, self.prior):
            bounds = block.bounds(self._temperature(theta))
            value, log_slopes = _soft_clip(u[block.where], *bounds)
            theta = theta.at[block.where].set(value)
            log_derivative += jnp.sum(log_slopes)
        return theta, log_derivative


class _Block(NamedTuple):
    """A stretch of coordinates whose prior is bounded."""

    where: slice
    lower: float  # infinite for no bound
    upper: float
    power: int  # of τ by which the coordinates are multiples of what is bounded

    def bounds(self, temperature: Array) -> tuple[Bound, Bound]:
        """Lower and upper bound of the coordinates at τ."""
        if not self.power:
            return self.lower, self.upper
        # an infinite bound stays a number: multiplied by τ its derivative would be NaN
        lower, upper = (
            bound * temperature**self.power if np.isfinite(bound) else bound
            for bound in (self.lower, self.upper)
        )
        return lower, upper


def supports(gate: Gate, prior: Prior) -> dict[str, tuple[float, float]]:
    """The interval that supports each parameter's prior, by the field of `Prior`.

    Raises
    ------
    ValueError
        If a support is no interval, or one of a positive parameter reaches below zero.
    """
    check_positive(gate, prior)
    names = ["gate_slope", "gate_intercept", "slope", "intercept", "variance"]
    if gate.has_temperature:
        names.append("temperature")
    return {name: _interval(name, getattr(prior, name)) for name in names}


def _interval(name: str, distribution: Any) -> tuple[float, float]:
    support = distribution.support
    lower = getattr(support, "lower_bound", -np.inf)
    upper = getattr(support, "upper_bound", np.inf)
    bounded = np.isfinite(lower) or np.isfinite(upper)
    if support.is_discrete or not (bounded or isinstance(support, type(constraints.real))):
        raise ValueError(
            f"the prior of {name} has support {support}; sampling needs an interval: "
            "choose a prior on the real line, a half-line or an interval"
        )
    return float(lower), float(upper)


def _bounded_blocks(layout: Layout, prior: Prior) -> Iterator[_Block]:
    """The blocks of θ with bounds; log τ comes first, since the others' bounds depend on it."""
    gate, k, d, g = layout.gate, layout.n_experts, layout.n_expert_covariates, layout.n_gate
    n_slopes = (k - 1) * layout.n_gate_covariates
    # coordinates may be β1/τ and β0/τ, and bounds those of β0/τ
    intercept_power = prior.intercept_per_temperature - gate.intercept_per_temperature
    places = {
        "temperature": (slice(g - 1, g), 0),
        "gate_slope": (slice(0, n_slopes), -gate.slope_per_temperature),
        "gate_intercept": (slice(n_slopes, n_slopes + k - 1), intercept_power),
        "slope": (slice(g, g + k * d), 0),
        "intercept": (slice(g + k * d, g + k * (d + 1)), 0),
        "variance": (slice(g + k * (d + 1), layout.size), 0),
    }
    intervals = supports(gate, prior)
    for name, (where, power) in places.items():
        lower, upper = intervals.get(name, (-np.inf, np.inf))
        if name in _POSITIVE:
            lower, upper = (float(np.log(b)) if b > 0 else -np.inf for b in (lower, upper))
        if np.isfinite(lower) or np.isfinite(upper):
            yield _Block(where, lower, upper, power)


def _soft_clip(u: Array, lower: Bound, upper: Bound) -> tuple[Array, Array]:
    """A smooth increasing map of the line onto (lower, upper), and the log of its derivative."""
    if _is_infinite(upper):
        return lower + jax.nn.softplus(u - lower), jax.nn.log_sigmoid(u - lower)
    if _is_infinite(lower):
        return upper - jax.nn.softplus(upper - u), jax.nn.log_sigmoid(upper - u)
    centre, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
    s = (u - centre) / half
    # log of 1 - tanh² s, which does not underflow
    log_slope = 2.0 * (jnp.log(2.0) - jnp.logaddexp(s, -s))
    return centre + half * jnp.tanh(s), log_slope


def _invert(value: Array, lower: Bound, upper: Bound) -> Array:
    """The inverse of `_soft_clip`; the boundary and what is beyond count as just inside."""
    if _is_infinite(upper):
        return lower + _inverse_softplus(value - lower)
    if _is_infinite(lower):
        return upper - _inverse_softplus(upper - value)
    centre, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
    return centre + half * jnp.arctanh(jnp.clip((value - centre) / half, _EDGE - 1, 1 - _EDGE))


def _inverse_softplus(gap: Array) -> Array:
    gap = jnp.maximum(gap, _EDGE)
    return gap + jnp.log(-jnp.expm1(-gap))


def _is_infinite(bound: Bound) -> bool:
    """Whether there is no bound; those that depend on τ are finite."""
    return isinstance(bound, float) and bool(np.isinf(bound))
