"""The tables of the report as rows for its template."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayesmoe.diagnostics.mixing import PosteriorStatus
from bayesmoe.inference.outcome import Status
from bayesmoe.report import _study
from bayesmoe.report._samplers import sampler_words
from bayesmoe.report.style import (
    ESTIMATOR_LABELS,
    QUANTITY_LABELS,
    STATUS_LABELS,
    Number,
    estimate,
    number,
    percent,
    size_text,
)
from bayesmoe.study.early_em import EM, MAX_STEPS, SHORT, TOLERANCE
from bayesmoe.study.plan import WITHOUT_PRIOR
from bayesmoe.study.results import failures, map_mle_distance, measure_samplers, reason

#: statuses of fits whose estimate may be used
CONVERGED = {s.name.lower() for s in (*Status, *PosteriorStatus) if s.converged}

_STARTS = {
    "agnostic": "starts know nothing of the truth",
    "near_truth": "starts are perturbed copies of the truth",
}
_NEAR_TRUTH = (
    "Starts are perturbed copies of the truth, so along a flat ray an optimiser stays where it was "
    "put: slopes of MLE and MAP there are no evidence of convergence."
)

Row = dict[str, Any]


def once(table: pd.DataFrame, results: xr.Dataset) -> pd.DataFrame:
    """The table with each EM and MLE once: no prior enters, and studies give them under each."""
    first = results["prior"].to_numpy()[0]
    kept = table[~table["estimator"].isin(WITHOUT_PRIOR) | (table["prior"] == first)].copy()
    kept.loc[kept["estimator"].isin(WITHOUT_PRIOR), "prior"] = "–"
    return kept


def _identity(row: Any, labels: dict[str, str]) -> Row:
    return {
        "scenario": row["scenario"],
        "prior": row["prior"],
        "gate": labels[row["gate"]],
        "k": int(row["n_experts"]),
        "estimator": ESTIMATOR_LABELS[row["estimator"]],
    }


def slope_rows(slopes: pd.DataFrame, labels: dict[str, str]) -> list[Row]:
    """One row per measured slope."""
    return [
        _identity(row, labels)
        | {
            "quantity": QUANTITY_LABELS[row["quantity"]],
            "cells": row["cell"] if isinstance(row["cell"], str) else "",
            "slope": estimate(float(row["slope"]), float(row["low"]), float(row["high"])),
            "slope_value": float(row["slope"]),
            "expected": row["expected_text"],
            "expected_value": float(row["expected"]),
            "verdict": row["verdict"],
            "law": {"this range of n cannot tell": "cannot tell"}.get(row["law"], row["law"]),
            "used": int(row["n_used"]),
            "total": int(row["n_total"]),
        }
        for _, row in slopes.iterrows()
    ]


def verdicts(slopes: pd.DataFrame) -> list[tuple[str, int]]:
    """How many slopes there are of each verdict."""
    found = slopes["verdict"].value_counts()
    order = ("consistent", "faster", "slower", "unknown")
    return [(verdict, int(found[verdict])) for verdict in order if verdict in found]


def statuses(counts: pd.DataFrame) -> list[tuple[str, str]]:
    """The statuses that occur, converged first, with their names in words."""
    found = set(counts.loc[counts["count"] > 0, "status"])
    return [(status, label) for status, label in STATUS_LABELS.items() if status in found]


def count_rows(counts: pd.DataFrame, labels: dict[str, str]) -> list[Row]:
    """How fits ended: one row per scenario, prior, gate, k and estimator."""
    keys = ["scenario", "prior", "gate", "n_experts", "estimator"]
    rows = []
    for _, group in counts.groupby(keys, sort=False):
        found = group.groupby("status")["count"].sum()
        number_of = {str(status): int(count) for status, count in found.items()}
        rows.append(
            _identity(group.iloc[0], labels)
            | {"counts": number_of, "total": sum(number_of.values())}
        )
    return rows


def left_out(counts: pd.DataFrame) -> str:
    """One sentence on the fits that did not converge."""
    found = counts.groupby("status")["count"].sum()
    failed = found[(found > 0) & ~found.index.isin(CONVERGED)].sort_values(ascending=False)
    if failed.empty:
        return f"All {size_text(found.sum())} fits converged."
    named = ", ".join(f"{size_text(c)} {STATUS_LABELS[str(s)]}" for s, c in failed.items())
    return f"{size_text(failed.sum())} of {size_text(found.sum())} fits did not converge: {named}."


def ended_by_rule(counts: pd.DataFrame) -> pd.Series:
    """The rows of EM's fits that its own rule ended short of a maximum: they are used."""
    return (counts["estimator"] == EM) & counts["status"].isin(SHORT)


def early(counts: pd.DataFrame) -> str:
    """One sentence on EM's fits short of a maximum; empty if there are none."""
    rule, limit = (
        int(counts.loc[ended_by_rule(counts) & (counts["status"] == end), "count"].sum())
        for end in SHORT
    )
    if not rule + limit:
        return ""
    total = int(counts.loc[counts["estimator"] == EM, "count"].sum())
    return (
        f"Besides, {size_text(rule + limit)} of {size_text(total)} fits by EM are no maximum: "
        f"{size_text(rule)} ended by the published rule, a relative change of the log-likelihood "
        f"below {TOLERANCE:.0e}, and {size_text(limit)} by its limit of {MAX_STEPS} steps. Medians "
        "and slopes use them: they are the published estimator, whose slopes owe to its rule and "
        "its starting points what they do not owe to the likelihood."
    )


