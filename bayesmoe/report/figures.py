"""Figures of a convergence study: losses, parameter blocks, and the spread of the temperature.

Conventions of all figures: one colour per estimator and one marker per gate; points are medians
over the replicates whose fit converged, bars their quartiles, hollow points say that some fits
were left out; light grey lines have the expected slope and pass through the geometric centre of
the medians: they are never fitted.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesmoe.report.style import (
    BLOCK_TITLES,
    BLOCKS,
    ESTIMATOR_COLOURS,
    ESTIMATOR_LABELS,
    ESTIMATORS,
    MUTED,
    QUANTITY_LABELS,
    REFERENCE_COLOUR,
    SPREAD_COLOUR,
    estimate,
    gate_markers,
    loss_axis,
    number,
    plain,
    rate_math,
    size_axis,
    specification,
    style,
)

_BLOCK_WIDTH, _BLOCK_HEIGHT, _BLOCK_PITCH, _BLOCK_LEFT = 1.42, 1.12, 1.93, 1.02  # inches
_LINE = 11.5 / 72  # height of a line of annotation, inches
_DASHES = (3.2, 1.8)  # modulo the ray
_DOTS = (4.5, 1.4, 1.2, 1.4)  # posterior standard deviation
_DODGE = {"mle": -1.0, "map": 0.0, "posterior": 1.0, "temperature_sd": 2.0}


@dataclasses.dataclass(frozen=True)
class Series:
    """Medians and quartiles over replicates, one entry per sample size; NaN where there is none.

    ``complete`` says whether every replicate that was run entered the median.
    """

    n: np.ndarray
    median: np.ndarray
    low: np.ndarray
    high: np.ndarray
    complete: np.ndarray

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not bool(np.any(self.drawable))

    @property
    def drawable(self) -> np.ndarray:
        """Where the median can be drawn on a logarithmic axis."""
        return np.isfinite(self.median) & (self.median > 0)


def summarise(values: xr.DataArray, used: xr.DataArray) -> Series:
    """Median and quartiles of ``values`` (n, replicate) over the replicates in ``used``."""
    array = values.transpose("n", "replicate").to_numpy().astype(float)
    keep = used.transpose("n", "replicate").to_numpy().astype(bool) & np.isfinite(array)
    kept = np.where(keep, array, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # sample sizes without any fit
        low, median, high = np.nanquantile(kept, [0.25, 0.5, 0.75], axis=1)
    return Series(values["n"].to_numpy().astype(float), median, low, high, keep.all(axis=1))


@dataclasses.dataclass
class _Panel:
    """Axes, what is drawn in them (in log10 units) and the note to place where there is room."""

    ax: Axes
    width: float
    height: float
    ink: list[np.ndarray] = dataclasses.field(default_factory=list)
    note: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def draw(
        self,
        series: Series,
        *,
        colour: str,
        marker: str,
        dodge: float,
        label: str,
        dashes: tuple[float, ...] = (),
        quartiles: bool = True,
    ) -> None:
        """Draw one series, moved sideways by ``dodge`` steps, with bars for the quartiles."""
        ok = series.drawable
        if not ok.any():
            return
        x = series.n * 10 ** (dodge * _dodge_step(series.n))
        median = np.where(ok, series.median, np.nan)
        look: dict[str, Any] = {"color": colour, "label": label, "zorder": 3 + dodge / 10}
        linestyle = (0, dashes) if dashes else "-"
        self.ax.plot(x, median, marker=marker, linestyle=linestyle, mec=colour, **look)
        hollow = ok & ~series.complete
        look["label"] = "_hollow"
        self.ax.plot(
            x[hollow], median[hollow], marker, mfc="white", mec=colour, ms=3.2, mew=0.9, **look
        )
        self.ink.append(_dense(x[ok], median[ok]))
        if quartiles:
            bars = ok & (series.low > 0)
            self.ax.vlines(
                x[bars], series.low[bars], series.high[bars], color=colour, lw=1.1, zorder=2.5
            )
            for edge in (series.low, series.high):
                self.ink.append(np.log10(np.stack([x[bars], edge[bars]])))

    def reference(self, series: Sequence[Series], exponent: float) -> None:
        """A line of slope ``exponent`` through the geometric centre of all medians."""
        points = [np.log10(np.stack([s.n[s.drawable], s.median[s.drawable]])) for s in series]
        points = [p for p in points if p.size]
        if not points or not np.isfinite(exponent):
            return
        centre = np.concatenate(points, axis=1).mean(axis=1)
        ends = np.log10([series[0].n.min(), series[0].n.max()])
        y = centre[1] + exponent * (ends - centre[0])
        self.ax.plot(
            10**ends, 10**y, color=REFERENCE_COLOUR, lw=4, zorder=1, label="_reference",
            solid_capstyle="butt",
        )  # fmt: skip
        self.ink.append(_dense(10**ends, 10**y))


def _dodge_step(n: np.ndarray) -> float:
    """Sideways step in log10 units: a small part of the distance between sample sizes."""
    return 0.035 if len(n) < 2 else 0.09 * float(np.min(np.diff(np.log10(np.sort(n)))))


def _dense(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points along a line of a log-log plot, in log10 units."""
    u, v = np.log10(x), np.log10(y)
    fine = np.linspace(u[0], u[-1], 60)
    return np.stack([fine, np.interp(fine, u, v)])


