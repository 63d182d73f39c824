"""The figure of calibration: where each observation lies in what the others predict of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.diagnostics.left_out import LeftOut
from bayesmoe.report._layout import key, legend, text_at
from bayesmoe.report._panels import MANY, Neighbours, Panel, find_panels, neighbours, panel_figure
from bayesmoe.report.style import (
    ESTIMATOR_COLOURS,
    INK,
    MUTED,
    REFERENCE_COLOUR,
    plain,
    style,
)

_HEIGHT, _TOP = 1.75, 0.46  # inches
_QUARTILES = (0.25, 0.5, 0.75)
_POINTS = ESTIMATOR_COLOURS["posterior"]


def pit_figure(analysis: Analysis, rows: LeftOut) -> Figure:
    """P(Y <= y_j|x_j, all other rows) of each row j, against each covariate.

    If the model is right the points fill the square evenly, in every vertical strip. Black lines
    are the quartiles of the points in groups of neighbouring rows; grey ones are where they belong.
    Rows of a covariate with few distinct values are spread about their value.

    Where covariates are derived from columns, there is one panel, of the first of these columns.

    Parameters
    ----------
    analysis
        From `analyse`.
    rows
        From `left_out`.
    """
    panels = find_panels(analysis)
    with style():
        figure, axes = panel_figure(panels, _HEIGHT, _TOP)
        for ax, panel in zip(axes, panels, strict=True):
            _draw(ax, panel, rows.pit)
        for ax in axes[::3]:
            ax.set_ylabel("P(Y ≤ y | x)")
        label = plain(analysis.model.gate.label)
        title = f"{label}: each observation among what the others predict"
        text_at(figure, 0.12, 0.24, title, color=INK, weight="bold", size=8.5)
        legend(figure, _keys(), 2)
    return figure


def _draw(ax: Axes, panel: Panel, pit: np.ndarray) -> None:
    many = len(pit) > MANY
    size, alpha = (1.5, 0.35) if many else (2.6, 0.6)
    look: dict[str, Any] = {
        "ms": size,
        "mew": 0,
        "color": _POINTS,
        "alpha": alpha,
        "rasterized": many,
    }
    ax.plot(panel.places(), pit, "o", zorder=2, **look)
    for level in _QUARTILES:
        ax.axhline(level, color=REFERENCE_COLOUR, lw=1.0, zorder=1)
    for group in neighbours(panel, pit):
        _draw_quartiles(ax, group, np.quantile(pit[group.rows], _QUARTILES))
    ax.set_ylim(-0.02, 1.02)
    ax.set_yticks([0, *_QUARTILES, 1], ["0", "¼", "½", "¾", "1"])


def _draw_quartiles(ax: Axes, group: Neighbours, levels: np.ndarray) -> None:
    for level, width in zip(levels, (0.9, 2.0, 0.9), strict=True):
        ax.plot([group.low, group.high], [level, level], color=INK, lw=width, zorder=3)


def _keys() -> list[Line2D]:
    return [
        key("quartiles of neighbouring rows", INK),
        key("where they belong", MUTED, alpha=0.4),
    ]
