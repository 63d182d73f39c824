"""The observed site that every gate's NumPyro program ends with."""

from __future__ import annotations

import numpyro
from jax import Array

from bayesmoe.core.density import conditional_density
from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure


def observe(gate: Gate, measure: MixingMeasure, x: Array, y: Array | None) -> None:
    """Site ``y`` in plate ``obs``: Y_j ~ g_G(·|x_j), simulated where y is None."""
    with numpyro.plate("obs", x.shape[0]):
        numpyro.sample("y", conditional_density(gate, measure, x), obs=y)
