"""EM against a plain NumPy and SciPy implementation, the MLE and the statuses it must earn."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from conftest import CASE, ONE_PER_GATE, GateCase
from oracles import Floats, Oracle
from test_core_own_gate import GATE as OWN_GATE
from test_core_own_gate import explicit

import bayesmoe as bm
from bayesmoe.inference import em, problem
from bayesmoe.inference.em import EMFit, fit_em
from bayesmoe.inference.outcome import Status
from bayesmoe.inference.point import fit_mle
from bayesmoe.inference.starts import near_truth

N = 150


def model(label: str, k: int) -> bm.MoE:
    return bm.moe(CASE[label].gate(k), k)


@functools.cache
def sample(label: str, n: int = 300) -> tuple[Floats, Floats]:
    x, y = bm.scenario("lambda", CASE[label].gate(3)).simulate(0, n)
    return np.asarray(x), np.asarray(y)


def batch(measures: list[bm.MixingMeasure]) -> bm.MixingMeasure:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *measures)


def mixture_data(case: GateCase, k: int, d: int) -> tuple[Floats, Floats]:
    """Not standardised: x of mean 0.5 and y of any mean and scale."""
    rng = np.random.default_rng(4)
    truth = case.measure(0, k, d)
    x = rng.normal(0.5, 1.0, size=(N, d))
    chosen = np.array([rng.choice(k, p=p) for p in case.probabilities(truth, x)])
    laws = case.components(truth, x)
    return x, rng.normal(laws.mean(), laws.std())[np.arange(N), chosen]


# --- every iteration ---


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.label, marks=() if case.label == "softmax" else pytest.mark.slow)
        for case in (*ONE_PER_GATE, CASE["relu"])
    ],
)
def test_no_iteration_lowers_the_likelihood(case: GateCase) -> None:
    x, y = mixture_data(case, 3, 2)
    oracle = Oracle(case, 3, 2)
    for seed in range(1, 5):
        start = case.measure(seed)
        options: dict[str, Any] = {"starts": start, "n_starts": 0, "tolerance": 1e-15}
        fit = fit_em(model(case.label, 3), x, y, max_iterations=40, **options)
        # the oracle's formulas overflow at the slopes that come later
        second = fit_em(model(case.label, 3), x, y, max_iterations=2, **options).measure
        values = [oracle.log_likelihood(oracle.theta(m), x, y) for m in (start, second)]
        np.testing.assert_allclose(fit.path[[0, 2]], values, rtol=1e-11)
        assert len(fit.path) == fit.n_iterations + 1
        assert np.diff(fit.path).min() >= -1e-12 * abs(fit.path[-1])
        assert fit.path[-1] - fit.path[0] > 1.0


@pytest.mark.slow
def test_nor_under_a_gate_of_ones_own() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal([2.0, -1.0], [0.5, 3.0], size=(60, 2)), rng.normal(10.0, 4.0, size=60)
    start = bm.MixingMeasure(
        [[2.0, -3.0], [1.5, 2.0], [0.0, 0.0]],
        [0.4, -0.3, 0.0],
        1.0,
        rng.normal(size=(3, 2)),
        10 + rng.normal(size=3),
        [4.0, 9.0, 20.0],
    )
    own = bm.moe(OWN_GATE, 3)
    fit = fit_em(own, x, y, starts=start, n_starts=0, max_iterations=40, tolerance=1e-15)
    ends = [explicit(measure, x, y).sum() for measure in (start, fit.measure)]
    np.testing.assert_allclose(fit.path[[0, -1]], ends, rtol=1e-11)
    assert np.diff(fit.path).min() >= -1e-12 * abs(fit.path[-1])
    assert fit.path[-1] - fit.path[0] > 1.0


@pytest.mark.slow
def test_a_top_k_gate_keeps_its_sets_of_experts() -> None:
    case = CASE["top_k_sparse"]
    x, y = mixture_data(case, 3, 2)
    start = case.measure(1)
    fit = fit_em(model(case.label, 3), x, y, starts=start, n_starts=0, max_iterations=40)
    before, after = (case.probabilities(m, x) > 0 for m in (start, fit.measure))
    assert len(np.unique(before, axis=0)) > 1
    assert float(jnp.max(jnp.abs(fit.measure.gate_slope - start.gate_slope))) > 0.01
    np.testing.assert_array_equal(after, before)


def plain_step(
    case: GateCase, start: bm.MixingMeasure, x: Floats, y: Floats
) -> tuple[bm.MixingMeasure, Floats]:
    """One EM iteration in NumPy and SciPy, and the responsibilities."""
    k, d = start.n_experts, start.n_covariates
    joint = case.probabilities(start, x) * case.components(start, x).pdf(y[:, None])
    r = joint / joint.sum(1, keepdims=True)
    design = np.column_stack([x, np.ones(len(y))])
    lines, variances = [], []
    for weight in r.T:
        root = np.sqrt(weight)
        line, *_ = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)
        lines.append(line)
        variances.append(np.average((y - design @ line) ** 2, weights=weight))

    def blocks(theta: Any) -> tuple[Any, Any, Any]:
        zero = np.zeros((1, d))
        slope = np.concatenate([theta[: (k - 1) * d].reshape(k - 1, d), zero])
        intercept = np.append(theta[(k - 1) * d : (k - 1) * (d + 1)], 0.0)
        return slope, intercept, np.exp(theta[-1]) if case.temperature else 1.0

    def objective(theta: Any) -> Any:
        z = case.logits(*blocks(theta), x)
        peak = z.real.max(1, keepdims=True)
        log_share = z - peak - np.log(np.exp(z - peak).sum(1, keepdims=True))
        return -(r * log_share).sum() / len(y)

    def gradient(theta: Floats) -> Floats:
        return np.array([objective(theta + 1e-30j * e).imag for e in np.eye(len(theta))]) / 1e-30

    beta1, beta0, tau = (np.asarray(block) for block in start.gate)
    theta = np.concatenate([beta1[:-1].ravel(), beta0[:-1], [np.log(tau)] * case.temperature])
    near = scipy.optimize.minimize(objective, theta, jac=gradient, method="BFGS").x
    exact = scipy.optimize.root(gradient, near, tol=1e-14).x
    assert np.abs(gradient(exact)).max() < 1e-13
    line = np.array(lines)
    return bm.MixingMeasure(*blocks(exact), line[:, :-1], line[:, -1], variances), r


@pytest.mark.parametrize(
    ("label", "k", "d"),
    [("softmax", 3, 2), pytest.param("sigmoid", 2, 1, marks=pytest.mark.slow)],
)
def test_one_iteration_is_that_of_a_plain_implementation(label: str, k: int, d: int) -> None:
    case = CASE[label]
    x, y = mixture_data(case, k, d)
    start = case.measure(2, k, d)
    want, r = plain_step(case, start, x, y)
    fit = fit_em(model(label, k), x, y, starts=start, n_starts=0, max_iterations=1)
    assert fit.n_iterations == 1
    assert fit.status is Status.MAX_ITERATIONS
    assert r.mean(0).min() > 0.05  # every expert has its part
    for name, value in vars(want).items():
        np.testing.assert_allclose(getattr(fit.measure, name), value, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["softmax", "dense_to_sparse"])
def test_one_expert_is_least_squares_after_one_iteration(label: str) -> None:
    x, y = mixture_data(CASE["softmax"], 3, 2)
    fit = fit_em(model(label, 1), x, y, n_starts=2)
    design = np.column_stack([x, np.ones(N)])
    line, error, *_ = np.linalg.lstsq(design, y, rcond=None)
    want = scipy.stats.norm.logpdf(y, design @ line, np.sqrt(error[0] / N)).sum()
    assert fit.status is Status.CONVERGED
    np.testing.assert_allclose(fit.path[1:], want, rtol=1e-12)
    np.testing.assert_allclose(fit.measure.slope[0], line[:-1], rtol=1e-10)
    np.testing.assert_allclose(fit.measure.intercept[0], line[-1], rtol=1e-10)
    np.testing.assert_allclose(fit.measure.variance[0], error[0] / N, rtol=1e-10)


# --- where it stops ---


@pytest.mark.slow
@pytest.mark.parametrize("label", ["softmax", "sigmoid"])
def test_in_the_limit_it_is_the_mle(label: str) -> None:
    x, y = sample(label)
    truth = bm.scenario("lambda", CASE[label].gate(3)).measure
    mle = fit_mle(model(label, 2), x, y, starts=truth, n_starts=0)
    fit = fit_em(model(label, 2), x, y, starts=truth, n_starts=0, tolerance=1e-14)
    assert mle.status is Status.CONVERGED
    np.testing.assert_allclose(fit.log_likelihood, mle.log_likelihood, rtol=1e-8)
    assert fit.path[-1] - fit.path[0] > 1.0
    # and where iterations do not end too early, it has the certificate of a maximum
    fit = fit_em(
        model(label, 2), x, y, starts=truth, n_starts=0, tolerance=1e-17, max_iterations=60
    )
    assert fit.status is Status.CONVERGED
    assert fit.gradient_norm <= 1e-8
    for name, value in vars(mle.measure).items():
        np.testing.assert_allclose(getattr(fit.measure, name), value, rtol=1e-6, atol=1e-12)


def over_specified(which: int, tolerance: float, max_iterations: int = 2000) -> EMFit:
    """Three experts for two, from one of the starts of the published simulations."""
    x, y = sample("softmax")
    truth = bm.scenario("lambda", "softmax").measure
    start = near_truth(jax.random.key(1), truth, 3, len(y), 4)[which]
    rule: dict[str, Any] = {"tolerance": tolerance, "max_iterations": max_iterations}
    return fit_em(model("softmax", 3), x, y, starts=start, n_starts=0, **rule)


@pytest.fixture(scope="module")
def early() -> EMFit:
    return over_specified(0, 1e-6)


@pytest.mark.slow
def test_the_published_rule_stops_short_and_says_so(early: EMFit) -> None:
    late = over_specified(0, 1e-12)
    assert early.status is Status.STOPPED_EARLY
    assert not early.converged
    assert early.gradient_norm > 1e-4
    assert late.gradient_norm < 1e-5
    assert late.log_likelihood > early.log_likelihood + 5.0
    np.testing.assert_allclose(early.path, late.path[: len(early.path)], rtol=1e-13)


@pytest.mark.slow
def test_the_rule_is_a_relative_change(early: EMFit) -> None:
    relative = np.abs(np.diff(early.path) / early.path[:-1])
    assert early.n_iterations == len(relative)
    assert relative[-1] < 1e-6
    assert relative[:-1].min() >= 1e-6


@pytest.mark.slow
def test_the_path_is_whole_although_computed_in_pieces() -> None:
    whole = over_specified(2, 1e-6)
    assert whole.status is Status.STOPPED_EARLY
    assert whole.n_iterations > 2 * em._SEGMENT
    assert len(whole.path) == whole.n_iterations + 1
    assert np.diff(whole.path).min() > 0
    for n in (1, em._SEGMENT - 1, em._SEGMENT, em._SEGMENT + 1):
        part = over_specified(2, 1e-6, n)
        assert part.status is Status.MAX_ITERATIONS
        assert part.n_iterations == n
        np.testing.assert_array_equal(part.path, whole.path[: n + 1])


# --- the edges of Θ and of the data ---


@pytest.mark.slow
@pytest.mark.parametrize("label", ["softmax", "sigmoid"])
def test_no_variance_falls_below_its_floor(label: str) -> None:
    x, y = sample(label)
    truth = bm.scenario("lambda", CASE[label].gate(3)).measure
    least = np.asarray(truth.variance).mean() / y.var()  # between the two experts'
    options: dict[str, Any] = {"starts": truth, "n_starts": 0, "variance_floor": float(least)}
    mle = fit_mle(model(label, 2), x, y, **options)
    fit = fit_em(model(label, 2), x, y, tolerance=1e-17, max_iterations=60, **options)
    assert mle.status is fit.status is Status.AT_VARIANCE_FLOOR
    np.testing.assert_allclose(fit.measure.variance.min(), least * y.var(), rtol=1e-12)
    assert fit.measure.variance.max() > 1.05 * least * y.var()
    np.testing.assert_allclose(fit.log_likelihood, mle.log_likelihood, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["softmax", "top_k_sparse"])
def test_an_expert_without_responsibility_is_left_as_it_is(label: str) -> None:
    """Its density at every observation is exp(-10⁸) or less: zero in any arithmetic."""
    x, y = sample(label)
    two = bm.scenario("lambda", CASE[label].gate(3)).measure
    gone = jax.tree.map(lambda leaf: leaf[jnp.array([0, 0, 1])] if leaf.ndim else leaf, two)
    gone = gone.replace(intercept=gone.intercept.at[0].set(1e5), slope=gone.slope.at[0].set(3.0))
    options: dict[str, Any] = {"n_starts": 0, "tolerance": 1e-17, "max_iterations": 60}
    fit = fit_em(model(label, 3), x, y, starts=gone, **options)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(fit.measure))
    np.testing.assert_allclose(fit.measure.intercept[0], 1e5, rtol=1e-10)
    np.testing.assert_allclose(fit.measure.slope[0, 0], 3.0, rtol=1e-6)
    assert np.diff(fit.path).min() >= -1e-12 * abs(fit.path[-1])
    np.testing.assert_allclose(fit.measure.variance[0], gone.variance[0], rtol=1e-10)
    assert fit.status is Status.EMPTY_EXPERT
    fewer = fit_mle(model(label, 2), x, y, starts=two, n_starts=0)
    np.testing.assert_allclose(fit.log_likelihood, fewer.log_likelihood, rtol=1e-10)


@pytest.mark.slow
def test_rows_that_do_not_vary_leave_a_line_in_part_as_it_is() -> None:
    """An expert that holds one place of x alone has no slope to estimate there."""
    rng = np.random.default_rng(3)
    x = np.repeat([0.0, 1.0, 2.0], [40, 20, 20])
    y = np.where(x == 0.0, 50.0, 2.0 * x) + 0.1 * rng.normal(size=80)
    start = bm.MixingMeasure(
        [[0.0], [0.0]], [0.0, 0.0], 1.0, [[0.0], [2.0]], [50.0, 0.0], [0.02, 0.02]
    )
    fit = fit_em(model("softmax", 2), x, y, starts=start, n_starts=0, max_iterations=30)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(fit.measure))
    assert np.diff(fit.path).min() >= -1e-12 * abs(fit.path[-1])
    np.testing.assert_allclose(fit.measure.intercept[0], y[:40].mean(), rtol=1e-10)
    held = np.polyfit(x[40:], y[40:], 1)
    np.testing.assert_allclose([fit.measure.slope[1, 0], fit.measure.intercept[1]], held)
    assert fit.status is Status.SEPARATED


@pytest.mark.slow
def test_a_small_gradient_far_from_the_maximum_is_no_convergence() -> None:
    """One x at 10⁶: in units in which x has a variance of one, every other row is at one place."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=300)
    y = np.where(x < 0.5, 10 * x, 20 - 10 * x) + 0.1 * rng.normal(size=300)
    x[0] = 1e6
    fit = fit_em(model("softmax", 2), x, y, n_starts=2, max_iterations=50)
    assert fit.gradient_norm <= 1e-8
    assert fit.path[-1] - fit.path[-2] > 1e-6
    assert fit.status is Status.MAX_ITERATIONS


