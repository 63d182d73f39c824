"""Maximum likelihood and maximum a posteriori estimation.

========  ==========================================================================
MLE       argmax of Σ log g_G(Y_j|X_j)
MAP       argmax of log prior + Σ log g_G(Y_j|X_j), the prior's density being that of
          the paper's parameters: no Jacobian of the coordinates used to find it
========  ==========================================================================

Both over the set Θ of variances above a floor, without which the likelihood is unbounded.
"""

from __future__ import annotations

import dataclasses
import enum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.likelihood import (
    Data,
    Evaluation,
    Layout,
    evaluate_log_likelihood,
    make_data,
)
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.priors import Prior
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.validate import as_key, check_estimable, check_observations, check_whole
from bayesmoe.inference import newton
from bayesmoe.inference.starts import starting_points

#: variances are kept above this multiple of Var(y)
VARIANCE_FLOOR = 1e-4
N_STARTS = 12

_EMPTY = 1e-2  # observations held by an expert that has lost its weight
_SHARED = 1e-6  # the gate probability from which on an expert has a part in an observation


class Status(enum.Enum):
    """How a fit ended; the values are readable sentences."""

    CONVERGED = "a maximum: zero gradient and no negative curvature"
    AT_VARIANCE_FLOOR = "a maximum over the variances allowed: one rests on its floor"
    SEPARATED = "a gate parameter runs away: the likelihood has no maximum there, it only flattens"
    EMPTY_EXPERT = "an expert lost all its weight: fewer experts have the same likelihood"
    NEGATIVE_CURVATURE = "stopped at a saddle point"
    STALLED = "no step improves, yet the gradient is not zero: a jump, or the limit of precision"
    STOPPED_EARLY = "the stopping rule was met, yet the gradient is not zero"
    MAX_ITERATIONS = "iterations exhausted"
    NON_FINITE = "the objective is not finite at the start"

    @property
    def converged(self) -> bool:
        """Whether the estimate is a maximum over Θ."""
        return self in (Status.CONVERGED, Status.AT_VARIANCE_FLOOR)


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
        Shape ``(S,)``.
    measures
        The measures reached, a batch of S.
    """

    objective: np.ndarray
    status: tuple[Status, ...]
    gradient_norm: np.ndarray
    least_curvature: np.ndarray
    n_iterations: np.ndarray
    measures: MixingMeasure


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A point estimate and its evidence.

    Attributes
    ----------
    measure
        The estimate, on the scale of the data.
    log_likelihood
        Σ log g(y_j|x_j).
    log_density
        log prior + log likelihood in the paper's parameters (MAP); NaN for the MLE.
    status, converged
        How the best start ended, and whether that is a maximum.
    gradient_norm
        Max norm of the projected gradient of the mean objective, in identifiable coordinates of
        standardised data; at most 1e-8 where converged.
    least_curvature
        Least eigenvalue of the negative Hessian there, relative to the largest magnitude.
    starts
        All starts.
    """

    measure: MixingMeasure
    log_likelihood: float
    log_density: float
    status: Status
    gradient_norm: float
    least_curvature: float
    starts: Starts

    @property
    def converged(self) -> bool:
        return self.status.converged


def fit_mle(
    model: MoE,
    x: ArrayLike,
    y: ArrayLike,
    *,
    key: Array | int = 0,
    n_starts: int = N_STARTS,
    starts: MixingMeasure | None = None,
    variance_floor: float = VARIANCE_FLOOR,
) -> Fit:
    """The maximum likelihood estimate; the model's prior plays no part.

    Parameters
    ----------
    model
        From `bayesmoe.moe`.
    x, y
        Covariates ``(n, d)`` or ``(n,)`` and response ``(n,)``.
    key
        A JAX key or an int; seeds the starts.
    n_starts
        How many `agnostic` starts; may be zero if ``starts`` are given.
    starts
        Measures to start from in addition, tried first: one, or a batch.
    variance_floor
        The least variance allowed, as a multiple of Var(y).

    Raises
    ------
    ValueError
        If the data or an argument cannot be used; nothing is computed then.
    """
    return _fit(model, None, x, y, key, n_starts, starts, variance_floor)


def fit_map(
    model: MoE,
    x: ArrayLike,
    y: ArrayLike,
    *,
    key: Array | int = 0,
    n_starts: int = N_STARTS,
    starts: MixingMeasure | None = None,
    variance_floor: float = VARIANCE_FLOOR,
) -> Fit:
    """The posterior mode in the paper's parameters; arguments and errors as `fit_mle`.

    Under the flat prior it is the MLE.
    """
    return _fit(model, model.prior, x, y, key, n_starts, starts, variance_floor)


def _fit(
    model: MoE,
    prior: Prior | None,
    x: ArrayLike,
    y: ArrayLike,
    key: Array | int,
    n_starts: int,
    starts: MixingMeasure | None,
    variance_floor: float,
) -> Fit:
    covariates, response = check_observations(x, y)
    layout = model.layout(covariates.shape[1])
    check_estimable(covariates, response, layout.size)
    n_starts = check_whole("n_starts", n_starts, least=0 if starts is not None else 1)
    if not isinstance(variance_floor, int | float) or not 0 < variance_floor < 1:
        raise ValueError(
            "variance_floor, a multiple of Var(y), must lie between 0 and 1; "
            f"got {variance_floor!r}"
        )
    scaling = Scaling.from_data(model.gate, covariates, response)
    begin = starting_points(as_key(key), layout, scaling, covariates, response, n_starts, starts)
    lower = jnp.full(layout.size, -jnp.inf).at[-model.n_experts :].set(np.log(variance_floor))
    data = make_data(covariates, response, scaling)
    optima = _maximise(layout, prior, data, begin, lower)
    return _assemble(layout, prior, scaling, data, optima)


