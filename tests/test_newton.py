"""The trust-region Newton method on functions whose maxima are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from bayesmoe.core.hessian import Evaluation
from bayesmoe.inference import newton

Function = Callable[[jax.Array], jax.Array]


def maximise(
    function: Function, start: Any, lower: Any = None, upper: Any = None
) -> newton.Optimum:
    """One run, or one for each row of ``start``, with derivatives by autodiff."""
    starts = jnp.atleast_2d(jnp.asarray(start, dtype=float))
    box = newton.Box(
        jnp.full(starts.shape[1], -jnp.inf) if lower is None else jnp.asarray(lower),
        None if upper is None else jnp.asarray(upper),
    )

    def evaluate(point: jax.Array) -> Evaluation:
        return Evaluation(function(point), jax.grad(function)(point), jax.hessian(function)(point))

    run = jax.jit(
        lambda starts: jax.lax.map(lambda one: newton.maximise(evaluate, one, box), starts)
    )
    optima = run(starts)
    return optima if np.ndim(start) == 2 else jax.tree.map(lambda leaf: leaf[0], optima)


def converged(optimum: newton.Optimum) -> bool:
    return bool(
        optimum.gradient_norm <= newton.GRADIENT_TOLERANCE
        and optimum.least_curvature >= -newton.CURVATURE_TOLERANCE
        and not optimum.runaway
    )


def rosenbrock(point: jax.Array) -> jax.Array:
    return -jnp.sum(100 * (point[1:] - point[:-1] ** 2) ** 2 + (1 - point[:-1]) ** 2)


def concave(p: int) -> tuple[Function, np.ndarray, np.ndarray]:
    """-½ xᵀAx + bᵀx with eigenvalues of A from 1e-3 to 1e3."""
    rng = np.random.default_rng(p)
    basis = np.linalg.qr(rng.normal(size=(p, p)))[0]
    a = basis @ np.diag(np.geomspace(1e-3, 1e3, p)) @ basis.T
    b = a @ rng.normal(size=p)
    return lambda x: -0.5 * x @ a @ x + b @ x, a, b


def test_a_quadratic_is_solved_to_its_condition() -> None:
    function, a, b = concave(6)
    optimum = maximise(function, np.zeros(6))
    assert converged(optimum)
    np.testing.assert_allclose(optimum.coordinates, np.linalg.solve(a, b), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(optimum.value, 0.5 * b @ np.linalg.solve(a, b), rtol=1e-12)
    np.testing.assert_allclose(optimum.least_curvature, 1e-6, rtol=1e-6)


def test_rosenbrock_from_several_starts() -> None:
    """In four dimensions it has two maxima (Shang & Qiu, Evolutionary Computation 14, 2006)."""
    starts = np.array([[-1.2, 1.0, -1.2, 1.0], [3.0, -2.0, 0.5, 4.0], [0.0, 0.0, 0.0, 0.0]])
    lesser, ones = [-0.775659, 0.613093, 0.382063, 0.145972], np.ones(4)
    optima = maximise(rosenbrock, starts)
    for i, (end, tolerance) in enumerate([(lesser, 1e-6), (ones, 1e-10), (ones, 1e-10)]):
        optimum = jax.tree.map(lambda leaf, i=i: leaf[i], optima)
        assert converged(optimum)
        np.testing.assert_allclose(optimum.coordinates, end, atol=tolerance)
        assert optimum.n_iterations < 60
        alone = maximise(rosenbrock, starts[i])
        for got, want in zip(optimum, alone, strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_narrow_curved_valley_is_followed_to_its_end() -> None:
    """A million times as stiff across as along: straight steps are too short to arrive."""

    def valley(point: jax.Array) -> jax.Array:
        return -((1 - point[0]) ** 2) - 1e6 * (point[1] - point[0] ** 2) ** 2

    optima = maximise(valley, [[-1.2, 1.0], [-3.0, 9.0]])
    np.testing.assert_allclose(optima.coordinates, 1.0, rtol=1e-6)
    assert np.all(optima.n_iterations < 0.8 * newton.MAX_ITERATIONS)


def test_bounds_against_scipy() -> None:
    function, a, b = concave(5)
    lower = np.array([0.2, -np.inf, 0.1, -2.0, 0.3])
    optimum = maximise(function, np.ones(5), lower)
    peer = scipy.optimize.minimize(
        lambda x: 0.5 * x @ a @ x - b @ x,
        np.ones(5),
        jac=lambda x: a @ x - b,
        bounds=[(low, None) for low in lower],
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-12, "maxiter": 10_000},
    )
    assert converged(optimum)
    assert optimum.at_bound.any()
    assert optimum.value >= -peer.fun - 1e-12
    np.testing.assert_allclose(optimum.value, -peer.fun, rtol=1e-6)
    slope = b - a @ np.asarray(optimum.coordinates)  # Karush, Kuhn and Tucker
    resting = np.asarray(optimum.at_bound)
    np.testing.assert_allclose(slope[~resting], 0.0, atol=1e-8)
    assert (slope[resting] < 0).all()
    np.testing.assert_array_equal(np.asarray(optimum.coordinates)[resting], lower[resting])


@pytest.mark.parametrize("seed", range(8))
def test_a_box_against_scipy(seed: int) -> None:
    """Coordinates depend on each other: those that leave the box must not mislead the rest."""
    function, a, b = concave(8)
    rng = np.random.default_rng(seed)
    lower = rng.normal(size=8) - rng.uniform(size=8)
    upper = lower + rng.uniform(0.1, 2.0, 8)
    upper[rng.uniform(size=8) < 0.3] = np.inf
    lower[rng.uniform(size=8) < 0.3] = -np.inf
    start = rng.normal(size=8) * 3
    optimum = maximise(function, start, lower, upper)
    exact = scipy.optimize.lsq_linear(*_as_least_squares(a, b), (lower, upper), tol=1e-14)
    assert converged(optimum)
    assert optimum.n_iterations < 30
    end, resting = np.asarray(optimum.coordinates), np.asarray(optimum.at_bound)
    assert np.all((end >= lower) & (end <= upper))
    assert optimum.value >= function(exact.x) - 1e-9
    slope = b - a @ end  # Karush, Kuhn and Tucker
    np.testing.assert_allclose(slope[~resting], 0.0, atol=1e-8)
    assert resting.any()
    assert np.all(np.where(end <= lower, -slope, slope)[resting] > 0)


def _as_least_squares(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix and a vector with ½ |Mx - v|² = ½ xᵀAx - bᵀx up to a constant."""
    root = np.linalg.cholesky(a).T
    return root, np.linalg.solve(root.T, b)


