"""The figure of optima: where every start of a fit ended, and how many found the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from bayesmoe.inference.outcome import Status
from bayesmoe.inference.point import SAME, Fit
from bayesmoe.report._findings import CLOSE, STATIONARY
from bayesmoe.report._layout import Text, axes_at, key, legend, new_figure, spread_out
from bayesmoe.report.style import (
    ESTIMATOR_COLOURS,
    INK,
    MUTED,
    STATUS_LABELS,
    WARNING,
    style,
)

_LEFT, _WIDTH, _LABELS, _TOP, _BOTTOM = 1.15, 2.5, 1.7, 0.45, 0.56  # inches
_LEAST_HEIGHT, _LEGEND_ROW = 2.1, 0.2
_LABEL, _LEADER = 0.19, 0.24  # inches: height of a label, and length of its line
_MOST = 12  # labels beside a panel: further optima are counted in the last
_FLOOR, _ROOM = SAME / 3, 3.0  # where the best stand; factor of room below the lowest
_BAND = "#EDEDED"
_MARKERS = {
    Status.CONVERGED: "o",
    Status.AT_VARIANCE_FLOOR: "s",
    Status.AT_PRIOR_BOUND: "p",
    Status.SEPARATED: "^",
    Status.TEMPERATURE_TO_ZERO: "<",
    Status.EMPTY_EXPERT: "v",
    Status.NEGATIVE_CURVATURE: "P",
    Status.STALLED: "D",
    Status.STOPPED_EARLY: "*",
    Status.MAX_ITERATIONS: "x",
    Status.NON_FINITE: "+",
}


class _Start(NamedTuple):
    """A start: how far it ended below the best, infinite if its objective is not finite."""

    gap: float
    status: Status


def optima_figure(*fits: Fit) -> Figure:
    """How far below the best each start ended, the highest first: one panel per fit.

    Starts that ended within 0.001 of the best stand at the top, in the estimator's colour; below
    them, on a logarithmic scale, other optima, each height labelled with how many starts found it.
    Shapes are statuses; starts that ended at no optimum are grey and have no label. Those whose
    objective is not finite stand at the bottom. At the dashed line an optimum is one unit of
    log-likelihood, or of log posterior density, below the best.

    Parameters
    ----------
    fits
        From `bayesmoe.fit_mle` or `bayesmoe.fit_map`.

    Raises
    ------
    ValueError
        If there is none.
    """
    if not fits:
        raise ValueError("optima_figure needs at least one fit, from bayesmoe.fit_mle or fit_map")
    starts = [_sorted_starts(fit) for fit in fits]
    labels = [_labels(one) for one in starts]
    height = max(_LEAST_HEIGHT, *(_LABEL * len(one) for one in labels))
    with style():
        keys = _keys([start for one in starts for start in one])
        columns = min(len(keys), 2 * len(fits) + 1)
        rows = -(-len(keys) // columns)
        width = len(fits) * (_LEFT + _WIDTH + _LABELS)
        figure = new_figure(width, _TOP + height + _BOTTOM + rows * _LEGEND_ROW)
        for column, (fit, one, texts) in enumerate(zip(fits, starts, labels, strict=True)):
            left = column * (_LEFT + _WIDTH + _LABELS) + _LEFT
            ax = axes_at(figure, left, _TOP, _WIDTH, height)
            _frame(ax, fit, one)
            _draw(ax, one, ESTIMATOR_COLOURS[_estimator(fit)])
            _write(ax, height, texts)
        legend(figure, keys, columns)
    return figure


def _estimator(fit: Fit) -> str:
    return "mle" if np.isnan(fit.log_density) else "map"


def _sorted_starts(fit: Fit) -> list[_Start]:
    """All starts, the highest first."""
    best = fit.log_likelihood if np.isnan(fit.log_density) else fit.log_density
    found = []
    for height, status in zip(fit.starts.objective.tolist(), fit.starts.status, strict=True):
        found.append(_Start(best - height if np.isfinite(height) else np.inf, status))
    return sorted(found, key=lambda start: start.gap)


# --- optima


def _optima(starts: Sequence[_Start]) -> list[list[_Start]]:
    """Starts that ended at optima, those of one height together, the highest first."""
    groups: list[list[_Start]] = []
    for start in starts:
        if start.status not in STATIONARY or not np.isfinite(start.gap):
            continue
        if groups and start.gap <= _edge(groups[-1]) + SAME:
            groups[-1].append(start)
        else:
            groups.append([start])
    return groups


def _edge(group: Sequence[_Start]) -> float:
    """The gap from which on another start of one optimum may be `SAME` away."""
    return 0.0 if group[0].gap <= SAME else group[-1].gap


def _labels(starts: Sequence[_Start]) -> list[tuple[float, Text]]:
    """Where each optimum is, and what is written beside it."""
    groups, found = _optima(starts), []
    shown = groups if len(groups) <= _MOST else groups[: _MOST - 1]
    for group in shown:
        where = " at the best" if group[0].gap <= SAME else f", {_gap_text(group[0].gap)} below"
        colour = INK if any(start.status.converged for start in group) else WARNING
        found.append((_height(group[0]), (f"{_count(len(group))}{where}", colour)))
    if rest := groups[len(shown) :]:
        text = f"and {len(rest)} lower optima"
        found.append((_height(rest[0][0]), (text, MUTED)))
    return found


def _count(n: int) -> str:
    return "1 start" if n == 1 else f"{n} starts"


def _gap_text(gap: float) -> str:
    return f"{gap:.3g}" if gap < 1000 else f"{gap:.2g}".replace("e+0", "e").replace("e+", "e")


# --- drawing


def _height(start: _Start) -> float:
    """Where a start stands on the axis."""
    return _FLOOR if start.gap <= SAME else start.gap


def _frame(ax: Axes, fit: Fit, starts: Sequence[_Start]) -> None:
    gaps = [start.gap for start in starts if np.isfinite(start.gap)]
    lost = len(gaps) < len(starts)
    lowest = max([10 * CLOSE, *gaps]) * _ROOM
    lane = lowest * _ROOM
    ax.set_yscale("log")
    ax.set_ylim(lane * _ROOM if lost else lowest, _FLOOR / _ROOM)
    powers = range(-2, int(np.floor(np.log10(lowest))) + 1)
    step = 1 + (len(powers) - 1) // 6
    ticks = [_FLOOR, *(10.0**power for power in powers if power % step == 0)]
    names = [f"within {SAME:g}", *(f"{tick:g}" for tick in ticks[1:])]
    if lost:
        ticks, names = [*ticks, lane], [*names, "not finite"]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FixedFormatter(names))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.axhspan(SAME, _FLOOR / _ROOM, color=_BAND, lw=0, zorder=0)
    ax.axhline(CLOSE, color=MUTED, lw=0.8, ls="--", zorder=1, label="_one unit")
    ax.set_xlim(0.2, len(starts) + 0.8)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    ax.set_xlabel("starts, the highest first")
    mle = _estimator(fit) == "mle"
    ax.set_ylabel(f"{'log-likelihood' if mle else 'log density'} below the best")
    title, colour = _title(fit, starts)
    ax.set_title(title, loc="left", weight="bold", pad=8, color=colour)


def _title(fit: Fit, starts: Sequence[_Start]) -> Text:
    groups, name = _optima(starts), _estimator(fit).upper()
    if not groups or groups[0][0].gap > SAME:
        return f"{name}: the highest is no optimum", WARNING
    return f"{name}: {len(groups[0])} of {_count(len(starts))} found the best", INK


def _draw(ax: Axes, starts: Sequence[_Start], colour: str) -> None:
    lane = ax.get_ylim()[0] / _ROOM
    for rank, start in enumerate(starts, 1):
        place = _height(start) if np.isfinite(start.gap) else lane
        optimum = start.status in STATIONARY and np.isfinite(start.gap)
        shade = (colour if start.gap <= SAME else INK) if optimum else MUTED
        ax.plot(
            rank, place, _MARKERS[start.status], color=shade, mec=shade, ms=5.0, mew=1.0,
            mfc=shade if optimum else "white", zorder=3, label=start.status.name,
        )  # fmt: skip


def _write(ax: Axes, height: float, labels: Sequence[tuple[float, Text]]) -> None:
    """Labels right of the axes, moved apart, each with a line to where it belongs."""
    low, high = np.log10(ax.get_ylim())
    wanted = [(high - np.log10(place)) / (high - low) * height for place, _ in labels]
    centres = spread_out(wanted, _LABEL, -0.1, height + 0.1)
    for at, centre, (_, (text, colour)) in zip(wanted, centres, labels, strict=True):
        ends = [1 - at / height, 1 - centre / height]
        ax.figure.add_artist(
            Line2D([1, 1 + _LEADER / _WIDTH], ends, color=MUTED, lw=0.6, transform=ax.transAxes)
        )
        ax.annotate(
            text, (1, ends[1]), xycoords="axes fraction", xytext=(72 * _LEADER + 3, 0),
            textcoords="offset points", va="center_baseline", color=colour,
        )  # fmt: skip


def _keys(starts: Sequence[_Start]) -> list[Line2D]:
    """The statuses that occur, and the dashed line."""
    found = []
    for status, marker in _MARKERS.items():
        if any(start.status is status for start in starts):
            optimum = status in STATIONARY
            shade = INK if optimum else MUTED
            look = {"mfc": shade if optimum else "white", "mec": shade, "ls": "none", "ms": 5.0}
            label = STATUS_LABELS[status.name.lower()]
            found.append(key(label, shade, marker=marker, **look))
    return [*found, key("one unit below", MUTED, ls="--", lw=0.8)]
