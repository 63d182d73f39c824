"""Measured slopes of the loss and of every parameter block beside the expected exponents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from bayesmoe.report import _study
from bayesmoe.report._layout import (
    axes_at,
    estimator_keys,
    key,
    legend,
    new_figure,
    surplus_height,
    text_at,
)
from bayesmoe.report.style import (
    BLOCK_TITLES,
    BLOCKS,
    ESTIMATOR_COLOURS,
    MARKER_TEXTS,
    MUTED,
    REFERENCE_COLOUR,
    gate_markers,
    plain,
    rate_math,
    short,
    style,
)

_LEFT, _WIDTH, _EXPECTED = 1.62, 1.86, 0.98  # inches; the last is right of a panel
_TITLE, _HEADING, _FOOT = 0.46, 0.3, 0.58  # inches above a band, above a gate, below a band
_PAD, _STEP = 0.11, 0.075  # inches of a row, and more for each estimator
_COLUMNS = 3  # panels beside each other
_WIDE = 7.5  # inches, from which on the legend has a row for all
_LOWEST, _HIGHEST = -1.6, 0.9  # of the axis: what lies beyond is an arrow
_LEAST = (-0.6, 0.1)  # that the axis shows
_SHORT = 1.2  # of an axis with a tick for each quarter
_CROSS, _NAME = 0.1, 0.22  # inches right of a panel: of marks and names
_LOSSES = {
    "normalised_loss": "normalised loss",
    "normalised_identified_loss": "loss modulo the ray",
}
_LABELS = {**_LOSSES, **BLOCK_TITLES}
_OF_NO_CELL = (*_LOSSES, "temperature")


class _Column(NamedTuple):
    """A fitted k and the atoms of one kind of cell; ``main`` if theory speaks of these."""

    k: int
    title: str
    cell: str
    atoms: str
    main: bool


class _Mark(NamedTuple):
    """One estimator in one row: its slope and interval, NaN where there is none."""

    place: float
    estimator: str
    slope: float
    low: float
    high: float


def rates(study: xr.Dataset, slopes: pd.DataFrame) -> Figure:
    """Slopes of the normalised loss and of every block's error, with their intervals, in rows.

    One group of rows per gate, one column per fitted k; over-specified fits have two, of atoms that
    share a cell and of atoms alone in theirs, and the loss and τ, which are of no cell, stand in
    the first. Grey ticks are the expected exponents, named on the right; the line at zero is that
    of errors that do not contract. A hollow point has no interval, a cross no slope, and an arrow
    points to what lies beyond the axis.

    Parameters
    ----------
    study, slopes
        As for `contraction`.
    """
    slopes = _study.own(slopes, study)
    bands = _bands(study)
    columns = max(map(len, bands))
    limits = _limits(slopes)
    with style():
        width = max(4.6, _LEFT + columns * (_WIDTH + _EXPECTED))
        heights = {gate: _height(study, slopes, gate) for gate in _study.gates(study)}
        band = _TITLE + sum(heights.values()) + _HEADING * len(heights) + _FOOT
        keys = _keys(study, slopes, limits)
        ncols = len(keys) if width > _WIDE else 3
        figure = new_figure(width, len(bands) * band + 0.32 + surplus_height(keys, ncols, 1))
        for i, of_band in enumerate(bands):
            _titles(figure, i * band, of_band)
            top = i * band + _TITLE
            for gate, height in heights.items():
                top += _HEADING
                last = gate == list(heights)[-1]
                _group(figure, top, height, study, slopes, gate, of_band, limits, last=last)
                top += height
        legend(figure, keys, ncols)
    return figure


# --- what stands where


def _bands(study: xr.Dataset) -> list[list[_Column]]:
    """Columns beside each other, those of one k together, as many as there is room for."""
    bands: list[list[_Column]] = [[]]
    for k in _study.fitted(study):
        cell = study.isel(gate=0).sel(n_experts=k)
        title, over = _study.setting_of(cell), k > int(cell["n_experts_true"])
        found = [_Column(k, title, "single", "", main=True)]
        if over:
            found = [
                _Column(k, title, "shared", "atoms that share a cell", main=True),
                _Column(k, title, "single", "atoms alone in their cell", main=False),
            ]
        if len(bands[-1]) + len(found) > _COLUMNS:
            bands.append([])
        bands[-1] += found
    return [band for band in bands if band]


def _quantities(study: xr.Dataset, slopes: pd.DataFrame, gate: str) -> list[str]:
    """The rows of a gate: losses, then the blocks that it has."""
    measured = set(_study.rows(slopes, gate=gate)["quantity"])
    losses = [name for name in _LOSSES if name == "normalised_loss" or name in measured]
    has = gate in _study.temperature_gates(study)
    return losses + [block for block in BLOCKS if block != "temperature" or has]


def _height(study: xr.Dataset, slopes: pd.DataFrame, gate: str) -> float:
    """Inches that a gate's rows take."""
    return len(_quantities(study, slopes, gate)) * _pitch(study)