@pytest.mark.slow
def test_a_runaway_within_bounds_goes_to_the_bound() -> None:
    def tail(x: jax.Array) -> jax.Array:
        return -jnp.log1p(jnp.exp(-x[0])) - (x[1] - 1.0) ** 2

    for sign in (1.0, -1.0):
        inf = jnp.inf
        ends = ([-60.0, -inf], [60.0, inf])
        optimum = maximise(lambda x, sign=sign: tail(x.at[0].mul(sign)), [0.5 * sign, 0.0], *ends)
        assert converged(optimum)
        np.testing.assert_allclose(optimum.coordinates, [60.0 * sign, 1.0], atol=1e-6)
        assert optimum.coordinates[0] == 60.0 * sign
        assert optimum.n_iterations < 50
    # a bound elsewhere, or behind, is of no use
    for bounds in (([-60.0, -inf], [inf, inf]), ([-inf, -5.0], [inf, 5.0])):
        assert maximise(tail, [0.5, 0.0], *bounds).runaway


def test_a_start_below_the_bound_is_lifted_and_may_leave_it() -> None:
    optimum = maximise(lambda x: -jnp.sum((x - 2.0) ** 2), [-5.0, -5.0], [-1.0, 3.0])
    np.testing.assert_allclose(optimum.coordinates, [2.0, 3.0], atol=1e-12)
    np.testing.assert_array_equal(optimum.at_bound, [False, True])
    assert converged(optimum)


