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
from bayesmoe.core.selection import ALL, Columns, Selection, spread, take


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
    selection
        The covariates that gate and experts depend on; slopes of others are zeros, not sampled.
    """

    prior: Prior
    scaling: Scaling
    n_experts: int
    n_covariates: int
    selection: Selection = ALL

    def temperature(self) -> Array:
        """Site ``temperature`` ()."""
        return numpyro.sample("temperature", self.prior.temperature)

    def gate(self, temperature: ArrayLike = 1.0) -> GateParameters:
        """Sites ``gate_slope_free`` (k-1, d) and ``gate_intercept_free`` (k-1,).

        With the reference expert they are the deterministic sites ``gate_slope`` (k, d) and
        ``gate_intercept`` (k,), all that a single expert has. ``gate_slope_free`` has the selected
        covariates alone; if there are none, there is no such site.
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
        free, prior = self.n_experts - 1, self.prior
        scale = 1 / take(self.scaling.gate_scale, self.selection.gate)
        slope = self._slopes("gate_slope_free", prior.gate_slope, scale, free, self.selection.gate)
        scale = temperature if prior.intercept_per_temperature else 1.0
        intercept = numpyro.sample(
            "gate_intercept_free",
            _affine(prior.gate_intercept, -slope @ self.scaling.gate_shift, scale, (free,)),
        )
        return slope, intercept

    def experts(self) -> tuple[Array, Array, Array]:
        """Sites ``slope`` (k, d), ``intercept`` (k,) and ``variance`` (k,).

        Where covariates are left out, ``slope`` is deterministic, and ``slope_free`` has the
        others' slopes; if there are none, there is no such site.
        """
        k, prior, scaling = self.n_experts, self.prior, self.scaling
        columns = self.selection.experts
        name = "slope" if columns is None else "slope_free"
        scale = scaling.y_scale / take(scaling.x_scale, columns)
        slope = self._slopes(name, prior.slope, scale, k, columns)
        if columns is not None:
            slope = numpyro.deterministic("slope", slope)
        centre = scaling.y_shift - slope @ scaling.x_shift
        intercept = numpyro.sample(
            "intercept", _affine(prior.intercept, centre, scaling.y_scale, (k,))
        )
        variance = numpyro.sample(
            "variance", _affine(prior.variance, 0.0, scaling.y_scale**2, (k,))
        )
        return slope, intercept, variance

    def _slopes(
        self, site: str, base: dist.Distribution, scale: Array, rows: int, columns: Columns
    ) -> Array:
        """Slopes ``(rows, d)``, sampled in the columns given."""
        if not scale.size:
            return jnp.zeros((rows, self.n_covariates))
        free = numpyro.sample(site, _affine(base, 0.0, scale, (rows, scale.size)))
        return spread(free, columns, self.n_covariates)


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
