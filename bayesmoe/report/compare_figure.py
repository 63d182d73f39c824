"""The figure of a comparison: how much worse than the best each model predicts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesmoe.diagnostics.comparison import Comparison
from bayesmoe.diagnostics.recommendation import N_ERRORS, SMALL
from bayesmoe.report._layout import axes_at, new_figure, text_at
from bayesmoe.report.style import (
    INK,
    MUTED,
    WARNING,
    number,
    short,
    size_text,
    style,
)

_WIDTH, _ROW, _RIGHT = 3.3, 0.27, 2.72  # inches
_CHARACTER = 0.068  # width of an average character, inches
_LONGEST = 44  # characters of a model's name
_BAND = "#EDEDED"
_CHOSEN = "#0067A5"


def compare_figure(comparison: Comparison) -> Figure:
    """Difference in elpd to the best model with ± 2 standard errors, one row per model.

    The grey band holds differences that are noise whatever their standard error; so are those whose
    bar reaches zero. The recommended model is in colour. A model whose elpd is unreliable has its
    row, but no point. On the right the difference in figures and the stacking weight.

    Parameters
    ----------
    comparison
        From `compare_models`.
    """
    frame = comparison.to_frame()
    names = [short(name, _LONGEST) for name in frame.index]
    left = 0.3 + _CHARACTER * max(map(len, names))
    height = _ROW * len(frame)
    head = _head(comparison)
    top = 0.5 + 0.2 * len(head)
    with style():
        figure = new_figure(left + _WIDTH + _RIGHT, top + height + 0.55)
        ax = axes_at(figure, left, top, _WIDTH, height)
        ax.axvspan(-SMALL, 0, color=_BAND, lw=0, zorder=0, label="noise")
        ax.axvline(0, color=MUTED, lw=0.7, zorder=1)
        for place, (_, row) in enumerate(frame.iterrows()):
            _draw_row(ax, place, row)
        _axes(ax, frame, names)
        for line, (text, colour) in enumerate(head):
            weight = "normal" if line else "bold"
            text_at(figure, 0.12, 0.22 + 0.2 * line, text, color=colour, weight=weight, size=8.5)
    return figure


def _draw_row(ax: Axes, place: int, row: pd.Series) -> None:
    chosen = bool(row["recommended"])
    colour = _CHOSEN if chosen else INK
    columns: list[tuple[float, str]]
    if row["reliable"]:
        difference, error = row["elpd_diff"], row["elpd_diff_se"]
        ax.errorbar(
            difference, place, xerr=N_ERRORS * error, fmt="o", color=colour, capsize=0,
            lw=1.4, ms=5.5 if chosen else 4.2, zorder=3, label="_model",
        )  # fmt: skip
        figures = f"{number(difference, 1)} ± {number(error, 1)}" if difference else "best"
        columns = [(0.95, figures), (1.5, number(row["weight"]))]
    else:
        columns, colour = [(0.95, "unreliable")], WARNING
    if chosen:
        columns.append((2.6, "recommended"))
    for inches, text in columns:
        _write(ax, inches, place, text, colour, bold=chosen)


def _write(ax: Axes, inches: float, place: float, text: str, colour: str, *, bold: bool) -> None:
    """A text that ends ``inches`` to the right of the axes, in a row."""
    ax.annotate(
        text, (1, place), xycoords=("axes fraction", "data"), xytext=(72 * inches, 0),
        textcoords="offset points", ha="right", va="center_baseline", color=colour,
        weight="bold" if bold else "normal", annotation_clip=False,
    )  # fmt: skip


def _axes(ax: Axes, frame: pd.DataFrame, names: list[str]) -> None:
    usable = frame[frame["reliable"]]
    middle, reach = (usable[c].to_numpy(float) for c in ("elpd_diff", "elpd_diff_se"))
    low = float(np.min(middle - N_ERRORS * reach, initial=-SMALL))
    high = float(np.max(middle + N_ERRORS * reach, initial=0.0))
    pad = 0.04 * (high - low)
    ax.set_xlim(low - pad, high + pad)
    ax.set_ylim(len(frame) - 0.5, -0.5)
    ax.set_yticks(range(len(frame)), names)
    ax.tick_params(axis="y", length=0, pad=6)
    ax.spines["left"].set_visible(False)
    for label, (_, row) in zip(ax.get_yticklabels(), frame.iterrows(), strict=True):
        label.set_color(_CHOSEN if row["recommended"] else INK if row["reliable"] else WARNING)
        label.set_fontweight("bold" if row["recommended"] else "normal")
    ax.set_xlabel("elpd less that of the best model")
    for inches, text in ((0.95, "± s.e."), (1.5, "weight")):
        _write(ax, inches, -0.95, text, MUTED, bold=False)


def _head(comparison: Comparison) -> list[tuple[str, str]]:
    n = len(comparison.table.y)
    response = short(comparison.table.y.name, _LONGEST)
    return [
        (f"Predicting {response}, n = {size_text(n)}: leave-one-out comparison", INK),
        (f"bars: ± {N_ERRORS:g} standard errors; grey: differences below {SMALL:g}, noise whatever "
         "their error", MUTED),
    ]  # fmt: skip
