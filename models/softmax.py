r"""Softmax gate.

Density, for x in R^d and k experts:

.. math:: \pi_i(x) = \mathrm{softmax}_i(\beta_{1i}^\top x + \beta_{0i})

Reference: Nguyen, Nguyen & Ho, "Demystifying Softmax Gating Function in Gaussian Mixture of
Experts", NeurIPS 2023 (arXiv 2305.03288).

Sites of the program

===================  ======  ========  ========================
gate_slope_free      (k-1,d) real      ``prior.gate_slope``
gate_intercept_free  (k-1,)  real      ``prior.gate_intercept``
slope                (k, d)  real      ``prior.slope``
intercept            (k,)    real      ``prior.intercept``
variance             (k,)    positive  ``prior.variance``
===================  ======  ========  ========================

Invariances. Gauge: permutation of experts; translation of all (β1_i, β0_i) by one vector, which
the reference expert β1_k = 0, β0_k = 0 pins. Rays: none.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from bayesmoe.core.gate import (
    BlockExponents,
    Gate,
    Rate,
    polynomial_order,
    power_rate,
)
from bayesmoe.core.measure import GateParameters, MixingMeasure
from bayesmoe.core.program import Sites, observe


@dataclasses.dataclass(frozen=True)
class Softmax(Gate):
    """The softmax gate; see the module's docstring."""

    name: ClassVar[str] = "softmax"
    separable: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def logits(self, parameters: GateParameters, x: Array) -> Array:
        return parameters.slope @ x + parameters.intercept[:, None]

    def program(self, x: Array, y: Array | None, sites: Sites) -> None:
        observe(self, MixingMeasure(*sites.gate(), *sites.experts()), x, y)

    def voronoi_exponents(self, cell_size: Array, *, identified: bool) -> BlockExponents:
        order = polynomial_order(cell_size)
        half = jnp.where(order > 1, order / 2, 1.0)
        return BlockExponents(order, jnp.ones_like(order), half, order, half)

    def expected_rate(self, quantity: str, over_specified: bool) -> Rate:
        if over_specified and quantity in ("gate_slope", "intercept"):
            return power_rate(1, 8)
        if over_specified and quantity in ("slope", "variance"):
            return power_rate(1, 4)
        return power_rate(1, 2)
