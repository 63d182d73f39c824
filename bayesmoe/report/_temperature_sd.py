"""The posterior standard deviation of the temperature against the sample size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from bayesmoe.report import _study
from bayesmoe.report._layout import (
    LINE,
    Text,
    axes_at,
    beside,
    expected_key,
    hollow_key,
    key,
    legend,
    new_figure,
)
from bayesmoe.report._panel import Panel, finish_row
from bayesmoe.report.style import (
    INK,
    MARKER_TEXTS,
    MUTED,
    SPREAD_COLOUR,
    estimate,
    gate_markers,
    plain,
    rate_math,
    size_axis,
    style,
)

_WIDTH, _MARGIN, _LEFT = 2.45, 1.66, 0.72  # inches
_LABEL = 3 * LINE + 0.08  # height of the label of a line

Label = tuple[float, list[Text]]
"""The height of a line's right end in log10 units, and what is written beside it."""


def temperature_sd(study: xr.Dataset, slopes: pd.DataFrame) -> Figure:
    """The posterior standard deviation of τ against n: does the temperature contract?

    One panel per fitted number of experts; every gate that has a temperature is named beside its
    line with its slope, interval and expected rate, which the grey line has.

    Parameters
    ----------
    study, slopes
        As for `contraction`.
    """
    slopes = _study.own(slopes, study)
    gates, fitted = _study.temperature_gates(study), _study.fitted(study)
    markers = gate_markers(_study.gates(study))
    height = max(2.6, len(gates) * _LABEL)
    with style():
        columns = 1 if len(fitted) == 1 else 3  # of the legend
        width = _LEFT + len(fitted) * (_WIDTH + _MARGIN) + 0.02
        figure = new_figure(width, height + (1.2 if columns == 3 else 1.55))
        panels, labels = [], []
        for column, k in enumerate(fitted):
            ax = axes_at(figure, _LEFT + column * (_WIDTH + _MARGIN), 0.36, _WIDTH, height)
            title = _study.setting_of(study.isel(gate=0).sel(n_experts=k))
            ax.set_title(title, loc="left", weight="bold", pad=6)
            size_axis(ax, study["n"].to_numpy(), _WIDTH)
            ax.set_xlabel("sample size n")
            panels.append(Panel(ax, _WIDTH, height))
            cells = [study.sel(gate=gate, n_experts=k) for gate in gates]
            drawn = [_line(panels[-1], cell, slopes, markers) for cell in cells]
            labels.append([label for label in drawn if label is not None])
        panels[0].ax.set_ylabel("posterior sd of τ")
        _finish(panels, labels)
        median = key("median over replicates, bars: quartiles", SPREAD_COLOUR, marker="o")
        legend(figure, [median, expected_key(), hollow_key()], columns)
    return figure


def _line(
    panel: Panel, cell: xr.Dataset, slopes: pd.DataFrame, markers: dict[str, str]
) -> Label | None:
    """Draw a gate's line and make its label."""
    series, gate = _study.spread(cell), str(cell["gate"].item())
    if series is None:
        return None
    panel.draw(series, colour=SPREAD_COLOUR, marker=markers[gate], dodge=0.0, label=gate)
    exponent, text = _study.expected(cell, "temperature")
    panel.reference([series], exponent)
    row = _study.slope(slopes, gate, int(cell["n_experts"]), "posterior", "temperature_sd")
    value = "no slope" if row is None else estimate(row["slope"], row["low"], row["high"])
    last = float(np.log10(series.median[series.drawable][-1]))
    name = f"{MARKER_TEXTS[markers[gate]]} {plain(cell['gate_label'].item())}"
    rate = rate_math(exponent, text)
    return last, [(name, INK), (value, SPREAD_COLOUR), (f"expected: {rate}", MUTED)]


def _finish(panels: Sequence[Panel], labels: Sequence[Sequence[Label]]) -> None:
    """One scale for all panels, and the labels beside their lines."""
    ink = [points for panel in panels for points in panel.ink]
    for panel, lines in zip(panels, labels, strict=True):
        panel.ink = ink if panel.ink else []
        finish_row([panel])
        low, high = np.log10(panel.ax.get_ylim())
        beside(panel.ax, panel.height, [((y - low) / (high - low), text) for y, text in lines])
