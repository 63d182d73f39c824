"""What a finished study leaves in its directory beside the cells."""

from __future__ import annotations

import datetime
from typing import NamedTuple

import pandas as pd
import xarray as xr

from bayesmoe.study.plan import Plan
from bayesmoe.study.results import assemble, count_statuses, measure_slopes
from bayesmoe.study.store import Store, write_bytes


class Outputs(NamedTuple):
    """The dataset, the measured slopes and the counts of statuses."""

    results: xr.Dataset
    slopes: pd.DataFrame
    counts: pd.DataFrame


def write_outputs(plan: Plan, store: Store) -> Outputs:
    """Assemble all cells and write ``results.nc``, ``slopes.csv`` and ``statuses.csv``."""
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    results = assemble(plan, store.read, created)
    slopes, counts = measure_slopes(plan, results), count_statuses(results)
    netcdf = bytes(results.to_netcdf(engine="h5netcdf"))
    files = {
        "results.nc": netcdf,
        "slopes.csv": slopes.to_csv(index=False).encode(),
        "statuses.csv": counts.to_csv(index=False).encode(),
    }
    for name, content in files.items():
        write_bytes(store.directory / name, content)
    return Outputs(results, slopes, counts)
