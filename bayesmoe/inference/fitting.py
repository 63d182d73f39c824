"""Steps of expectation-maximisation that fit a mixture's laws to weighted points."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from bayesmoe.core.layout import Layout
from bayesmoe.inference.chart import Chart
from bayesmoe.inference.mixture import DEGREES, Mixture, copies

#: points at a time: bounds the memory
BATCH = 1000


def shares_of_laws(layout: Layout, mixture: Mixture, u: np.ndarray) -> np.ndarray:
    """Of each law and copy in the density of points ``(s, p)``: shape ``(m, s, c)``."""
    terms = mixture.terms(layout, u)
    shares = np.exp(terms - terms.max(axis=(0, 2))[:, None])
    return np.asarray(shares / shares.sum(axis=(0, 2))[:, None])


def moments_of(
    layout: Layout, mixture: Mixture, u: np.ndarray, weights: np.ndarray, shares: np.ndarray
) -> Moments:
    """Moments of points ``(s, p)`` with weights ``(s,)``, of which laws have their shares."""
    weights = shares * weights[:, None]
    batches = zip(batches_of(u), batches_of(weights, axis=1), strict=True)
    parts = [_moments(layout, mixture, *batch) for batch in batches]
    return Moments(*(np.sum(leaves, axis=0) for leaves in zip(*parts, strict=True)))


def refit(layout: Layout, charts: Chart, moments: Moments) -> Chart:
    """The laws after a step, for t laws of known degrees of freedom.

    One that few points speak for changes little.
    """
    move, spread = moments.step()
    centre, _ = charts.bend(layout, charts.mode + (charts.whitening @ move[..., None])[..., 0])
    wider = charts._replace(whitening=charts.whitening @ np.linalg.cholesky(spread))
    return wider.moved_to(layout, centre)


def batches_of(values: np.ndarray, axis: int = 0) -> list[np.ndarray]:
    """Points in parts that are small enough to be looked at all at once."""
    return np.array_split(values, math.ceil(values.shape[axis] / BATCH), axis)


class Moments(NamedTuple):
    """Sums over proposals, for each law, with weights w, and factors g that are small in tails."""

    weight: np.ndarray  # Σ w, (m,)
    square: np.ndarray  # Σ w², (m,)
    scale: np.ndarray  # Σ w g, (m,)
    first: np.ndarray  # Σ w g z, (m, p)
    second: np.ndarray  # Σ w g z zᵀ, (m, p, p)

    def step(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each law's centre goes ``(m, p)``, and its new scale matrix ``(m, p, p)``."""
        p = self.first.shape[-1]
        weight, square, scale = (
            np.maximum(sums, np.finfo(float).tiny)
            for sums in (self.weight, self.square, self.scale)
        )  # of weights that underflow no law takes notice
        worth = weight**2 / square
        move = self.first / scale[:, None] * (worth / (worth + p))[:, None]
        cross = move[:, :, None] * self.first[:, None]
        outer = move[:, :, None] * move[:, None] * scale[:, None, None]
        scatter = (self.second - cross - cross.mT + outer) / weight[:, None, None]
        trust = (worth / (worth + 2 * p))[:, None, None]
        return move, trust * scatter + (1 - trust) * np.eye(p)

    def with_points(self, number: float, weight: float, scatter: np.ndarray) -> Moments:
        """With so many more points around each law's centre, of that weight each."""
        return self._replace(
            weight=self.weight + number * weight,
            square=self.square + number * weight**2,
            scale=self.scale + number * weight,
            second=self.second + number * weight * scatter,
        )


def _moments(layout: Layout, mixture: Mixture, u: np.ndarray, weights: np.ndarray) -> Moments:
    """Moments of u ``(s, p)`` by weights ``(m, s, c)``, in whitened coordinates of each chart."""
    m, p = mixture.charts.mode.shape
    z, _ = mixture.whiten(layout, u[:, copies(layout)])
    z = z.reshape(m, -1, p)
    weights = weights.reshape(m, -1)
    scaled = weights * (DEGREES + p) / (DEGREES + np.sum(z**2, axis=-1))
    weighted = scaled[..., None] * z
    return Moments(
        weights.sum(axis=1),
        np.sum(weights**2, axis=1),
        scaled.sum(axis=1),
        weighted.sum(axis=1),
        weighted.mT @ z,
    )
