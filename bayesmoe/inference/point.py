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
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.compilation import jit_by_gate
from bayesmoe.core.device import each
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.observations import Data
from bayesmoe.core.priors import Prior
from bayesmoe.core.validate import as_key
from bayesmoe.inference import newton
from bayesmoe.inference.cold_limit import bounded, can_run_cold, follow
from bayesmoe.inference.outcome import Starts, Status, best_start, describe, judge, row
from bayesmoe.inference.problem import (
    N_STARTS,
    VARIANCE_FLOOR,
    Problem,
    mean_objective,
    prepare,
)

_ALIKE = 1e-9  # heights of one maximum, relative

# few observations have many maxima, and cost little: go on until some starts agree on the best
_FEW_ROWS, _AGREEING, _MOST_STARTS = 500, 3, 96


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
    n_starts: int | None = None,
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
        How many `agnostic` starts; may be zero if ``starts`` are given. By default twelve; up to
        500 observations, twelve more at a time until three have reached the best, 96 at most.
    starts
        Measures to start from in addition, tried first: one, or a batch.
    variance_floor
        The least variance allowed, as a multiple of Var(y).

    Raises
    ------
    ValueError
        If the data or an argument cannot be used; nothing is computed then.
    """
    begin = partial(prepare, model, x, y, variance_floor=variance_floor)
    return _search(begin, None, key, n_starts, starts)


def fit_map(
    model: MoE,
    x: ArrayLike,
    y: ArrayLike,
    *,
    key: Array | int = 0,
    n_starts: int | None = None,
    starts: MixingMeasure | None = None,
    variance_floor: float = VARIANCE_FLOOR,
) -> Fit:
    """The posterior mode in the paper's parameters; arguments and errors as `fit_mle`.

    Under the flat prior it is the MLE. A proper prior settles what the data leave open: there may
    be fewer rows than parameters, if not than experts, and covariates that do not vary. It also
    leaves fewer maxima: there are twelve starts by default.
    """
    proper = model.prior.proper
    begin = partial(prepare, model, x, y, variance_floor=variance_floor, proper=proper)
    if proper and n_starts is None:
        n_starts = N_STARTS
    return _search(begin, model.prior, key, n_starts, starts)


def _search(
    begin: Callable[..., Problem],
    prior: Prior | None,
    key: Array | int,
    n_starts: int | None,
    starts: MixingMeasure | None,
) -> Fit:
    """The best of all starts, as many as were asked for, or as few observations need."""
    key = as_key(key)
    first = N_STARTS if n_starts is None else n_starts
    problem = bounded(begin(key=key, n_starts=first, starts=starts))
    fit = _fit(problem, prior)
    n_batches = _MOST_STARTS // N_STARTS
    if n_starts is not None or int(problem.data.n_observations) > _FEW_ROWS:
        n_batches = 1
    for batch in range(1, n_batches):
        if _n_agreeing(fit) >= _AGREEING:
            break
        more = begin(key=jax.random.fold_in(key, batch + 1), n_starts=N_STARTS, starts=None)
        fit = _better(fit, _fit(bounded(more), prior))
    return _follow(problem, prior, fit)


def _follow(problem: Problem, prior: Prior | None, fit: Fit) -> Fit:
    """The fit, its best start led on along τ if it did not end; a proper prior bounds τ itself."""
    proper = prior is not None and prior.proper
    unfinished = fit.status in (Status.MAX_ITERATIONS, Status.STALLED)
    if proper or not unfinished or not can_run_cold(problem.layout.gate):
        return fit
    last = problem.layout.pack(problem.scaling.standardise(fit.measure))
    end = follow(problem, last)
    if end is None:
        return fit
    new = _assemble(problem, prior, end.optimum, end.cold)
    starts = fit.starts
    best = best_start(starts.objective, np.zeros(len(starts.status), bool))
    used = starts.n_iterations[best : best + 1] + end.n_iterations
    led_on = dataclasses.replace(new.starts, n_iterations=used)
    return dataclasses.replace(new, starts=starts[:best].joined(led_on, starts[best + 1 :]))


def _n_agreeing(fit: Fit) -> int:
    """How many starts reached the height of the best."""
    heights = fit.starts.objective
    best = np.max(heights[np.isfinite(heights)], initial=-np.inf)
    return int(np.sum(heights >= best - _ALIKE * (1 + abs(best))))


def _better(fit: Fit, other: Fit) -> Fit:
    """The better of two fits to the same data, with the starts of both."""

    starts = fit.starts.joined(other.starts)
    converged = np.array([status.converged for status in starts.status])
    best = best_start(starts.objective, converged)
    chosen = fit if best < len(fit.starts.status) else other
    return dataclasses.replace(chosen, starts=starts)


def _fit(problem: Problem, prior: Prior | None) -> Fit:
    sample = problem.sample
    if sample is None:
        every = np.ones(len(problem.starts), bool)
        optima = _climb(problem, prior, problem.data, every)
    else:
        optima = _climb_by_sample(problem, prior, sample)
    return _assemble(problem, prior, optima)


def _climb_by_sample(problem: Problem, prior: Prior | None, sample: Data) -> newton.Optimum:
    """Where starts end that climb on a sample first; those given, on all observations alone.

    A start that finds no maximum on the sample begins anew on all, from where it began.
    """
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
    return optima._replace(n_iterations=used)


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


@jit_by_gate(lambda layout: layout.gate, static_argnums=(0, 1))
def _maximise(
    layout: Layout, prior: Prior | None, data: Data, starts: Array, wanted: Array, lower: Array
) -> newton.Optimum:
    evaluate = partial(mean_objective, layout, prior, data)
    return each(lambda one: newton.maximise(evaluate, one[0], lower, one[1]), (starts, wanted))


def _described(
    problem: Problem, prior: Prior | None, data: Data, optima: newton.Optimum, cold: bool = False
) -> tuple[MixingMeasure, Array, tuple[Status, ...]]:
    """Measures on the scale of the data, log priors and statuses; ``cold`` as for `judge`."""
    measures, log_prior, gates = describe(
        problem.layout, prior, data, problem.scaling, jnp.asarray(optima.coordinates)
    )
    gates = jax.device_get(gates)
    proper = prior is not None and prior.proper
    each = range(len(optima.value))
    at_least = np.zeros(len(each), bool)  # a temperature that presses on its lower bound
    if can_run_cold(problem.layout.gate):
        at_least = np.asarray(optima.at_bound)[:, problem.layout.n_gate - 1]
    statuses = tuple(
        judge(row(optima, i), row(gates, i), proper, cold or bool(at_least[i])) for i in each
    )
    return measures, log_prior, statuses


def _assemble(
    problem: Problem, prior: Prior | None, optima: newton.Optimum, cold: bool = False
) -> Fit:
    layout, scaling = problem.layout, problem.scaling
    measures, log_prior, statuses = _described(problem, prior, problem.data, optima, cold)
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
