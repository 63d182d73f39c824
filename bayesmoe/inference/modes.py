"""The modes of a posterior and the Laplace approximation at each.

They are sought from where the starts of a MAP fit ended. MAP maximises the density of the paper's
parameters; modes are those of the coordinates that are sampled, Jacobian included.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import Array
from scipy.optimize import linear_sum_assignment

from bayesmoe.core.compilation import jit_by_size, jit_unoptimised
from bayesmoe.core.device import each
from bayesmoe.core.hessian import Evaluation
from bayesmoe.core.layout import Layout
from bayesmoe.core.observations import Data
from bayesmoe.core.scaling import Scaling
from bayesmoe.inference import newton
from bayesmoe.inference.climb import in_pairs, maximise
from bayesmoe.inference.point import Fit
from bayesmoe.inference.starts import pack
from bayesmoe.inference.target import Target

#: no direction is taken to be wider than this allows: priors are on standardised data
LEAST_CURVATURE = 0.1
# modes as dense and as wide as each other, in log units, and with the same experts, to so many of
# their widths, are copies under new labels; symmetric data have modes that are mirror images
_SAME = 1e-4
_SAME_EXPERTS = 0.1
_AS_DENSE = 0.1  # of the densest gate's density, that a chain may start at another one


class Modes(NamedTuple):
    """Distinct modes, the one with the most mass first; copies under other labels count once.

    Attributes
    ----------
    u
        Where the m modes are, in the coordinates sampled, shape ``(m, p)``.
    whitening
        The lower triangular root of the inverse curvature at each, shape ``(m, p, p)``.
    log_evidence
        The log of each mode's mass by Laplace's approximation, up to a common constant, ``(m,)``.
    """

    u: np.ndarray
    whitening: np.ndarray
    log_evidence: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """Each mode's share of the mass of all that were found, shape ``(m,)``."""
        return np.asarray(scipy.special.softmax(self.log_evidence))

    def log_density_of_gates(self, n_gate: int) -> np.ndarray:
        """Of each mode's gate, the experts summed out by Laplace's approximation, ``(m,)``."""
        precision = np.linalg.inv(self.whitening @ self.whitening.mT)[:, n_gate:, n_gate:]
        heights = self.log_evidence - np.linalg.slogdet(self.whitening)[1]
        return np.asarray(heights - 0.5 * np.linalg.slogdet(precision)[1])


def allocate(weights: np.ndarray, n_chains: int) -> np.ndarray:
    """The mode at which each chain starts, in proportion to the weights, shape ``(n_chains,)``.

    By largest remainders, so that chains which never leave their modes hold about the right shares
    of the draws. A mode with less than its share of a chain gets none.
    """
    quotas = n_chains * weights
    chains = np.floor(quotas).astype(int)
    left = np.argsort(chains - quotas, kind="stable")[: n_chains - chains.sum()]
    chains[left] += 1
    return np.repeat(np.arange(len(chains)), chains)


def spread_out(layout: Layout, modes: Modes, n_chains: int) -> np.ndarray:
    """The mode at which each chain starts where the density jumps, shape ``(n_chains,)``.

    Curvature does not tell there how much of the posterior is near a mode: how far its gate can
    move is up to the jumps. Of modes whose gates are about as dense as the densest, each next one
    has the experts farthest from those before, so that chains which do not meet show it.
    """
    density = modes.log_density_of_gates(layout.n_gate)
    densest = np.argsort(-density, kind="stable")
    left = densest[density[densest] >= density.max() + np.log(_AS_DENSE)].tolist()
    chosen = [left.pop(0)]
    while left and len(chosen) < n_chains:
        away = [min(_apart(layout, modes, i, j) for j in chosen) for i in left]
        chosen.append(left.pop(int(np.argmax(away))))
    return np.resize(chosen, n_chains)


def find_modes(target: Target, scaling: Scaling, data: Data, start: Fit, n_threads: int) -> Modes:
    """The distinct modes among those that the starts of a MAP fit lead to.

    Those where the search did not converge are left out, unless it converged nowhere: where the
    density jumps it need not. The starts are shared out among threads, with the same result.

    Where the prior alone tells which expert is the reference the search goes on from each mode as
    it is seen from every other reference.
    """
    points = np.asarray(pack(target.layout, scaling, start.starts.measures))
    found = _seek(target, data, points, n_threads)
    found = found.take(_distinct(target.layout, found))
    if target.layout.other_references_matter:
        elsewhere = np.concatenate([_other_references(target, u) for u in found.modes.u])
        both = found.joined(_seek(target, data, elsewhere, n_threads))
        found = both.take(_distinct(target.layout, both, len(found.heights)))
    return found.modes


class _Found(NamedTuple):
    """Where searches ended, the log densities there and whether they converged: s of each."""

    modes: Modes
    heights: np.ndarray
    converged: np.ndarray

    def take(self, chosen: list[int]) -> _Found:
        return jax.tree.map(lambda block: block[chosen], self)

    def joined(self, other: _Found) -> _Found:
        return jax.tree.map(lambda *blocks: np.concatenate(blocks), self, other)


