"""Fitted measures and a truth, made ready for the Voronoi loss, in NumPy."""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import GateParameters, MixingMeasure

_CHUNK = 64  # measures a compiled call takes: one compilation serves every number of draws


class Truth(Protocol):
    """What an estimate is judged against; a scenario is one."""

    @property
    def gate(self) -> Gate:
        """The true gate."""
        ...

    @property
    def measure(self) -> MixingMeasure:
        """The true mixing measure G*, a single one."""
        ...

    @property
    def quadrature_x(self) -> Array:
        """Equally weighted points of the law of X, shape ``(m, d)``."""
        ...


@dataclasses.dataclass(frozen=True)
class Comparison:
    """N measures of k atoms each against one truth of k* atoms.

    A representative of a measure is given by s > 0, t in R^d and W > 0: gate slopes sβ1_i + t,
    temperature sτ and weights W w_i.

    Attributes
    ----------
    slopes, temperatures
        Fitted β1 and τ, shapes ``(N, k, d)`` and ``(N,)``; if s is free, moved along the ray to the
        true temperature.
    norms
        ‖Δa‖, |Δb| and |Δν| of every fitted against every true atom, shape ``(N, k, k*, 3)``.
    fixed
        The cost of atom i in cell j of m atoms that is the same for all representatives, of expert
        and, if s is fixed, temperature: shape ``(N, k, k*, k + 1)``, m last.
    weights
        Fitted w_i, shape ``(N, k)``.
    true_slopes, true_temperature, true_weights
        Shapes ``(k*, d)``, ``()`` and ``(k*,)``.
    exponents
        Of gate slope and temperature, by size of the cell: shape ``(k + 1, 2)``.
    n_counted
        How many cells enter the loss, the costliest ones: k* unless the gate is top-K.
    penalty
        What an empty cell costs.
    free_scale, free_shift, free_weight
        Whether s, t and W may be chosen; otherwise they are 1, 0 and 1.
    """

    slopes: np.ndarray
    temperatures: np.ndarray
    norms: np.ndarray
    fixed: np.ndarray
    weights: np.ndarray
    true_slopes: np.ndarray
    true_temperature: float
    true_weights: np.ndarray
    exponents: np.ndarray
    n_counted: int
    penalty: float
    free_scale: bool
    free_shift: bool
    free_weight: bool

    @property
    def n_true(self) -> int:
        """k*."""
        return len(self.true_weights)

    @property
    def distances(self) -> np.ndarray:
        """Squared distances of the experts, shape ``(N, k, k*)``."""
        return np.sum(self.norms**2, axis=-1)

    def take(self, rows: np.ndarray) -> Comparison:
        """The comparison of the measures at ``rows``."""
        batched = ("slopes", "temperatures", "norms", "fixed", "weights")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in batched})


def compare(
    measures: MixingMeasure,
    truth: Truth,
    *,
    identified: bool,
    probability: bool,
    order: float = 1.0,
) -> Comparison:
    """Measures of batch shape ``(N,)``, in NumPy, against the truth.

    ``identified`` frees s, if the gate has a ray; ``probability`` asks for the weights E_X[π_i(X)]
    in place of exp(β0_i/τ). All exponents are multiplied by ``order``.
    """
    gate, n_true, free_scale = truth.gate, truth.measure.n_experts, identified and truth.gate.ray
    true = jax.tree_util.tree_map(lambda leaf: np.asarray(leaf)[None], truth.measure)
    exponents = order * _exponents(gate, measures.n_experts, free_scale)
    norms = _expert_norms(measures, true)
    fixed = np.sum(norms[:, :, :, None] ** exponents[:, 2:], axis=-1)
    # along a ray it is the slope at the true temperature that counts
    ratio = true.temperature / measures.temperature if free_scale else np.ones(len(norms))
    if not free_scale:
        gap = np.abs(measures.temperature - true.temperature)
        fixed = fixed + (gap[:, None] ** exponents[:, 1])[:, None, None]
    weights, true_weights = _weights(truth, measures, true, probability)
    return Comparison(
        slopes=np.asarray(measures.gate_slope) * ratio[:, None, None],
        temperatures=np.asarray(measures.temperature) * ratio,
        norms=norms,
        fixed=fixed,
        weights=weights,
        true_slopes=true.gate_slope[0],
        true_temperature=float(true.temperature[0]),
        true_weights=true_weights[0],
        exponents=exponents[:, :2],
        n_counted=n_true if gate.subset_size is None else min(gate.subset_size, n_true),
        penalty=float(np.sum(true_weights) * (1 + _diameter(true))),
        free_scale=free_scale,
        free_shift=gate.linear,
        free_weight=not probability,
    )


def _diameter(true: MixingMeasure) -> np.ndarray:
    """max ‖θ*_j - θ*_l‖ over pairs of true atoms."""
    gate_slope = np.linalg.norm(true.gate_slope[:, :, None] - true.gate_slope[:, None], axis=-1)
    return np.sqrt(np.max(gate_slope**2 + np.sum(_expert_norms(true, true) ** 2, axis=-1)))


def _expert_norms(measures: MixingMeasure, true: MixingMeasure) -> np.ndarray:
    """‖Δa‖, |Δb| and |Δν| of the atoms of N measures against one's: shape ``(N, k, k*, 3)``."""
    slope = np.linalg.norm(measures.slope[:, :, None] - true.slope[:, None], axis=-1)
    intercept = np.abs(measures.intercept[:, :, None] - true.intercept[:, None])
    variance = np.abs(measures.variance[:, :, None] - true.variance[:, None])
    return np.stack([slope, intercept, variance], axis=-1)


def _weights(
    truth: Truth, measures: MixingMeasure, true: MixingMeasure, probability: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Fitted weights ``(N, k)`` and true ones ``(1, k*)``."""
    if probability:
        x = truth.quadrature_x
        fitted = _mean_probabilities(truth.gate, measures.gate, x)
        return fitted, _mean_probabilities(truth.gate, true.gate, x)
    logs = measures.gate_intercept / measures.temperature[:, None]
    # W is free, and so nothing need overflow
    fitted = np.exp(logs - np.max(logs, axis=1, keepdims=True))
    return fitted, np.exp(true.gate_intercept / true.temperature[:, None])


def _mean_probabilities(gate: Gate, parameters: GateParameters, x: Array) -> np.ndarray:
    """E_X[π_i(X)] of N measures, shape ``(N, k)``."""
    size, parts = len(parameters.temperature), []
    for start in range(0, size, _CHUNK):
        index = np.minimum(np.arange(start, start + _CHUNK), size - 1)
        chunk = jax.tree_util.tree_map(lambda leaf, index=index: leaf[index], parameters)
        parts.append(np.asarray(_chunk_probabilities(gate, chunk, x)))
    return np.concatenate([np.zeros((0, parameters.intercept.shape[1])), *parts])[:size]


@functools.partial(jax.jit, static_argnums=0)
def _chunk_probabilities(gate: Gate, parameters: GateParameters, x: Array) -> Array:
    def mean(one: GateParameters) -> Array:
        return jnp.mean(jnp.exp(gate.log_probabilities(one, x.T)), axis=1)

    return jax.vmap(mean)(parameters)


@functools.lru_cache(maxsize=64)
def _exponents(gate: Gate, n_experts: int, identified: bool) -> np.ndarray:
    """By size of the cell from 0 on, shape ``(k + 1, 5)``."""
    sizes = jnp.arange(n_experts + 1)
    return np.stack(gate.voronoi_exponents(sizes, identified=identified), axis=-1)
