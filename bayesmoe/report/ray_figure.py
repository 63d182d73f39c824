"""The figure of a ray: the joint posterior of the temperature and a gate slope as n grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax import Array
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from xarray import DataTree

from bayesmoe.core.compilation import jit_quickly
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.scaling import Scaling
from bayesmoe.diagnostics.alignment import align
from bayesmoe.report._layout import axes_at, key, legend, new_figure
from bayesmoe.report.style import (
    ESTIMATOR_COLOURS,
    INK,
    MUTED,
    SPREAD_COLOUR,
    plain,
    size_text,
    style,
)
from bayesmoe.study.scenario import Scenario
from bayesmoe.theory.voronoi import as_measure

_JOINT, _SIDE, _GAP, _LEFT, _TOP = 2.5, 0.8, 0.08, 0.72, 0.36  # inches
_DRAWS = 400  # points drawn per sample size
_GRID = 300  # points of a density
_SHOWN = 0.998  # of the draws within the axes


class Series(NamedTuple):
    """Posteriors of one model at growing sample sizes, simulated from one truth.

    Attributes
    ----------
    model
        The model, whose gate has a temperature.
    truth
        With as many experts as the model.
    posteriors
        By sample size, from `sample_posterior`.
    """

    model: MoE
    truth: Scenario
    posteriors: Mapping[int, DataTree]


def ray_figure(series: Sequence[Series]) -> Figure:
    """Draws of (β1, τ) for growing n, a pair of panels per model, with the ray through the truth.

    β1 is the first expert's gate slope on the first covariate, experts named as in the truth.
    Beside each joint panel is the posterior density of τ. Where the gate has a ray,
    the dashed curve is `temperature_density` at the largest n: what the prior alone says along the
    ray. Where it has none, the same line through the truth is drawn for comparison. Axes start at
    zero, so that spreads can be compared with values.

    Parameters
    ----------
    series
        One per pair of panels.

    Raises
    ------
    ValueError
        If there is no series, one has no posterior, or its gate no temperature.
    """
    _check(series)
    pair = _JOINT + _GAP + _SIDE
    width = len(series) * (_LEFT + pair + 0.1)
    with style():
        figure = new_figure(width, _TOP + _JOINT + (0.86 if len(series) > 1 else 1.3))
        for column, one in enumerate(series):
            left = column * (_LEFT + pair + 0.1) + _LEFT
            joint = axes_at(figure, left, _TOP, _JOINT, _JOINT)
            side = axes_at(figure, left + _JOINT + _GAP, _TOP, _SIDE, _JOINT)
            _draw(joint, side, one)
        sizes = sorted({n for one in series for n in one.posteriors})
        keys = [
            key(f"n = {size_text(n)}", colour, marker="o", ls="none", ms=5)
            for n, colour in zip(sizes, _tints(len(sizes)), strict=True)
        ]
        keys.append(key("truth", INK, marker="D", ls="none", ms=5))
        if any(one.model.gate.ray for one in series):
            keys.append(key("prior alone along the ray", SPREAD_COLOUR, ls="--"))
        legend(figure, keys, len(keys) if len(series) > 1 else 2)
    return figure


def temperature_density(model: MoE, posterior: DataTree, temperatures: ArrayLike) -> np.ndarray:
    """The posterior density of τ under a gate with a ray, without the draws of τ.

    Given η = (β1, β0)/τ the likelihood does not contain τ, so that its posterior is

    p(τ | η) ∝ p(τ) p(β1 = τη1) p(β0 = τη0) τ^((k-1)(d+1)),

    d being the number of the gate's covariates. This is averaged over the draws of η, which gives
    the marginal density at every n.

    Parameters
    ----------
    model
        The model that was sampled.
    posterior
        From `sample_posterior`.
    temperatures
        An increasing grid that covers the posterior, shape ``(m,)``; the density integrates to one
        on it.

    Returns
    -------
    Shape ``(m,)``.

    Raises
    ------
    ValueError
        If the gate has no ray.
    """
    if not model.gate.ray:
        raise ValueError(
            f"the {model.gate.label} gate has no ray, so that the likelihood contains τ; use the "
            "posterior's draws of the temperature"
        )
    x = np.asarray(posterior["constant_data"]["x"])
    y = np.asarray(posterior["observed_data"]["y"])
    scaling = Scaling.from_data(model.gate, x, y)
    grid = np.asarray(temperatures, float)
    draws = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), as_measure(posterior))
    logs = np.asarray(_log_density_on_ray(model, scaling, draws, jnp.asarray(grid)))
    density = np.exp(logs - logs.max(axis=1, keepdims=True))
    density /= np.trapezoid(density, grid, axis=1)[:, None]
    return np.asarray(density.mean(axis=0))


@jit_quickly(static_argnums=0)
def _log_density_on_ray(
    model: MoE, scaling: Scaling, draws: MixingMeasure, temperatures: Array
) -> Array:
    """log p(τ | η) but for a constant, a row per draw."""
    layout = model.layout(draws.n_covariates)
    free = layout.n_gate - 1  # but for τ

    def one(draw: MixingMeasure, tau: Array) -> Array:
        c = tau / draw.temperature
        moved = draw.replace(
            gate_slope=c * draw.gate_slope, gate_intercept=c * draw.gate_intercept, temperature=tau
        )
        prior = model.prior.log_density(model.gate, scaling.standardise(moved), layout.selection)
        return prior + free * jnp.log(tau)

    along = jax.vmap(one, in_axes=(None, 0))
    return jax.vmap(along, in_axes=(0, None))(draws, temperatures)


def _check(series: Sequence[Series]) -> None:
    if not series:
        raise ValueError("there is nothing to draw: series is empty")
    for one in series:
        gate = one.model.gate
        if not gate.has_temperature:
            raise ValueError(f"the {gate.label} gate has no temperature; leave it out")
        if not one.posteriors:
            raise ValueError(f"the series of the {gate.label} gate has no posterior")


# --- panels


def _draw(joint: Axes, side: Axes, one: Series) -> None:
    gate, sizes = one.model.gate, sorted(one.posteriors)
    colours = _tints(len(sizes))
    pairs = [_pairs(one, one.posteriors[n]) for n in sizes]
    measure = one.truth.measure
    truth = float(measure.gate_slope[0, 0]), float(measure.temperature)
    limits = _limits([np.vstack([*pairs, truth])[:, i] for i in (0, 1)])
    _ray(joint, truth, limits, np.median(pairs[-1][:, 1]), ray=gate.ray)
    for (slope, tau), colour in zip((p.T for p in pairs), colours, strict=True):
        kept = np.linspace(0, len(tau) - 1, min(_DRAWS, len(tau))).astype(int)
        joint.scatter(slope[kept], tau[kept], s=5, color=colour, alpha=0.55, linewidths=0,
                      zorder=3)  # fmt: skip
    joint.plot(*truth, "D", color=INK, mec="white", mew=0.8, ms=6.5, zorder=5)
    joint.set_xlim(limits[0])
    joint.set_ylim(limits[1])
    joint.set_xlabel(r"gate slope $\beta_1$")
    joint.set_ylabel(r"temperature $\tau$")
    joint.yaxis.set_major_locator(MaxNLocator(5))
    joint.set_title(_title(one), loc="left", weight="bold", pad=8)
    _draw_side(side, one, [p[:, 1] for p in pairs], limits[1])


def _title(one: Series) -> str:
    verdict = "a ray" if one.model.gate.ray else "no ray"
    return f"{plain(one.model.gate.label)}: {verdict}"


def _ray(
    ax: Axes,
    truth: tuple[float, float],
    limits: list[tuple[float, float]],
    centre: float,
    *,
    ray: bool,
) -> None:
    """The line through zero and the truth, named along it away from the draws' centre."""
    edge = limits[0][1] if truth[0] > 0 else limits[0][0]
    reach = min(edge / truth[0], limits[1][1] / truth[1]) if truth[0] else limits[1][1] / truth[1]
    end = reach * np.array(truth)
    ax.plot([0, end[0]], [0, end[1]], color=MUTED, lw=1.0, ls="-" if ray else ":", zorder=2)
    spans = [high - low for low, high in limits]
    angle = float(np.degrees(np.arctan2(end[1] / spans[1], end[0] / spans[0])))
    text = r"$(c\beta_1, c\tau)$: same density" if ray else r"$(c\beta_1, c\tau)$: another density"
    share = 0.68 if centre < end[1] / 2 else 0.34
    ax.annotate(
        text, (share * end[0], share * end[1]), xytext=(0, -4),
        textcoords="offset points", rotation=angle if angle <= 90 else angle - 180,
        rotation_mode="anchor", ha="center", va="top", color=MUTED,
    )  # fmt: skip


