"""Panels of a study: a row for each fitted number of experts, a column for each gate."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesmoe.report import _study
from bayesmoe.report._layout import LINE, axes_at, legend, new_figure, surplus_height, text_at
from bayesmoe.report._panel import Panel, finish_row
from bayesmoe.report.style import gate_markers, plain, size_axis, style

_WIDTH, _HEIGHT, _GAP, _LEFT = 2.02, 2.0, 0.5, 0.72  # inches
_COLUMNS = 4  # panels in a row: more would be too small to read on a page

Draw = Callable[[Panel, xr.Dataset, str], None]
"""Draws one gate and k: its panel, its results, and the marker of its gate."""


def grid(
    study: xr.Dataset, draw: Draw, *, lines: int, keys: Sequence[Line2D], label: str
) -> Figure:
    """A figure of log-log panels against n; those of a row span equally many decades.

    Parameters
    ----------
    study
        The results under one scenario and prior.
    draw
        Fills a panel.
    lines
        Lines of text above each panel, its title apart.
    keys
        Of the legend.
    label
        What the vertical axes show.
    """
    groups = _study.chunks(_study.gates(study), _COLUMNS)
    rows = list(itertools.product(_study.fitted(study), groups))
    head = (lines + 0.7) * LINE + 0.43
    pitch = head + _HEIGHT + 0.28
    with style():
        right = _LEFT + max(map(len, groups)) * (_WIDTH + _GAP) - _GAP
        width = max(5.0, right + 0.1)
        ncols = len(keys) if width > 8.5 else 3
        foot = 0.6 + surplus_height(keys, ncols, 2)
        figure = new_figure(width, len(rows) * pitch + foot + 0.14)
        for row, (k, gates) in enumerate(rows):
            title = _study.setting_of(study.sel(gate=gates[0], n_experts=k))
            text_at(figure, 0.08, row * pitch + 0.16, title, weight="bold", size=9.5)
            cells = [study.sel(gate=gate, n_experts=k) for gate in gates]
            panels = _row(figure, row * pitch + head, study, cells, draw, lines)
            panels[0].ax.set_ylabel(label)
        legend(figure, keys, ncols)
        middle, bottom = (_LEFT + right) / 2, figure.get_figheight() - foot
        text_at(figure, middle, bottom, "sample size n", ha="center", va="center", size=9)
    return figure


def _row(
    figure: Figure,
    top: float,
    study: xr.Dataset,
    cells: Sequence[xr.Dataset],
    draw: Draw,
    lines: int,
) -> list[Panel]:
    """Panels side by side, ``top`` inches from the figure's top."""
    markers, panels = gate_markers(_study.gates(study)), []
    for column, cell in enumerate(cells):
        ax = axes_at(figure, _LEFT + column * (_WIDTH + _GAP), top, _WIDTH, _HEIGHT)
        ax.set_title(plain(cell["gate_label"].item()), loc="left", pad=8 + lines * LINE * 72)
        size_axis(ax, study["n"].to_numpy(), _WIDTH)
        panels.append(Panel(ax, _WIDTH, _HEIGHT))
        draw(panels[-1], cell, markers[str(cell["gate"].item())])
    finish_row(panels)
    return panels
