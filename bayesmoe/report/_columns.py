"""Sweeps of the columns that a formula derived covariates from, and keeping them beside a fit.

The fit alone has the terms of the formula, not the columns: rows at other values of a column are
computed by the formula when the fit is written, and stored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from xarray import DataTree

from bayesmoe.data.formula import Design, FormulaError
from bayesmoe.diagnostics.stored_fit import ENGINE, write_tree
from bayesmoe.report._dependence import MOST, ROWS, Sweep, points_along
from bayesmoe.report._panels import chosen_rows

#: the file beside the fit
COLUMNS = "columns.nc"


def formula_sweeps(design: Design) -> list[Sweep]:
    """Sweeps of the first `MOST` columns that a formula names, over up to `ROWS` rows.

    Levels are set one by one; values at which a term is not finite are left out.
    """
    frame, levels = design.columns, design.levels
    found = [_sweep(design, frame, str(name), name in levels) for name in frame.columns[:MOST]]
    return [sweep for sweep in found if len(sweep.points) > 1]


def _sweep(design: Design, frame: pd.DataFrame, name: str, categorical: bool) -> Sweep:
    column, labels = frame[name], list[str]()
    if categorical:
        settings, codes = np.unique(column.to_numpy(), return_inverse=True)
        values, points, levels = codes.astype(float), np.arange(float(len(settings))), True
        labels = [_label(setting) for setting in settings.tolist()]
    else:
        values = column.to_numpy()
        points, levels = points_along(values)
        settings = points
    rows, kept, at = frame.iloc[chosen_rows(len(frame), ROWS)], [], []
    for i, setting in enumerate(settings.tolist()):
        try:
            at.append(design.at(rows.assign(**{name: setting})).to_numpy())
        except FormulaError:  # a term is not finite there
            continue
        kept.append(i)
    shown = tuple(labels[i] for i in kept if labels)
    shape = (0, len(rows), design.x.shape[1])
    return Sweep(name, values, points[kept], np.stack(at) if at else np.empty(shape), shown, levels)


def _label(level: object) -> str:
    return f"{level:g}" if isinstance(level, float) else str(level)


def save_sweeps(directory: Path, sweeps: Sequence[Sweep]) -> None:
    """Write ``columns.nc`` into a directory that exists."""
    groups = {}
    for i, sweep in enumerate(sweeps):
        variables = {
            "values": ("obs", sweep.values),
            "points": ("point", sweep.points),
            "at": (("point", "row", "covariate"), sweep.at),
        }
        told = {"name": sweep.name, "labels": json.dumps(sweep.labels), "levels": int(sweep.levels)}
        groups[str(i)] = xr.Dataset(variables, attrs=told)
    write_tree(directory / COLUMNS, DataTree.from_dict(groups))


def load_sweeps(directory: Path) -> list[Sweep]:
    """What `save_sweeps` wrote; none if it did not.

    Raises
    ------
    ValueError
        If the file cannot be read.
    """
    path = directory / COLUMNS
    if not path.is_file():
        return []
    try:
        with xr.open_datatree(path, engine=ENGINE) as opened:
            return [_loaded(opened[str(i)].to_dataset()) for i in range(len(opened.children))]
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read ({reason}); fit again, or remove it") from None


def _loaded(group: xr.Dataset) -> Sweep:
    values, points, at = (group[name].values for name in ("values", "points", "at"))
    labels = tuple(json.loads(group.attrs["labels"]))
    return Sweep(str(group.attrs["name"]), values, points, at, labels, bool(group.attrs["levels"]))
