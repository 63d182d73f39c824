"""The losses against the sample size, gate by gate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesmoe.report import _study
from bayesmoe.report._grid import grid
from bayesmoe.report._layout import DASHES, Text, estimator_keys, expected_key, hollow_key, key
from bayesmoe.report._panel import DODGE, NO_FIT, Panel
from bayesmoe.report.style import (
    ESTIMATOR_COLOURS,
    ESTIMATOR_LABELS,
    MUTED,
    QUANTITY_LABELS,
    estimate,
    percent,
    rate_math,
)


def contraction(
    study: xr.Dataset, slopes: pd.DataFrame, variable: str = "normalised_loss"
) -> Figure:
    """The loss of MLE and MAP and the posterior's contraction radius against n, log-log.

    A row of panels per fitted number of experts, one column per gate. Where the theory denies the
    loss any rate but promises one modulo the ray, the loss modulo the ray is drawn too, dashed.

    Parameters
    ----------
    study
        The results under one scenario and prior, from `bayesmoe.study.results.settings`.
    slopes
        Measured slopes, from `bayesmoe.study.results.measure_slopes`.
    variable
        ``"loss"``, ``"normalised_loss"`` or one of their versions modulo the ray.

    Returns
    -------
    Figure
        Panels of a row span the same number of decades, so equal slopes look equal.
    """
    slopes = _study.own(slopes, study)

    def draw(panel: Panel, cell: xr.Dataset, marker: str) -> None:
        own = _study.rows(slopes, gate=cell["gate"].item(), n_experts=int(cell["n_experts"]))
        _panel(panel, cell, own, variable, marker)

    return grid(
        study,
        draw,
        lines=len(_study.estimators(study)) + 1,
        keys=_keys(study),
        label=QUANTITY_LABELS[variable],
    )


def _panel(
    panel: Panel, cell: xr.Dataset, slopes: pd.DataFrame, variable: str, marker: str
) -> None:
    plan: list[tuple[str, tuple[float, ...]]] = [(variable, ())]
    if "identified" not in variable and _flat(cell):
        plan.append((variable.replace("loss", "identified_loss"), DASHES))
    for name, dashes in plan:
        drawn = _study.series(cell, name)
        for estimator, series in drawn.items():
            panel.draw(
                series,
                colour=ESTIMATOR_COLOURS[estimator],
                marker=marker,
                dodge=DODGE[estimator],
                label=f"{estimator} {name}",
                dashes=dashes,
            )
        exponent, text = _study.expected(cell, name.removeprefix("normalised_"))
        panel.reference(list(drawn.values()), exponent)
        rate, lines = rate_math(exponent, text), _slope_lines(cell, slopes, name, list(drawn))
        if not dashes:
            panel.stack([(f"expected: {rate}", MUTED), *lines])
        elif drawn:
            panel.note = [(f"modulo the ray: {rate}", MUTED), *lines]


def _slope_lines(
    cell: xr.Dataset, slopes: pd.DataFrame, quantity: str, drawn: Sequence[str]
) -> list[Text]:
    """One line per estimator: its slope with interval, in its colour."""
    lines = []
    for estimator in _study.estimators(cell):
        name = {"posterior": "post."}.get(estimator, ESTIMATOR_LABELS[estimator])
        value = NO_FIT
        if estimator in drawn:
            where = str(cell["gate"].item()), int(cell["n_experts"])
            row = _study.slope(slopes, *where, estimator, quantity)
            value = "no slope" if row is None else estimate(row["slope"], row["low"], row["high"])
        lines.append((f"{name} {value}", ESTIMATOR_COLOURS[estimator]))
    return lines


def _flat(cell: xr.Dataset) -> bool:
    """Whether a ray keeps the loss from any rate."""
    return _study.expected(cell, "loss")[0] == 0 and _study.expected(cell, "identified_loss")[0] < 0


def _keys(study: xr.Dataset) -> list[Line2D]:
    level = percent(float(study.attrs["level"]))
    keys = estimator_keys(_study.estimators(study), f"posterior {level} radius")
    cells = itertools.product(_study.gates(study), _study.fitted(study))
    if any(_flat(study.sel(gate=gate, n_experts=k)) for gate, k in cells):
        keys.append(key("modulo the ray", MUTED, dashes=DASHES))
    return [*keys, expected_key(), hollow_key()]
