"""What is computed for one cell: simulate, estimate, judge."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.gate import PARAMETER_BLOCKS
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.scaling import Scaling
from bayesmoe.inference.em import EMFit
from bayesmoe.inference.laplace import Resampled
from bayesmoe.inference.nuts import Draws
from bayesmoe.inference.outcome import best_start
from bayesmoe.inference.point import Fit, fit_map, fit_mle
from bayesmoe.inference.starts import near_truth
from bayesmoe.study.chunks import digest
from bayesmoe.study.early_em import EM, fit_early_em
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.sampling import Evidence, Sample, draw_posterior
from bayesmoe.study.scenario import Scenario, scenario
from bayesmoe.theory.voronoi import VoronoiResult, contraction_radius, voronoi

#: the four losses: with which weights, and whether modulo the rays
LOSSES = {
    "loss": ("intercept", False),
    "identified_loss": ("intercept", True),
    "normalised_loss": ("probability", False),
    "normalised_identified_loss": ("probability", True),
}

Arrays = dict[str, np.ndarray]
F = TypeVar("F", Fit, EMFit)


class _Problem(NamedTuple):
    plan: Plan
    cell: Cell
    truth: Scenario
    x: Array
    y: Array


def compute_cell(plan: Plan, cell: Cell) -> Arrays:
    """All results of a cell; leading axes ``(prior, estimator)`` in the plan's order.

    ``data_digest`` tells the cell's data set from others.
    """
    truth = scenario(cell.scenario, plan.gate(cell))
    x, y = truth.simulate(plan.data_key(cell), cell.n)
    problem = _Problem(plan, cell, truth, x, y)
    models = plan.models(truth.gate, cell.n_experts)
    model = next(iter(models.values()))
    mle: Fit | None = None
    columns: dict[str, Arrays] = {}
    if EM in plan.estimators:
        em, seconds = _timed(lambda: _fit_point(fit_early_em, problem, model))
        columns[EM] = _point_column(problem, em, seconds)
    if "mle" in plan.estimators:
        mle, seconds = _timed(lambda: _fit_point(fit_mle, problem, model))
        columns["mle"] = _point_column(problem, mle, seconds)
    each = [_under_prior(problem, model, mle, columns) for model in models.values()]
    arrays = {name: np.stack([arrays[name] for arrays in each]) for name in each[0]}
    return arrays | {"data_digest": np.asarray(digest({"x": np.asarray(x), "y": np.asarray(y)}))}


def _under_prior(
    problem: _Problem, model: MoE, mle: Fit | None, without_prior: dict[str, Arrays]
) -> Arrays:
    """Results under one prior, leading axis ``(estimator,)`` where there is one."""
    plan, columns = problem.plan, dict(without_prior)
    start: Fit | None = None
    distance = np.nan
    if "map" in plan.estimators or "posterior" in plan.estimators:
        start, seconds = _timed(lambda: _fit_point(fit_map, problem, model, mle))
        distance = np.nan if mle is None else _distance(problem, mle, start)
        columns["map"] = _point_column(problem, start, seconds)
    evidence, kept = Evidence(), Arrays()
    spread = np.full(len(PARAMETER_BLOCKS), np.nan)
    if "posterior" in plan.estimators:
        sample, seconds = _timed(lambda: _sample(problem, model, start))
        columns["posterior"] = _posterior_column(problem, sample, seconds)
        evidence, kept = sample.evidence, _kept_draws(plan, sample.draws)
        if model.gate.has_temperature:
            spread[PARAMETER_BLOCKS.index("temperature")] = float(
                jnp.std(sample.draws.measures.temperature)
            )
    wanted = [columns[estimator] for estimator in plan.estimators]
    stacked = {name: np.stack([column[name] for column in wanted]) for name in wanted[0]}
    singles = {name: np.asarray(value) for name, value in evidence._asdict().items()}
    singles |= {"posterior_sd": spread, "map_mle_distance": np.asarray(distance)}
    return stacked | singles | kept


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begin


def _fit_point(fit: Callable[..., F], problem: _Problem, model: MoE, first: Fit | None = None) -> F:
    """A point estimate under the plan's start protocol; ``first`` is tried before all others."""
    plan, cell = problem.plan, problem.cell
    key = plan.fit_key(cell)
    starts = None if first is None else first.measure
    n_agnostic = plan.n_starts
    if plan.starts == "near_truth":
        n_agnostic = 0
        near = near_truth(key, problem.truth.measure, cell.n_experts, cell.n, plan.n_starts)
        starts = near if starts is None else jax.tree.map(_prepend, starts, near)
    return fit(model, problem.x, problem.y, key=key, n_starts=n_agnostic, starts=starts)


def _prepend(one: Array, batch: Array) -> Array:
    return jnp.concatenate([one[None], batch])


