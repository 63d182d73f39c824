"""Chains learn from draws that are worth little, and go on until they are worth enough.

How well chains mix is known once they have run. Where their draws are worth few independent ones,
or one has been where others were not, chains that leap begin anew with what those draws teach,
which are warm-up then. If draws are still worth little they go on for as long again, and of all
transitions every second is kept: as many draws, worth more. Chains that are apart have a small
effective sample size as well, so that luck may end the looking while they seem to agree: there are
three looks at most, and those after the first of chains that do not leap, or have begun anew, only
where going on may help.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.base import array_stats

from bayesmoe.inference.kernel import Chain, Pace
from bayesmoe.inference.posterior import Sampled
from bayesmoe.inference.runs import Chains, Stretch

C = TypeVar("C", bound=Chains)

#: bulk effective sample size, as a share of the draws, that chains go on to reach
ENOUGH = 0.2
#: transitions for each draw at most
MOST_THINNING = 4
#: R-hat of chains that begin anew, however much their draws are worth
APART = 1.05
# where going on for as long as may be would not make a tenth of the draws' number, it is of no use
_PROMISING = 0.025


class Sample(NamedTuple):
    """Draws of all chains, on the scale of the data too, and how many transitions lead to each.

    ``energy`` is that of as many transitions that follow each other, ``(chain, draw)``.
    """

    stretch: Stretch
    restored: Sampled
    thinning: int
    energy: np.ndarray


def sample_patiently(
    chains: C, n_warmup: int, restore: Callable[[Chain], Sampled]
) -> tuple[C, Sample]:
    """Run chains until the draws that they leave are worth enough, or going on is of no use.

    Those that ran are returned, too.

    Parameters
    ----------
    chains
        What is run; others in their place by what their draws teach.
    n_warmup
        Transitions of each chain for adaptation.
    restore
        Gives draws on the scale of the data.
    """
    stretch, restored = _first(chains, n_warmup, restore)
    poor = _worth(restored.watched) < ENOUGH or _rhat(restored.watched) > APART
    if poor and (taught := chains.taught(stretch)) is not None:
        chains = taught
        stretch, restored = _first(chains, n_warmup, restore)
    thinning, energy = 1, np.asarray(stretch.chains.energy)
    while thinning < MOST_THINNING and _PROMISING <= _worth(restored.watched) < ENOUGH:
        stretch = _joined(stretch, chains.advance(stretch.ends, Pace(0, thinning)))
        restored = restore(stretch.chains)
        thinning *= 2
    return chains, Sample(stretch, restored, thinning, energy)


def _first(
    chains: Chains, n_warmup: int, restore: Callable[[Chain], Sampled]
) -> tuple[Stretch, Sampled]:
    stretch = chains.advance(chains.begin(), Pace(n_warmup, 1))
    return stretch, restore(stretch.chains)


def _worth(quantities: np.ndarray) -> float:
    """The least bulk effective sample size as a share of the draws; NaN of chains too short."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ess = array_stats.ess(quantities, chain_axis=1, draw_axis=2, method="bulk")
    return float(np.min(ess)) / quantities[0].size


def _rhat(quantities: np.ndarray) -> float:
    """The largest rank-normalised split R-hat; NaN of chains too short."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.max(array_stats.rhat(quantities, chain_axis=1, draw_axis=2)))


def _joined(first: Stretch, second: Stretch) -> Stretch:
    """Every second draw of two stretches of one length, of which the second goes on the first."""
    chains: Chain = jax.tree.map(
        lambda *leaves: np.concatenate(jax.device_get(leaves), axis=1),
        first.chains,
        second.chains,
    )
    laws = None
    if first.laws is not None and second.laws is not None:
        laws = jnp.asarray(np.concatenate([first.laws, second.laws], axis=1)[:, 1::2])
    return Stretch(jax.device_put(chains.halved()), laws, second.ends)
