"""The figure of partial dependence: the response and the gates along each covariate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.report._curves import LEVEL
from bayesmoe.report._dependence import (
    DRAWS,
    ROWS,
    Dependence,
    Sweep,
    partial_dependence,
    table_sweeps,
)
from bayesmoe.report._layout import axes_at, key, legend, new_figure, text_at
from bayesmoe.report._panels import chosen_rows, expert_colours, posterior_draws, spread_about
from bayesmoe.report.style import INK, MUTED, percent, plain, short, size_text, style

_LEFT, _SIDE, _TOP, _BOTTOM = 0.72, 0.2, 0.64, 0.28  # inches
_UPPER, _LOWER, _BETWEEN, _BELOW = 1.7, 0.75, 0.1, 0.56
_WIDTHS = {1: 3.6, 2: 2.6, 3: 2.1}  # of a panel, by their number in a row
_BAND, _PAD = "#BDBDBD", 0.03
_RUG, _TICK = 400, 0.035  # rows in a rug; height of its ticks, as a share of the axes
_JITTER, _OFFSET = 0.2, 0.09  # of the distance between levels: of rows, and between experts
_CHARACTERS = 24  # of all names of levels together


def dependence_figure(analysis: Analysis, sweeps: Sequence[Sweep] = ()) -> Figure:
    """Partial dependence of E[Y|x] on each column, and of the gate probabilities below.

    Lines are posterior means, bands have 90 %; at levels they are points with bars. What is drawn
    at a value is averaged over rows, whose other columns are as observed. Ticks at the foot of the
    upper panels are rows.

    Parameters
    ----------
    analysis
        From `analyse`.
    sweeps
        Of the columns that covariates are derived from, if a formula made them; by default of the
        covariates themselves.
    """
    sweeps = sweeps or table_sweeps(analysis.table.x)
    gate, draws = analysis.model.gate, posterior_draws(analysis)
    found = [partial_dependence(gate, draws, sweep) for sweep in sweeps]
    k = analysis.model.n_experts
    columns = min(max(_WIDTHS), len(sweeps))
    width, rows = _WIDTHS[columns], -(-len(sweeps) // columns)
    step = _UPPER + (_BETWEEN + _LOWER) * (k > 1) + _BELOW
    keys = _keys(k)
    legend_columns = min(len(keys), 2 * columns + 1)
    legend_rows = -(-len(keys) // legend_columns)
    limits = _limits(found)
    with style():
        height = _TOP + rows * step + _BOTTOM + 0.2 * (legend_rows - 1)
        figure = new_figure(columns * (_LEFT + width) + _SIDE, height)
        for i, (sweep, one) in enumerate(zip(sweeps, found, strict=True)):
            row, column = divmod(i, columns)
            left, top = column * (_LEFT + width) + _LEFT, _TOP + row * step
            upper = axes_at(figure, left, top, width, _UPPER)
            _draw_upper(upper, sweep, one, limits)
            lowest = upper
            if k > 1:
                _name(upper, sweep)
                upper.set_xlabel("")
                upper.tick_params(labelbottom=False)
                lowest = axes_at(figure, left, top + _UPPER + _BETWEEN, width, _LOWER)
                _draw_lower(lowest, sweep, one)
            _name(lowest, sweep)
            if column == 0:
                upper.set_ylabel(f"mean of {short(analysis.table.y.name, 22)}")
                if k > 1:
                    lowest.set_ylabel("gate\nprobability")
        _write_head(figure, analysis)
        legend(figure, keys, legend_columns)
    return figure


def averaged_text(analysis: Analysis) -> str:
    """How many rows and draws are averaged over, in words."""
    n, draws = len(analysis.table.y), int(np.prod(posterior_draws(analysis).batch_shape))
    rows = f"all {n}" if n <= ROWS else f"{ROWS} of {size_text(n)}"
    kept = f"all {draws}" if draws <= DRAWS else f"{DRAWS} of {size_text(draws)}"
    return f"{rows} rows and {kept} draws"


def _write_head(figure: Figure, analysis: Analysis) -> None:
    label = plain(analysis.model.gate.label)
    title = f"{label}: the mean response along each column, all others as observed"
    text_at(figure, 0.12, 0.22, title, color=INK, weight="bold", size=8.5)
    said = f"averages over {averaged_text(analysis)}"
    text_at(figure, 0.12, 0.42, said, color=MUTED, size=8.5)


def _limits(found: Sequence[Dependence]) -> tuple[float, float]:
    """Of all upper panels alike, so that effects can be compared; room below for the rows."""
    low = min(float(one.mean.low.min()) for one in found)
    high = max(float(one.mean.high.max()) for one in found)
    span = (high - low) or 1.0
    return low - 0.12 * span, high + 0.05 * span


def _draw_upper(ax: Axes, sweep: Sweep, one: Dependence, limits: tuple[float, float]) -> None:
    _draw_curve(ax, sweep, sweep.points, *one.mean, colour=INK, fill=_BAND, alpha=1.0)
    _rug(ax, sweep)
    ax.set_xlim(*_reach(sweep))
    ax.set_ylim(*limits)


def _draw_lower(ax: Axes, sweep: Sweep, one: Dependence) -> None:
    k, gap = len(one.probability.centre), _gap(sweep)
    for i, colour in enumerate(expert_colours(k)):
        aside = _OFFSET * gap * (i - (k - 1) / 2) * min(1.0, 4 / k) if sweep.levels else 0.0
        band = [part[i] for part in one.probability]
        _draw_curve(ax, sweep, sweep.points + aside, *band, colour=colour, fill=colour, alpha=0.22)
    ax.set_xlim(*_reach(sweep))
    ax.set_ylim(-0.03, 1.03)
    ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])


def _draw_curve(
    ax: Axes, sweep: Sweep, x: np.ndarray, centre: np.ndarray, low: np.ndarray, high: np.ndarray,
    **look: Any,
) -> None:  # fmt: skip
    colour = look["colour"]
    if sweep.levels:
        ax.vlines(x, low, high, color=colour, lw=1.6, zorder=2.5)
        ax.plot(x, centre, "o", color=colour, ms=3.4, zorder=3)
        return
    ax.fill_between(x, low, high, color=look["fill"], alpha=look["alpha"], lw=0, zorder=1)
    ax.plot(x, centre, color=colour, lw=1.3, zorder=3)


def _rug(ax: Axes, sweep: Sweep) -> None:
    """Ticks at the values of up to so many rows."""
    values = sweep.values[chosen_rows(len(sweep.values), _RUG)]
    if sweep.levels:
        values = spread_about(values, _JITTER * _gap(sweep))
    ticks = [[(value, 0.0), (value, _TICK)] for value in values.tolist()]
    ax.add_collection(
        LineCollection(
            ticks, colors=MUTED, linewidths=0.5, alpha=0.5, transform=ax.get_xaxis_transform(),
            label="rows",
        ),
        autolim=False,
    )  # fmt: skip


def _gap(sweep: Sweep) -> float:
    """The least distance between points."""
    return float(np.diff(sweep.points).min()) if len(sweep.points) > 1 else 1.0


def _reach(sweep: Sweep) -> tuple[float, float]:
    low, high = float(sweep.points[0]), float(sweep.points[-1])
    pad = 0.5 * _gap(sweep) if sweep.levels else _PAD * (high - low)
    return low - pad, high + pad


def _name(ax: Axes, sweep: Sweep) -> None:
    ax.set_xlabel(short(sweep.name, 30))
    if sweep.labels:
        each = max(2, _CHARACTERS // len(sweep.labels))
        ax.set_xticks(sweep.points, [short(label, each) for label in sweep.labels])
    elif sweep.levels:
        ax.set_xticks(sweep.points)


def _keys(k: int) -> list[Line2D]:
    experts = [key(f"expert {i}", c) for i, c in enumerate(expert_colours(k))] if k > 1 else []
    return [
        key(f"posterior mean, {percent(LEVEL)} bands", INK),
        *experts,
        key("rows", MUTED, marker="|", ls="none", ms=5.0),
    ]