def _pitch(study: xr.Dataset) -> float:
    return _PAD + _STEP * len(_study.estimators(study))


def _drawn(slopes: pd.DataFrame) -> pd.DataFrame:
    return slopes[slopes["quantity"].isin(list(_LABELS))]


def _limits(slopes: pd.DataFrame) -> tuple[float, float]:
    """All that is drawn, as far as the axis may reach."""
    values = _drawn(slopes)[["slope", "low", "high", "expected"]].to_numpy(float)
    values = np.clip(values[np.isfinite(values)], _LOWEST, _HIGHEST)
    low, high = min([_LEAST[0], *values]), max([_LEAST[1], *values])
    pad = 0.04 * (high - low)
    return float(low - pad), float(high + pad)


# --- drawing


def _titles(figure: Figure, top: float, band: Sequence[_Column]) -> None:
    for i, column in enumerate(band):
        left = _LEFT + i * (_WIDTH + _EXPECTED)
        if column.main:
            text_at(figure, left, top + 0.2, column.title, weight="bold", size=9.5)
        text_at(figure, left, top + 0.4, column.atoms, color=MUTED, size=8.5)
        text_at(figure, left + _WIDTH + _NAME, top + 0.4, "expected", color=MUTED, size=8.5)


def _group(
    figure: Figure,
    top: float,
    height: float,
    study: xr.Dataset,
    slopes: pd.DataFrame,
    gate: str,
    band: Sequence[_Column],
    limits: tuple[float, float],
    *,
    last: bool,
) -> None:
    """The panels of one gate, ``top`` inches from the figure's top."""
    marker, names = gate_markers(_study.gates(study))[gate], _quantities(study, slopes, gate)
    label = plain(_study.gate_labels(study)[gate])
    text_at(figure, 0.1, top - 0.08, f"{MARKER_TEXTS[marker]} {label}", weight="bold", size=9)
    for i, column in enumerate(band):
        ax = axes_at(figure, _LEFT + i * (_WIDTH + _EXPECTED), top, _WIDTH, height)
        own = _study.rows(slopes, gate=gate, n_experts=column.k)
        _frame(ax, names, limits, labels=i == 0, last=last)
        for place, quantity in enumerate(names):
            if quantity in _OF_NO_CELL and not column.main:
                _say(ax, place, "of no cell")
                continue
            cell = None if quantity in _LOSSES else column.cell
            found = _study.rows(own, quantity=quantity, cell=cell)
            _expected(ax, place, found)
            for mark in _marks(study, found, place):
                _draw(ax, mark, marker, limits)


def _frame(
    ax: Axes, names: Sequence[str], limits: tuple[float, float], *, labels: bool, last: bool
) -> None:
    ax.set_xlim(limits)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.axvline(0, color=MUTED, lw=0.9, zorder=2, label="_zero")
    ax.hlines(np.arange(len(names) - 1) + 0.5, *limits, color=REFERENCE_COLOUR, lw=0.4, zorder=0)
    ax.set_yticks(range(len(names)), [_LABELS[name] for name in names] if labels else [])
    ax.tick_params(axis="y", length=0, pad=5)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MultipleLocator(0.25 if np.ptp(limits) < _SHORT else 0.5))
    ax.tick_params(labelbottom=last)
    if last:
        ax.set_xlabel("slope of log error in log n", size=8.5)


def _say(ax: Axes, place: int, text: str) -> None:
    ax.annotate(
        text, (0.03, place), xycoords=("axes fraction", "data"), va="center_baseline", color=MUTED
    )


def _expected(ax: Axes, place: int, rows: pd.DataFrame) -> None:
    """The expected exponent as a grey tick, named right of the panel."""
    if rows.empty:
        return
    exponent, text = float(rows["expected"].iloc[0]), str(rows["expected_text"].iloc[0])
    if np.isfinite(exponent):
        ax.plot(
            [exponent, exponent], [place - 0.42, place + 0.42], color=REFERENCE_COLOUR, lw=4,
            solid_capstyle="butt", zorder=1, label="_expected",
        )  # fmt: skip
    name = rate_math(exponent, text) if exponent else short(text, 12)
    ax.annotate(
        name, (1, place), xycoords=("axes fraction", "data"), xytext=(72 * _NAME, 0),
        textcoords="offset points", va="center_baseline", color=MUTED,
        size=10 if "$" in name else 8, annotation_clip=False,
    )  # fmt: skip


