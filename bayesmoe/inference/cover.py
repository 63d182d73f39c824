"""A mixture that covers a posterior, and which mode each of its laws is around."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from bayesmoe.core.layout import Layout
from bayesmoe.inference.mixture import MAX_LAWS, Mixture, defensive
from bayesmoe.inference.modes import Modes

#: widths of a law within which a mode is near it: most modes within a region are that near to the
#: draws of a pilot, those of other regions tens to thousands of widths away
REACH = 7.0


class Cover(NamedTuple):
    """A mixture that covers the posterior.

    Attributes
    ----------
    mixture
        Of `MAX_LAWS` laws, of which the first m have weights.
    masses
        The share of the posterior that each law has, shape ``(m,)``.
    modes
        The mode that each began at; of a law that left it, the nearest. Shape ``(m,)``.
    """

    mixture: Mixture
    masses: np.ndarray
    modes: np.ndarray

    @classmethod
    def of(
        cls, layout: Layout, modes: Modes, mixture: Mixture, masses: np.ndarray, began: np.ndarray
    ) -> Cover:
        """From m laws, their masses, and the modes ``(m,)`` that they began at."""
        away = mixture.distances(layout, modes.u)
        strayed = np.take_along_axis(away, began[:, None], axis=1)[:, 0] > REACH
        return cls(_complete(mixture, masses), masses, np.where(strayed, away.argmin(1), began))

    @property
    def laws(self) -> Mixture:
        """Those with weights alone, shape ``(m,)``."""
        m, (charts, _, _, weights) = len(self.masses), self.mixture
        return Mixture.of(jax.tree.map(lambda leaf: leaf[:m], charts), weights[:m])


def _complete(mixture: Mixture, masses: np.ndarray) -> Mixture:
    """With weights by masses, and `MAX_LAWS` laws: those added have no weight."""
    lacking = MAX_LAWS - len(masses)

    def fill(leaf: np.ndarray) -> np.ndarray:
        return np.pad(leaf, [(0, lacking)] + [(0, 0)] * (leaf.ndim - 1), mode="edge")

    with np.errstate(divide="ignore"):
        weights = np.pad(defensive(masses), (0, lacking))
        return Mixture.of(jax.tree.map(fill, mixture.charts), weights)
