"""The infimum of the Voronoi loss over representatives.

Fix which fitted atom lies in which cell. The representatives with these cells form a polyhedron in
(s, t), since the squared distances to two true atoms differ by a linear function, and on it the
loss is convex. So the infimum is the least of finitely many convex minima, one for each assignment;
most are ruled out by a bound, their loss if gate slopes could be matched. Measures are on the last
axis.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np

from bayesmoe.theory import _costs, _line
from bayesmoe.theory._comparison import Comparison
from bayesmoe.theory._definition import evaluate, members_of, nearest, own_sizes, weighted_loss

_BATCH = 4096  # problems solved at a time
_BOUNDS = 2_000_000  # numbers in a table of bounds
_CACHE = 16_384  # numbers in what is computed at a time of it
_MOST_ASSIGNMENTS = 100_000


class _Tried(NamedTuple):
    """Representatives (s, t) of N measures, ``(N,)`` and ``(d, N)``, and the loss; see `Value`."""

    loss: np.ndarray
    attained: np.ndarray
    cell: np.ndarray
    scale: np.ndarray
    shift: np.ndarray

    @classmethod
    def at(
        cls, c: Comparison, scale: np.ndarray, shift: np.ndarray, cell: np.ndarray | None = None
    ) -> _Tried:
        value = evaluate(c, scale, shift, cell)
        return cls(value.loss, value.attained, value.cell, scale, shift)

    def take(self, rows: np.ndarray) -> _Tried:
        return _Tried(*(part[..., rows] for part in self))

    def replaced(self, rows: np.ndarray, new: _Tried) -> _Tried:
        """With others at ``rows``."""
        parts = [part.copy() for part in self]
        for part, other in zip(parts, new, strict=True):
            part[..., rows] = other
        return _Tried(*parts)

    def better(self, other: _Tried) -> _Tried:
        """The better one for each measure."""
        equal = (other.loss == self.loss) & (other.attained < self.attained)
        which = (other.loss < self.loss) | equal
        return _Tried(*(np.where(which, *parts) for parts in zip(other, self, strict=True)))


def infimum(c: Comparison) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best representatives: s, t and the atoms' cells, ``(N,)``, ``(d, N)`` and ``(k, N)``.

    Raises
    ------
    ValueError
        If there are too many assignments of atoms to cells.
    """
    best = _meeting_points(c)
    if c.free_scale or c.free_shift:
        best = _search(c, best)
    return best.scale, best.shift, best.cell


def _meeting_points(c: Comparison) -> _Tried:
    """The best of no move, and of all where a fitted slope meets that of the nearest expert.

    If s is free, where temperatures agree and where slopes reach as far as the true ones; and for
    measures that are far off there, where two slopes are as far from each other as two true ones.
    """
    one = np.ones(c.slopes.shape[2])
    if not c.free_scale:
        return _met(c, [one])
    best = _met(c, [one, c.true_temperature / c.temperatures])
    rows = np.flatnonzero(best.loss > c.penalty)
    if not len(rows):
        return best
    far = c.take(rows)
    return best.replaced(rows, best.take(rows).better(_met(far, _paired_scales(far))))


def _met(c: Comparison, scales: list[np.ndarray]) -> _Tried:
    """The best at these s of t = 0 and, if t is free, of all t at which two slopes meet."""
    wanted = np.moveaxis(c.true_slopes[nearest(c.distances)], -1, 1)
    found = []
    for scale in scales:
        shifts = [np.zeros(c.slopes.shape[1:])]
        if c.free_shift:
            shifts += [*(wanted - scale * c.slopes)]
        found += [_Tried.at(c, scale, shift) for shift in shifts]
    return functools.reduce(_Tried.better, found)


def _paired_scales(c: Comparison) -> list[np.ndarray]:
    """Values of s at which two fitted slopes differ as two true ones, else one."""
    found = [np.ones(c.slopes.shape[2])]
    for i, other in itertools.combinations(range(len(c.slopes)), 2):
        gap = c.slopes[i] - c.slopes[other]
        for j, far in itertools.permutations(range(c.n_true), 2):
            true_gap = (c.true_slopes[j] - c.true_slopes[far])[:, None]
            with np.errstate(all="ignore"):
                scale = np.sum(true_gap * gap, axis=0) / np.sum(gap**2, axis=0)
            found.append(np.where((scale > 0) & np.isfinite(scale), scale, 1.0))
    return found


