"""Convex minimisation in one, two or three variables, for batches of tiny problems: by cuts.

An ellipsoid holds all points better than the best one known. Its centre tells on which side of a
plane through it they lie, by a subgradient or by a constraint that it violates, and the next
ellipsoid is the smallest one that holds what is left (Shor; with cuts that pass the centre by:
Goldfarb & Todd 1982). In one variable it is an interval, and the method halves it. Nothing need be
smooth, and the ellipsoid bounds what is left to gain: a problem ends when that is nothing. One
compiled loop over a batch, the B problems on the last axis of every array.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_CUTS = 600  # at most; about 200 are usual in two variables, 50 in one
_GAIN = 1e-12  # what is not worth a cut, relative to the value
_NOTHING = 1e-17  # the same, relative to the unit
_BATCH = 256  # problems in a compiled call: one compilation serves every number of them


class Cut(NamedTuple):
    """A problem at a point.

    Attributes
    ----------
    value, gradient
        Of the objective: shapes ``(B,)`` and ``(n, B)``; the value is -inf where it is not known.
    excess, normal
        By how much a constraint is violated, the worst one, and the gradient of that: the same
        shapes. A point whose excess is not positive is feasible.
    """

    value: Array
    gradient: Array
    excess: Array
    normal: Array


class Problem(Protocol):
    """Convex functions of n variables, that are not negative, under convex constraints."""

    def at(self, x: Array) -> Cut:
        """At x of shape ``(n, B)``."""
        ...


class Ellipsoid(NamedTuple):
    """{centre + axes z: |z| <= 1}, shapes ``(n, B)`` and ``(n, n, B)``."""

    centre: Any
    axes: Any

    def radius(self, slope: Array) -> tuple[Array, Array]:
        """How much a linear function of the ``slope`` varies about the centre; and axesᵀ slope."""
        pulled = jnp.sum(self.axes * slope[:, None], axis=0)
        return jnp.sqrt(jnp.sum(pulled**2, axis=0)), pulled

    def cut(self, direction: Array, depth: Array) -> Ellipsoid:
        """The smallest that holds what lies the ``depth`` of the radius or more below the centre.

        The direction is that of axesᵀ slope, of length one.
        """
        n = len(direction)
        move = jnp.sum(self.axes * direction, axis=1)
        along = n * (1 - depth) / (n + 1)
        across = n * jnp.sqrt((1 - depth**2) / max(n**2 - 1, 1))
        axes = across * self.axes + (along - across) * move[:, None] * direction
        return Ellipsoid(self.centre - (1 + n * depth) / (n + 1) * move, axes)


def minimise(
    problem: Any, start: Ellipsoid, level: np.ndarray, unit: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Minimisers ``(n, B)``, and whether there is any point with a value below ``level`` ``(B,)``.

    The start must hold all such points. Where there is none, the minimiser has no meaning.

    Parameters
    ----------
    problem
        A `Problem`, and a pytree of arrays with the problems on their last axes.
    unit
        What counts as large among values, ``(B,)``: near zero they are precise relative to it.
    """
    size, parts = len(level), [(np.zeros((len(start.centre), 0)), np.zeros(0, dtype=bool))]
    for first in range(0, size, _BATCH):
        index = np.minimum(np.arange(first, first + _BATCH), size - 1)
        batch = jax.tree_util.tree_map(
            lambda leaf, index=index: leaf[..., index], (problem, start, level, unit)
        )
        x, found = _minimise(*batch)
        parts.append((np.asarray(x), np.asarray(found)))
    solutions, whether = zip(*parts, strict=True)
    return np.concatenate(solutions, axis=1)[:, :size], np.concatenate(whether)[:size]


class _State(NamedTuple):
    """After some cuts: the best point of each problem, its value, and which problems go on."""

    cuts: Array
    ellipsoid: Ellipsoid
    solution: Array
    least: Array
    going: Array


@jax.jit
def _minimise(problem: Problem, start: Ellipsoid, level: Array, unit: Array) -> tuple[Array, Array]:
    def step(state: _State) -> _State:
        ellipsoid, least = state.ellipsoid, state.least
        value, gradient, excess, normal = problem.at(ellipsoid.centre)
        inside = excess <= 0
        better = inside & (value < least)
        least = jnp.where(better, value, least)
        solution = jnp.where(better, ellipsoid.centre, state.solution)
        # what is left to gain, and whether any of it is feasible
        fall, pulled = ellipsoid.radius(gradient)
        reach, pushed = ellipsoid.radius(normal)
        gain = _GAIN * least + _NOTHING * jnp.minimum(level, unit)
        going = (value - least + gain < fall) & (inside | (excess < reach))
        length = jnp.where(going, jnp.where(inside, fall, reach), jnp.inf)
        # what has ended keeps its centre
        depth = jnp.where(going, jnp.where(inside, value - least, excess) / length, 1.0)
        direction = jnp.where(inside, pulled, pushed) / length
        return _State(state.cuts + 1, ellipsoid.cut(direction, depth), solution, least, going)

    first = _State(jnp.zeros((), int), start, start.centre, level, jnp.ones(level.shape, bool))
    last = jax.lax.while_loop(lambda s: jnp.any(s.going) & (s.cuts < _CUTS), step, first)
    return last.solution, last.least < level