# --- room for a note inside the axes


def _note_width(panel: _Panel) -> float:
    """Width in inches of a panel's note, margin included."""
    figure = panel.ax.figure
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[arg-type]
    widths = []
    for text, _ in panel.note:
        artist = panel.ax.text(0, 0, text)
        widths.append(artist.get_window_extent(renderer).width / figure.dpi)
        artist.remove()
    return max(widths) + 0.12


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


def _fit(panel: _Panel) -> _Fit:
    """The corner for a panel's note that costs the fewest decades; lower left if they tie."""
    ink = np.concatenate(panel.ink, axis=1) if panel.ink else np.zeros((2, 1))
    low, high = float(ink[1].min()) - 0.12, float(ink[1].max()) + 0.12
    if not panel.note:
        return _Fit(low, high)
    left, right = np.log10(panel.ax.get_xlim())
    reach = _note_width(panel) / panel.width * (right - left)
    share = min(0.6, (len(panel.note) * _LINE + 0.1) / panel.height)
    fits = []
    for edge, side in itertools.product(("lower", "upper"), ("left", "right")):
        under = ink[0] <= left + reach if side == "left" else ink[0] >= right - reach
        heights = ink[1][under] if under.any() else ink[1]
        clear = float(heights.min() if edge == "lower" else heights.max())
        fits.append(_Fit(low, high, (edge, side), clear, share))
    cheapest = min(fit.span for fit in fits)
    return next(fit for fit in fits if fit.span <= cheapest + 0.1)


def _finish_row(panels: Sequence[_Panel], least: float = 1.2) -> None:
    """Give all panels of a row the same number of decades and write their notes."""
    fits = [_fit(panel) for panel in panels]
    spans = [fit.span for panel, fit in zip(panels, fits, strict=True) if panel.ink]
    for panel, fit in zip(panels, fits, strict=True):
        loss_axis(panel.ax, *fit.limits(max([least, *spans])))
        if not panel.ink:
            panel.ax.set_yticks([])
            panel.ax.set_yticks([], minor=True)
            panel.ax.text(
                0.5, 0.5, "no converged fit", transform=panel.ax.transAxes, ha="center", color=MUTED
            )
        elif fit.corner is not None:
            _write(panel, *fit.corner)


def _write(panel: _Panel, edge: str, side: str) -> None:
    """Write a panel's note into a corner."""
    for i, (text, colour) in enumerate(panel.note):
        line = (len(panel.note) - 1 - i) * _LINE * 72 + 5
        panel.ax.annotate(
            text,
            (0.0 if side == "left" else 1.0, 0.0 if edge == "lower" else 1.0),
            xycoords="axes fraction",
            xytext=(
                5 if side == "left" else -2,
                line if edge == "lower" else -(i + 1) * _LINE * 72,
            ),
            textcoords="offset points",
            ha=side,
            va="baseline",
            color=colour,
        )


