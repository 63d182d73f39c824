"""Standard errors against finite differences of a NumPy likelihood, closed forms and coverage."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from conftest import CASE
from oracles import Floats, Oracle

import bayesmoe as bm
from bayesmoe.core.scaling import Scaling
from bayesmoe.inference.outcome import Status
from bayesmoe.inference.point import Fit, fit_map, fit_mle
from bayesmoe.inference.uncertainty import StandardErrors, standard_errors

# --- oracles ---


def curvature(function: Callable[[Floats], float], theta: Floats) -> Floats:
    """The negative Hessian by central differences, extrapolated to fourth order.

    Steps are a few hundredths of each parameter's conditional standard error: there the function
    changes by far more than rounding and by far less than its third derivatives matter.
    """
    p = len(theta)
    centre = function(theta)

    def second(i: int, j: int, step: Floats) -> float:
        u, v = np.diag(step)[i], np.diag(step)[j]
        if i == j:
            difference = function(theta + u) + function(theta - u) - 2 * centre
        else:
            same = function(theta + u + v) + function(theta - u - v)
            difference = (same - function(theta + u - v) - function(theta - u + v)) / 4
        return -difference / (step[i] * step[j])

    rough = 1e-3 * np.maximum(np.abs(theta), 1e-2)
    step = 0.03 / np.sqrt(np.maximum([second(i, i, rough) for i in range(p)], 1e-3))
    out = np.empty((p, p))
    for i in range(p):
        for j in range(i + 1):
            near, far = second(i, j, step), second(i, j, 2 * step)
            out[i, j] = out[j, i] = (4 * near - far) / 3
    return out


def numpy_errors(function: Callable[[Floats], float], theta: Floats) -> Floats:
    return np.sqrt(np.diag(np.linalg.inv(curvature(function, theta))))


@functools.cache
def sample(name: str, label: str, n: int = 600, seed: int = 0) -> tuple[Floats, Floats]:
    x, y = bm.scenario(name, CASE[label].gate(2)).simulate(seed, n)
    return np.asarray(x), np.asarray(y)


@functools.cache
def standard_sample(name: str, label: str) -> tuple[Floats, Floats]:
    x, y = sample(name, label)
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def model(label: str, k: int = 2, prior: str = "weak") -> bm.MoE:
    return bm.moe(CASE[label].gate(k), k, prior)


@functools.cache
def mle(name: str, label: str, n: int = 600) -> Fit:
    truth = bm.scenario(name, CASE[label].gate(2)).measure
    return fit_mle(model(label), *sample(name, label, n), starts=truth, n_starts=0)


@functools.cache
def errors_of_mle(name: str, label: str, sandwich: bool = False) -> StandardErrors:
    data = sample(name, label)
    return standard_errors(model(label), mle(name, label), *data, sandwich=sandwich)


def oracle_of(label: str, d: int = 1, k: int = 2) -> Oracle:
    return Oracle(CASE[label], k, d)


def experts(measure: bm.MixingMeasure) -> Floats:
    return np.concatenate([np.ravel(measure.slope), measure.intercept, measure.variance])


# --- the information and the delta method ---


@pytest.mark.parametrize(
    ("label", "name", "d"),
    [
        ("softmax", "weak", 1),
        pytest.param("softmax", "plane", 2, marks=pytest.mark.slow),
        ("sigmoid", "lambda", 1),
        pytest.param("sigmoid", "plane", 2, marks=pytest.mark.slow),
    ],
)
def test_the_errors_are_those_of_numpys_information(label: str, name: str, d: int) -> None:
    """In the paper's parameters on the scale of the data: no coordinates, no scaling, no JAX."""
    x, y = sample(name, label)
    fit, oracle = mle(name, label), oracle_of(label, d)
    assert fit.status is Status.CONVERGED
    want = numpy_errors(lambda t: oracle.log_likelihood(t, x, y), oracle.theta(fit.measure))
    got = errors_of_mle(name, label)
    np.testing.assert_allclose(oracle.theta(got.measure), want, rtol=1e-4)
    assert got.undetermined.shape == (0, len(want))
    # the parameters that are fixed by convention
    assert not np.any(got.measure.gate_slope[-1])
    assert got.measure.gate_intercept[-1] == 0
    assert (got.measure.temperature == 0) == (label == "softmax")


