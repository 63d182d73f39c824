"""Convex minimisation by cuts against SciPy's HiGHS, one problem by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize

from bayesmoe.theory._cuts import Ellipsoid, minimise
from bayesmoe.theory._rows import Largest, Rows, Summed

SIZE = 25
REACH = 3.0  # of all residuals


def absolute_values(rng: np.random.Generator, n_rows: int, p: int) -> Rows:
    """Rows in p variables, some of them the same, with residuals between -3 and 3."""
    basis = rng.integers(-2, 3, (n_rows, p, SIZE)).astype(float)
    basis[:, -1] += 0.5  # no row is without a variable
    shape = (n_rows, SIZE)
    weights, reach = rng.exponential(size=shape), np.full(shape, REACH)
    return Rows(basis, rng.normal(size=shape), np.ones(shape), weights, -reach, reach)


def largest(rng: np.random.Generator, n_counted: int, free_weight: bool) -> Largest:
    """Two atoms in three cells, one of which is empty."""
    members = np.zeros((3, 2, SIZE))
    members[[1, 0], range(2)] = 1.0
    fixed, masses, targets = rng.exponential(size=(3, 3, SIZE))
    rows = absolute_values(rng, 2, 1)
    return Largest(rows, members, fixed, masses, targets, n_counted, free_weight)


def solved(problem: Summed | Largest, level: float) -> tuple[np.ndarray, np.ndarray]:
    """From a ball that holds all solutions."""
    p = problem.rows.basis.shape[1]
    n = p + (isinstance(problem, Largest) and problem.free_weight)
    ball = 1e3 * np.repeat(np.eye(n)[..., None], SIZE, axis=2)
    start = Ellipsoid(np.zeros((n, SIZE)), ball)
    return minimise(problem, start, np.full(SIZE, level), np.ones(SIZE))


@pytest.mark.parametrize("p", [2, 3])
def test_sums_of_absolute_values_are_least(p: int, rng: np.random.Generator) -> None:
    check(Summed(absolute_values(rng, 4, p)))


@pytest.mark.parametrize(("n_counted", "free_weight"), [(1, True), (2, True), (2, False)])
def test_costliest_cells_are_least(
    n_counted: int, free_weight: bool, rng: np.random.Generator
) -> None:
    check(largest(rng, n_counted, free_weight))


def test_minima_are_precise_where_no_better_value_is_known_than_1e30(
    rng: np.random.Generator,
) -> None:
    check(Summed(absolute_values(rng, 4, 2)), level=1e30)


def check(problem: Summed | Largest, level: float = 1e3) -> None:
    """Feasible, as low as HiGHS finds for the definition; nothing where there is no point."""
    x, found = solved(problem, level)
    known = [_known(problem, i) for i in range(SIZE)]
    np.testing.assert_array_equal(found, [value is not None for value in known])
    assert np.sum(found) > SIZE / 2
    u = x[:-1] / x[-1] if isinstance(problem, Largest) and problem.free_weight else x
    residual = np.einsum("rpb,pb->rb", problem.rows.basis, u) + problem.rows.offset
    assert np.all(np.abs(residual[:, found]) <= REACH + 1e-12)
    values = _value(problem, x, residual)
    for i in np.flatnonzero(found):
        assert values[i] == pytest.approx(known[i], rel=1e-9), i


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_cut_ellipsoid_holds_what_is_left_and_no_more(n: int, rng: np.random.Generator) -> None:
    """The cap of the ball z_1 <= -depth touches it at its pole and at its rim."""
    depth = np.array([0.0, 0.2, 0.7])
    old = Ellipsoid(rng.normal(size=(n, 3)), rng.normal(size=(n, n, 3)))
    new = old.cut(np.eye(n)[:, :1] * np.ones(3), depth)
    rim = np.zeros((n, 3))
    rim[-1] = np.sqrt(1 - depth**2)
    rim[0] = -depth
    for z in (-np.eye(n)[:, :1] * np.ones(3), rim):
        away = old.centre + np.einsum("ijb,jb->ib", old.axes, z) - new.centre
        back = [np.linalg.solve(new.axes[..., i], away[:, i]) for i in range(3)]
        np.testing.assert_allclose(np.linalg.norm(back, axis=1), 1, rtol=1e-9)


def test_a_level_is_bettered_or_nothing_is_found(rng: np.random.Generator) -> None:
    problem = Summed(absolute_values(rng, 4, 2))
    least = np.array([_known(problem, i) or np.inf for i in range(SIZE)])
    level = float(np.median(least))
    x, found = solved(problem, level)
    np.testing.assert_array_equal(found, least < level - 1e-9)
    residual = np.einsum("rpb,pb->rb", problem.rows.basis, x) + problem.rows.offset
    np.testing.assert_allclose(_value(problem, x, residual)[found], least[found], rtol=1e-9)


def _known(problem: Summed | Largest, i: int) -> float | None:
    """The least value of a problem, if any: least z above the sum over each subset of the cells.

    Variables (Wu, W, z), then one for each absolute value.
    """
    rows = Rows(*(part[..., i] for part in problem.rows))
    n_rows, p = rows.basis.shape
    members, fixed, masses, targets = np.ones((1, n_rows)), *np.zeros((3, 1))
    counted, free_weight = 1, False
    if isinstance(problem, Largest):
        names = ("members", "fixed", "masses", "targets")
        members, fixed, masses, targets = (getattr(problem, name)[..., i] for name in names)
        counted, free_weight = problem.n_counted, problem.free_weight
    n_cells = len(members)
    moved = np.column_stack([rows.basis, rows.offset, np.zeros(n_rows)])
    heights = np.column_stack([np.zeros((n_cells, p)), masses, np.zeros(n_cells)])
    absolute, constant = np.concatenate([moved, heights]), np.append(np.zeros(n_rows), -targets)
    n_absolute, unit = len(absolute), np.eye(p + 2)
    normals, bounds = [], []
    for sign in (1, -1):
        normals += [np.hstack([sign * absolute, -np.eye(n_absolute)])]
        normals += [np.hstack([sign * moved - REACH * unit[p], np.zeros((n_rows, n_absolute))])]
        bounds += [-sign * constant, np.zeros(n_rows)]
    for subset in itertools.combinations(range(n_cells), counted):
        inside = members[list(subset)].sum(axis=0) * rows.weights
        gaps = np.isin(np.arange(n_cells), subset).astype(float)
        level = fixed[list(subset)].sum() * unit[p] - unit[p + 1]
        normals.append(np.concatenate([level, inside, gaps])[None])
        bounds.append(np.zeros(1))
    free: list[tuple[float | None, float | None]] = [(None, None)] * (p + 2 + n_absolute)
    free[p] = (0, None) if free_weight else (1, 1)
    costs = np.eye(len(free))[p + 1]
    solution = scipy.optimize.linprog(
        costs, np.concatenate(normals), np.concatenate(bounds), bounds=free
    )
    return float(solution.fun) if solution.status == 0 else None


def _value(problem: Summed | Largest, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """The costs by definition."""
    costs = problem.rows.weights * np.abs(residual)
    if isinstance(problem, Summed):
        return np.sum(costs, axis=0)
    W = x[-1] if problem.free_weight else 1.0
    cells = W * (np.einsum("jrb,rb->jb", problem.members, costs) + problem.fixed)
    cells = cells + np.abs(W * problem.masses - problem.targets)
    return np.sum(np.sort(cells, axis=0)[-problem.n_counted :], axis=0)
