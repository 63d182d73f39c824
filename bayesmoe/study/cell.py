"""What is computed for cells: simulate, estimate, judge."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.gate import PARAMETER_BLOCKS
from bayesmoe.core.model import MoE
from bayesmoe.inference.em import EMFit
from bayesmoe.inference.point import Fit, estimate
from bayesmoe.inference.problem import VARIANCE_FLOOR, Problem, begin_also_at, prepare
from bayesmoe.inference.starts import near_truth
from bayesmoe.study.chunks import digest
from bayesmoe.study.columns import Arrays, judge, kept_draws, point_column, posterior_column
from bayesmoe.study.early_em import EM, run_early_em
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.sampling import Evidence, Sample, draw_posterior
from bayesmoe.study.scenario import Scenario, scenario

F = TypeVar("F", Fit, EMFit)


class _Replicate(NamedTuple):
    """The data set of a cell, and its starting points."""

    cell: Cell
    x: Array
    y: Array
    problem: Problem


class _Group(NamedTuple):
    """Cells of one model and sample size, and what they share."""

    plan: Plan
    truth: Scenario
    models: dict[str, MoE]
    replicates: list[_Replicate]

    @property
    def problems(self) -> list[Problem]:
        return [replicate.problem for replicate in self.replicates]


class _Points(NamedTuple, Generic[F]):
    """A point estimate of each cell of a group, and the seconds that one of them took."""

    fits: list[F]
    seconds: float


class _Estimates(NamedTuple):
    """The point estimates of a group: MAP under each prior, None where they are not wanted."""

    em: _Points[EMFit] | None
    mle: _Points[Fit] | None
    map: dict[str, _Points[Fit] | None]


def compute_cell(plan: Plan, cell: Cell) -> Arrays:
    """All results of a cell; leading axes ``(prior, estimator)`` in the plan's order.

    ``data_digest`` tells the cell's data set from others.
    """
    return compute_cells(plan, [cell])[0]


def compute_cells(plan: Plan, cells: Sequence[Cell]) -> list[Arrays]:
    """`compute_cell` of cells of one model and sample size.

    On an accelerator all their MLEs are found in one program, and all MAPs; ``seconds`` are then
    shares. Starting points are common to the estimators, and count for the first.
    """
    group, begun = _timed(lambda: _begin(plan, cells))
    estimates = _estimate(group, begun / len(cells))
    columns = _columns(group, estimates)
    return [_results(group, estimates, columns, index) for index in range(len(cells))]


def _begin(plan: Plan, cells: Sequence[Cell]) -> _Group:
    truth = scenario(cells[0].scenario, plan.gate(cells[0]))
    models = plan.models(truth.gate, cells[0].n_experts)
    model = next(iter(models.values()))  # no prior enters what a fit starts from
    return _Group(plan, truth, models, [_replicate(plan, truth, model, cell) for cell in cells])


def _replicate(plan: Plan, truth: Scenario, model: MoE, cell: Cell) -> _Replicate:
    """A cell's data, and starts by the plan's protocol."""
    x, y = truth.simulate(plan.data_key(cell), cell.n)
    key, starts, n_agnostic = plan.fit_key(cell), None, plan.n_starts
    if plan.starts == "near_truth":
        starts = near_truth(key, truth.measure, cell.n_experts, cell.n, plan.n_starts)
        n_agnostic = 0
    problem = prepare(
        model, x, y, key=key, n_starts=n_agnostic, starts=starts, variance_floor=VARIANCE_FLOOR
    )
    return _Replicate(cell, x, y, problem)


def _estimate(group: _Group, begun: float) -> _Estimates:
    """The plan's point estimates; ``begun`` seconds a cell went by before the first of them."""
    wanted, problems = group.plan.estimators, group.problems
    before = itertools.chain([begun], itertools.repeat(0.0))
    em, mle, maps = None, None, dict[str, _Points[Fit] | None].fromkeys(group.models)
    if EM in wanted:
        em = _fitted(lambda: [run_early_em(problem) for problem in problems], next(before))
    if "mle" in wanted:
        mle = _fitted(lambda: estimate(problems, None), next(before))
    if "map" in wanted or "posterior" in wanted:
        for name, model in group.models.items():
            maps[name] = _fit_map(group, model, mle, next(before))
    return _Estimates(em, mle, maps)