def _draw_side(
    ax: Axes, one: Series, temperatures: Sequence[np.ndarray], limits: tuple[float, float]
) -> None:
    grid = np.linspace(limits[1] / _GRID, limits[1], _GRID)
    for tau, colour in zip(temperatures, _tints(len(temperatures)), strict=True):
        ax.plot(scipy.stats.gaussian_kde(tau)(grid), grid, color=colour, lw=1.6)
    if one.model.gate.ray:
        largest = one.posteriors[max(one.posteriors)]
        density = temperature_density(one.model, largest, grid)
        ax.plot(density, grid, color=SPREAD_COLOUR, ls="--", lw=1.6, zorder=4)
    ax.axhline(float(one.truth.measure.temperature), color=INK, lw=0.8, ls=":")
    ax.set_ylim(limits)
    ax.set_xlim(left=0)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel("density\nof $\\tau$")
    ax.spines["bottom"].set_visible(False)


def _pairs(one: Series, posterior: DataTree) -> np.ndarray:
    """Draws of (β1, τ), experts named as in the truth, shape ``(s, 2)``."""
    named = align(posterior, one.model.gate, one.truth.measure)
    measures = as_measure(named)
    slope = np.asarray(measures.gate_slope)[..., 0, 0]
    return np.column_stack([slope.ravel(), np.ravel(measures.temperature)])


def _limits(columns: Sequence[np.ndarray]) -> list[tuple[float, float]]:
    """From zero to most draws and the truth, which is each column's last entry, with room."""
    found = []
    for values in columns:
        low, high = np.quantile(values, [(1 - _SHOWN) / 2, (1 + _SHOWN) / 2])
        low, high = min(0.0, low, values[-1]), max(0.0, high, values[-1])
        pad = 0.12 * (high - low)
        found.append((low - pad if low < 0 else 0.0, high + pad if high > 0 else 0.0))
    return found


def _tints(count: int) -> list[str]:
    """The posterior's colour from light to dark."""
    base = np.array(to_rgb(ESTIMATOR_COLOURS["posterior"]))
    light, dark = 0.42 * base + 0.58, 0.5 * base
    steps = [(base - light, light, 0.0), (dark - base, base, 0.5)]
    shares = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
    chosen = [steps[int(share > 0.5)] for share in shares]
    return [
        to_hex((r, g, b))
        for share, (change, start, begin) in zip(shares, chosen, strict=True)
        for r, g, b in [start + 2 * (share - begin) * change]
    ]
