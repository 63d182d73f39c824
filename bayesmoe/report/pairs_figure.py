"""The figure of pairs: where over two covariates each expert is at work."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.report._curves import expert_lines
from bayesmoe.report._dependence import gate_dependence
from bayesmoe.report._layout import axes_at, key, legend, new_figure, text_at
from bayesmoe.report._panels import (
    MANY,
    SILVER,
    Panel,
    expert_colours,
    find_panels,
    map_responsibilities,
    medians,
    mixed_colours,
)
from bayesmoe.report.style import INK, MUTED, plain, short, style

#: covariates whose pairs are shown at most
MOST = 4

_LEFT, _SIDE, _TOP, _BELOW, _BOTTOM = 0.72, 0.2, 0.64, 0.56, 0.28  # inches
_SIZES = {1: (5.6, 3.4), 2: (2.7, 2.3), 3: (2.1, 1.9)}  # of a panel, by their number in a row
_CELLS = 80  # of the background, along either axis
_LIGHT, _PAD = 0.22, 0.04  # how strong the background is; room beside the rows


def paired_covariates(analysis: Analysis) -> list[int]:
    """Numbers of the covariates whose pairs are shown, ascending.

    All up to `MOST`; of more, those along which most of the gate's probability changes hands, by
    `gate_dependence` of the MAP, and the first ones where that is equal.
    """
    x = analysis.table.x
    if x.shape[1] <= MOST:
        return list(range(x.shape[1]))
    moved = gate_dependence(analysis.model.gate, analysis.map.measure, x)
    return sorted(np.argsort(-moved, kind="stable")[:MOST].tolist())


def pairs_figure(analysis: Analysis) -> Figure:
    """The rows over each pair of covariates, in the colours of the experts that made them.

    Behind them are the gate probabilities of the MAP, in the same colours, at the medians of all
    other covariates; at the line another expert becomes the most probable.

    Parameters
    ----------
    analysis
        From `analyse`, by two covariates or more that are no derived ones.

    Raises
    ------
    ValueError
        If there are no two such covariates.
    """
    if analysis.axis is not None or analysis.table.x.shape[1] < 2:
        raise ValueError(
            f"pairs_figure needs two covariates that no formula made, got "
            f"{', '.join(map(str, analysis.table.x.columns))}; use fit_figure"
        )
    pairs = list(itertools.combinations(paired_covariates(analysis), 2))
    columns = min(max(_SIZES), len(pairs))
    (width, height), rows = _SIZES[columns], -(-len(pairs) // columns)
    panels, colours = find_panels(analysis), mixed_colours(map_responsibilities(analysis))
    keys = _keys(analysis.model.n_experts, _lines(analysis))
    legend_columns = min(len(keys), 2 * columns + 1)
    with style():
        total = _TOP + rows * (height + _BELOW) + _BOTTOM
        total += 0.2 * (-(-len(keys) // legend_columns) - 1)
        figure = new_figure(columns * (_LEFT + width) + _SIDE, total)
        for i, pair in enumerate(pairs):
            row, column = divmod(i, columns)
            left, top = column * (_LEFT + width) + _LEFT, _TOP + row * (height + _BELOW)
            ax = axes_at(figure, left, top, width, height)
            _frame(ax, [panels[j] for j in pair])
            _background(ax, analysis, pair)
            _rows(ax, [panels[j] for j in pair], colours)
        _write_head(figure, analysis)
        legend(figure, keys, legend_columns)
    return figure


def _frame(ax: Axes, panels: Sequence[Panel]) -> None:
    across, up = panels
    ax.set_xlim(*_reach(across))
    ax.set_ylim(*_reach(up))
    ax.set_xlabel(short(across.name, 24))
    ax.set_ylabel(short(up.name, 24))
    if across.levels is not None:
        ax.set_xticks(across.levels)
    if up.levels is not None:
        ax.set_yticks(up.levels)


def _reach(panel: Panel) -> tuple[float, float]:
    """From where to where an axis goes."""
    places = np.concatenate([panel.places(), panel.places(SILVER)])
    low, high = float(places.min()), float(places.max())
    pad = _PAD * (high - low)
    return low - pad, high + pad


def _background(ax: Axes, analysis: Analysis, pair: Sequence[int]) -> None:
    """Gate probabilities as light colours, and lines between the most probable experts."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    middles = (np.arange(_CELLS) + 0.5) / _CELLS
    across, up = left + middles * (right - left), bottom + middles * (top - bottom)
    at = np.tile(medians(analysis.table.x), (_CELLS * _CELLS, 1))
    at[:, pair[0]], at[:, pair[1]] = np.tile(across, _CELLS), np.repeat(up, _CELLS)
    _, weights = expert_lines(analysis.model.gate, analysis.map.measure, jnp.asarray(at))
    shares = np.asarray(weights).T.reshape(_CELLS, _CELLS, -1)
    ax.imshow(
        1 - _LIGHT * (1 - mixed_colours(shares)), extent=(left, right, bottom, top),
        origin="lower", aspect="auto", interpolation="nearest", zorder=0, label="gate",
    )  # fmt: skip
    for i in range(shares.shape[-1] - 1):  # the last one borders on these alone
        others = np.delete(shares, i, axis=-1).max(axis=-1)
        lead = shares[..., i] - others
        if lead.min() < 0 < lead.max():
            ax.contour(across, up, lead, levels=[0.0], colors=MUTED, linewidths=0.8, zorder=1)


def _rows(ax: Axes, panels: Sequence[Panel], colours: np.ndarray) -> None:
    many = len(colours) > MANY
    ax.scatter(
        panels[0].places(), panels[1].places(SILVER), s=4 if many else 11, c=colours,
        alpha=0.35 if many else 0.75, linewidths=0, zorder=2, rasterized=many,
    )  # fmt: skip


def _write_head(figure: Figure, analysis: Analysis) -> None:
    x = analysis.table.x
    title = f"{plain(analysis.model.gate.label)}: which expert is at work where"
    text_at(figure, 0.12, 0.22, title, color=INK, weight="bold", size=8.5)
    others = ", all other covariates at their medians" if x.shape[1] > 2 else ""
    said = f"points: rows by expert; behind: gate probabilities of the MAP{others}"
    text_at(figure, 0.12, 0.42, said, color=MUTED, size=8.5)


def _lines(analysis: Analysis) -> bool:
    """Whether the gate depends on anything, so that there may be lines between experts."""
    return bool(np.any(np.asarray(analysis.map.measure.gate_slope)))


def _keys(k: int, lines: bool) -> list[Line2D]:
    look = {"marker": "o", "ls": "none", "mew": 0}
    experts = [key(f"expert {i}", c, **look) for i, c in enumerate(expert_colours(k))]
    return [*experts, *([key("another expert leads", MUTED, lw=0.8)] if lines else [])]