@pytest.mark.slow
@pytest.mark.parametrize("label", ["softmax", "dense_to_sparse", "sigmoid"])
def test_the_errors_of_a_map_include_its_prior(label: str) -> None:
    x, y = standard_sample("weak", label)
    fit = fit_map(model(label), x, y, key=1, n_starts=4)
    assert fit.status is Status.CONVERGED
    oracle = oracle_of(label)
    theta = oracle.theta(fit.measure)
    want = numpy_errors(lambda t: oracle.log_likelihood(t, x, y) + oracle.log_weak_prior(t), theta)
    got = standard_errors(model(label), fit, x, y)
    assert np.all(np.isfinite(want))
    np.testing.assert_allclose(oracle.theta(got.measure), want, rtol=1e-4)
    assert got.undetermined.shape == (0, len(theta))


@pytest.mark.slow
def test_a_map_on_the_scale_of_the_data() -> None:
    """The prior is stated for standardised data: other units change the errors' units alone."""
    x, y = standard_sample("weak", "softmax")
    unit, given = (
        standard_errors(
            model("softmax"), fit_map(model("softmax"), *data, key=1, n_starts=4), *data
        )
        for data in ((x, y), (x / 4, 10 * y))
    )
    factors = np.array([4.0, 1, 40, 40, 10, 10, 100, 100])
    theta = oracle_of("softmax").theta
    np.testing.assert_allclose(theta(given.measure), factors * theta(unit.measure), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 3])
def test_one_expert_is_least_squares(d: int) -> None:
    rng = np.random.default_rng(d)
    x = rng.normal(3.0, [1.0, 10.0, 0.1][:d], size=(50, d))
    y = x @ rng.normal(size=d) + 7 + 0.5 * rng.normal(size=50)
    fit = fit_mle(model("softmax", 1), x, y)
    got = standard_errors(model("softmax", 1), fit, x, y).measure
    design = np.column_stack([x, np.ones(50)])
    _, rss, *_ = np.linalg.lstsq(design, y, rcond=None)
    variance = rss[0] / 50
    line = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    np.testing.assert_allclose(got.slope[0], line[:-1], rtol=1e-8)
    np.testing.assert_allclose(got.intercept[0], line[-1], rtol=1e-8)
    np.testing.assert_allclose(got.variance[0], variance * np.sqrt(2 / 50), rtol=1e-8)


@pytest.mark.parametrize("sandwich", [False, True])
@pytest.mark.parametrize(("label", "shift"), [("softmax", 5.0), ("sigmoid", 0.0)])
def test_equivariance(label: str, shift: float, sandwich: bool) -> None:
    """x -> x/c and y -> sy + t: exactly the errors in other units.

    Under the softmax, a shift of x moves the intercepts, and their errors follow from the
    covariance; here the slopes' and the variances' are compared.
    """
    x, y = sample("lambda", label)
    fit = mle("lambda", label)
    moved = x / 7 + shift, 3 * y - 11
    start = fit.measure.replace(gate_slope=7 * fit.measure.gate_slope)
    start = start.replace(
        gate_intercept=start.gate_intercept - start.gate_slope[:, 0] * shift,
        slope=21 * start.slope,
        intercept=3 * start.intercept - 11 - 21 * start.slope[:, 0] * shift,
        variance=9 * start.variance,
    )
    refit = fit_mle(model(label), *moved, starts=start, n_starts=0)
    one = errors_of_mle("lambda", label, sandwich).measure
    two = standard_errors(model(label), refit, *moved, sandwich=sandwich).measure
    np.testing.assert_allclose(two.gate_slope, 7 * one.gate_slope, rtol=1e-6)
    np.testing.assert_allclose(two.temperature, one.temperature, rtol=1e-6)
    np.testing.assert_allclose(two.slope, 21 * one.slope, rtol=1e-6)
    np.testing.assert_allclose(two.variance, 9 * one.variance, rtol=1e-6)
    if not shift:
        np.testing.assert_allclose(two.gate_intercept, one.gate_intercept, rtol=1e-6)
        np.testing.assert_allclose(two.intercept, 3 * one.intercept, rtol=1e-6)
    else:  # the errors of what stands at the old origin
        line = np.array([shift, 1.0])
        assert two.intercept[0] > 2 * 3 * one.intercept[0]
        covariance = original_covariance(model(label), refit, *moved, sandwich)
        old = np.sqrt(line @ covariance @ line)
        np.testing.assert_allclose(old, 3 * one.intercept[0], rtol=1e-6)


