"""One log-log panel: series, reference lines, and notes where there is room for them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bayesmoe.report._layout import LINE, Text
from bayesmoe.report._study import Series
from bayesmoe.report.style import MUTED, REFERENCE_COLOUR, loss_axis

NO_FIT = "no usable fit"

#: sideways steps that keep the points of estimators apart
DODGE = {"em": -2.0, "mle": -1.0, "map": 0.0, "posterior": 1.0, "temperature_sd": 2.0}


@dataclasses.dataclass
class Panel:
    """Axes, what is drawn in them (in log10 units) and the note to place where there is room."""

    ax: Axes
    width: float
    height: float
    ink: list[np.ndarray] = dataclasses.field(default_factory=list)
    note: list[Text] = dataclasses.field(default_factory=list)

    def draw(
        self,
        series: Series,
        *,
        colour: str,
        marker: str,
        dodge: float,
        label: str,
        dashes: tuple[float, ...] = (),
    ) -> None:
        """Draw one series, moved sideways by ``dodge`` steps, with bars for the quartiles."""
        ok = series.drawable
        x = series.n * 10 ** (dodge * _dodge_step(series.n))
        median = np.where(ok, series.median, np.nan)
        look: dict[str, Any] = {"color": colour, "mec": colour, "zorder": 3 + dodge / 10}
        linestyle = (0, dashes) if dashes else "-"
        self.ax.plot(x, median, marker=marker, linestyle=linestyle, label=label, **look)
        hollow = ok & ~series.complete
        look |= {"mfc": "white", "ms": 3.2, "mew": 0.9, "label": "_hollow"}
        self.ax.plot(x[hollow], median[hollow], marker, **look)
        self.ink.append(_dense(x[ok], median[ok]))
        bars = ok & (series.low > 0)
        self.ax.vlines(
            x[bars], series.low[bars], series.high[bars], color=colour, lw=1.1, zorder=2.5
        )
        for edge in (series.low, series.high):
            self.ink.append(np.log10(np.stack([x[bars], edge[bars]])))

    def draw_thin(self, series: Series, colour: str, label: str) -> None:
        """Draw the medians of a minor series as a dotted line."""
        ok = series.drawable
        median = np.where(ok, series.median, np.nan)
        self.ax.plot(series.n, median, ":", color=colour, lw=1.1, label=label)
        self.ink.append(np.log10(np.stack([series.n[ok], series.median[ok]])))

    def reference(self, series: Sequence[Series], exponent: float) -> None:
        """A line of slope ``exponent`` through the geometric centre of all medians, if known."""
        if not series or not np.isfinite(exponent):
            return
        points = [np.log10(np.stack([s.n[s.drawable], s.median[s.drawable]])) for s in series]
        centre = np.concatenate(points, axis=1).mean(axis=1)
        ends = np.log10([series[0].n.min(), series[0].n.max()])
        y = centre[1] + exponent * (ends - centre[0])
        self.ax.plot(
            10**ends, 10**y, color=REFERENCE_COLOUR, lw=4, zorder=1, label="_reference",
            solid_capstyle="butt",
        )  # fmt: skip
        self.ink.append(_dense(10**ends, 10**y))

    def above(
        self, x: float, line: int, text: str, colour: str, align: str, size: float = 8
    ) -> None:
        """Write a line above the axes, ``line`` lines up, at the share ``x`` of its width."""
        self.ax.annotate(
            text, (x, 1), xycoords="axes fraction", xytext=(0, 5 + line * LINE * 72),
            textcoords="offset points", ha=align, color=colour, size=size,
        )  # fmt: skip

    def stack(self, lines: Sequence[Text]) -> None:
        """Write lines above the axes, the last one next to them."""
        for i, (text, colour) in enumerate(reversed(lines)):
            self.above(0, i, text, colour, "left")

    def say(self, text: str) -> None:
        """Write a remark into the middle."""
        self.ax.text(0.5, 0.5, text, transform=self.ax.transAxes, ha="center", color=MUTED)


def _dodge_step(n: np.ndarray) -> float:
    """Sideways step in log10 units: a small part of the distance between sample sizes."""
    logs = np.log10(n)
    return float(min(0.09 * np.min(np.diff(logs)), 0.025 * np.ptp(logs)))


def _dense(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points along a line of a log-log plot, in log10 units."""
    u, v = np.log10(x), np.log10(y)
    fine = np.linspace(u[0], u[-1], 60)
    return np.stack([fine, np.interp(fine, u, v)])


