"""What a chain can leap between: a mixture that covers the posterior.

It is fitted in rounds of population Monte Carlo: proposals from a mixture, weighted by importance,
tell the mixture of the next round (Cappé, Douc, Guillin, Marin & Robert, Statistics and Computing
2008, 18, 447-459). The Pareto k of the weights says whether the mixture covers the posterior. No
weights tell of a region that no proposals reach: pilots say where to begin.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bayesmoe.core.layout import Layout
from bayesmoe.core.observations import Data
from bayesmoe.inference.cover import Cover
from bayesmoe.inference.fitting import BATCH, batches_of, moments_of, refit, shares_of_laws
from bayesmoe.inference.laplace import MAX_PARETO_K, smooth, weigh
from bayesmoe.inference.mixture import Mixture
from bayesmoe.inference.modes import Modes
from bayesmoe.inference.pilots import Pilots
from bayesmoe.inference.target import Target

_ROUNDS = 16
_PROPOSALS = 500  # of a round, for each law
_LEAST_PROPOSALS = 2000
_ENOUGH = 0.25  # of proposals, that they are worth in draws from the posterior


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
    return Cover.of(target.layout, modes, mixture, found.masses, pilots.modes)


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
    u = mixture.draw(target.layout, rng, size + -size % BATCH)  # one program
    batches = [_weigh_batch(target, data, mixture, batch) for batch in batches_of(u)]
    weights, pareto_k = smooth(np.concatenate([ratio for ratio, _ in batches]))
    shares = np.concatenate([share for _, share in batches], axis=1)
    return _Proposals(u, weights, shares, pareto_k <= MAX_PARETO_K)


def _weigh_batch(
    target: Target, data: Data, mixture: Mixture, u: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log importance ratios ``(s,)``, and each law's and copy's share ``(m, s, c)``."""
    _, log_ratio = weigh(target, data, mixture, u)
    return log_ratio, shares_of_laws(target.layout, mixture, u)


def _refit(layout: Layout, mixture: Mixture, found: _Proposals) -> Mixture:
    """The mixture of the next round.

    Half of the weight is spread evenly, since a law whose proposals have had no luck yet may come
    to have some.
    """
    moments = moments_of(layout, mixture, found.u, found.weights, found.shares)
    charts = refit(layout, mixture.charts, moments)
    return Mixture.of(charts, 0.5 * found.masses + 0.5 / len(found.masses))
