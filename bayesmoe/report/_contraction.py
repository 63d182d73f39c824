"""The losses against the sample size, gate by gate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesmoe.report import _study
from bayesmoe.report._layout import (
    DASHES,
    LINE,
    Text,
    axes_at,
    estimator_keys,
    expected_key,
    hollow_key,
    key,
    legend,
    new_figure,
    surplus_height,
    text_at,
)
from bayesmoe.report._panel import DODGE, NO_FIT, Panel, finish_row
from bayesmoe.report.style import (
    ESTIMATOR_COLOURS,
    ESTIMATOR_LABELS,
    MUTED,
    QUANTITY_LABELS,
    estimate,
    gate_markers,
    percent,
    plain,
    rate_math,
    size_axis,
    style,
)

_WIDTH, _HEIGHT, _GAP, _LEFT = 2.02, 2.0, 0.5, 0.72  # inches
_COLUMNS = 4  # panels in a row: more would be too small to read on a page


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
    slopes, groups = _study.own(slopes, study), _study.chunks(_study.gates(study), _COLUMNS)
    rows = list(itertools.product(_study.fitted(study), groups))
    columns, lines = max(map(len, groups)), len(_study.estimators(study)) + 1
    head = (lines + 0.7) * LINE + 0.43
    pitch = head + _HEIGHT + 0.28
    with style():
        right = _LEFT + columns * (_WIDTH + _GAP) - _GAP
        width, keys = max(5.0, right + 0.1), _keys(study)
        ncols = len(keys) if width > 8.5 else 3
        foot = 0.6 + surplus_height(keys, ncols, 2)
        figure = new_figure(width, len(rows) * pitch + foot + 0.14)
        for row, (k, gates) in enumerate(rows):
            title = _study.setting_of(study.sel(gate=gates[0], n_experts=k))
            text_at(figure, 0.08, row * pitch + 0.16, title, weight="bold", size=9.5)
            _row(figure, row * pitch + head, study, slopes, gates, k, variable)
        legend(figure, keys, ncols)
        middle, bottom = (_LEFT + right) / 2, figure.get_figheight() - foot
        text_at(figure, middle, bottom, "sample size n", ha="center", va="center", size=9)
    return figure


def _row(
    figure: Figure,
    top: float,
    study: xr.Dataset,
    slopes: pd.DataFrame,
    gates: Sequence[str],
    k: int,
    variable: str,
) -> None:
    """The panels of some gates, ``top`` inches from the figure's top."""
    markers, lines = gate_markers(_study.gates(study)), len(_study.estimators(study)) + 1
    panels = []
    for column, gate in enumerate(gates):
        ax = axes_at(figure, _LEFT + column * (_WIDTH + _GAP), top, _WIDTH, _HEIGHT)
        title = plain(study["gate_label"].sel(gate=gate).item())
        ax.set_title(title, loc="left", pad=8 + lines * LINE * 72)
        size_axis(ax, study["n"].to_numpy(), _WIDTH)
        panels.append(Panel(ax, _WIDTH, _HEIGHT))
        own = _study.rows(slopes, gate=gate, n_experts=k)
        _panel(panels[-1], study.sel(gate=gate, n_experts=k), own, variable, markers[gate])
    finish_row(panels)
    panels[0].ax.set_ylabel(QUANTITY_LABELS[variable])


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
