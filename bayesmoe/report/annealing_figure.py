"""The figure of annealing: what the likelihood and the gate do while the temperature falls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bayesmoe.inference.annealing import Annealing
from bayesmoe.report._layout import axes_at, key, legend, new_figure
from bayesmoe.report.style import ESTIMATOR_COLOURS, INK, MUTED, REFERENCE_COLOUR, plain, style

_LEFT, _WIDTH, _HEIGHT, _GAP, _TOP, _BOTTOM = 0.78, 2.65, 1.55, 0.22, 0.36, 0.95  # inches
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
_PATH, _FREE = INK, ESTIMATOR_COLOURS["map"]


def annealing_figure(annealings: Sequence[Annealing]) -> Figure:
    """Log-likelihood and effective number of active experts against τ, dense to sparse.

    One column per annealing, temperatures falling to the right. Above: the log-likelihood lost
    against the fit with τ free, on a scale that is linear up to 1 and logarithmic beyond. Below:
    the mean over the data of exp(entropy of π(x)). Grey lines are paths that led to lower maxima
    than the best, which is black; hollow points are steps that did not converge. The dashed line
    is the τ of MAP.

    Parameters
    ----------
    annealings
        From `anneal`.

    Raises
    ------
    ValueError
        If there is none.
    """
    if not annealings:
        raise ValueError("annealing_figure needs at least one annealing, from bayesmoe.anneal")
    with style():
        width = len(annealings) * (_LEFT + _WIDTH) + 0.15
        figure = new_figure(width, _TOP + 2 * _HEIGHT + _GAP + _BOTTOM)
        for column, annealing in enumerate(annealings):
            left = column * (_LEFT + _WIDTH) + _LEFT
            upper = axes_at(figure, left, _TOP, _WIDTH, _HEIGHT)
            lower = axes_at(figure, left, _TOP + _HEIGHT + _GAP, _WIDTH, _HEIGHT)
            _draw(upper, lower, annealing)
            if column == 0:
                upper.set_ylabel("log-likelihood lost")
                lower.set_ylabel("experts active at one x")
        keys = [
            key("best path", _PATH, marker="o"),
            key("other paths", REFERENCE_COLOUR),
            key("MAP, τ free", _FREE, ls="--"),
        ]
        legend(figure, keys, len(keys))
    return figure


def _draw(upper: Axes, lower: Axes, annealing: Annealing) -> None:
    lost = annealing.fit.log_likelihood - annealing.log_likelihood
    for ax, values in ((upper, lost), (lower, annealing.n_active)):
        for path in range(len(values)):
            if path != annealing.best:
                ax.plot(annealing.temperatures, values[path], color=REFERENCE_COLOUR, lw=0.8)
        _draw_best(ax, annealing, values[annealing.best])
        ax.axvline(float(annealing.fit.measure.temperature), color=_FREE, ls="--", lw=1.0, zorder=1)
        ax.set_xscale("log")
        ax.invert_xaxis()
        ax.xaxis.set_major_formatter(_PLAIN)
    k = annealing.model.n_experts
    upper.set_yscale("symlog", linthresh=1.0, linscale=0.6)
    upper.set_ylim(float(np.max(lost)) * 1.6 + 1.0, min(-0.4, 1.3 * float(np.min(lost))))
    upper.axhline(0.0, color=MUTED, lw=0.6, zorder=0)
    upper.yaxis.set_major_formatter(_PLAIN)
    upper.tick_params(labelbottom=False)
    upper.set_title(f"{plain(annealing.model.gate.label)}, k = {k}", loc="left", color=INK)
    lower.set_ylim(0.95, k + 0.05)
    lower.set_yticks(range(1, k + 1))
    lower.set_xlabel("temperature τ, dense → sparse")


def _draw_best(ax: Axes, annealing: Annealing, values: np.ndarray) -> None:
    converged = annealing.converged[annealing.best]
    ax.plot(annealing.temperatures, values, color=_PATH, zorder=3)
    for chosen, face in ((converged, _PATH), (~converged, "white")):
        ax.plot(
            annealing.temperatures[chosen], values[chosen], "o", color=_PATH, mfc=face, ms=2.8,
            zorder=4,
        )  # fmt: skip
