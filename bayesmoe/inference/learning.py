"""What draws teach about the mixture to leap between.

Importance weights tell nothing of what no proposals reach, and a mixture that passes for one that
covers the posterior may leave out a quarter of it by twenty log units and more: chains that come
there stay. Their draws show it. The mixture fitted to them, with laws added where it is too thin,
is held while chains that begin anew leap between its laws: what they draw is as exact as ever.
"""

from __future__ import annotations

import jax
import numpy as np

from bayesmoe.core.layout import Layout
from bayesmoe.inference.chart import Chart
from bayesmoe.inference.cover import Cover
from bayesmoe.inference.fitting import batches_of, moments_of, refit, shares_of_laws
from bayesmoe.inference.mixture import MAX_LAWS, Mixture, copies, defensive
from bayesmoe.inference.modes import Modes
from bayesmoe.inference.outcome import row

_MOST = 4000  # draws that are looked at
_STEPS = 3  # of expectation-maximisation, before a law is added and after each


def learn(layout: Layout, modes: Modes, cover: Cover, u: np.ndarray, lp: np.ndarray) -> Cover:
    """The cover fitted to draws, with as many laws as there may be.

    Parameters
    ----------
    layout, modes
        The posterior's.
    cover
        What the chains leapt between.
    u, lp
        Draws of all chains ``(s, p)``, and their log density up to a constant ``(s,)``.
    """
    kept = np.linspace(0, len(u) - 1, min(len(u), _MOST)).astype(int)
    u, lp = u[kept], lp[kept]
    mixture, began, first = cover.laws, cover.modes, cover.laws.charts
    mixture, masses = _fit(layout, mixture, first, u)
    while len(masses) < MAX_LAWS:
        thinnest = np.argmax(lp - _log_density(layout, mixture, u))
        law, chart = _around(layout, mixture, u[thinnest])
        share = 1 / (len(masses) + 1)
        weights = np.append(mixture.weights * (1 - share), share)
        mixture = Mixture.of(_with(mixture.charts, chart), weights)
        began, first = np.append(began, began[law]), _with(first, chart)
        mixture, masses = _fit(layout, mixture, first, u)
    return Cover.of(layout, modes, mixture, masses, began)


def _fit(
    layout: Layout, mixture: Mixture, first: Chart, u: np.ndarray
) -> tuple[Mixture, np.ndarray]:
    """A mixture some steps nearer to draws ``(s, p)``, and the share of them that each law has.

    Each law has p draws more around its centre, as far apart as those of the law that it was first:
    few draws neither make it narrow nor move it far.
    """
    n, p = u.shape
    for _ in range(_STEPS):
        shares = np.concatenate(
            [shares_of_laws(layout, mixture, batch) for batch in batches_of(u)], axis=1
        )
        root = mixture.inverse @ first.moved_to(layout, mixture.charts.mode).whitening
        moments = moments_of(layout, mixture, u, np.full(n, 1 / n), shares)
        moments = moments.with_points(p, 1 / n, root @ root.mT)
        masses = shares.sum(axis=(1, 2)) / n
        mixture = Mixture.of(refit(layout, mixture.charts, moments), defensive(masses))
    return mixture, masses


def _log_density(layout: Layout, mixture: Mixture, u: np.ndarray) -> np.ndarray:
    return np.concatenate([mixture.log_density(layout, batch) for batch in batches_of(u)])


def _around(layout: Layout, mixture: Mixture, u: np.ndarray) -> tuple[int, Chart]:
    """The law that has the most of a draw ``(p,)``, and that law moved there."""
    terms = mixture.terms(layout, u[None])[:, 0]
    law, copy = np.unravel_index(terms.argmax(), terms.shape)
    chart: Chart = row(mixture.charts, law)
    return int(law), chart.moved_to(layout, u[copies(layout)[copy]])


def _with(charts: Chart, one: Chart) -> Chart:
    """Charts and one more."""
    both: Chart = jax.tree.map(lambda leaf, new: np.concatenate([leaf, new[None]]), charts, one)
    return both