def _stack(panel: _Panel, lines: Sequence[tuple[str, str]]) -> None:
    """Write lines above a panel, the last one next to it."""
    for i, (text, colour) in enumerate(reversed(lines)):
        _above(panel, 0, i, text, colour, "left")


def _above(
    panel: _Panel, x: float, line: int, text: str, colour: str, align: str, size: float = 8
) -> None:
    panel.ax.annotate(
        text, (x, 1), xycoords="axes fraction", xytext=(0, 5 + line * _LINE * 72),
        textcoords="offset points", ha=align, color=colour, size=size,
    )  # fmt: skip


# --- layout


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes placed in inches from the figure's left and top."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def _text(figure: Figure, left: float, top: float, text: str, **look: object) -> None:
    """Text placed in inches from the figure's left and top."""
    w, h = figure.get_size_inches()
    figure.text(left / w, 1 - top / h, text, **look)  # type: ignore[arg-type]


def _key(label: str, colour: str, **look: object) -> Line2D:
    return Line2D([], [], color=colour, label=label, **look)  # type: ignore[arg-type]


def _estimator_keys(posterior: str) -> list[Line2D]:
    names = {**ESTIMATOR_LABELS, "posterior": posterior}
    return [_key(names[e], ESTIMATOR_COLOURS[e], marker="o") for e in ESTIMATORS]


def _hollow_key() -> Line2D:
    return _key(
        "some fits left out", MUTED, marker="o", mfc="white", mec=MUTED, ls="none", ms=3.8
    )  # fmt: skip


def _legend(figure: Figure, keys: Sequence[Line2D], columns: int) -> None:
    figure.legend(
        handles=list(keys), loc="lower center", ncols=columns, columnspacing=1.6, handlelength=2.2,
        bbox_to_anchor=(0.5, 0.0), borderaxespad=0.3,
    )  # fmt: skip


# --- reading the contract


def _cell(results: xr.Dataset, gate: str, k: int) -> xr.Dataset:
    return results.sel(gate=gate, n_experts=k)


def _series(cell: xr.Dataset, variable: str, estimator: str) -> Series:
    return summarise(
        cell[variable].sel(estimator=estimator), cell["converged"].sel(estimator=estimator)
    )


def _expected(cell: xr.Dataset, quantity: str) -> tuple[float, str]:
    entry = cell.sel(quantity=quantity)
    return float(entry["expected"]), str(entry["expected_text"].item())


def _slope(slopes: pd.DataFrame, **where: object) -> pd.Series | None:
    """The one row of ``slopes`` with these values, or None."""
    mask = np.ones(len(slopes), bool)
    for column, value in where.items():
        mask &= (slopes[column] == value).to_numpy()
    return slopes[mask].iloc[0] if mask.any() else None


def _slope_lines(
    slopes: pd.DataFrame, gate: str, k: int, quantity: str, drawn: Sequence[str]
) -> list[tuple[str, str]]:
    """One line per estimator: its slope with interval, in its colour."""
    lines = []
    for estimator in ESTIMATORS:
        row = _slope(slopes, gate=gate, n_experts=k, estimator=estimator, quantity=quantity)
        name = {"posterior": "post."}.get(estimator, ESTIMATOR_LABELS[estimator])
        if estimator not in drawn:
            value = "no converged fit"
        else:
            value = "no slope" if row is None else estimate(row["slope"], row["low"], row["high"])
        lines.append((f"{name} {value}", ESTIMATOR_COLOURS[estimator]))
    return lines


def _row_title(results: xr.Dataset, k: int) -> str:
    true = np.unique(results["n_experts_true"].to_numpy())
    return specification(k, int(true[0])) if len(true) == 1 else f"k = {k} fitted"


def _panel_title(results: xr.Dataset, gate: str, k: int) -> str:
    label = plain(results["gate_label"].sel(gate=gate).item())
    if len(np.unique(results["n_experts_true"].to_numpy())) == 1:
        return label
    true = int(results["n_experts_true"].sel(gate=gate))
    return f"{label} ({specification(k, true).split(',')[0]})"


