"""Start protocols, statuses that tell the truth, equivariance and refused arguments."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats
from conftest import CASE
from oracles import Oracle

import bayesmoe as bm
from bayesmoe.core.priors import weak
from bayesmoe.inference.starts import _draw_gates, near_truth

Floats = np.ndarray
OTHERS = ("dense_to_sparse", "sigmoid")


def data(n: int = 300, label: str = "softmax", seed: int = 0) -> tuple[Floats, Floats]:
    x, y = bm.scenario("lambda", CASE[label].gate(2)).simulate(seed, n)
    return np.array(x), np.array(y)


def model(label: str = "softmax", k: int = 2) -> bm.MoE:
    return bm.moe(CASE[label].gate(k), k)


def copies(measure: bm.MixingMeasure) -> bm.MixingMeasure:
    """As many as a fit has starts, whose program serves them, too."""
    return jax.tree.map(lambda leaf: np.stack([leaf] * 12), measure)


# --- statuses


def test_a_separated_gate_has_no_maximum() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-2, -1, 60), rng.uniform(1, 2, 60)])
    y = np.where(x < 0, 3 * x, -2 * x + 1) + 0.1 * rng.standard_normal(120)
    fit = bm.fit_mle(model(), x, y)
    assert fit.status is bm.Status.SEPARATED
    assert not fit.converged
    assert bm.fit_map(model(), x, y).converged  # the prior holds the gate


def test_an_expert_through_few_points_rests_on_the_floor() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, 80)
    y = x + 0.3 * rng.standard_normal(80)
    y[:5] = 6 - x[:5]  # exactly on a line of their own
    fit = bm.fit_mle(model(), x, y)
    assert fit.status in (bm.Status.AT_VARIANCE_FLOOR, bm.Status.SEPARATED)
    assert fit.measure.variance.min() == pytest.approx(1e-4 * y.var(), rel=1e-6)


def test_identical_experts_are_a_saddle_that_is_left() -> None:
    x, y = data()
    same = bm.MixingMeasure(
        np.zeros((2, 1)), np.zeros(2), 1.0, np.full((2, 1), -3.0), np.full(2, 2.0), np.full(2, 20.0)
    )
    fit = bm.fit_mle(model(), x, y, starts=copies(same), n_starts=0)
    best = bm.fit_mle(model(), x, y)
    assert not fit.converged or fit.log_likelihood > best.log_likelihood - 1e-6


@pytest.mark.parametrize("outlier", [1e6, -1e6])
def test_an_outlier_is_no_disaster(outlier: float) -> None:
    x, y = data()
    y[7] = outlier * y.std()
    fit = bm.fit_mle(model(), x, y)
    assert np.isfinite(fit.log_likelihood)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.measure))


@pytest.mark.parametrize(
    "label", ["softmax", *(pytest.param(g, marks=pytest.mark.slow) for g in OTHERS)]
)
def test_a_converged_fit_carries_its_evidence(label: str) -> None:
    fit = bm.fit_mle(model(label), *data(label=label))
    assert fit.converged
    assert fit.gradient_norm <= 1e-8
    assert fit.least_curvature >= -1e-8
    assert len(fit.starts.status) == len(fit.starts.objective) == 12
    assert fit.starts.objective.max() == pytest.approx(fit.log_likelihood, abs=1e-8)
    assert np.isnan(fit.log_density)


# --- equivariance


@pytest.mark.parametrize("label", ["softmax", pytest.param("sigmoid", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("x_scale", "y_scale", "y_shift"), [(1e9, 1e-9, 0.0), (1e-9, 3.0, 7.0)])
def test_scaling_and_shifting_the_data_moves_the_estimate(
    label: str, x_scale: float, y_scale: float, y_shift: float
) -> None:
    x, y = data(label=label)
    x_shift = 2.0 if CASE[label].linear else 0.0  # an activation has no intercept inside
    one = bm.fit_mle(model(label), x, y).measure
    two = bm.fit_mle(model(label), x_scale * (x + x_shift), y_scale * y + y_shift).measure
    np.testing.assert_allclose(two.gate_slope * x_scale, one.gate_slope, rtol=1e-6)
    np.testing.assert_allclose(
        two.gate_intercept, one.gate_intercept - one.gate_slope[:, 0] * x_shift, rtol=1e-6
    )
    np.testing.assert_allclose(two.temperature, one.temperature, rtol=1e-6)
    np.testing.assert_allclose(two.slope, one.slope * y_scale / x_scale, rtol=1e-6)
    moved = y_scale * (one.intercept - one.slope[:, 0] * x_shift) + y_shift
    np.testing.assert_allclose(two.intercept, moved, rtol=1e-6)
    np.testing.assert_allclose(two.variance, one.variance * y_scale**2, rtol=1e-6)


# --- keys and starts


@pytest.mark.slow
def test_a_start_may_have_any_reference_where_slopes_may_be_translated() -> None:
    x, y = data(label="identity")
    fit = bm.fit_mle(model("identity"), x, y, n_starts=2)
    moved = fit.measure.replace(gate_slope=fit.measure.gate_slope + 1.5)
    again = bm.fit_mle(model("identity"), x, y, n_starts=0, starts=moved)
    np.testing.assert_allclose(again.measure.gate_slope, fit.measure.gate_slope, rtol=1e-6)
    np.testing.assert_allclose(again.log_likelihood, fit.log_likelihood, rtol=1e-12)


@pytest.mark.parametrize("label", ["softmax", "dense_to_sparse", "sigmoid"])
def test_gates_are_drawn_from_the_weak_prior(label: str) -> None:
    """Kolmogorov and Smirnov's test beside NumPyro's laws; three gates fail by chance in 0.1 %."""
    gate, k = CASE[label].gate(3), 3
    prior = weak(gate)
    drawn = _draw_gates(np.random.default_rng(0), gate, k, 2, (40, 50))
    assert (drawn.slope.shape, drawn.intercept.shape) == ((40, 50, 3, 2), (40, 50, 3))
    assert not np.any(drawn.slope[..., -1, :])
    assert not np.any(drawn.intercept[..., -1])
    intercept = np.asarray(drawn.intercept[..., :-1])
    if prior.intercept_per_temperature:
        intercept = intercept / np.asarray(drawn.temperature)[..., None]
    pairs = [(drawn.slope[..., :-1, :], prior.gate_slope), (intercept, prior.gate_intercept)]
    if gate.has_temperature:
        pairs.append((drawn.temperature, prior.temperature))
    for values, law in pairs:
        found = scipy.stats.kstest(np.asarray(law.cdf(np.ravel(values))), "uniform")
        assert found.pvalue > 0.001 / 8


def test_the_same_key_gives_the_same_fit() -> None:
    x, y = data()
    one, two = (bm.fit_mle(model(), x, y, key=5) for _ in range(2))
    np.testing.assert_array_equal(one.starts.objective, two.starts.objective)
    np.testing.assert_array_equal(one.measure.slope, two.measure.slope)
    other = bm.fit_mle(model(), x, y, key=jax.random.key(5))
    np.testing.assert_array_equal(one.starts.objective, other.starts.objective)


def test_given_starts_are_tried_first() -> None:
    x, y = data()
    best = bm.fit_mle(model(), x, y)
    fit = bm.fit_mle(model(), x, y, starts=best.measure, n_starts=11)
    assert len(fit.starts.status) == 12
    assert fit.starts.n_iterations[0] <= 3
    np.testing.assert_allclose(fit.starts.objective[0], best.log_likelihood, rtol=1e-12)
    again = bm.fit_mle(model(), x, y, starts=copies(best.measure), n_starts=0)
    np.testing.assert_allclose(again.starts.objective, best.log_likelihood, rtol=1e-12)


def test_near_truth_starts_are_split_copies() -> None:
    truth = bm.scenario("lambda", gate="dense_to_sparse").measure
    starts = near_truth(jax.random.key(0), truth, 3, 10**6, 20)
    oracle = Oracle(CASE["dense_to_sparse"], 3, 1)
    x, y = data(200, "dense_to_sparse")
    true = Oracle(CASE["dense_to_sparse"], 2, 1)
    expected = true.log_likelihood(true.theta(truth), x, y)
    for i in range(20):
        one = starts[i]
        assert float(one.gate_slope[-1, 0]) == float(one.gate_intercept[-1]) == 0.0
        slopes = np.asarray(one.slope[:, 0])
        assert {round(s / 20) for s in slopes} == {-1, 1}  # every true atom has a copy
        # the copies share their atom's weight, so the density is nearly the truth's
        found = oracle.log_likelihood(oracle.theta(one), x, y)
        assert abs(found - expected) < 0.05 * abs(expected)


NO_STARTS = bm.MixingMeasure(
    *(np.zeros((0, *shape)) for shape in ((2, 1), (2,), (), (2, 1), (2,), (2,)))
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_starts": 0}, "n_starts must be a whole number of at least 1, got 0"),
        ({"variance_floor": 0.0}, r"variance_floor, .* must lie between 0 and 1; got 0.0"),
        ({"key": "seed"}, r"key must be a JAX key or a non-negative int below 2\*\*63, got 'seed'"),
        (
            {"starts": bm.MixingMeasure(np.zeros((3, 1)), np.zeros(3), 1.0, np.zeros((3, 1)),
                                        np.zeros(3), np.ones(3))},
            r"starts must be measures with \(k, d\) = \(2, 1\)",
        ),
        (
            {"starts": bm.MixingMeasure(np.zeros((2, 1)), np.zeros(2), 1.0, np.zeros((2, 1)),
                                        np.zeros(2), np.asarray([1.0, -1.0]))},
            "starts must have a positive variance, got -1",
        ),
        ({"starts": NO_STARTS, "n_starts": 0}, "starts holds no measure and n_starts is 0"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bm.fit_mle(model(), *data(), **arguments)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.arange(50.0), np.ones(50), "y is constant at 1"),
        (np.arange(50.0), 1e101 * np.arange(50.0), r"y reaches 4\.9e\+102, .* use other units"),
        (1e-102 * np.arange(50.0), np.arange(50.0), "covariate 0 varies by 4.9e-101"),
        (np.arange(50.0), np.arange(49.0), "x has 50 rows but y has 49"),
        (np.append(np.arange(49.0), np.nan), np.arange(50.0), "x has 1 values that are NaN"),
        (np.arange(50.0), np.append(np.arange(49.0), np.inf), "y has 1 values that are NaN or inf"),
        (np.asarray([10**400] * 50), np.arange(50.0), "x must be numeric: int too large"),
        (np.asarray(["a"] * 50), np.arange(50.0), "x must be numeric"),
    ],
)
def test_bad_data_are_refused(x: Floats, y: Floats, message: str) -> None:
    for fit in (bm.fit_mle, bm.fit_map, bm.sample_posterior):
        with pytest.raises(ValueError, match=message):
            fit(model(), x, y)


def test_what_the_data_do_not_determine_a_proper_prior_does() -> None:
    rows, constant = np.arange(5.0), np.ones(50)
    flat = bm.moe("softmax", 2, prior="flat")
    for fit in (functools.partial(bm.fit_mle, model()), functools.partial(bm.fit_map, flat)):
        with pytest.raises(ValueError, match="5 rows cannot determine 8 parameters; use fewer"):
            fit(rows, rows)
        with pytest.raises(ValueError, match="one distinct value 1; drop it"):
            fit(constant, np.arange(50.0))
    assert bm.fit_map(model(), rows, rows**2).converged
    for fit in (bm.fit_map, bm.sample_posterior):
        with pytest.raises(ValueError, match="too few rows, 2, for n_experts = 3: at least 3"):
            fit(bm.moe("softmax", 3), rows[:2], rows[:2])
        with pytest.raises(ValueError, match="too few rows, 1, for n_experts = 1: at least 2"):
            fit(bm.moe("softmax", 1), rows[:1], rows[:1])


@pytest.mark.slow
def test_without_data_that_vary_a_slope_follows_its_prior() -> None:
    """x tells nothing of its slope: the posterior is N(0, (2 sd(y))²) under a single expert."""
    y = np.random.default_rng(1).normal(size=30)
    tree = bm.sample_posterior(bm.moe("softmax", 1), np.full(30, 3.0), y, n_warmup=300)
    slope = tree["posterior"]["slope"].values.reshape(-1)
    assert slope.mean() == pytest.approx(0, abs=0.1 * y.std())
    assert slope.std() == pytest.approx(2 * y.std(), rel=0.05)
    mode = bm.fit_map(bm.moe("softmax", 1), np.full(30, 3.0), y).measure
    assert float(mode.slope[0, 0]) == pytest.approx(0, abs=1e-12)
