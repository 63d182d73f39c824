"""Convex minimisation under linear constraints, for batches of tiny problems.

A Newton method along the path on which a logarithmic barrier and the smoothing of the costs shrink
together, each problem at its own pace. NumPy on the whole batch, the B problems on the last axis of
every array: fast, and nothing to compile.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

_STEPS = 150  # at most; about 40 are usual
_FIRST, _SHRINK, _LAST = 0.1, 0.2, 1e-12  # of the smoothing, relative to the value
_TO_BOUNDARY = 0.95  # the most of the way to a constraint that a step goes
_HALVINGS = 30  # of a step
_DECREASE = 1e-4  # the least decrease, relative to what the gradient promises
_TINY = np.finfo(float).tiny


class Constraints(NamedTuple):
    """normals·x <= bounds: shapes ``(m, q, B)`` and ``(m, B)``."""

    normals: np.ndarray
    bounds: np.ndarray

    def slack(self, x: np.ndarray) -> np.ndarray:
        """bounds - normals·x, shape ``(m, B)``."""
        return self.bounds - np.einsum("mqb,qb->mb", self.normals, x)

    def take(self, problems: np.ndarray) -> Constraints:
        return Constraints(*(part[..., problems] for part in self))


class Smoothing(NamedTuple):
    """How much the costs of B problems are smoothed, each of shape ``(B,)``.

    Attributes
    ----------
    norm
        Added, squared, to squared norms: coordinates are of order one.
    gap
        By about how much the least value may be raised.
    """

    norm: np.ndarray
    gap: np.ndarray

    def take(self, problems: np.ndarray) -> Smoothing:
        return Smoothing(self.norm[problems], self.gap[problems])

    def shrunk(self, ready: np.ndarray) -> Smoothing:
        """Less where ``ready``."""
        norm = np.maximum(_SHRINK * self.norm, _LAST)
        return Smoothing(
            np.where(ready, norm, self.norm), np.where(ready, _SHRINK * self.gap, self.gap)
        )


class Objective(Protocol):
    """Positive convex functions of q variables, made smooth."""

    def value(self, x: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        """Shape ``(B,)`` at x of shape ``(q, B)``."""
        ...

    def gradient(self, x: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        """Shape ``(q, B)``."""
        ...

    def hessian(self, x: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        """Shape ``(q, q, B)``."""
        ...

    def take(self, problems: np.ndarray) -> Any:
        """Some of the functions."""
        ...


class _Barrier(NamedTuple):
    """The objective minus gap/m times Σ log slack over the m constraints."""

    objective: Objective
    constraints: Constraints

    def value(self, x: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):  # rounding may leave no slack
            logs = np.mean(np.log(self.constraints.slack(x)), axis=0)
        return self.objective.value(x, smoothing) - smoothing.gap * logs

    def gradient(self, x: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        pull = np.mean(self._pull(x), axis=0)
        return self.objective.gradient(x, smoothing) + smoothing.gap * pull

    def hessian(self, x: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        pull = self._pull(x)
        squares = np.einsum("mpb,mqb->pqb", pull, pull) / len(pull)
        return self.objective.hessian(x, smoothing) + smoothing.gap * squares

    def longest(self, x: np.ndarray, move: np.ndarray) -> np.ndarray:
        """The length, of at most one, of a step that keeps off the constraints."""
        # the first constraint is met after a step of length 1/fastest
        fastest = np.max(np.einsum("mqb,qb->mb", self._pull(x), move), axis=0)
        return np.minimum(1.0, _TO_BOUNDARY / np.maximum(fastest, _TINY))

    def take(self, problems: np.ndarray) -> _Barrier:
        return _Barrier(self.objective.take(problems), self.constraints.take(problems))

    def _pull(self, x: np.ndarray) -> np.ndarray:
        return self.constraints.normals / self.constraints.slack(x)[:, None]


def minimise(objective: Objective, constraints: Constraints, start: np.ndarray) -> np.ndarray:
    """Minimisers ``(q, B)``, from strictly feasible ``start``; they are strictly feasible."""
    barrier, norm = _Barrier(objective, constraints), np.full(start.shape[1], _FIRST)
    gap = _FIRST * objective.value(start, Smoothing(norm, np.zeros_like(norm))) + _TINY
    smoothing = before = Smoothing(norm, gap)
    solution, problems, x = start.copy(), np.arange(len(gap)), start
    for _ in range(_STEPS):
        x, value, ready = _newton_step(barrier, x, smoothing, before)
        solution[:, problems] = x
        going = ~ready | (smoothing.gap > _LAST * value)
        if not np.any(going):
            break
        if not np.all(going):
            problems, x, ready = problems[going], x[:, going], ready[going]
            barrier, smoothing = barrier.take(going), smoothing.take(going)
        before, smoothing = smoothing, smoothing.shrunk(ready)
    return solution


def _newton_step(
    barrier: _Barrier, x: np.ndarray, smoothing: Smoothing, before: Smoothing
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A damped step, the value there, and whether that is close enough to the least.

    With the curvature of the smoothing ``before``, the first step after it shrank follows the
    tangent of the path of minimisers.
    """
    gradient = barrier.gradient(x, smoothing)
    move = -solve(barrier.hessian(x, before), gradient)
    promised, length = -np.sum(gradient * move, axis=0), barrier.longest(x, move)
    value, trial = barrier.value(x, smoothing), x + length * move
    reached, rounding = barrier.value(trial, smoothing), 1e-14 * np.abs(value)
    for _ in range(_HALVINGS):
        bad = np.flatnonzero(~(reached <= value + rounding - _DECREASE * length * promised))
        if not bad.size:
            break
        length[bad] /= 2
        trial[:, bad] = x[:, bad] + length[bad] * move[:, bad]
        reached[bad] = barrier.take(bad).value(trial[:, bad], smoothing.take(bad))
    failed = ~(reached <= value + rounding)
    trial, reached = np.where(failed, x, trial), np.where(failed, value, reached)
    ready = (length >= 0.5) & (promised <= smoothing.gap)
    return trial, reached, ready | (np.abs(reached - value) <= rounding)


