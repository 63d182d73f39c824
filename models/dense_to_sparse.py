r"""Dense-to-sparse gate: the softmax gate with a temperature.

Density:

.. math:: \pi_i(x) = \mathrm{softmax}_i\bigl((\beta_{1i}^\top x + \beta_{0i}) / \tau\bigr)

Reference: Nguyen, Akbarian & Ho, "Is Temperature Sample Efficient for Softmax Gaussian Mixture of
Experts?", ICML 2024 (arXiv 2401.13875).

Sites of the program

===================  ======  ========  ========================
temperature          ()      positive  ``prior.temperature``
gate_slope_free      (k-1,d) real      ``prior.gate_slope``
gate_intercept_free  (k-1,)  real      ``prior.gate_intercept``
slope                (k, d)  real      ``prior.slope``
intercept            (k,)    real      ``prior.intercept``
variance             (k,)    positive  ``prior.variance``
===================  ======  ========  ========================

Invariances. Gauge: permutation of experts; translation of all (β1_i, β0_i) by one vector.
Ray: (cβ1, cβ0, cτ), c > 0, have the same density, so the data determine β1/τ and β0/τ alone and
the likelihood is exactly constant in τ given them.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from bayesmoe.core.gate import NO_RATE, BlockExponents, Rate
from bayesmoe.core.measure import GateParameters, MixingMeasure
from bayesmoe.core.program import Sites, observe
from bayesmoe.models.softmax import Softmax


@dataclasses.dataclass(frozen=True)
class DenseToSparse(Softmax):
    """The dense-to-sparse gate; see the module's docstring."""

    name: ClassVar[str] = "dense_to_sparse"
    has_temperature: ClassVar[bool] = True
    slope_per_temperature: ClassVar[bool] = True
    intercept_per_temperature: ClassVar[bool] = True

    @property
    def ray(self) -> bool:
        return True

    def logits(self, parameters: GateParameters, x: Array) -> Array:
        return super().logits(parameters, x) / parameters.temperature

    def program(self, x: Array, y: Array | None, sites: Sites) -> None:
        gate = sites.gate(sites.temperature())
        observe(self, MixingMeasure(*gate, *sites.experts()), x, y)

    def voronoi_exponents(self, cell_size: Array, *, identified: bool) -> BlockExponents:
        if identified:  # off the ray the gate is a softmax gate
            return super().voronoi_exponents(cell_size, identified=True)
        one = jnp.ones(jnp.shape(cell_size))  # D_{1,r} with r = 1
        return BlockExponents(one, one, one, one, one)

    def expected_rate(self, quantity: str, over_specified: bool) -> Rate:
        if quantity in ("loss", "gate_slope", "temperature"):
            return NO_RATE
        return super().expected_rate(quantity, over_specified)
