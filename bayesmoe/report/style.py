"""How figures look and how numbers, rates and names are printed."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import fontManager
from matplotlib.lines import TICKDOWN, TICKLEFT, Line2D  # type: ignore[attr-defined]
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from numpy.typing import ArrayLike

ESTIMATORS = ("em", "mle", "map", "posterior")
ESTIMATOR_LABELS = {"em": "EM", "mle": "MLE", "map": "MAP", "posterior": "posterior"}

# Darkened Okabe-Ito colours: distinct under colour blindness, contrast over 4.5 on white as text.
INK = "#1E1E1E"
ESTIMATOR_COLOURS = {"em": INK, "mle": "#0067A5", "map": "#BF4F00", "posterior": "#00795A"}
SPREAD_COLOUR = "#8F2F6B"  # posterior standard deviation
EXPERT_COLOURS = (
    "#0067A5", "#BF4F00", "#00795A", "#8F2F6B", "#7A6000", "#4B56C0", "#8B3A2E", "#2F6F7E",
)  # fmt: skip
WARNING = "#9A3F00"
REFERENCE_COLOUR = "#D2D2D2"
MUTED = "#595959"

BLOCKS = ("gate_slope", "temperature", "slope", "intercept", "variance")
BLOCK_TITLES = {
    "gate_slope": r"gate slope $\beta_1$",
    "temperature": r"temperature $\tau$",
    "slope": r"expert slope $a$",
    "intercept": r"expert intercept $b$",
    "variance": r"expert variance $\nu$",
}
QUANTITY_LABELS = {
    "loss": "Voronoi loss",
    "identified_loss": "Voronoi loss modulo the ray",
    "normalised_loss": "normalised Voronoi loss",
    "normalised_identified_loss": "normalised Voronoi loss modulo the ray",
    "gate_slope": "gate slope β₁",
    "temperature": "temperature τ",
    "slope": "expert slope a",
    "intercept": "expert intercept b",
    "variance": "expert variance ν",
    "temperature_sd": "posterior sd of τ",
    "map_mle_distance": "distance between MAP and MLE",
}

STATUS_LABELS = {
    "converged": "converged",
    "at_variance_floor": "at the variance floor",
    "at_prior_bound": "at a bound of the prior",
    "separated": "separated: no finite maximum",
    "temperature_to_zero": "temperature goes to zero: no maximum",
    "empty_expert": "an expert lost all weight",
    "negative_curvature": "at a saddle point",
    "stalled": "stalled",
    "stopped_early": "stopped early",
    "max_iterations": "out of iterations",
    "non_finite": "objective not finite",
    "not_mixed": "chains not mixed",
    "divergent": "too many divergences",
    "unreliable": "importance weights unreliable",
    "failed": "computation failed",
}

# several gates of one name, with different options, get shapes of one family
_MARKERS = {
    "softmax": "o",
    "dense_to_sparse": "s",
    "activation_dense_to_sparse": "^v<>",
    "top_k_sparse": "Dd",
}
_SPARE_MARKERS = "PXph*"
#: the same shapes as characters
MARKER_TEXTS = dict(zip("os^v<>DdPXph*", "●■▲▼◀▶◆♦✚✖⬟⬢★", strict=True))

_FAMILY = "DejaVu Sans"  # shipped with matplotlib: the same everywhere
# for letters that it lacks, as Chinese ones, where one of these is installed
_FALLBACKS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Hiragino Sans GB",
    "Arial Unicode MS", "Microsoft YaHei", "Malgun Gothic", "Noto Sans Devanagari",
)  # fmt: skip

_RC: dict[str, Any] = {
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#3A3A3A",
    "axes.unicode_minus": True,
    "xtick.color": "#3A3A3A",
    "ytick.color": "#3A3A3A",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "xtick.minor.size": 1.8,
    "ytick.minor.size": 1.8,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "mathtext.fontset": "dejavusans",
    "text.usetex": False,
    "svg.fonttype": "path",  # the same shapes on every machine
    "svg.hashsalt": "bayesmoe",
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The house style, from matplotlib's defaults and not the user's settings, while it lasts."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC | {"font.family": _families()})
        yield


def _families() -> list[str]:
    """Families of fonts, the first first; matplotlib would warn of those that are not installed."""
    installed = {font.name for font in fontManager.ttflist}
    return [_FAMILY, *(name for name in _FALLBACKS if name in installed)]


def gate_markers(gates: Sequence[str]) -> dict[str, str]:
    """One marker per gate id, by the name in front of its options: the same in every study."""
    families = {name: itertools.cycle(shapes) for name, shapes in _MARKERS.items()}
    spare = itertools.cycle(_SPARE_MARKERS)
    return {gate: next(families.get(gate.split("(")[0], spare)) for gate in gates}


def plain(text: str) -> str:
    """``text`` on one line for matplotlib: nothing in it is mathematics or a control character."""
    kept = "".join(c if c.isprintable() else " " for c in str(text))
    return kept.replace("$", r"\$")


def short(name: object, length: int = 48) -> str:
    """A name as by `plain`, with an ellipsis if it is longer than ``length`` characters."""
    text = " ".join(str(name).split())
    return plain(text if len(text) <= length else text[: length - 1] + "…")


class Number(NamedTuple):
    """A number as a table shows it, and as the table sorts it."""

    text: str
    value: float


def number(value: float, digits: int = 2) -> str:
    """A number with a typographic minus sign; a dash if it is not finite."""
    if not math.isfinite(value):
        return "–"
    rounded = round(float(value), digits) + 0.0  # no negative zero
    return f"{rounded:.{digits}f}".replace("-", "−")


def estimate(slope: float, low: float, high: float, digits: int = 2) -> str:
    """A slope with its interval, as in ``−0.49 [−0.55, −0.43]``."""
    if not math.isfinite(slope):
        return "no slope"
    if not (math.isfinite(low) and math.isfinite(high)):
        return number(slope, digits)
    return f"{number(slope, digits)} [{number(low, digits)}, {number(high, digits)}]"


def size_text(n: float) -> str:
    """A sample size with thin spaces between groups of three digits."""
    return f"{round(n):,}".replace(",", "\u2009")


def percent(share: float) -> str:
    """A share in per cent, as in ``97.5 %``."""
    return f"{100 * share:.10g} %"


def rate_exponent(text: str) -> str | None:
    """The 1/2 of a rate printed as ``n^-1/2``, the 1 of ``n^-1``; None for any other text."""
    match = re.fullmatch(r"n\^-(\d+(?:/\d+)?)", str(text).strip())
    return None if match is None else match[1]


def rate_math(exponent: float, text: str) -> str:
    """An expected rate for a figure, in mathtext where it is a power of n."""
    if exponent == 0:
        return "no rate (ray)"
    power = rate_exponent(text)
    return plain(text) if power is None else f"$n^{{-{power}}}$"


def specification(fitted: int, true: int) -> str:
    """How the fitted number of experts relates to the true one, as in ``exact, k = 2``."""
    kind = "exact" if fitted == true else "over-specified" if fitted > true else "under-specified"
    return f"{kind}, k = {fitted}"


def size_axis(ax: Axes, sizes: ArrayLike, width: float, *, labels: bool = True) -> None:
    """Make x a logarithmic axis of sample sizes.

    Parameters
    ----------
    ax
        The axes.
    sizes
        The sample sizes of the study: each gets a tick, as many as fit a label.
    width
        Width of the axes in inches.
    labels
        Whether to print tick labels at all.
    """
    logs = np.log10(np.unique(np.asarray(sizes, float)))
    span = float(np.ptp(logs))
    pad = 0.085 * span if span > 0 else 0.3
    ax.set_xscale("log")
    ax.set_xlim(10 ** (logs[0] - pad), 10 ** (logs[-1] + pad))
    kept = _spaced(logs, 0.56 * (span + 2 * pad) / width)
    ax.xaxis.set_major_locator(FixedLocator(list(10 ** logs[kept])))
    ax.xaxis.set_minor_locator(NullLocator())
    _minor_ticks(ax, "x", [10 ** logs[i] for i in range(len(logs)) if i not in kept])
    texts = [size_text(10 ** logs[i]) if labels else "" for i in kept]
    ax.xaxis.set_major_formatter(FixedFormatter(texts))


def _spaced(positions: np.ndarray, gap: float) -> list[int]:
    """The finest regular choice of ``positions``, from the first on, at least ``gap`` apart."""
    for step in range(1, len(positions)):
        chosen = list(range(0, len(positions), step))
        if np.min(np.diff(positions[chosen]), initial=np.inf) >= gap:
            return chosen
    return [0]


def loss_axis(ax: Axes, low: float, high: float) -> None:
    """Make y a logarithmic axis from 10**low to 10**high with few, plain tick labels."""
    ax.set_yscale("log")
    ax.set_ylim(10**low, 10**high)
    decades = range(math.floor(low), math.ceil(high) + 1)
    step = max(1, math.ceil((high - low) / 5))
    factors = (1, 3) if high - low < 2 else (1,)
    major = [f * 10.0**d for d in decades if d % step == 0 for f in factors]
    major = [t for t in major if low <= math.log10(t) <= high]
    minor = [f * 10.0**d for d in decades for f in range(1, 10)] if high - low < 4 else []
    ax.yaxis.set_major_locator(FixedLocator(major))
    ax.yaxis.set_major_formatter(FixedFormatter([_decimal(t) for t in major]))
    ax.yaxis.set_minor_locator(NullLocator())
    _minor_ticks(ax, "y", [t for t in minor if low <= math.log10(t) <= high and t not in major])


def _minor_ticks(ax: Axes, side: str, positions: Sequence[float]) -> None:
    """Small ticks without labels, as one artist: half of a figure's time would go into single ones.

    They belong to the figure, beside the axes, so that all lines of the axes are data.
    """
    settings, at = matplotlib.rcParams, np.asarray(positions, float)
    xy, marker, transform = (at, 0 * at), TICKDOWN, ax.get_xaxis_transform()
    if side == "y":
        xy, marker, transform = (0 * at, at), TICKLEFT, ax.get_yaxis_transform()
    ax.figure.add_artist(
        Line2D(
            *xy, ls="none", marker=marker, transform=transform, mec=settings[f"{side}tick.color"],
            ms=settings[f"{side}tick.minor.size"], mew=settings[f"{side}tick.minor.width"],
        )
    )  # fmt: skip


def _decimal(value: float) -> str:
    power = math.floor(math.log10(value) + 1e-9)
    if -3 <= power <= 2:
        return f"{value:.{max(0, -power)}f}"
    lead = round(value / 10.0**power)
    return rf"$10^{{{power}}}$" if lead == 1 else rf"${lead}\!\times\!10^{{{power}}}$"
