"""Whether chains agree, judged by what labels cannot change.

R-hat and effective sample size of single experts' parameters mean nothing when experts can swap
names, so the log-likelihood, the density at fixed rows and the temperature are judged instead: the
temperature, too, has no label, and on a ray the density says nothing about it.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import numpy as np
from arviz_stats.base import array_stats
from xarray import DataTree

from bayesmoe.inference.laplace import MAX_PARETO_K, Resampled
from bayesmoe.inference.nuts import Draws
from bayesmoe.inference.posterior import watched_rows, without_labels

#: rank-normalised split R-hat, the largest over the quantities watched
MAX_RHAT = 1.05
#: bulk effective sample size, the least over the quantities watched
MIN_ESS = 100.0
#: divergent transitions, as a share of all
MAX_DIVERGENT = 0.02


class PosteriorStatus(enum.Enum):
    """How sampling ended; the values are readable sentences."""

    CONVERGED = "the chains agree"
    NOT_MIXED = "the chains disagree, or move too little to tell: draws are not the posterior's"
    DIVERGENT = "too many divergent transitions: some region of the posterior was not reached"
    UNRELIABLE = "the importance weights vary too much: the approximation is not the posterior"

    @property
    def converged(self) -> bool:
        """Whether the draws may be used."""
        return self is PosteriorStatus.CONVERGED


class Mixing(NamedTuple):
    """The evidence and the verdict.

    Attributes
    ----------
    max_rhat, min_ess
        Over log-likelihood, log density at fixed rows and log τ; NaN with a single chain (R-hat).
    divergences
        Their number.
    status
        The verdict; a quantity that is NaN is no pass.
    """

    max_rhat: float
    min_ess: float
    divergences: int
    status: PosteriorStatus


def mixing(draws: Draws) -> Mixing:
    """Judge chains by `MAX_RHAT`, `MIN_ESS` and `MAX_DIVERGENT`."""
    quantities = without_labels(
        draws.log_likelihood, draws.row_log_density, draws.measures.temperature
    )
    with np.errstate(invalid="ignore", divide="ignore"):  # chains that never move: NaN
        rhat = float(np.max(array_stats.rhat(quantities, chain_axis=1, draw_axis=2)))
        ess = float(np.min(array_stats.ess(quantities, chain_axis=1, draw_axis=2, method="bulk")))
    if not (rhat <= MAX_RHAT and ess >= MIN_ESS):
        status = PosteriorStatus.NOT_MIXED
    elif draws.divergent > MAX_DIVERGENT:
        status = PosteriorStatus.DIVERGENT
    else:
        status = PosteriorStatus.CONVERGED
    return Mixing(rhat, ess, int(np.sum(np.asarray(draws.n_diverging))), status)


def importance(draws: Resampled) -> PosteriorStatus:
    """Judge a resampled approximation by its Pareto k and the draws its proposals are worth.

    These must be as many independent ones as are taken from them. Where the weights have heavy
    tails, as with experts to spare or few rows, the estimate of Pareto k varies and falls below its
    bound now and then, just when the proposals happen to miss what is far out; but they are worth
    few draws all the same.
    """
    enough = max(MIN_ESS, draws.lp.size)
    good = draws.pareto_k <= MAX_PARETO_K and draws.effective_size >= enough
    return PosteriorStatus.CONVERGED if good else PosteriorStatus.UNRELIABLE


def watched(tree: DataTree) -> np.ndarray:
    """The quantities watched of a posterior, shape ``(quantity, chain, draw)``."""
    pointwise = tree["log_likelihood"]["y"].transpose("chain", "draw", "obs").values
    rows = watched_rows(pointwise.shape[-1])
    temperature = tree["posterior"]["temperature"].transpose("chain", "draw").values
    return without_labels(pointwise.sum(-1), pointwise[..., rows], temperature)
