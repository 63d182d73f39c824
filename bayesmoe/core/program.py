"""The sites of which every gate's NumPyro program is made."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpy.typing import ArrayLike

from bayesmoe.core.density import conditional_density
from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import GateParameters, MixingMeasure
from bayesmoe.core.priors import Prior
from bayesmoe.core.scaling import Scaling


@dataclasses.dataclass(frozen=True)
class Sites:
    """The sites of a mixing measure, on the original scale: each method samples its own.

    Attributes
    ----------
    prior
        The prior of standardised parameters.
    scaling
        The standardisation; sites have the affine image of the prior.
    n_experts, n_covariates
        k and d.
    """

    prior: Prior
    scaling: Scaling
    n_experts: int
    n_covariates: int

    def temperature(self) -> Array:
        """Site ``temperature`` ()."""
        return numpyro.sample("temperature", self.prior.temperature)

    def gate(self, temperature: ArrayLike = 1.0) -> GateParameters:
        """Sites ``gate_slope_free`` (k-1, d) and ``gate_intercept_free`` (k-1,).

        With the reference expert they are the deterministic sites ``gate_slope`` (k, d) and
        ``gate_intercept`` (k,), all that a single expert has.
        """
        free, d = self.n_experts - 1, self.n_covariates
        slope, intercept = (
            self._free_gate(temperature) if free else (jnp.zeros((0, d)), jnp.zeros(0))
        )
        return GateParameters(
            numpyro.deterministic("gate_slope", jnp.concatenate([slope, jnp.zeros((1, d))])),
            numpyro.deterministic("gate_intercept", jnp.concatenate([intercept, jnp.zeros(1)])),
            jnp.asarray(temperature),
        )

    def _free_gate(self, temperature: ArrayLike) -> tuple[Array, Array]:
        free, d, prior = self.n_experts - 1, self.n_covariates, self.prior
        slope = numpyro.sample(
            "gate_slope_free",
            _affine(prior.gate_slope, 0.0, 1 / self.scaling.gate_scale, (free, d)),
        )
        scale = temperature if prior.intercept_per_temperature else 1.0
        intercept = numpyro.sample(
            "gate_intercept_free",
            _affine(prior.gate_intercept, -slope @ self.scaling.gate_shift, scale, (free,)),
        )
        return slope, intercept

    def experts(self) -> tuple[Array, Array, Array]:
        """Sites ``slope`` (k, d), ``intercept`` (k,) and ``variance`` (k,)."""
        k, prior, scaling = self.n_experts, self.prior, self.scaling
        slope = numpyro.sample(
            "slope",
            _affine(prior.slope, 0.0, scaling.y_scale / scaling.x_scale, (k, self.n_covariates)),
        )
        centre = scaling.y_shift - slope @ scaling.x_shift
        intercept = numpyro.sample(
            "intercept", _affine(prior.intercept, centre, scaling.y_scale, (k,))
        )
        variance = numpyro.sample(
            "variance", _affine(prior.variance, 0.0, scaling.y_scale**2, (k,))
        )
        return slope, intercept, variance


def observe(gate: Gate, measure: MixingMeasure, x: Array, y: Array | None) -> None:
    """Site ``y`` in plate ``obs``: Y_j ~ g_G(·|x_j), simulated where y is None."""
    with numpyro.plate("obs", x.shape[0]):
        numpyro.sample("y", conditional_density(gate, measure, x), obs=y)


def _affine(base: dist.Distribution, loc: Any, scale: Any, shape: tuple[int, ...]) -> Any:
    """The image of ``base`` under value -> loc + scale * value, all axes of ``shape`` as event."""
    if isinstance(base, dist.ImproperUniform):
        return dist.ImproperUniform(base.support, (), event_shape=shape)
    affine = dist.transforms.AffineTransform(loc, scale, domain=base.support)
    return dist.TransformedDistribution(base.expand(shape), affine).to_event(len(shape))
