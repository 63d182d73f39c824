r"""Activation dense-to-sparse gate: an activation of the linear score, then a temperature.

Density:

.. math:: \pi_i(x) = \mathrm{softmax}_i\bigl((\sigma(\beta_{1i}^\top x) + \beta_{0i}) / \tau\bigr)

The reference expert has logit σ(0)/τ.

Reference: Nguyen, Akbarian & Ho, "Is Temperature Sample Efficient for Softmax Gaussian Mixture of
Experts?", ICML 2024 (arXiv 2401.13875).

Sites of the program

===================  ======  ========  ===============================================
temperature          ()      positive  ``prior.temperature``
gate_slope_free      (k-1,d) real      ``prior.gate_slope``
gate_intercept_free  (k-1,)  real      ``prior.gate_intercept``, of β0/τ by default
slope                (k, d)  real      ``prior.slope``
intercept            (k,)    real      ``prior.intercept``
variance             (k,)    positive  ``prior.variance``
===================  ======  ========  ===============================================

Invariances. Gauge: permutation of the experts that keeps the reference; translation of all β0_i by
one number; and for σ with σ(u) + σ(-u) constant (sigmoid, tanh) a flip: two distinct slopes
(u, v) and (-v, -u) have the same gate, so that with two experts the reference may change;
and for even σ (cos, the absolute value) the sign of each slope.
If σ is a line (identity) its gate is linear in x: one vector may be added to all β1_i, too.
Rays: (cβ1, cβ0, cτ) for positively homogeneous σ (identity, ReLU); none for sigmoid, tanh, GELU,
SiLU, softplus. All these properties are found numerically, for any σ.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.gate import (
    NO_RATE,
    BlockExponents,
    Gate,
    Rate,
    polynomial_order,
    power_rate,
)
from bayesmoe.core.measure import GateParameters, MixingMeasure
from bayesmoe.core.program import Sites, observe

Activation = Callable[[Array], Array]


def _identity(u: Array) -> Array:
    return u


def _gelu(u: Array) -> Array:
    return jax.nn.gelu(u, approximate=False)


ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "gelu": _gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "relu": jax.nn.relu,
    "identity": _identity,
}


@dataclasses.dataclass(frozen=True)
class ActivationDenseToSparse(Gate):
    """The activation dense-to-sparse gate; see the module's docstring.

    Parameters
    ----------
    activation
        A name out of `ACTIVATIONS`, or an elementwise JAX function.

    Raises
    ------
    ValueError
        If the activation is unknown, cannot be traced by JAX, is not elementwise, is constant, or
        is not finite on [-8, 8].
    """

    name: ClassVar[str] = "activation_dense_to_sparse"
    separable: ClassVar[bool] = True
    has_temperature: ClassVar[bool] = True
    intercept_per_temperature: ClassVar[bool] = True

    activation: str | Activation = "sigmoid"

    def __post_init__(self) -> None:
        if isinstance(self.activation, str) and self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(
                f"unknown activation {self.activation!r}; choose one of {known}, "
                "or pass a JAX function"
            )
        if not callable(self.function):
            raise ValueError(
                f"activation must be a name or a JAX function, got {self.activation!r}"
            )
        _check_elementwise(self.activation_name, self.function)

    @property
    def function(self) -> Activation:
        """σ as a function."""
        return ACTIVATIONS[self.activation] if isinstance(self.activation, str) else self.activation

    @property
    def activation_name(self) -> str:
        """σ's name."""
        if isinstance(self.activation, str):
            return self.activation
        return getattr(self.activation, "__name__", repr(self.activation))

    @property
    def label(self) -> str:
        return f"activation ({self.activation_name})"

    @property
    def translates(self) -> bool:
        return _profile(self.function).affine

    @property
    def flip(self) -> bool:
        return _profile(self.function).odd and not self.ray

    @property
    def even(self) -> bool:
        return _profile(self.function).even

    @property
    def ray(self) -> bool:
        return _profile(self.function).homogeneous

    @property
    def spread(self) -> float:
        return _profile(self.function).spread

    def logits(self, parameters: GateParameters, x: Array) -> Array:
        score = self.function(parameters.slope @ x) + parameters.intercept[:, None]
        return score * (1.0 / parameters.temperature)  # one division, not one for each logit

    def program(self, x: Array, y: Array | None, sites: Sites) -> None:
        gate = sites.gate(sites.temperature())
        observe(self, MixingMeasure(*gate, *sites.experts()), x, y)

    def voronoi_exponents(self, cell_size: Array, *, identified: bool) -> BlockExponents:
        order = polynomial_order(cell_size)
        single = order == 1
        two, half = jnp.where(single, 1.0, 2.0), jnp.where(single, 1.0, order / 2)
        return BlockExponents(two, two, two, order, half)

    def expected_rate(self, quantity: str, over_specified: bool) -> Rate:
        if self.ray and quantity in ("loss", "gate_slope", "temperature"):
            return NO_RATE
        if over_specified and quantity == "intercept":
            return power_rate(1, 8)
        if over_specified and quantity in ("gate_slope", "temperature", "slope", "variance"):
            return power_rate(1, 4)
        return power_rate(1, 2)


