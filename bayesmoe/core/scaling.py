"""Standardisation of covariates and response, exactly undone on estimates and draws."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import GateParameters, MixingMeasure


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The affine maps x̃ = (x - x_shift)/x_scale and ỹ = (y - y_shift)/y_scale.

    The gate has its own map of x: for gates linear in x the same as the experts'; for other
    gates no shift, because σ(β1ᵀx) has no intercept that could absorb one.

    Attributes
    ----------
    x_shift, x_scale, gate_shift, gate_scale
        Shape ``(d,)``.
    y_shift, y_scale
        Shape ``()``.
    """

    x_shift: Array
    x_scale: Array
    gate_shift: Array
    gate_scale: Array
    y_shift: Array
    y_scale: Array

    @classmethod
    def from_data(cls, gate: Gate, x: Array, y: Array | None) -> Scaling:
        """Means and standard deviations of x ``(n, d)`` and y ``(n,)``; unit scale for no y.

        A gate that is not linear in x is scaled by the root mean square of x instead.
        """
        x_shift, x_scale = _moments(x)
        if gate.linear:
            gate_shift, gate_scale = x_shift, x_scale
        else:
            largest = jnp.max(jnp.abs(x), axis=0)
            unit = jnp.where(largest > 0, largest, 1.0)
            gate_shift, gate_scale = (
                jnp.zeros_like(x_shift),
                unit * jnp.sqrt(jnp.mean((x / unit) ** 2, 0)),
            )
        y_shift, y_scale = (jnp.zeros(()), jnp.ones(())) if y is None else _moments(y)
        return cls(x_shift, x_scale, gate_shift, gate_scale, y_shift, y_scale)

    @classmethod
    def identity(cls, n_covariates: int) -> Scaling:
        """No scaling at all."""
        zeros, ones = jnp.zeros(n_covariates), jnp.ones(n_covariates)
        return cls(zeros, ones, zeros, ones, jnp.zeros(()), jnp.ones(()))

    def standardise(self, measure: MixingMeasure) -> MixingMeasure:
        """The measure of (x̃, ỹ) with the same density as ``measure`` of (x, y)."""
        y_scale = self.y_scale
        return MixingMeasure(
            measure.gate_slope * self.gate_scale,
            measure.gate_intercept + measure.gate_slope @ self.gate_shift,
            measure.temperature,
            measure.slope * self.x_scale / y_scale,
            (measure.intercept + measure.slope @ self.x_shift - self.y_shift) / y_scale,
            measure.variance / y_scale**2,
        )

    def restore(self, measure: MixingMeasure) -> MixingMeasure:
        """The inverse of `standardise`."""
        y_scale = self.y_scale
        gate_slope = measure.gate_slope / self.gate_scale
        slope = measure.slope * y_scale / self.x_scale
        return MixingMeasure(
            gate_slope,
            measure.gate_intercept - gate_slope @ self.gate_shift,
            measure.temperature,
            slope,
            measure.intercept * y_scale + self.y_shift - slope @ self.x_shift,
            measure.variance * y_scale**2,
        )

    def restore_gate(self, parameters: GateParameters) -> GateParameters:
        """`restore` for the gate alone."""
        slope = parameters.slope / self.gate_scale
        return GateParameters(
            slope, parameters.intercept - slope @ self.gate_shift, parameters.temperature
        )

    def log_volume(self, n_experts: int) -> Array:
        """log |∂(original parameters)/∂(standardised parameters)|, reference excluded."""
        experts = jnp.sum(jnp.log(self.y_scale / self.x_scale)) + 3 * jnp.log(self.y_scale)
        return n_experts * experts - (n_experts - 1) * jnp.sum(jnp.log(self.gate_scale))


def _moments(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation over the first axis; NumPy's, safe at extreme scales."""
    array = np.asarray(values)
    largest = np.max(np.abs(array), axis=0)
    unit = np.where(largest > 0, largest, 1.0)
    shift = np.mean(array / unit, axis=0) * unit
    scale = np.std((array - shift) / unit, axis=0) * unit
    return jnp.asarray(shift), jnp.asarray(np.where(scale > 0, scale, 1.0))