def _names(results: xr.Dataset, dim: str) -> list[str]:
    return [str(v) for v in results[dim].to_numpy()]


def _fitted(results: xr.Dataset, n_experts: Sequence[int] | None) -> list[int]:
    known = [int(k) for k in results["n_experts"].to_numpy()]
    return known if n_experts is None else [k for k in known if k in set(n_experts)]


# --- figure 1


def contraction(
    results: xr.Dataset, slopes: pd.DataFrame, variable: str = "normalised_loss"
) -> Figure:
    """The loss of MLE and MAP and the posterior's contraction radius against n, log-log.

    One row per fitted number of experts, one column per gate. Where the theory denies the loss
    any rate but promises one modulo the ray, the loss modulo the ray is drawn too, dashed.

    Parameters
    ----------
    results
        The study; see the engine for its layout.
    slopes
        Measured slopes with intervals, one row per gate, k, estimator and quantity.
    variable
        ``"loss"``, ``"normalised_loss"`` or one of their versions modulo the ray.

    Returns
    -------
    Figure
        Panels of a row span the same number of decades, so equal slopes look equal.
    """
    gates, fitted = _names(results, "gate"), _fitted(results, None)
    markers = gate_markers(gates)
    width, height, gap, left = 2.02, 2.0, 0.5, 0.72
    pitch = height + 1.46
    with style():
        figure = _figure(
            max(5.0, left + len(gates) * (width + gap) - gap + 0.1), len(fitted) * pitch + 0.74
        )
        for row, k in enumerate(fitted):
            top = row * pitch + 1.18
            _text(figure, 0.08, top - 1.02, _row_title(results, k), weight="bold", size=9.5)
            panels = []
            for column, gate in enumerate(gates):
                ax = _axes(figure, left + column * (width + gap), top, width, height)
                ax.set_title(_panel_title(results, gate, k), loc="left", pad=8 + 4 * _LINE * 72)
                panels.append(_Panel(ax, width, height))
                size_axis(ax, results["n"].to_numpy(), width)
                _contraction_panel(panels[-1], results, slopes, gate, k, variable, markers[gate])
            _finish_row(panels)
            panels[0].ax.set_ylabel(QUANTITY_LABELS.get(variable, variable))
        _contraction_legend(figure, results, slopes)
        figure.text(
            0.5, 0.6 / figure.get_figheight(), "sample size n", ha="center", va="center", size=9
        )
    return figure


def _contraction_panel(
    panel: _Panel,
    results: xr.Dataset,
    slopes: pd.DataFrame,
    gate: str,
    k: int,
    variable: str,
    marker: str,
) -> None:
    cell = _cell(results, gate, k)
    modulo = variable.replace("loss", "identified_loss")
    pair = "identified" not in variable and _is_ray(cell)
    plan: list[tuple[str, tuple[float, ...]]] = [(variable, ())]
    if pair:
        plan.append((modulo, _DASHES))
    for name, dashes in plan:
        drawn = {e: _series(cell, name, e) for e in ESTIMATORS}
        drawn = {e: s for e, s in drawn.items() if not s.empty}
        for estimator, series in drawn.items():
            panel.draw(
                series, colour=ESTIMATOR_COLOURS[estimator], marker=marker,
                dodge=_DODGE[estimator], label=f"{estimator} {name}", dashes=dashes,
            )  # fmt: skip
        exponent, text = _expected(cell, name.removeprefix("normalised_"))
        panel.reference(list(drawn.values()), exponent)
        rate = rate_math(exponent, text)
        lines = _slope_lines(slopes, gate, k, name, list(drawn))
        if not dashes:
            _stack(panel, [(f"expected: {rate}", MUTED), *lines])
        elif drawn:
            panel.note = [(f"modulo the ray: {rate}", MUTED), *lines]


def _is_ray(cell: xr.Dataset) -> bool:
    return _expected(cell, "loss")[0] == 0 and _expected(cell, "identified_loss")[0] < 0


