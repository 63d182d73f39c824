"""Standardisation of covariates and response, exactly undone on estimates and draws."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.selection import ALL, Selection, take


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaling:
    """The affine maps x̃ = (x - x_shift)/x_scale and ỹ = (y - y_shift)/y_scale.

    The gate has its own map of x: for gates linear in x the same as the experts'; for other
    gates no shift, because σ(β1ᵀx) has no intercept that could absorb one; see `from_data`.

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
    def from_data(cls, gate: Gate, x: Array | np.ndarray, y: Array | np.ndarray | None) -> Scaling:
        """Means and standard deviations of x ``(n, d)`` and y ``(n,)``; unit scale for no y.

        A gate that is not linear in x is scaled by the root mean square of x instead, and one
        that is not `Gate.rescalable` not at all. Both may be traced.
        """
        x, y = _as_known(x), None if y is None else _as_known(y)
        x_shift, x_scale = _moments(x)
        y_shift, y_scale = (jnp.zeros(()), jnp.ones(())) if y is None else _moments(y)
        gate_shift, gate_scale = jnp.zeros_like(x_shift), jnp.ones_like(x_scale)
        if gate.linear:
            gate_shift, gate_scale = x_shift, x_scale
        elif gate.rescalable:
            gate_scale = _root_mean_square(x)
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

    def log_volume(self, n_experts: int, selection: Selection = ALL) -> float:
        """log |∂(original parameters)/∂(standardised parameters)|, of free parameters alone."""
        return sum(self.log_volumes(n_experts, selection).values())

    def log_volumes(self, n_experts: int, selection: Selection = ALL) -> dict[str, float]:
        """The terms of `log_volume`, one for each block of parameters that is scaled."""
        x_scale = take(np.asarray(self.x_scale), selection.experts)
        gate_scale = take(np.asarray(self.gate_scale), selection.gate)
        y_scale = float(self.y_scale)
        return {
            "gate_slope": float((1 - n_experts) * np.sum(np.log(gate_scale))),
            "slope": float(n_experts * np.sum(np.log(y_scale / x_scale))),
            "intercept": n_experts * float(np.log(y_scale)),
            "variance": 2 * n_experts * float(np.log(y_scale)),
        }


def _moments(values: Array | np.ndarray) -> tuple[Array, Array]:
    """Mean and standard deviation over the first axis; a scale of one for constant values."""
    xp, unit = _namespace(values), _unit(values)
    shift = xp.mean(values / unit, axis=0) * unit
    scale = xp.std(values / unit, axis=0) * unit
    # rounding gives constant values a deviation that is not always zero
    varying = (xp.max(values, axis=0) > xp.min(values, axis=0)) & (scale > 0)
    # not by `jnp.asarray`, which would compile anew for every shape
    return jax.device_put(shift), jax.device_put(xp.where(varying, scale, 1.0))


def _root_mean_square(values: Array | np.ndarray) -> Array:
    """Over the first axis; one for zeros."""
    xp, unit = _namespace(values), _unit(values)
    size = xp.sqrt(xp.mean((values / unit) ** 2, axis=0)) * unit
    return jax.device_put(xp.where(size > 0, size, 1.0))


def _unit(values: Array | np.ndarray) -> Any:
    """A power of two near the largest value, so that squares neither overflow nor underflow."""
    xp = _namespace(values)
    _, exponent = xp.frexp(xp.max(xp.abs(values), axis=0))
    return xp.ldexp(1.0, xp.clip(exponent, -1000, 1000))


def _namespace(values: Array | np.ndarray) -> Any:
    return np if isinstance(values, np.ndarray) else jnp


def _as_known(values: Array | np.ndarray) -> Array | np.ndarray:
    """Known values as NumPy's, since JAX would compile anew for every n; traced ones unchanged."""
    return values if isinstance(values, jax.core.Tracer) else np.asarray(values)
