"""Figures of a convergence study: losses, parameter blocks, slopes, and the spread of τ.

Conventions of figures against n: one colour per estimator and one marker per gate; points are
medians over the replicates whose fit converged, bars their quartiles, hollow points say that some
fits were left out; light grey lines have the expected slope and pass through the geometric centre
of the medians: they are never fitted.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from bayesmoe.report._blocks import blocks
from bayesmoe.report._contraction import contraction
from bayesmoe.report._forest import rates
from bayesmoe.report._local_slopes import local_slopes
from bayesmoe.report._replicates import replicates
from bayesmoe.report._study import estimators, fitted, split, temperature_gates
from bayesmoe.report._temperature_sd import temperature_sd
from bayesmoe.report.ray_figure import Series, ray_figure
from bayesmoe.report.style import style
from bayesmoe.study.files import write_atomic
from bayesmoe.study.plan import parse_plan
from bayesmoe.study.results import measure_local_slopes

__all__ = [
    "Series",
    "blocks",
    "contraction",
    "local_slopes",
    "rates",
    "ray_figure",
    "replicates",
    "save",
    "study_figures",
    "temperature_sd",
]

_NEIGHBOURS = 3  # sample sizes from which on local slopes say more than the slope


def study_figures(results: xr.Dataset, slopes: pd.DataFrame) -> dict[str, Figure]:
    """All figures of a study by name.

    Parameters
    ----------
    results
        From `bayesmoe.study.dataset.load_results`.
    slopes
        From `bayesmoe.study.results.measure_slopes`.

    Returns
    -------
    dict
        ``contraction``, ``rates``, ``replicates``, ``blocks_k2`` for each fitted k,
        ``local_slopes`` of three sample sizes or more, and ``temperature_sd`` if some gate has a
        temperature and there is a posterior. A study of several scenarios or priors has these for
        each, names beginning with the scenario's and the prior's, whichever vary.
    """
    found: dict[str, Figure] = {}
    plan = parse_plan(results.attrs["plan"], "the study")
    local = measure_local_slopes(plan, results, ["normalised_loss"])
    for study, _, prefix in split(results):
        found[f"{prefix}contraction"] = contraction(study, slopes)
        found[f"{prefix}rates"] = rates(study, slopes)
        found[f"{prefix}replicates"] = replicates(study)
        for k in fitted(study):
            found[f"{prefix}blocks_k{k}"] = blocks(study, slopes, [k])
        if study.sizes["n"] >= _NEIGHBOURS:
            found[f"{prefix}local_slopes"] = local_slopes(study, local)
        if temperature_gates(study) and "posterior" in estimators(study):
            found[f"{prefix}temperature_sd"] = temperature_sd(study, slopes)
    return found


def save(figure: Figure, stem: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``stem``.png (200 dpi) and ``stem``.svg; each file appears whole or not at all.

    The bytes depend on the figure alone, not on the time or the place.
    """
    target = Path(stem)
    target.parent.mkdir(parents=True, exist_ok=True)
    with style():
        return _write(figure, target, "png", Software=None), _write(
            figure, target, "svg", Date=None, Creator=None
        )


def _write(figure: Figure, target: Path, kind: str, **metadata: None) -> Path:
    path = target.with_name(f"{target.name}.{kind}")
    write_atomic(path, lambda file: figure.savefig(file, format=kind, dpi=200, metadata=metadata))
    return path
