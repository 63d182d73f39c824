"""The figure of a model fitted to one's own data: curves over it, gate probabilities below."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.path import Path

from bayesmoe.data.table import Axis
from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.report._along import first_axis, held_text
from bayesmoe.report._curves import LEVEL, Curves, expert_lines, posterior_curves
from bayesmoe.report._layout import Text, axes_at, beside, new_figure, spread_out, text_at
from bayesmoe.report._panels import (
    MANY,
    expert_colours,
    map_responsibilities,
    mixed_colours,
    posterior_draws,
)
from bayesmoe.report.style import (
    INK,
    MUTED,
    STATUS_LABELS,
    WARNING,
    percent,
    plain,
    short,
    size_text,
    style,
)

_WIDTH, _UPPER, _LOWER, _LEFT, _GAP = 4.75, 3.1, 1.25, 0.78, 0.36  # inches
_PAD = 0.015  # room beside the curves, as a share of their width
_SHADES = 20  # steps of opacity of an expert's line
_DEEPEST = 0.28  # opacity of an expert's band where its gate probability is one
_PIXELS = 321  # along such a band
_WIDE = 0.25  # of the panel's height: bands that are wider are the lighter, the wider they are
_BANDS = ("#E6E6E6", "#A8A8A8")  # predictive, credible


class _Drawn(NamedTuple):
    """What is drawn: the covariate's values and all curves over them."""

    x: np.ndarray
    lines: np.ndarray
    weights: np.ndarray
    curves: Curves


def fit_figure(analysis: Analysis, formulas: str = "") -> Figure:
    """Data, MAP, and posterior against the first covariate, the others at their medians.

    Where covariates are derived from columns, all is drawn against the first of these columns.

    Above: the observations, coloured by the experts that are responsible for them; the MAP's
    experts with the posterior's 90 % bands of their means, both faded where their gate probability
    is small; the posterior mean of E[Y|x] with a 90 % credible band, which is also that of a
    single expert, and a 90 % predictive interval, whose ends are quantiles of the posterior
    predictive distribution. Below: the posterior mean of the gate probabilities with 90 % bands.

    Parameters
    ----------
    analysis
        From `analyse`: experts are named alike in its MAP and its posterior.
    formulas
        That covariates were derived by, if any: said in place of the covariates.
    """
    y, gate = analysis.table.y.to_numpy(), analysis.model.gate
    measure, axis = analysis.map.measure, analysis.axis or first_axis(analysis.table.x)
    at = jnp.asarray(axis.at)
    means, weights = map(np.asarray, expert_lines(gate, measure, at))
    curves = posterior_curves(gate, posterior_draws(analysis), at)
    drawn = _Drawn(axis.points, means, weights, curves)
    shares = map_responsibilities(analysis)
    head = _head(analysis, axis, formulas)
    top = 0.36 + 0.2 * len(head)
    with style():
        figure = new_figure(_LEFT + _WIDTH + 1.6, top + _UPPER + _GAP + _LOWER + 0.55)
        upper = axes_at(figure, _LEFT, top, _WIDTH, _UPPER)
        lower = axes_at(figure, _LEFT, top + _UPPER + _GAP, _WIDTH, _LOWER)
        _scatter(upper, axis.values, y, shares)
        _draw_upper(upper, drawn, y)
        _draw_lower(lower, drawn)
        upper.set_ylabel(short(analysis.table.y.name))
        lower.set_xlabel(short(axis.name))
        for line, (text, colour) in enumerate(head):
            weight = "normal" if line else "bold"
            text_at(figure, 0.12, 0.22 + 0.2 * line, text, color=colour, weight=weight, size=8.5)
    return figure


# --- panels


def _scatter(ax: Axes, x: np.ndarray, y: np.ndarray, shares: np.ndarray) -> None:
    """The observations, colours mixed by responsibility."""
    many = len(y) > MANY
    ax.scatter(
        x, y, s=4 if many else 11, c=mixed_colours(shares), alpha=0.35 if many else 0.6,
        linewidths=0, zorder=2, rasterized=many,
    )  # fmt: skip


def _draw_upper(ax: Axes, drawn: _Drawn, y: np.ndarray) -> None:
    x, mean = drawn.x, drawn.curves.mean
    low, high = drawn.curves.predictive_low, drawn.curves.predictive_high
    ax.fill_between(x, low, high, color=_BANDS[0], lw=0, zorder=1, label="predictive")
    ax.fill_between(x, mean.low, mean.high, color=_BANDS[1], lw=0, zorder=1.5,
                    label="credible")  # fmt: skip
    ax.plot(x, mean.centre, color=INK, lw=1.2, zorder=3, label="mean")
    _covariate_axis(ax, x)
    ax.set_ylim(*_limits(y, low, high))
    k = len(drawn.lines)
    for i, colour in enumerate(expert_colours(k)):
        _faded(ax, x, drawn.lines[i], drawn.weights[i], colour)
        if k > 1:  # the band of one expert is the credible band
            _faded_band(ax, drawn, i, colour)
    ax.tick_params(labelbottom=False)
    level = percent(LEVEL)
    labels: list[tuple[float, list[Text]]] = [
        (high[-1], [(f"{level} predictive interval", MUTED), ("of single observations", MUTED)]),
        (mean.centre[-1], [("posterior mean with", INK), (f"{level} credible band", INK)]),
    ]
    bottom, top = ax.get_ylim()
    beside(ax, _UPPER, [((v - bottom) / (top - bottom), lines) for v, lines in labels])


