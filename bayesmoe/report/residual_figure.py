"""The figure of residuals: how far each observation is off, as a standard normal number."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import ndtri

from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.diagnostics.left_out import LeftOut
from bayesmoe.report._layout import key, legend, text_at
from bayesmoe.report._panels import (
    MANY,
    Neighbours,
    Panel,
    expert_colours,
    find_panels,
    map_responsibilities,
    mixed_colours,
    neighbours,
    panel_figure,
)
from bayesmoe.report.style import INK, MUTED, REFERENCE_COLOUR, plain, style

#: residuals beyond, which float64 hardly tells apart, count as this far
FAR = 6.0

_HEIGHT, _TOP = 2.1, 0.46  # inches
_LEAST, _ROOM = 3.2, 0.4  # of the axis: how far it goes at least, and room beyond the points
_SPREAD = "#B9B9B9"
_KEYS = {1: 3, 2: 4, 3: 7}  # side by side in the legend at most, by the panels in a row


def quantile_residuals(pit: np.ndarray) -> np.ndarray:
    """Φ^-1 of PIT values ``(n,)``, within ± `FAR` (Dunn & Smyth 1996); NaN stays NaN.

    They are standard normal at every x if the model is right, which y - E[Y|x] under a mixture is
    not: where experts lie apart, such differences have several modes and no common spread.
    """
    found: np.ndarray = np.clip(ndtri(pit), -FAR, FAR)
    return found


def residual_figure(analysis: Analysis, rows: LeftOut) -> Figure:
    """The quantile residual of each row, the row left out, against each covariate.

    Points have the colours of the experts that are responsible for them. The thick black line is
    the mean of neighbouring rows, thin ones are one standard deviation off; they belong on the grey
    lines at 0 and ± 1. The dotted lines are at ± 2. Triangles are at `FAR` or beyond.

    Where covariates are derived from columns, there is one panel, of the first of these columns.

    Parameters
    ----------
    analysis
        From `analyse`.
    rows
        From `left_out`.
    """
    panels, residuals = find_panels(analysis), quantile_residuals(rows.pit)
    colours, k = mixed_colours(map_responsibilities(analysis)), analysis.model.n_experts
    keys = _keys(k, bool(np.any(np.abs(residuals) >= FAR)))
    # two rows, lines before experts, as far as there is room
    columns = min(-(-len(keys) // 2), _KEYS[min(len(panels), max(_KEYS))])
    with style():
        figure, axes = panel_figure(panels, _HEIGHT, _TOP, -(-len(keys) // columns))
        for ax, panel in zip(axes, panels, strict=True):
            _draw(ax, panel, residuals, colours, rows.pit)
        for ax in axes[::3]:
            ax.set_ylabel("residual Φ⁻¹(PIT)")
        label = plain(analysis.model.gate.label)
        title = f"{label}: residuals, standard normal if the model is right"
        text_at(figure, 0.12, 0.24, title, color=INK, weight="bold", size=8.5)
        legend(figure, keys, columns)
    return figure


def _draw(
    ax: Axes, panel: Panel, residuals: np.ndarray, colours: np.ndarray, pit: np.ndarray
) -> None:
    many, places = len(residuals) > MANY, panel.places()
    size, alpha = (4, 0.35) if many else (9, 0.6)
    for marker, kept in (
        ("o", np.abs(residuals) < FAR), ("^", residuals >= FAR), ("v", residuals <= -FAR)
    ):  # fmt: skip
        if kept.any():
            ax.scatter(
                places[kept], residuals[kept], s=size if marker == "o" else 16, marker=marker,
                c=colours[kept], alpha=alpha, linewidths=0, zorder=2, rasterized=many,
            )  # fmt: skip
    for level, width in ((-1, 1.0), (0, 1.4), (1, 1.0)):
        ax.axhline(level, color=REFERENCE_COLOUR, lw=width, zorder=1)
    for level in (-2, 2):
        ax.axhline(level, color=_SPREAD, lw=0.6, ls=":", zorder=1)
    for group in neighbours(panel, pit):
        own = residuals[group.rows]
        _draw_group(ax, group, own[np.isfinite(own)])
    known = residuals[np.isfinite(residuals)]
    low, high = np.min(known, initial=0.0) - _ROOM, np.max(known, initial=0.0) + _ROOM
    ax.set_ylim(min(-_LEAST, float(low)), max(_LEAST, float(high)))


def _draw_group(ax: Axes, group: Neighbours, residuals: np.ndarray) -> None:
    mean, sd = float(residuals.mean()), float(residuals.std(ddof=1))
    for level, width in ((mean - sd, 0.9), (mean, 2.0), (mean + sd, 0.9)):
        ax.plot([group.low, group.high], [level, level], color=INK, lw=width, zorder=3)


def _keys(k: int, far: bool) -> list[Line2D]:
    look = {"marker": "o", "ls": "none", "mew": 0}
    colours = expert_colours(k)
    experts = [key(f"expert {i}", colour, **look) for i, colour in enumerate(colours)]
    beyond = [key(f"{FAR:g} or more off", MUTED, marker="^", ls="none", mew=0)] if far else []
    return [
        key("mean ± 1 sd of neighbouring rows", INK),
        key("where they belong", MUTED, alpha=0.4),
        *experts,
        *beyond,
    ]
