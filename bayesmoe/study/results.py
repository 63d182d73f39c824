"""From a study's data set to measured slopes, and counts of statuses and samplers."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from bayesmoe.core.gate import NO_RATE, PARAMETER_BLOCKS, Gate, Rate
from bayesmoe.study.columns import LOSSES
from bayesmoe.study.early_em import used
from bayesmoe.study.expected import expected_rate
from bayesmoe.study.layout import CELL_AXES
from bayesmoe.study.plan import WITHOUT_PRIOR, Cell, Plan
from bayesmoe.study.sampling import LAPLACE, NUTS
from bayesmoe.theory.decay import compare_decay
from bayesmoe.theory.rates import fit_slope, local_slopes, verdict
from bayesmoe.theory.voronoi import CELL_KINDS

_N_LOCAL = 500  # bootstrap samples of a local slope: there are many


class _Row(NamedTuple):
    """One line of the table of slopes, before the slope is measured."""

    quantity: str
    cell: str | None
    values: xr.DataArray
    expected: Rate


def settings(results: xr.Dataset) -> Iterator[xr.Dataset]:
    """The study under each scenario and prior, which become attributes."""
    names = (results[dim].to_numpy() for dim in ("scenario", "prior"))
    for name, prior in itertools.product(*names):
        selected = results.sel(scenario=name, prior=prior, drop=True)
        yield selected.assign_attrs(scenario=str(name), prior=str(prior))


def measure_slopes(plan: Plan, results: xr.Dataset) -> pd.DataFrame:
    """Slopes of every quantity under each scenario, prior, gate, k and estimator.

    Columns: scenario, prior, gate, n_experts, estimator, quantity, cell, slope, low, high,
    expected, expected_text, verdict, law (what the decay looks like, by `DecayComparison.law`),
    n_used, n_total.
    """
    rows = [case.identity | _measure(plan, case) for case in _cases(plan, results)]
    return pd.DataFrame(rows)


def measure_local_slopes(
    plan: Plan, results: xr.Dataset, quantities: Collection[str] | None = None
) -> pd.DataFrame:
    """Slopes between neighbouring sample sizes, see `local_slopes`: of all but block errors.

    ``quantities`` names those wanted, all by default.

    Columns: scenario, prior, gate, n_experts, estimator, quantity, n (the geometric mean of the
    two), slope, low, high, expected, n_used, n_total.
    """
    rows = []
    for case in _cases(plan, results):
        wanted = quantities is None or case.row.quantity in quantities
        if case.row.cell is None and wanted:
            key = plan.key("local", *case.name)
            for n, slope in local_slopes(
                case.sizes, case.values, case.used, key=key, n_bootstrap=_N_LOCAL
            ):
                ends = {"n": n, "slope": slope.slope, "low": slope.low, "high": slope.high}
                counts = {"n_used": slope.n_used, "n_total": slope.n_total}
                rate = {"expected": case.row.expected.exponent}
                rows.append(case.identity | {"quantity": case.row.quantity} | ends | rate | counts)
    return pd.DataFrame(rows)


def map_mle_distance(study: xr.Dataset) -> xr.DataArray:
    """‖MAP − MLE‖ where both converged, else NaN: of a fit without a maximum it says nothing."""
    point = [name for name in ("mle", "map") if name in study["estimator"].to_numpy()]
    both = study["converged"].sel(estimator=point).all("estimator")
    return study["map_mle_distance"].where(both)


class _Case(NamedTuple):
    """A quantity under one scenario, prior, gate, k and estimator, over n and replicates."""

    identity: dict[str, Any]
    row: _Row
    kept: xr.DataArray

    @property
    def name(self) -> list[str]:
        """What seeds its bootstrap; of those without a prior the interval is one for all."""
        named = self.identity
        if named["estimator"] in WITHOUT_PRIOR:
            named = {**named, "prior": ""}
        return [self.row.quantity, str(self.row.cell), *map(str, named.values())]

    @property
    def sizes(self) -> np.ndarray:
        return self.row.values["n"].to_numpy()

    @property
    def values(self) -> np.ndarray:
        return self.row.values.transpose("n", "replicate").to_numpy()

    @property
    def used(self) -> np.ndarray:
        return self.kept.transpose("n", "replicate").to_numpy()


def _cases(plan: Plan, results: xr.Dataset) -> Iterator[_Case]:
    gates = {spec.id: spec.make() for spec in plan.gates}
    usable = results.assign(map_mle_distance=map_mle_distance(results))
    for study in settings(usable):
        axes = (study[axis].to_numpy().tolist() for axis in ("gate", "n_experts", "estimator"))
        for gate, k, estimator in itertools.product(*axes):
            one = study.sel(gate=gate, n_experts=k, estimator=estimator)
            identity = {
                "scenario": study.attrs["scenario"],
                "prior": study.attrs["prior"],
                "gate": gate,
                "n_experts": k,
                "estimator": estimator,
            }
            kept = used(one)
            for row in _quantities(gates[gate], one, estimator):
                yield _Case(identity, row, kept)


def _quantities(gate: Gate, one: xr.Dataset, estimator: str) -> Iterator[_Row]:
    surplus = int(one["n_experts"]) - int(one["n_experts_true"])
    for name in LOSSES:
        if "identified" not in name or gate.ray:
            rate = expected_rate(gate, name.removeprefix("normalised_"), surplus)
            yield _Row(name, None, one[name], rate)
    for block, cell in itertools.product(PARAMETER_BLOCKS, CELL_KINDS):
        values = one["block_error"].sel(block=block, cell=cell)
        if np.isfinite(values).any() and (block != "temperature" or gate.has_temperature):
            yield _Row(block, cell, values, expected_rate(gate, block, surplus, cell))
    if estimator == "posterior" and gate.has_temperature:
        rate = expected_rate(gate, "temperature", surplus)
        yield _Row("temperature_sd", None, one["posterior_sd"].sel(block="temperature"), rate)
    if estimator == "map" and surplus == 0 and np.isfinite(one["map_mle_distance"]).any():
        # of a single active expert the gate's scale is left to the prior
        rate = NO_RATE if gate.subset_size == 1 else Rate(-1.0, "n^-1")
        yield _Row("map_mle_distance", None, one["map_mle_distance"], rate)


def _measure(plan: Plan, case: _Case) -> dict[str, Any]:
    row, values, used = case.row, case.values, case.used
    sizes, key = case.sizes, plan.key("slope", *case.name)
    slope = fit_slope(sizes, values, used, key=key)
    return {
        "quantity": row.quantity,
        "cell": row.cell,
        "slope": slope.slope,
        "low": slope.low,
        "high": slope.high,
        "expected": row.expected.exponent,
        "expected_text": row.expected.text,
        "verdict": verdict(slope, row.expected),
        "law": compare_decay(sizes, values, used).law,
        "n_used": slope.n_used,
        "n_total": slope.n_total,
    }


def count_statuses(results: xr.Dataset) -> pd.DataFrame:
    """How many fits ended how: scenario, prior, gate, n_experts, estimator, status, count."""
    keys = ["scenario", "prior", "gate", "n_experts", "estimator", "status"]
    frame = results["status"].to_dataframe().reset_index()
    return frame.groupby(keys, sort=False).size().rename("count").reset_index()


def measure_samplers(results: xr.Dataset) -> pd.DataFrame:
    """Which sampler drew the posteriors, and in what time.

    Empty if there are none, or the plan has all of them drawn by NUTS.

    Columns: scenario, prior, gate, n_experts, n; how many posteriors came by Laplace's
    approximation (``laplace``) and by NUTS (``nuts``), medians of the seconds that each took
    (``laplace_seconds``; ``nuts_seconds``, in which an attempt at the approximation is contained),
    and of the Pareto k of all that was tried (``pareto_k``).
    """
    if "posterior" not in results["estimator"].to_numpy() or results.attrs["sampler"] == NUTS:
        return pd.DataFrame()
    keys = ["scenario", "prior", "gate", "n_experts", "n"]
    study = results[["sampler", "pareto_k", "seconds"]].sel(estimator="posterior", drop=True)
    frame = study.to_dataframe(dim_order=[*keys, "replicate"]).reset_index()
    counts = {name: frame["sampler"] == name for name in (LAPLACE, NUTS)}
    seconds = {f"{name}_seconds": frame["seconds"].where(kept) for name, kept in counts.items()}
    groups = frame.assign(**counts, **seconds).groupby(keys, sort=False)
    medians = groups[["pareto_k", *seconds]].median()
    return groups[list(counts)].sum().join(medians).reset_index()


def failures(results: xr.Dataset) -> dict[Cell, str]:
    """The cells whose computation failed, and why, in the plan's order."""
    found = {}
    texts = results["failure"].where(results["digest"] == 0, "").transpose(*CELL_AXES).to_numpy()
    for index in map(tuple, np.argwhere(texts != "").tolist()):
        values = (results[axis].to_numpy()[i] for axis, i in zip(CELL_AXES, index, strict=True))
        found[Cell(*(value.item() for value in values))] = str(texts[index])
    return found


def reason(traceback: str) -> str:
    """The last line of a traceback: the error and its message."""
    lines = [line for line in traceback.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason is recorded"