def _faded(ax: Axes, x: np.ndarray, line: np.ndarray, weight: np.ndarray, colour: str) -> None:
    """A line as opaque as its gate probability, in steps; none below half a step."""
    middle = (weight[:-1] + weight[1:]) / 2
    level = np.round(np.clip(middle, 0, 1) * _SHADES)
    for run in np.split(np.arange(len(level)), np.flatnonzero(np.diff(level)) + 1):
        if level[run[0]]:
            part = slice(run[0], run[-1] + 2)
            ax.plot(
                x[part], line[part], color=colour, alpha=level[run[0]] / _SHADES, lw=2.2,
                solid_capstyle="butt", zorder=2.8, label="_expert",
            )  # fmt: skip


def _faded_band(ax: Axes, drawn: _Drawn, expert: int, colour: str) -> None:
    """The band of an expert's mean: an image in its shape, faded as the line in it.

    Where it takes more than a share of the panel's height it is the lighter, the more it takes, so
    that an expert of which little is known does not hide the others. (Polygons side by side, one
    for each step of opacity, would show their seams.)
    """
    x, band = drawn.x, drawn.curves.expert
    low, high = band.low[expert], band.high[expert]
    room = _WIDE * float(np.ptp(ax.get_ylim()))
    opacity = _DEEPEST * drawn.weights[expert] * room / np.maximum(room, high - low)
    along = np.linspace(x[0], x[-1], _PIXELS)
    image = np.empty((1, _PIXELS, 4))
    image[..., :3] = to_rgb(colour)
    image[..., 3] = np.clip(np.interp(along, x, opacity), 0, 1)
    half = (along[1] - along[0]) / 2
    shape = AxesImage(
        ax, extent=(x[0] - half, x[-1] + half, 0, 1), origin="lower", interpolation="nearest",
        label="_expert band", zorder=1.7,
    )  # fmt: skip
    shape.set_data(image)
    shape.set_transform(ax.get_xaxis_transform())  # from the foot of the axes to their top
    outline = np.column_stack([np.r_[x, x[::-1]], np.r_[low, high[::-1]]])
    shape.set_clip_path(Path(outline), ax.transData)
    ax.add_image(shape)


def _covariate_axis(ax: Axes, x: np.ndarray) -> None:
    pad = _PAD * (x[-1] - x[0])
    ax.set_xlim(x[0] - pad, x[-1] + pad)


def _limits(y: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """All data and the predictive interval, up to one range of the data beyond them."""
    span = float(np.ptp(y))
    bottom = max(min(y.min(), low.min()), y.min() - span)
    top = min(max(y.max(), high.max()), y.max() + span)
    pad = 0.04 * (top - bottom)
    return float(bottom - pad), float(top + pad)


def _draw_lower(ax: Axes, drawn: _Drawn) -> None:
    x, band = drawn.x, drawn.curves.probability
    k = len(band.centre)
    for i, colour in enumerate(expert_colours(k)):
        ax.fill_between(x, band.low[i], band.high[i], color=colour, lw=0, alpha=0.22)
        ax.plot(x, band.centre[i], color=colour, lw=1.4, label=f"expert {i}")
    _covariate_axis(ax, x)
    ax.set_ylim(-0.03, 1.03)
    ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.set_ylabel("gate\nprobability")
    names = [f"expert {i}" if k <= 8 else str(i) for i in range(k)]
    peaks = [(_PAD + _peak(share)) / (1 + 2 * _PAD) * _WIDTH for share in band.centre]
    size = 0.56 if k <= 8 else _WIDTH / k
    for name, at, colour in zip(
        names, spread_out(peaks, size, 0, _WIDTH), expert_colours(k), strict=True
    ):
        ax.annotate(
            name, (at / _WIDTH, 1), xycoords="axes fraction", xytext=(0, 4),
            textcoords="offset points", ha="center", color=colour,
        )  # fmt: skip
    beside(
        ax, _LOWER, [(0.5, [("posterior mean with", MUTED), (f"{percent(LEVEL)} bands", MUTED)])]
    )


def _peak(share: np.ndarray) -> float:
    """The middle of the longest stretch where a curve is near its maximum, from 0 to 1."""
    near = np.flatnonzero(share >= share.max() - 0.02)
    runs = np.split(near, np.flatnonzero(np.diff(near) > 1) + 1)
    return float(np.mean(max(runs, key=len)) / (len(share) - 1))


# --- texts


def _head(analysis: Analysis, axis: Axis, formulas: str) -> list[Text]:
    """What was fitted, what the upper panel shows, and what to beware of."""
    table, status = analysis.table, str(analysis.posterior.attrs["status"])
    k = analysis.model.n_experts
    experts = "1 expert" if k == 1 else f"{k} experts"
    label, straight = plain(analysis.model.gate.label), "" if formulas else "straight "
    drawn = (
        f"{straight}line: the expert at the MAP"
        if k == 1
        else f"{straight}lines: experts at the MAP with {percent(LEVEL)} bands, faded by their "
        "gate probability"
    )
    lines = [
        (f"{label}, {experts}, n = {size_text(len(table.y))}", INK),
        (f"points: data, coloured by expert; {drawn}", MUTED),
    ]
    selected = analysis.model.selection.describe([short(name, 20) for name in table.x.columns])
    if formulas:
        lines.append((short(formulas, 96), MUTED))
    elif selected:
        lines.append((f"covariates: {selected}", MUTED))
    if axis.held:
        lines.append(
            (f"all curves are at {held_text(axis.held)}, while the data vary in all", MUTED)
        )
    if status != "converged":
        lines.append((f"the posterior is not to be trusted: {STATUS_LABELS[status]}", WARNING))
    return lines
