"""How a start ended, and by what evidence: common to all point estimators."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.compilation import jit_quickly, jit_unoptimised
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.observations import Data, sum_over_chunks
from bayesmoe.core.priors import Prior
from bayesmoe.core.scaling import Scaling
from bayesmoe.inference import newton

_EMPTY = 1e-2  # observations held by an expert that has lost its weight
_SHARED = 1e-6  # the gate probability from which on an expert has a part in an observation


class Status(enum.Enum):
    """How a fit ended; the values are readable sentences."""

    CONVERGED = "a maximum: zero gradient and no negative curvature"
    AT_VARIANCE_FLOOR = "a maximum over the variances allowed: one rests on its floor"
    AT_PRIOR_BOUND = "a maximum over the prior's support: a parameter rests on its edge"
    SEPARATED = "a gate parameter runs away: the likelihood has no maximum there, it only flattens"
    TEMPERATURE_TO_ZERO = (
        "the temperature runs to zero: the likelihood has no maximum there, it rises to a limit"
    )
    EMPTY_EXPERT = "an expert lost all its weight: fewer experts have the same likelihood"
    NEGATIVE_CURVATURE = "stopped at a saddle point"
    STALLED = "no step improves, yet the gradient is not zero: a jump, or the limit of precision"
    STOPPED_EARLY = "the stopping rule was met, yet the gradient is not zero"
    MAX_ITERATIONS = "iterations exhausted"
    NON_FINITE = "the objective is not finite at the start"

    @property
    def converged(self) -> bool:
        """Whether the estimate is a maximum over Θ."""
        return self in (Status.CONVERGED, Status.AT_VARIANCE_FLOOR, Status.AT_PRIOR_BOUND)


@dataclasses.dataclass(frozen=True, eq=False)
class Starts:
    """What became of every start; S of them, in the order tried.

    Attributes
    ----------
    objective
        Log-likelihood (MLE) or log posterior density (MAP) reached, shape ``(S,)``.
    status
        S statuses.
    gradient_norm, least_curvature, n_iterations
        Shape ``(S,)``; iterations on a sample of the observations are counted.
    measures
        The measures reached, a batch of S.
    """

    objective: np.ndarray
    status: tuple[Status, ...]
    gradient_norm: np.ndarray
    least_curvature: np.ndarray
    n_iterations: np.ndarray
    measures: MixingMeasure

    def __getitem__(self, chosen: slice) -> Starts:
        return self._map(lambda leaf: np.asarray(leaf)[chosen], self.status[chosen])

    def joined(self, *others: Starts) -> Starts:
        """These starts, then all others."""

        def join(*parts: Any) -> np.ndarray:
            return np.concatenate([np.asarray(part) for part in parts])

        each = (self.status, *(other.status for other in others))
        return self._map(join, tuple(itertools.chain(*each)), *others)

    def _map(
        self, function: Callable[..., np.ndarray], status: tuple[Status, ...], *others: Starts
    ) -> Starts:
        """Starts whose every array is a function of these and of the others'."""
        columns = {
            name: jax.tree.map(function, value, *(getattr(other, name) for other in others))
            for name, value in vars(self).items()
            if name != "status"
        }
        return Starts(status=status, **columns)


class GateState(NamedTuple):
    """What became of a gate on the data, one entry per start."""

    empty: Array | np.ndarray  # some expert holds less than `_EMPTY` observations
    separated: Array | np.ndarray  # some experts that are active together share no observation


@jit_unoptimised(static_argnums=(0, 1))
def describe(
    layout: Layout, prior: Prior | None, scaling: Scaling, coordinates: Array
) -> tuple[MixingMeasure, Array]:
    """Measures on the scale of the data and log priors at coordinates ``(S, p)``."""

    def one(point: Array) -> tuple[MixingMeasure, Array]:
        measure = layout.unpack(point)
        log_prior = jnp.zeros(())
        if prior is not None:
            log_prior = prior.log_density(layout.gate, measure, layout.selection)
        return scaling.restore(measure), log_prior

    return jax.vmap(one)(coordinates)


@jit_quickly(static_argnums=0)
def gate_states(layout: Layout, data: Data, coordinates: Array) -> GateState:
    """What became of the gates at coordinates ``(S, p)``."""
    return jax.vmap(lambda point: _gate_state(layout, data, point))(coordinates)


def _gate_state(layout: Layout, data: Data, point: Array) -> GateState:
    gate = layout.gate_parameters(layout.split(point)[0])

    def terms(index: Array) -> tuple[Array, Array, Array]:
        log_share = layout.gate.log_probabilities(gate, data.gate_x[index])
        log_share = jnp.where(data.mask[index] > 0, log_share, -jnp.inf)
        lesser = jnp.minimum(log_share[:, None], log_share)
        together, overlap = (
            jnp.sum(lesser > least, axis=-1) for least in (-jnp.inf, np.log(_SHARED))
        )
        return jnp.sum(jnp.exp(log_share), axis=1), together, overlap

    held, together, overlap = sum_over_chunks(data, terms)
    parts = _n_components(overlap > 0), _n_components(together > 0)
    return GateState(jnp.min(held) < _EMPTY, parts[0] > parts[1] + 0.5)


def _n_components(graph: Array) -> Array:
    """The number of connected components of a graph given by its adjacency ``(k, k)``."""
    k = graph.shape[0]
    reach = graph | jnp.eye(k, dtype=bool)
    for _ in range((k - 1).bit_length()):
        reach = jnp.any(reach[:, :, None] & reach, axis=1)
    return jnp.sum(1.0 / jnp.sum(reach, axis=1))


def judge(
    optimum: newton.Optimum,
    gate: GateState,
    proper: bool,
    cold: bool = False,
    on_edge: bool = False,
) -> Status:
    """The status of one start; ``optimum`` and ``gate`` without batch axes.

    ``cold`` says that the likelihood was seen to rise as the temperature goes to zero, ``on_edge``
    that a parameter rests on a bound of its prior.
    """
    if not np.isfinite(optimum.value) or not np.isfinite(optimum.gradient_norm):
        return Status.NON_FINITE
    if cold and not (gate.empty or gate.separated):
        return Status.TEMPERATURE_TO_ZERO
    if cold:
        return Status.EMPTY_EXPERT if gate.empty else Status.SEPARATED
    if optimum.gradient_norm > newton.GRADIENT_TOLERANCE:
        exhausted = optimum.n_iterations >= newton.MAX_ITERATIONS
        return Status.MAX_ITERATIONS if exhausted else Status.STALLED
    if optimum.runaway or not proper:  # a proper prior has a maximum even where the gate is a step
        if gate.empty:
            return Status.EMPTY_EXPERT
        if gate.separated or optimum.runaway:
            return Status.SEPARATED
    if not optimum.least_curvature >= -newton.CURVATURE_TOLERANCE:
        return Status.NEGATIVE_CURVATURE
    if on_edge:
        return Status.AT_PRIOR_BOUND
    return Status.AT_VARIANCE_FLOOR if np.any(optimum.at_bound) else Status.CONVERGED


def row(batch: Any, index: int | np.ndarray | Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], batch)


def best_start(objective: np.ndarray, converged: np.ndarray) -> int:
    """The first start within rounding of the highest objective, a converged one if there is any.

    On a flat ray every start reaches the same likelihood; which comes out ahead must not be left
    to rounding.
    """
    finite = np.where(np.isfinite(objective), objective, -np.inf)
    highest = finite >= np.max(finite) - 1e-12 * (1 + abs(np.max(finite)))
    return int(np.argmax(highest & converged if np.any(highest & converged) else highest))
