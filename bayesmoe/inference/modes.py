"""The modes of a posterior and the Laplace approximation at each.

They are sought from where the starts of a MAP fit ended. MAP maximises the density of the paper's
parameters; modes are those of the coordinates that are sampled, Jacobian included.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import Array

from bayesmoe.core.compilation import jit_by_size
from bayesmoe.core.device import each
from bayesmoe.core.hessian import Evaluation
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.observations import Data
from bayesmoe.core.scaling import Scaling
from bayesmoe.inference import newton
from bayesmoe.inference.point import Fit
from bayesmoe.inference.target import Target

# no direction is taken to be wider than this curvature allows: priors are on standardised data
_LEAST_CURVATURE = 0.1
_SAME = 1e-4  # modes as dense and as wide as each other, in log units, are copies under new labels


class Modes(NamedTuple):
    """Distinct modes, the one with the most mass first; copies under other labels count once.

    Attributes
    ----------
    u
        Where the m modes are, in the coordinates sampled, shape ``(m, p)``.
    whitening
        An inverse root of the curvature at each, shape ``(m, p, p)``.
    log_evidence
        The log of each mode's mass by Laplace's approximation, up to a common constant, ``(m,)``.
    """

    u: Array
    whitening: Array
    log_evidence: Array

    @property
    def weights(self) -> np.ndarray:
        """Each mode's share of the mass of all that were found, shape ``(m,)``."""
        return np.asarray(scipy.special.softmax(np.asarray(self.log_evidence)))

    def allocate(self, n_chains: int) -> np.ndarray:
        """The mode at which each chain starts, in proportion to the weights, shape ``(n_chains,)``.

        By largest remainders, so that chains which never leave their modes hold about the right
        shares of the draws. A mode with less than its share of a chain gets none.
        """
        quotas = n_chains * self.weights
        chains = np.floor(quotas).astype(int)
        left = np.argsort(chains - quotas, kind="stable")[: n_chains - chains.sum()]
        chains[left] += 1
        return np.repeat(np.arange(len(chains)), chains)


def find_modes(target: Target, scaling: Scaling, data: Data, start: Fit) -> Modes:
    """The distinct modes among those that the starts of a MAP fit lead to.

    Those where the search did not converge are left out, unless it converged nowhere: where the
    density jumps it need not.
    """
    found = _search(target, data, scaling, start.starts.measures)
    found, heights, converged = jax.device_get(found)
    usable = np.isfinite(found.log_evidence)
    if np.any(usable & converged):
        usable &= converged
    kept: list[int] = []
    for i in np.argsort(-found.log_evidence, kind="stable"):
        if usable[i] and not any(_alike(found, heights, i, j) for j in kept):
            kept.append(int(i))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[kept or [0]]), found)


def _alike(found: Modes, heights: np.ndarray, i: int, j: int) -> bool:
    same_mass = abs(found.log_evidence[i] - found.log_evidence[j]) < _SAME
    return bool(same_mass and abs(heights[i] - heights[j]) < _SAME)


@jit_by_size(static_argnums=0, data=1)
def _search(
    target: Target, data: Data, scaling: Scaling, starts: MixingMeasure
) -> tuple[Modes, Array, Array]:
    """Modes from a batch ``(s,)``, their log densities and whether each is a maximum."""
    points = jax.vmap(target.layout.pack)(jax.vmap(scaling.standardise)(starts))
    unbounded = jnp.full(points.shape[1], -jnp.inf)

    def mean(u: Array) -> Evaluation:
        return Evaluation(*(term / data.n_observations for term in target.evaluate(u, data)))

    def approximate(point: Array) -> tuple[Modes, Array, Array]:
        last = newton.run(mean, target.unconstrain(point), unbounded)
        optimum, n = newton.summarise(last, unbounded), data.n_observations
        curvature, directions = jnp.linalg.eigh(n * last.local.hessian)
        curvature = jnp.maximum(jnp.abs(curvature), _LEAST_CURVATURE)
        height = n * optimum.value
        evidence = height - 0.5 * jnp.sum(jnp.log(curvature))
        maximum = (optimum.gradient_norm <= newton.GRADIENT_TOLERANCE) & (
            optimum.least_curvature >= -newton.CURVATURE_TOLERANCE
        )
        whitening = directions / jnp.sqrt(curvature)
        return Modes(optimum.coordinates, whitening, evidence), height, maximum

    return each(approximate, points)
