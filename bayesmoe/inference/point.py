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
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.likelihood import Data, Evaluation, Layout, evaluate_log_likelihood
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.priors import Prior
from bayesmoe.inference import newton
from bayesmoe.inference.outcome import Starts, Status, best_start, describe, judge, row
from bayesmoe.inference.problem import N_STARTS, VARIANCE_FLOOR, Problem, prepare

_ALIKE = 1e-9  # heights of one maximum, relative


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

    With more than 131 072 observations agnostic starts first climb on a random sample of 16 384 of
    them, and go on from there on all. Starts that settle at the same height on the sample go on as
    one.

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
    problem = prepare(
        model, x, y, key=key, n_starts=n_starts, starts=starts, variance_floor=variance_floor
    )
    return _fit(problem, None)


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

    Under the flat prior it is the MLE. A proper prior settles what the data leave open: there may
    be fewer rows than parameters, if not than experts, and covariates that do not vary.
    """
    problem = prepare(
        model,
        x,
        y,
        key=key,
        n_starts=n_starts,
        starts=starts,
        variance_floor=variance_floor,
        proper=model.prior.proper,
    )
    return _fit(problem, model.prior)


def _fit(problem: Problem, prior: Prior | None) -> Fit:
    sample = problem.sample
    if sample is None:
        every = np.ones(len(problem.starts), bool)
        return _assemble(problem, prior, _climb(problem, prior, problem.data, every))
    agnostic = np.arange(len(problem.starts)) >= len(problem.starts) - problem.n_agnostic
    approach = _climb(problem, prior, sample, agnostic)
    statuses = _described(problem, prior, sample, approach)[2]
    settled = agnostic & [status.converged for status in statuses]
    starts = np.where(settled[:, None], approach.coordinates, problem.starts)
    first = _first_alike(np.where(settled, approach.value, np.nan), problem.layout.gate.ray)
    alone = first == np.arange(len(first))
    optima = _climb(problem._replace(starts=jnp.asarray(starts)), prior, problem.data, alone)
    optima = jax.tree.map(lambda leaf: leaf[first], optima)
    used = np.where(agnostic, approach.n_iterations, 0) + optima.n_iterations
    return _assemble(problem, prior, optima._replace(n_iterations=used))


def _climb(problem: Problem, prior: Prior | None, data: Data, wanted: np.ndarray) -> newton.Optimum:
    """Where the wanted starts end on these data; the others stay."""
    optima = _maximise(
        problem.layout, prior, data, problem.starts, jnp.asarray(wanted), problem.lower
    )
    return jax.device_get(optima)


def _first_alike(values: np.ndarray, on_ray: bool) -> np.ndarray:
    """For each start the first one that settled at the same height, else itself: ``(S,)``.

    Heights at a maximum agree to rounding, and those of two maxima do not. On a ray the same
    height says nothing of the place.
    """
    if on_ray:
        return np.arange(len(values))
    alike = np.abs(values[:, None] - values) <= _ALIKE * (1 + np.abs(values))
    return np.argmax(alike | np.eye(len(values), dtype=bool), axis=1)


def mean_objective(
    layout: Layout, prior: Prior | None, data: Data, coordinates: Array
) -> Evaluation:
    """(log likelihood + log prior)/n with derivatives in identifiable coordinates."""
    terms = evaluate_log_likelihood(layout, coordinates, data)
    if prior is not None:

        def log_prior(point: Array) -> Array:
            return prior.log_density(layout.gate, layout.unpack(point), layout.selection)

        terms = Evaluation(
            terms.value + log_prior(coordinates),
            terms.gradient + jax.grad(log_prior)(coordinates),
            terms.hessian + jax.hessian(log_prior)(coordinates),
        )
    return Evaluation(*(term / data.n_observations for term in terms))


@partial(jax.jit, static_argnums=(0, 1))
def _maximise(
    layout: Layout, prior: Prior | None, data: Data, starts: Array, wanted: Array, lower: Array
) -> newton.Optimum:
    evaluate = partial(mean_objective, layout, prior, data)
    return jax.lax.map(
        lambda one: newton.maximise(evaluate, one[0], lower, one[1]), (starts, wanted)
    )


def _described(
    problem: Problem, prior: Prior | None, data: Data, optima: newton.Optimum
) -> tuple[MixingMeasure, Array, tuple[Status, ...]]:
    """Measures on the scale of the data, log priors and statuses."""
    measures, log_prior, gates = describe(
        problem.layout, prior, data, problem.scaling, jnp.asarray(optima.coordinates)
    )
    gates = jax.device_get(gates)
    proper = prior is not None and prior.proper
    each = range(len(optima.value))
    return measures, log_prior, tuple(judge(row(optima, i), row(gates, i), proper) for i in each)


def _assemble(problem: Problem, prior: Prior | None, optima: newton.Optimum) -> Fit:
    layout, scaling = problem.layout, problem.scaling
    measures, log_prior, statuses = _described(problem, prior, problem.data, optima)
    n = int(problem.data.n_observations)
    # densities of y, and of the paper's parameters, per unit of the data as given
    per_y = problem.log_unit
    per_parameter = 0.0
    if prior is not None:
        per_parameter = float(scaling.log_volume(layout.n_experts, layout.selection))
    objective = np.asarray(n * optima.value - per_y - per_parameter)
    best = best_start(objective, np.array([status.converged for status in statuses]))
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
