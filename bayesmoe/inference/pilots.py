"""What a chain can leap between, learnt from chains around the modes.

Curvature at a mode tells little where experts are to spare: Laplace's approximation is wrong about
masses by powers of ten. A chain around each mode tells how wide the posterior is there, and
importance sampling from laws as wide tells how much of it is where.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from bayesmoe.core.layout import Layout
from bayesmoe.core.observations import Data
from bayesmoe.inference.chart import Chart, temperature_place
from bayesmoe.inference.laplace import MAX_PARETO_K, smooth, weigh
from bayesmoe.inference.leaps import MAX_LAWS, Regions, make_regions
from bayesmoe.inference.mixture import DEGREES, MAX_COPIES, Mixture, defensive
from bayesmoe.inference.modes import Modes
from bayesmoe.inference.target import Target

_LEAST_WEIGHT = 1e-6  # of a mode that gets a pilot: Laplace's weights may be as wrong
_HEAVY = 1e-3  # weight of modes of which so many that not all can have a pilot mean another kind
_DRAWS_PER_COORDINATE = 20  # that a pilot needs to tell widths
_PROPOSALS = 2000


class Explored(NamedTuple):
    """What pilots found.

    Attributes
    ----------
    regions
        What chains leap between.
    modes
        Which mode each of m laws is around, shape ``(m,)``.
    masses
        Each law's share of the posterior, ``(m,)``.
    """

    regions: Regions
    modes: np.ndarray
    masses: np.ndarray


def choose_pilots(layout: Layout, modes: Modes, n_draws: int) -> np.ndarray:
    """The modes that get a pilot; none where that is no use.

    That is where there is one, where there are more heavy ones than can be had, where experts have
    more names than can be looked at, and where pilots are too short to tell widths.
    """
    weights = modes.weights
    chosen = np.flatnonzero(weights >= _LEAST_WEIGHT)[:MAX_LAWS]
    too_many = np.sum(weights >= _HEAVY) > MAX_LAWS
    too_short = n_draws < _DRAWS_PER_COORDINATE * layout.size
    too_many |= math.factorial(layout.n_experts - 1) > MAX_COPIES
    return chosen[:0] if len(chosen) == 1 or too_many or too_short else chosen


def explore(
    target: Target,
    data: Data,
    modes: np.ndarray,
    charts: Chart,
    u: np.ndarray,
    step_size: np.ndarray,
    rng: np.random.Generator,
) -> Explored | None:
    """What pilots around m modes ``(m,)``, in their charts, found; None if laws do not cover it.

    That is where the Pareto k of importance weights is too large. Draws ``(m, draw, p)``.
    """
    widths = _fit(target.layout, charts, u)
    if widths is None:
        return None
    even = Mixture.of(widths, np.full(len(modes), 1 / len(modes)))
    proposals = even.draw(target.layout, rng, _PROPOSALS)
    _, log_ratio = weigh(target, data, even, proposals)
    weights, pareto_k = smooth(log_ratio)
    if not pareto_k <= MAX_PARETO_K:
        return None
    terms = even.terms(target.layout, proposals)
    shares = np.exp(terms - terms.max(axis=(0, 2))[:, None]).sum(axis=-1)
    masses = (shares / shares.sum(axis=0)) @ weights
    mixture = Mixture.of(widths, defensive(masses))
    return Explored(make_regions(mixture, step_size / step_size.max()), modes, masses)


def _fit(layout: Layout, charts: Chart, u: np.ndarray) -> Chart | None:
    """Charts centred and whitened by draws ``(m, draw, p)``; None if a chain hardly moved."""
    place = temperature_place(layout)
    if place is not None:
        charts = charts._replace(mode=u.mean(axis=1))  # the temperature's place alone matters here
    each_draw = Chart(*(leaf[:, None] for leaf in charts))
    v, _ = each_draw.straighten(layout, u)
    covariance = np.stack([np.cov(draws.T) for draws in v])
    try:
        root = np.linalg.cholesky(covariance * (DEGREES - 2) / DEGREES)
    except np.linalg.LinAlgError:
        return None
    return Chart(v.mean(axis=1), root, charts.powers)
