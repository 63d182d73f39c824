"""The mixing measure: the parameters of a Gaussian mixture of experts."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike


class GateParameters(NamedTuple):
    """The paper's parameters of a gate, reference expert included.

    Attributes
    ----------
    slope
        β1, shape ``(k, d)``; the last row is the reference, zero.
    intercept
        β0, shape ``(k,)``; the last entry is the reference, zero.
    temperature
        τ, shape ``()``; one for gates without a temperature.
    """

    slope: Array
    intercept: Array
    temperature: Array


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, init=False, eq=False)
class MixingMeasure:
    """G = Σ_i exp(β0_i/τ) δ_(β1_i, τ, a_i, b_i, ν_i), with optional leading batch axes.

    An immutable pytree of six float64 arrays; ``k`` experts, ``d`` covariates, ``...`` for
    the batch axes, which all six must share.

    Parameters
    ----------
    gate_slope
        β1, shape ``(..., k, d)``.
    gate_intercept
        β0, shape ``(..., k)``.
    temperature
        τ > 0, shape ``(...)``; one for gates without a temperature.
    slope
        a, the experts' slopes, shape ``(..., k, d)``.
    intercept
        b, the experts' intercepts, shape ``(..., k)``.
    variance
        ν > 0, the experts' variances, shape ``(..., k)``.

    Raises
    ------
    ValueError
        If the shapes do not fit together.
    """

    gate_slope: Array
    gate_intercept: Array
    temperature: Array
    slope: Array
    intercept: Array
    variance: Array

    def __init__(
        self,
        gate_slope: ArrayLike,
        gate_intercept: ArrayLike,
        temperature: ArrayLike,
        slope: ArrayLike,
        intercept: ArrayLike,
        variance: ArrayLike,
    ) -> None:
        values = (gate_slope, gate_intercept, temperature, slope, intercept, variance)
        arrays = [jnp.asarray(value, dtype=jnp.float64) for value in values]
        _check_shapes(arrays)
        self._set(arrays)

    def _set(self, values: Any) -> None:
        for field, value in zip(FIELDS, values, strict=True):
            object.__setattr__(self, field, value)

    @property
    def n_experts(self) -> int:
        """k, the number of experts."""
        return int(self.slope.shape[-2])

    @property
    def n_covariates(self) -> int:
        """d, the number of covariates."""
        return int(self.slope.shape[-1])

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes: ``()`` for one measure."""
        return tuple(self.intercept.shape[:-1])

    @property
    def gate(self) -> GateParameters:
        """The three gate parameters."""
        return GateParameters(self.gate_slope, self.gate_intercept, self.temperature)

    def replace(self, **changes: ArrayLike) -> MixingMeasure:
        """A copy with the named fields changed."""
        fields: dict[str, Any] = {field: getattr(self, field) for field in FIELDS}
        return MixingMeasure(**{**fields, **changes})

    # a single measure would pass for an empty batch
    __iter__ = None

    def __getitem__(self, index: Any) -> MixingMeasure:
        """Index the batch axes."""
        if not self.batch_shape:
            raise IndexError("a single mixing measure has no batch axes to index")
        entries = index if isinstance(index, tuple) else (index,)
        if not any(isinstance(entry, jax.core.Tracer) for entry in entries):
            np.broadcast_to(0, self.batch_shape)[index]  # raises IndexError where JAX would clamp
        return jax.tree_util.tree_map(lambda leaf: leaf[index], self)

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], None]:
        keys = (jax.tree_util.GetAttrKey(field) for field in FIELDS)
        return [(key, getattr(self, key.name)) for key in keys], None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> MixingMeasure:
        measure = object.__new__(cls)
        measure._set(children)
        return measure


FIELDS = tuple(field.name for field in dataclasses.fields(MixingMeasure))


def check_positive(name: str, measure: MixingMeasure) -> None:
    """Raise ValueError unless all variances and temperatures are positive."""
    for field in ("variance", "temperature"):
        least = float(np.min(getattr(measure, field), initial=np.inf))
        if not least > 0:
            raise ValueError(f"{name} must have a positive {field}, got {least:g}")


def _check_shapes(arrays: list[Array]) -> None:
    slope = arrays[3]
    if slope.ndim < 2:
        raise ValueError(f"slope must have shape (..., k, d), got {slope.shape}")
    batch, k, d = slope.shape[:-2], slope.shape[-2], slope.shape[-1]
    tails = ((k, d), (k,), (), (k, d), (k,), (k,))
    for field, array, tail in zip(FIELDS, arrays, tails, strict=True):
        if array.shape != batch + tail:
            raise ValueError(
                f"{field} has shape {array.shape}, but with slope of shape {slope.shape} "
                f"it must be {batch + tail}"
            )
