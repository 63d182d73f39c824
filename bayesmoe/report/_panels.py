"""Panels that set the rows of a table against each covariate, and groups of neighbouring rows."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.diagnostics.left_out import LEAST_ROWS, groups_by
from bayesmoe.report._curves import responsibilities
from bayesmoe.report._layout import axes_at, new_figure
from bayesmoe.report.style import EXPERT_COLOURS, short

#: observations from which on points are drawn as an image
MANY = 2000
#: a covariate with no more distinct values has levels: its rows are set side by side at each
MOST_LEVELS = 5
#: irrational shares of a turn, by which rows are spread evenly; another one for the other axis
GOLDEN, SILVER = (5**0.5 - 1) / 2, 2**0.5 - 1

_LEFT, _GAP, _BOTTOM = 0.62, 0.56, 0.3  # inches
_WIDTHS = {1: 4.6, 2: 2.7, 3: 2.2}  # of a panel, by their number in a row
_HALF = 0.3  # of the distance between levels: how far rows are spread to either side


class Panel(NamedTuple):
    """What rows are set against: a covariate, or a column that covariates are derived from."""

    name: str
    values: np.ndarray

    @property
    def levels(self) -> np.ndarray | None:
        """Its distinct values if they are few."""
        return find_levels(self.values)

    def places(self, ratio: float = GOLDEN) -> np.ndarray:
        """Where rows are drawn, shape ``(n,)``: spread evenly about their level if there is one."""
        levels = self.levels
        if levels is None:
            return self.values
        return spread_about(self.values, _half_width(levels), ratio)


class Neighbours(NamedTuple):
    """Neighbouring rows by a covariate, and the stretch of the axis that stands for them."""

    rows: np.ndarray
    low: float
    high: float


def find_levels(values: np.ndarray) -> np.ndarray | None:
    """The distinct values in ascending order if they are at most `MOST_LEVELS`, else None."""
    distinct = np.unique(values)
    return distinct if len(distinct) <= MOST_LEVELS else None


def spread_about(values: np.ndarray, half_width: float, ratio: float = GOLDEN) -> np.ndarray:
    """Values moved by up to ``half_width``, each in its place by the number of its row alone."""
    turns = (np.arange(len(values)) * ratio) % 1.0
    return values + half_width * (2 * turns - 1)


def _half_width(levels: np.ndarray) -> float:
    return _HALF * float(np.diff(levels).min()) if len(levels) > 1 else _HALF


def find_panels(analysis: Analysis) -> list[Panel]:
    """One for each covariate; where they are derived from columns, of the first of these alone."""
    if analysis.axis is not None:
        return [Panel(analysis.axis.name, analysis.axis.values)]
    return [Panel(str(name), values.to_numpy()) for name, values in analysis.table.x.items()]


def neighbours(panel: Panel, pit: np.ndarray) -> list[Neighbours]:
    """Rows of one level, at least ten; or, of a covariate without levels, as by `groups_by`."""
    levels = panel.levels
    if levels is None:
        return [Neighbours(g.rows, g.low, g.high) for g in groups_by(panel.values, pit)]
    half, found = _half_width(levels), []
    for level in levels.tolist():
        rows = np.flatnonzero(panel.values == level)
        if len(rows) >= LEAST_ROWS:
            found.append(Neighbours(rows, level - half, level + half))
    return found


def panel_figure(
    panels: list[Panel], height: float, top: float, legend_rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each, up to three side by side; sizes in inches.

    Panels are named below, have ticks at their levels, and room for a legend below all.
    """
    columns = min(max(_WIDTHS), len(panels))
    width, rows = _WIDTHS[columns], -(-len(panels) // columns)
    total = top + rows * (height + _GAP) + _BOTTOM + 0.2 * (legend_rows - 1)
    figure = new_figure(columns * (_LEFT + width) + 0.15, total)
    found = []
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        left = column * (_LEFT + width) + _LEFT
        ax = axes_at(figure, left, top + row * (height + _GAP), width, height)
        ax.set_xlabel(short(panel.name, 32))
        if panel.levels is not None:
            ax.set_xticks(panel.levels)
        found.append(ax)
    return figure, found


# --- experts


def expert_colours(k: int) -> list[str]:
    """One colour per expert, the same in every figure of a fit."""
    return [EXPERT_COLOURS[i % len(EXPERT_COLOURS)] for i in range(k)]


def mixed_colours(shares: np.ndarray) -> np.ndarray:
    """The experts' colours mixed by their shares ``(..., k)``, as red, green and blue."""
    colours = np.array([to_rgb(colour) for colour in expert_colours(shares.shape[-1])])
    return np.clip(shares @ colours, 0, 1)


def map_responsibilities(analysis: Analysis) -> np.ndarray:
    """The probability that each expert of the MAP made each observation, shape ``(n, k)``."""
    x, y = (jnp.asarray(part.to_numpy()) for part in (analysis.table.x, analysis.table.y))
    return np.asarray(responsibilities(analysis.model.gate, analysis.map.measure, x, y))


def posterior_draws(analysis: Analysis) -> MixingMeasure:
    """All draws, batch axes ``(chain, draw)``."""
    group = analysis.posterior["posterior"]
    fields = (group[name].transpose("chain", "draw", ...).to_numpy() for name in FIELDS)
    return MixingMeasure(*fields)


def chosen_rows(n: int, most: int) -> np.ndarray:
    """Ascending numbers of up to ``most`` of n rows, chosen at random by a fixed seed."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def medians(x: pd.DataFrame) -> np.ndarray:
    """Of each covariate, shape ``(d,)``."""
    return x.median().to_numpy()
