"""Slopes of the losses between neighbouring sample sizes: do they settle, and where?"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesmoe.report import _study
from bayesmoe.report._layout import (
    axes_at,
    estimator_keys,
    expected_key,
    legend,
    new_figure,
    surplus_height,
    text_at,
)
from bayesmoe.report._panel import DODGE, NO_FIT
from bayesmoe.report.style import (
    ESTIMATOR_COLOURS,
    MUTED,
    REFERENCE_COLOUR,
    gate_markers,
    percent,
    plain,
    size_axis,
    style,
)

_WIDTH, _HEIGHT, _GAP, _LEFT, _HEAD = 2.02, 1.5, 0.22, 0.72, 0.72  # inches
_COLUMNS = 4  # panels in a row
_WIDE = 6.0  # inches, from which on all estimators stand in one row of the legend
_LOWEST, _HIGHEST = -1.6, 0.9  # of the axis: wider intervals run out of the panel
_STEP = 0.03  # sideways between estimators, in log10 units per decade of the axis


def local_slopes(
    study: xr.Dataset, table: pd.DataFrame, variable: str = "normalised_loss"
) -> Figure:
    """Local slopes of MLE, MAP and contraction radius with their 95 % intervals.

    A row of panels per fitted number of experts, one column per gate; points are at the geometric
    means of neighbouring sample sizes, grey lines at the expected exponent.

    Parameters
    ----------
    study
        The results under one scenario and prior, from `bayesmoe.study.results.settings`.
    table
        From `bayesmoe.study.results.measure_local_slopes`.
    variable
        A loss.
    """
    table = _study.rows(_study.own(table, study), quantity=variable)
    groups = _study.chunks(_study.gates(study), _COLUMNS)
    rows, markers = (
        list(itertools.product(_study.fitted(study), groups)),
        gate_markers(_study.gates(study)),
    )
    columns, pitch = max(map(len, groups)), _HEAD + _HEIGHT
    with style():
        width = max(5.0, _LEFT + columns * (_WIDTH + _GAP))
        level = percent(float(study.attrs["level"]))
        names = _study.estimators(study)
        keys = [*estimator_keys(names, f"posterior {level} radius"), expected_key()]
        ncols = len(keys) if len(names) < 4 or width > _WIDE else 3
        figure = new_figure(width, len(rows) * pitch + 0.95 + surplus_height(keys, ncols, 2))
        for row, (k, gates) in enumerate(rows):
            title = _study.setting_of(study.sel(gate=gates[0], n_experts=k))
            text_at(figure, 0.08, row * pitch + 0.16, title, weight="bold", size=9.5)
            for column, gate in enumerate(gates):
                left = _LEFT + column * (_WIDTH + _GAP)
                ax = axes_at(figure, left, row * pitch + _HEAD - 0.2, _WIDTH, _HEIGHT)
                cell = study.sel(gate=gate, n_experts=k)
                own = _study.rows(table, gate=gate, n_experts=k)
                _panel(ax, cell, own, variable, markers[gate])
                _finish(ax, cell, first=column == 0, last=row == len(rows) - 1)
        legend(figure, keys, ncols)
    return figure


def _panel(ax: Axes, cell: xr.Dataset, table: pd.DataFrame, variable: str, marker: str) -> None:
    exponent, _ = _study.expected(cell, variable.removeprefix("normalised_"))
    ax.axhline(0, color=MUTED, lw=0.6, zorder=1)
    if np.isfinite(exponent):
        ax.axhline(exponent, color=REFERENCE_COLOUR, lw=4, zorder=0, label="_expected")
    span = float(np.ptp(np.log10(cell["n"].to_numpy())))
    for estimator in _study.estimators(cell):
        own = _study.rows(table, estimator=estimator)
        own = own[np.isfinite(own["slope"])]
        x = own["n"].to_numpy() * 10 ** (DODGE[estimator] * _STEP * span / 2)
        colour = ESTIMATOR_COLOURS[estimator]
        ax.plot(x, own["slope"], marker, color=colour, ls="-", lw=0.8, label=estimator, zorder=3)
        ax.vlines(x, own["low"], own["high"], color=colour, lw=1.1, zorder=2)
    if not np.isfinite(table["slope"]).any():
        ax.text(0.5, 0.5, NO_FIT, transform=ax.transAxes, ha="center", color=MUTED)


def _finish(ax: Axes, cell: xr.Dataset, *, first: bool, last: bool) -> None:
    ax.set_title(plain(cell["gate_label"].item()), loc="left", pad=6)
    size_axis(ax, cell["n"].to_numpy(), _WIDTH, labels=last)
    ax.set_ylim(_LOWEST, _HIGHEST)
    ax.set_yticks([-1.5, -1.0, -0.5, 0.0, 0.5])
    if first:
        ax.set_ylabel("local slope")
    else:
        ax.tick_params(labelleft=False)
    if last:
        ax.set_xlabel("sample size n")
