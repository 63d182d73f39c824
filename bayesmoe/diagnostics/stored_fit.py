"""A fit of one's own data in a directory: written with all that it takes to open it again.

``posterior.nc`` has the draws and the data, ``fits.nc`` what was asked for, every start of MLE and
MAP bit for bit, and the checks. Both are netCDF; nothing in them is executed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from xarray import DataTree

from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.data.table import Axis, Table
from bayesmoe.diagnostics.alignment import align
from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.diagnostics.posterior import DIMS
from bayesmoe.diagnostics.requests import FitRequest, as_stored, from_stored
from bayesmoe.diagnostics.verdict import Check, Checks, Verdict
from bayesmoe.inference.outcome import Starts, Status
from bayesmoe.inference.point import Fit

FITS, POSTERIOR = "fits.nc", "posterior.nc"
FORMAT = "bayesmoe fit 1"

ENGINE: Final = "h5netcdf"
_PER_START = ("objective", "gradient_norm", "least_curvature", "n_iterations")
_OF_BEST = ("log_likelihood", "log_density", "gradient_norm", "least_curvature")


class StoredFit(NamedTuple):
    """What was asked for, and what came of it."""

    request: FitRequest
    analysis: Analysis


class StoredFitError(ValueError):
    """A directory that cannot give a fit."""


def data_digest(table: Table) -> str:
    """SHA-256 of the columns used: their names and their values as float64."""
    found = hashlib.sha256()
    for name, values in [*table.x.items(), (table.y.name, table.y)]:
        found.update(repr(str(name)).encode())
        found.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
    return found.hexdigest()


def save_fit(directory: Path, request: FitRequest, analysis: Analysis) -> None:
    """Write ``posterior.nc`` and ``fits.nc`` into a directory that exists."""
    write_tree(directory / POSTERIOR, analysis.posterior)
    checks = analysis.checks.to_frame().to_xarray()
    groups = {"mle": fit_dataset(analysis.mle), "map": fit_dataset(analysis.map), "checks": checks}
    if analysis.axis is not None:
        groups["axis"] = _axis_dataset(analysis.axis)
    tree = DataTree.from_dict(groups)
    tree.attrs = {
        "format": FORMAT,
        "request": json.dumps(as_stored(request)),
        "data_digest": data_digest(analysis.table),
    }
    write_tree(directory / FITS, tree)


def write_tree(path: Path, tree: DataTree) -> None:
    """Write a netCDF file, by way of memory: HDF5 ends the process where a disk is full."""
    path.write_bytes(tree.to_netcdf(engine=ENGINE))


def load_fit(directory: str | Path) -> StoredFit:
    """Open again what ``bayesmoe fit`` wrote.

    Parameters
    ----------
    directory
        The ``--out`` of the fit.

    Returns
    -------
    The request, and the analysis with ``posterior`` (an ArviZ DataTree), ``mle`` and ``map`` (as
    `bayesmoe.fit_mle` and `bayesmoe.fit_map` return them, all starts included), ``model``,
    ``table`` and ``checks``. Numbers are those written, bit for bit.

    Raises
    ------
    StoredFitError
        If there is no fit, a file cannot be read, or the two files are not of one fit.
    """
    directory = Path(directory)
    fits, posterior = (open_tree(directory / name, "fit") for name in (FITS, POSTERIOR))
    if fits.attrs.get("format") != FORMAT:
        raise StoredFitError(
            f"{directory / FITS} was not written by this version of bayesmoe; fit again"
        )
    try:
        return _assemble(fits, posterior)
    except StoredFitError as error:
        raise StoredFitError(f"{directory}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise StoredFitError(f"{directory} holds a damaged fit ({error!r}); fit again") from None


def open_tree(path: Path, kind: str) -> DataTree:
    """All of a netCDF file, read into memory, of a ``"fit"`` or a ``"comparison"``.

    Raises
    ------
    StoredFitError
        If there is none, or it cannot be read.
    """
    if not path.is_file():
        raise StoredFitError(f"{path.parent} is not a {kind}: it has no {path.name}")
    try:
        with xr.open_datatree(path, engine=ENGINE) as opened:
            # DataTree.load passes over variables that have the name of a group, as log_likelihood
            for variable in (one for node in opened.subtree for one in node.variables.values()):
                variable.load()
            return opened
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        again = "fit again" if kind == "fit" else "compare again"
        raise StoredFitError(f"{path} cannot be read ({reason}); {again}") from None


def _assemble(fits: DataTree, posterior: DataTree) -> StoredFit:
    request: FitRequest = from_stored(FitRequest, json.loads(fits.attrs["request"]))
    table = stored_table(posterior, request.response)
    model = request.model([str(name) for name in table.x.columns])
    if data_digest(table) != fits.attrs["data_digest"]:
        raise StoredFitError(f"{FITS} and {POSTERIOR} are not of the same data; fit again")
    mle, map_ = (stored_fit(fits[name].to_dataset()) for name in ("mle", "map"))
    named = align(mle.measure, model.gate, map_.measure, table.x.to_numpy())
    checks = stored_checks(fits["checks"].to_dataset())
    axis = _axis(fits["axis"].to_dataset()) if "axis" in fits.children else None
    return StoredFit(request, Analysis(model, table, mle, map_, named, posterior, checks, axis))


def stored_table(posterior: DataTree, response: str) -> Table:
    """The data of a posterior."""
    x = posterior["constant_data"].to_dataset()["x"]
    y = posterior["observed_data"].to_dataset()["y"]
    names = [str(name) for name in x["covariate"].values]
    return Table(pd.DataFrame(x.values, columns=names), pd.Series(y.values, name=response))


def _axis_dataset(axis: Axis) -> xr.Dataset:
    variables = {
        "values": ("obs", axis.values),
        "points": ("point", axis.points),
        "at": (("point", "covariate"), axis.at),
    }
    return xr.Dataset(variables, attrs={"name": axis.name, "held": json.dumps(axis.held)})


def _axis(dataset: xr.Dataset) -> Axis:
    values, points, at = (dataset[name].values for name in ("values", "points", "at"))
    return Axis(str(dataset.attrs["name"]), values, points, at, json.loads(dataset.attrs["held"]))


def fit_dataset(fit: Fit) -> xr.Dataset:
    """All starts of a fit, and what it says of the best."""
    starts = fit.starts
    variables: dict[str, Any] = {name: ("start", getattr(starts, name)) for name in _PER_START}
    variables["status"] = ("start", [status.name.lower() for status in starts.status])
    measures = {
        **dict.fromkeys(FIELDS, starts.measures),
        **{f"best_{f}": fit.measure for f in FIELDS},
    }
    for name, measure in measures.items():
        field = name.removeprefix("best_")
        lead = [] if name.startswith("best_") else ["start"]
        variables[name] = ((*lead, *DIMS.get(field, [])), np.asarray(getattr(measure, field)))
    best = {name: float(getattr(fit, name)) for name in _OF_BEST}
    return xr.Dataset(variables, attrs={**best, "status": fit.status.name.lower()})


def stored_fit(dataset: xr.Dataset) -> Fit:
    """The inverse of `fit_dataset`."""
    starts = Starts(
        status=tuple(Status[str(name).upper()] for name in dataset["status"].values),
        measures=_measure(dataset, ""),
        **{name: dataset[name].values for name in _PER_START},
    )
    best = {name: float(dataset.attrs[name]) for name in _OF_BEST}
    status = Status[dataset.attrs["status"].upper()]
    return Fit(measure=_measure(dataset, "best_"), status=status, starts=starts, **best)


def _measure(dataset: xr.Dataset, prefix: str) -> MixingMeasure:
    return MixingMeasure(*(dataset[prefix + field].values for field in FIELDS))


def stored_checks(dataset: xr.Dataset) -> Checks:
    """The inverse of ``checks.to_frame().to_xarray()``."""
    names, verdicts, values, texts = (
        dataset[name].values for name in ("check", "verdict", "value", "text")
    )
    return Checks(
        tuple(
            Check(
                str(name), Verdict[str(verdict).upper().replace(" ", "_")], float(value), str(text)
            )
            for name, verdict, value, text in zip(names, verdicts, values, texts, strict=True)
        )
    )
