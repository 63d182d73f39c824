"""Placing axes, texts and legends of a figure in inches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesmoe.report.style import (
    ESTIMATOR_COLOURS,
    ESTIMATOR_LABELS,
    MUTED,
    REFERENCE_COLOUR,
)

LINE = 11.5 / 72  # height of a line of annotation, inches
_LEGEND_ROW = 0.2  # inches
DASHES = (3.2, 1.8)  # modulo the ray
DOTS = (4.5, 1.4, 1.2, 1.4)  # posterior standard deviation

Text = tuple[str, str]
"""A text and its colour."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, apart from pyplot; sizes in inches."""
    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes placed in inches from the figure's left and top."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def text_at(figure: Figure, left: float, top: float, text: str, **look: Any) -> None:
    """Text placed in inches from the figure's left and top."""
    w, h = figure.get_size_inches()
    figure.text(left / w, 1 - top / h, text, **look)


def key(label: str, colour: str, **look: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=colour, label=label, **look)


def estimator_keys(names: Sequence[str], posterior: str) -> list[Line2D]:
    """Entries for estimators, the posterior's under the name given."""
    labels = {**ESTIMATOR_LABELS, "posterior": posterior}
    return [key(labels[name], ESTIMATOR_COLOURS[name], marker="o") for name in names]


def expected_key() -> Line2D:
    """The entry for grey lines."""
    return key("expected slope", REFERENCE_COLOUR, lw=4, solid_capstyle="butt")


def hollow_key() -> Line2D:
    """The entry for hollow points."""
    look = {"marker": "o", "mfc": "white", "mec": MUTED, "ls": "none", "ms": 3.8}
    return key("some fits left out", MUTED, **look)


def surplus_height(keys: Sequence[Line2D], columns: int, rows: int) -> float:
    """Inches that a legend needs beyond so many rows."""
    return max(0, -(-len(keys) // columns) - rows) * _LEGEND_ROW


def legend(figure: Figure, keys: Sequence[Line2D], columns: int) -> None:
    """A legend at the bottom of the figure."""
    figure.legend(
        handles=list(keys), loc="lower center", ncols=columns, columnspacing=1.6, handlelength=2.2,
        bbox_to_anchor=(0.5, 0.0), borderaxespad=0.3,
    )  # fmt: skip


def spread_out(centres: Sequence[float], size: float, low: float, high: float) -> list[float]:
    """Centres of labels of one size near those wanted, apart from each other, from low to high.

    Where there is too little room, they start before ``low``.
    """
    order = np.argsort(centres, kind="stable")
    placed = [0.0] * len(centres)
    free = low
    for i in order:
        placed[i] = max(float(centres[i]), free + size / 2)
        free = placed[i] + size / 2
    free = high
    for i in order[::-1]:  # back from the end where they ran over
        placed[i] = min(placed[i], free - size / 2)
        free = placed[i] - size / 2
    return placed


def beside(ax: Axes, height: float, labels: Sequence[tuple[float, Sequence[Text]]]) -> None:
    """Write labels to the right of axes, ``height`` inches high, moved apart if need be.

    Parameters
    ----------
    ax, height
        The axes.
    labels
        For each the height wanted, as a share of the axes, and its lines; all with as many lines.
    """
    if not labels:
        return
    size = len(labels[0][1]) * LINE + 0.08
    centres = spread_out([(1 - y) * height for y, _ in labels], size, -0.15, height + 0.15)
    for centre, (_, lines) in zip(centres, labels, strict=True):
        for i, (text, colour) in enumerate(lines):
            down = centre - size / 2 + (i + 0.8) * LINE
            ax.annotate(
                text, (1, 1), xycoords="axes fraction", xytext=(6, -72 * down),
                textcoords="offset points", color=colour,
            )  # fmt: skip