@pytest.mark.parametrize(("x_unit", "y_unit"), [(1.0, 1e78), (1e90, 1e-90)])
def test_errors_have_squares_beyond_all_numbers(x_unit: float, y_unit: float) -> None:
    """Those of a variance and of a slope, in units that are accepted."""
    found = []
    for factors in ((1.0, 1.0), (x_unit, y_unit)):
        x, y = (c * values for c, values in zip(factors, sample("lambda", "softmax"), strict=True))
        fit = fit_mle(model("softmax", 1), x, y, n_starts=1)
        found.append(standard_errors(model("softmax", 1), fit, x, y).measure)
    one, two = found
    np.testing.assert_allclose(two.variance / y_unit / y_unit, one.variance, rtol=1e-9)
    np.testing.assert_allclose(two.slope / y_unit * x_unit, one.slope, rtol=1e-9)


def original_covariance(model: bm.MoE, fit: Fit, x: Floats, y: Floats, sandwich: bool) -> Floats:
    """Of slope and intercept of the first expert on the scale of the data, for d = 1, softmax."""
    c = standard_errors(model, fit, x, y, sandwich=sandwich).covariance[np.ix_([2, 4], [2, 4])]
    to_data = y.std() * np.array([[1 / x.std(), 0.0], [-x.mean() / x.std(), 1.0]])
    return to_data @ c @ to_data.T


# --- directions that are not determined ---


def test_on_the_ray_of_dense_to_sparse() -> None:
    got = errors_of_mle("weak", "dense_to_sparse")
    softmax = errors_of_mle("weak", "softmax")
    assert np.isposinf(got.measure.gate_slope[0, 0])
    assert np.isposinf(got.measure.gate_intercept[0])
    assert np.isposinf(got.measure.temperature)
    np.testing.assert_array_equal(got.measure.gate_slope[-1], 0.0)
    # the same data, the same density
    np.testing.assert_array_equal(*(sample("weak", g)[1] for g in ("softmax", "dense_to_sparse")))
    np.testing.assert_allclose(experts(got.measure), experts(softmax.measure), rtol=1e-6)
    # d(log τ), in the order (η1, η0, log τ, experts)
    np.testing.assert_allclose(np.abs(got.undetermined), np.eye(9)[[2]], atol=1e-12)
    others = np.delete(np.delete(got.covariance, 2, 0), 2, 1)
    np.testing.assert_allclose(others, softmax.covariance, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(got.covariance[2], 0.0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["relu", "identity"])
def test_on_the_ray_of_a_homogeneous_activation(label: str) -> None:
    x, y = sample("lambda", label)
    fit, got, oracle = mle("lambda", label), errors_of_mle("lambda", label), oracle_of(label)
    assert fit.converged
    for block in (got.measure.gate_slope[0], got.measure.gate_intercept[0]):
        assert np.all(np.isposinf(block))
    assert np.isposinf(got.measure.temperature)
    # to fix τ takes nothing from the experts: one representative of each ray
    theta = oracle.theta(fit.measure)

    def fixed_temperature(t: Floats) -> float:
        return oracle.log_likelihood(np.insert(t, 2, theta[2]), x, y)

    want = numpy_errors(fixed_temperature, np.delete(theta, 2))
    np.testing.assert_allclose(experts(got.measure), want[2:], rtol=1e-4)
    # (cβ1, cβ0, cτ) in the coordinates (β1, β0/τ, log τ), x in units of its root mean square
    ray = np.zeros(9)
    ray[[0, 2]] = theta[0] * np.sqrt(np.mean(x**2)), 1.0
    along = got.undetermined @ ray / np.linalg.norm(ray)
    assert got.undetermined.shape == (1, 9)
    np.testing.assert_allclose(np.abs(along), 1.0, rtol=1e-10)
    np.testing.assert_allclose(got.undetermined @ got.undetermined.T, 1.0, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "name"), [("relu", "weak"), ("identity", "plane"), ("dense_to_sparse", "weak")]
)
def test_an_estimate_beside_the_optimum_does_not_determine_the_ray(label: str, name: str) -> None:
    """A curved ray has curvature beside the optimum; it is a distance, not information."""
    x, y = sample(name, label)
    fit, want = mle(name, label), experts(errors_of_mle(name, label).measure)
    rng, oracle = np.random.default_rng(0), oracle_of(label, x.shape[1])
    theta = oracle.theta(fit.measure)
    for size in 5 * [1e-8] + 5 * [1e-6]:
        beside = bm.MixingMeasure(*oracle.blocks(theta * (1 + size * rng.normal(size=len(theta)))))
        got = standard_errors(model(label), dataclasses.replace(fit, measure=beside), x, y)
        assert len(got.undetermined) == 1
        assert np.all(np.isposinf(got.measure.gate_slope[0]))
        assert np.isposinf(got.measure.gate_intercept[0])
        assert np.isposinf(got.measure.temperature)
        np.testing.assert_allclose(experts(got.measure), want, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["relu", "sigmoid", "dense_to_sparse"])