@pytest.mark.slow
def test_a_start_outside_all_numbers_is_no_estimate() -> None:
    x, y = sample("softmax")
    truth = bm.scenario("lambda", "softmax").measure
    outside = truth.replace(intercept=jnp.full(2, 1e200))
    fit = fit_em(model("softmax", 2), x, y, starts=batch([outside, truth]), n_starts=0)
    assert fit.starts.status[0] is Status.NON_FINITE
    assert fit.starts.n_iterations[0] == 0
    assert fit.starts.objective[1] == fit.log_likelihood == fit.path[-1]
    alone = fit_em(model("softmax", 2), x, y, starts=truth, n_starts=0)
    np.testing.assert_array_equal(fit.path, alone.path)


# --- units ---


def moved(measure: bm.MixingMeasure) -> bm.MixingMeasure:
    """The same law of 7 - 3y given x' = 100 + 0.02x under the softmax gate, written out."""
    slope = -3.0 * np.asarray(measure.slope) / 0.02
    gate_slope = np.asarray(measure.gate_slope) / 0.02
    return bm.MixingMeasure(
        gate_slope,
        np.asarray(measure.gate_intercept) - gate_slope[:, 0] * 100.0,
        1.0,
        slope,
        7.0 - 3.0 * np.asarray(measure.intercept) - slope[:, 0] * 100.0,
        9.0 * np.asarray(measure.variance),
    )


