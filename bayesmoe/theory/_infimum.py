"""The infimum of the Voronoi loss over representatives.

Fix which fitted atom lies in which cell. The representatives with these cells form a polyhedron in
(s, t), since the squared distances to two true atoms differ by a linear function, and on it the
loss is convex. So the infimum is the least of finitely many convex minima, one for each assignment;
most are ruled out by a bound, their loss if gate slopes could be matched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bayesmoe.theory._barrier import Constraints, feasible
from bayesmoe.theory._comparison import Comparison
from bayesmoe.theory._costs import Assigned, LargestCosts, SummedCosts, assign
from bayesmoe.theory._definition import (
    evaluate,
    fixed_costs,
    members_of,
    own_sizes,
    weighted_loss,
)
from bayesmoe.theory._linear import solve

_BATCH = 2048  # problems solved at a time
_BOUNDS = 2_000_000  # numbers in a table of bounds
_MOST_ASSIGNMENTS = 100_000


class _Tried(NamedTuple):
    """Representatives (s, t) of the measures at ``row``, and the loss there; see `Value`."""

    row: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    loss: np.ndarray
    attained: np.ndarray

    @classmethod
    def at(cls, c: Comparison, row: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> _Tried:
        value = evaluate(c.take(row), scale, shift)
        return cls(row, scale, shift, value.loss, value.attained)


def infimum(c: Comparison) -> tuple[np.ndarray, np.ndarray]:
    """The best representatives: s of shape ``(N,)`` and t of shape ``(N, d)``.

    Raises
    ------
    ValueError
        If there are too many assignments of atoms to cells.
    """
    best = _best([_Tried.at(c, *_meeting_points(c))])
    if c.free_scale or c.free_shift:
        best = _search(c, best)
    return best.scale, best.shift


def _best(tried: list[_Tried]) -> _Tried:
    """The best of each measure, ordered by row."""
    joined = _Tried(*map(np.concatenate, zip(*tried, strict=True)))
    order = np.lexsort((joined.attained, joined.loss, joined.row))
    _, first = np.unique(joined.row[order], return_index=True)
    return _Tried(*(part[order[first]] for part in joined))


def _meeting_points(c: Comparison) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, s and t: no move, and where a fitted gate slope meets that of the nearest expert."""
    n, _, d = c.slopes.shape
    shifts = np.zeros((n, 1, d))
    if c.free_shift:
        meeting = c.true_slopes[np.argmin(c.distances, axis=2)] - c.slopes
        shifts = np.concatenate([shifts, meeting], axis=1)
    rows = np.repeat(np.arange(n), shifts.shape[1])
    return rows, np.ones(len(rows)), shifts.reshape(-1, d)


def _search(c: Comparison, best: _Tried) -> _Tried:
    """``best``, or the minima for all assignments that could be better."""
    cells = _assignments(c)
    filled = np.all(np.any(members_of(cells, c.n_true), axis=1), axis=1)
    best = _improved(c, best, best.row, cells[filled])
    # whoever leaves a cell empty pays the penalty at least
    rows = best.row[best.loss > c.penalty]
    return _improved(c, best, rows, cells[~filled])


def _improved(c: Comparison, best: _Tried, rows: np.ndarray, cells: np.ndarray) -> _Tried:
    """``best``, or the minima of ``rows`` for those of ``cells`` that could be better."""
    step = max(1, _BOUNDS // max(1, cells.size))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        bounds = _bounds(c.take(some), cells)
        # the most promising first: once they are known, few others remain
        first = np.zeros(bounds.shape, dtype=bool)
        first[np.arange(len(some)), np.argmin(bounds, axis=1)] = True
        for turn in (first, ~first):
            at, which = np.nonzero(turn & (bounds < best.loss[some, None]))
            best = _best([best, *_solved(c, some[at], cells[which])])
    return best


def _solved(c: Comparison, rows: np.ndarray, cells: np.ndarray) -> Iterator[_Tried]:
    """The minima of ``rows`` for one of ``cells`` each, some at a time."""
    for start in range(0, len(rows), _BATCH):
        batch = slice(start, start + _BATCH)
        yield _minima(c, rows[batch], cells[batch])


def _assignments(c: Comparison) -> np.ndarray:
    """The cells of k atoms in every possible way, shape ``(A, k)``."""
    k = c.slopes.shape[1]
    count = c.n_true**k
    if count > _MOST_ASSIGNMENTS:
        raise ValueError(
            f"{k} fitted atoms have {count} assignments to {c.n_true} true atoms; the loss is "
            f"computed for at most {_MOST_ASSIGNMENTS}: compare fewer experts"
        )
    return np.stack(np.unravel_index(np.arange(count), (c.n_true,) * k), axis=1)


def _bounds(c: Comparison, cells: np.ndarray) -> np.ndarray:
    """Lower bounds of the loss for each assignment, shape ``(N, A)``."""
    costs = c.fixed[:, np.arange(cells.shape[1]), cells, own_sizes(cells)]
    return weighted_loss(c, costs, members_of(cells, c.n_true))[0]


def _minima(c: Comparison, rows: np.ndarray, cells: np.ndarray) -> _Tried:
    """The minima for one assignment each, where there is any representative with it."""
    assigned = assign(c.take(rows), cells)
    start, found = feasible(assigned.constraints, assigned.residuals.least_squares())
    rows, cells, assigned, start = rows[found], cells[found], assigned.take(found), start[:, found]
    if c.n_counted == c.n_true:
        u = _summed(assigned, start)
    else:
        u = _largest(c.take(rows), cells, assigned, start)
    d = c.slopes.shape[2]
    scale = u[0] if c.free_scale else np.ones(len(rows))
    shift = (u[-d:] * assigned.unit).T if c.free_shift else np.zeros((len(rows), d))
    return _Tried.at(c, rows, scale, shift)


def _summed(assigned: Assigned, start: np.ndarray) -> np.ndarray:
    """The minima where all cells count."""
    residuals, constraints, _ = assigned
    if residuals.n_variables == residuals.n_covariates == 1 and np.all(residuals.basis):
        return residuals.least_between(*constraints.interval())[None]
    return solve(SummedCosts(residuals), constraints, start)


def _largest(c: Comparison, cells: np.ndarray, assigned: Assigned, u: np.ndarray) -> np.ndarray:
    """The minima where only the costliest cells count, so that W matters to u."""
    residuals, (normals, bounds), _ = assigned
    members = np.moveaxis(members_of(cells, c.n_true).astype(float), 0, -1).swapaxes(0, 1)
    factor = np.ones(len(cells))
    if c.free_weight:
        # total weights agree at W = 1
        factor = np.sum(c.true_weights) / np.sum(c.weights, axis=1)
        normals = np.concatenate([normals, -bounds[:, None]], axis=1)
        bounds = np.zeros_like(bounds)
        u = np.concatenate([u, np.ones((1, len(cells)))])
    weights = factor * c.weights.T
    objective = LargestCosts(
        residuals._replace(weights=factor * residuals.weights),
        members,
        np.einsum("jkb,kb->jb", members, weights * fixed_costs(c, cells).T),
        np.einsum("jkb,kb->jb", members, weights),
        c.true_weights[:, None],
        c.n_counted,
        c.free_weight,
    )
    constraints = Constraints(np.pad(normals, [(0, 0), (0, 1), (0, 0)]), bounds)
    return objective.split(solve(objective, constraints, np.pad(u, [(0, 1), (0, 0)])))[0]