def test_the_covariance_is_a_pseudo_inverse(label: str) -> None:
    """Of NumPy's information in identifiable coordinates of standardised data, ray included."""
    case, oracle = CASE[label], oracle_of(label)
    x, y = sample("lambda", label)
    shift = x.mean(0) if case.linear else np.zeros(1)
    scale = x.std(0) if case.linear else np.sqrt(np.mean(x**2, axis=0))
    z = (y - y.mean()) / y.std()
    coordinates = np.asarray(standardised_coordinates(label, mle("lambda", label), x, y))

    def log_likelihood(u: Floats) -> float:
        theta, _ = oracle.from_unconstrained(u)
        # the gate sees its own standardised x; the experts' lines are moved to it
        beta1, beta0, tau, a, b, nu = oracle.blocks(theta)
        gate_x, expert_x = (x - shift) / scale, (x - x.mean(0)) / x.std(0)
        logits = case.logits(beta1, beta0, tau, gate_x)
        normal = scipy.stats.norm.logpdf(z[:, None], expert_x @ a.T + b, np.sqrt(nu))
        joint = scipy.special.logsumexp(logits + normal, axis=1)
        return float(np.sum(joint - scipy.special.logsumexp(logits, axis=1)))

    information = curvature(log_likelihood, coordinates)
    unit = np.sqrt(np.diag(information).clip(1.0))
    got = errors_of_mle("lambda", label)
    # A⁺ is the one matrix with A A⁺ A = A, A⁺ A A⁺ = A⁺ and symmetric products
    product = information @ got.covariance
    np.testing.assert_allclose(
        (product @ information) / np.outer(unit, unit),
        information / np.outer(unit, unit),
        atol=2e-4,
    )
    projector = np.eye(9) - got.undetermined.T @ got.undetermined
    errors = np.sqrt(np.diag(got.covariance).clip(1e-12))
    np.testing.assert_allclose(
        (projector - got.covariance @ information) / np.outer(errors, unit), 0.0, atol=2e-4
    )
    np.testing.assert_allclose(got.covariance @ got.undetermined.T, 0.0, atol=1e-9)
    assert len(got.undetermined) == (label != "sigmoid")


def standardised_coordinates(label: str, fit: Fit, x: Floats, y: Floats) -> Any:
    scaling = Scaling.from_data(CASE[label].gate(2), x, y)
    return model(label).layout(1).pack(scaling.standardise(fit.measure))


def test_two_experts_where_one_suffices() -> None:
    """At two equal experts the likelihood is flat along every direction that parts them.

    The residuals have the first five moments of a normal law at every x, so that to second order
    nothing is gained by parting them; the mean of the two lines is that of least squares.
    """
    x = np.repeat(np.linspace(0, 1, 20), 6)
    y = 1 + 2 * x + np.tile(np.sqrt(3) * np.array([-1.0, 0, 0, 0, 0, 1]), 20)
    share = np.exp(0.3) / (1 + np.exp(0.3))
    twice = bm.MixingMeasure(
        [[0.0], [0.0]], [0.3, 0.0], 1.0, [[2.0], [2.0]], [1.0, 1.0], [1.0, 1.0]
    )
    fit = fit_mle(model("softmax"), x, y, starts=twice, n_starts=0)
    assert fit.converged
    got = standard_errors(model("softmax"), fit, x, y)
    free = oracle_of("softmax").theta(got.measure)
    assert np.all(np.isposinf(free))
    assert got.undetermined.shape == (5, 8)
    weights = np.array([share, 1 - share])
    design = np.column_stack([x, np.ones(120)])
    slope = np.sqrt(np.linalg.inv(design.T @ design)[0, 0])
    variance = weights @ got.covariance[2:4, 2:4] @ weights * (y.std() / x.std()) ** 2
    np.testing.assert_allclose(np.sqrt(variance), slope, rtol=1e-8)


