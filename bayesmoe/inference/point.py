"""Maximum likelihood and maximum a posteriori estimation.

========  ==========================================================================
MLE       argmax of Σ log g_G(Y_j|X_j)
MAP       argmax of log prior + Σ log g_G(Y_j|X_j), the prior's density being that of
          the paper's parameters: no Jacobian of the coordinates used to find it
========  ==========================================================================

Both over the set Θ of variances above a floor, without which the likelihood is unbounded; MAP over
the support of its prior, too.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.compilation import jit_unoptimised
from bayesmoe.core.device import on_accelerator
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.priors import Prior
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.validate import as_key
from bayesmoe.inference import newton
from bayesmoe.inference.climb import climb, climb_together, described
from bayesmoe.inference.cold_limit import bounded, can_run_cold, follow
from bayesmoe.inference.domain import domain
from bayesmoe.inference.outcome import Starts, Status, best_start, row
from bayesmoe.inference.problem import N_STARTS, VARIANCE_FLOOR, Problem, prepare

#: in units of log-likelihood: starts that end within it of each other reached the same height
SAME = 1e-3

# go on until some starts agree on the best, as long as that costs little
_AGREEING, _MOST_STARTS = 5, 96
_MOST_ROWS = 200_000  # of all starts together


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
        standardised data; at most 1e-8 where converged. Gate parameters that the prior bounds are
        coordinates themselves then, not divided by τ.
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
    one. The starts are shared out among threads, as many as there are cores.

    Parameters
    ----------
    model
        From `bayesmoe.moe`.
    x, y
        Covariates ``(n, d)`` or ``(n,)`` and response ``(n,)``.
    key
        A JAX key or an int; seeds the starts.
    n_starts
        How many `agnostic` starts; may be zero if ``starts`` are given. By default twelve, and
        twelve more at a time until five have reached the best, to within 0.001: 96 at most, and no
        more than 200 000 observations for all starts together.
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
    """The posterior mode in the paper's parameters; arguments as `fit_mle`.

    It may rest on the edge of the prior's support, which must be an interval for each parameter.
    Starts outside, given ones too, are moved inside.

    Under the flat prior it is the MLE. A proper prior settles what the data leave open: there may
    be fewer rows than parameters, if not than experts, and covariates that do not vary.

    It also tells which of three or more experts is the reference, which the likelihood of a linear
    gate does not: from the best start the search goes on under every other reference, as k - 1
    further starts, until none leads higher.

    Raises
    ------
    ValueError
        As `fit_mle`, and if the prior's supports are no intervals, if that of variances ends below
        the floor, or if a density grows without end towards an end of its interval.
    """
    prior = model.prior
    begin = partial(prepare, model, x, y, variance_floor=variance_floor, prior=prior)
    return _search(begin, prior, key, n_starts, starts)


def estimate(problems: Sequence[Problem], prior: Prior | None) -> list[Fit]:
    """The best of all starts of each problem: the MLE, or under a prior MAP.

    Parameters
    ----------
    problems
        From `prepare`. On an accelerator those of one layout and storage run in one program.
    prior
        None for the MLE.
    """
    problems = [bounded(problem) for problem in problems]
    together = len(problems) > 1 and on_accelerator() and all(p.sample is None for p in problems)
    ends = climb_together(problems, prior) if together else (climb(p, prior, 1) for p in problems)
    fits = (_assemble(p, prior, optima) for p, optima in zip(problems, ends, strict=True))
    return [_follow(p, prior, fit) for p, fit in zip(problems, fits, strict=True)]


def _search(
    begin: Callable[..., Problem],
    prior: Prior | None,
    key: Array | int,
    n_starts: int | None,
    starts: MixingMeasure | None,
) -> Fit:
    """The best of all starts, as many as were asked for, or as few as agree."""
    key = as_key(key)
    first = N_STARTS if n_starts is None else n_starts
    problem = bounded(begin(key=key, n_starts=first, starts=starts))
    fit = _fit(problem, prior)
    most = most_starts(int(problem.data.n_observations)) if n_starts is None else N_STARTS
    for batch in range(1, most // N_STARTS):
        if agree(fit.starts.objective):
            break
        more = begin(key=jax.random.fold_in(key, batch + 1), n_starts=N_STARTS, starts=None)
        fit = _better(fit, _fit(bounded(more), prior))
    return _follow(problem, prior, _under_other_references(problem, prior, fit))


def _under_other_references(problem: Problem, prior: Prior | None, fit: Fit) -> Fit:
    """The fit, or one that is higher and that it leads to when seen from other references."""
    layout = problem.layout
    if prior is None or not prior.proper or not layout.other_references_matter:
        return fit
    while True:
        starts = _other_references(layout, problem.scaling, fit.measure)
        seen = _better(fit, _fit(problem._replace(starts=starts, n_agnostic=0), prior))
        if seen.measure is fit.measure:
            return seen
        fit = seen


@jit_unoptimised(static_argnums=0)
def _other_references(layout: Layout, scaling: Scaling, measure: MixingMeasure) -> Array:
    return layout.other_references(scaling.standardise(measure))


def _follow(problem: Problem, prior: Prior | None, fit: Fit) -> Fit:
    """The fit, its best start led on along τ if it did not end; a proper prior bounds τ itself."""
    proper = prior is not None and prior.proper
    bounded = domain(problem.layout, prior, problem.lower).bounded
    unfinished = fit.status in (Status.MAX_ITERATIONS, Status.STALLED)
    if proper or bounded or not unfinished or not can_run_cold(problem.layout.gate):
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


def most_starts(n_observations: int) -> int:
    """How many starts there are by default if they do not agree, batches of `N_STARTS`."""
    affordable = min(_MOST_STARTS, _MOST_ROWS // n_observations)
    return max(1, affordable // N_STARTS) * N_STARTS


def agree(heights: np.ndarray) -> bool:
    """Whether enough starts reached the best of the heights ``(S,)``."""
    best = np.max(heights[np.isfinite(heights)], initial=-np.inf)
    return bool(np.sum(heights >= best - SAME) >= _AGREEING)


def _better(fit: Fit, other: Fit) -> Fit:
    """The better of two fits to the same data, with the starts of both."""

    starts = fit.starts.joined(other.starts)
    converged = np.array([status.converged for status in starts.status])
    best = best_start(starts.objective, converged)
    chosen = fit if best < len(fit.starts.status) else other
    return dataclasses.replace(chosen, starts=starts)


def _fit(problem: Problem, prior: Prior | None) -> Fit:
    return _assemble(problem, prior, climb(problem, prior, os.cpu_count() or 1))


def _assemble(
    problem: Problem, prior: Prior | None, optima: newton.Optimum, cold: bool = False
) -> Fit:
    layout, scaling = problem.layout, problem.scaling
    measures, log_prior, statuses = described(problem, prior, problem.data, optima, cold)
    n = int(problem.data.n_observations)
    # densities of y, and of the paper's parameters, per unit of the data as given
    per_y = problem.log_unit
    per_parameter = 0.0
    if prior is not None:
        per_parameter = prior.log_volume(scaling, layout.n_experts, layout.selection)
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
        # by NumPy: JAX would compile the indexing of each field
        jax.device_put(row(jax.device_get(measures), best)),
        float(n * optima.value[best] - np.asarray(log_prior)[best]) - per_y,
        float(objective[best]) if prior is not None else float("nan"),
        statuses[best],
        float(optima.gradient_norm[best]),
        float(optima.least_curvature[best]),
        starts,
    )
