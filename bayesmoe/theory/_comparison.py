"""Fitted measures and a truth, made ready for the Voronoi loss, in NumPy."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol

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
    temperature sτ and weights W w_i. The axis of measures is the last one of every array, so that
    sums over atoms, cells and covariates are sums of whole arrays.

    Attributes
    ----------
    slopes, temperatures
        Fitted β1 and τ, shapes ``(k, d, N)`` and ``(N,)``, at a representative like the truth: if t
        is free, the heaviest atom's slope is zero, and if s is free, slopes or temperature are as
        large as the true ones, and the others no larger.
    norms
        ‖Δa‖, |Δb| and |Δν| of every fitted against every true atom, shape ``(3, k, k*, N)``.
    distances
        Squared distances of the experts, shape ``(k, k*, N)``.
    fixed
        The cost of atom i in cell j of m atoms that is the same for all representatives, of expert
        and, if s is fixed, temperature: shape ``(k + 1, k, k*, N)``, m first.
    weights
        Fitted w_i, shape ``(k, N)``.
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
    distances: np.ndarray
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

    def take(self, rows: np.ndarray | slice) -> Comparison:
        """The comparison of the measures at ``rows``."""
        batched = ("slopes", "temperatures", "norms", "distances", "fixed", "weights")
        parts = {name: getattr(self, name)[..., rows] for name in batched}
        return dataclasses.replace(self, **parts)


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
    measures = jax.tree_util.tree_map(_last, measures)
    true = jax.tree_util.tree_map(lambda leaf: np.asarray(leaf)[..., None], truth.measure)
    exponents = order * _exponents(gate, measures.slope.shape[0], free_scale)
    norms = _expert_norms(measures, true)
    fixed = np.stack([_powers(norms, of_size[2:]) for of_size in exponents])
    if not free_scale:
        gap = np.abs(measures.temperature - true.temperature)
        fixed += (gap ** exponents[:, 1, None])[:, None, None]
    weights, true_weights = _weights(truth, measures, true, probability)
    slopes, temperatures = _moved(measures, true, weights, (free_scale, gate.translates))
    return Comparison(
        slopes=slopes,
        temperatures=temperatures,
        norms=norms,
        distances=np.sum(norms**2, axis=0),
        fixed=fixed,
        weights=weights,
        true_slopes=true.gate_slope[..., 0],
        true_temperature=float(true.temperature[0]),
        true_weights=true_weights[:, 0],
        exponents=exponents[:, :2],
        n_counted=n_true if gate.subset_size is None else min(gate.subset_size, n_true),
        penalty=float(np.sum(true_weights) * (1 + _diameter(true))),
        free_scale=free_scale,
        free_shift=gate.translates,
        free_weight=not probability,
    )


def _last(array: np.ndarray) -> np.ndarray:
    """With the first axis moved to the end."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(array), 0, -1))


def _moved(
    measures: MixingMeasure,
    true: MixingMeasure,
    weights: np.ndarray,
    free: tuple[bool, bool],
) -> tuple[np.ndarray, np.ndarray]:
    """Gate slopes and temperatures at a representative near the one looked for, lest digits go.

    ``free`` are s and t. The slope of the heaviest atom is zero, so that t is what it costs.
    """
    slopes, temperatures = np.asarray(measures.gate_slope), np.asarray(measures.temperature)
    if free[1]:
        heaviest = np.argmax(weights, axis=0)[None, None]
        slopes = slopes - np.take_along_axis(slopes, heaviest, axis=0)
    if not free[0]:
        return slopes, temperatures
    # true slopes may all be the same: then they are compared with the true temperature
    far = np.max(np.ptp(true.gate_slope, axis=0)) + true.temperature
    larger = np.maximum(temperatures / true.temperature, np.max(np.abs(slopes), axis=(0, 1)) / far)
    return slopes / larger, temperatures / larger


def _powers(norms: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """The sum of the three norms to their powers, shape ``(k, k*, N)``."""
    parts = zip(norms, exponents, strict=True)
    return sum(norm if exponent == 1 else norm**exponent for norm, exponent in parts)


def _diameter(true: MixingMeasure) -> np.ndarray:
    """max ‖θ*_j - θ*_l‖ over pairs of true atoms."""
    gate_slope = _distances(true.gate_slope, true.gate_slope)
    return np.sqrt(np.max(gate_slope**2 + np.sum(_expert_norms(true, true) ** 2, axis=0)))


def _distances(points: Any, others: Any) -> np.ndarray:
    """Distances of points ``(k, d, N)`` from others: shape ``(k, k*, N)``."""
    return np.linalg.norm(points[:, None] - others, axis=2)


def _expert_norms(measures: MixingMeasure, true: MixingMeasure) -> np.ndarray:
    """‖Δa‖, |Δb| and |Δν| of the atoms of N measures against one's: shape ``(3, k, k*, N)``."""
    slope = _distances(measures.slope, true.slope)
    intercept = np.abs(measures.intercept[:, None] - true.intercept)
    variance = np.abs(measures.variance[:, None] - true.variance)
    return np.stack([slope, intercept, variance])


def _weights(
    truth: Truth, measures: MixingMeasure, true: MixingMeasure, probability: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Fitted weights ``(k, N)`` and true ones ``(k*, 1)``."""
    if probability:
        x = truth.quadrature_x
        fitted = _mean_probabilities(truth.gate, measures.gate, x)
        return fitted, _mean_probabilities(truth.gate, true.gate, x)
    logs = measures.gate_intercept / measures.temperature
    # W is free, and so nothing need overflow
    fitted = np.exp(logs - np.max(logs, axis=0, keepdims=True))
    return fitted, np.exp(true.gate_intercept / true.temperature)


def _mean_probabilities(gate: Gate, parameters: GateParameters, x: Array) -> np.ndarray:
    """E_X[π_i(X)] of N measures, shape ``(k, N)``."""
    size, parts = len(parameters.temperature), []
    for start in range(0, size, _CHUNK):
        index = np.minimum(np.arange(start, start + _CHUNK), size - 1)
        chunk = jax.tree_util.tree_map(lambda leaf, index=index: leaf[..., index], parameters)
        parts.append(np.asarray(_chunk_probabilities(gate, chunk, x)))
    none = np.zeros((len(parameters.intercept), 0))
    return np.concatenate([none, *parts], axis=1)[:, :size]


@functools.partial(jax.jit, static_argnums=0)
def _chunk_probabilities(gate: Gate, parameters: GateParameters, x: Array) -> Array:
    def mean(one: GateParameters) -> Array:
        return jnp.mean(jnp.exp(gate.log_probabilities(one, x.T)), axis=1)

    return jax.vmap(mean, in_axes=-1, out_axes=-1)(parameters)


@functools.lru_cache(maxsize=64)
def _exponents(gate: Gate, n_experts: int, identified: bool) -> np.ndarray:
    """By size of the cell from 0 on, shape ``(k + 1, 5)``."""
    sizes = jnp.arange(n_experts + 1)
    return np.stack(gate.voronoi_exponents(sizes, identified=identified), axis=-1)