@pytest.mark.slow
def test_iterates_follow_the_units_of_the_data() -> None:
    x, y = sample("softmax")
    start = bm.scenario("lambda", "softmax").measure
    options: dict[str, Any] = {"n_starts": 0, "max_iterations": 4, "tolerance": 1e-16}
    one = fit_em(model("softmax", 2), x, y, starts=start, **options)
    two = fit_em(
        model("softmax", 2), 100.0 + 0.02 * x, 7.0 - 3.0 * y, starts=moved(start), **options
    )
    for name, value in vars(moved(one.measure)).items():
        np.testing.assert_allclose(getattr(two.measure, name), value, rtol=1e-7, err_msg=name)
    np.testing.assert_allclose(two.path, one.path - 300 * np.log(3.0), rtol=1e-10)


@pytest.mark.slow
def test_agnostic_starts_do_too() -> None:
    """Where y keeps its unit the rule, too, sees the same path."""
    x, y = sample("softmax")
    one = fit_em(model("softmax", 2), x, y, key=3, n_starts=2)
    two = fit_em(model("softmax", 2), 5.0 * x - 2.0, y + 11.0, key=3, n_starts=2)
    np.testing.assert_array_equal(one.starts.n_iterations, two.starts.n_iterations)
    np.testing.assert_allclose(one.starts.objective, two.starts.objective, rtol=1e-10)
    np.testing.assert_allclose(two.measure.slope, one.measure.slope / 5.0, rtol=1e-6)
    np.testing.assert_allclose(two.measure.variance, one.measure.variance, rtol=1e-6)
    np.testing.assert_allclose(one.log_likelihood, one.starts.objective.max(), rtol=1e-12)


# --- arguments ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": -1e-6}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"tolerance": float("inf")}, "tolerance"),
        ({"tolerance": "1e-6"}, "tolerance"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"max_iterations": 1.5}, "max_iterations"),
        ({"variance_floor": 0.0}, "variance_floor"),
        ({"n_starts": 0}, "n_starts"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_computed(
    arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(problem, "starting_points")
    monkeypatch.delattr(problem, "make_data")
    x, y = sample("softmax")
    with pytest.raises(ValueError, match=message):
        fit_em(model("softmax", 2), x, y, **arguments)


def test_data_that_cannot_be_used_are_refused() -> None:
    x, y = sample("softmax")
    with pytest.raises(ValueError, match="y is constant"):
        fit_em(model("softmax", 2), x, 0.0 * y)
    with pytest.raises(ValueError, match="cannot determine"):
        fit_em(model("softmax", 2), x[:5], y[:5])