def _search(c: Comparison, best: _Tried) -> _Tried:
    """``best``, or the minima for all assignments that could be better."""
    cells = _assignments(c)
    filled = np.all(np.any(members_of(cells, c.n_true), axis=1), axis=0)
    if np.any(filled):
        best = _improved(c, best, np.arange(len(best.loss)), cells[:, filled])
    # whoever leaves a cell empty pays the penalty at least
    rows = np.flatnonzero(best.loss > c.penalty)
    if np.all(filled):
        return best
    return _improved(c, best, rows, cells[:, ~filled])


def _improved(c: Comparison, best: _Tried, rows: np.ndarray, cells: np.ndarray) -> _Tried:
    """``best``, or the minima of ``rows`` for those of ``cells`` that could be better."""
    step = max(1, _BOUNDS // cells.size)
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        bounds = _bounds(c.take(some), cells)
        # the most promising first: once they are known, few others remain
        first = np.arange(len(bounds))[:, None] == np.argmin(bounds, axis=0)
        for turn in (first, ~first):
            which, at = np.nonzero(turn & (bounds < best.loss[some]))
            best = _solved(c, best, some[at], cells[:, which])
    return best


def _solved(c: Comparison, best: _Tried, rows: np.ndarray, cells: np.ndarray) -> _Tried:
    """``best``, or the minima of ``rows``, which may recur, for one of ``cells`` each."""
    for start in range(0, len(rows), _BATCH):
        batch = slice(start, start + _BATCH)
        at, tried = _minima(c, best, rows[batch], cells[:, batch])
        # the best of each measure comes first
        order = np.lexsort((tried.attained, tried.loss, at))
        once, first = np.unique(at[order], return_index=True)
        best = best.replaced(once, best.take(once).better(tried.take(order[first])))
    return best


def _assignments(c: Comparison) -> np.ndarray:
    """The cells of k atoms in every possible way, shape ``(k, A)``."""
    k = len(c.slopes)
    count = c.n_true**k
    if count > _MOST_ASSIGNMENTS:
        raise ValueError(
            f"{k} fitted atoms have {count} assignments to {c.n_true} true atoms; the loss is "
            f"computed for at most {_MOST_ASSIGNMENTS}: compare fewer experts"
        )
    return np.stack(np.unravel_index(np.arange(count), (c.n_true,) * k))


def _bounds(c: Comparison, cells: np.ndarray) -> np.ndarray:
    """Lower bounds of the loss for each assignment, shape ``(A, N)``."""
    k, size = cells.shape
    n, step = c.slopes.shape[2], max(1, _CACHE // max(1, size))
    where, members = (own_sizes(cells), np.arange(k)[:, None], cells), members_of(cells, c.n_true)
    parts = [np.zeros((size, 0))]
    for start in range(0, n, step):
        some = c.take(slice(start, start + step))
        costs = some.weights[:, None] * some.fixed[where]
        parts.append(weighted_loss(some, costs, members[..., None])[0])
    return np.concatenate(parts, axis=1)


def _minima(
    c: Comparison, best: _Tried, rows: np.ndarray, cells: np.ndarray
) -> tuple[np.ndarray, _Tried]:
    """The minima for one assignment each, where there is any representative with it; their rows."""
    some, d = c.take(rows), c.slopes.shape[1]
    if d == 1:
        u, found = _line.minima(some, cells, best.loss[rows], best.attained[rows])
    else:
        u, found = _costs.minima(some, cells)
    u, rows, some, cells = u[:, found], rows[found], some.take(found), cells[:, found]
    scale = u[0] if c.free_scale else np.ones(len(rows))
    shift = u[-d:] if c.free_shift else np.zeros((d, len(rows)))
    return rows, _Tried.at(some, scale, shift, cells)