def test_a_saddle_is_left() -> None:
    def two_hills(x: jax.Array) -> jax.Array:
        return -((x[0] ** 2 - 1) ** 2) - x[1] ** 2 - 0.1 * x[0] ** 2 * x[1] ** 2

    optimum = maximise(two_hills, [0.0, 0.0])
    assert converged(optimum)
    np.testing.assert_allclose(np.abs(optimum.coordinates), [1.0, 0.0], atol=1e-9)


def test_a_minimum_on_a_bound_is_no_maximum() -> None:
    """Pressed coordinates are frozen, the others must still curve down."""
    optimum = maximise(lambda x: x[0] ** 2 - x[0] ** 4 - x[1], [0.0, 1.0], [-jnp.inf, 0.5])
    assert converged(optimum)
    np.testing.assert_allclose(np.abs(optimum.coordinates), [np.sqrt(0.5), 0.5], atol=1e-9)


def test_a_coordinate_without_influence_stays_where_it_was() -> None:
    optimum = maximise(lambda x: -((x[0] - 3.0) ** 2) - (x[2] + 1.0) ** 4, [0.0, 0.7, 1.0])
    assert converged(optimum)
    np.testing.assert_allclose(optimum.coordinates[0], 3.0, atol=1e-9)
    assert optimum.coordinates[1] == 0.7
    np.testing.assert_allclose(optimum.coordinates[2], -1.0, atol=1e-2)  # flat to third order
    assert 0 <= optimum.least_curvature < 1e-3


@pytest.mark.parametrize(
    "tail",
    [
        lambda x: -jnp.log1p(jnp.exp(-x)),  # a separated logistic regression
        lambda x: -1 / (1 + x**2) ** 0.5,  # algebraic
    ],
    ids=["exponential", "algebraic"],
)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_supremum_at_infinity_is_a_runaway(tail: Function, scale: float) -> None:
    """Whatever the curvature of the other coordinates."""
    optimum = maximise(lambda x: tail(x[0]) - scale * (x[1] - 1.0) ** 2, [0.5, 0.0])
    assert optimum.runaway
    assert optimum.gradient_norm <= newton.GRADIENT_TOLERANCE
    assert optimum.coordinates[0] > 10
    np.testing.assert_allclose(optimum.coordinates[1], 1.0, atol=1e-6)
    assert optimum.n_iterations < 100


def test_a_jump_is_not_a_maximum() -> None:
    def cliff(x: jax.Array) -> jax.Array:
        return jnp.sum(-((x - 2.0) ** 2)) - jnp.where(x[0] > 1.0, 10.0, 0.0)

    optimum = maximise(cliff, [0.0, 0.0])
    assert not converged(optimum)
    assert optimum.gradient_norm > 0.1
    np.testing.assert_allclose(optimum.coordinates[0], 1.0, atol=1e-6)
    assert optimum.n_iterations < newton.MAX_ITERATIONS


def test_the_domain_is_respected() -> None:
    def barrier(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.log(x) - 5 * x)  # NaN for negative x

    optimum = maximise(barrier, [3.0, 0.01])
    assert converged(optimum)
    np.testing.assert_allclose(optimum.coordinates, 0.2, atol=1e-10)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.log(x[0]) + 0.0 * x[1],
        lambda x: jnp.where(x[0] < 0, -jnp.inf, -x[0]) + x[1],
        lambda x: jnp.sqrt(jnp.abs(x[0] + 1.0)) + x[1],  # a value, but no gradient
    ],
    ids=["nan", "-inf", "gradient"],
)
def test_a_start_outside_the_domain_is_not_finite(function: Function) -> None:
    optimum = maximise(function, [-1.0, 0.0])
    assert not np.isfinite(optimum.value)
    assert not converged(optimum)
    assert optimum.n_iterations == 1
    np.testing.assert_array_equal(optimum.coordinates, [-1.0, 0.0])


def test_iterations_are_bounded() -> None:
    optimum = maximise(lambda x: x[0] + 0.5 * jnp.sin(x[0]), [0.0])
    assert optimum.n_iterations <= newton.MAX_ITERATIONS
    assert not converged(optimum)
