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
import scipy.stats
from conftest import CASE, GateCase

import bayesmoe as bm
from bayesmoe.core.density import GaussianMixture, conditional_density
from bayesmoe.core.gate import Gate


@pytest.fixture
def mixture() -> GaussianMixture:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(4, 3)))
    scales = jnp.asarray(rng.uniform(0.3, 2, size=(4, 3)))
    return GaussianMixture(
        jax.nn.log_softmax(logits), 3 * jnp.asarray(rng.normal(size=(4, 3))), scales
    )


@pytest.mark.parametrize("d", [1, 2])
def test_log_likelihood_is_the_sum_over_all_assignments(case: GateCase, d: int) -> None:
    rng = np.random.default_rng(d)
    for k, n in ((1, 2), (2, 4), (3, 4)):
        model, measure = bm.moe(case.gate(k), k), case.measure(10 * k + d, k, d)
        x, y = rng.normal(size=(n, d)), rng.normal(size=n)
        joint = case.probabilities(measure, x) * case.components(measure, x).pdf(y[:, None])
        total = sum(
            np.prod([joint[j, label] for j, label in enumerate(labels)])
            for labels in itertools.product(range(k), repeat=n)
        )
        pointwise = model.log_likelihood(measure, x, y)
        np.testing.assert_allclose(pointwise.sum(), np.log(total), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(
            pointwise, np.log(case.density(measure, x, y)), rtol=1e-10, atol=1e-10
        )
        density = conditional_density(model.gate, measure, jnp.asarray(x))
        np.testing.assert_allclose(density.log_prob(y), pointwise, rtol=1e-10, atol=1e-10)


def test_batch_axes_of_the_measure_are_those_of_the_log_likelihood(case: GateCase) -> None:
    measures = [case.measure(seed) for seed in range(6)]
    batch = jax.tree.map(
        lambda *leaves: jnp.stack(leaves).reshape(2, 3, *leaves[0].shape), *measures
    )
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(5, 2)), rng.normal(size=5)
    got = bm.moe(case.gate(), 3).log_likelihood(batch, x, y)
    assert got.shape == (2, 3, 5)
    want = [np.log(case.density(measure, x, y)) for measure in measures]
    np.testing.assert_allclose(got.reshape(6, 5), want, rtol=1e-10, atol=1e-10)


