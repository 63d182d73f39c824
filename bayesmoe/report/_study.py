"""Reading a study: one scenario and prior, its series over sample sizes, its slopes, its names."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from bayesmoe.report.style import ESTIMATORS, specification
from bayesmoe.study.early_em import used
from bayesmoe.study.results import settings


class Setting(NamedTuple):
    """A study under one scenario and one prior.

    Attributes
    ----------
    study
        The results, without the dimensions ``scenario`` and ``prior``.
    name
        What tells it from the other settings, in words; empty if there is no other.
    prefix
        The same for names of figures.
    """

    study: xr.Dataset
    name: str
    prefix: str


def split(results: xr.Dataset) -> list[Setting]:
    """The settings of a study, in the plan's order."""
    several, found = several_settings(results), []
    for study in settings(results):
        name = ", ".join(f"{dim} {study.attrs[dim]}" for dim in several)
        prefix = "".join(f"{study.attrs[dim]}_" for dim in several)
        found.append(Setting(study, name, prefix))
    return found


def several_settings(results: xr.Dataset) -> list[str]:
    """Out of "scenario" and "prior" what the study varies."""
    return [name for name in ("scenario", "prior") if results.sizes[name] > 1]


def own(table: pd.DataFrame, study: xr.Dataset) -> pd.DataFrame:
    """The rows of a table of the whole study that belong to one scenario and prior."""
    return rows(table, scenario=study.attrs["scenario"], prior=study.attrs["prior"])


def rows(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    """The rows that have these values; None stands for a missing one."""
    mask = np.ones(len(table), bool)
    for column, value in where.items():
        equal = table[column].isna() if value is None else table[column] == value
        mask &= equal.to_numpy()
    return table[mask]


def slope(
    slopes: pd.DataFrame,
    gate: str,
    n_experts: int,
    estimator: str,
    quantity: str,
    cell: str | None = None,
) -> pd.Series | None:
    """The row of one setting's slopes, or None if there is none."""
    found = rows(slopes, gate=gate, n_experts=n_experts, estimator=estimator, quantity=quantity)
    found = rows(found, cell=cell)
    return None if found.empty else found.iloc[0]


def gates(study: xr.Dataset) -> list[str]:
    """The ids of the gates."""
    return [str(gate) for gate in study["gate"].to_numpy()]


def gate_labels(study: xr.Dataset) -> dict[str, str]:
    """What each gate is called."""
    return dict(zip(gates(study), map(str, study["gate_label"].to_numpy()), strict=True))


def fitted(study: xr.Dataset) -> list[int]:
    """The fitted numbers of experts."""
    return [int(k) for k in study["n_experts"].to_numpy()]


def estimators(study: xr.Dataset) -> list[str]:
    """The estimators that the study has."""
    return [name for name in ESTIMATORS if name in study["estimator"].to_numpy()]


def setting_of(cell: xr.Dataset) -> str:
    """How the fitted number of experts of a cell relates to the truth."""
    return specification(int(cell["n_experts"]), int(cell["n_experts_true"]))


def expected(cell: xr.Dataset, quantity: str) -> tuple[float, str]:
    """Exponent and text of an expected rate."""
    entry = cell.sel(quantity=quantity)
    return float(entry["expected"]), str(entry["expected_text"].item())


def temperature_gates(study: xr.Dataset) -> list[str]:
    """The gates that have a temperature."""
    has = study["has_temperature"].to_numpy()
    return [gate for gate, flag in zip(gates(study), has, strict=True) if flag]


@dataclasses.dataclass(frozen=True)
class Series:
    """Medians and quartiles over replicates, one entry per sample size; NaN where there is none.

    ``complete`` says whether every replicate that was run entered the median.
    """

    n: np.ndarray
    median: np.ndarray
    low: np.ndarray
    high: np.ndarray
    complete: np.ndarray

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not bool(np.any(self.drawable))

    @property
    def drawable(self) -> np.ndarray:
        """Where the median can be drawn on a logarithmic axis."""
        return np.isfinite(self.median) & (self.median > 0)


def summarise(values: xr.DataArray, used: xr.DataArray) -> Series:
    """Median and quartiles of ``values`` (n, replicate) over the replicates in ``used``."""
    array = values.transpose("n", "replicate").to_numpy().astype(float)
    keep = used.transpose("n", "replicate").to_numpy().astype(bool) & np.isfinite(array)
    kept = np.where(keep, array, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # sample sizes without any fit
        low, median, high = np.nanquantile(kept, [0.25, 0.5, 0.75], axis=1)
    return Series(values["n"].to_numpy().astype(float), median, low, high, keep.all(axis=1))


def series(cell: xr.Dataset, variable: str) -> dict[str, Series]:
    """The series of each estimator that has something to draw."""
    found = {}
    for name in estimators(cell):
        one = cell.sel(estimator=name)
        found[name] = summarise(one[variable], used(one))
    return {name: line for name, line in found.items() if not line.empty}


def spread(cell: xr.Dataset) -> Series | None:
    """Posterior standard deviation of τ over the replicates whose chains converged, if any."""
    if "posterior" not in estimators(cell):
        return None
    converged = cell["converged"].sel(estimator="posterior")
    line = summarise(cell["posterior_sd"].sel(block="temperature"), converged)
    return None if line.empty else line


def chunks(items: Sequence[str], size: int) -> list[list[str]]:
    """``items`` in groups of at most ``size``, the groups as equal as can be."""
    count = -(-len(items) // size)
    return [list(group) for group in np.array_split(np.asarray(items, dtype=object), count)]
