"""The figure of predictive densities: p(y|x) at a few values of a covariate, and rows near them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.special import ndtr

from bayesmoe.core.compilation import jit_unoptimised
from bayesmoe.core.density import conditional_density
from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.data.table import Axis
from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.report._along import figure_number, first_axis, held_text
from bayesmoe.report._curves import LEVEL, MAX_DRAWS, Band, band, thinned
from bayesmoe.report._layout import DASHES, Text, axes_at, beside, new_figure, text_at
from bayesmoe.report._panels import (
    GOLDEN,
    find_levels,
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

#: levels of the quantiles of the covariate that densities are drawn at
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
#: rows that a density is compared with: one in five, at most fifty
SHARE, MOST = 5, 50
#: draws used for densities at these rows
ROW_DRAWS = 100

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _GAP, _BOTTOM = 4.75, 0.86, 0.78, 1.75, 0.16, 0.5  # inches
_BAND, _ROWS = "#C6C6C6", MUTED
_TICK = 0.17  # height of a row's tick, as a share of the height of the axes
_EVEN, _KNOTS = 241, 800  # points of y that are even; those that are where the experts are
_OFFSETS = np.linspace(-6.0, 6.0, 25)  # standard deviations from an expert's mean to a knot
_TAIL = 0.005  # of each density, left out to either side at most
_PART = 0.1  # least probability of an expert that must be seen
_UNEVEN = 10.0  # how much taller the part of another expert may be
_CUT = 2.0  # how high bands may reach, in heights of the largest mean


class Laws(NamedTuple):
    """The normal laws that S draws have at points, each array of shape ``(points, S, k)``."""

    weights: np.ndarray
    means: np.ndarray
    sds: np.ndarray

    def at(self, points: int | slice) -> Laws:
        """Those at one point, ``(S, k)``, or at some."""
        return Laws(*(part[points] for part in self))


class Near(NamedTuple):
    """Rows near a value of the covariate, and the least and largest value among them."""

    rows: np.ndarray
    low: float
    high: float


def density_figure(analysis: Analysis, formulas: str = "") -> Figure:
    """The posterior predictive density of y at a few values of the covariate of `fit_figure`.

    The black line is the density p(y|x) averaged over draws, the band its 90 % over draws, at each
    y. The values are the levels of the covariate if these are few, else its quantiles of levels
    0.1, 0.3, 0.5, 0.7 and 0.9; all others are held as in `fit_figure`. Where the covariates are
    derived from columns, the values are the nearest of those that curves are drawn at. Ticks are
    the rows nearest to each value, one in five, at most 50, coloured by the responsible experts.
    They have other covariates, if only a little: the dashed line is the average of the densities
    at theirs, the law that they should look drawn from. y has one scale; every panel has its own
    height, with a square-root scale in all if a narrow expert would hide another one in any. A band
    higher than twice the line is cut.

    Parameters
    ----------
    analysis
        From `analyse`.
    formulas
        That covariates were derived by, if any: said on the figure.
    """
    y, places = analysis.table.y.to_numpy(), find_places(analysis)
    gate, draws = analysis.model.gate, posterior_draws(analysis)
    laws = find_laws(gate, thinned(draws), places.at)
    near = [nearest_rows(places.values, point) for point in places.points.tolist()]
    rows = np.concatenate([one.rows for one in near])
    theirs = find_laws(gate, thinned(draws, ROW_DRAWS), analysis.table.x.to_numpy()[rows])
    low, high = _limits(laws, y, rows)
    colours, rooted = mixed_colours(map_responsibilities(analysis)), is_uneven(laws)
    head = _head(analysis, places, formulas)
    with style():
        figure, axes = _new_axes(len(near), head, rooted)
        for i, (ax, one) in enumerate(zip(axes, near, strict=True)):
            law, own = laws.at(i), theirs.at(slice(i * len(one.rows), (i + 1) * len(one.rows)))
            grid = np.union1d(density_grid(law, low, high), density_grid(own, low, high))
            _draw(ax, grid, densities(law, grid), mean_density(own, grid), rooted)
            _rug(ax, y[one.rows], colours[one.rows])
            _tell(ax, float(places.points[i]), one)
            ax.set_xlim(low, high)
        axes[-1].set_xlabel(short(analysis.table.y.name))
    return figure


# --- where


def find_places(analysis: Analysis) -> Axis:
    """The axis of `fit_figure`, with the values that densities are drawn at as its points."""
    axis, x = analysis.axis, analysis.table.x
    values = x.iloc[:, 0].to_numpy(dtype=float) if axis is None else axis.values
    wanted = find_levels(values)
    if wanted is None:  # values that occur
        wanted = np.unique(np.quantile(values, LEVELS, method="nearest"))
    if axis is None:
        return first_axis(x, wanted)
    chosen = np.unique(np.abs(axis.points[:, None] - wanted).argmin(axis=0))
    return axis._replace(points=axis.points[chosen], at=axis.at[chosen])


def nearest_rows(values: np.ndarray, point: float) -> Near:
    """One row in five, at most fifty: those whose values ``(n,)`` are nearest to a point.

    Rows that are equally near are drawn by a fixed seed, for their order in a table may be by y.
    """
    n = len(values)
    number = min(MOST, -(-n // SHARE))
    drawn = np.random.default_rng(0).permutation(n)
    rows = np.sort(np.lexsort((drawn, np.abs(values - point)))[:number])
    return Near(rows, float(values[rows].min()), float(values[rows].max()))


# --- densities


def find_laws(gate: Gate, draws: MixingMeasure, at: np.ndarray) -> Laws:
    """Of draws ``(S,)`` at points ``(m, d)``."""
    return Laws(*map(np.asarray, _laws(gate, draws, jnp.asarray(at))))


@jit_unoptimised(static_argnums=0)
def _laws(gate: Gate, draws: MixingMeasure, x: Array) -> tuple[Array, ...]:
    law = jax.vmap(lambda draw: conditional_density(gate, draw, x))(draws)
    parts = (jnp.exp(law.log_weights), law.locs, law.scales)
    return tuple(jnp.moveaxis(part, 0, 1) for part in parts)


def densities(law: Laws, y: np.ndarray) -> Band:
    """p(y|x) at one point, law of shape ``(S, k)``: the mean over draws, and its 90 % band."""
    return band(_by_draw(law, y))


def mean_density(laws: Laws, y: np.ndarray) -> np.ndarray:
    """p(y|x) averaged over points and draws, laws of shape ``(r, S, k)``."""
    found = np.zeros(len(y))
    for i in range(len(laws.means)):  # one by one, so that memory holds one
        found += _by_draw(laws.at(i), y).mean(axis=0)
    return found / len(laws.means)


def _by_draw(law: Laws, y: np.ndarray) -> np.ndarray:
    """p(y|x) of each draw at one point, shape ``(S, len(y))``."""
    found = np.zeros((len(law.means), len(y)))
    for weight, mean, sd in zip(*(part.T[..., None] for part in law), strict=True):
        found += weight / sd * np.exp(-0.5 * ((y - mean) / sd) ** 2)
    return found / np.sqrt(2 * np.pi)


def density_grid(law: Laws, low: float, high: float) -> np.ndarray:
    """Ascending values from low to high: even ones, and more where experts are.

    Every expert of every draw has as many knots, half a standard deviation apart and in another
    place from draw to draw; of all these, an even choice by rank, so that a narrow expert has as
    many points as a wide one. The law may be of one point or of several.
    """
    turns = (np.arange(law.means.shape[-2])[:, None] * GOLDEN) % 1.0
    offsets = _OFFSETS + (_OFFSETS[1] - _OFFSETS[0]) * turns
    knots = law.means[..., None] + law.sds[..., None] * offsets[:, None]
    knots = np.sort(knots, axis=None)
    knots = knots[(knots > low) & (knots < high)]
    chosen = np.linspace(0, len(knots) - 1, min(len(knots), _KNOTS)).round().astype(int)
    return np.unique(np.concatenate([np.linspace(low, high, _EVEN), knots[chosen]]))


def is_uneven(laws: Laws) -> bool:
    """Whether at any point one expert's part of the density is ten times as tall as another's.

    Of experts that have a tenth of the probability there.
    """
    tall = np.median(laws.weights / laws.sds, axis=1)
    there = laws.weights.mean(axis=1) >= _PART
    tallest = np.max(tall, axis=1, where=there, initial=0.0)
    lowest = np.min(tall, axis=1, where=there, initial=np.inf)
    return bool(np.any(tallest > _UNEVEN * lowest))


def _limits(laws: Laws, y: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Of y, for all panels: rows and densities, up to half a range of the data beyond these."""
    span = float(np.ptp(y))
    grid = np.linspace(y.min() - span / 2, y.max() + span / 2, 401)
    below = np.stack([_below(Laws(*parts), grid) for parts in zip(*laws, strict=True)])
    within = grid[(below.max(axis=0) >= _TAIL) & (below.min(axis=0) <= 1 - _TAIL)]
    shown = np.concatenate([within, y[rows]])
    return float(shown.min() - 0.02 * span), float(shown.max() + 0.02 * span)