def _fitted(call: Callable[[], list[F]], before: float) -> _Points[F]:
    fits, seconds = _timed(call)
    return _Points(fits, before + seconds / len(fits))


def _fit_map(group: _Group, model: MoE, mle: _Points[Fit] | None, before: float) -> _Points[Fit]:
    """MAP under a model's prior; the MLE, if there is one, is tried before all other starts."""

    def problems() -> list[Problem]:
        if mle is None:
            return group.problems
        pairs = zip(group.replicates, mle.fits, strict=True)
        return [begin_also_at(one.problem, one.x, one.y, fit.measure) for one, fit in pairs]

    return _fitted(lambda: estimate(problems(), model.prior), before)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begin


def _columns(group: _Group, estimates: _Estimates) -> dict[tuple[str, str], list[Arrays]]:
    """What is stored of every estimator under every prior, cell by cell; all judged at once."""
    points: dict[tuple[str, str], Any] = {}
    for prior, found in estimates.map.items():
        points |= {(EM, prior): estimates.em, ("mle", prior): estimates.mle, ("map", prior): found}
    points = {key: found for key, found in points.items() if found is not None}
    measures = [fit.measure for found in points.values() for fit in found.fits]
    judged = judge(group.truth, jax.tree.map(lambda *leaves: np.stack(leaves), *measures))
    rows = iter(range(len(measures)))
    return {
        key: [
            point_column(group.plan, fit, found.seconds, judged.at(next(rows)))
            for fit in found.fits
        ]
        for key, found in points.items()
    }


def _results(
    group: _Group,
    estimates: _Estimates,
    columns: dict[tuple[str, str], list[Arrays]],
    index: int,
) -> Arrays:
    """All arrays of one cell."""
    each = []
    for prior in group.models:
        of_prior = {name: column[index] for (name, of), column in columns.items() if of == prior}
        each.append(_under_prior(group, estimates, prior, of_prior, index))
    arrays = {name: np.stack([arrays[name] for arrays in each]) for name in each[0]}
    one = group.replicates[index]
    data = {"x": np.asarray(one.x), "y": np.asarray(one.y)}
    return arrays | {"data_digest": np.asarray(digest(data))}


def _under_prior(
    group: _Group, estimates: _Estimates, prior: str, columns: dict[str, Arrays], index: int
) -> Arrays:
    """One cell's results under one prior, leading axis ``(estimator,)`` where there is one."""
    plan, mle, start = group.plan, estimates.mle, estimates.map[prior]
    evidence, kept = Evidence(), Arrays()
    spread = np.full(len(PARAMETER_BLOCKS), np.nan)
    if "posterior" in plan.estimators:
        model, fit = group.models[prior], None if start is None else start.fits[index]
        sample, seconds = _timed(lambda: _sample(group.plan, group.replicates[index], model, fit))
        columns = columns | {"posterior": posterior_column(plan, group.truth, sample, seconds)}
        evidence, kept = sample.evidence, kept_draws(plan, sample.draws)
        if model.gate.has_temperature:
            spread[PARAMETER_BLOCKS.index("temperature")] = float(
                jnp.std(sample.draws.measures.temperature)
            )
    distance = np.nan
    if mle is not None and start is not None:
        distance = _distance(group.replicates[index], mle.fits[index], start.fits[index])
    wanted = [columns[estimator] for estimator in plan.estimators]
    stacked = {name: np.stack([column[name] for column in wanted]) for name in wanted[0]}
    singles = {name: np.asarray(value) for name, value in evidence._asdict().items()}
    singles |= {"posterior_sd": spread, "map_mle_distance": np.asarray(distance)}
    return stacked | singles | kept


def _sample(plan: Plan, one: _Replicate, model: MoE, start: Fit | None) -> Sample:
    return draw_posterior(plan, model, one.x, one.y, key=plan.fit_key(one.cell), start=start)


def _distance(one: _Replicate, mle: Fit, other: Fit) -> float:
    """‖MAP − MLE‖ in identifiable coordinates of standardised data, without τ on a ray."""
    layout, scaling = one.problem.layout, one.problem.scaling
    ends = [np.asarray(layout.pack(scaling.standardise(fit.measure))) for fit in (mle, other)]
    difference = ends[0] - ends[1]
    if layout.gate.ray:
        difference = np.delete(difference, layout.n_gate - 1)
    return float(np.linalg.norm(difference))
