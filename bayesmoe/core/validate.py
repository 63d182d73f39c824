"""Checks of user input: each error names the value, the rule and the mend."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# variances are squares and slopes ratios of data, and both must be far from under- and overflow
_LARGEST, _FINEST = 1e100, 1e-100
_KEY_RULE = "key must be a JAX key or a non-negative int below 2**63"
# least spread in steps of float64: intercepts, given at the origin, lose so much of their precision
_STEPS = 1e7


def check_whole(name: str, value: Any, *, least: int) -> int:
    """A whole number of at least ``least``; ValueError otherwise."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return number


def check_covariates(x: Any) -> Array:
    """Covariates as a float64 array ``(n, d)``; ``(n,)`` becomes ``(n, 1)``.

    Traced values pass unchecked but for their shape, so that programs can be compiled.
    """
    covariates = _numeric("x", x)
    if covariates.ndim == 1:
        covariates = covariates[:, None]
    if covariates.ndim != 2 or covariates.shape[1] < 1:
        raise ValueError(f"x must have shape (n, d) with d >= 1, or (n,); got {covariates.shape}")
    return covariates


def check_points(x: Any) -> Array:
    """`check_covariates` of one row at least."""
    covariates = check_covariates(x)
    if covariates.shape[0] == 0:
        raise ValueError("x is empty; at least one row is needed")
    return covariates


def check_observations(x: Any, y: Any) -> tuple[Array, Array]:
    """Finite covariates ``(n, d)`` and response ``(n,)`` of the same length n >= 1."""
    covariates, response = check_covariates(x), _numeric("y", y)
    if response.ndim == 2 and response.shape[1] == 1:
        response = response[:, 0]
    if response.ndim != 1:
        raise ValueError(f"y must have shape (n,), got {response.shape}")
    if covariates.shape[0] != response.shape[0]:
        raise ValueError(
            f"x has {covariates.shape[0]} rows but y has {response.shape[0]}; they must agree"
        )
    if response.shape[0] == 0:
        raise ValueError("x and y are empty; at least one row is needed")
    return covariates, response


def check_estimable(covariates: Array, response: Array, n_parameters: int) -> None:
    """What estimation needs beyond `check_observations`: enough rows, and variation."""
    n, x = response.shape[0], np.asarray(covariates)
    if n < n_parameters:
        raise ValueError(
            f"{n} rows cannot determine {n_parameters} parameters; use fewer experts or more rows"
        )
    for column in range(x.shape[1]):
        if np.ptp(x[:, column]) == 0:
            raise ValueError(
                f"covariate {column} has the one distinct value {x[0, column]:g}; "
                "drop it, since every expert already has an intercept"
            )
    _check_units(x, np.asarray(response))


def check_estimable_with_prior(covariates: Array, response: Array, n_experts: int) -> None:
    """What a proper prior leaves of `check_estimable`: it settles what data do not determine."""
    n, least = response.shape[0], max(2, n_experts)
    if n < least:
        raise ValueError(
            f"too few rows, {n}, for n_experts = {n_experts}: at least {least} are needed; "
            "use fewer experts or more rows"
        )
    _check_units(np.asarray(covariates), np.asarray(response))


def _check_units(x: np.ndarray, y: np.ndarray) -> None:
    """A response that varies, and values whose squares and ratios are float64 numbers."""
    columns = {f"covariate {i}": x[:, i] for i in range(x.shape[1])}
    for name, values in (columns | {"y": y}).items():
        largest, half_range = np.max(np.abs(values)), np.ptp(values / 2)
        if largest > _LARGEST:
            raise ValueError(
                f"{name} reaches {largest:g}, and must stay below {_LARGEST:g}; use other units"
            )
        if 0 < half_range < _FINEST:
            raise ValueError(
                f"{name} varies by {2 * half_range:g}, and must vary by more than {_FINEST:g}; "
                "use other units"
            )
        check_spread(name, values)
    if np.ptp(y) == 0:
        raise ValueError(f"y is constant at {y[0]:g}; there is nothing to model")


def check_spread(name: str, values: np.ndarray) -> None:
    """Raise ValueError if values vary, but too little for their size; there is one at least."""
    largest, half_range = np.max(np.abs(values)), np.ptp(values / 2)
    least = _STEPS * np.spacing(largest)
    if 0 < 2 * half_range < least:
        raise ValueError(
            f"{name} varies by {2 * half_range:g} at values of {largest:g}, and must vary there by "
            f"{least:.2g}, {_STEPS:g} times the resolution of float64; subtract a constant from it"
        )


def as_key(key: Any) -> Array:
    """A JAX key from a JAX key (new or old style) or a non-negative int."""
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if not 0 <= key < 2**63:
            raise ValueError(f"{_KEY_RULE}, got {key}")
        return jax.random.key(int(key))
    if isinstance(key, jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0:
            return key
        if key.dtype == jnp.uint32 and key.shape == (2,):
            return jax.random.wrap_key_data(key)
    raise ValueError(f"{_KEY_RULE}, got {key!r}")


def _other_rows(bad: np.ndarray) -> str:
    """The rows in which there are values at ``bad`` beside the first, in words."""
    rows = np.unique(bad[:, :1])[1:].tolist()
    shown = ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
    return f", others in rows {shown}" if rows else ""


def _numeric(name: str, value: Any) -> Array:
    if isinstance(value, jax.core.Tracer):
        return jnp.asarray(value, dtype=jnp.float64)
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            array = np.asarray(value, dtype=object).astype(float)
        array = array.astype(float)
        if isinstance(value, np.ma.MaskedArray):
            array = np.where(value.mask, np.nan, array)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be numeric: {error}") from None
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        kinds = "NaN, infinite or masked" if np.ma.isMaskedArray(value) else "NaN or infinite"
        where = tuple(int(i) for i in bad[0])
        raise ValueError(
            f"{name} has {len(bad)} values that are {kinds}, the first at {where}"
            f"{_other_rows(bad)}; remove or impute them first"
        )
    return jax.device_put(array)  # jnp.asarray would compile anew for every shape


def check_fraction(name: str, value: Any) -> float:
    """A number between 0 and 1, ends excluded; ValueError otherwise."""
    if not isinstance(value, int | float | np.floating) or not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1; got {value!r}")
    return float(value)
