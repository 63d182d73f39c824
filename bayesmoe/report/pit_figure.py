"""The figure of calibration: where each observation lies in what the others predict of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.diagnostics.left_out import Group, groups_by, left_out
from bayesmoe.report._layout import axes_at, key, legend, new_figure, text_at
from bayesmoe.report.style import (
    ESTIMATOR_COLOURS,
    INK,
    MUTED,
    REFERENCE_COLOUR,
    plain,
    short,
    style,
)

_LEFT, _HEIGHT, _GAP, _TOP, _BOTTOM = 0.62, 1.75, 0.56, 0.46, 0.3  # inches
_WIDTHS = {1: 4.6, 2: 2.7, 3: 2.2}  # of a panel, by their number in a row
_MANY = 2000  # observations from which on points are drawn as an image
_QUARTILES = (0.25, 0.5, 0.75)
_POINTS = ESTIMATOR_COLOURS["posterior"]


def pit_figure(analysis: Analysis) -> Figure:
    """P(Y <= y_j|x_j, all other rows) of each row j, against each covariate.

    If the model is right the points fill the square evenly, in every vertical strip. Black lines
    are the quartiles of the points in groups of neighbouring rows; grey ones are where they belong.

    Where covariates are derived from columns, there is one panel, of the first of these columns.

    Parameters
    ----------
    analysis
        From `analyse`.
    """
    panels = _panels(analysis)
    pit = left_out(analysis.model.gate, analysis.posterior).pit
    columns = min(max(_WIDTHS), len(panels))
    width, rows = _WIDTHS[columns], -(-len(panels) // columns)
    with style():
        height = _TOP + rows * (_HEIGHT + _GAP) + _BOTTOM
        figure = new_figure(columns * (_LEFT + width) + 0.15, height)
        for i, (name, values) in enumerate(panels):
            row, column = divmod(i, columns)
            left = column * (_LEFT + width) + _LEFT
            ax = axes_at(figure, left, _TOP + row * (_HEIGHT + _GAP), width, _HEIGHT)
            _draw(ax, values, pit)
            ax.set_xlabel(short(name, 32))
            if column == 0:
                ax.set_ylabel("P(Y ≤ y | x)")
        label = plain(analysis.model.gate.label)
        title = f"{label}: each observation among what the others predict"
        text_at(figure, 0.12, 0.24, title, color=INK, weight="bold", size=8.5)
        legend(figure, _keys(), 2)
    return figure


def _panels(analysis: Analysis) -> list[tuple[str, np.ndarray]]:
    """What rows are set against: names and values ``(n,)``."""
    if analysis.axis is not None:
        return [(analysis.axis.name, analysis.axis.values)]
    return [(str(name), values.to_numpy()) for name, values in analysis.table.x.items()]


def _draw(ax: Axes, values: np.ndarray, pit: np.ndarray) -> None:
    many = len(pit) > _MANY
    size, alpha = (1.5, 0.35) if many else (2.6, 0.6)
    look: dict[str, Any] = {
        "ms": size,
        "mew": 0,
        "color": _POINTS,
        "alpha": alpha,
        "rasterized": many,
    }
    ax.plot(values, pit, "o", zorder=2, **look)
    for level in _QUARTILES:
        ax.axhline(level, color=REFERENCE_COLOUR, lw=1.0, zorder=1)
    for group in groups_by(values, pit):
        _draw_quartiles(ax, group, np.quantile(pit[group.rows], _QUARTILES))
    ax.set_ylim(-0.02, 1.02)
    ax.set_yticks([0, *_QUARTILES, 1], ["0", "¼", "½", "¾", "1"])


def _draw_quartiles(ax: Axes, group: Group, levels: np.ndarray) -> None:
    for level, width in zip(levels, (0.9, 2.0, 0.9), strict=True):
        ax.plot([group.low, group.high], [level, level], color=INK, lw=width, zorder=3)


def _keys() -> list[Line2D]:
    return [
        key("quartiles of neighbouring rows", INK),
        key("where they belong", MUTED, alpha=0.4),
    ]
