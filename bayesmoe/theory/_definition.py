"""The Voronoi loss by definition, at given representatives.

The factor W of the weights is found here, exactly: given the cells, the loss is convex and
piecewise linear in W, and so least at one of its kinks or as W → 0. Measures are on the last axis.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
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
        The cell of each fitted atom, shape ``(k, N)``.
    empty
        Whether some cell has no atom, shape ``(N,)``.
    """

    loss: np.ndarray
    attained: np.ndarray
    cell: np.ndarray
    empty: np.ndarray


def evaluate(
    c: Comparison, scale: np.ndarray, shift: np.ndarray, cell: np.ndarray | None = None
) -> Value:
    """The loss of N measures at s of shape ``(N,)`` and t of shape ``(d, N)``.

    Where an atom is as near to one true atom as to another, up to rounding, ``cell`` says to which
    it is assigned; without it, to the first.
    """
    slopes = scale * c.slopes + shift
    squared = np.sum((slopes[:, None] - c.true_slopes[..., None]) ** 2, axis=2)
    cell = nearest(squared + c.distances) if cell is None else cell
    exponents = c.exponents[own_sizes(cell)]
    distance = np.sqrt(np.take_along_axis(squared, cell[:, None], axis=1)[:, 0])
    costs = power(distance, exponents[..., 0]) + fixed_costs(c, cell)
    if c.free_scale:
        gap = np.abs(scale * c.temperatures - c.true_temperature)
        costs = costs + power(gap, exponents[..., 1])
    members = members_of(cell, c.n_true)
    empty = ~np.all(np.any(members, axis=1), axis=0)
    return Value(*weighted_loss(c, c.weights * costs, members), cell, empty)


def block_errors(
    c: Comparison, scale: np.ndarray, shift: np.ndarray, cell: np.ndarray
) -> np.ndarray:
    """Errors of the five parameter blocks in cells of one and of several atoms: ``(5, 2, N)``.

    Sums over the cells of a kind of weighted means of norms, NaN where no cell is of the kind; for
    the temperature |Δτ|.
    """
    slopes = scale * c.slopes + shift - np.moveaxis(c.true_slopes[cell], -1, 1)
    own = np.take_along_axis(c.norms, cell[None, :, None], axis=2)[:, :, 0]
    errors = np.concatenate([np.linalg.norm(slopes, axis=1)[None], own])
    # no weight may underflow to zero, so that a cell has a mean
    weights = np.maximum(c.weights, np.finfo(float).tiny)
    masses = np.sum(members_of(cell, c.n_true) * weights, axis=1)
    means = weights / np.take_along_axis(masses, cell, axis=0) * errors
    kinds = np.stack([own_sizes(cell) == 1, own_sizes(cell) >= 2])
    sums = np.sum(np.where(kinds, means[:, None], 0.0), axis=2)
    heat = np.abs(scale * c.temperatures - c.true_temperature)
    sums = np.insert(sums, 1, heat, axis=0)
    return np.where(np.any(kinds, axis=1), sums, np.nan)


def power(norms: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """``norms ** exponents``, at no cost where all exponents are one."""
    return norms if np.all(exponents == 1) else norms**exponents


def nearest(distances: np.ndarray) -> np.ndarray:
    """The cell of each atom, the first of equally near ones: ``(k, N)`` of ``(k, k*, N)``."""
    cell, least = np.zeros(distances[:, 0].shape, dtype=int), distances[:, 0]
    for j in range(1, distances.shape[1]):
        cell = np.where(distances[:, j] < least, j, cell)
        least = np.minimum(distances[:, j], least)
    return cell


def fixed_costs(c: Comparison, cell: np.ndarray) -> np.ndarray:
    """What of the atoms' costs no representative changes, shape ``(k, N)``, for given cells."""
    k, n = cell.shape
    return c.fixed[own_sizes(cell), np.arange(k)[:, None], cell, np.arange(n)]


def own_sizes(cell: np.ndarray) -> np.ndarray:
    """The size of each atom's cell, of the shape of ``cell``, ``(k, ...)``."""
    return sum((cell == one).astype(int) for one in cell)


def members_of(cell: np.ndarray, n_true: int) -> np.ndarray:
    """Whether atom i is in cell j: shape ``(k*, k, ...)`` for cells ``(k, ...)``."""
    return cell == np.arange(n_true).reshape(-1, *[1] * cell.ndim)


def weighted_loss(
    c: Comparison, costs: np.ndarray, members: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The losses at the best W and at the best W > 0, given the atoms' costs and cells.

    Costs are at W = 1, their weights included. ``(k, ..., N)`` and ``(k*, k, ..., N)`` make
    ``(..., N)``.
    """
    masses = np.sum(np.where(members, _before_last(c.weights, costs.ndim), 0.0), axis=1)
    costs = np.sum(np.where(members, costs, 0.0), axis=1)
    attained, targets = np.inf, c.true_weights.reshape(-1, *[1] * (costs.ndim - 1))
    for factor in kinks(c, costs, masses) if c.free_weight else [1.0]:
        cells = factor * costs + np.abs(factor * masses - targets)
        attained = np.minimum(attained, costliest(cells, c.n_counted))
    limit = costliest(c.true_weights, c.n_counted) if c.free_weight else np.inf
    penalty = penalties(c, members)
    return np.minimum(attained, limit) + penalty, attained + penalty


def penalties(c: Comparison, members: np.ndarray) -> np.ndarray:
    """What is added to the loss where a cell is empty: ``(...)`` of ``(k*, k, ...)``."""
    return np.where(np.all(np.any(members, axis=1), axis=0), 0.0, c.penalty)


def _before_last(array: np.ndarray, ndim: int) -> np.ndarray:
    """With axes of length one before the last, ``ndim`` in all."""
    return array.reshape(*array.shape[:-1], *[1] * (ndim - array.ndim), array.shape[-1])


def kinks(c: Comparison, costs: np.ndarray, masses: np.ndarray) -> Iterator[np.ndarray]:
    """All W > 0 where the loss of cells ``(k*, ...)`` can be least, each of shape ``(...)``.

    Where the weights of a cell match, and for a top-K gate where two cells cost the same.
    """
    # a W <= 0 is no kink; any other W is harmless in its place
    fallback, targets = np.sum(c.true_weights) / np.sum(masses, axis=0), c.true_weights
    for mass, target in zip(masses, targets, strict=True):
        yield _ratio(target, mass, fallback)
    if c.n_counted < c.n_true:
        # the cost of a cell is the larger of two lines, rise·W - drop
        rise, drop = [*(costs + masses), *(costs - masses)], [*targets, *-targets]
        for left, right in itertools.combinations(range(len(drop)), 2):
            if right - left != c.n_true:  # the two of one cell cross where its weights match
                yield _ratio(drop[left] - drop[right], rise[left] - rise[right], fallback)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """The quotient where it is positive and finite."""
    with np.errstate(all="ignore"):
        ratio = numerator / denominator
    return np.where((ratio > 0) & (ratio < np.inf), ratio, fallback)


def costliest(cells: np.ndarray, n_counted: int) -> np.ndarray:
    """The largest sum of ``n_counted`` on the first axis."""
    if n_counted == len(cells):
        return np.sum(cells, axis=0)
    subsets = itertools.combinations(cells, n_counted)
    return functools.reduce(np.maximum, (functools.reduce(np.add, subset) for subset in subsets))
