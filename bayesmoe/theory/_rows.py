"""Costs of atoms assigned to cells, with one covariate, as functions to be minimised by cuts.

The B problems are on the last axis of every array.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.theory._cuts import Cut

_TINY = np.finfo(float).tiny


class Rows(NamedTuple):
    """Row r costs weight_r |residual_r|^exponent_r for residual_r = basis_r u + offset_r.

    The atoms' slopes first; temperatures, if they are free, after them. Each residual must lie
    between ``low`` and ``high``. Shapes ``(r, p, B)``, else ``(r, B)``. No exponents are ones.
    """

    basis: Any
    offset: Any
    exponents: Any
    weights: Any
    low: Any
    high: Any

    @property
    def cheap(self) -> Rows:
        """The same, without exponents if all are one: powers take half of the time."""
        return self._replace(exponents=None) if np.all(self.exponents == 1) else self

    def take(self, problems: np.ndarray) -> Rows:
        return Rows(*(part[..., problems] for part in self))

    def costs(self, u: Array) -> tuple[Array, Array, Array]:
        """Costs, their derivatives in the residuals, and the residuals: each ``(r, B)``."""
        residual = self.offset + jnp.sum(self.basis * u, axis=1)
        distance = jnp.abs(residual)
        if self.exponents is None:
            return self.weights * distance, self.weights * jnp.sign(residual), residual
        slope = self.weights * distance ** (self.exponents - 1)
        return slope * distance, slope * self.exponents * jnp.sign(residual), residual

    def excess(self, residual: Array) -> tuple[Array, Array]:
        """How far residuals are out of their intervals, and its sign on the side of ``high``."""
        above, below = residual - self.high, self.low - residual
        return jnp.maximum(above, below), jnp.where(above > below, 1.0, -1.0)


class Summed(NamedTuple):
    """The sum of all rows as a function of u."""

    rows: Rows

    def at(self, x: Array) -> Cut:
        costs, slopes, residual = self.rows.costs(x)
        excess, sign = self.rows.excess(residual)
        gradient = jnp.sum(slopes[:, None] * self.rows.basis, axis=0)
        worst, normal = _worst(excess, sign[:, None] * self.rows.basis)
        return Cut(jnp.sum(costs, axis=0), gradient, worst, normal)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("rows", "members", "fixed", "masses", "targets"),
    meta_fields=("n_counted", "free_weight"),
)
@dataclasses.dataclass(frozen=True)
class Largest:
    """The sum of the K costliest cells, weights included, as a function of (Wu, W), or of u.

    A cost Wφ(y/W) is convex in (y, W) if φ is convex.

    Attributes
    ----------
    rows
        Of the atoms' slopes, and of their temperatures if these are free.
    members
        Whether row r belongs to cell j, shape ``(k*, r, B)``.
    fixed, masses
        The cells' fixed costs and weights at W = 1, shape ``(k*, B)``.
    targets
        True weights, shape ``(k*, B)``.
    n_counted
        K.
    free_weight
        Whether W is among the variables, as last.
    """

    rows: Rows
    members: Any
    fixed: Any
    masses: Any
    targets: Any
    n_counted: int
    free_weight: bool

    def split(self, x: Array) -> tuple[Array, Array]:
        """u and W of shapes ``(p, B)`` and ``(B,)``."""
        if not self.free_weight:
            return x, jnp.ones(x.shape[1])
        weight = jnp.where(x[-1] > 0, x[-1], 1.0)
        return x[:-1] / weight, weight

    def at(self, x: Array) -> Cut:
        u, weight = self.split(x)
        costs, slopes, residual = self.rows.costs(u)
        costs = jnp.sum(self.members * costs, axis=1) + self.fixed
        gap = weight * self.masses - self.targets
        cells = weight * costs + jnp.abs(gap)
        counted = _largest_ones(cells, self.n_counted)
        slopes = slopes * jnp.sum(self.members * counted[:, None], axis=0)
        value, gradient = (
            jnp.sum(counted * cells, axis=0),
            jnp.sum(slopes[:, None] * self.rows.basis, axis=0),
        )
        excess, sign = self.rows.excess(residual)
        if not self.free_weight:
            worst, normal = _worst(excess, sign[:, None] * self.rows.basis)
            return Cut(value, gradient, worst, normal)
        rise = jnp.sum(counted * (costs + jnp.sign(gap) * self.masses), axis=0)
        rise = rise - jnp.sum(gradient * u, axis=0)
        limit = self.rows.offset - jnp.where(sign > 0, self.rows.high, self.rows.low)
        normals = jnp.concatenate([self.rows.basis, limit[:, None]], axis=1)
        worst, normal = _worst(weight * excess, sign[:, None] * normals)
        return _positive(x, Cut(value, jnp.concatenate([gradient, rise[None]]), worst, normal))


def _positive(x: Array, cut: Cut) -> Cut:
    """The cut with one more constraint, W > 0, without which nothing else has a meaning."""
    out = x[-1] <= 0
    return Cut(
        jnp.where(out, -jnp.inf, cut.value),
        cut.gradient,
        jnp.where(out, jnp.maximum(-x[-1], _TINY), cut.excess),
        jnp.where(out, -jnp.eye(len(x))[:, -1:], cut.normal),
    )


def _largest_ones(values: Array, number: int) -> Array:
    """Which are among the ``number`` largest on the first axis, the first of equal ones."""
    before = jnp.arange(len(values)) < jnp.arange(len(values))[:, None]
    larger = (values > values[:, None]) | ((values == values[:, None]) & before[..., None])
    return jnp.sum(larger, axis=1) < number


def _worst(excess: Array, normals: Array) -> tuple[Array, Array]:
    """The largest excess of rows ``(r, B)``, and its normal, of ``(r, n, B)``."""
    worst, normal = excess[0], normals[0]
    for more, other in zip(excess[1:], normals[1:], strict=True):
        normal = jnp.where(more > worst, other, normal)
        worst = jnp.maximum(more, worst)
    return worst, normal
