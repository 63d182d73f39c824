"""What is stored of an estimate: its losses, and the evidence for it."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import jax
import numpy as np

from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.inference.em import EMFit
from bayesmoe.inference.laplace import Resampled
from bayesmoe.inference.nuts import Draws
from bayesmoe.inference.outcome import best_start
from bayesmoe.inference.point import Fit
from bayesmoe.study.plan import Plan
from bayesmoe.study.sampling import Sample
from bayesmoe.study.scenario import Scenario
from bayesmoe.theory.voronoi import VoronoiResult, contraction_radius, voronoi

#: the four losses: with which weights, and whether modulo the rays
LOSSES = {
    "loss": ("intercept", False),
    "identified_loss": ("intercept", True),
    "normalised_loss": ("probability", False),
    "normalised_identified_loss": ("probability", True),
}

Arrays = dict[str, np.ndarray]


class Judgement(NamedTuple):
    """The four losses, shape ``(...)``, and the block errors at the normalised one."""

    losses: Arrays
    blocks: np.ndarray

    def at(self, index: int) -> Judgement:
        """Of one of many."""
        return Judgement(
            {name: loss[index] for name, loss in self.losses.items()}, self.blocks[index]
        )


def judge(truth: Scenario, measures: MixingMeasure) -> Judgement:
    """Compare measures, with any batch axes, with the truth."""
    results: dict[str, VoronoiResult] = {}
    for name, (weights, identified) in LOSSES.items():
        same = name.replace("identified_", "")
        if identified and not truth.gate.ray:
            results[name] = results[same]
        else:
            results[name] = voronoi(measures, truth, identified=identified, weights=weights)
    losses = {name: np.asarray(result.loss) for name, result in results.items()}
    return Judgement(losses, np.asarray(results["normalised_loss"].block_errors))


def point_column(plan: Plan, fit: Fit | EMFit, seconds: float, judged: Judgement) -> Arrays:
    """Of a point estimate."""
    objective = np.full(plan.n_starts + 1, np.nan)  # MAP has one start more than MLE
    objective[: len(fit.starts.objective)] = fit.starts.objective
    return {
        **{name: np.asarray(loss) for name, loss in judged.losses.items()},
        **{f"estimate_{field}": np.asarray(getattr(fit.measure, field)) for field in FIELDS},
        "block_error": judged.blocks,
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


def posterior_column(plan: Plan, truth: Scenario, sample: Sample, seconds: float) -> Arrays:
    """Of a posterior: the radius of each loss and block; the estimates of a point stay NaN."""
    level, draws, status = plan.level, sample.draws, sample.status
    judged = judge(truth, draws.measures)
    shapes = jax.tree.map(lambda leaf: leaf.shape[2:], draws.measures)
    radii = {name: contraction_radius(loss, level) for name, loss in judged.losses.items()}
    return {
        **{name: np.asarray(radius) for name, radius in radii.items()},
        **{f"estimate_{field}": np.full(getattr(shapes, field), np.nan) for field in FIELDS},
        "block_error": _quantile(judged.blocks, level),
        "status": np.asarray(status.name.lower()),
        "converged": np.asarray(status.converged),
        "seconds": np.asarray(seconds),
        "log_likelihood": np.asarray(np.mean(draws.log_likelihood)),
        "n_iterations": np.asarray(np.nan),
        "gradient_norm": np.asarray(np.nan),
        "least_curvature": np.asarray(np.nan),
        "start_objective": np.full(plan.n_starts + 1, np.nan),
    }


def kept_draws(plan: Plan, draws: Draws | Resampled) -> Arrays:
    """The draws that the plan has stored, ``(chain, draw, ...)``, on the scale of the data."""
    if not plan.kept_draws:
        return {}
    fields = {field: getattr(draws.measures, field) for field in FIELDS}
    fields["log_likelihood"] = draws.log_likelihood
    places = plan.kept_places
    return {f"draw_{name}": np.asarray(values)[:, places] for name, values in fields.items()}


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