def _below(law: Laws, y: np.ndarray) -> np.ndarray:
    """P(Y at most y) at one point, averaged over draws."""
    found = np.zeros(len(y))
    for weight, mean, sd in zip(*(part.T[..., None] for part in law), strict=True):
        found += (weight * ndtr((y - mean) / sd)).mean(axis=0)
    return found


# --- panels


def _new_axes(number: int, head: list[Text], rooted: bool) -> tuple[Figure, list[Axes]]:
    """A figure with its texts, and panels below each other with one scale of y, labelled once."""
    top, height = 0.32 + 0.2 * len(head), number * (_HEIGHT + _GAP) - _GAP
    figure = new_figure(_LEFT + _WIDTH + _RIGHT, top + height + _BOTTOM)
    for line, (text, colour) in enumerate(head):
        weight = "normal" if line else "bold"
        text_at(figure, 0.12, 0.22 + 0.2 * line, text, color=colour, weight=weight, size=8.5)
    label = f"density p(y | x){', square-root scale' if rooted else ''}"
    text_at(figure, 0.16, top + height / 2, label, rotation=90, va="center", size=9.0)
    axes = [
        axes_at(figure, _LEFT, top + i * (_HEIGHT + _GAP), _WIDTH, _HEIGHT) for i in range(number)
    ]
    for ax in axes[:-1]:
        ax.tick_params(labelbottom=False)
    return figure, axes