def _contraction_legend(figure: Figure, results: xr.Dataset, slopes: pd.DataFrame) -> None:
    level = float(results.attrs.get("level", 0.9))
    keys = _estimator_keys(f"posterior {level:.0%} radius".replace("%", " %"))
    cells = itertools.product(_names(results, "gate"), _fitted(results, None))
    if any(_is_ray(_cell(results, gate, k)) for gate, k in cells):
        keys.append(_key("modulo the ray", MUTED, dashes=_DASHES))
    keys.append(_key("expected slope", REFERENCE_COLOUR, lw=4, solid_capstyle="butt"))
    keys.append(_hollow_key())
    _legend(figure, keys, len(keys) if figure.get_figwidth() > 8.5 else 3)


# --- figure 2


def blocks(
    results: xr.Dataset, slopes: pd.DataFrame, n_experts: Sequence[int] | None = None
) -> Figure:
    """Errors per parameter block against n, with the posterior standard deviation of τ.

    One row per gate and fitted k, one column per block. In over-specified fits the main lines are
    of the atoms that share a cell, thin dotted lines of those alone in theirs. Above each panel
    stand the expected rate and the measured slopes; intervals are in the table of slopes.

    Parameters
    ----------
    results, slopes
        As for `contraction`; slopes of a block belong to shared cells where there are any. With a
        column ``cell`` in ``slopes``, the row of the cells drawn as main line is taken.
    n_experts
        The fitted k to show; all by default.
    """
    gates, fitted = _names(results, "gate"), _fitted(results, n_experts)
    rows = [(gate, k) for k in fitted for gate in gates]
    pitch, head = _BLOCK_HEIGHT + 0.56, 0.3
    with style():
        figure = _figure(
            _BLOCK_LEFT + len(BLOCKS) * _BLOCK_PITCH - 0.4, len(rows) * pitch + head + 1.0
        )
        for column, block in enumerate(BLOCKS):
            middle = _BLOCK_LEFT + column * _BLOCK_PITCH + _BLOCK_WIDTH / 2
            _text(figure, middle, 0.2, BLOCK_TITLES[block], ha="center", size=9.5)
        for row, (gate, k) in enumerate(rows):
            top, last = head + row * pitch + 0.42, row == len(rows) - 1
            _block_row(figure, top, results, slopes, gate, k, sizes=last)
        figure.text(0.5, 0.68 / figure.get_figheight(), "sample size n", ha="center", size=9)
        _blocks_legend(figure)
    return figure


def _block_row(
    figure: Figure,
    top: float,
    results: xr.Dataset,
    slopes: pd.DataFrame,
    gate: str,
    k: int,
    *,
    sizes: bool,
) -> None:
    """The panels of one gate and one fitted k, ``top`` inches from the figure's top."""
    marker = gate_markers(_names(results, "gate"))[gate]
    panels = []
    for column, block in enumerate(BLOCKS):
        left = _BLOCK_LEFT + column * _BLOCK_PITCH
        ax = _axes(figure, left, top, _BLOCK_WIDTH, _BLOCK_HEIGHT)
        panels.append(_Panel(ax, _BLOCK_WIDTH, _BLOCK_HEIGHT))
        size_axis(ax, results["n"].to_numpy(), _BLOCK_WIDTH, labels=sizes)
        _block_panel(panels[-1], results, slopes, gate, k, block, marker)
    _finish_row([panel for panel in panels if panel.ax.axison])
    panels[0].ax.set_ylabel("error", labelpad=2)
    name = plain(results["gate_label"].sel(gate=gate).item())
    kind = specification(k, int(results["n_experts_true"].sel(gate=gate)))
    look = {"rotation": 90, "ha": "left", "va": "center"}
    middle = top + _BLOCK_HEIGHT / 2
    _text(figure, 0.12, middle, name, size=9, weight="bold", **look)
    _text(figure, 0.32, middle, kind, **look)


