"""The answers of a study in words, each with the slopes and intervals it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import xarray as xr

from bayesmoe.report import _study
from bayesmoe.report.style import ESTIMATOR_LABELS, estimate, number, size_text
from bayesmoe.study.early_em import measure_gaps
from bayesmoe.theory.rates import NEGLIGIBLE

_VERBS = ("falls", "stays flat", "grows", "does not fall", "unclear", "no interval", "no slope")


class Answer(NamedTuple):
    """What was asked, a gate and a number of experts, and what was found."""

    subject: str
    finding: str


def headline(study: xr.Dataset, slopes: pd.DataFrame) -> list[Answer]:
    """One answer for each gate and fitted k: what becomes of the losses, and of τ.

    Something falls if the whole interval of its slope lies below -`NEGLIGIBLE`, grows if it lies
    above `NEGLIGIBLE`, and stays flat if it lies between the two. It does not fall if the interval
    lies above -`NEGLIGIBLE` but leaves open whether it grows; else the runs leave it unclear.

    Parameters
    ----------
    study
        The results under one scenario and prior, from `bayesmoe.study.results.settings`.
    slopes
        Measured slopes, from `bayesmoe.study.results.measure_slopes`.
    """
    slopes, gaps = _study.own(slopes, study), _gaps(study)
    return [
        _answer(study.sel(gate=gate, n_experts=k), slopes, gaps)
        for gate in _study.gates(study)
        for k in _study.fitted(study)
    ]


def _answer(cell: xr.Dataset, slopes: pd.DataFrame, gaps: pd.DataFrame | None) -> Answer:
    own = _study.rows(slopes, gate=str(cell["gate"].item()), n_experts=int(cell["n_experts"]))
    label = str(cell["gate_label"].item())
    findings = [
        _finding("Loss", own, "normalised_loss"),
        _finding("Loss modulo the ray", own, "normalised_identified_loss"),
        _finding("Sd of τ", own, "temperature_sd"),
        _stopped(cell, gaps),
    ]
    subject = f"{label[:1].upper()}{label[1:]}, {_study.setting_of(cell)}"
    return Answer(subject, " ".join(finding for finding in findings if finding))


def _gaps(study: xr.Dataset) -> pd.DataFrame | None:
    """How far EM stopped below the MLE; None without EM."""
    if "em" not in _study.estimators(study):
        return None
    return measure_gaps(study.expand_dims(scenario=[study.attrs["scenario"]], prior=[""]))


def _stopped(cell: xr.Dataset, gaps: pd.DataFrame | None) -> str:
    """How many EM fits stopped short of a maximum, after how many steps, and how far below it."""
    if gaps is None:
        return ""
    own = _study.rows(gaps, gate=str(cell["gate"].item()), n_experts=int(cell["n_experts"]))
    first, last = own.iloc[0], own.iloc[-1]
    found = (
        f"EM: {own['short'].sum()} of {own['fits'].sum()} fits stopped short of a maximum, after a "
        f"median of {number(first['steps'], 0)} steps at n = {size_text(first['n'])} and "
        f"{number(last['steps'], 0)} at n = {size_text(last['n'])}"
    )
    if own["pairs"].sum():
        found += (
            f"; median gap in log-likelihood to the MLE of the same data {number(first['gap'])} "
            f"at n = {size_text(first['n'])}, {number(last['gap'])} at n = {size_text(last['n'])}, "
            f"at most {number(own['gap_max'].max())}"
        )
    if own["above"].sum():
        found += f"; above the MLE in {own['above'].sum()} of {own['pairs'].sum()} data sets"
    return f"{found}."


def _finding(title: str, slopes: pd.DataFrame, quantity: str) -> str:
    """What a quantity does, estimators that do the same named together; empty if not measured."""
    found: dict[str, list[pd.Series]] = {verb: [] for verb in _VERBS}
    for _, row in _study.rows(slopes, quantity=quantity).iterrows():
        found[_verb(row)].append(row)
    clauses = [_clause(verb, same) for verb, same in found.items() if same]
    return f"{title}: {'; '.join(clauses)}." if clauses else ""


def _verb(row: pd.Series) -> str:
    slope, low, high = (float(row[column]) for column in ("slope", "low", "high"))
    if not math.isfinite(slope):
        return "no slope"
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    if high < -NEGLIGIBLE:
        return "falls"
    if low > NEGLIGIBLE:
        return "grows"
    if low >= -NEGLIGIBLE:
        return "stays flat" if high <= NEGLIGIBLE else "does not fall"
    return "unclear"


def _clause(verb: str, same: Sequence[pd.Series]) -> str:
    values = []
    for row in same:
        value = estimate(float(row["slope"]), float(row["low"]), float(row["high"]))
        sign = "n^" if verb == "falls" else ""
        name = ESTIMATOR_LABELS[row["estimator"]]
        values.append(name if verb == "no slope" else f"{name} {sign}{value}")
    return f"{verb} for {_join(values)}"


def _join(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def slope_summary(slopes: pd.DataFrame, labels: dict[str, str], quantity: str) -> str:
    """Slopes of one quantity in one line, for those who cannot see a figure."""
    parts = [
        f"{labels[r['gate']]}, k = {r['n_experts']}, {ESTIMATOR_LABELS[r['estimator']]}: "
        f"{number(float(r['slope']))}"
        for _, r in _study.rows(slopes, quantity=quantity).iterrows()
    ]
    return "; ".join(parts)