def _draw(ax: Axes, y: np.ndarray, density: Band, rows: np.ndarray, rooted: bool) -> None:
    ax.fill_between(y, density.low, density.high, color=_BAND, lw=0, zorder=1, label="band")
    ax.plot(y, density.centre, color=INK, lw=1.2, zorder=3, label="mean")
    ax.plot(y, rows, color=_ROWS, lw=1.0, dashes=DASHES, zorder=2.5, label="mean of rows")
    line = density.centre.max()
    height = 1.05 * max(line, rows.max(), min(density.high.max(), _CUT * line))
    foot = _TICK / (1 - _TICK)  # room for the rug
    if rooted:
        ax.set_yscale("function", functions=(_root, _square))
    ax.set_ylim(-height * (foot**2 if rooted else foot), height)
    ax.yaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
    ax.set_yticks([tick for tick in ax.get_yticks() if 0 <= tick <= height])


def _root(values: np.ndarray) -> np.ndarray:
    """Of both signs, for the room below zero."""
    found: np.ndarray = np.sign(values) * np.sqrt(np.abs(values))
    return found


def _square(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = values * np.abs(values)
    return found


def _rug(ax: Axes, y: np.ndarray, colours: np.ndarray) -> None:
    """A tick for each row, below the density."""
    ticks = [[(value, 0.0), (value, 0.8 * _TICK)] for value in y.tolist()]
    ax.add_collection(
        LineCollection(
            ticks, colors=colours, linewidths=0.9, alpha=0.75,
            transform=ax.get_xaxis_transform(), label="rows",
        ),
        autolim=False,
    )  # fmt: skip


def _tell(ax: Axes, point: float, near: Near) -> None:
    low, high = figure_number(near.low), figure_number(near.high)
    lines = [
        (f"at {figure_number(point)}", INK),
        (f"{near_text(len(near.rows))}, at", MUTED),
        (low if low == high else f"{low} to {high}", MUTED),
    ]
    beside(ax, _HEIGHT, [(0.5, lines)])


def near_text(number: int) -> str:
    """How many rows are near, in words."""
    return "the nearest row" if number == 1 else f"the {number} nearest rows"


# --- texts


def drawn_text(analysis: Analysis) -> str:
    """How many draws are averaged over, in words."""
    draws = int(np.prod(posterior_draws(analysis).batch_shape))
    kept = f"all {draws}" if draws <= MAX_DRAWS else f"{MAX_DRAWS} of {size_text(draws)}"
    return f"{kept} draws"


def _head(analysis: Analysis, places: Axis, formulas: str) -> list[Text]:
    """What is drawn, where the other covariates are, and what to beware of."""
    label, status = plain(analysis.model.gate.label), str(analysis.posterior.attrs["status"])
    coloured = ", coloured by expert" if analysis.model.n_experts > 1 else ""
    lines = [
        (f"{label}: predictive densities at values of {short(places.name, 24)}", INK),
        (f"lines: predictive density, averaged over {drawn_text(analysis)}, with "
         f"{percent(LEVEL)} bands; ticks: rows{coloured}", MUTED),
        ("dashed: the same at the covariates of these rows; they should look drawn from it", MUTED),
    ]  # fmt: skip
    if formulas:
        lines.append((short(formulas, 96), MUTED))
    if places.held:
        held = held_text(places.held)
        lines.append((f"lines and bands are at {held}, rows at their own values", MUTED))
    if status != "converged":
        lines.append((f"the posterior is not to be trusted: {STATUS_LABELS[status]}", WARNING))
    return lines