def _block_panel(
    panel: _Panel,
    results: xr.Dataset,
    slopes: pd.DataFrame,
    gate: str,
    k: int,
    block: str,
    marker: str,
) -> None:
    cell = _cell(results, gate, k)
    if block == "temperature" and not bool(cell["has_temperature"]):
        panel.ax.set_axis_off()
        panel.ax.text(
            0.5, 0.5, "no temperature", transform=panel.ax.transAxes, ha="center", color=MUTED
        )
        return
    errors = cell.assign(error=cell["block_error"].sel(block=block))
    present = [c for c in _names(results, "cell") if _has_cell(errors, c)]
    main = "shared" if "shared" in present else "single"
    drawn: dict[str, Series] = {}
    for name in sorted(present, key=lambda c: c == main):
        if name != main and block == "temperature":
            continue  # τ belongs to no cell
        for estimator in ESTIMATORS:
            series = _series(errors.sel(cell=name), "error", estimator)
            if not series.empty:
                _draw_block(panel, series, estimator, marker, name, main)
                drawn |= {estimator: series} if name == main else {}
    exponent, text = _expected(cell, block)
    if drawn:
        panel.reference(list(drawn.values()), exponent)
    if block == "temperature":
        _draw_spread(panel, cell, marker)
    _strip(panel, slopes, gate, k, block, main, rate_math(exponent, text))


def _has_cell(errors: xr.Dataset, name: str) -> bool:
    return name in errors["cell"] and bool(np.isfinite(errors["error"].sel(cell=name)).any())


def _draw_block(
    panel: _Panel, series: Series, estimator: str, marker: str, name: str, main: str
) -> None:
    label = f"{estimator} {name}"
    colour, dodge = ESTIMATOR_COLOURS[estimator], _DODGE[estimator]
    if name == main:
        panel.draw(series, colour=colour, marker=marker, dodge=dodge, label=label)
        return
    ok = series.drawable
    panel.ax.plot(series.n, np.where(ok, series.median, np.nan), ":", color=colour, lw=1.1,
                  label=label)  # fmt: skip
    panel.ink.append(np.log10(np.stack([series.n[ok], series.median[ok]])))


def _spread(cell: xr.Dataset) -> Series:
    """Posterior standard deviation of τ over the replicates whose chains converged."""
    return summarise(
        cell["posterior_sd"].sel(block="temperature"), cell["converged"].sel(estimator="posterior")
    )


def _draw_spread(panel: _Panel, cell: xr.Dataset, marker: str) -> None:
    panel.draw(
        _spread(cell), colour=SPREAD_COLOUR, marker=marker, dodge=_DODGE["temperature_sd"],
        label="temperature_sd", dashes=_DOTS,
    )  # fmt: skip


def _strip(
    panel: _Panel, slopes: pd.DataFrame, gate: str, k: int, block: str, main: str, rate: str
) -> None:
    """Write the expected rate and the measured slopes above a small panel."""
    if "cell" in slopes:
        slopes = slopes[slopes["cell"].isin([main]) | slopes["cell"].isna()]
    where = {"gate": gate, "n_experts": k}
    for i, estimator in enumerate(ESTIMATORS):
        row = _slope(slopes, **where, estimator=estimator, quantity=block)
        _above(panel, i / 2, 0, "–" if row is None else number(row["slope"]),
               ESTIMATOR_COLOURS[estimator], ("left", "center", "right")[i])  # fmt: skip
    _above(panel, 0, 1, rate, MUTED, "left", 10 if "$" in rate else 8)
    if block == "temperature":
        row = _slope(slopes, **where, estimator="posterior", quantity="temperature_sd")
        if row is not None:
            _above(panel, 1, 1, f"sd {number(row['slope'])}", SPREAD_COLOUR, "right")


def _blocks_legend(figure: Figure) -> None:
    keys = _estimator_keys("posterior radius")
    keys += [
        _key("posterior sd of τ", SPREAD_COLOUR, marker="o", dashes=_DOTS),
        _key("expected slope", REFERENCE_COLOUR, lw=4, solid_capstyle="butt"),
        _key("over-specified: atoms alone in their cell", MUTED, ls=":", lw=1.1),
        _hollow_key(),
    ]
    _legend(figure, keys, 4)


# --- figure 3