def mean_objective(
    layout: Layout, prior: Prior | None, data: Data, coordinates: Array
) -> Evaluation:
    """(log likelihood + log prior)/n with derivatives in identifiable coordinates."""
    terms = evaluate_log_likelihood(layout, coordinates, data)
    if prior is not None:

        def log_prior(point: Array) -> Array:
            return prior.log_density(layout.gate, layout.unpack(point))

        terms = Evaluation(
            terms.value + log_prior(coordinates),
            terms.gradient + jax.grad(log_prior)(coordinates),
            terms.hessian + jax.hessian(log_prior)(coordinates),
        )
    return Evaluation(*(term / data.n_observations for term in terms))


@partial(jax.jit, static_argnums=(0, 1))
def _maximise(
    layout: Layout, prior: Prior | None, data: Data, starts: Array, lower: Array
) -> newton.Optimum:
    evaluate = partial(mean_objective, layout, prior, data)
    return jax.lax.map(lambda start: newton.maximise(evaluate, start, lower), starts)


class _GateState(NamedTuple):
    """What became of a gate on the data, one entry per start."""

    empty: Array  # some expert holds less than `_EMPTY` observations
    separated: Array  # some experts that are active together share no observation


@partial(jax.jit, static_argnums=(0, 1))
def _describe(
    layout: Layout, prior: Prior | None, data: Data, scaling: tuple[Array, ...], coordinates: Array
) -> tuple[MixingMeasure, Array, _GateState]:
    """Measures on the scale of the data, log priors and gates at coordinates ``(S, p)``."""

    def one(point: Array) -> tuple[MixingMeasure, Array, _GateState]:
        measure = layout.unpack(point)
        log_prior = jnp.zeros(()) if prior is None else prior.log_density(layout.gate, measure)
        return Scaling(*scaling).restore(measure), log_prior, _gate_state(layout, data, measure)

    return jax.vmap(one)(coordinates)


def _gate_state(layout: Layout, data: Data, measure: MixingMeasure) -> _GateState:
    def add(index: Array, total: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        log_share = layout.gate.log_probabilities(measure.gate, data.gate_x[index])
        log_share = jnp.where(data.mask[index] > 0, log_share, -jnp.inf)
        lesser = jnp.minimum(log_share[:, None], log_share)
        held, together, overlap = total
        return (
            held + jnp.sum(jnp.exp(log_share), axis=1),
            together | jnp.any(lesser > -jnp.inf, axis=-1),
            overlap | jnp.any(lesser > np.log(_SHARED), axis=-1),
        )

    k = layout.n_experts
    none = jnp.zeros((k, k), bool)
    held, together, overlap = jax.lax.fori_loop(0, data.n_chunks, add, (jnp.zeros(k), none, none))
    return _GateState(
        jnp.min(held) < _EMPTY, _n_components(overlap) > _n_components(together) + 0.5
    )


def _n_components(graph: Array) -> Array:
    """The number of connected components of a graph given by its adjacency ``(k, k)``."""
    k = graph.shape[0]
    reach = graph | jnp.eye(k, dtype=bool)
    for _ in range((k - 1).bit_length()):
        reach = jnp.any(reach[:, :, None] & reach, axis=1)
    return jnp.sum(1.0 / jnp.sum(reach, axis=1))


def _status(optimum: newton.Optimum, gate: _GateState, proper: bool) -> Status:
    """The status of one start; ``optimum`` and ``gate`` without batch axes."""
    if not np.isfinite(optimum.value) or not np.isfinite(optimum.gradient_norm):
        return Status.NON_FINITE
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
    return Status.AT_VARIANCE_FLOOR if np.any(optimum.at_bound) else Status.CONVERGED


def _row(batch: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], batch)


def _best(objective: np.ndarray, converged: np.ndarray) -> int:
    """The first start within rounding of the highest objective, a converged one if there is any.

    On a flat ray every start reaches the same likelihood; which comes out ahead must not be left
    to rounding.
    """
    finite = np.where(np.isfinite(objective), objective, -np.inf)
    highest = finite >= np.max(finite) - 1e-12 * (1 + abs(np.max(finite)))
    return int(np.argmax(highest & converged if np.any(highest & converged) else highest))


def _assemble(
    layout: Layout, prior: Prior | None, scaling: Scaling, data: Data, optima: newton.Optimum
) -> Fit:
    arrays = tuple(vars(scaling).values())
    measures, log_prior, gates = _describe(layout, prior, data, arrays, optima.coordinates)
    optima, gates = jax.device_get((optima, gates))
    proper = prior is not None and prior.proper
    statuses = tuple(
        _status(_row(optima, i), _row(gates, i), proper) for i in range(len(optima.value))
    )
    n = int(data.n_observations)
    # densities of y, and of the paper's parameters, per unit of the data as given
    per_y = n * float(jnp.log(scaling.y_scale))
    per_parameter = float(scaling.log_volume(layout.n_experts)) if prior is not None else 0.0
    objective = np.asarray(n * optima.value - per_y - per_parameter)
    best = _best(objective, np.array([status.converged for status in statuses]))
    starts = Starts(
        objective,
        statuses,
        np.asarray(optima.gradient_norm),
        np.asarray(optima.least_curvature),
        np.asarray(optima.n_iterations),
        measures,
    )
    return Fit(
        measures[best],
        float(n * optima.value[best] - log_prior[best]) - per_y,
        float(objective[best]) if prior is not None else float("nan"),
        statuses[best],
        float(optima.gradient_norm[best]),
        float(optima.least_curvature[best]),
        starts,
    )