def feasible(constraints: Constraints, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points ``(q, B)`` and whether they are strictly feasible; ``start`` itself where it is."""
    x, violation = start.copy(), -np.min(constraints.slack(start), axis=0)
    out = np.flatnonzero(violation >= 0)
    if out.size:
        lifted = np.concatenate([start[:, out], violation[None, out] + 1])
        x[:, out] = minimise(_Violation(lifted), _lift(constraints.take(out)), lifted)[:-1]
    return x, np.min(constraints.slack(x), axis=0) > 0


def _lift(constraints: Constraints) -> Constraints:
    """Constraints of (x, z): normals·x <= bounds + z and z >= -1."""
    normals, bounds = constraints
    normals = np.pad(normals, [(0, 1), (0, 1), (0, 0)])
    normals[:, -1] = -1.0
    return Constraints(normals, np.pad(bounds, [(0, 1), (0, 0)], constant_values=1.0))


class _Violation(NamedTuple):
    """z + 1 in (x, z); smoothed by the squared distance from the start, ``(q + 1, B)``."""

    start: np.ndarray

    def value(self, x: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        return x[-1] + 1 + smoothing.gap * np.sum((x - self.start)[:-1] ** 2, axis=0)

    def gradient(self, x: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        gradient = 2 * smoothing.gap * (x - self.start)
        gradient[-1] = 1.0
        return gradient

    def hessian(self, x: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        diagonal = np.append(np.ones(len(x) - 1), 0.0)
        return 2 * smoothing.gap * np.diag(diagonal)[..., None]

    def take(self, problems: np.ndarray) -> _Violation:
        return _Violation(self.start[:, problems])


def solve(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Gaussian elimination of positive semidefinite systems, ``(q, q, B)`` and ``(q, B)``.

    Their diagonals are raised by a rounding error, so that no pivot vanishes.
    """
    diagonal = np.arange(len(vector))
    rows = np.concatenate([matrix, vector[:, None]], axis=1)
    rows[diagonal, diagonal] = (1 + 1e-14) * rows[diagonal, diagonal] + _TINY
    for i in diagonal:
        pivot = rows[i] / rows[i, i]
        rows -= rows[:, i, None] * pivot
        rows[i] = pivot
    return rows[:, -1]
