"""The figure of influence: how much the posterior hangs on each row."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.diagnostics.left_out import LeftOut
from bayesmoe.diagnostics.model_checks import influence_limit
from bayesmoe.report._layout import Text, axes_at, beside, new_figure, spread_out, text_at
from bayesmoe.report._panels import MANY
from bayesmoe.report.style import (
    ESTIMATOR_COLOURS,
    INK,
    MUTED,
    WARNING,
    plain,
    size_text,
    style,
)

#: rows that are labelled at most; where none is above the limit, as many as `_FEW`
MOST_LABELLED = 8

_FEW = 3
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 5.6, 1.9, 0.62, 1.4, 0.7, 0.5  # inches
_LABEL, _CHARACTER = 0.12, 0.072  # inches: space between labels, and width of a character
_UP = 0.14  # inches: height of the lines to labels
_POINTS = ESTIMATOR_COLOURS["posterior"]


def influence_figure(analysis: Analysis, rows: LeftOut) -> Figure:
    """Pareto k of each row's importance weights, against the number of the row, from 1.

    Above the dashed line, 1 - 1/log10(draws) or 0.7 if that is less (Vehtari et al. 2024), the
    posterior without the row may differ from the whole one by more than weights can tell. These
    rows are marked, and the worst are labelled; where there are none, the three largest are.
    Triangles at the top have no finite k.

    Parameters
    ----------
    analysis
        From `analyse`.
    rows
        From `left_out`.
    """
    limit = influence_limit(analysis.posterior["sample_stats"]["lp"].size)
    k = np.where(np.isnan(rows.pareto_k), np.inf, rows.pareto_k)
    top, bottom = _range(k, limit)
    drawn = np.minimum(k, top)
    with style():
        figure = new_figure(_LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BOTTOM)
        ax = axes_at(figure, _LEFT, _TOP, _WIDTH, _HEIGHT)
        _draw(ax, k, drawn, limit)
        ax.set_xlim(*_row_range(len(k)))
        ax.set_ylim(bottom, top + 0.04 * (top - bottom))
        ticks = _ticks(len(k))
        ax.set_xticks(ticks, [size_text(tick) for tick in ticks])
        ax.set_xlabel("row, from 1")
        ax.set_ylabel("Pareto k")
        low, high = ax.get_ylim()
        words: list[Text] = [
            (f"above {limit:.2f}: weights", MUTED),
            ("are not to be trusted", MUTED),
        ]
        beside(ax, _HEIGHT, [((limit - low) / (high - low), words)])
        _label(ax, drawn, worst_rows(k, limit), k > limit)
        label = plain(analysis.model.gate.label)
        title = f"{label}: how much the posterior hangs on each row"
        text_at(figure, 0.12, 0.24, title, color=INK, weight="bold", size=8.5)
    return figure


def worst_rows(k: np.ndarray, limit: float) -> np.ndarray:
    """Indices of the rows to be labelled, the largest k first."""
    order = np.argsort(-k, kind="stable")
    above = order[k[order] > limit]
    return above[:MOST_LABELLED] if len(above) else order[:_FEW]


def _range(k: np.ndarray, limit: float) -> tuple[float, float]:
    """Where the axis ends, above and below; what is not finite stands at its upper end."""
    finite = k[np.isfinite(k)]
    least, most = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    return max(1.0, float(most) * 1.05, limit + 0.1), min(-0.05, float(least) - 0.05)


def _row_range(n: int) -> tuple[float, float]:
    pad = 0.015 * n
    return 1 - max(pad, 0.5), n + max(pad, 0.5)


def _ticks(n: int) -> list[int]:
    """The first row, and some round numbers of rows."""
    found = MaxNLocator(6, integer=True).tick_values(1, n)
    return [1, *(int(tick) for tick in found if 1 + 0.04 * n < tick <= n)]


def _draw(ax: Axes, k: np.ndarray, drawn: np.ndarray, limit: float) -> None:
    number, many = np.arange(1, len(k) + 1), len(k) > MANY
    finite, above = np.isfinite(k), k > limit
    small: dict[str, Any] = {"ms": 1.5 if many else 2.6, "alpha": 0.35 if many else 0.6}
    for kept, look in (
        (finite & ~above, {"marker": "o", "color": _POINTS, "rasterized": many, **small}),
        (finite & above, {"marker": "o", "color": WARNING, "ms": 3.4, "rasterized": many}),
        (~finite, {"marker": "^", "color": WARNING, "ms": 4.5}),
    ):
        if kept.any():
            ax.plot(number[kept], drawn[kept], ls="none", mew=0, zorder=2, **look)
    ax.axhline(limit, color=MUTED, lw=0.8, ls="--", zorder=1)


def _label(ax: Axes, drawn: np.ndarray, rows: np.ndarray, above: np.ndarray) -> None:
    """Numbers of rows above the axes, each with a line to its point."""
    low, high = ax.get_xlim()
    texts = [size_text(row + 1) for row in rows]
    wanted = [(row + 1 - low) / (high - low) * _WIDTH for row in rows]
    size = _LABEL + _CHARACTER * max(map(len, texts))
    centres = spread_out(wanted, size, 0.0, _WIDTH)
    over = 1 + _UP / _HEIGHT
    for row, text, at, centre in zip(rows, texts, wanted, centres, strict=True):
        bottom, top = ax.get_ylim()
        height = (drawn[row] - bottom) / (top - bottom)
        colour = WARNING if above[row] else MUTED
        ax.figure.add_artist(
            Line2D(
                [at / _WIDTH, at / _WIDTH, centre / _WIDTH], [height, 1, over], color=colour,
                lw=0.5, alpha=0.7, transform=ax.transAxes,
            )
        )  # fmt: skip
        ax.annotate(
            text, (centre / _WIDTH, over), xycoords="axes fraction", xytext=(0, 2),
            textcoords="offset points", ha="center", color=colour,
        )  # fmt: skip
    ax.annotate(
        "row", (0, over), xycoords="axes fraction", xytext=(-8, 2), textcoords="offset points",
        ha="right", color=MUTED,
    )  # fmt: skip
