"""The data set of a study, whole and as it was written."""

from __future__ import annotations

import numpy as np
import xarray as xr
import zarr

from bayesmoe.study.chunks import digest
from bayesmoe.study.layout import CELL_AXES, RESULTS
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.stored import DamageError, Stored, StoreError

#: Zarr's settings for chunks that are many and small; thrice as fast as its defaults
_MANY_CHUNKS = {"codec_pipeline.batch_size": 256, "async.concurrency": 64}
_SHOWN = 3  # damaged cells named in an error


def load_results(stored: Stored, plan: Plan) -> xr.Dataset:
    """All results of a study, in the plan's order.

    Parameters
    ----------
    stored
        The study's store.
    plan
        The plan; the store may have its values in another order.

    Returns
    -------
    Dimensions ``(scenario, gate, n_experts, n, replicate, prior, estimator, ...)``. Experts and
    covariates that a model lacks are NaN. Cells that are not there have the status "missing", or
    "failed" with the reason in ``failure``, and NaN.

    Raises
    ------
    DamageError
        If cells are not as they were written.
    StoreError
        If the store cannot be read.
    """
    try:
        with (
            zarr.config.set(_MANY_CHUNKS),
            xr.open_zarr(stored.root, chunks=None, consolidated=True) as opened,
        ):
            results = opened.load()
    except (ValueError, OSError) as error:
        raise _explained(stored, error) from None
    results = results.map(_plain, keep_attrs=True).assign_coords(
        {dim: _plain(results[dim]) for dim in results.dims}
    )
    damaged = _altered(stored, results)
    if damaged:
        raise _damage(stored, damaged)
    ordered = stored.layout.of(plan).coordinates
    return _only_whole_cells(results).sel({axis: ordered[axis] for axis in CELL_AXES})


def _plain(values: xr.DataArray) -> xr.DataArray:
    """Strings as NumPy's own, of one width."""
    if values.dtype.kind not in "OT":
        return values
    return values.copy(data=values.to_numpy().astype(object).astype(np.str_))


def _altered(stored: Stored, results: xr.Dataset) -> list[Cell]:
    """The cells whose values do not have their digest."""
    layout, found = stored.layout, []
    arrays = {name: results[name].to_numpy() for name in (*RESULTS, "digest")}
    for index in map(tuple, np.argwhere(arrays["digest"] != 0).tolist()):
        cell = layout.cell(index)
        own = {
            name: np.asarray(arrays[name][index + tuple(map(slice, layout.extent(cell, dims)))])
            for name, (dims, _, _) in RESULTS.items()
        }
        if digest(own) != arrays["digest"][index]:
            found.append(cell)
    return found


def _only_whole_cells(results: xr.Dataset) -> xr.Dataset:
    """What was written of a cell when its process was killed is no result."""
    there = results["digest"] != 0
    kept = {
        name: results[name].where(there, variable.fill).astype(results[name].dtype)
        for name, variable in RESULTS.items()
    }
    absent = np.where(results["failure"] != "", "failed", "missing")
    kept["status"] = results["status"].where(there, xr.DataArray(absent, there.coords, there.dims))
    return results.assign(kept)


def _explained(stored: Stored, error: Exception) -> StoreError:
    """Which cells keep the data set from being read."""
    damaged = stored.damaged()
    if damaged:
        return _damage(stored, damaged)
    return StoreError(
        f"{stored.root} cannot be read ({error}); run the study again with --repair to mend it"
    )


def _damage(stored: Stored, damaged: list[Cell]) -> DamageError:
    names = "; ".join(map(str, sorted(damaged)[:_SHOWN]))
    more = f" and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
    return DamageError(
        f"{stored.root} has damaged cells: {names}{more}; run the study again with --repair to "
        "compute them anew"
    )
