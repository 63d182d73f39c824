"""Short chains around modes, which tell how wide the posterior is there.

Curvature at a mode tells little where experts are to spare: Laplace's approximation is wrong about
masses by powers of ten, and about widths.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from bayesmoe.core.layout import Layout
from bayesmoe.inference.chart import Chart, make_charts, temperature_place
from bayesmoe.inference.cover import REACH
from bayesmoe.inference.kernel import Length, Pace
from bayesmoe.inference.mixture import DEGREES, MAX_COPIES, MAX_LAWS, Mixture
from bayesmoe.inference.modes import Modes
from bayesmoe.inference.runs import InCharts, Run

_LENGTH = Length(n_warmup=150, n_draws=150, max_tree_depth=6)
_AT_ONCE = 2
_LEAST_WEIGHT = 1e-6  # of a mode that may get a pilot: Laplace's weights may be as wrong


class Pilots(NamedTuple):
    """Draws of m pilots.

    Attributes
    ----------
    modes
        Those that they are around, shape ``(m,)``.
    charts
        The charts that they moved in.
    u
        Their draws, ``(m, draw, p)``.
    """

    modes: np.ndarray
    charts: Chart
    u: np.ndarray

    def mixture(self, layout: Layout) -> Mixture:
        """Laws with the means and covariances of draws, of like weights.

        Covariances of so few draws are drawn a little towards those of the charts.
        """
        charts = self.charts
        if temperature_place(layout) is not None:
            # of the mode the temperature's place alone matters here
            charts = charts._replace(mode=self.u.mean(axis=1))
        m, n, p = self.u.shape
        each_draw: Chart = jax.tree.map(lambda leaf: leaf[:, None], charts)
        v, _ = each_draw.straighten(layout, self.u)
        centre = v.mean(axis=1)
        z = (v - centre[:, None]) @ np.linalg.inv(charts.whitening).mT
        spread = (z.mT @ z + np.eye(p)) / (n + 1) * (DEGREES - 2) / DEGREES
        root = charts.whitening @ np.linalg.cholesky(spread)
        return Mixture.of(Chart(centre, root, charts.powers), np.full(m, 1 / m))

    def joined(self, others: Pilots) -> Pilots:
        """These and others."""
        both: Pilots = jax.tree.map(lambda *leaves: np.concatenate(leaves), self, others)
        return both


def candidates_for_pilots(layout: Layout, modes: Modes) -> np.ndarray:
    """The modes that may get a pilot; none where that is no use.

    That is where there is one, and where experts have more names than can be looked at.
    """
    chosen = np.flatnonzero(modes.weights >= _LEAST_WEIGHT)
    too_many = math.factorial(layout.n_experts - 1) > MAX_COPIES
    return chosen[:0] if len(chosen) == 1 or too_many else chosen


def send_pilots(
    run: Run, modes: Modes, candidates: np.ndarray, key: Array, n_threads: int
) -> Pilots:
    """Pilots around modes, the heaviest first, until all candidates are near the draws of one.

    They are sent two at a time, however many threads there are, so that the same ones are sent.
    """
    layout, left = run.target.layout, candidates[_AT_ONCE:]
    run = run._replace(length=_LENGTH)
    run.compile(_AT_ONCE)
    sent = _send(run, modes, candidates[:_AT_ONCE], key, n_threads)
    while len(sent.modes) < MAX_LAWS:
        away = sent.mixture(layout).distances(layout, modes.u[left])
        left = left[away.min(axis=0) > REACH]
        if not len(left):
            break
        now, left = left[:_AT_ONCE], left[_AT_ONCE:]
        sent = sent.joined(_send(run, modes, now, key, n_threads))
    return sent


def _send(run: Run, modes: Modes, now: np.ndarray, key: Array, n_threads: int) -> Pilots:
    charts = make_charts(run.target, modes.u[now], modes.whitening[now])
    keyed = run._replace(key=jax.random.fold_in(key, int(now[0])))
    chains = InCharts(keyed, charts, n_threads)
    stretch = chains.advance(chains.begin(), Pace(_LENGTH.n_warmup, 1))
    return Pilots(now, charts, np.asarray(stretch.chains.u))