@pytest.mark.slow
def test_a_temperature_without_a_choice_is_not_determined() -> None:
    x, y = sample("lambda", "sigmoid")
    got = standard_errors(model("sigmoid", 1), fit_mle(model("sigmoid", 1), x, y), x, y)
    assert np.isposinf(got.measure.temperature)
    assert np.all(np.isfinite(experts(got.measure)))


# --- the variance floor ---


def test_a_variance_on_its_floor_is_held() -> None:
    x, y = sample("lambda", "softmax")
    truth = bm.scenario("lambda").measure
    fit = fit_mle(model("softmax"), x, y, starts=truth, n_starts=0, variance_floor=0.12 / y.var())
    assert fit.status is Status.AT_VARIANCE_FLOOR
    lower = int(np.argmin(fit.measure.variance))
    oracle = oracle_of("softmax")
    theta = oracle.theta(fit.measure)
    at = len(theta) - 2 + lower

    def given_the_variance(t: Floats) -> float:
        return oracle.log_likelihood(np.insert(t, at, theta[at]), x, y)

    got = standard_errors(model("softmax"), fit, x, y)
    errors = oracle.theta(got.measure)
    assert np.isnan(errors[at])
    want = numpy_errors(given_the_variance, np.delete(theta, at))
    np.testing.assert_allclose(np.delete(errors, at), want, rtol=1e-4)
    held = np.eye(8, dtype=bool)[at]
    np.testing.assert_array_equal(np.isnan(got.covariance), held[:, None] | held)


@pytest.mark.slow
def test_a_parameter_on_a_bound_of_its_prior_is_held() -> None:
    x, y = standard_sample("lambda", "softmax")
    prior = dataclasses.replace(model("softmax").prior, slope=dist.Uniform(-0.5, 0.7))
    bounded = bm.moe("softmax", 2, prior)
    fit = fit_map(bounded, x, y, key=1)
    assert fit.status is Status.AT_PRIOR_BOUND
    oracle = oracle_of("softmax")
    theta = oracle.theta(fit.measure)
    at = [2, 3]
    assert sorted(np.round(theta[at], 9)) == [-0.5, 0.7]

    def given_the_slopes(t: Floats) -> float:
        whole = np.insert(t, 2, theta[at])
        return oracle.log_likelihood(whole, x, y) + oracle.log_weak_prior(whole)

    errors = oracle.theta(standard_errors(bounded, fit, x, y).measure)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(errors)), at)
    want = numpy_errors(given_the_slopes, np.delete(theta, at))
    np.testing.assert_allclose(np.delete(errors, at), want, rtol=1e-4)


@pytest.mark.slow
def test_a_bound_that_moves_with_the_temperature_has_no_errors() -> None:
    x, y = standard_sample("lambda", "dense_to_sparse")
    prior = dataclasses.replace(model("dense_to_sparse").prior, gate_slope=dist.Uniform(-1.0, 1.0))
    bounded = bm.moe("dense_to_sparse", 2, prior)
    fit = fit_map(bounded, x, y, key=1)
    assert fit.status is Status.AT_PRIOR_BOUND
    with pytest.raises(ValueError, match=r"moves with the temperature.*sample the posterior"):
        standard_errors(bounded, fit, x, y)


# --- sandwich ---


def test_the_sandwich_is_that_of_numpys_scores() -> None:
    """Over more than one chunk of observations, the last one padded."""
    x, y = sample("weak", "softmax")
    fit, oracle = mle("weak", "softmax"), oracle_of("softmax")
    theta = oracle.theta(fit.measure)
    step = 1e-5 * np.maximum(np.abs(theta), 0.1)
    scores = np.array(
        [
            [
                (
                    oracle.log_likelihood(theta + s, x[[j]], y[[j]])
                    - oracle.log_likelihood(theta - s, x[[j]], y[[j]])
                )
                / (2 * np.max(s))
                for s in np.diag(step)
            ]
            for j in range(len(y))
        ]
    )
    inverse = np.linalg.inv(curvature(lambda t: oracle.log_likelihood(t, x, y), theta))
    want = np.sqrt(np.diag(inverse @ scores.T @ scores @ inverse))
    got = errors_of_mle("weak", "softmax", sandwich=True)
    assert got.sandwich
    np.testing.assert_allclose(oracle.theta(got.measure), want, rtol=1e-4)
    # it is not the plain one
    plain = oracle.theta(errors_of_mle("weak", "softmax").measure)
    assert np.max(np.abs(plain / want - 1)) > 0.05


