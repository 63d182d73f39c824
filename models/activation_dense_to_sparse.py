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
(u, v) and (-v, -u) have the same gate, so that with two experts the reference may change.
Rays: (cβ1, cβ0, cτ) for positively homogeneous σ (identity, ReLU); none for sigmoid, tanh, GELU,
SiLU, softplus. Both properties are found numerically, for any σ.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

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
from bayesmoe.core.priors import Prior, sample_experts, sample_gate
from bayesmoe.core.program import observe
from bayesmoe.core.scaling import Scaling

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
        If the activation is unknown, not elementwise, or not finite on [-8, 8].
    """

    name: ClassVar[str] = "activation_dense_to_sparse"
    has_temperature: ClassVar[bool] = True
    slope_per_temperature: ClassVar[bool] = False
    intercept_per_temperature: ClassVar[bool] = True
    linear: ClassVar[bool] = False

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
        values = np.asarray(self.function(jnp.asarray(_GRID)))
        if values.shape != _GRID.shape or not np.all(np.isfinite(values)):
            raise ValueError(
                f"activation {self.activation_name!r} must map an array to finite values of the "
                f"same shape; on [-8, 8] it gave shape {values.shape}"
            )

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

    @functools.cached_property
    def flip(self) -> bool:  # type: ignore[override]
        values = np.asarray(self.function(jnp.asarray(_GRID)))
        pairs = values + values[::-1]
        return bool(np.ptp(pairs) <= 1e-12 * (1 + np.max(np.abs(values)))) and not self.ray

    @functools.cached_property
    def ray(self) -> bool:  # type: ignore[override]
        values = np.asarray(self.function(jnp.asarray(_GRID)))
        halves = np.asarray(self.function(jnp.asarray(_GRID / 2)))
        return bool(np.max(np.abs(values - 2 * halves)) <= 1e-12 * (1 + np.max(np.abs(values))))

    @functools.cached_property
    def spread(self) -> float:  # type: ignore[override]
        nodes, weights = np.polynomial.hermite_e.hermegauss(64)
        values = np.asarray(self.function(jnp.asarray(3.0 * nodes)))
        weights = weights / weights.sum()
        return float(np.sqrt(weights @ (values - weights @ values) ** 2))

    def logits(self, parameters: GateParameters, x: Array) -> Array:
        score = self.function(parameters.slope @ x) + parameters.intercept[:, None]
        return score / parameters.temperature

    def program(
        self, x: Array, y: Array | None, *, n_experts: int, prior: Prior, scaling: Scaling
    ) -> None:
        gate = sample_gate(self, prior, scaling, n_experts, x.shape[1])
        experts = sample_experts(prior, scaling, n_experts, x.shape[1])
        observe(self, MixingMeasure(*gate, *experts), x, y)

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


_GRID = np.linspace(-8.0, 8.0, 129)
