"""The fused likelihood, gradient and Hessian against autodiff of the formula written out here."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CASE, CASES, GateCase

import bayesmoe as bm
from bayesmoe.core.likelihood import (
    CHUNK,
    Data,
    Layout,
    evaluate_log_likelihood,
    log_likelihood,
    make_data,
)
from bayesmoe.core.scaling import Scaling

N = CHUNK + 189

# (case, d, k): every gate once, a few at further shapes
PAIRS = [(case, 3, 2) for case in CASES]
PAIRS += [(CASE["softmax"], *shape) for shape in [(1, 1), (1, 2), (3, 5)]]
PAIRS += [(CASE["top_k_sparse"], 1, 5), (CASE["dense_to_sparse"], 3, 1), (CASE["gelu"], 1, 5)]


def observations(d: int, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(d)
    return 2 + 3 * rng.normal(size=(n, d)), 5 + 2 * rng.normal(size=n)


def standardised(case: GateCase, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Gate design, expert design and response, by NumPy."""
    expert_x = (x - x.mean(0)) / x.std(0)
    gate_x = expert_x if case.linear else x / np.sqrt((x**2).mean(0))
    return gate_x, expert_x, (y - y.mean()) / y.std()


def plain(case: GateCase, d: int, k: int, theta: Any, gate_x: Any, x: Any, y: Any) -> Any:
    """Σ log g: coordinates are gate slopes, gate intercepts, log τ, a, b, log ν."""
    sizes = [(k - 1) * d, k - 1, int(case.temperature), k * d, k, k]
    beta1, beta0, log_tau, a, b, log_nu = jnp.split(theta, np.cumsum(sizes)[:-1].tolist())
    tau = jnp.exp(log_tau[0]) if case.temperature else 1.0
    beta1 = jnp.concatenate([beta1.reshape(k - 1, d), jnp.zeros((1, d))])
    beta0 = jnp.concatenate([beta0, jnp.zeros(1)]) * tau
    if case.linear:
        beta1 = beta1 * tau
    weight = jnp.exp(case.logits(beta1, beta0, tau, gate_x, jnp))
    nu = jnp.exp(log_nu)
    error = y[:, None] - (x @ a.reshape(k, d).T + b)
    normal = jnp.exp(-(error**2) / (2 * nu)) / jnp.sqrt(2 * jnp.pi * nu)
    return jnp.sum(jnp.log(jnp.sum(weight * normal, 1) / jnp.sum(weight, 1)))


def coordinates(case: GateCase, d: int, k: int, seed: int = 1) -> jax.Array:
    size = Layout(case.gate(k), k, d).size
    return 0.6 * jnp.asarray(np.random.default_rng(seed).normal(size=size))


@functools.partial(jax.jit, static_argnums=0)
def both(layout: Layout, theta: jax.Array, data: Data) -> Any:
    return (
        evaluate_log_likelihood(layout, theta, data),
        jax.value_and_grad(log_likelihood, argnums=1)(layout, theta, data),
    )


def assert_close(got: Any, want: Any, relative: float = 1e-10) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=relative * np.abs(want).max(initial=1e-3))


@pytest.mark.parametrize(("case", "d", "k"), PAIRS, ids=lambda value: getattr(value, "label", None))
def test_value_gradient_and_hessian_agree_with_autodiff(case: GateCase, d: int, k: int) -> None:
    x, y = observations(d)
    layout, theta = Layout(case.gate(k), k, d), coordinates(case, d, k)
    data = make_data(x, y, Scaling.from_data(layout.gate, x, y))
    fused, (value, gradient) = both(layout, theta, data)

    def three(theta: jax.Array, *design: Any) -> Any:
        function = functools.partial(plain, case, d, k)
        return jax.value_and_grad(function)(theta, *design), jax.hessian(function)(theta, *design)

    (want, want_gradient), want_hessian = jax.jit(three)(theta, *standardised(case, x, y))
    for got in (fused.value, value):
        assert_close(got, want)
    for got in (fused.gradient, gradient):
        assert_close(got, want_gradient)
    assert_close(fused.hessian, want_hessian)
    np.testing.assert_array_equal(fused.hessian.shape, (layout.size, layout.size))


def test_gradient_and_hessian_agree_with_finite_differences() -> None:
    case, d, k = CASE["gelu"], 3, 2
    x, y = observations(d)
    layout, theta = Layout(case.gate(k), k, d), coordinates(case, d, k)
    data = make_data(x, y, Scaling.from_data(layout.gate, x, y))
    fused = both(layout, theta, data)[0]
    step = 1e-5
    for i in range(layout.size):
        shift = step * jnp.eye(layout.size)[i]
        above, below = (both(layout, theta + sign * shift, data)[0] for sign in (1, -1))
        difference = (above.value - below.value) / (2 * step)
        np.testing.assert_allclose(fused.gradient[i], difference, rtol=1e-6, atol=1e-4)
        difference = (above.gradient - below.gradient) / (2 * step)
        np.testing.assert_allclose(fused.hessian[i], difference, rtol=1e-6, atol=1e-4)