# --- room for a note inside the axes


@dataclasses.dataclass(frozen=True)
class _Fit:
    """The limits that keep what is drawn clear of a note in one corner, in decades."""

    low: float
    high: float
    corner: tuple[str, str] | None = None
    clear: float = 0.0  # nearest ink above (below) a note at the bottom (top)
    share: float = 0.0  # height of the note as a share of the axes

    @property
    def span(self) -> float:
        """The least number of decades that works."""
        if self.corner is None:
            return self.high - self.low
        reach = self.high - self.clear if self.corner[0] == "lower" else self.clear - self.low
        return max(self.high - self.low, reach / (1 - self.share))

    def limits(self, span: float) -> tuple[float, float]:
        """Limits that span exactly ``span`` decades, the slack on both sides."""
        low, high = self.low, self.high
        if self.corner is not None and self.corner[0] == "lower":
            low = min(low, self.clear - self.share * span)
        elif self.corner is not None:
            high = max(high, self.clear + self.share * span)
        slack = span - (high - low)
        return low - slack / 2, high + slack / 2


def _fit(panel: Panel) -> _Fit:
    """The corner for a panel's note that costs the fewest decades; lower left if they tie."""
    ink = np.concatenate(panel.ink, axis=1) if panel.ink else np.zeros((2, 1))
    low, high = float(ink[1].min()) - 0.12, float(ink[1].max()) + 0.12
    if not panel.note:
        return _Fit(low, high)
    left, right = np.log10(panel.ax.get_xlim())
    reach = _note_width(panel) / panel.width * (right - left)
    share = min(0.6, (len(panel.note) * LINE + 0.1) / panel.height)
    fits = []
    for edge, side in itertools.product(("lower", "upper"), ("left", "right")):
        under = ink[0] <= left + reach if side == "left" else ink[0] >= right - reach
        heights = ink[1][under] if under.any() else ink[1]
        clear = float(heights.min() if edge == "lower" else heights.max())
        fits.append(_Fit(low, high, (edge, side), clear, share))
    cheapest = min(fit.span for fit in fits)
    return next(fit for fit in fits if fit.span <= cheapest + 0.1)


def _note_width(panel: Panel) -> float:
    """Width in inches of a panel's note, margin included."""
    figure = panel.ax.figure
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[arg-type]
    widths = []
    for text, _ in panel.note:
        artist = panel.ax.text(0, 0, text)
        widths.append(artist.get_window_extent(renderer).width / figure.dpi)
        artist.remove()
    return max(widths) + 0.12


def finish_row(panels: Sequence[Panel]) -> None:
    """Give all panels of a row the same number of decades and write their notes."""
    fits = [_fit(panel) for panel in panels]
    spans = [fit.span for panel, fit in zip(panels, fits, strict=True) if panel.ink]
    for panel, fit in zip(panels, fits, strict=True):
        if not panel.ink:
            panel.ax.set_yscale("log")
            panel.ax.set_yticks([])
            panel.ax.set_yticks([], minor=True)
            panel.say(NO_FIT)
            continue
        loss_axis(panel.ax, *fit.limits(max([1.2, *spans])))
        if fit.corner is not None:
            _write(panel, *fit.corner)


def _write(panel: Panel, edge: str, side: str) -> None:
    """Write a panel's note into a corner."""
    for i, (text, colour) in enumerate(panel.note):
        line = (len(panel.note) - 1 - i) * LINE * 72 + 5
        panel.ax.annotate(
            text,
            (0.0 if side == "left" else 1.0, 0.0 if edge == "lower" else 1.0),
            xycoords="axes fraction",
            xytext=(5 if side == "left" else -2, line if edge == "lower" else -(i + 1) * LINE * 72),
            textcoords="offset points",
            ha=side,
            va="baseline",
            color=colour,
        )
