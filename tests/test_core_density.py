"""The conditional density against enumeration, quadrature, NumPyro and Kolmogorov-Smirnov."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from conftest import CASE, ONE_PER_GATE, GateCase

import bayesmoe as bm
from bayesmoe.core.density import GaussianMixture, conditional_density, log_sum_exp
from bayesmoe.core.gate import Gate


@pytest.fixture
def mixture() -> GaussianMixture:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(4, 3)))
    scales = jnp.asarray(rng.uniform(0.3, 2, size=(4, 3)))
    return GaussianMixture(
        jax.nn.log_softmax(logits), 3 * jnp.asarray(rng.normal(size=(4, 3))), scales
    )


SHAPES = [(case.label, 3, 4, 2) for case in ONE_PER_GATE]
SHAPES += [("softmax", 1, 2, 1), ("top_k_sparse", 5, 3, 1)]


@pytest.mark.parametrize(("label", "k", "n", "d"), SHAPES)
def test_log_likelihood_is_the_sum_over_all_assignments(label: str, k: int, n: int, d: int) -> None:
    case, rng = CASE[label], np.random.default_rng(1)
    model, measure = bm.moe(case.gate(k), k), case.measure(10 * k + d, k, d)
    x, y = rng.normal(size=(n, d)), rng.normal(size=n)
    joint = case.probabilities(measure, x) * case.components(measure, x).pdf(y[:, None])
    total = sum(
        np.prod([joint[j, label] for j, label in enumerate(labels)])
        for labels in itertools.product(range(k), repeat=n)
    )

    @jax.jit
    def evaluate(measure: bm.MixingMeasure) -> Any:
        law = conditional_density(model.gate, measure, jnp.asarray(x))
        return model.log_likelihood(measure, x, y), law.log_prob(y)

    for pointwise in evaluate(measure):
        np.testing.assert_allclose(pointwise.sum(), np.log(total), rtol=1e-10, atol=1e-10)
        want = np.log(case.density(measure, x, y))
        np.testing.assert_allclose(pointwise, want, rtol=1e-10, atol=1e-10)


def test_batch_axes_of_the_measure_are_those_of_the_log_likelihood(gate_case: GateCase) -> None:
    case = gate_case
    measures = [case.measure(seed) for seed in range(6)]
    batch = jax.tree.map(
        lambda *leaves: jnp.stack(leaves).reshape(2, 3, *leaves[0].shape), *measures
    )
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(4, 2)), rng.normal(size=4)
    model = bm.moe(case.gate(), 3)
    got = jax.jit(lambda batch: model.log_likelihood(batch, x, y))(batch)
    assert got.shape == (2, 3, 4)
    want = [np.log(case.density(measure, x, y)) for measure in measures]
    np.testing.assert_allclose(got.reshape(6, 4), want, rtol=1e-10, atol=1e-10)


def test_mixture_agrees_with_numpyro_same_family(mixture: GaussianMixture) -> None:
    reference = dist.MixtureSameFamily(
        dist.Categorical(logits=mixture.log_weights), dist.Normal(mixture.locs, mixture.scales)
    )

    @jax.jit
    def evaluate(law: Any, y: jax.Array) -> Any:
        return law.log_prob(y), law.mean, law.variance, law.cdf(y)

    y = jnp.linspace(-6, 6, 4)
    for ours, theirs in zip(evaluate(mixture, y), evaluate(reference, y), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_moments_and_cdf_by_quadrature(gate_case: GateCase) -> None:
    measure = gate_case.measure(1, 3, 1)
    # the trapezoid rule is spectrally accurate for an entire integrand that vanishes at both ends
    y = np.linspace(-25.0, 25.0, 6001)

    @jax.jit
    def evaluate(measure: bm.MixingMeasure) -> Any:
        law = conditional_density(gate_case.gate(), measure, jnp.asarray([[0.4]]))
        return law.log_prob(y[:, None])[:, 0], law.mean[0], law.variance[0], law.cdf(y[:, None])

    log_density, law_mean, law_variance, law_cdf = evaluate(measure)
    density = np.exp(np.asarray(log_density))
    mass = scipy.integrate.trapezoid(density, y)
    mean = scipy.integrate.trapezoid(density * y, y)
    variance = scipy.integrate.trapezoid(density * (y - mean) ** 2, y)
    np.testing.assert_allclose(mass, 1, rtol=1e-11)
    np.testing.assert_allclose(law_mean, mean, rtol=1e-10)
    np.testing.assert_allclose(law_variance, variance, rtol=1e-10)
    cumulative = scipy.integrate.cumulative_simpson(density, x=y, initial=0)
    np.testing.assert_allclose(law_cdf[:, 0], cumulative, atol=1e-8)


@pytest.mark.parametrize("k", [6, 21, 25])
def test_the_cdf_does_not_exceed_one_by_rounding(k: int) -> None:
    law = GaussianMixture(jnp.full(k, -np.log(k)), jnp.zeros(k), jnp.ones(k))
    assert law.cdf(50.0) <= 1


def test_samples_follow_the_cdf(gate_case: GateCase) -> None:
    """PIT of 3000 draws at random x is uniform; each test errs with probability 1e-4.

    The variances are far from one, so that a variance taken for a deviation is noticed.
    """
    case = gate_case
    measure = case.measure(5, 3, 1).replace(variance=[0.02, 0.1, 0.3])
    x = np.random.default_rng(5).normal(size=(3000, 1))
    y = conditional_density(case.gate(), measure, jnp.asarray(x)).sample(jax.random.key(5))
    pit = case.cdf(measure, x, y)
    for part in (pit, pit[x[:, 0] > 0]):
        assert scipy.stats.kstest(part, "uniform").pvalue > 1e-4


def scipy_log_prob(law: GaussianMixture, value: Any) -> np.ndarray:
    """log Σ exp(log weight) N(value | loc, scale²), all of shape (..., k)."""
    normal = scipy.stats.norm(np.asarray(law.locs), np.asarray(law.scales))
    terms = np.asarray(law.log_weights) + normal.logpdf(np.asarray(value)[..., None])
    return scipy.special.logsumexp(terms, axis=-1)


def test_log_prob_of_draws_is_that_of_scipy(mixture: GaussianMixture) -> None:
    draws = 4 * np.random.default_rng(2).normal(size=(2, 5, 4))
    got = mixture.log_prob(draws)
    assert got.shape == draws.shape
    np.testing.assert_allclose(got, scipy_log_prob(mixture, draws), rtol=1e-12)


@pytest.mark.parametrize("shape", [(), (7,), (2, 5)])
def test_shapes_of_draws(mixture: GaussianMixture, shape: tuple[int, ...]) -> None:
    def sample(key: jax.Array) -> jax.Array:
        return mixture.sample(key, shape)

    assert jax.eval_shape(sample, jax.random.key(0)).shape == (*shape, 4)


def test_batch_shapes_follow_the_rules_of_numpyro(mixture: GaussianMixture) -> None:
    def log_prob(law: dist.Distribution, *shape: int) -> tuple[int, ...]:
        return jax.eval_shape(law.log_prob, jnp.zeros(shape)).shape

    assert log_prob(mixture, 6, 1) == (6, 4)
    assert log_prob(mixture, 7, 4) == (7, 4)
    assert log_prob(mixture.expand((2, 4)), 4) == (2, 4)
    assert log_prob(mixture.to_event(1), 2, 5, 4) == (2, 5)


@jax.jit
def draw_5000(mixture: GaussianMixture) -> jax.Array:
    return mixture.sample(jax.random.key(1), (5000,))


def test_draws_of_different_rows_are_independent(mixture: GaussianMixture) -> None:
    correlation = np.corrcoef(draw_5000(mixture).T) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(5000)


def test_jit_and_vmap(mixture: GaussianMixture) -> None:
    y = jnp.linspace(-1.0, 1.0, 4)
    plain = scipy_log_prob(mixture, y)
    jitted = jax.jit(lambda law, value: law.log_prob(value))(mixture, y)
    mapped = jax.jit(jax.vmap(lambda w, m, s, value: GaussianMixture(w, m, s).log_prob(value)))(
        mixture.log_weights, mixture.locs, mixture.scales, y
    )
    np.testing.assert_allclose(jitted, plain, rtol=1e-13)
    np.testing.assert_allclose(mapped, plain, rtol=1e-13)


def test_a_weight_of_zero_removes_a_component(mixture: GaussianMixture) -> None:
    log_weights = jnp.asarray(4 * [[-jnp.inf, 0.0, -jnp.inf]])
    locs, scales = jnp.asarray(4 * [[50.0, 1.0, -50.0]]), jnp.ones((4, 3))
    law = GaussianMixture(log_weights, locs, scales)
    y = jnp.linspace(-6, 6, 4)
    np.testing.assert_allclose(law.log_prob(y), scipy.stats.norm(1, 1).logpdf(y), rtol=1e-13)
    np.testing.assert_array_equal(law.mean, 1)
    np.testing.assert_array_equal(law.variance, 1)
    assert jnp.abs(draw_5000(law) - 1).max() < 5.5


def test_invalid_parameters_are_refused_when_asked() -> None:
    with pytest.raises(ValueError, match="scales"):
        GaussianMixture(jnp.zeros(1), jnp.zeros(1), -jnp.ones(1), validate_args=True)
    with pytest.raises(ValueError, match="log_weights"):
        GaussianMixture(jnp.ones(1), jnp.zeros(1), jnp.ones(1), validate_args=True)


def test_log_sum_exp_is_that_of_scipy_with_a_gradient_everywhere() -> None:
    terms = np.random.default_rng(1).normal(size=(3, 5)) * [[1.0], [300.0], [1e5]]
    terms[1, 2] = -np.inf
    terms[2] = -np.inf

    @jax.jit
    def derivatives(terms: jax.Array) -> Any:
        rows = jax.value_and_grad(lambda row: log_sum_exp(row, 0))
        return log_sum_exp(terms, 1), jax.vmap(rows)(terms), jax.vmap(jax.jacfwd(rows))(terms)[1]

    values, (same, gradients), hessians = derivatives(terms)
    np.testing.assert_allclose(values, scipy.special.logsumexp(terms, axis=1), rtol=1e-14)
    np.testing.assert_array_equal(same, values)
    for share, gradient, hessian in zip(
        [*scipy.special.softmax(terms[:2], 1), np.zeros(5)], gradients, hessians, strict=True
    ):
        np.testing.assert_allclose(gradient, share, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(hessian, np.diag(share) - np.outer(share, share), atol=1e-14)


X, Y = np.linspace(-1, 1, 5)[:, None], np.linspace(-2, 2, 5)


def by_likelihood(gate: Gate, measure: bm.MixingMeasure, y: Any) -> jax.Array:
    return bm.moe(gate, measure.n_experts).log_likelihood(measure, X, y).sum()


def by_density(gate: Gate, measure: bm.MixingMeasure, y: Any) -> jax.Array:
    return conditional_density(gate, measure, jnp.asarray(X)).log_prob(y).sum()


@functools.cache
def value_and_gradient(function: Any, label: str) -> Any:
    """Of the log-likelihood of (X, y) in the measure, compiled; k = 3."""
    return jax.jit(jax.value_and_grad(functools.partial(function, CASE[label].gate())))


EXTREMES = [(by_likelihood, case.label) for case in ONE_PER_GATE]
EXTREMES += [(by_density, "softmax"), (by_density, "top_k_sparse")]


@pytest.mark.parametrize(("function", "label"), EXTREMES)
def test_extremes_have_no_nan_in_value_or_gradient(function: Any, label: str) -> None:
    case = CASE[label]
    usual = case.measure(2, 3, 1)
    for change in (
        {"gate_intercept": [1e6, 0.3, 0.0]},
        {"gate_intercept": [-1e6, 0.3, 0.0]},
        {"gate_slope": [[1e6], [-1e6], [0.0]]},
        {"temperature": 1e-6} if case.temperature else {},
        {"variance": [1.0, 1e-300, 0.5]},
        {"variance": [1.0, 1e100, 0.5]},
        {"variance": [1.0, 1e-300, 0.5], "gate_intercept": [1e6, 1e6, 0.0]},
    ):
        value, gradient = value_and_gradient(function, label)(usual.replace(**change), Y)
        assert jnp.isfinite(value), change
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)), change


@pytest.mark.parametrize("function", [by_likelihood, by_density])
def test_a_density_that_underflows_to_zero_has_log_minus_infinity(function: Any) -> None:
    """And a gradient without NaN."""
    measure = CASE["softmax"].measure(2, 3, 1).replace(variance=[1e-300, 1e-300, 1e-300])
    value, gradient = value_and_gradient(function, "softmax")(measure, 1e10 * Y)
    assert value == -jnp.inf
    assert not any(jnp.isnan(leaf).any() for leaf in jax.tree.leaves(gradient))
