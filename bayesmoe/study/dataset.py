"""The data set of a study, whole and as it was written."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr

from bayesmoe.study.chunks import decode
from bayesmoe.study.layout import CELL_AXES, RECORDS
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.stored import DamageError, Stored, StoreError
from bayesmoe.study.theory import theory

_SHOWN = 3  # damaged cells named in an error


def load_results(stored: Stored, plan: Plan) -> xr.Dataset:
    """All results of a study, in the plan's order.

    Cells are read and compared with their digests one by one: chunks are many and small, for which
    Zarr's own reader takes several times as long.

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
        with xr.open_zarr(stored.root, chunks=None, consolidated=True) as opened:
            cells = {name: opened[name].copy(data=values) for name, values in _read(stored).items()}
            known = opened.drop_vars(list(cells)).load()
        _check_leftovers(stored)
    except DamageError:
        raise
    except (ValueError, OSError) as error:
        raise _explained(stored, error) from None
    # theory may have been mended since the store was begun
    known = known.assign(theory(stored.plan, stored.layout))
    results = known.assign(cells)[list(opened.data_vars)].map(_plain, keep_attrs=True)
    results = results.assign_coords({dim: _plain(results[dim]) for dim in results.dims})
    ordered = stored.layout.of(plan).coordinates
    return results.sel({axis: ordered[axis] for axis in CELL_AXES})


def _read(stored: Stored) -> dict[str, np.ndarray]:
    """The variables of all cells; what was written of an unfinished cell is no result."""
    layout = stored.layout
    whole = {
        name: np.full(
            layout.sizes((*CELL_AXES, *dims)), fill, object if dtype == "string" else dtype
        )
        for name, (dims, dtype, fill) in (layout.results | RECORDS).items()
    }
    damaged = []
    for cell in stored.finished():
        try:
            arrays = stored.read(cell)
        except DamageError:
            damaged.append(cell)
            continue
        place = layout.index(cell)
        for name, values in arrays.items():
            whole[name][place + tuple(slice(0, length) for length in values.shape)] = values
        whole["digest"][place] = stored.digest(cell)
    for cell in stored.failed():
        place = layout.index(cell)
        try:
            whole["failure"][place] = stored.failure(cell)
        except DamageError:
            damaged.append(cell)
        whole["status"][place] = "failed"
    if damaged:
        raise _damage(stored, damaged)
    return whole


def _check_leftovers(stored: Stored) -> None:
    """ValueError if others could not open the store for what is left of unfinished cells."""
    for path in stored.leftovers():
        variable = stored.layout.results[path.parent.name]
        decode(
            path.read_bytes(),
            variable.dtype,
            stored.layout.chunk(variable.dims),
            variable.compressed,
        )


def _plain(values: xr.DataArray) -> xr.DataArray:
    """Strings as NumPy's own, of one width."""
    if values.dtype.kind not in "OT":
        return values
    return values.copy(data=values.to_numpy().astype(object).astype(np.str_))


def _explained(stored: Stored, error: Exception) -> StoreError:
    """Which cells keep the data set from being read."""
    damaged = stored.damaged()
    if damaged:
        return _damage(stored, damaged)
    return StoreError(
        f"{stored.root} cannot be read ({error}); run the study again with --repair to mend it"
    )


def _damage(stored: Stored, damaged: Iterable[Cell]) -> DamageError:
    cells = sorted(damaged)
    names = "; ".join(map(str, cells[:_SHOWN]))
    more = f" and {len(cells) - _SHOWN} more" if len(cells) > _SHOWN else ""
    return DamageError(
        f"{stored.root} has damaged cells: {names}{more}; run the study again with --repair to "
        "compute them anew"
    )