@pytest.mark.slow
def test_the_sandwich_of_one_expert_is_whites() -> None:
    """HC0, where the variance grows with x; and Var of Σ(e² - ν)/n for ν."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.0, 2.0, size=2000)
    y = 1 + 2 * x + x**2 * rng.normal(size=2000)
    fit = fit_mle(model("softmax", 1), x, y)
    plain, robust = (
        standard_errors(model("softmax", 1), fit, x, y, sandwich=s).measure for s in (False, True)
    )
    design = np.column_stack([x, np.ones(2000)])
    line, *_ = np.linalg.lstsq(design, y, rcond=None)
    residual = y - design @ line
    bread = np.linalg.inv(design.T @ design)
    hc0 = np.sqrt(np.diag(bread @ (design.T * residual**2) @ design @ bread))
    np.testing.assert_allclose(robust.slope[0, 0], hc0[0], rtol=1e-8)
    np.testing.assert_allclose(robust.intercept[0], hc0[1], rtol=1e-8)
    deviation = np.sqrt(np.sum((residual**2 - np.mean(residual**2)) ** 2)) / 2000
    np.testing.assert_allclose(robust.variance[0], deviation, rtol=1e-8)
    # E[u² (1+u)⁴] / (E[u²] E[(1+u)⁴]) for u = x - 1; the ratio of the errors deviates by 4 %
    ratio = robust.slope[0, 0] / plain.slope[0, 0]
    np.testing.assert_allclose(ratio, np.sqrt(11 / 7), atol=0.16)


@pytest.mark.slow
def test_the_sandwich_of_the_right_model_is_the_information() -> None:
    """At n = 100 000 the ratios are 1 within about 4 of their standard deviations.

    Σ s² has a relative deviation of √((κ - 1)/n), κ the kurtosis of the score: up to 15 for a log
    variance, more for an expert whose observations are few.
    """
    x, y = sample("weak", "softmax", 100_000)
    fit = mle("weak", "softmax", 100_000)
    plain, robust = (
        oracle_of("softmax").theta(standard_errors(model("softmax"), fit, x, y, sandwich=s).measure)
        for s in (False, True)
    )
    np.testing.assert_allclose(robust / plain, 1.0, atol=0.03)


# --- coverage ---


@pytest.mark.slow
def test_intervals_of_95_percent_cover() -> None:
    """200 data sets, 8 parameters: a false alarm has a probability of 1e-3 under exact normality.

    Counts that are too low show errors too small; the spread of (estimate - truth)/error, against
    the chi-square law of its sum of squares, shows both.
    """
    scenario, n_sets, alarm = bm.scenario("weak"), 200, 1e-3 / 16
    theta = oracle_of("softmax").theta
    truth = theta(scenario.measure)
    scores = []
    for seed in range(n_sets):
        x, y = scenario.simulate(1000 + seed, 400)
        fit = fit_mle(model("softmax"), x, y, starts=scenario.measure, n_starts=0)
        assert fit.converged
        errors = standard_errors(model("softmax"), fit, x, y)
        scores.append((theta(fit.measure) - truth) / theta(errors.measure))
    z = np.array(scores)
    covered = np.sum(np.abs(z) < scipy.stats.norm.ppf(0.975), axis=0)
    assert np.all(covered >= scipy.stats.binom.ppf(alarm, n_sets, 0.95)), covered
    spread = np.sum(z**2, axis=0)
    low, high = scipy.stats.chi2.ppf([alarm / 2, 1 - alarm / 2], n_sets)
    assert np.all((low < spread) & (spread < high)), spread


# --- what is refused ---


def test_a_fit_that_is_not_a_maximum_is_refused() -> None:
    fit = mle("weak", "softmax")
    for status in Status:
        if status.converged:
            continue
        other = dataclasses.replace(fit, status=status)
        with pytest.raises(ValueError, match=f"{status.name}.*use fit_map"):
            standard_errors(model("softmax"), other, *sample("weak", "softmax"))


def test_separated_experts_are_refused() -> None:
    """The gate's slope runs away: no curvature there could be an error."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(0, 1, 50), rng.uniform(2, 3, 50)])
    y = np.where(x < 1.5, 10 * x, -10 * x) + 0.1 * rng.normal(size=100)
    fit = fit_mle(model("softmax"), x, y, n_starts=4)
    with pytest.raises(ValueError, match="SEPARATED"):
        standard_errors(model("softmax"), fit, x, y)


