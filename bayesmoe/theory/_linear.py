"""The convex problems of `_costs` that are linear programs: one covariate, all exponents one."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from bayesmoe.theory._barrier import Constraints, minimise
from bayesmoe.theory._costs import LargestCosts, SummedCosts
from bayesmoe.theory._simplex import LinearPrograms, least

_INWARDS = 1e-12  # of the way from a solution, a vertex, to a point inside


class _Rows(NamedTuple):
    """Costs of (x, more), and rows·(x, more) <= bounds; the first x have either sign."""

    costs: np.ndarray
    rows: np.ndarray
    bounds: np.ndarray
    n_signed: int

    def with_one(self, column: int) -> _Rows:
        """With that variable held at one."""
        costs, rows, bounds, n_signed = self
        rest = np.delete(np.arange(len(costs)), column)
        return _Rows(costs[rest], rows[:, rest], bounds - rows[:, column], n_signed)

    def programs(self, constraints: Constraints) -> LinearPrograms:
        """With the constraints on x, and the signed x as differences of two variables."""
        more = self.rows.shape[1] - constraints.normals.shape[1]
        normals = np.pad(constraints.normals, [(0, 0), (0, more), (0, 0)])
        rows = np.concatenate([self.rows, normals])
        bounds = np.concatenate([self.bounds, constraints.bounds])
        rows = np.concatenate([-rows[:, : self.n_signed], rows], axis=1)
        costs = np.concatenate([np.zeros_like(self.costs[: self.n_signed]), self.costs])
        return LinearPrograms(costs, rows, bounds)


def solve(
    objective: SummedCosts | LargestCosts, constraints: Constraints, start: np.ndarray
) -> np.ndarray:
    """Minimisers ``(q, B)``, strictly feasible as ``start`` is: linear programs where they are.

    A program whose solution is not proved goes to the barrier method, as what is not linear does.
    """
    x, rest = start.copy(), np.arange(start.shape[1])
    linear = np.flatnonzero(objective.linear)
    if linear.size:
        rows = _rows(objective.take(linear))
        found, proved = least(rows.programs(constraints.take(linear)))
        signed, n = rows.n_signed, len(start)
        vertex = found[signed : signed + n]
        vertex[:signed] -= found[:signed]
        x[:, linear] += np.where(proved, (1 - _INWARDS) * (vertex - x[:, linear]), 0.0)
        rest = np.setdiff1d(rest, linear[proved])
    if rest.size:
        x[:, rest] = minimise(objective.take(rest), constraints.take(rest), start[:, rest])
    return x


def _rows(objective: SummedCosts | LargestCosts) -> _Rows:
    if isinstance(objective, SummedCosts):
        return _summed(objective)
    return _largest(objective)


def _summed(objective: SummedCosts) -> _Rows:
    """Σ weight_r e_r with e_r >= ±(basis_r u + offset_r), over (u, e)."""
    basis, offset, _, weights = objective.residuals
    n_rows, _, p, size = basis.shape
    rows = np.zeros((2, n_rows, p + n_rows, size))
    rows[0, :, :p], rows[1, :, :p] = basis[:, 0], -basis[:, 0]
    rows[:, :, p:] = -np.eye(n_rows)[..., None]
    bounds = np.concatenate([-offset[:, 0], offset[:, 0]])
    costs = np.concatenate([np.zeros((p, size)), weights / np.max(weights, axis=0)])
    return _Rows(costs, rows.reshape(-1, *rows.shape[2:]), bounds, p)


def _largest(objective: LargestCosts) -> _Rows:
    """Kν + Σ_j e_j with e_j >= h_j - ν, over (Wu, W, ν, e); ν, e >= 0.

    h_j = ±(slope_j Wu + offset_j W) + fixed_j W ± (mass_j W - target_j), whatever the signs: a cell
    has at most one atom.
    """
    basis, offset, _, weights = objective.residuals
    n_cells, (p, size), unit = len(objective.targets), basis.shape[2:], np.sum(objective.targets)
    shares = objective.members * weights / unit
    slope = np.einsum("jrb,rpb->jpb", shares, basis[:, 0])
    shift = np.einsum("jrb,rb->jb", shares, offset[:, 0])
    masses, fixed = objective.masses / unit, objective.fixed / unit
    level, excess = p + 1, np.arange(p + 2, p + 2 + n_cells)  # columns of ν and e
    rows = np.zeros((2, 2, n_cells, p + 2 + n_cells, size))
    bounds = np.zeros((2, 2, n_cells, size))
    for first, second in itertools.product(range(2), repeat=2):
        norm, gap = 1 - 2 * first, 1 - 2 * second  # signs
        part = rows[first, second]
        part[:, :p], part[:, p] = norm * slope, norm * shift + fixed + gap * masses
        part[:, level], part[:, excess] = -1.0, -np.eye(n_cells)[..., None]
        bounds[first, second] = gap * objective.targets / unit
    costs = np.zeros(rows.shape[3:])
    costs[level], costs[excess] = objective.n_counted, 1.0
    found = _Rows(costs, rows.reshape(-1, *costs.shape), bounds.reshape(-1, size), p)
    return found if objective.free_weight else found.with_one(p)
