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
    log_density,
    make_data,
)
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.priors import Prior
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.validate import as_key, check_estimable, check_observations, check_whole
from bayesmoe.inference import newton
from bayesmoe.inference.starts import agnostic

#: variances are kept above this multiple of Var(y)
VARIANCE_FLOOR = 1e-4
N_STARTS = 12


class Status(enum.Enum):
    """How a fit ended; the values are readable sentences."""

    CONVERGED = "a maximum: zero gradient and no negative curvature"
    AT_VARIANCE_FLOOR = "a maximum over the variances allowed: one rests on its floor"
    SEPARATED = "a gate became a step function: the likelihood has no maximum, it only flattens"
    NEGATIVE_CURVATURE = "stopped at a saddle point"
    STALLED = "no step improves, yet the gradient is not zero: a jump, or the limit of precision"
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
    if not 0 < variance_floor < 1:
        raise ValueError(f"variance_floor must lie between 0 and 1, got {variance_floor!r}")
    scaling = Scaling.from_data(model.gate, covariates, response)
    begin = _starting_points(layout, scaling, covariates, response, as_key(key), n_starts, starts)
    lower = jnp.full(layout.size, -jnp.inf).at[-model.n_experts :].set(np.log(variance_floor))
    data = make_data(covariates, response, scaling)
    optima = _maximise(layout, prior, data, begin, lower)
    return _assemble(layout, prior, scaling, (covariates, response), data, optima)


def _starting_points(
    layout: Layout,
    scaling: Scaling,
    x: Array,
    y: Array,
    key: Array,
    n_starts: int,
    given: MixingMeasure | None,
) -> Array:
    """Coordinates ``(S, p)``: the measures given first, then the agnostic ones."""
    batches = []
    if given is not None:
        _check_starts(layout, given)
        batch = jax.tree.map(lambda leaf: leaf if given.batch_shape else leaf[None], given)
        batches.append(jax.vmap(scaling.standardise)(batch))
    if n_starts:
        standard_x = np.asarray((x - scaling.x_shift) / scaling.x_scale)
        standard_y = np.asarray((y - scaling.y_shift) / scaling.y_scale)
        batches.append(
            agnostic(key, layout.gate, layout.n_experts, standard_x, standard_y, n_starts)
        )
    return jnp.concatenate([jax.vmap(layout.pack)(batch) for batch in batches])


def _check_starts(layout: Layout, given: MixingMeasure) -> None:
    got = (given.n_experts, given.n_covariates)
    wanted = (layout.n_experts, layout.n_covariates)
    if got != wanted or len(given.batch_shape) > 1:
        raise ValueError(
            f"starts must be measures with (k, d) = {wanted} and at most one batch axis; "
            f"got (k, d) = {got} with batch shape {given.batch_shape}"
        )


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


@partial(jax.jit, static_argnums=0)
def _is_separated(layout: Layout, data: Data, coordinates: Array) -> Array:
    """Whether every gate probability is 0 or 1 (to 1e-6) at every row, and the gate switches."""
    gate, *_ = layout.split(coordinates)
    parameters = layout.gate.from_coordinates(gate, layout.n_experts, layout.n_covariates)

    def hardness(chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        probabilities = jnp.exp(layout.gate.log_probabilities(parameters, chunk[0]))
        used = chunk[1] > 0
        soft = jnp.minimum(probabilities, 1 - probabilities)
        return jnp.max(soft * used), jnp.max(probabilities * used, axis=1)

    softest, largest = jax.lax.map(hardness, (data.gate_x, data.mask))
    return (jnp.max(softest) < 1e-6) & (jnp.sum(jnp.max(largest, axis=0) > 0.5) > 1)


def _status(optimum: newton.Optimum, separated: bool, at_floor: bool) -> Status:
    """The status of one start; ``optimum`` without batch axes."""
    if not np.isfinite(optimum.value) or not np.isfinite(optimum.gradient_norm):
        return Status.NON_FINITE
    if separated:
        return Status.SEPARATED
    if optimum.gradient_norm > newton.GRADIENT_TOLERANCE:
        exhausted = optimum.n_iterations >= newton.MAX_ITERATIONS
        return Status.MAX_ITERATIONS if exhausted else Status.STALLED
    if not optimum.least_curvature >= -newton.CURVATURE_TOLERANCE:
        return Status.NEGATIVE_CURVATURE
    return Status.AT_VARIANCE_FLOOR if at_floor else Status.CONVERGED


def _best(objective: np.ndarray) -> int:
    """The first start within rounding of the highest objective.

    On a flat ray every start reaches the same likelihood; which comes out ahead must not be left
    to rounding.
    """
    finite = np.where(np.isfinite(objective), objective, -np.inf)
    slack = 1e-12 * (1 + abs(np.max(finite)))
    return int(np.argmax(finite >= np.max(finite) - slack))


def _assemble(
    layout: Layout,
    prior: Prior | None,
    scaling: Scaling,
    observations: tuple[Array, Array],
    data: Data,
    optima: newton.Optimum,
) -> Fit:
    optima = jax.tree.map(np.asarray, optima)
    measures = jax.vmap(lambda point: scaling.restore(layout.unpack(point)))(optima.coordinates)
    statuses = tuple(
        _status(
            newton.Optimum(*(leaf[i] for leaf in optima)),
            bool(_is_separated(layout, data, optima.coordinates[i])),
            bool(np.any(optima.at_bound[i])),
        )
        for i in range(len(optima.value))
    )
    n = len(observations[1])
    shift = n * float(jnp.log(scaling.y_scale))
    if prior is not None:
        shift += float(scaling.log_volume(layout.n_experts))
    objective = n * optima.value - shift
    best = _best(objective)
    measure = measures[best]
    log_likelihood = float(jnp.sum(log_density(layout.gate, measure, *observations)))
    starts = Starts(
        objective,
        statuses,
        optima.gradient_norm,
        optima.least_curvature,
        optima.n_iterations,
        measures,
    )
    return Fit(
        measure,
        log_likelihood,
        float(objective[best]) if prior is not None else float("nan"),
        statuses[best],
        float(optima.gradient_norm[best]),
        float(optima.least_curvature[best]),
        starts,
    )
