"""Scenarios: simulation against the true law, keys and quadrature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats
from conftest import CASE, ONE_PER_GATE, GateCase

import bayesmoe as bm
from bayesmoe.study.scenario import SCENARIOS


@pytest.mark.parametrize(
    "name",
    ["lambda", *(pytest.param(n, marks=pytest.mark.slow) for n in SCENARIOS if n != "lambda")],
)
def test_simulated_pairs_follow_the_density(gate_case: GateCase, name: str) -> None:
    """Uniform x and uniform PIT; each of the tests errs with probability 1e-5."""
    case = gate_case
    truth = bm.scenario(name, gate=case.name, **case.options)
    x, y = (np.asarray(part) for part in truth.simulate(20, 3000))
    d = truth.measure.n_covariates
    assert x.shape == (3000, d)
    assert y.shape == (3000,)
    assert x.dtype == y.dtype == np.float64
    pit = case.cdf(truth.measure, x, y)
    for column in x.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-5
        for half in (column < 0.5, column >= 0.5):
            assert scipy.stats.kstest(pit[half], "uniform").pvalue > 1e-5


def test_the_mean_and_variance_of_y_given_x_are_those_of_the_density() -> None:
    """Standardised residuals: mean 0 and variance 1, to five standard errors."""
    for case in ONE_PER_GATE:
        truth = bm.scenario("weak", gate=case.name, **case.options)
        samples = [truth.simulate(seed, 3000) for seed in range(7)]  # no shape but 3000 is compiled
        x, y = (np.concatenate(parts) for parts in zip(*samples, strict=True))
        weight, laws = case.probabilities(truth.measure, x), case.components(truth.measure, x)
        mean = (weight * laws.mean()).sum(1)
        variance = (weight * (laws.var() + laws.mean() ** 2)).sum(1) - mean**2
        z = (y - mean) / np.sqrt(variance)
        assert abs(z.mean()) < 5 / np.sqrt(len(z))
        assert abs((z**2).mean() - 1) < 5 * (z**2).std() / np.sqrt(len(z))


def test_a_seed_and_its_key_give_the_same_data() -> None:
    truth = bm.scenario("lambda")
    by_int = truth.simulate(3, 3000)
    keys: list[Any] = [3, np.int64(3), jax.random.key(3), jax.random.PRNGKey(3)]
    for key in keys:
        for got, want in zip(truth.simulate(key, 3000), by_int, strict=True):
            np.testing.assert_array_equal(got, want)
    assert not np.array_equal(truth.simulate(4, 3000)[0], by_int[0])


def test_a_key_has_one_stream_of_pairs() -> None:
    """Whatever n: both sides of a change of the length that is compiled."""
    truth = bm.scenario("lambda")
    x, y = truth.simulate(3, 3000)
    for n in (1, 1024, 1025):
        np.testing.assert_array_equal(truth.simulate(3, n)[0], x[:n])
        np.testing.assert_allclose(truth.simulate(3, n)[1], y[:n], rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", SCENARIOS)
def test_quadrature_points_have_the_moments_of_the_uniform_law(name: str) -> None:
    points = np.asarray(bm.scenario(name).quadrature_x)
    assert points.shape[0] == 512
    assert points.min() > 0
    assert points.max() < 1
    tolerance = 1e-6 if points.shape[1] == 1 else 5e-3
    np.testing.assert_allclose(points.mean(0), 1 / 2, atol=tolerance)
    np.testing.assert_allclose((points**2).mean(0), 1 / 3, atol=tolerance)
    if points.shape[1] == 2:
        np.testing.assert_allclose(points.prod(1).mean(), 1 / 4, atol=tolerance)
        assert scipy.stats.qmc.discrepancy(points) < 1e-4


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_temperature_leaves_the_linear_truth_unchanged(name: str) -> None:
    one, other = (bm.scenario(name, gate=gate).measure for gate in ("softmax", "dense_to_sparse"))
    assert other.temperature != 1
    x = np.random.default_rng(0).uniform(size=(50, one.n_covariates))
    np.testing.assert_allclose(
        CASE["dense_to_sparse"].probabilities(other, x),
        CASE["softmax"].probabilities(one, x),
        rtol=1e-12,
        atol=1e-12,
    )
    for field in ("slope", "intercept", "variance"):
        np.testing.assert_array_equal(getattr(other, field), getattr(one, field))


def test_the_lambda_truth_is_the_published_one() -> None:
    measure = bm.scenario("lambda").measure
    np.testing.assert_array_equal(measure.gate_slope, [[25.0], [0.0]])
    np.testing.assert_array_equal(measure.gate_intercept, [-8.0, 0.0])
    np.testing.assert_array_equal(measure.slope, [[-20.0], [20.0]])
    np.testing.assert_array_equal(measure.intercept, [15.0, -5.0])
    np.testing.assert_allclose(np.sqrt(measure.variance), [0.3, 0.4])


def test_references_are_zero_and_every_expert_matters(case: GateCase) -> None:
    for name in SCENARIOS:
        truth = bm.scenario(name, gate=case.name, **case.options)
        assert not truth.measure.gate_slope[-1].any()
        assert truth.measure.gate_intercept[-1] == 0
        share = case.probabilities(truth.measure, truth.quadrature_x).mean(0)
        assert case.label.startswith("user") or share.min() > 0.015, name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bm.scenario("lambada"), "unknown scenario 'lambada'; choose one of lambda"),
        (lambda: bm.scenario("lambda", gate="soft"), "unknown gate 'soft'"),
        (lambda: bm.scenario("lambda", top_k=2), "no option 'top_k'"),
        (lambda: bm.scenario("lambda", gate="top_k_sparse", top_k=3), "exceeds n_experts = 2"),
        (lambda: bm.scenario("lambda").simulate(0, 0), "n must be a whole number"),
        (lambda: bm.scenario("lambda").simulate(-1, 5), "non-negative int"),
    ],
)
def test_mistakes_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
