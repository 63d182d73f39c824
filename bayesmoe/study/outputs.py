"""What a finished study leaves in its directory beside its store."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import xarray as xr

from bayesmoe.study.dataset import load_results
from bayesmoe.study.early_em import measure_gaps
from bayesmoe.study.files import write_bytes
from bayesmoe.study.plan import Plan
from bayesmoe.study.results import (
    count_statuses,
    measure_local_slopes,
    measure_samplers,
    measure_slopes,
)
from bayesmoe.study.stored import Stored


class Outputs(NamedTuple):
    """The dataset, the measured slopes and the counts of statuses."""

    results: xr.Dataset
    slopes: pd.DataFrame
    counts: pd.DataFrame


def write_outputs(plan: Plan, stored: Stored) -> Outputs:
    """Read all cells and write ``slopes.csv``, ``local_slopes.csv`` and ``statuses.csv``.

    A study with the estimator "em" has ``em_gaps.csv`` too, see `measure_gaps`; one whose
    posteriors need not come from NUTS has ``samplers.csv``, see `measure_samplers`.
    """
    results = load_results(stored, plan)
    slopes, counts = measure_slopes(plan, results), count_statuses(results)
    tables = {
        "slopes.csv": slopes,
        "local_slopes.csv": measure_local_slopes(plan, results),
        "statuses.csv": counts,
    }
    gaps = measure_gaps(results)
    if not gaps.empty:
        tables["em_gaps.csv"] = gaps
    samplers = measure_samplers(results)
    if not samplers.empty:
        tables["samplers.csv"] = samplers
    for name, table in tables.items():
        write_bytes(stored.directory / name, table.to_csv(index=False).encode())
    return Outputs(results, slopes, counts)
