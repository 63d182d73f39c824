"""A mixture of Student-t laws, one in the chart around each mode, under every label.

A posterior has copies under the permutations of the experts that keep the reference. Laws lie in
some of them: one region may have laws in two copies and another in one. Densities are therefore
sums over all copies, so that each counts for as much as it holds.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import gammaln

from bayesmoe.core.layout import Layout
from bayesmoe.inference.chart import Chart, make_charts
from bayesmoe.inference.modes import Modes
from bayesmoe.inference.outcome import row
from bayesmoe.inference.target import Target

#: of freedom: tails heavier than the posterior's
DEGREES = 8
#: of a posterior that are looked at: those of five experts. With more, of laws in two copies of one
#: region each is taken to be a region of its own
MAX_COPIES = 24
#: of a mixture that chains leap between; one program serves any number of them
MAX_LAWS = 16
_DEFENSIVE = 0.1  # share spread evenly over the laws: masses are approximate

Floats = Any  # arrays of NumPy or of JAX


class Mixture(NamedTuple):
    """A mixture of t laws in m charts.

    Attributes
    ----------
    charts
        With a leading axis of m; each law's scale matrix is that of the whitening.
    inverse
        The inverse of each chart's whitening, shape ``(m, p, p)``.
    log_peak
        The log of each law's weight times its density at its centre, ``(m,)``.
    weights
        Of the laws, ``(m,)``. Those of weight zero are there for the shape alone.
    """

    charts: Chart
    inverse: Floats
    log_peak: Floats
    weights: Floats

    @classmethod
    def around(cls, target: Target, modes: Modes) -> Mixture:
        """The mixture around modes, by the curvature there and, mostly, Laplace's weights."""
        return cls.of(make_charts(target, modes.u, modes.whitening), defensive(modes.weights))

    @classmethod
    def of(cls, charts: Chart, weights: np.ndarray) -> Mixture:
        """The mixture with weights ``(m,)``."""
        p = charts.mode.shape[-1]
        constant = gammaln((DEGREES + p) / 2) - gammaln(DEGREES / 2)
        constant -= p / 2 * np.log(DEGREES * np.pi)
        log_peak = np.log(weights) + constant - np.linalg.slogdet(charts.whitening)[1]
        return cls(charts, np.linalg.inv(charts.whitening), log_peak, weights)

    def draw(self, layout: Layout, rng: np.random.Generator, size: int) -> np.ndarray:
        """Draws ``(size, p)``."""
        law = rng.choice(len(self.weights), size=size, p=self.weights)
        z = rng.standard_normal((size, self.inverse.shape[-1]))
        return np.asarray(self.place(layout, law, z, rng.chisquare(DEGREES, size)))

    def place(self, layout: Layout, law: Floats, z: Floats, square: Floats) -> Floats:
        """Draws ``(..., p)`` of given laws ``(...)`` from normal and chi-squared ones.

        ``z`` has shape ``(..., p)``; ``square`` has `DEGREES` degrees of freedom, shape ``(...)``.
        """
        chart = row(self.charts, law)
        scale = (DEGREES / square) ** 0.5
        v = chart.mode + (chart.whitening @ z[..., None])[..., 0] * scale[..., None]
        return chart.bend(layout, v)[0]

    def whiten(self, layout: Layout, u: Floats) -> tuple[Floats, Floats]:
        """Points u ``(s, c, p)`` in whitened coordinates of each chart ``(m, s, c, p)``.

        And the log determinant of their bending, ``(m, s, c)``.
        """
        each_chart: Chart = jax.tree.map(lambda leaf: leaf[:, None, None], self.charts)
        v, log_volume = each_chart.straighten(layout, u)
        return (v - each_chart.mode) @ self.inverse.mT[:, None], log_volume

    def distances(self, layout: Layout, u: np.ndarray) -> np.ndarray:
        """How many widths of each law u ``(s, p)`` is away, under its nearest name: ``(m, s)``."""
        z, _ = self.whiten(layout, u[:, copies(layout)])
        square = np.sum(z**2, axis=-1).min(axis=-1)
        return np.asarray(np.sqrt(square * (DEGREES - 2) / DEGREES))

    def terms(self, layout: Layout, u: Floats) -> Floats:
        """The log of each law's part in the density at each copy of u ``(s, p)``: ``(m, s, c)``."""
        of = jnp if isinstance(u, Array) else np  # JAX would compile it for every number of modes
        z, log_volume = self.whiten(layout, u[:, copies(layout)])
        tails = (DEGREES + u.shape[-1]) / 2 * of.log1p((z**2).sum(axis=-1) / DEGREES)
        return self.log_peak[:, None, None] - log_volume - tails

    def log_density(self, layout: Layout, u: Floats) -> Floats:
        """The log density at any copy of u ``(s, p)``, shape ``(s,)``."""
        of = jnp if isinstance(u, Array) else np
        terms = self.terms(layout, u)
        largest = terms.max(axis=(0, 2))
        return largest + of.log(of.exp(terms - largest[:, None]).sum(axis=(0, 2)))


@functools.cache
def copies(layout: Layout) -> np.ndarray:
    """Which coordinates the copies of u have in each place, shape ``(c, p)``; u itself first."""
    k, size = layout.n_experts, layout.size
    if math.factorial(k - 1) > MAX_COPIES:
        return np.arange(size)[None]
    return np.stack(
        [_relabelled(layout, [*order, k - 1]) for order in itertools.permutations(range(k - 1))]
    )


def _relabelled(layout: Layout, order: list[int]) -> np.ndarray:
    """Coordinates of experts in another order, the reference in its place, shape ``(p,)``."""
    k, d, gd = layout.n_experts, layout.n_expert_covariates, layout.n_gate_covariates
    n_slopes, g = (k - 1) * gd, layout.n_gate
    place, free = np.arange(layout.size), order[:-1]
    parts = [
        place[:n_slopes].reshape(k - 1, gd)[free],
        place[n_slopes : n_slopes + k - 1][free],
        place[n_slopes + k - 1 : g],
        place[g : g + k * d].reshape(k, d)[order],
        place[g + k * d : g + k * (d + 1)][order],
        place[g + k * (d + 1) :][order],
    ]
    return np.concatenate([part.ravel() for part in parts])


def defensive(masses: np.ndarray) -> np.ndarray:
    """Weights for laws that hold shares ``(m,)`` of the mass, as far as is known."""
    return (1 - _DEFENSIVE) * masses + _DEFENSIVE / len(masses)
