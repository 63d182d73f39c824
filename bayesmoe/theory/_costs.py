"""The convex problems of measures whose atoms are assigned to cells, with several covariates.

The coordinates u of a representative hold what is free of s and t, with t in units of the largest
gate slope. Norms are smoothed to √(‖·‖² + smoothing²). The B problems are on the last axis.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from bayesmoe.theory._barrier import Constraints, Smoothing, feasible, minimise, solve
from bayesmoe.theory._comparison import Comparison
from bayesmoe.theory._definition import fixed_costs, members_of, own_sizes


def minima(c: Comparison, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best of what is free of (s, t), ``(p, B)``, and whether there is any.

    For B measures with their atoms in cells ``(k, B)``.
    """
    residuals, constraints, unit = assign(c, cell)
    u, found = feasible(constraints, residuals.least_squares())
    residuals, constraints = residuals.take(found), constraints.take(found)
    if c.n_counted == c.n_true:
        u[:, found] = minimise(SummedCosts(residuals), constraints, u[:, found])
    else:
        u[:, found] = _largest(c.take(found), cell[:, found], residuals, constraints, u[:, found])
    if c.free_shift:
        u[-residuals.n_covariates :] *= unit
    return u, found


class Residuals(NamedTuple):
    """Row r costs weight_r ‖basis_r u + offset_r‖^exponent_r.

    Shapes ``(r, d, p, B)`` and ``(r, d, B)``, then ``(r, B)``.
    """

    basis: np.ndarray
    offset: np.ndarray
    exponents: np.ndarray
    weights: np.ndarray

    def take(self, problems: np.ndarray) -> Residuals:
        return Residuals(*(part[..., problems] for part in self))

    def costs(self, u: np.ndarray, smoothing: np.ndarray) -> np.ndarray:
        """Shape ``(r, B)``."""
        return self.weights * self._squares(u, smoothing)[1] ** (self.exponents / 2)

    def gradients(self, u: np.ndarray, smoothing: np.ndarray) -> np.ndarray:
        """Shape ``(r, p, B)``."""
        along, first, _ = self._derivatives(u, smoothing)
        return first[:, None] * along

    def hessian(
        self, u: np.ndarray, smoothing: np.ndarray, shares: np.ndarray | float = 1.0
    ) -> np.ndarray:
        """Of the sum over rows, each with its share ``(r, B)``: shape ``(p, p, B)``."""
        along, first, second = self._derivatives(u, smoothing)
        inner = np.einsum("rb,rdpb,rdqb->pqb", shares * first, self.basis, self.basis)
        return inner + np.einsum("rb,rpb,rqb->pqb", shares * second, along, along)

    def least_squares(self) -> np.ndarray:
        """The u that would be best if all exponents were two, shape ``(p, B)``."""
        matrix = np.einsum("rb,rdpb,rdqb->pqb", self.weights, self.basis, self.basis)
        return -solve(matrix, np.einsum("rb,rdpb,rdb->pb", self.weights, self.basis, self.offset))

    @property
    def n_covariates(self) -> int:
        """d."""
        return self.basis.shape[1]

    def _squares(self, u: np.ndarray, smoothing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        residual = np.einsum("rdpb,pb->rdb", self.basis, u) + self.offset
        return residual, np.sum(residual**2, axis=1) + smoothing**2

    def _derivatives(
        self, u: np.ndarray, smoothing: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        residual, squares = self._squares(u, smoothing)
        along = np.einsum("rdpb,rdb->rpb", self.basis, residual)
        first = self.exponents * self.weights * squares ** (self.exponents / 2 - 1)
        return along, first, (self.exponents - 2) * first / squares


class SummedCosts(NamedTuple):
    """The sum of all rows as a function of u."""

    residuals: Residuals

    def value(self, x: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        return np.sum(self.residuals.costs(x, smoothing.norm), axis=0)

    def gradient(self, x: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        return np.sum(self.residuals.gradients(x, smoothing.norm), axis=0)

    def hessian(self, x: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        return self.residuals.hessian(x, smoothing.norm)

    def take(self, problems: np.ndarray) -> SummedCosts:
        return SummedCosts(self.residuals.take(problems))


class Assigned(NamedTuple):
    """What depends on u, where u may lie, and the unit of t, shape ``(B,)``."""

    residuals: Residuals
    constraints: Constraints
    unit: np.ndarray


def assign(c: Comparison, cell: np.ndarray) -> Assigned:
    """B measures with their atoms in cells of shape ``(k, B)``."""
    largest = np.max(np.abs(c.slopes), axis=(0, 1)) + np.max(np.abs(c.true_slopes))
    unit = np.where(largest > 0, largest, 1.0)
    residuals = _slope_residuals(c, cell, unit)
    if c.free_scale:
        parts = zip(residuals, _temperature_residuals(c, cell, residuals), strict=True)
        residuals = Residuals(*map(np.concatenate, parts))
    return Assigned(residuals, _constraints(c, cell, unit), unit)


def _slope_residuals(c: Comparison, cell: np.ndarray, unit: np.ndarray) -> Residuals:
    """Rows sβ1_i + t - β1*_j in units of ``unit``."""
    slopes = c.slopes / unit
    k, d, size = slopes.shape
    offset = -np.moveaxis(c.true_slopes[cell], -1, 1) / unit
    columns = []
    if c.free_scale:
        columns.append(slopes[:, :, None])
    else:
        offset = offset + slopes
    if c.free_shift:
        columns.append(np.broadcast_to(np.eye(d)[..., None], (k, d, d, size)))
    exponents = c.exponents[own_sizes(cell), 0]
    weights = c.weights * unit**exponents
    return Residuals(np.concatenate(columns, axis=2), offset, exponents, weights)


def _temperature_residuals(c: Comparison, cell: np.ndarray, like: Residuals) -> Residuals:
    """Rows sτ/τ* - 1, one for each atom, as vectors of length d."""
    basis, offset = np.zeros_like(like.basis), np.zeros_like(like.offset)
    basis[:, 0, 0] = c.temperatures / c.true_temperature
    offset[:, 0] = -1.0
    exponents = c.exponents[own_sizes(cell), 1]
    return Residuals(basis, offset, exponents, c.weights * c.true_temperature**exponents)


def _constraints(c: Comparison, cell: np.ndarray, unit: np.ndarray) -> Constraints:
    """Atom i is no nearer to any other true atom than to its own; and s > 0.

    With v = sβ1_i + t: 2 v·(β1*_l - β1*_j) <= ‖β1*_l‖² - ‖β1*_j‖² + distance²_il - distance²_ij.
    """
    others = (cell[:, None] + np.arange(1, c.n_true)[:, None]) % c.n_true
    away = np.moveaxis(c.true_slopes[others] - c.true_slopes[cell[:, None]], -1, 2) / unit
    heights = np.sum(c.true_slopes**2, axis=1)[:, None] + c.distances
    own = np.take_along_axis(heights, cell[:, None], axis=1)
    bounds = (np.take_along_axis(heights, others, axis=1) - own) / (2 * unit**2)
    along = np.sum(away * (c.slopes / unit)[:, None], axis=2)
    columns = []
    if c.free_scale:
        columns.append(along[:, :, None])
    else:
        bounds = bounds - along
    if c.free_shift:
        columns.append(away)
    normals = np.concatenate(columns, axis=2)
    normals = np.pad(normals.reshape(-1, *normals.shape[2:]), [(0, 1), (0, 0), (0, 0)])
    if c.free_scale:
        normals[-1, 0] = -1.0
    positive = np.full((1, len(unit)), 0.0 if c.free_scale else 1.0)
    return Constraints(normals, np.concatenate([bounds.reshape(-1, len(unit)), positive]))


def _largest(
    c: Comparison,
    cell: np.ndarray,
    residuals: Residuals,
    constraints: Constraints,
    u: np.ndarray,
) -> np.ndarray:
    """The minima where only the costliest cells count, so that W matters to u."""
    normals, bounds = constraints
    members = members_of(cell, c.n_true).astype(float)
    factor = np.ones(u.shape[1])
    if c.free_weight:
        # total weights agree at W = 1
        factor = np.sum(c.true_weights) / np.sum(c.weights, axis=0)
        normals = np.concatenate([normals, -bounds[:, None]], axis=1)
        bounds = np.zeros_like(bounds)
        u = np.concatenate([u, np.ones((1, u.shape[1]))])
    weights = factor * c.weights
    objective = LargestCosts(
        residuals._replace(weights=factor * residuals.weights),
        members,
        np.sum(members * weights * fixed_costs(c, cell), axis=1),
        np.sum(members * weights, axis=1),
        c.true_weights[:, None],
        c.n_counted,
        c.free_weight,
    )
    constraints = Constraints(np.pad(normals, [(0, 0), (0, 1), (0, 0)]), bounds)
    return objective.split(minimise(objective, constraints, np.pad(u, [(0, 1), (0, 0)])))[0]


@dataclasses.dataclass(frozen=True)
class LargestCosts:
    """The sum of the K costliest cells, weights included, as a function of (Wu, W, ν).

    The sum of the K largest h_j is min_ν Kν + Σ_j max(h_j - ν, 0), and a cost Wφ(y/W) is convex in
    (y, W) if φ is convex. If W is not among the variables, it is one. The maximum is smoothed, too,
    and so is the distance of the cells' weights to the true ones.

    Attributes
    ----------
    residuals
        Of the atoms' gate slopes.
    members
        Whether row r belongs to cell j, shape ``(k*, r, B)``.
    fixed, masses
        The cells' fixed costs and weights at W = 1, shape ``(k*, B)``.
    targets
        True weights, shape ``(k*, 1)``.
    n_counted
        K.
    free_weight
        Whether W is among the variables.
    """

    residuals: Residuals
    members: np.ndarray
    fixed: np.ndarray
    masses: np.ndarray
    targets: np.ndarray
    n_counted: int
    free_weight: bool

    def take(self, problems: np.ndarray) -> LargestCosts:
        names = ("members", "fixed", "masses")
        parts = {name: getattr(self, name)[..., problems] for name in names}
        return dataclasses.replace(self, residuals=self.residuals.take(problems), **parts)

    def split(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """u and W of shapes ``(p, B)`` and ``(B,)``."""
        p = self.residuals.basis.shape[2]
        weight = x[p] if self.free_weight else np.ones(x.shape[1])
        return x[:p] / weight, weight

    def value(self, x: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        _, _, excess = self._cells(x, smoothing)
        larger = np.sum(excess + np.hypot(excess, 2 * self._width(smoothing)), axis=0) / 2
        return self.n_counted * x[-1] + larger

    def gradient(self, x: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        share, _, each = self._derivatives(x, smoothing)
        gradient = np.einsum("jb,jqb->qb", share, each)
        gradient[-1] += self.n_counted
        return gradient

    def hessian(self, x: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        (u, weight), width = self.split(x), self._width(smoothing)
        share, bend, each = self._derivatives(x, smoothing)
        rows = np.einsum("jb,jrb->rb", share, self.members)
        # u moves with (y, W) as [1, -u]/W
        back = np.zeros((len(u), *x.shape))
        back[range(len(u)), range(len(u))] = 1.0
        if self.free_weight:
            back[:, len(u)] = -u
        inner = self.residuals.hessian(u, smoothing.norm, rows) / weight
        hessian = np.einsum("pxb,pqb,qyb->xyb", back, inner, back)
        hessian = hessian + np.einsum("jb,jpb,jqb->pqb", bend, each, each)
        if self.free_weight:
            _, height, _ = self._cells(x, smoothing)
            hessian[len(u), len(u)] += np.sum(share * (self.masses * width) ** 2 / height**3, 0)
        return hessian

    def _width(self, smoothing: Smoothing) -> np.ndarray:
        return smoothing.gap / len(self.targets)

    def _cells(
        self, x: np.ndarray, smoothing: Smoothing
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The cells' costs at W = 1, distances of weights, and h_j - ν: each ``(k*, B)``."""
        u, weight = self.split(x)
        costs = np.einsum("jrb,rb->jb", self.members, self.residuals.costs(u, smoothing.norm))
        height = np.hypot(weight * self.masses - self.targets, self._width(smoothing))
        return costs + self.fixed, height, weight * (costs + self.fixed) + height - x[-1]

    def _derivatives(
        self, x: np.ndarray, smoothing: Smoothing
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Two derivatives of the maxima, ``(k*, B)``, and those of h_j - ν, ``(k*, q, B)``."""
        (u, weight), width = self.split(x), self._width(smoothing)
        costs, height, excess = self._cells(x, smoothing)
        root = np.hypot(excess, 2 * width)
        slopes = np.einsum(
            "jrb,rpb->jpb", self.members, self.residuals.gradients(u, smoothing.norm)
        )
        parts = [slopes]
        if self.free_weight:
            gap = weight * self.masses - self.targets
            moved = np.einsum("jpb,pb->jb", slopes, u)
            parts.append((costs - moved + gap / height * self.masses)[:, None])
        parts.append(np.full((len(costs), 1, x.shape[1]), -1.0))
        return (1 + excess / root) / 2, 2 * width**2 / root**3, np.concatenate(parts, axis=1)