def _marks(study: xr.Dataset, rows: pd.DataFrame, place: int) -> list[_Mark]:
    """Every estimator of the study, whether it has a slope or not, below each other in a row."""
    found, names = [], _study.estimators(study)
    for i, estimator in enumerate(names):
        own = _study.rows(rows, estimator=estimator)
        values = [np.nan] * 3
        if not own.empty:
            values = [float(own[name].iloc[0]) for name in ("slope", "low", "high")]
        shift = (i - (len(names) - 1) / 2) * _STEP / _pitch(study)
        found.append(_Mark(place + shift, estimator, *values))
    return found


def _draw(ax: Axes, mark: _Mark, marker: str, limits: tuple[float, float]) -> None:
    colour = ESTIMATOR_COLOURS[mark.estimator]
    if not np.isfinite(mark.slope):
        _outside(ax, mark.place, _CROSS, "x", colour)
        return
    whole = bool(np.isfinite(mark.low) and np.isfinite(mark.high))
    if limits[0] <= mark.slope <= limits[1]:
        ax.plot(
            mark.slope, mark.place, marker, color=colour, mec=colour, ms=4.2, mew=0.9,
            mfc=colour if whole else "white", zorder=4, label=mark.estimator,
        )  # fmt: skip
    if whole:
        ends = np.clip([mark.low, mark.high], *limits)
        ax.hlines(mark.place, *ends, color=colour, lw=1.3, zorder=3, label=mark.estimator)
    for beyond, edge, tip in zip(_beyond(mark, limits), (0.0, _WIDTH), "<>", strict=True):
        if beyond:
            _outside(ax, mark.place, edge - _WIDTH, tip, colour)


def _beyond(mark: _Mark, limits: tuple[float, float]) -> tuple[bool, bool]:
    """Whether something of a mark lies left, and right, of the axis; NaN lies nowhere."""
    values = np.array([mark.slope, mark.low, mark.high])
    return bool(np.any(values < limits[0])), bool(np.any(values > limits[1]))


def _outside(ax: Axes, place: float, inches: float, shape: str, colour: str) -> None:
    """A mark so many inches right of the panel's right edge, which is no datum of the panel."""
    across, name = [1 + inches / _WIDTH], {"x": "_no slope"}.get(shape, "_beyond")
    ax.figure.add_artist(
        Line2D(
            across, [place], ls="none", marker=shape, transform=ax.get_yaxis_transform(),
            color=colour, mec=colour, ms=4.0, mew=1.1, zorder=4, label=name,
        )
    )  # fmt: skip


def _keys(study: xr.Dataset, slopes: pd.DataFrame, limits: tuple[float, float]) -> list[Line2D]:
    """Entries of the legend; those of what is missing only where something is."""
    keys = estimator_keys(_study.estimators(study), "posterior radius")
    keys.append(_tick("expected exponent", REFERENCE_COLOUR, 4.0))
    keys.append(_tick("0: does not contract", MUTED, 0.9))
    marks = list(_all_marks(study, slopes))
    hollow = [m for m in marks if np.isfinite(m.slope) and not np.isfinite(m.low + m.high)]
    if hollow:
        look = {"marker": "o", "mfc": "white", "mec": MUTED, "ls": "none", "ms": 4.2}
        keys.append(key("no interval", MUTED, **look))
    if any(not np.isfinite(m.slope) for m in marks):
        keys.append(key("no slope", MUTED, marker="x", ls="none", ms=4.0))
    if any(any(_beyond(m, limits)) for m in marks):
        keys.append(key("beyond the axis", MUTED, marker="<", ls="none", ms=4.0))
    return keys


def _tick(label: str, colour: str, width: float) -> Line2D:
    return key(label, colour, marker="|", ls="none", ms=9, mew=width)


def _all_marks(study: xr.Dataset, slopes: pd.DataFrame) -> Iterable[_Mark]:
    for gate in _study.gates(study):
        for column in (column for band in _bands(study) for column in band):
            own = _study.rows(slopes, gate=gate, n_experts=column.k)
            for quantity in _quantities(study, slopes, gate):
                if column.main or quantity not in _OF_NO_CELL:
                    cell = None if quantity in _LOSSES else column.cell
                    yield from _marks(study, _study.rows(own, quantity=quantity, cell=cell), 0)
