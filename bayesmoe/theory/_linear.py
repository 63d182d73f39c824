"""The convex problems of `_costs` that are linear programs: one covariate, all exponents one."""

from __future__ import annotations

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
    linear = np.flatnonzero(objective.residuals.linear)
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
    """Kν + Σ_j e_j with e_j >= h_j - ν, over (Wu, W, ν, e, a, g).

    h_j = Σ_r weight_r a_r + fixed_j W + g_j with a_r >= ±(basis_r Wu + offset_r W) and
    g_j >= ±(mass_j W - target_j), where r runs over the atoms in cell j. Each ν, e, a, g >= 0.
    """
    basis, offset, _, weights = objective.residuals
    (n_rows, _, p, size), n_cells = basis.shape, len(objective.targets)
    unit = np.sum(objective.targets)
    weight, level = p, p + 1  # columns of W and ν
    excess, norm, gap = np.split(
        np.arange(p + 2, p + 2 + 2 * n_cells + n_rows), [n_cells, n_cells + n_rows]
    )
    norms = np.zeros((2, n_rows, gap[-1] + 1, size))
    norms[0, :, :p], norms[0, :, weight] = basis[:, 0], offset[:, 0]
    norms[1] = -norms[0]
    norms[:, :, norm] = -np.eye(n_rows)[..., None]
    gaps = np.zeros((2, n_cells, gap[-1] + 1, size))
    gaps[0, :, weight] = objective.masses / unit
    gaps[1] = -gaps[0]
    gaps[:, :, gap] = -np.eye(n_cells)[..., None]
    cells = np.zeros((n_cells, gap[-1] + 1, size))
    cells[:, weight], cells[:, level] = objective.fixed / unit, -1.0
    cells[:, norm] = objective.members * weights / unit
    cells[:, gap], cells[:, excess] = np.eye(n_cells)[..., None], -np.eye(n_cells)[..., None]
    rows = np.concatenate([norms[0], norms[1], gaps[0], gaps[1], cells])
    targets = np.broadcast_to(objective.targets / unit, (n_cells, size))
    bounds = np.concatenate(
        [np.zeros((2 * n_rows, size)), targets, -targets, np.zeros((n_cells, size))]
    )
    costs = np.zeros((gap[-1] + 1, size))
    costs[level], costs[excess] = objective.n_counted, 1.0
    if not objective.free_weight:  # W is one
        bounds = bounds - rows[:, weight]
        rows, costs = np.delete(rows, weight, axis=1), np.delete(costs, weight, axis=0)
    return _Rows(costs, rows, bounds, p)
