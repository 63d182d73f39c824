"""From cells to one dataset, measured slopes and counts of statuses."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from bayesmoe.core.gate import PARAMETER_BLOCKS, Gate, Rate
from bayesmoe.diagnostics.posterior import library_versions
from bayesmoe.study.cell import LOSSES, Arrays
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.scenario import scenario
from bayesmoe.theory.decay import compare_decay
from bayesmoe.theory.rates import fit_slope, verdict
from bayesmoe.theory.voronoi import CELL_KINDS

#: quantities with an expected rate
QUANTITIES = ("loss", "identified_loss", *PARAMETER_BLOCKS)

_AXES = ("scenario", "gate", "n_experts", "n", "replicate")
_BOTH = ("prior", "estimator")
_DIMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(LOSSES, _BOTH),
    "block_error": (*_BOTH, "block", "cell"),
    "status": _BOTH,
    "converged": _BOTH,
    "seconds": _BOTH,
    "log_likelihood": _BOTH,
    "gradient_norm": _BOTH,
    "least_curvature": _BOTH,
    "start_objective": (*_BOTH, "start"),
    "posterior_sd": ("prior", "block"),
    **dict.fromkeys(("map_mle_distance", "divergences", "min_ess", "max_rhat"), ("prior",)),
    "estimate_gate_slope": (*_BOTH, "expert", "covariate"),
    "estimate_gate_intercept": (*_BOTH, "expert"),
    "estimate_temperature": _BOTH,
    "estimate_slope": (*_BOTH, "expert", "covariate"),
    "estimate_intercept": (*_BOTH, "expert"),
    "estimate_variance": (*_BOTH, "expert"),
}
_UNKNOWN = Rate(float("nan"), "not known")


def assemble(plan: Plan, read: Callable[[str], Arrays], created: str) -> xr.Dataset:
    """All cells as one dataset; ``read`` gives the arrays of a cell by its name.

    Parameters
    ----------
    plan
        The plan; all its cells must be there.
    read
        Reads a cell.
    created
        When the study was finished, ISO 8601.

    Returns
    -------
    Dimensions ``(scenario, gate, n_experts, n, replicate, prior, estimator, ...)``; experts and
    covariates that a model lacks are NaN.
    """
    coordinates = _coordinates(plan)
    sizes = {dim: len(values) for dim, values in coordinates.items()}
    full = {name: (*_AXES, *dims) for name, dims in _DIMS.items()}
    arrays = {name: _empty(name, [sizes[d] for d in dims]) for name, dims in full.items()}
    places = {axis: {v: i for i, v in enumerate(coordinates[axis])} for axis in _AXES}
    for cell in plan.cells():
        index = tuple(places[axis][value] for axis, value in zip(_AXES, cell, strict=True))
        for name, value in read(cell.name).items():
            place: tuple[Any, ...] = (*index, *(slice(0, length) for length in value.shape))
            arrays[name][place] = value
    variables: dict[str, Any] = {name: (full[name], arrays[name]) for name in full}
    attributes = {
        "plan": plan.to_toml(),
        "name": plan.name,
        "starts": plan.starts,
        "level": str(plan.level),
        "created": created,
        "versions": json.dumps(library_versions()),
        "package_version": version("bayesmoe"),
    }
    return xr.Dataset(variables | _theory(plan), coordinates, attributes)


def _empty(name: str, shape: list[int]) -> np.ndarray:
    if name == "status":
        return np.full(shape, "missing", dtype="<U24")
    return np.full(shape, False) if name == "converged" else np.full(shape, np.nan)


def _coordinates(plan: Plan) -> dict[str, list[Any]]:
    truths = [scenario(name).measure for name in plan.scenarios]
    return {
        "scenario": list(plan.scenarios),
        "gate": [gate.id for gate in plan.gates],
        "n_experts": list(plan.n_experts),
        "n": list(plan.sizes),
        "replicate": list(range(plan.replicates)),
        "prior": list(plan.priors),
        "estimator": list(plan.estimators),
        "block": list(PARAMETER_BLOCKS),
        "cell": list(CELL_KINDS),
        "quantity": list(QUANTITIES),
        "expert": list(range(max(plan.n_experts))),
        "covariate": list(range(max(truth.n_covariates for truth in truths))),
        "start": list(range(plan.n_starts + 1)),
    }


def _theory(plan: Plan) -> dict[str, Any]:
    """Expected rates, and what figures must know of gates and truths."""
    gates = [spec.make() for spec in plan.gates]
    truths = [[scenario(name, gate).measure.n_experts for gate in gates] for name in plan.scenarios]
    shape = (len(plan.scenarios), len(gates), len(plan.n_experts), len(QUANTITIES))
    exponent, text = np.full(shape, np.nan), np.full(shape, "", dtype="<U16")
    for s, g, k, q in itertools.product(*map(range, shape)):
        rate = _expected(gates[g], QUANTITIES[q], plan.n_experts[k] - truths[s][g])
        exponent[s, g, k, q], text[s, g, k, q] = rate
    dims = ("scenario", "gate", "n_experts", "quantity")
    return {
        "expected": (dims, exponent),
        "expected_text": (dims, text),
        "gate_label": ("gate", [gate.label for gate in gates]),
        "has_temperature": ("gate", [gate.has_temperature for gate in gates]),
        "ray": ("gate", [gate.ray for gate in gates]),
        "n_experts_true": (("scenario", "gate"), truths),
    }


def _expected(gate: Gate, quantity: str, surplus: int, cell: str = "shared") -> Rate:
    """The rate of a quantity with ``surplus`` experts more than the truth.

    Theory is silent on fewer, and cells may hold more than two atoms with two or more too many.
    """
    if surplus < 0 or (surplus > 1 and quantity in PARAMETER_BLOCKS and cell == "shared"):
        return _UNKNOWN
    return gate.expected_rate(quantity, over_specified=surplus > 0 and cell == "shared")


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
            rate = _expected(gate, name.removeprefix("normalised_"), surplus)
            yield _Row(name, None, one[name], rate)
    for block, cell in itertools.product(PARAMETER_BLOCKS, CELL_KINDS):
        values = one["block_error"].sel(block=block, cell=cell)
        if np.isfinite(values).any() and (block != "temperature" or gate.has_temperature):
            yield _Row(block, cell, values, _expected(gate, block, surplus, cell))
    if estimator == "posterior" and gate.has_temperature:
        rate = _expected(gate, "temperature", surplus)
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


def cells_missing(plan: Plan, finished: set[str]) -> list[Cell]:
    """The cells still to be computed."""
    return [cell for cell in plan.cells() if cell.name not in finished]