def test_mixture_agrees_with_numpyro_same_family(mixture: GaussianMixture) -> None:
    reference = dist.MixtureSameFamily(
        dist.Categorical(logits=mixture.log_weights), dist.Normal(mixture.locs, mixture.scales)
    )
    y = jnp.linspace(-6, 6, 4)
    for ours, theirs in (
        (mixture.log_prob(y), reference.log_prob(y)),
        (mixture.mean, reference.mean),
        (mixture.variance, reference.variance),
        (mixture.cdf(y), reference.cdf(y)),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_moments_and_cdf_by_quadrature(case: GateCase) -> None:
    measure = case.measure(1, 3, 1)
    law = conditional_density(case.gate(), measure, jnp.asarray([[0.4]]))
    # the trapezoid rule is spectrally accurate for an entire integrand that vanishes at both ends
    y = np.linspace(-25.0, 25.0, 6001)
    density = np.exp(np.asarray(law.log_prob(y[:, None]))[:, 0])
    mass = scipy.integrate.trapezoid(density, y)
    mean = scipy.integrate.trapezoid(density * y, y)
    variance = scipy.integrate.trapezoid(density * (y - mean) ** 2, y)
    np.testing.assert_allclose(mass, 1, rtol=1e-11)
    np.testing.assert_allclose(law.mean[0], mean, rtol=1e-10)
    np.testing.assert_allclose(law.variance[0], variance, rtol=1e-10)
    cumulative = scipy.integrate.cumulative_simpson(density, x=y, initial=0)
    np.testing.assert_allclose(law.cdf(y[::500, None])[:, 0], cumulative[::500], atol=1e-8)


def test_samples_follow_the_cdf(case: GateCase) -> None:
    """PIT of 4000 draws at random x is uniform; each test errs with probability 1e-4.

    The variances are far from one, so that a variance taken for a deviation is noticed.
    """
    measure = case.measure(5, 3, 2).replace(variance=[0.02, 0.1, 0.3])
    x = np.random.default_rng(5).normal(size=(4000, 2))
    y = conditional_density(case.gate(), measure, jnp.asarray(x)).sample(jax.random.key(5))
    pit = case.cdf(measure, x, y)
    for part in (pit, pit[x[:, 0] > 0]):
        assert scipy.stats.kstest(part, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("shape", [(), (7,), (2, 5)])
def test_sample_and_log_prob_shapes(mixture: GaussianMixture, shape: tuple[int, ...]) -> None:
    draws = mixture.sample(jax.random.key(0), shape)
    assert draws.shape == shape + mixture.batch_shape
    got = mixture.log_prob(draws)
    assert got.shape == draws.shape
    for index in np.ndindex(*shape):
        np.testing.assert_allclose(got[index], mixture.log_prob(draws[index]), rtol=1e-13)
    assert mixture.log_prob(jnp.zeros((6, 1))).shape == (6, 4)
    assert mixture.expand((2, 4)).log_prob(jnp.zeros(4)).shape == (2, 4)
    assert mixture.to_event(1).log_prob(draws).shape == shape


def test_draws_of_different_rows_are_independent(mixture: GaussianMixture) -> None:
    draws = mixture.sample(jax.random.key(1), (5000,))
    correlation = np.corrcoef(draws.T) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(5000)


def test_jit_and_vmap(mixture: GaussianMixture) -> None:
    y = jnp.linspace(-1.0, 1.0, 4)
    plain = mixture.log_prob(y)
    jitted = jax.jit(lambda law, value: law.log_prob(value))(mixture, y)
    mapped = jax.vmap(lambda w, m, s, value: GaussianMixture(w, m, s).log_prob(value))(
        mixture.log_weights, mixture.locs, mixture.scales, y
    )
    np.testing.assert_allclose(jitted, plain, rtol=1e-13)
    np.testing.assert_allclose(mapped, plain, rtol=1e-13)


def test_a_weight_of_zero_removes_a_component() -> None:
    law = GaussianMixture(jnp.asarray([-jnp.inf, 0.0]), jnp.asarray([5.0, 1.0]), jnp.ones(2))
    assert law.log_prob(0.3) == pytest.approx(scipy.stats.norm(1, 1).logpdf(0.3), rel=1e-13)
    assert law.mean == 1
    assert law.variance == 1
    assert jnp.abs(law.sample(jax.random.key(0), (1000,)) - 1).max() < 4.9


def test_invalid_parameters_are_refused_when_asked() -> None:
    with pytest.raises(ValueError, match="scales"):
        GaussianMixture(jnp.zeros(1), jnp.zeros(1), -jnp.ones(1), validate_args=True)
    with pytest.raises(ValueError, match="log_weights"):
        GaussianMixture(jnp.ones(1), jnp.zeros(1), jnp.ones(1), validate_args=True)


X, Y = np.linspace(-1, 1, 5)[:, None], np.linspace(-2, 2, 5)


def by_likelihood(gate: Gate, measure: bm.MixingMeasure, y: Any) -> jax.Array:
    return bm.moe(gate, measure.n_experts).log_likelihood(measure, X, y).sum()


def by_density(gate: Gate, measure: bm.MixingMeasure, y: Any) -> jax.Array:
    return conditional_density(gate, measure, jnp.asarray(X)).log_prob(y).sum()


@pytest.mark.parametrize("label", ["softmax", "top_k_sparse", "dense_to_sparse", "sigmoid"])
def test_extremes_have_no_nan_in_value_or_gradient(label: str) -> None:
    case = CASE[label]
    usual = case.measure(2, 3, 1)
    for function, least in ((by_likelihood, 1e-300), (by_density, 1e-100)):
        compiled = jax.jit(jax.value_and_grad(functools.partial(function, case.gate())))
        for change in (
            {"gate_intercept": [1e6, 0.3, 0.0]},
            {"gate_intercept": [-1e6, 0.3, 0.0]},
            {"gate_slope": [[1e6], [-1e6], [0.0]]},
            {"temperature": 1e-6} if case.temperature else {},
            {"variance": [1.0, least, 0.5]},
            {"variance": [1.0, 1e100, 0.5]},
            {"variance": [1.0, least, 0.5], "gate_intercept": [1e6, 1e6, 0.0]},
        ):
            value, gradient = compiled(usual.replace(**change), Y)
            assert jnp.isfinite(value), change
            assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)), change


@pytest.mark.xfail(strict=True, reason="the normal's derivative overflows: NaN in the gradient")
def test_the_density_has_no_nan_in_its_gradient_at_a_variance_of_1e_300() -> None:
    measure = CASE["softmax"].measure(2, 3, 1).replace(variance=[1.0, 1e-300, 0.5])
    gradient = jax.grad(functools.partial(by_density, CASE["softmax"].gate()))(measure, Y)
    assert not jnp.isnan(gradient.variance).any()


@pytest.mark.parametrize("function", [by_likelihood, by_density])
def test_a_density_that_underflows_to_zero_has_log_minus_infinity(function: Any) -> None:
    measure = CASE["softmax"].measure(2, 2, 1).replace(variance=[1e-300, 1e-300])
    assert function(CASE["softmax"].gate(), measure, 1e10 * Y) == -jnp.inf


@pytest.mark.xfail(strict=True, reason="the gradient of a log-likelihood of -inf is NaN")
@pytest.mark.parametrize("function", [by_likelihood, by_density])
def test_the_gradient_has_no_nan_where_the_density_underflows_to_zero(function: Any) -> None:
    measure = CASE["softmax"].measure(2, 2, 1).replace(variance=[1e-300, 1e-300])
    gradient = jax.grad(functools.partial(function, CASE["softmax"].gate()))(measure, 1e10 * Y)
    assert not any(jnp.isnan(leaf).any() for leaf in jax.tree.leaves(gradient))
