"""The Voronoi loss by definition, at given representatives.

The factor W of the weights is found here, exactly: given the cells, the loss is convex and
piecewise linear in W, and so least at one of its kinks or as W → 0.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np

from bayesmoe.theory._comparison import Comparison


class Value(NamedTuple):
    """The loss at one representative of each of N measures.

    Attributes
    ----------
    loss
        At the best W, shape ``(N,)``, with the penalty where a cell is empty.
    attained
        The same at the best W > 0: larger, if W → 0 is best. It ranks equal losses.
    cell
        The cell of each fitted atom, shape ``(N, k)``.
    empty
        Whether some cell has no atom, shape ``(N,)``.
    """

    loss: np.ndarray
    attained: np.ndarray
    cell: np.ndarray
    empty: np.ndarray


def evaluate(c: Comparison, scale: np.ndarray, shift: np.ndarray) -> Value:
    """The loss of N measures at s of shape ``(N,)`` and t of shape ``(N, d)``."""
    slopes = scale[:, None, None] * c.slopes + shift[:, None]
    squared = np.sum((slopes[:, :, None] - c.true_slopes) ** 2, axis=-1)
    cell = np.argmin(squared + c.distances, axis=-1)
    exponents = c.exponents[own_sizes(cell)]
    distance = np.sqrt(np.take_along_axis(squared, cell[..., None], axis=2)[..., 0])
    costs = distance ** exponents[..., 0] + fixed_costs(c, cell)
    if c.free_scale:
        gap = np.abs(scale * c.temperatures - c.true_temperature)
        costs = costs + gap[:, None] ** exponents[..., 1]
    members = members_of(cell, c.n_true)
    empty = ~np.all(np.any(members, axis=1), axis=1)
    return Value(*weighted_loss(c, costs, members), cell, empty)


def block_errors(
    c: Comparison, scale: np.ndarray, shift: np.ndarray, cell: np.ndarray
) -> np.ndarray:
    """Errors of the five parameter blocks in cells of one and of several atoms: ``(N, 5, 2)``.

    Sums over the cells of a kind of weighted means of norms, NaN where no cell is of the kind; for
    the temperature |Δτ|.
    """
    slopes = scale[:, None, None] * c.slopes + shift[:, None] - c.true_slopes[cell]
    members = members_of(cell, c.n_true)
    experts = np.sum(members[..., None] * c.norms, axis=2)
    errors = np.concatenate([np.linalg.norm(slopes, axis=2)[..., None], experts], axis=2)
    sizes = np.sum(members, axis=1)
    # no weight may underflow to zero, so that a cell has a mean
    weights = members * np.maximum(c.weights, np.finfo(float).tiny)[..., None]
    shares = weights / np.maximum(np.sum(weights, axis=1, keepdims=True), np.finfo(float).tiny)
    kinds = np.stack([sizes == 1, sizes >= 2], axis=-1)
    sums = np.einsum("nij,nib,njm->nbm", shares, errors, kinds)
    heat = np.abs(scale * c.temperatures - c.true_temperature)
    sums = np.insert(sums, 1, heat[:, None], axis=1)
    return np.where(np.any(kinds, axis=1)[:, None], sums, np.nan)


def fixed_costs(c: Comparison, cell: np.ndarray) -> np.ndarray:
    """What of the atoms' costs no representative changes, shape ``(N, k)``, for given cells."""
    n, k = cell.shape
    return c.fixed[np.arange(n)[:, None], np.arange(k), cell, own_sizes(cell)]


def own_sizes(cell: np.ndarray) -> np.ndarray:
    """The size of each atom's cell, of the shape of ``cell``, ``(..., k)``."""
    return np.sum(cell[..., None] == cell[..., None, :], axis=-1)


def members_of(cell: np.ndarray, n_true: int) -> np.ndarray:
    """Whether atom i is in cell j: shape ``(..., k, k*)`` for cells ``(..., k)``."""
    return cell[..., None] == np.arange(n_true)


def weighted_loss(
    c: Comparison, costs: np.ndarray, members: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The losses at the best W and at the best W > 0, given the atoms' costs and cells.

    ``(N, ..., k)`` and ``(..., k, k*)`` make ``(N, ...)``.
    """
    weights = np.expand_dims(c.weights, tuple(range(1, costs.ndim - 1)))
    masses = np.sum(weights[..., None] * members, axis=-2)
    costs = np.sum(np.where(members, (weights * costs)[..., None], 0.0), axis=-2)
    factors = _kinks(c, costs, masses) if c.free_weight else np.ones((*costs.shape[:-1], 1))
    cells = factors[..., None] * costs[..., None, :]
    cells = cells + np.abs(factors[..., None] * masses[..., None, :] - c.true_weights)
    attained = np.min(_costliest(cells, c.n_counted), axis=-1)
    limit = _costliest(c.true_weights, c.n_counted) if c.free_weight else np.inf
    penalty = np.where(np.all(np.any(members, axis=-2), axis=-1), 0.0, c.penalty)
    return np.minimum(attained, limit) + penalty, attained + penalty


def _kinks(c: Comparison, costs: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """All W > 0 where the loss can be least, shape ``(..., q)``.

    Where the weights of a cell match, and for a top-K gate where two cells cost the same.
    """
    targets = c.true_weights
    kinks = _ratio(targets, masses)
    if c.n_counted < c.n_true:
        # the cost of a cell is the larger of two lines, rise·W - drop
        rise = np.concatenate([costs + masses, costs - masses], axis=-1)
        drop = np.concatenate([targets, -targets])
        left, right = np.triu_indices(len(drop), 1)
        two = right - left != c.n_true  # the two lines of one cell cross where its weights match
        left, right = left[two], right[two]
        crossings = _ratio(drop[left] - drop[right], rise[..., left] - rise[..., right])
        kinks = np.concatenate([kinks, crossings], axis=-1)
    # a W <= 0 is no kink; any other W is harmless in its place
    fallback = np.sum(targets) / np.sum(masses, axis=-1, keepdims=True)
    return np.where(kinks > 0, kinks, fallback)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, zero where it is not finite."""
    with np.errstate(all="ignore"):
        ratio = numerator / denominator
    return np.where(np.isfinite(ratio), ratio, 0.0)


def _costliest(cells: np.ndarray, n_counted: int) -> np.ndarray:
    """The largest sum of ``n_counted`` on the last axis."""
    if n_counted == cells.shape[-1]:
        return np.sum(cells, axis=-1)
    subsets = itertools.combinations(np.moveaxis(cells, -1, 0), n_counted)
    return functools.reduce(np.maximum, (functools.reduce(np.add, subset) for subset in subsets))