class _Profile(NamedTuple):
    """What an activation is: up to a constant, which cancels in the gate."""

    odd: bool
    even: bool
    homogeneous: bool
    affine: bool
    spread: float


@functools.lru_cache(maxsize=256)
def _profile(function: Activation) -> _Profile:
    """Found numerically on `_GRID`; the spread is the deviation of σ(3Z), Z standard normal."""
    # the trapezoidal rule: exact to rounding here, where poles of σ near the axis slow Gauss's
    nodes = np.linspace(-9.0, 9.0, 2001)
    weights = np.exp(-0.5 * nodes**2)
    values, halves = _evaluate(function, _GRID), _evaluate(function, _GRID / 2)
    tolerance = 1e-12 * (1 + np.max(np.abs(values)))
    line = _GRID * (values[-1] - values[0]) / np.ptp(_GRID)
    origin, scores = values[_GRID == 0], _evaluate(function, 3.0 * nodes)
    weights = weights / weights.sum()
    return _Profile(
        odd=bool(np.ptp(values + values[::-1]) <= tolerance),
        even=bool(np.max(np.abs(values - values[::-1])) <= tolerance),
        homogeneous=bool(np.max(np.abs(values + origin - 2 * halves)) <= tolerance),
        affine=bool(np.max(np.abs(values - origin - line)) <= tolerance),
        spread=float(np.sqrt(weights @ (scores - weights @ scores) ** 2)),
    )


def _check_elementwise(name: str, function: Activation) -> None:
    """Raise ValueError unless σ maps arrays entry by entry, to finite values."""
    rule = f"activation {name!r} must be a JAX function that maps arrays entry by entry"
    try:
        values, regrouped = _evaluate(function, _GRID), _evaluate(function, _REGROUPED)
    except Exception as error:  # a user's function may raise anything
        raise ValueError(f"{rule}; on an array of floats it raised {error!r}") from error
    if values.shape != _GRID.shape or regrouped.shape != _REGROUPED.shape:
        raise ValueError(
            f"{rule}, to the same shape; of {_GRID.shape} it made {values.shape}, "
            f"of {_REGROUPED.shape} {regrouped.shape}"
        )
    if not np.all(np.isfinite(values)):
        where = _GRID[np.argmin(np.isfinite(values))]
        raise ValueError(f"{rule}, to finite values; at {where:g} it is not finite")
    if np.ptp(values) == 0:
        raise ValueError(f"{rule}, and is not constant; the gate would not depend on x")
    expected = values[::-1][: regrouped.size].reshape(regrouped.shape)
    if np.max(np.abs(regrouped - expected)) > 1e-9 * (1 + np.max(np.abs(values))):
        raise ValueError(f"{rule}; its value at an entry changes with the other entries")


def _evaluate(function: Activation, points: np.ndarray) -> np.ndarray:
    # at once, even if the gate is made while something is traced; compiled, as it will be used
    with jax.ensure_compile_time_eval():
        return np.asarray(jax.jit(function)(jnp.asarray(points)), dtype=float)


_GRID = np.linspace(-8.0, 8.0, 129)
# the same points in other company: three fewer, backwards, in two axes
_REGROUPED = _GRID[::-1][:126].reshape(6, 21)
