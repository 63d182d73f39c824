"""Linear programs, for batches of tiny problems: the dual simplex method.

Where no cost is below zero the slack basis is dual feasible, so that one phase is enough. NumPy on
the whole batch, the B problems on the last axis of every array, as in `_barrier`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_PIVOTS = 80  # at most; about a dozen are usual
_ZERO = 1e-11  # what counts as zero in a tableau, coefficients being about 1
_BATCH = 512  # programs whose tableaus stay in the processor's cache
_GAP = 1e-11  # between the least value and its bound from below, relative


class LinearPrograms(NamedTuple):
    """Least costs·x over x >= 0 with normals·x <= bounds; no cost is negative.

    Shapes ``(n, B)``, ``(m, n, B)`` and ``(m, B)``.
    """

    costs: np.ndarray
    normals: np.ndarray
    bounds: np.ndarray

    def take(self, problems: slice) -> LinearPrograms:
        return LinearPrograms(*(part[..., problems] for part in self))


def least(programs: LinearPrograms) -> tuple[np.ndarray, np.ndarray]:
    """Minimisers ``(n, B)``, and whether they are proved to be: by a dual point of equal value.

    Those that are not have no meaning: the program has no solution, or it was not found.
    """
    starts = range(0, programs.costs.shape[1], _BATCH)
    parts = [_least(programs.take(slice(start, start + _BATCH))) for start in starts]
    x, proved = zip(*parts, strict=True)
    return np.concatenate(x, axis=1), np.concatenate(proved)


def _least(programs: LinearPrograms) -> tuple[np.ndarray, np.ndarray]:
    n, size = programs.costs.shape
    x, bound = np.full((n, size), np.nan), np.full(size, np.nan)
    tableaus, problems = _Tableaus.of(programs), np.arange(size)
    for _ in range(_PIVOTS):
        row, column, going = tableaus.pivots()
        done = ~going
        if np.any(done):
            x[:, problems[done]], bound[problems[done]] = tableaus.take(done).solution()
            tableaus, problems = tableaus.take(going), problems[going]
        if not problems.size:
            break
        tableaus = tableaus.exchanged(row[going], column[going])
    return x, _proved(programs, x, bound)


class _Tableaus(NamedTuple):
    """Constraints solved for the variables in the basis, slacks among them.

    Attributes
    ----------
    table
        Shape ``(m + 1, n + 1, B)``: coefficients, bounds as last column, costs as last row.
    basis, outside
        The variables of rows ``(m, B)`` and columns ``(n, B)``; those from n on are slacks.
    """

    table: np.ndarray
    basis: np.ndarray
    outside: np.ndarray

    @classmethod
    def of(cls, programs: LinearPrograms) -> _Tableaus:
        """With the slacks as basis."""
        costs, normals, bounds = programs
        (n, size), m = costs.shape, len(bounds)
        table = np.zeros((m + 1, n + 1, size))
        table[:-1, :-1], table[:-1, -1], table[-1, :-1] = normals, bounds, costs
        labels = np.repeat(np.arange(n + m)[:, None], size, axis=1)
        return cls(table, labels[n:], labels[:n])

    def take(self, problems: np.ndarray) -> _Tableaus:
        return _Tableaus(*(part[..., problems] for part in self))

    def pivots(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The row to leave the basis, the column to enter it, and whether there are any."""
        table, at = self.table, np.arange(self.table.shape[-1])
        row = np.argmin(table[:-1, -1], axis=0)
        across = table[row, :-1, at].T
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(across < -_ZERO, table[-1, :-1] / -across, np.inf)
        column = np.argmin(ratios, axis=0)
        return row, column, (table[row, -1, at] < -_ZERO) & np.isfinite(ratios[column, at])

    def exchanged(self, row: np.ndarray, column: np.ndarray) -> _Tableaus:
        """The tableaus with the variables of ``row`` and ``column`` exchanged."""
        table, basis, outside = self.table, self.basis.copy(), self.outside.copy()
        at = np.arange(len(row))
        across, down, pivot = table[row, :, at].T, table[:, column, at], table[row, column, at]
        table = table - down[:, None] * (across / pivot)
        table[row, :, at] = (across / pivot).T
        table[:, column, at] = -down / pivot
        table[row, column, at] = 1 / pivot
        basis[row, at], outside[column, at] = outside[column, at], basis[row, at]
        return _Tableaus(table, basis, outside)

    def solution(self) -> tuple[np.ndarray, np.ndarray]:
        """The basic solutions ``(n, B)``, and the values of the dual ones, ``(B,)``."""
        x = np.zeros((len(self.basis) + len(self.outside), self.table.shape[-1]))
        np.put_along_axis(x, self.basis, self.table[:-1, -1], axis=0)
        return x[: len(self.outside)], -self.table[-1, -1]


def _proved(programs: LinearPrograms, x: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Whether x is feasible and as good as the bound from below, to rounding."""
    costs, normals, bounds = programs
    slack = bounds - np.einsum("mnb,nb->mb", normals, x)
    size = 1 + np.max(np.abs(x), axis=0)
    value = np.sum(costs * x, axis=0)
    feasible = (np.min(slack, axis=0) >= -_GAP * size) & (np.min(x, axis=0) >= -_GAP * size)
    return feasible & (value - bound <= _GAP * (np.abs(value) + np.max(costs, axis=0)))
