"""The fused likelihood, gradient and Hessian against autodiff of the formula written out here."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import CASE, GateCase

import bayesmoe as bm
from bayesmoe.core.hessian import evaluate_log_likelihood
from bayesmoe.core.layout import Layout
from bayesmoe.core.likelihood import log_density, log_likelihood
from bayesmoe.core.observations import CHUNK, FEW, SHORT_CHUNK, Data, make_data, sum_over_chunks
from bayesmoe.core.scaling import Scaling

N = CHUNK + 189

# (case, d, k): in all every gate, and some at further shapes
SHAPES = [("softmax", 3, 2), ("gelu", 3, 2)]
SLOW_SHAPES = [
    ("top_k_sparse", 1, 5),
    ("softmax", 3, 5),
    ("top_k_sparse", 3, 2),
    ("dense_to_sparse", 3, 2),
]
SLOW_SHAPES += [("dense_to_sparse", 1, 1), ("softmax", 1, 1)]
SLOW_SHAPES += [("sigmoid", 1, 5), ("relu", 3, 2), ("user_def", 3, 2)]


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


def two_chunks(data: Data) -> Data:
    return data._replace(
        gate_x=data.gate_x[:2], expert_x=data.expert_x[:2], y=data.y[:2], mask=data.mask[:2]
    )


def setting(label: str, d: int, k: int) -> tuple[Layout, jax.Array, Data]:
    """A gate with coordinates and data, in a storage of the two chunks that are used."""
    layout = Layout(CASE[label].gate(k), k, d)
    x, y = observations(d)
    data = make_data(x, y, Scaling.from_data(layout.gate, x, y))
    return layout, coordinates(CASE[label], d, k), two_chunks(data)


@functools.partial(jax.jit, static_argnums=0)
def both(layout: Layout, theta: jax.Array, data: Data) -> Any:
    return (
        evaluate_log_likelihood(layout, theta, data),
        jax.value_and_grad(log_likelihood, argnums=1)(layout, theta, data),
    )


def assert_close(got: Any, want: Any, relative: float = 1e-10) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=relative * np.abs(want).max(initial=1e-3))


@pytest.mark.parametrize(
    ("label", "d", "k"),
    SHAPES + [pytest.param(*shape, marks=pytest.mark.slow) for shape in SLOW_SHAPES],
)
def test_value_gradient_and_hessian_agree_with_autodiff(label: str, d: int, k: int) -> None:
    case, (x, y) = CASE[label], observations(d)
    layout, theta, data = setting(label, d, k)
    fused, (value, gradient) = both(layout, theta, data)

    def three(theta: jax.Array, *design: Any) -> Any:
        value, gradient = jax.value_and_grad(functools.partial(plain, case, d, k))(theta, *design)
        return gradient, (value, gradient)

    # an oracle may be slow: it is compiled without optimisation, which takes half the time
    oracle = jax.jit(
        jax.jacfwd(three, has_aux=True),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    want_hessian, (want, want_gradient) = oracle(theta, *standardised(case, x, y))
    for got in (fused.value, value):
        assert_close(got, want)
    for got in (fused.gradient, gradient):
        assert_close(got, want_gradient)
    assert_close(fused.hessian, want_hessian)
    np.testing.assert_array_equal(fused.hessian.shape, (layout.size, layout.size))


@pytest.mark.slow
@pytest.mark.parametrize("label", ["softmax", "sigmoid"])
def test_gates_not_known_to_be_separable_have_the_same_derivatives(label: str) -> None:
    layout, theta, data = setting(label, 1, 3)
    known = layout.gate

    @dataclasses.dataclass(frozen=True)
    class General(type(known)):  # type: ignore[misc]
        separable = False

    general = layout._replace(gate=General(**dataclasses.asdict(known)))
    assert len(general.gate_seeds()) == layout.n_gate
    assert len(layout.gate_seeds()) < layout.n_gate
    for got, want in zip(both(general, theta, data)[0], both(layout, theta, data)[0], strict=True):
        assert_close(got, want)


def test_gradient_and_hessian_agree_with_finite_differences() -> None:
    layout, theta, data = setting("gelu", 3, 2)
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
    layout, theta, small = setting("softmax", 3, 2)
    x, y = observations(3)
    data = make_data(x, y, Scaling.from_data(layout.gate, x, y))
    assert int(data.n_observations) == N
    assert int(data.n_chunks) == 2
    assert data.mask.sum() == N
    assert data.mask.shape[0] > 2
    padding = small.mask == 0
    other = small._replace(
        gate_x=jnp.where(padding[:, None], 9.0, small.gate_x),
        expert_x=jnp.where(padding[:, None], -9.0, small.expert_x),
        y=jnp.where(padding, 4.0, small.y),
    )
    want = jax.tree.leaves(both(layout, theta, small))
    for got, expected in zip(jax.tree.leaves(both(layout, theta, other)), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-12)
    for storage in (data, small):
        value = jax.jit(log_likelihood, static_argnums=0)(layout, theta, storage)
        np.testing.assert_allclose(value, want[0], rtol=1e-13)


def test_a_chunk_is_traced_once() -> None:
    """For the shapes of its terms and for their sum."""
    traced, n = [], 3 * CHUNK + 5
    data = make_data(np.zeros((n, 1)), np.ones(n), Scaling.identity(1))

    def terms(data: Data, index: jax.Array) -> jax.Array:
        traced.append(index)
        return jnp.sum(data.mask[index])

    total = jax.jit(lambda data: sum_over_chunks(data, functools.partial(terms, data)))(data)
    assert (float(total), len(traced)) == (n, 1)


@pytest.mark.parametrize("n", [1, SHORT_CHUNK, FEW, FEW + 1, CHUNK, CHUNK + 1, 33 * CHUNK])
def test_every_row_is_used_once_at_any_size(n: int) -> None:
    x, y = observations(2, n)
    data = make_data(x, y, Scaling.identity(2))
    used = np.asarray(data.mask).ravel() == 1
    assert used.sum() == n
    assert data.mask.shape[1] == (SHORT_CHUNK if n <= FEW else CHUNK)
    assert int(data.n_chunks) == -(-n // data.mask.shape[1]) <= data.mask.shape[0]
    assert not np.asarray(data.mask)[int(data.n_chunks) :].any()
    np.testing.assert_array_equal(np.asarray(data.y).ravel()[used], y)
    for design in (data.gate_x, data.expert_x):
        np.testing.assert_array_equal(np.moveaxis(np.asarray(design), 1, 2)[data.mask == 1], x)


@pytest.mark.slow
def test_vmap_over_coordinates() -> None:
    layout, theta, data = setting("softmax", 3, 2)
    thetas = jnp.stack([theta, coordinates(CASE["softmax"], 3, 2, seed=2)])
    mapped = jax.vmap(both, in_axes=(None, 0, None))(layout, thetas, data)
    for i, theta in enumerate(thetas):
        want = jax.tree.leaves(both(layout, theta, data))
        got = jax.tree.leaves(jax.tree.map(lambda leaf, i=i: leaf[i], mapped))
        for one, other in zip(got, want, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-9)


def exact_fit(log_variance: float) -> tuple[Layout, jax.Array, Data]:
    """Rows on the line y = 1 of both experts; the padding, at y = 0, is off it."""
    x = observations(3)[0]
    layout = Layout(CASE["softmax"].gate(), 2, 3)
    theta = jnp.zeros(layout.size).at[-4:].set(jnp.asarray([1.0, 1.0] + 2 * [log_variance]))
    data = two_chunks(make_data(x, np.ones(N), Scaling.identity(3)))
    return layout, theta, data._replace(y=data.mask)


def test_logarithms_of_products_do_not_underflow() -> None:
    """Of 64 experts of one weight one is near: the product of all ratios is below 1e-900."""
    x, k = observations(1)[0], 64
    layout = Layout(CASE["softmax"].gate(), k, 1)
    theta = jnp.zeros(layout.size).at[-2 * k + 1 : -k].set(1e3)
    data = two_chunks(make_data(x, np.zeros(N), Scaling.identity(1)))
    value = jax.jit(log_likelihood, static_argnums=0)(layout, theta, data)
    np.testing.assert_allclose(value, -N * (np.log(2 * np.pi) / 2 + np.log(k)), rtol=1e-14)


def test_underflow_in_the_padding_is_not_nan() -> None:
    layout, theta, data = exact_fit(-800.0)
    fused, (value, gradient) = both(layout, theta, data)
    want = N * (400.0 - np.log(2 * np.pi) / 2)
    np.testing.assert_allclose([fused.value, value], want, rtol=1e-12)
    for block in (fused.gradient, gradient):  # ∂/∂log ν = -1/2 a row, shared by two experts
        np.testing.assert_allclose(block, [0] * (layout.size - 2) + [-N / 4] * 2, atol=1e-9)


def test_underflow_in_all_rows_is_not_nan() -> None:
    layout, theta, data = exact_fit(-800.0)
    missed = data._replace(y=data.y + 1.0)
    fused, (value, gradient) = both(layout, theta, missed)
    assert fused.value == value == -jnp.inf
    assert not any(jnp.isnan(block).any() for block in (*fused, gradient))


def test_an_expert_without_responsibility_has_no_share_in_the_derivatives() -> None:
    """The derivatives at an expert too narrow to matter are those without it."""
    layout, theta, data = exact_fit(0.0)
    theta = theta.at[-4].set(3.0).at[-2].set(-800.0)
    fused, (value, gradient) = both(layout, theta, data)
    # the other expert has mean and variance 1, weight one half, and all of the responsibility
    np.testing.assert_allclose(value, N * (np.log(0.5) - np.log(2 * np.pi) / 2), rtol=1e-12)
    for block in (fused.gradient, gradient):
        np.testing.assert_allclose(block[-4:], [0.0, 0.0, 0.0, -N / 2], atol=1e-9)
    np.testing.assert_allclose(fused.hessian[-4:, -4:], np.diag([0.0, -N, 0.0, 0.0]), atol=1e-9)


def free_parameters(case: GateCase, measure: bm.MixingMeasure) -> jax.Array:
    gate = [measure.gate_slope[:-1].ravel(), measure.gate_intercept[:-1]]
    gate += [measure.temperature[None]] if case.temperature else []
    return jnp.concatenate(
        [*gate, measure.slope.ravel(), measure.intercept, measure.variance.ravel()]
    )


@pytest.mark.parametrize(("k", "d"), [(1, 1), (3, 2)])
def test_coordinates_and_their_jacobians(gate_case: GateCase, k: int, d: int) -> None:
    """`pack` and `unpack` are inverse, and the log Jacobians are log determinants."""
    case = gate_case
    layout, measure = Layout(case.gate(k), k, d), case.measure(7, k, d)

    @jax.jit
    def evaluate(measure: bm.MixingMeasure) -> Any:
        theta = layout.pack(measure)
        jacobian = jax.jacfwd(lambda theta: free_parameters(case, layout.unpack(theta)))(theta)
        logs = layout.log_jacobian(measure), layout.gate.log_jacobian(measure.gate)
        return theta, layout.unpack(theta), layout.pack(layout.unpack(theta)), jacobian, logs

    theta, back, again, jacobian, (whole, gate) = evaluate(measure)
    assert theta.shape == (layout.size,)
    assert layout.size == (k - 1) * (d + 1) + case.temperature + k * (d + 2)
    for got, want in zip(jax.tree.leaves(back), jax.tree.leaves(measure), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(again, theta, rtol=1e-13, atol=1e-14)
    g = layout.n_gate
    for got, block in ((whole, jacobian), (gate, np.asarray(jacobian)[:g, :g])):
        want = np.linalg.slogdet(block)[1] if block.size else 0.0
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("size", [1e3, 1e13, 1e55])
def test_logits_of_any_size_leave_the_density_of_the_expert_they_choose(size: float) -> None:
    x, y = np.array([-1.0, 0.5, 2.0]), np.array([0.3, -0.7, 4.0])
    measure = bm.MixingMeasure(
        np.array([[size], [0.0]]), np.zeros(2), 1.0, np.array([[1.0], [-2.0]]),
        np.array([0.5, 1.0]), np.array([0.25, 4.0]),
    )  # fmt: skip
    first = x > 0
    mean, sd = np.where(first, x + 0.5, 1 - 2 * x), np.where(first, 0.5, 2.0)
    found = log_density(bm.moe("softmax", 2).gate, measure, x[:, None], y)
    np.testing.assert_allclose(found, scipy.stats.norm.logpdf(y, mean, sd), rtol=1e-13)
