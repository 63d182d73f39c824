"""The posterior density in unconstrained identifiable coordinates.

Sampling moves in the gate's identifiable coordinates θ, flattened by `Layout`, with the Jacobian
that keeps the prior one of the paper's parameters. Where the prior's support is bounded, θ is a
soft clip of an unconstrained vector u, elementwise and close to the identity inside; its bounds may
depend on τ alone, so that the Jacobian is triangular.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import constraints

from bayesmoe.core.likelihood import (
    Data,
    Evaluation,
    Layout,
    evaluate_log_likelihood,
    log_likelihood,
)
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.priors import Prior

_EDGE = 1.0 - 1e-6  # a start on the boundary is moved inside


class Target(NamedTuple):
    """What is sampled: a layout and a proper prior. Hashable, hence static under jit."""

    layout: Layout
    prior: Prior

    def coordinates(self, u: Array) -> Array:
        """Identifiable coordinates θ at u, both of shape ``(p,)``."""
        return self._clip(u)[0]

    def unconstrain(self, coordinates: Array) -> Array:
        """The inverse of `coordinates`; points on or outside the boundary are moved inside."""
        theta, index = coordinates, self._temperature_index
        if index is not None:
            lower, upper = self._bounds(jnp.ones(()))
            one = _invert(theta[index], lower[index], upper[index])
            theta = theta.at[index].set(_soft_clip(one, lower[index], upper[index])[0])
        return _invert(theta, *self._bounds(self._temperature(theta)))

    def measure(self, u: Array) -> MixingMeasure:
        """The mixing measure of standardised data at u."""
        return self.layout.unpack(self.coordinates(u))

    def log_prior(self, u: Array) -> Array:
        """log density of u under the prior, Jacobian included."""
        theta, log_derivative = self._clip(u)
        measure = self.layout.unpack(theta)
        density = self.prior.log_density(self.layout.gate, measure)
        return density + self.layout.log_jacobian(measure) + jnp.sum(log_derivative)

    def log_density(self, u: Array, data: Data) -> Array:
        """log posterior density of u, up to a constant."""
        return log_likelihood(self.layout, self.coordinates(u), data) + self.log_prior(u)

    def evaluate(self, u: Array, data: Data) -> Evaluation:
        """`log_density` with gradient and Hessian."""
        inner = evaluate_log_likelihood(self.layout, self.coordinates(u), data)
        jacobian = jax.jacfwd(self.coordinates)(u)
        held = jax.lax.stop_gradient(inner.gradient)
        bend = jax.hessian(lambda v: held @ self.coordinates(v))(u)
        return Evaluation(
            inner.value + self.log_prior(u),
            jacobian.T @ inner.gradient + jax.grad(self.log_prior)(u),
            jacobian.T @ inner.hessian @ jacobian + bend + jax.hessian(self.log_prior)(u),
        )

    @property
    def _temperature_index(self) -> int | None:
        return self.layout.n_gate - 1 if self.layout.gate.has_temperature else None

    def _temperature(self, theta: Array) -> Array:
        index = self._temperature_index
        return jnp.ones(()) if index is None else jnp.exp(theta[index])

    def _clip(self, u: Array) -> tuple[Array, Array]:
        """θ and log dθ/du, elementwise."""
        index = self._temperature_index
        temperature = jnp.ones(())
        if index is not None:
            lower, upper = self._bounds(temperature)
            temperature = jnp.exp(_soft_clip(u[index], lower[index], upper[index])[0])
        return _soft_clip(u, *self._bounds(temperature))

    def _bounds(self, temperature: Array) -> tuple[Array, Array]:
        """The support of θ at τ, lower and upper bounds of shape ``(p,)``."""
        gate, prior = self.layout.gate, self.prior
        k, d = self.layout.n_experts, self.layout.n_covariates
        slope_unit = temperature if gate.slope_per_temperature else jnp.ones(())
        tempered = gate.intercept_per_temperature and not prior.intercept_per_temperature
        intercept_unit = temperature if tempered else jnp.ones(())
        blocks = [
            _scaled(_interval("gate_slope", prior.gate_slope), slope_unit, (k - 1) * d),
            _scaled(_interval("gate_intercept", prior.gate_intercept), intercept_unit, k - 1),
        ]
        one = jnp.ones(())
        if gate.has_temperature:
            blocks.append(_scaled(_log_interval("temperature", prior.temperature), one, 1))
        blocks.append(_scaled(_interval("slope", prior.slope), one, k * d))
        blocks.append(_scaled(_interval("intercept", prior.intercept), one, k))
        blocks.append(_scaled(_log_interval("variance", prior.variance), one, k))
        lower, upper = (jnp.concatenate(side) for side in zip(*blocks, strict=True))
        return lower, upper


def _scaled(bounds: tuple[float, float], unit: Array, size: int) -> tuple[Array, Array]:
    # an infinite bound stays constant: its derivative in τ would be NaN
    lower, upper = (
        jnp.full(size, bound) / (unit if np.isfinite(bound) else 1.0) for bound in bounds
    )
    return lower, upper


def _interval(name: str, distribution: Any) -> tuple[float, float]:
    """The support of a scalar prior as an interval.

    Raises
    ------
    ValueError
        If the support is none.
    """
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


def _log_interval(name: str, distribution: Any) -> tuple[float, float]:
    lower, upper = _interval(name, distribution)
    return (float(np.log(lower)) if lower > 0 else -np.inf), float(np.log(upper))


def _soft_clip(u: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """A smooth increasing map of the line onto (lower, upper), and the log of its derivative."""
    centre, half = _middle(lower, upper)
    s = (u - centre) / half
    both = centre + half * jnp.tanh(s)
    log_both = 2.0 * (jnp.log(2.0) - jnp.abs(s) - jnp.log1p(jnp.exp(-2.0 * jnp.abs(s))))
    up, down = _finite(u - lower), _finite(upper - u)
    above, below = lower + jax.nn.softplus(up), upper - jax.nn.softplus(down)
    cases = [
        jnp.isfinite(lower) & jnp.isfinite(upper),
        jnp.isfinite(lower),
        jnp.isfinite(upper),
    ]
    value = jnp.select(cases, [both, above, below], u)
    logs = [log_both, jax.nn.log_sigmoid(up), jax.nn.log_sigmoid(down)]
    return value, jnp.select(cases, logs, jnp.zeros_like(u))


def _invert(value: Array, lower: Array, upper: Array) -> Array:
    """The inverse of `_soft_clip`."""
    centre, half = _middle(lower, upper)
    both = centre + half * jnp.arctanh(jnp.clip((value - centre) / half, -_EDGE, _EDGE))
    least = 1.0 - _EDGE
    up, down = (jnp.maximum(_finite(gap), least) for gap in (value - lower, upper - value))
    # softplus⁻¹(g) = g + log(1 - e^-g)
    above = lower + up + jnp.log(-jnp.expm1(-up))
    below = upper - down - jnp.log(-jnp.expm1(-down))
    return jnp.select(
        [jnp.isfinite(lower) & jnp.isfinite(upper), jnp.isfinite(lower), jnp.isfinite(upper)],
        [both, above, below],
        value,
    )


def _middle(lower: Array, upper: Array) -> tuple[Array, Array]:
    """Centre and half width; 0 and 1 where unbounded, so that unused branches stay finite."""
    bounded = jnp.isfinite(lower) & jnp.isfinite(upper)
    centre = jnp.where(bounded, 0.5 * (lower + upper), 0.0)
    return centre, jnp.where(bounded, 0.5 * (upper - lower), 1.0)


def _finite(gap: Array) -> Array:
    return jnp.where(jnp.isfinite(gap), gap, 0.0)