def test_other_sizes_are_refused() -> None:
    x, y = sample("weak", "softmax")
    fit = mle("weak", "softmax")
    with pytest.raises(ValueError, match="the fit has 2 experts, the model 3"):
        standard_errors(model("softmax", 3), fit, x, y)
    with pytest.raises(ValueError, match="x has 2 covariates, the fit 1"):
        standard_errors(model("softmax"), fit, np.column_stack([x, x**2]), y)
    with pytest.raises(ValueError, match="x has 600 rows but y has 599"):
        standard_errors(model("softmax"), fit, x, y[:-1])


def test_other_data_are_refused() -> None:
    x, y = sample("weak", "softmax")
    fit = mle("weak", "softmax")
    one_changed = y + np.std(y) * (np.arange(600) == 7)
    for other in ((x, 2 * y), (x, one_changed), sample("weak", "softmax", seed=1), (x[1:], y[1:])):
        with pytest.raises(ValueError, match="not the optimum on these data"):
            standard_errors(model("softmax"), fit, *other)
    # the order of the observations does not matter
    again = standard_errors(model("softmax"), fit, x[::-1], y[::-1])
    np.testing.assert_allclose(
        experts(again.measure), experts(errors_of_mle("weak", "softmax").measure), rtol=1e-9
    )


def test_the_map_under_another_prior_is_refused() -> None:
    x, y = standard_sample("weak", "softmax")
    fit = fit_map(model("softmax"), x, y, key=1, n_starts=4)
    with pytest.raises(ValueError, match="not the optimum on these data"):
        standard_errors(model("softmax", prior="compact"), fit, x, y)


@pytest.mark.slow
def test_under_the_flat_prior_the_errors_are_those_of_the_mle() -> None:
    x, y = sample("weak", "dense_to_sparse")
    truth = bm.scenario("weak", "dense_to_sparse").measure
    flat = fit_map(model("dense_to_sparse", prior="flat"), x, y, starts=truth, n_starts=0)
    assert np.isfinite(flat.log_density)
    got = standard_errors(model("dense_to_sparse", prior="flat"), flat, x, y).measure
    assert np.isposinf(got.temperature)
    want = errors_of_mle("weak", "dense_to_sparse").measure
    np.testing.assert_allclose(experts(got), experts(want), rtol=1e-8)


@pytest.mark.slow
def test_one_program_serves_all_sample_sizes() -> None:
    x, y = sample("weak", "softmax")
    start = mle("weak", "softmax").measure
    fit = fit_mle(model("softmax"), x[:450], y[:450], starts=start, n_starts=0)
    compiled: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    standard_errors(model("softmax"), fit, x[:450], y[:450], sandwich=True)
    other = fit_mle(model("softmax"), x[:550], y[:550], starts=start, n_starts=0)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        standard_errors(model("softmax"), other, x[:550], y[:550], sandwich=True)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def test_the_farthest_origin_that_is_taken_leaves_errors_of_slopes_as_they_are() -> None:
    def farthest(values: Floats) -> Floats:
        return values + 0.99 * np.ptp(values) / (1e7 * np.spacing(1.0)) / 2

    x, y = sample("weak", "softmax")
    near, far = (
        standard_errors(model("softmax"), fit_mle(model("softmax"), *data, n_starts=2), *data)
        for data in ((x, y), (farthest(x), farthest(y)))
    )
    np.testing.assert_allclose(far.measure.slope, near.measure.slope, rtol=1e-3)
    np.testing.assert_allclose(far.measure.gate_slope, near.measure.gate_slope, rtol=1e-3)
    with pytest.raises(ValueError, match=r"covariate 0 varies by .*; subtract a constant"):
        fit_mle(model("softmax"), 4 * farthest(x) - 3 * x, y)