def _sample(problem: _Problem, model: MoE, start: Fit | None) -> Sample:
    plan, key = problem.plan, problem.plan.fit_key(problem.cell)
    return draw_posterior(plan, model, problem.x, problem.y, key=key, start=start)


def _distance(problem: _Problem, mle: Fit, other: Fit) -> float:
    """‖MAP − MLE‖ in identifiable coordinates of standardised data, without τ on a ray."""
    gate, x = problem.truth.gate, problem.x
    scaling = Scaling.from_data(gate, x, problem.y)
    layout = Layout(gate, problem.cell.n_experts, x.shape[1])
    ends = [np.asarray(layout.pack(scaling.standardise(fit.measure))) for fit in (mle, other)]
    difference = ends[0] - ends[1]
    if gate.ray:
        difference = np.delete(difference, layout.n_gate - 1)
    return float(np.linalg.norm(difference))


def _point_column(problem: _Problem, fit: Fit | EMFit, seconds: float) -> Arrays:
    measure, n_starts = fit.measure, problem.plan.n_starts + 1
    objective = np.full(n_starts, np.nan)  # MAP has one start more than MLE
    objective[: len(fit.starts.objective)] = fit.starts.objective
    losses, blocks = _judge(problem, measure)
    return {
        **{name: np.asarray(result.loss) for name, result in losses.items()},
        **{f"estimate_{field}": np.asarray(getattr(measure, field)) for field in FIELDS},
        "block_error": np.asarray(blocks),
        "status": np.asarray(fit.status.name.lower()),
        "converged": np.asarray(fit.converged),
        "seconds": np.asarray(seconds),
        "log_likelihood": np.asarray(fit.log_likelihood),
        "n_iterations": np.asarray(float(_n_iterations(fit))),
        "gradient_norm": np.asarray(fit.gradient_norm),
        "least_curvature": np.asarray(fit.least_curvature),
        "start_objective": objective,
    }


def _n_iterations(fit: Fit | EMFit) -> int:
    """Of the best start."""
    starts = fit.starts
    converged = np.array([status.converged for status in starts.status])
    return int(starts.n_iterations[best_start(starts.objective, converged)])


def _posterior_column(problem: _Problem, sample: Sample, seconds: float) -> Arrays:
    """The radius of each loss and block; the estimates of a point stay NaN."""
    level, draws, status = problem.plan.level, sample.draws, sample.status
    losses, blocks = _judge(problem, draws.measures)
    shapes = jax.tree.map(lambda leaf: leaf.shape[2:], draws.measures)
    return {
        **{name: np.asarray(contraction_radius(r.loss, level)) for name, r in losses.items()},
        **{f"estimate_{field}": np.full(getattr(shapes, field), np.nan) for field in FIELDS},
        "block_error": _quantile(np.asarray(blocks), level),
        "status": np.asarray(status.name.lower()),
        "converged": np.asarray(status.converged),
        "seconds": np.asarray(seconds),
        "log_likelihood": np.asarray(np.mean(draws.log_likelihood)),
        "n_iterations": np.asarray(np.nan),
        "gradient_norm": np.asarray(np.nan),
        "least_curvature": np.asarray(np.nan),
        "start_objective": np.full(problem.plan.n_starts + 1, np.nan),
    }


def _kept_draws(plan: Plan, draws: Draws | Resampled) -> Arrays:
    """The draws that the plan has stored, ``(chain, draw, ...)``, on the scale of the data."""
    if not plan.kept_draws:
        return {}
    fields = {field: getattr(draws.measures, field) for field in FIELDS}
    fields["log_likelihood"] = draws.log_likelihood
    places = plan.kept_places
    return {f"draw_{name}": np.asarray(values)[:, places] for name, values in fields.items()}


def _judge(problem: _Problem, measures: MixingMeasure) -> tuple[dict[str, VoronoiResult], Array]:
    """The four losses, and block errors at the representative of the normalised loss."""
    truth = problem.truth
    results: dict[str, VoronoiResult] = {}
    for name, (weights, identified) in LOSSES.items():
        same = name.replace("identified_", "")
        if identified and not truth.gate.ray:
            results[name] = results[same]
        else:
            results[name] = voronoi(measures, truth, identified=identified, weights=weights)
    return results, results["normalised_loss"].block_errors


def _quantile(blocks: np.ndarray, level: float) -> np.ndarray:
    """Quantile over ``(chain, draw)``; a kind of cell that few draws have is left out.

    Draws that have no cell of the kind have no such error: the quantile is that of the others, and
    NaN if these are less than half.
    """
    flat = blocks.reshape(-1, *blocks.shape[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all NaN: the answer is NaN
        value = np.nanquantile(flat, level, axis=0)
    return np.where(np.mean(np.isfinite(flat), axis=0) >= 0.5, value, np.nan)