def temperature_sd(results: xr.Dataset, slopes: pd.DataFrame) -> Figure:
    """The posterior standard deviation of τ against n: does the temperature contract?

    One panel per fitted number of experts; every gate that has a temperature is named beside its
    line with its slope, interval and expected rate. Grey lines have slope 0 for gates with a ray
    and -1/2 for the others.
    """
    gates = [g for g in _names(results, "gate") if bool(results["has_temperature"].sel(gate=g))]
    markers = gate_markers(_names(results, "gate"))
    fitted = _fitted(results, None)
    width, height, margin, left = 2.45, 2.6, 1.66, 0.72
    with style():
        figure = _figure(max(4.9, left + len(fitted) * (width + margin) + 0.02), height + 1.2)
        panels, labels = [], []
        for column, k in enumerate(fitted):
            ax = _axes(figure, left + column * (width + margin), 0.36, width, height)
            ax.set_title(_row_title(results, k), loc="left", weight="bold", pad=6)
            panels.append(_Panel(ax, width, height))
            size_axis(ax, results["n"].to_numpy(), width)
            found = [_spread_line(panels[-1], results, slopes, g, k, markers[g]) for g in gates]
            labels.append([label for label in found if label is not None])
            ax.set_xlabel("sample size n")
            if not column:
                ax.set_ylabel("posterior sd of τ")
        ink = [points for panel in panels for points in panel.ink]
        for panel, lines in zip(panels, labels, strict=True):
            panel.ink = ink if panel.ink else []
            _finish_row([panel])
            _beside(panel, lines)
        keys = [
            _key("median over replicates, bars: quartiles", SPREAD_COLOUR, marker="o"),
            _key("slope 0 or −1/2", REFERENCE_COLOUR, lw=4, solid_capstyle="butt"),
            _hollow_key(),
        ]
        _legend(figure, keys, 3)
    return figure


def _spread_line(
    panel: _Panel, results: xr.Dataset, slopes: pd.DataFrame, gate: str, k: int, marker: str
) -> tuple[float, list[tuple[str, str]]] | None:
    """Draw a gate's line; its height at the right end and the lines of its label."""
    cell = _cell(results, gate, k)
    series = _spread(cell)
    if series.empty:
        return None
    panel.draw(series, colour=SPREAD_COLOUR, marker=marker, dodge=0.0, label=gate)
    exponent, text = _expected(cell, "temperature")
    panel.reference([series], 0.0 if exponent == 0 else -0.5)
    row = _slope(slopes, gate=gate, n_experts=k, quantity="temperature_sd")
    value = "no slope" if row is None else estimate(row["slope"], row["low"], row["high"])
    last = float(np.log10(series.median[series.drawable][-1]))
    name = plain(cell["gate_label"].item())
    rate = rate_math(exponent, text)
    return last, [(name, "#1E1E1E"), (value, SPREAD_COLOUR), (f"expected: {rate}", MUTED)]


def _beside(panel: _Panel, labels: Sequence[tuple[float, list[tuple[str, str]]]]) -> None:
    """Write labels to the right of the axes, at their lines' ends, moved apart if need be."""
    low, high = np.log10(panel.ax.get_ylim())
    size = 3 * _LINE + 0.08
    at = 0.0
    placed = []
    for y, lines in sorted(labels, key=lambda item: -item[0]):
        wanted = (high - y) / (high - low) * panel.height - size / 2
        at = max(wanted, at)
        placed.append((at, lines))
        at += size
    overflow = max(0.0, at - panel.height - 0.3)
    for start, lines in placed:
        for i, (text, colour) in enumerate(lines):
            down = start - overflow + (i + 0.8) * _LINE
            panel.ax.annotate(
                text, (1, 1), xycoords="axes fraction", xytext=(6, -72 * down),
                textcoords="offset points", color=colour,
            )  # fmt: skip


# --- files


def save(figure: Figure, stem: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``stem``.png (200 dpi) and ``stem``.svg; each file appears whole or not at all.

    The bytes depend on the figure alone, not on the time or the place.
    """
    target = Path(stem)
    target.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        path = target.with_name(f"{target.name}.{kind}")
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".figure-", suffix=f".{kind}")
        os.close(handle)
        try:
            with style():
                figure.savefig(name, format=kind, dpi=200, metadata=metadata)
            os.chmod(name, 0o644)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
        written.append(path)
    return written[0], written[1]
