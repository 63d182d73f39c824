"""Predictions against SciPy: normal laws, hand-written mixtures, averages over draws."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import arviz_base
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from conftest import CASE, ONE_PER_GATE, GateCase, one_by_one
from hypothesis import given
from hypothesis import strategies as st
from xarray import DataTree

import bayesmoe as bm
from bayesmoe.core.density import GaussianMixture
from bayesmoe.core.measure import FIELDS
from bayesmoe.diagnostics import prediction
from bayesmoe.diagnostics.posterior import DIMS, GROUPS, describe_model

Floats = np.ndarray
K, D, S = 3, 2, 5
LEVELS = np.array([1e-6, 0.05, 0.3, 0.5, 0.77, 0.95, 1 - 1e-6])


@pytest.fixture(params=one_by_one(ONE_PER_GATE, (CASE["softmax"], CASE["top_k_sparse"])))
def gate_case(request: pytest.FixtureRequest) -> GateCase:
    """Every gate once: a smooth one, one with probabilities of zero, and others."""
    return request.param


def points(n: int = 9) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(4)
    return rng.normal(size=(n, D)), 2 * rng.normal(size=n)


def predictive(case: GateCase, measure: bm.MixingMeasure) -> bm.Predictive:
    return bm.Predictive(bm.moe(case.gate(K), measure.n_experts), measure)


@functools.cache
def singles(label: str) -> tuple[bm.MixingMeasure, ...]:
    return tuple(CASE[label].measure(seed, K, D) for seed in range(S))


def draws(label: str) -> bm.MixingMeasure:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves)[None], *singles(label))


def average(label: str, quantity: Callable[[bm.MixingMeasure], Floats]) -> Floats:
    return np.mean([quantity(measure) for measure in singles(label)], axis=0)


# --- one expert: a normal law


@pytest.fixture(scope="module")
def line() -> tuple[bm.Predictive, Floats, Any]:
    measure = bm.MixingMeasure([[0.0]], [0.0], 1.0, [[3.0]], [-2.0], [0.25])
    x = np.linspace(-4, 4, 7)
    return bm.Predictive(bm.moe("softmax", 1), measure), x, scipy.stats.norm(3 * x - 2, 0.5)


def test_one_expert_is_a_normal_law(line: tuple[bm.Predictive, Floats, Any]) -> None:
    law, x, normal = line
    y = np.linspace(-9, 9, 7)
    np.testing.assert_allclose(law.mean(x), normal.mean(), rtol=1e-14)
    np.testing.assert_allclose(law.standard_deviation(x), 0.5, rtol=1e-14)
    np.testing.assert_allclose(law.cdf(x, y), normal.cdf(y), rtol=1e-12)
    np.testing.assert_allclose(law.log_density(x, y), normal.logpdf(y), rtol=1e-12)
    np.testing.assert_allclose(law.density(x, y), normal.pdf(y), rtol=1e-12)
    np.testing.assert_array_equal(law.gate_probabilities(x), np.ones((7, 1)))
    np.testing.assert_array_equal(law.responsibilities(x, y), np.ones((7, 1)))


def test_quantiles_of_a_normal_law_far_into_both_tails(
    line: tuple[bm.Predictive, Floats, Any],
) -> None:
    law, x, _ = line
    tails = np.array([1e-300, 1e-100, 1e-16, 1e-9, 1e-3, 0.2, 0.5])
    lower = scipy.stats.norm(0, 0.5).ppf(tails) + (3 * x - 2)[:, None]
    np.testing.assert_allclose(law.quantiles(x, tails), lower, rtol=1e-12)
    tails = np.array([2**-52, 1e-9, 1e-3, 0.2])  # of which 1 - tail is a number
    upper = scipy.stats.norm(0, 0.5).isf(1 - (1 - tails)) + (3 * x - 2)[:, None]
    np.testing.assert_allclose(law.quantiles(x, 1 - tails), upper, rtol=1e-12)
    both = law.interval(x, 0.8)
    np.testing.assert_allclose(both, scipy.stats.norm(3 * x[:, None] - 2, 0.5).ppf([0.1, 0.9]))


# --- one measure: a mixture


def test_one_measure_is_its_conditional_density(gate_case: GateCase) -> None:
    measure, (x, y) = gate_case.measure(1, K, D), points()
    law = predictive(gate_case, measure)
    shares, experts = gate_case.probabilities(measure, x), gate_case.components(measure, x)
    mean = (shares * experts.mean()).sum(1)
    square = (shares * (experts.mean() ** 2 + experts.var())).sum(1)
    density = gate_case.density(measure, x, y)
    np.testing.assert_allclose(law.mean(x), mean, rtol=1e-10)
    np.testing.assert_allclose(law.standard_deviation(x) ** 2, square - mean**2, rtol=1e-10)
    np.testing.assert_allclose(law.cdf(x, y), gate_case.cdf(measure, x, y), rtol=1e-10)
    np.testing.assert_allclose(law.density(x, y), density, rtol=1e-10)
    np.testing.assert_allclose(law.log_density(x, y), np.log(density), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(law.gate_probabilities(x), shares, rtol=1e-10)
    joint = shares * experts.pdf(y[:, None])
    np.testing.assert_allclose(law.responsibilities(x, y), joint / density[:, None], rtol=1e-10)


def cdfs(case: GateCase, measure: bm.MixingMeasure, x: Floats) -> tuple[Floats, Floats, Floats]:
    """Shares, means and scales of the normal laws at each row, each (n, k)."""
    laws = case.components(measure, x)
    return case.probabilities(measure, x), laws.mean(), laws.std()


def quantiles(laws: list[tuple[Floats, Floats, Floats]]) -> list[list[float]]:
    """Those of the average of some mixtures, row by row."""
    shares, means, scales = (np.concatenate(parts, axis=1) for parts in zip(*laws, strict=True))

    def excess(y: float, row: int, level: float) -> float:
        below = scipy.special.ndtr((y - means[row]) / scales[row])
        return float(shares[row] @ below) / len(laws) - level

    return [
        [
            scipy.optimize.brentq(excess, -100, 100, args=(row, level), xtol=1e-13, rtol=1e-14)
            for level in LEVELS
        ]
        for row in range(len(means))
    ]


def test_quantiles_invert_the_cdf(gate_case: GateCase) -> None:
    measure, (x, _) = gate_case.measure(1, K, D), points()
    expected = quantiles([cdfs(gate_case, measure, x)])
    found = predictive(gate_case, measure).quantiles(x, LEVELS)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


# --- draws: the average of their mixtures


def test_draws_are_averaged(gate_case: GateCase) -> None:
    label, (x, y) = gate_case.label, points()
    law = predictive(gate_case, draws(label))
    one = functools.partial(predictive, gate_case)
    mean = average(label, lambda m: one(m).mean(x))
    square = average(label, lambda m: one(m).standard_deviation(x) ** 2 + one(m).mean(x) ** 2)
    density = average(label, lambda m: one(m).density(x, y))
    joint = average(label, lambda m: one(m).responsibilities(x, y) * one(m).density(x, y)[:, None])
    np.testing.assert_allclose(law.mean(x), mean, rtol=1e-12)
    np.testing.assert_allclose(law.standard_deviation(x) ** 2, square - mean**2, rtol=1e-12)
    np.testing.assert_allclose(law.cdf(x, y), average(label, lambda m: one(m).cdf(x, y)))
    np.testing.assert_allclose(law.density(x, y), density, rtol=1e-12)
    np.testing.assert_allclose(
        law.gate_probabilities(x), average(label, lambda m: one(m).gate_probabilities(x))
    )
    np.testing.assert_allclose(law.responsibilities(x, y), joint / density[:, None], rtol=1e-12)


def test_quantiles_of_draws_are_those_of_the_average(gate_case: GateCase) -> None:
    label, (x, _) = gate_case.label, points(2)
    expected = quantiles([cdfs(gate_case, measure, x) for measure in singles(label)])
    found = predictive(gate_case, draws(label)).quantiles(x, LEVELS)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def tree_of(model: bm.MoE, batch: bm.MixingMeasure) -> DataTree:
    """As sampling would return it, without what predictions have no need of."""
    empty = {"placeholder": np.zeros(batch.batch_shape)}
    groups: dict[str, Any] = dict.fromkeys(GROUPS, empty)
    groups["posterior"] = {field: np.asarray(getattr(batch, field)) for field in FIELDS}
    dims = {name: part for name, part in DIMS.items() if name in FIELDS}
    return arviz_base.from_dict(groups, dims=dims, attrs={"/": describe_model(model)})


def test_a_tree_and_its_measures_predict_the_same() -> None:
    batch, (x, _), model = draws("softmax"), points(), bm.moe("softmax", K)
    tree = tree_of(model, batch)
    one, other = bm.Predictive(model, tree), bm.Predictive(model, batch)
    np.testing.assert_array_equal(one.quantiles(x, 0.3), other.quantiles(x, 0.3))
    with pytest.raises(ValueError, match="the tree's gate is 'softmax', the model's 'dense_to_sp"):
        bm.Predictive(bm.moe("dense_to_sparse", K), tree)


# --- quantiles that are hard to find


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[Floats, Floats, Floats]:
    """Weights, means and scales of five components, over many orders of magnitude."""
    logs = st.lists(st.floats(-40, 0), min_size=5, max_size=5)
    weights = np.exp(draw(logs)) * np.array([1, 1, 1, 1, draw(st.sampled_from([0.0, 1.0]))])
    means = np.array(draw(st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=5)))
    scales = np.exp(draw(st.lists(st.floats(-12, 12), min_size=5, max_size=5)))
    return weights / weights.sum(), means, scales


@jax.jit
def icdf(weights: Floats, means: Floats, scales: Floats, level: Floats) -> jax.Array:
    return GaussianMixture(jnp.log(weights), means, scales).icdf(level)


@given(mixtures(), st.one_of(st.floats(1e-12, 1 - 1e-12), st.floats(1e-200, 1e-12)))
def test_any_mixture_is_inverted(law: tuple[Floats, Floats, Floats], level: float) -> None:
    """The cdf passes the level within a relative 1e-10 of the quantile found."""
    weights, means, scales = law
    found = float(icdf(*(jnp.asarray(part) for part in law), jnp.asarray(level)))
    width = 1e-10 * abs(found) + 1e-9 * scales[weights > 0].min()

    def below(y: float) -> float:
        return float(weights @ scipy.stats.norm.cdf(y, means, scales))

    def above(y: float) -> float:
        return float(weights @ scipy.stats.norm.sf(y, means, scales))

    slack = 1e-12  # of the weights' own rounding
    if level <= 0.5:
        assert below(found - width) <= level * (1 + slack)
        assert below(found + width) >= level * (1 - slack)
    else:
        assert above(found - width) >= (1 - level) * (1 - slack)
        assert above(found + width) <= (1 - level) * (1 + slack)


def test_modes_far_apart() -> None:
    """Bisection alone would need the width of the bracket, Newton alone would leave it."""
    measure = bm.MixingMeasure(
        np.zeros((2, 1)), [np.log(0.3 / 0.7), 0.0], 1.0, np.zeros((2, 1)), [-1e8, 1e8], [1.0, 4.0]
    )
    law = bm.Predictive(bm.moe("softmax", 2), measure)
    found = law.quantiles(np.zeros(2), [0.15, 0.65])
    expected = [-1e8, 1e8]
    np.testing.assert_allclose(found, [expected, expected], rtol=1e-14)
    tail = law.quantiles(np.zeros(1), [1e-4, 1 - 1e-4])[0] - expected
    normal = scipy.stats.norm.ppf(1e-4 / 0.3), -2 * scipy.stats.norm.ppf(1e-4 / 0.7)
    np.testing.assert_allclose(tail, normal, atol=1e-7)
    middle = law.quantiles(np.zeros(1), 0.3)
    assert law.cdf(np.zeros(1), middle[0]) == pytest.approx(0.3, rel=1e-14)


def test_quantiles_do_not_fall_as_levels_rise() -> None:
    law, (x, _) = predictive(CASE["softmax"], draws("softmax")), points()
    levels = [0.4]
    for _ in range(30):
        levels.append(float(np.nextafter(levels[-1], 1)))
    found = law.quantiles(x, [*levels, 0.01, 0.99])
    assert np.all(np.diff(found[:, :31], axis=1) >= 0)
    assert np.all(found[:, 31] < found[:, 0])
    shuffled = np.random.default_rng(0).permutation(31)
    again = law.quantiles(x, np.array(levels)[shuffled])
    np.testing.assert_array_equal(again, found[:, shuffled])


# --- samples


def test_samples_follow_the_mixture(gate_case: GateCase) -> None:
    """A test of 3000 independent values that errs once in a thousand, and of two neighbours."""
    label, (x, _) = gate_case.label, points()
    law = predictive(gate_case, draws(label))
    found = law.sample(x, 3000, key=1)
    assert found.shape == (len(x), 3000)

    def rank(row: int) -> Floats:
        repeated = np.repeat(x[[row]], 3000, axis=0)
        return average(label, lambda m: gate_case.cdf(m, repeated, found[row]))

    for row in (0, 5):
        assert scipy.stats.kstest(rank(row), "uniform").pvalue > 1e-3


def test_a_sample_is_a_data_set_of_one_draw() -> None:
    far = bm.MixingMeasure(np.zeros((2, 1, 1)), np.zeros((2, 1)), np.ones(2), np.zeros((2, 1, 1)),
                           [[-50.0], [50.0]], np.ones((2, 1)))  # fmt: skip
    law = bm.Predictive(bm.moe("softmax", 1), far)
    found = law.sample(np.zeros(700), 40, key=3)
    signs = np.sign(found)
    np.testing.assert_array_equal(signs, np.tile(signs[:1], (700, 1)))
    assert {-1.0, 1.0} == set(signs[0])
    residuals = (found - 50 * signs).ravel()
    assert len(np.unique(residuals)) == residuals.size  # no chunk repeats the noise of another
    assert scipy.stats.kstest(residuals, "norm").pvalue > 1e-3


def test_a_key_settles_the_samples() -> None:
    law, (x, _) = predictive(CASE["softmax"], draws("softmax")), points()
    np.testing.assert_array_equal(law.sample(x, 3, key=5), law.sample(x, 3, key=jax.random.key(5)))
    assert not np.any(law.sample(x, 3, key=5) == law.sample(x, 3, key=6))


# --- rows


def test_rows_are_predicted_apart(gate_case: GateCase) -> None:
    law, (x, y) = predictive(gate_case, draws(gate_case.label)), points(1100)
    some = [0, 511, 512, 1023, 1024, 1099]
    for whole, part in (
        (law.mean(x), law.mean(x[some])),
        (law.log_density(x, y), law.log_density(x[some], y[some])),
        (law.quantiles(x, 0.9), law.quantiles(x[some], 0.9)),
        (law.responsibilities(x, y), law.responsibilities(x[some], y[some])),
    ):
        assert len(whole) == 1100
        np.testing.assert_allclose(whole[some], part, rtol=1e-14)


def test_memory_is_bounded_and_no_program_is_compiled_for_a_new_number_of_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes, evaluate = [], prediction._evaluate

    def record(quantity: Any, gate: Any, measures: bm.MixingMeasure, x: Any, value: Any) -> Any:
        sizes.append(len(x) * measures.slope.size)
        return evaluate(quantity, gate, measures, x, value)

    batch = jax.tree.map(lambda leaf: jnp.tile(leaf, (800, 1, *[1] * (leaf.ndim - 2))),
                         draws("softmax"))  # fmt: skip
    law, (x, _) = predictive(CASE["softmax"], batch), points(200)
    law.mean(x)
    compiled = evaluate._cache_size()
    monkeypatch.setattr(prediction, "_evaluate", record)
    for n in (1, 63, 64, 65, 200):
        law.mean(x[:n])
    assert max(sizes) <= D * prediction._NUMBERS
    assert max(sizes) > D * prediction._NUMBERS / 4
    assert evaluate._cache_size() == compiled


# --- mistakes


def of(estimate: Any, k: int = K) -> bm.Predictive:
    return bm.Predictive(bm.moe("softmax", k), estimate)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda law, x, y: of(draws("softmax"), 2), "the estimate has 3 experts, the model 2"),
        (lambda law, x, y: of(draws("softmax")[:0]), "holds no draws"),
        (lambda law, x, y: of(7), "must be a MixingMeasure or a DataTree"),
        (lambda law, x, y: law.mean(x[:, :1]), "x has 1 covariates, but the model was fitted to 2"),
        (lambda law, x, y: law.mean(x[:0]), "x is empty"),
        (lambda law, x, y: law.cdf(x, y[:3]), "x has 9 rows but y has 3"),
        (lambda law, x, y: law.quantiles(x, [0.5, 1.0]), "between 0 and 1; got 1.0"),
        (lambda law, x, y: law.quantiles(x, math.nan), "between 0 and 1; got nan"),
        (lambda law, x, y: law.quantiles(x, []), "a number or a list of numbers"),
        (lambda law, x, y: law.quantiles(x, "half"), "must be numbers between 0 and 1, got 'half'"),
        (lambda law, x, y: law.interval(x, 90), "level must lie between 0 and 1; got 90"),
        (lambda law, x, y: law.sample(x, 0), "n_samples must be a whole number of at least 1"),
        (lambda law, x, y: law.sample(x, key=-1), "key must be a JAX key"),
        (lambda law, x, y: law.standard_deviation(1e200 * x), "row 0 is no finite number"),
        (lambda law, x, y: law.responsibilities(x, 1e200 + y), "row 0 is no finite number"),
    ],
)
def test_mistakes(call: Callable[..., Any], message: str) -> None:
    x, y = points()
    with pytest.raises(ValueError, match=message):
        call(of(draws("softmax")), x, y)


@pytest.mark.parametrize("field", ["variance", "temperature"])
def test_measures_of_no_law_are_refused(field: str) -> None:
    measure = draws("softmax")
    wrong = measure.replace(**{field: -getattr(measure, field)})
    with pytest.raises(ValueError, match=f"the estimate must have a positive {field}, got -"):
        bm.Predictive(bm.moe("softmax", K), wrong)


def test_a_mean_that_overflows_is_refused() -> None:
    steep = bm.MixingMeasure([[0.0]], [0.0], 1.0, [[1e10]], [0.0], [1.0])
    with pytest.raises(ValueError, match="row 1 is no finite number"):
        of(steep, 1).mean([1.0, 1e300])


@pytest.mark.slow
def test_a_density_too_small_for_its_logarithm_is_zero() -> None:
    law, (x, _) = of(draws("softmax")), points(2)
    np.testing.assert_array_equal(law.log_density(x, [1e200, -1e200]), -np.inf)
    np.testing.assert_array_equal(law.density(x, [1e200, -1e200]), 0.0)
