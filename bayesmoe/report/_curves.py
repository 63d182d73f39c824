"""What a fitted model says along one covariate: means, predictive intervals, gate probabilities."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.compilation import jit_unoptimised
from bayesmoe.core.density import conditional_density, predictive_density
from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure

#: content of all bands
LEVEL = 0.9
#: draws used: more change no band visibly
MAX_DRAWS = 400

_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


class Band(NamedTuple):
    """A centre and the interval around it, of one shape."""

    centre: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Curves(NamedTuple):
    """Curves over m points, k experts.

    Attributes
    ----------
    mean
        Posterior mean and credible band of E[Y|x], shape ``(m,)``.
    predictive_low, predictive_high
        Equal-tailed predictive interval of Y at x, shape ``(m,)``.
    probability
        Posterior mean and credible band of each gate probability, shape ``(k, m)``.
    expert
        Posterior mean and credible band of each expert's mean a_iᵀx + b_i, shape ``(k, m)``.
    """

    mean: Band
    predictive_low: np.ndarray
    predictive_high: np.ndarray
    probability: Band
    expert: Band


def thinned(draws: MixingMeasure, most: int = MAX_DRAWS) -> MixingMeasure:
    """Up to ``most`` draws, evenly chosen, batch ``(S,)``, from draws with any batch axes."""
    n_axes = len(draws.batch_shape)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[n_axes:]), draws)
    total = flat.batch_shape[0]
    return flat[np.linspace(0, total - 1, min(total, most)).round().astype(int)]


def posterior_curves(gate: Gate, draws: MixingMeasure, x: Array) -> Curves:
    """Curves at the points x, shape ``(m, d)``, from draws with any batch axes."""
    found = _posterior_curves(gate, thinned(draws), x, np.array(_TAILS))
    mean, (low, high), probability, expert = jax.device_get(found)
    return Curves(band(mean), low, high, band(probability), band(expert))


def band(values: np.ndarray) -> Band:
    """Mean and quantiles over the draws, the first axis; by NumPy, since JAX compiles a sort."""
    return Band(np.mean(values, axis=0), *np.quantile(values, _TAILS, axis=0))


@jit_unoptimised(static_argnums=0)
def _posterior_curves(
    gate: Gate, draws: MixingMeasure, x: Array, tails: Array
) -> tuple[Array, Array, Array, Array]:
    """Means ``(S, m)``, quantiles of all draws ``(2, m)``, weights and lines ``(S, k, m)``."""
    mixture = jax.vmap(lambda draw: conditional_density(gate, draw, x))(draws)
    quantiles = jax.vmap(predictive_density(gate, draws, x).icdf)(tails)
    probability = jnp.moveaxis(jnp.exp(mixture.log_weights), -1, 1)
    return mixture.mean, quantiles, probability, jnp.moveaxis(mixture.locs, -1, 1)


@jit_unoptimised(static_argnums=0)
def expert_lines(gate: Gate, measure: MixingMeasure, x: Array) -> tuple[Array, Array]:
    """Each expert's mean and gate probability at x ``(m, d)``, both of shape ``(k, m)``."""
    mixture = conditional_density(gate, measure, x)
    return mixture.locs.T, jnp.exp(mixture.log_weights).T


@jit_unoptimised(static_argnums=0)
def responsibilities(gate: Gate, measure: MixingMeasure, x: Array, y: Array) -> Array:
    """The probability that each expert made each observation, shape ``(n, k)``."""
    joint = conditional_density(gate, measure, x).component_log_prob(y)
    return jax.nn.softmax(joint, axis=-1)
