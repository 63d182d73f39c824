"""What a chain can leap between: a mixture that covers the posterior.

It is fitted in rounds of population Monte Carlo: proposals from a mixture, weighted by importance,
tell the mixture of the next round (Cappé, Douc, Guillin, Marin & Robert, Statistics and Computing
2008, 18, 447-459). The Pareto k of the weights says whether the mixture covers the posterior. No
weights tell of a region that no proposals reach: pilots say where to begin.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from bayesmoe.core.layout import Layout
from bayesmoe.core.observations import Data
from bayesmoe.inference.laplace import MAX_PARETO_K, smooth, weigh
from bayesmoe.inference.mixture import DEGREES, MAX_LAWS, Mixture, copies, defensive
from bayesmoe.inference.modes import Modes
from bayesmoe.inference.pilots import REACH, Pilots
from bayesmoe.inference.target import Target

_ROUNDS = 16
_PROPOSALS = 500  # of a round, for each law
_LEAST_PROPOSALS = 2000
_ENOUGH = 0.25  # of proposals, that they are worth in draws from the posterior
_BATCH = 1000  # proposals at a time: bounds the memory


class Cover(NamedTuple):
    """A mixture that covers the posterior.

    Attributes
    ----------
    mixture
        Of `MAX_LAWS` laws, of which the first m, one for each pilot, have weights.
    masses
        The share of the posterior that each law has, shape ``(m,)``.
    modes
        The mode that each began at; of a law that left it, the nearest. Shape ``(m,)``.
    """

    mixture: Mixture
    masses: np.ndarray
    modes: np.ndarray


def cover(
    target: Target, data: Data, modes: Modes, pilots: Pilots, rng: np.random.Generator
) -> Cover | None:
    """A mixture fitted to a posterior with some modes, begun at the draws of pilots.

    It is the first whose proposals are worth enough, or of all that cover the posterior the one
    whose proposals are worth the most; None if none does.
    """
    mixture, best = pilots.mixture(target.layout), None
    for _ in range(_ROUNDS):
        found = _propose(target, data, mixture, rng)
        if found.covered and (best is None or found.worth > best[1].worth):
            best = mixture, found
            if found.worth >= _ENOUGH * len(found.u):
                break
        mixture = _refit(target.layout, mixture, found)
    if best is None:
        return None
    mixture, found = best
    away = mixture.distances(target.layout, modes.u)
    strayed = np.take_along_axis(away, pilots.modes[:, None], axis=1)[:, 0] > REACH
    near = np.where(strayed, away.argmin(axis=1), pilots.modes)
    return Cover(_complete(mixture, found.masses), found.masses, near)


class _Proposals(NamedTuple):
    """Proposals of a round.

    Attributes
    ----------
    u
        Shape ``(s, p)``.
    weights
        Their smoothed importance weights, shape ``(s,)``.
    shares
        Of each law and copy in the density of each, ``(m, s, c)``.
    covered
        Whether the weights' Pareto k is small.
    """

    u: np.ndarray
    weights: np.ndarray
    shares: np.ndarray
    covered: bool

    @property
    def masses(self) -> np.ndarray:
        """Each law's share of the posterior, shape ``(m,)``."""
        return np.asarray(self.shares.sum(axis=-1) @ self.weights)

    @property
    def worth(self) -> float:
        """How many draws from the posterior the weighted proposals are worth."""
        return float(1 / np.sum(self.weights**2))


def _propose(target: Target, data: Data, mixture: Mixture, rng: np.random.Generator) -> _Proposals:
    size = max(_PROPOSALS * len(mixture.weights), _LEAST_PROPOSALS)
    u = mixture.draw(target.layout, rng, size + -size % _BATCH)
    batches = [_weigh_batch(target, data, mixture, batch) for batch in _batches(u)]
    weights, pareto_k = smooth(np.concatenate([ratio for ratio, _ in batches]))
    shares = np.concatenate([share for _, share in batches], axis=1)
    return _Proposals(u, weights, shares, pareto_k <= MAX_PARETO_K)


def _weigh_batch(
    target: Target, data: Data, mixture: Mixture, u: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log importance ratios ``(s,)``, and each law's and copy's share ``(m, s, c)``."""
    _, log_ratio = weigh(target, data, mixture, u)
    terms = mixture.terms(target.layout, u)
    shares = np.exp(terms - terms.max(axis=(0, 2))[:, None])
    return log_ratio, shares / shares.sum(axis=(0, 2))[:, None]


def _batches(values: np.ndarray, axis: int = 0) -> list[np.ndarray]:
    return np.split(values, values.shape[axis] // _BATCH, axis)


def _refit(layout: Layout, mixture: Mixture, found: _Proposals) -> Mixture:
    """The next mixture: a step of expectation-maximisation for t laws of known degrees of freedom.

    A law that few proposals speak for changes little. Half of the weight is spread evenly, since a
    law whose proposals have had no luck yet may come to have some.
    """
    weights = found.shares * found.weights[:, None]
    batches = zip(_batches(found.u), _batches(weights, axis=1), strict=True)
    parts = [_moments(layout, mixture, *batch) for batch in batches]
    sums = _Moments(*(np.sum(leaves, axis=0) for leaves in zip(*parts, strict=True)))
    move, spread = sums.step()
    charts = mixture.charts
    charts = charts._replace(
        mode=charts.mode + (charts.whitening @ move[..., None])[..., 0],
        whitening=charts.whitening @ np.linalg.cholesky(spread),
    )
    return Mixture.of(charts, 0.5 * found.masses + 0.5 / len(found.masses))


class _Moments(NamedTuple):
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


def _moments(layout: Layout, mixture: Mixture, u: np.ndarray, weights: np.ndarray) -> _Moments:
    """Moments of u ``(s, p)`` by weights ``(m, s, c)``, in whitened coordinates of each chart."""
    m, p = mixture.charts.mode.shape
    z, _ = mixture.whiten(layout, u[:, copies(layout)])
    z = z.reshape(m, -1, p)
    weights = weights.reshape(m, -1)
    scaled = weights * (DEGREES + p) / (DEGREES + np.sum(z**2, axis=-1))
    weighted = scaled[..., None] * z
    return _Moments(
        weights.sum(axis=1),
        np.sum(weights**2, axis=1),
        scaled.sum(axis=1),
        weighted.sum(axis=1),
        weighted.mT @ z,
    )


def _complete(mixture: Mixture, masses: np.ndarray) -> Mixture:
    """With weights by masses, and `MAX_LAWS` laws: those added have no weight."""
    lacking = MAX_LAWS - len(masses)

    def fill(leaf: np.ndarray) -> np.ndarray:
        return np.pad(leaf, [(0, lacking)] + [(0, 0)] * (leaf.ndim - 1), mode="edge")

    with np.errstate(divide="ignore"):
        weights = np.pad(defensive(masses), (0, lacking))
        return Mixture.of(jax.tree.map(fill, mixture.charts), weights)
