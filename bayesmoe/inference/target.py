"""The posterior density in unconstrained identifiable coordinates.

Sampling moves in the gate's identifiable coordinates θ, flattened by `Layout`, with the Jacobian
that keeps the prior one of the paper's parameters. Where the prior's support is bounded, θ is a
soft clip of an unconstrained vector u, elementwise and close to the identity inside; its bounds may
depend on τ alone, so that the Jacobian is triangular.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.hessian import Evaluation, evaluate_log_likelihood
from bayesmoe.core.layout import Layout
from bayesmoe.core.likelihood import log_likelihood
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.observations import Data
from bayesmoe.core.priors import Prior
from bayesmoe.core.support import Bound, bounded_blocks

_EDGE = 1e-6  # a point on the boundary is moved inside by this much


class Target(NamedTuple):
    """What is sampled: a layout and a proper prior. Hashable, hence static under jit."""

    layout: Layout
    prior: Prior

    @property
    def bounded(self) -> bool:
        """Whether the prior bounds some parameters, so that u is not θ."""
        return any(True for _ in bounded_blocks(self.layout, self.prior))

    def coordinates(self, u: Array) -> Array:
        """Identifiable coordinates θ at u, both of shape ``(p,)``."""
        return self._clip(u)[0]

    def unconstrain(self, coordinates: Array) -> Array:
        """The inverse of `coordinates`; points on or outside the boundary are moved inside."""
        u, inside = coordinates, coordinates
        for block in bounded_blocks(self.layout, self.prior):
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
        for block in bounded_blocks(self.layout, self.prior):
            bounds = block.bounds(self._temperature(theta))
            value, log_slopes = _soft_clip(u[block.where], *bounds)
            theta = theta.at[block.where].set(value)
            log_derivative += jnp.sum(log_slopes)
        return theta, log_derivative


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
