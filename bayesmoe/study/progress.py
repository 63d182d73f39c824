"""How far a study is, and how long the rest will take."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from bayesmoe.study.cell import compute_cell
from bayesmoe.study.plan import WITHOUT_PRIOR, Cell, Plan
from bayesmoe.study.sampling import NUTS
from bayesmoe.study.scenario import scenario
from bayesmoe.study.stored import Stored

_SAMPLE = 10  # stored cells of each model whose times are read

Model = tuple[str, str, int]


class Estimate(NamedTuple):
    """Core time in seconds, and in words what it was calibrated on."""

    seconds: float
    basis: str


def count_cells(stored: Stored) -> pd.DataFrame:
    """Cells of each model: scenario, gate, n_experts, there, missing, failed.

    Cells that failed will be tried again, but are not counted as missing.
    """
    finished, failed = stored.finished(), stored.failed()
    there, broken = (Counter(cell[:3] for cell in cells) for cells in (finished, failed))
    each = math.prod(stored.layout.sizes(("n", "replicate")))
    rows = [
        (*model, there[model], each - there[model] - broken[model], broken[model])
        for model in stored.layout.models()
    ]
    names = ["scenario", "gate", "n_experts", "there", "missing", "failed"]
    return pd.DataFrame(rows, columns=names)


def draw_bytes(plan: Plan, missing: Collection[Cell]) -> int:
    """What the draws to be kept of the cells ``missing`` take on disk, before compression."""
    widths = {name: scenario(name).measure.n_covariates for name in plan.scenarios}
    # a log-likelihood and a temperature; slopes of gate and line, two intercepts and a variance
    values = sum(2 + cell.n_experts * (2 * widths[cell.scenario] + 3) for cell in missing)
    return 8 * len(plan.priors) * plan.chains * plan.kept_draws * values


def estimate_core_time(
    plan: Plan, missing: Collection[Cell], stored: Stored | None = None
) -> Estimate:
    """The time that one core needs for the cells ``missing``.

    It is in proportion to `Cell.cost`; the factor of each model comes from stored cells, or, if
    there are none, from the smallest cell of each model, which is computed for it.
    """
    if not missing:
        return Estimate(0.0, "nothing is missing")
    finished = stored.finished() if stored else set()
    if stored and finished:
        read = ((cell, stored.read(cell)["seconds"]) for cell in _sample(finished))
        pairs = [(cell, _seconds(plan, seconds)) for cell, seconds in read]
        basis = f"times of {len(pairs)} stored cells, the first of which had to compile"
    else:
        smallest = {cell[:3]: cell for cell in sorted(missing, key=_largest_first)}
        pairs = [(cell, _time(plan, cell)) for cell in smallest.values()]
        basis = f"one small cell of each model, {len(pairs)} in all, computed now; compiled before"
        if plan.sampler != NUTS:
            basis += "; cells take longer where NUTS has to draw, which these need not show"
    return Estimate(_extrapolate(pairs, missing), basis)


def _largest_first(cell: Cell) -> tuple[int, int]:
    return -cell.n, -cell.replicate


def _sample(finished: Iterable[Cell]) -> list[Cell]:
    """A few cells of each model, evenly spread."""
    groups: dict[Model, list[Cell]] = {}
    for cell in sorted(finished):
        groups.setdefault(cell[:3], []).append(cell)
    return [
        group[i]
        for group in groups.values()
        for i in np.unique(np.linspace(0, len(group) - 1, _SAMPLE).astype(int))
    ]


def _seconds(plan: Plan, seconds: np.ndarray) -> float:
    """The time of a cell; what no prior enters was computed once for all."""
    once = np.isin(plan.estimators, WITHOUT_PRIOR)
    return float(np.sum(seconds[:, ~once]) + np.sum(seconds[0, once]))


def _time(plan: Plan, cell: Cell) -> float:
    compute_cell(plan, cell)  # compiles
    begin = time.perf_counter()
    compute_cell(plan, cell)
    return time.perf_counter() - begin


def _extrapolate(pairs: Iterable[tuple[Cell, float]], cells: Iterable[Cell]) -> float:
    rates: dict[Model, list[float]] = {}
    for cell, seconds in pairs:
        rates.setdefault(cell[:3], []).append(seconds / cell.cost)
    factor = {model: float(np.median(values)) for model, values in rates.items()}
    usual = float(np.median(list(factor.values())))
    return sum(cell.cost * factor.get(cell[:3], usual) for cell in cells)
