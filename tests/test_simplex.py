"""Batches of linear programs against SciPy's HiGHS, one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize

from bayesmoe.theory import _linear
from bayesmoe.theory._barrier import Constraints
from bayesmoe.theory._costs import LargestCosts, Residuals, SummedCosts
from bayesmoe.theory._simplex import LinearPrograms, least


@pytest.mark.parametrize(("n", "m"), [(3, 4), (7, 12)])
@pytest.mark.parametrize("integer", [False, True])
def test_least_values_are_those_of_scipy(
    n: int, m: int, integer: bool, rng: np.random.Generator
) -> None:
    """Small whole numbers make many ties, in which a method without care may go round forever."""
    size = 50
    draw = (lambda *shape: rng.integers(-2, 3, shape).astype(float)) if integer else rng.normal
    normals = draw(m, n, size) if integer else rng.normal(size=(m, n, size))
    bounds = draw(m, size) if integer else rng.normal(size=(m, size))
    costs = np.abs(rng.integers(0, 3, (n, size)).astype(float))
    x, proved = least(LinearPrograms(costs, normals, bounds))
    for i in range(size):
        known = scipy.optimize.linprog(costs[:, i], normals[..., i], bounds[:, i])
        assert proved[i] == (known.status == 0), (i, known.message)
        if proved[i]:
            assert costs[:, i] @ x[:, i] == pytest.approx(known.fun, abs=1e-9)
            assert np.all(normals[..., i] @ x[:, i] <= bounds[:, i] + 1e-9)
    assert 3 < proved.sum() < size


def absolute_values(rng: np.random.Generator, p: int, size: int) -> Residuals:
    """Four rows, some of them the same, in p variables."""
    basis = rng.integers(-2, 3, (4, 1, p, size)).astype(float)
    basis[:, :, -1] += 0.5  # no row is without a variable
    weights = rng.exponential(size=(4, size))
    return Residuals(basis, rng.normal(size=(4, 1, size)), np.ones((4, size)), weights)


def box(q: int, size: int) -> Constraints:
    normals = np.concatenate([np.eye(q), -np.eye(q)])
    return Constraints(np.repeat(normals[..., None], size, axis=2), np.full((2 * q, size), 3.0))


def test_sums_of_absolute_values_are_least(
    rng: np.random.Generator,
) -> None:
    size = 25
    objective = SummedCosts(absolute_values(rng, 2, size))
    check(objective, box(2, size), np.zeros((2, size)))


@pytest.mark.parametrize("free_weight", [False, True])
@pytest.mark.parametrize("n_counted", [1, 2])
def test_costliest_cells_are_least(
    free_weight: bool, n_counted: int, rng: np.random.Generator
) -> None:
    size, n_cells = 25, 3
    every = absolute_values(rng, 1, size)
    residuals = Residuals(*(part[:2] for part in every))  # the third cell is empty
    members = np.zeros((n_cells, 2, size))
    members[[1, 0], range(2)] = 1.0
    fixed, masses = rng.exponential(size=(2, n_cells, size))
    targets = rng.exponential(size=(n_cells, 1))
    objective = LargestCosts(residuals, members, fixed, masses, targets, n_counted, free_weight)
    if free_weight:  # |u| <= 3 is -3W <= Wu <= 3W, and W >= 0
        rows = np.array([[1.0, -3.0, 0.0], [-1.0, -3.0, 0.0], [0.0, -1.0, 0.0]])
        start = np.array([0.0, 1.0, 0.0])
        bounds = np.zeros((3, size))
    else:
        rows, start = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.zeros(2)
        bounds = np.full((2, size), 3.0)
    constraints = Constraints(np.repeat(rows[..., None], size, axis=2), bounds)
    check(objective, constraints, np.repeat(start[:, None], size, axis=1))


def check(
    objective: SummedCosts | LargestCosts, constraints: Constraints, start: np.ndarray
) -> None:
    """All are proved, strictly feasible, and as low as HiGHS finds for the definition."""
    _, proved = least(_linear._rows(objective).programs(constraints))
    assert np.all(proved)
    found = _linear.solve(objective, constraints, start)
    assert np.all(constraints.slack(found) > 0)
    values = _sharp_value(objective, found)
    for i, value in enumerate(values):
        problem = np.array([i])
        known = _known(objective.take(problem), constraints.take(problem))
        assert value == pytest.approx(known, rel=1e-9), i


def _known(objective: SummedCosts | LargestCosts, constraints: Constraints) -> float:
    """The least value of one problem: least z above the sum over each subset of the cells.

    Variables (Wu, W, z), then one for each absolute value.
    """
    basis, offset, _, weights = (part[..., 0] for part in objective.residuals)
    n_rows, _, p = basis.shape
    largest = isinstance(objective, LargestCosts)
    members = objective.members[..., 0] if largest else np.ones((1, n_rows))
    n_cells = len(members)
    fixed, masses = np.zeros((2, n_cells))
    targets = np.zeros(n_cells)
    if largest:
        fixed, masses = objective.fixed[:, 0], objective.masses[:, 0]
        targets = objective.targets[:, 0]
    moved = np.column_stack([basis[:, 0], offset[:, 0], np.zeros(n_rows)])
    heights = np.column_stack([np.zeros((n_cells, p)), masses, np.zeros(n_cells)])
    absolute, rows, bounds = np.concatenate([moved, heights]), [], []
    constant = np.concatenate([np.zeros(n_rows), -targets])
    for sign in (1, -1):
        rows.append(np.hstack([sign * absolute, -np.eye(len(absolute))]))
        bounds.append(-sign * constant)
    counted = objective.n_counted if largest else 1
    for subset in itertools.combinations(range(n_cells), counted):
        inside = members[list(subset)].sum(axis=0) * weights
        gaps = np.isin(np.arange(n_cells), subset).astype(float)
        unit = np.eye(p + 2)
        rows.append(fixed[list(subset)].sum() * unit[[p]] - unit[[p + 1]])
        rows[-1] = np.hstack([rows[-1], inside[None], gaps[None]])
        bounds.append(np.zeros(1))
    normals = constraints.normals[..., 0]
    free_weight = largest and objective.free_weight
    columns = [*range(p), p] if free_weight else range(p)
    limits = np.zeros((len(normals), p + 2 + len(absolute)))
    limits[:, columns] = normals[:, : len(columns)]
    free: list[tuple[float | None, float | None]] = [(None, None)] * limits.shape[1]
    free[p] = (0, None) if free_weight else (1, 1)
    solution = scipy.optimize.linprog(
        np.eye(limits.shape[1])[p + 1],
        np.concatenate([*rows, limits]),
        np.concatenate([*bounds, constraints.bounds[:, 0]]),
        bounds=free,
    )
    return float(solution.fun)


def _sharp_value(objective: SummedCosts | LargestCosts, x: np.ndarray) -> np.ndarray:
    """The costs by definition, without smoothing."""
    basis, offset, _, weights = objective.residuals
    p = basis.shape[2]
    if isinstance(objective, SummedCosts):
        u, W = x, 1.0
    else:
        W = x[p] if objective.free_weight else 1.0
        u = x[:p] / W
    costs = weights * np.abs(np.einsum("rdpb,pb->rb", basis, u) + offset[:, 0])
    if isinstance(objective, SummedCosts):
        return np.sum(costs, axis=0)
    cells = W * (np.einsum("jrb,rb->jb", objective.members, costs) + objective.fixed)
    cells = cells + np.abs(W * objective.masses - objective.targets)
    return np.sum(np.sort(cells, axis=0)[-objective.n_counted :], axis=0)
