"""Laws of decay: exact laws are named, noise is not dressed up, rates of error by simulation."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from bayesmoe.theory.decay import (
    DECISIVE,
    LAWS,
    DecayComparison,
    _bootstrap_variance,
    _variances,
    compare_decay,
)

SIZES = 10 ** np.linspace(2, 4, 5)
POWER, LOG, CONSTANT = LAWS
CANNOT_TELL = "this range of n cannot tell"


def compare(values: Any, used: Any = None, n: Any = SIZES) -> DecayComparison:
    """`compare_decay`, of all replicates unless ``used`` is given."""
    values = np.asarray(values, dtype=float)
    return compare_decay(n, values, np.ones(values.shape, bool) if used is None else used)


def noisy(rng: np.random.Generator, law: np.ndarray, r: int, sd: float = 0.4) -> np.ndarray:
    return law[:, None] * np.exp(sd * rng.normal(size=(len(law), r)))


# ---------------------------------------------------------------- exact laws


@pytest.mark.parametrize("exponent", [-1.0, -0.5, -0.25, -0.125, -1 / 16])
def test_exact_power_laws_are_power_laws(exponent: float) -> None:
    found = compare(np.repeat(37.0 * SIZES[:, None] ** exponent, 8, axis=1))
    assert found.verdict == POWER
    assert found.weights[0] == pytest.approx(1.0)
    assert found.exponent == pytest.approx(exponent, abs=1e-12)


def test_exact_constants_are_constant_and_exact_one_over_log_n_is_what_it_is() -> None:
    assert compare(np.full((5, 8), 0.1)).verdict == CONSTANT
    found = compare(np.repeat(0.3 / np.log(SIZES)[:, None], 8, axis=1))
    assert found.verdict == LOG
    assert np.sum(found.weights) == pytest.approx(1.0)


def test_an_exact_law_that_is_none_of_the_three_is_a_misfit() -> None:
    plateau = SIZES**-0.5 + 0.05
    assert compare(noisy(np.random.default_rng(0), SIZES**-0.5, 8)).misfit < 4
    assert compare(noisy(np.random.default_rng(0), plateau, 40, sd=0.02)).misfit > 10
    growing = compare(noisy(np.random.default_rng(0), SIZES**0.5, 8))
    assert growing.verdict == CONSTANT
    assert growing.misfit > 10
    assert growing.law == "none of these"
    assert compare(noisy(np.random.default_rng(0), SIZES**-2.0, 8)).law == "none of these"
    known = compare(noisy(np.random.default_rng(0), SIZES**-0.5, 8))
    assert known.law == known.verdict == POWER
    assert compare(np.ones((2, 8)), n=SIZES[:2]).law == "unknown"


# ---------------------------------------------------------------- the criterion, written out again


def test_weights_are_akaike_weights_of_least_squares_fits() -> None:
    values = noisy(np.random.default_rng(1), SIZES**-0.3, 9)
    found = compare(values)
    medians = np.median(np.log(values), axis=1)
    variances = _variances(list(np.sort(np.log(values), axis=1)))

    def chi_square(parameters: np.ndarray, curve: Any) -> float:
        return float(np.sum((medians - curve(parameters)) ** 2 / variances))

    log_n = np.log(SIZES)
    fits = []
    for curve, start, k in (
        (lambda c: c[0] + c[1] * log_n, [0.0, -0.5], 2),
        (lambda c: c[0] - np.log(log_n), [0.0], 1),
        (lambda c: c[0] + 0 * log_n, [0.0], 1),
    ):
        best = scipy.optimize.minimize(chi_square, start, (curve,), tol=1e-12)
        fits.append(best.fun + 2 * k)
        if k == 2:
            assert found.exponent == pytest.approx(best.x[1], abs=1e-6)
            assert found.misfit == pytest.approx(best.fun / 3, rel=1e-8)
    expected = np.exp(-(np.array(fits) - min(fits)) / 2)
    np.testing.assert_allclose(found.weights, expected / expected.sum(), rtol=1e-6)


@pytest.mark.parametrize("r", [5, 9, 21])
def test_the_variance_is_that_of_the_bootstrap_median(r: int) -> None:
    rng = np.random.default_rng(r)
    sample = np.sort(rng.normal(size=r))
    drawn = np.median(rng.choice(sample, (200_000, r)), axis=1)
    assert _bootstrap_variance(sample) == pytest.approx(np.var(drawn), rel=0.02)
    # inflated, it is on average near the variance of medians of fresh samples
    fresh = rng.normal(size=(4000, r))
    mean = np.mean([_variances([np.sort(row)])[0] for row in fresh])
    assert 1.0 < mean / np.var(np.median(fresh, axis=1)) < 3.5


# ---------------------------------------------------------------- rates of error


NOISE = {
    "normal": lambda rng, shape: 0.4 * rng.normal(size=shape),
    "skewed": lambda rng, shape: 0.36 * np.log(np.abs(rng.normal(size=shape))),
    "contaminated": lambda rng, shape: (
        0.4 * rng.normal(size=shape) + 4 * (rng.uniform(size=shape) < 0.15)
    ),
    "heteroscedastic": lambda rng, shape: (
        np.linspace(0.2, 0.8, shape[0])[:, None] * rng.normal(size=shape)
    ),
}
TRUTHS = {
    "n^-1/2": (POWER, lambda n: n**-0.5),
    "n^-1/8": (POWER, lambda n: n**-0.125),
    "1/log n": (LOG, lambda n: 1 / np.log(n)),
    "constant": (CONSTANT, lambda n: 0.0 * n + 0.2),
}


def verdicts(truth: str, noise: str, n: np.ndarray, r: int) -> Counter[str]:
    """The verdicts of 200 simulated studies."""
    rng, law = np.random.default_rng(5), TRUTHS[truth][1](n)
    return Counter(
        compare(law[:, None] * np.exp(NOISE[noise](rng, (len(n), r))), n=n).verdict
        for _ in range(200)
    )


QUICK = ("normal", "contaminated")


@pytest.mark.parametrize(
    "noise",
    [noise if noise in QUICK else pytest.param(noise, marks=pytest.mark.slow) for noise in NOISE],
)
@pytest.mark.parametrize("truth", TRUTHS)
def test_a_wrong_law_is_hardly_ever_named(truth: str, noise: str) -> None:
    for n, r in ((np.array([300, 1000, 3000, 10_000]), 8), (SIZES, 20)):
        found = verdicts(truth, noise, n, r)
        right = found[TRUTHS[truth][0]] + found[CANNOT_TELL]
        assert right >= 0.98 * 200, found


def test_the_right_law_is_named_where_the_range_can_tell() -> None:
    assert verdicts("n^-1/2", "normal", SIZES, 8)[POWER] >= 190
    assert verdicts("constant", "normal", 10 ** np.linspace(3, 5, 8), 40)[CONSTANT] >= 160
    # and where it cannot, it is not: 1/log n beside n^-1/8
    assert verdicts("1/log n", "normal", SIZES, 8)[CANNOT_TELL] >= 196


# ---------------------------------------------------------------- input


def test_fits_out_of_use_and_values_without_logarithm_are_counted_but_not_used() -> None:
    values = noisy(np.random.default_rng(2), SIZES**-0.5, 8)
    used = np.ones((5, 8), bool)
    used[0, 5:], used[3, 6:] = False, False
    found = compare(np.where(used, values, 1e9), used)
    assert (found.n_used, found.n_total) == (35, 40)
    for bad in (0.0, -1.0, np.nan, np.inf):
        other = compare(np.where(used, values, bad))
        assert np.array_equal(other.weights, found.weights)
        assert other.n_used == 35
    order = np.random.default_rng(0).permuted(np.tile(np.arange(8), (5, 1)), axis=1)
    moved = compare(np.take_along_axis(values, order, 1), np.take_along_axis(used, order, 1))
    np.testing.assert_allclose(moved.weights, found.weights, rtol=1e-12)


def test_too_few_sizes_or_replicates_are_unknown() -> None:
    values = noisy(np.random.default_rng(3), SIZES**-0.5, 8)
    used = np.ones((5, 8), bool)
    used[2, 3:] = False
    found = compare(values, used)
    assert found.verdict == "unknown"
    assert np.all(np.isnan([*found.weights, found.exponent, found.misfit]))
    used[2] = False  # a size without fits in use is left out
    assert compare(values, used).verdict == POWER
    used[1:4] = False
    assert compare(values, used).verdict == "unknown"


def test_the_verdict_needs_the_decisive_weight() -> None:
    rng, seen = np.random.default_rng(4), set()
    for _ in range(60):
        found = compare(noisy(rng, SIZES**-0.3, 8))
        named = found.verdict != CANNOT_TELL
        assert named == (np.max(found.weights) >= DECISIVE)
        seen.add(named)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("n", "values", "message"),
    [
        (SIZES[:4], np.ones((5, 8)), r"n must have shape \(s,\) and values \(s, r\)"),
        ([1, 10, 100, 1000, 10_000], np.ones((5, 8)), r"must be at least 2 .*got \[1\.0, 10"),
        ([10, 10, 100, 1000, 10_000], np.ones((5, 8)), "must be distinct"),
    ],
)
def test_errors_name_the_value_and_the_rule(n: Any, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(values, n=n)
