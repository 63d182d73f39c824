"""From a study's data set to measured slopes and counts of statuses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from bayesmoe.core.gate import PARAMETER_BLOCKS, Gate, Rate
from bayesmoe.study.cell import LOSSES
from bayesmoe.study.expected import expected_rate
from bayesmoe.study.layout import CELL_AXES
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.theory.decay import compare_decay
from bayesmoe.theory.rates import fit_slope, verdict
from bayesmoe.theory.voronoi import CELL_KINDS


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
    expected, expected_text, verdict, law (what the decay looks like, by `compare_decay`), n_used,
    n_total.
    """
    rows = []
    for study in settings(results):
        axes = (range(len(plan.gates)), plan.n_experts, plan.estimators)
        for g, k, estimator in itertools.product(*axes):
            gate = plan.gates[g].make()
            one = study.isel(gate=g).sel(n_experts=k, estimator=estimator)
            for row in _quantities(gate, one, estimator):
                identity = {
                    "scenario": study.attrs["scenario"],
                    "prior": study.attrs["prior"],
                    "gate": plan.gates[g].id,
                    "n_experts": k,
                    "estimator": estimator,
                }
                rows.append(identity | _measure(plan, one["converged"], row, identity))
    return pd.DataFrame(rows)


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
        yield _Row("map_mle_distance", None, one["map_mle_distance"], Rate(-1.0, "n^-1"))


def _measure(
    plan: Plan, converged: xr.DataArray, row: _Row, identity: dict[str, Any]
) -> dict[str, Any]:
    values, used = (a.transpose("n", "replicate").to_numpy() for a in (row.values, converged))
    # the MLE knows no prior: its interval is one for all priors
    named = {**identity, "prior": ""} if identity["estimator"] == "mle" else identity
    key = plan.key("slope", row.quantity, str(row.cell), *map(str, named.values()))
    slope = fit_slope(np.asarray(plan.sizes), values, used, key=key)
    return {
        "quantity": row.quantity,
        "cell": row.cell,
        "slope": slope.slope,
        "low": slope.low,
        "high": slope.high,
        "expected": row.expected.exponent,
        "expected_text": row.expected.text,
        "verdict": verdict(slope, row.expected),
        "law": compare_decay(np.asarray(plan.sizes), values, used).verdict,
        "n_used": slope.n_used,
        "n_total": slope.n_total,
    }


def count_statuses(results: xr.Dataset) -> pd.DataFrame:
    """How many fits ended how: scenario, prior, gate, n_experts, estimator, status, count."""
    keys = ["scenario", "prior", "gate", "n_experts", "estimator", "status"]
    frame = results["status"].to_dataframe().reset_index()
    return frame.groupby(keys, sort=False).size().rename("count").reset_index()


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