def gap_rows(gaps: pd.DataFrame, labels: dict[str, str]) -> list[Row]:
    """Per scenario, gate and k: how EM ended, and how far below the MLE, smallest n → largest."""
    if gaps.empty:
        return []
    rows = []
    for _, group in gaps.groupby(["scenario", "gate", "n_experts"], sort=False):
        first, ends = group.iloc[0], group.iloc[[0, -1]]
        rows.append(
            {
                "scenario": first["scenario"],
                "gate": labels[first["gate"]],
                "k": int(first["n_experts"]),
                **{name: int(group[name].sum()) for name in ("fits", "short", "pairs", "above")},
                "steps": " → ".join(number(value, 0) for value in ends["steps"]),
                "gap": " → ".join(number(value, 2) for value in ends["gap"]),
                "gap_max": _number(float(group["gap_max"].max()), 2),
            }
        )
    return rows


def failed_cells(results: xr.Dataset) -> list[tuple[str, str, str]]:
    """Each cell whose computation failed: its name, the reason, and the whole traceback."""
    return [(str(cell), reason(text), text) for cell, text in failures(results).items()]


def at_floor(counts: pd.DataFrame) -> str:
    """Sentences on converged fits that are maxima over what is allowed; empty if there are none."""
    places = {
        "at_variance_floor": ("the variance floor", "the variances allowed"),
        "at_prior_bound": ("a bound of their prior", "its support"),
    }
    found = []
    for status, (place, allowed) in places.items():
        count = int(counts.loc[counts["status"] == status, "count"].sum())
        if count:
            found.append(
                f"Of the fits that converged, {size_text(count)} rest on {place}: they are maxima "
                f"over {allowed}."
            )
    return " ".join(found)


def run_rows(study: xr.Dataset, labels: dict[str, str]) -> list[Row]:
    """Per gate and fitted k: the sampler's health, the cost, and how far MAP is from MLE."""
    rows = []
    for gate, k in ((gate, k) for gate in _study.gates(study) for k in _study.fitted(study)):
        cell = study.sel(gate=gate, n_experts=k)
        distance = [map_mle_distance(cell).isel(n=i).to_numpy() for i in (0, -1)]
        seconds = [cell["seconds"].sel(estimator=e).to_numpy() for e in _study.estimators(study)]
        rows.append(
            {
                "scenario": study.attrs["scenario"],
                "prior": study.attrs["prior"],
                "gate": labels[gate],
                "k": k,
                "divergences": _reduce(cell["divergences"], np.sum, 0),
                "ess": _reduce(cell["min_ess"], np.min, 0),
                "rhat": _reduce(cell["max_rhat"], np.max, 3),
                "distance": " → ".join(_median(d) for d in distance),
                "seconds": " / ".join(_reduce(s, np.median, 2).text for s in seconds),
            }
        )
    return rows


def _reduce(values: Any, reduce: Callable[[np.ndarray], float], digits: int) -> Number:
    array = np.asarray(values)
    kept = array[np.isfinite(array)]
    return _number(float(reduce(kept)) if kept.size else np.nan, digits)


def _number(value: float, digits: int) -> Number:
    return Number(number(value, digits), value)


def _median(values: np.ndarray) -> str:
    kept = values[np.isfinite(values)]
    return f"{np.median(kept):.2g}".replace("e-0", "e-").replace("-", "−") if kept.size else "–"


def setting_rows(results: xr.Dataset) -> list[tuple[str, str]]:
    """What was run, by name."""
    attributes = results.attrs
    starts = str(attributes["starts"])
    return [
        ("Scenario", ", ".join(map(str, results["scenario"].to_numpy()))),
        ("Prior", ", ".join(map(str, results["prior"].to_numpy()))),
        ("Start protocol", f"{starts}: {_STARTS[starts]}"),
        *_sampler(results),
        ("Gates", ", ".join(_study.gate_labels(results).values())),
        ("Experts fitted", ", ".join(str(k) for k in _study.fitted(results))),
        ("Sample sizes", ", ".join(size_text(n) for n in results["n"].to_numpy())),
        ("Replicates", str(results.sizes["replicate"])),
        ("Posterior radius", f"{percent(float(attributes['level']))} quantile of the loss"),
        ("Created", str(attributes["created"])),
        ("bayesmoe", str(attributes["package_version"])),
    ]


def _sampler(results: xr.Dataset) -> list[tuple[str, str]]:
    posterior = "posterior" in _study.estimators(results)
    return [("Sampler", sampler_words(measure_samplers(results)))] if posterior else []


def start_warning(results: xr.Dataset) -> str:
    """What the start protocol takes from the slopes, if anything."""
    return _NEAR_TRUTH if results.attrs["starts"] == "near_truth" else ""


def version_rows(results: xr.Dataset) -> list[tuple[str, str]]:
    """Library versions."""
    found = json.loads(results.attrs["versions"])
    return [(str(name), str(version)) for name, version in found.items()]