def test_capacity_and_padding_do_not_matter() -> None:
    case, d, k = CASE["sigmoid"], 3, 2
    x, y = observations(d)
    layout, theta = Layout(case.gate(k), k, d), coordinates(case, d, k)
    data = make_data(x, y, Scaling.from_data(layout.gate, x, y))
    assert int(data.n_observations) == N
    assert int(data.n_chunks) == 2
    assert data.mask.sum() == N
    capacity = data.mask.shape[0]
    small = Data(*(rows[:2] for rows in data[:4]), *data[4:])
    padding = data.mask == 0
    other = data._replace(
        gate_x=jnp.where(padding[:, None], 9.0, data.gate_x),
        expert_x=jnp.where(padding[:, None], -9.0, data.expert_x),
        y=jnp.where(padding, 4.0, data.y),
    )
    assert capacity > 2
    want = jax.tree.leaves(both(layout, theta, data))
    for changed in (small, other):
        for got, expected in zip(jax.tree.leaves(both(layout, theta, changed)), want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("n", [1, CHUNK - 1, CHUNK, CHUNK + 1, 33 * CHUNK])
def test_every_row_is_used_once_at_any_size(n: int) -> None:
    x, y = observations(2, n)
    data = make_data(x, y, Scaling.identity(2))
    used = np.asarray(data.mask).ravel() == 1
    assert used.sum() == n
    assert int(data.n_chunks) == -(-n // CHUNK) <= data.mask.shape[0]
    assert not np.asarray(data.mask)[int(data.n_chunks) :].any()
    np.testing.assert_array_equal(np.asarray(data.y).ravel()[used], y)
    for design in (data.gate_x, data.expert_x):
        np.testing.assert_array_equal(np.moveaxis(np.asarray(design), 1, 2)[data.mask == 1], x)


def test_vmap_over_coordinates() -> None:
    case, d, k = CASE["softmax"], 1, 2
    x, y = observations(d, 20)
    layout = Layout(case.gate(k), k, d)
    data = make_data(x, y, Scaling.identity(d))
    thetas = jnp.stack([coordinates(case, d, k, seed) for seed in (1, 2)])
    mapped = jax.vmap(both, in_axes=(None, 0, None))(layout, thetas, data)
    for i, theta in enumerate(thetas):
        want = jax.tree.leaves(both(layout, theta, data))
        got = jax.tree.leaves(jax.tree.map(lambda leaf, i=i: leaf[i], mapped))
        for one, other in zip(got, want, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-9)


@pytest.mark.xfail(strict=True, reason="0 * -inf in the padding: NaN instead of -inf")
def test_underflow_in_the_padding_is_not_nan() -> None:
    layout = Layout(CASE["softmax"].gate(), 2, 1)
    x, y = observations(1, 7)
    data = make_data(x, y, Scaling.identity(1))
    theta = jnp.zeros(layout.size).at[-4:].set(jnp.asarray([1.0, 1.0, -800.0, -800.0]))
    assert log_likelihood(layout, theta, data) == -jnp.inf


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("d", [1, 2])
def test_pack_and_unpack_are_inverse(case: GateCase, d: int, k: int) -> None:
    layout, measure = Layout(case.gate(k), k, d), case.measure(d, k, d)
    theta = layout.pack(measure)
    assert theta.shape == (layout.size,)
    assert layout.size == (k - 1) * (d + 1) + case.temperature + k * (d + 2)
    for got, want in zip(
        jax.tree.leaves(layout.unpack(theta)), jax.tree.leaves(measure), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(layout.pack(layout.unpack(theta)), theta, rtol=1e-13, atol=1e-14)


def free_parameters(case: GateCase, measure: bm.MixingMeasure) -> jax.Array:
    gate = [measure.gate_slope[:-1].ravel(), measure.gate_intercept[:-1]]
    gate += [measure.temperature[None]] if case.temperature else []
    return jnp.concatenate(
        [*gate, measure.slope.ravel(), measure.intercept, measure.variance.ravel()]
    )


@pytest.mark.parametrize(("k", "d"), [(1, 1), (3, 2)])
def test_log_jacobians_are_log_determinants(case: GateCase, k: int, d: int) -> None:
    layout, measure = Layout(case.gate(k), k, d), case.measure(7, k, d)
    theta = layout.pack(measure)
    jacobian = jax.jacfwd(lambda theta: free_parameters(case, layout.unpack(theta)))(theta)
    np.testing.assert_allclose(
        layout.log_jacobian(measure), np.linalg.slogdet(jacobian)[1], rtol=1e-11, atol=1e-12
    )
    g = layout.n_gate
    np.testing.assert_allclose(
        layout.gate.log_jacobian(measure.gate),
        np.linalg.slogdet(np.asarray(jacobian)[:g, :g])[1] if g else 0.0,
        rtol=1e-11,
        atol=1e-12,
    )