def _seek(target: Target, data: Data, points: np.ndarray, n_threads: int) -> _Found:
    """Where searches from identifiable coordinates ``(s, p)`` end."""
    program = partial(_climb, target, data)
    optima = in_pairs(program, points, np.ones(len(points), bool), n_threads)
    flat = optima.gradient_norm <= newton.GRADIENT_TOLERANCE
    concave = optima.least_curvature >= -newton.CURVATURE_TOLERANCE
    return _Found(*_approximate(optima, int(data.n_observations)), np.asarray(flat & concave))


def _distinct(layout: Layout, found: _Found, n_first: int = 0) -> list[int]:
    """Indices of modes that differ, those of most mass first; at least one.

    Of copies the one with more mass is kept, or one of the ``n_first`` first: which of them has
    more is a matter of rounding, and must not decide on the labels.
    """
    masses = found.modes.log_evidence
    usable = np.isfinite(masses)
    if np.any(usable & found.converged):
        usable &= found.converged
    kept: list[int] = []
    for i in np.lexsort((-masses, np.arange(len(masses)) >= n_first)):
        if usable[i] and not any(_alike(layout, found, i, j) for j in kept):
            kept.append(int(i))
    return sorted(kept, key=lambda i: -masses[i]) or [0]


def _alike(layout: Layout, found: _Found, i: int, j: int) -> bool:
    masses, heights = found.modes.log_evidence, found.heights
    if abs(masses[i] - masses[j]) >= _SAME or abs(heights[i] - heights[j]) >= _SAME:
        return False
    return _apart(layout, found.modes, i, j) < _SAME_EXPERTS


def _apart(layout: Layout, modes: Modes, i: int, j: int) -> float:
    """How many widths of mode j an expert of mode i is away from its own there, at most."""
    width = np.sqrt(np.sum(modes.whitening[j] ** 2, axis=1))
    one, other, unit = (_experts(layout, values) for values in (modes.u[i], modes.u[j], width))
    distances = np.max(np.abs(one[:, None] - other) / unit, axis=-1)
    return float(np.max(distances[linear_sum_assignment(distances)]))


def _experts(layout: Layout, values: np.ndarray) -> np.ndarray:
    """Of values for each coordinate ``(p,)`` those of the experts, shape ``(k, d + 2)``."""
    experts = np.empty(layout.size - layout.n_gate)
    experts[layout.expert_order()] = values[layout.n_gate :]
    return experts.reshape(layout.n_experts, -1)


@jit_unoptimised(static_argnums=0)
def _other_references(target: Target, u: Array) -> Array:
    """A mode ``(p,)`` under each of its k - 1 other references, in identifiable coordinates."""
    return target.layout.other_references(target.measure(u))


def _climb(target: Target, data: Data, starts: np.ndarray, wanted: np.ndarray) -> newton.Optimum:
    """Maxima of the density of u from starts in identifiable coordinates, both ``(s, p)``."""
    if target.bounded:
        return _maximise_inside(target, data, starts, wanted)
    unbounded = np.full(starts.shape[1], -np.inf)
    layout, prior = target
    return maximise(layout, prior, data, starts, wanted, newton.Box(unbounded), np.ones(()))


@jit_by_size(static_argnums=0, data=1)
def _maximise_inside(target: Target, data: Data, starts: Array, wanted: Array) -> newton.Optimum:
    unbounded = jnp.full(target.layout.size, -jnp.inf)

    def mean(u: Array) -> Evaluation:
        return Evaluation(*(term / data.n_observations for term in target.evaluate(u, data)))

    def one(start: tuple[Array, Array]) -> newton.Optimum:
        return newton.maximise(mean, target.unconstrain(start[0]), newton.Box(unbounded), start[1])

    return each(one, (starts, wanted))


def _approximate(optima: newton.Optimum, n: int) -> tuple[Modes, np.ndarray]:
    """Laplace's approximation at maxima of a mean over n observations, and the log densities."""
    heights = n * np.asarray(optima.value)
    curvature, directions = np.linalg.eigh(n * np.asarray(optima.curvature))
    curvature = np.maximum(np.abs(curvature), LEAST_CURVATURE)
    evidence = heights - 0.5 * np.sum(np.log(curvature), axis=1)
    root = directions / np.sqrt(curvature)[:, None]
    return Modes(np.asarray(optima.coordinates), _triangular(root), evidence), heights


def _triangular(root: np.ndarray) -> np.ndarray:
    """The Cholesky factors of root rootᵀ, ``(m, p, p)``, without forming the product.

    Signs of eigenvectors, and any basis of those whose eigenvalues nearly agree, differ between
    builds of LAPACK, and draws of one seed would with them. The factor is unique.
    """
    factor = np.asarray(np.linalg.qr(root.mT, mode="r")).mT
    signs = np.where(np.diagonal(factor, axis1=1, axis2=2) < 0, -1.0, 1.0)
    return factor * signs[:, None, :]
