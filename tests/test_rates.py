"""Slopes and their intervals: exact laws, least squares, coverage by simulation."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats

from bayesmoe.core.gate import NO_RATE, Rate, power_rate
from bayesmoe.theory.rates import Slope, fit_slope, local_slopes, verdict

SIZES = np.array([300, 1000, 3000, 10_000])
HALF = power_rate(1, 2)


def fit(values: Any, used: Any = None, n: Any = None, key: Any = 0, **options: Any) -> Slope:
    """`fit_slope`, of all replicates unless ``used`` is given."""
    values = np.asarray(values, dtype=float)
    n = SIZES[: len(values)] if n is None else n
    used = np.ones(values.shape, bool) if used is None else used
    return fit_slope(n, values, used, key=key, **options)


def noisy(rng: np.random.Generator, law: Any, r: int, sd: float = 0.3) -> np.ndarray:
    return np.asarray(law)[:, None] * np.exp(sd * rng.normal(size=(len(law), r)))


@pytest.mark.parametrize("exponent", [-1.0, -0.5, -0.125, 0.0, 0.75])
def test_an_exact_power_law_is_recovered_exactly(exponent: float) -> None:
    n = np.array([50, 123, 4567, 1e6])
    law = 37.0 * n**exponent
    found = fit(np.repeat(law[:, None], 7, axis=1), n=n)
    assert found[:3] == pytest.approx((exponent,) * 3, abs=1e-13)
    assert verdict(found, Rate(exponent, "")) == "consistent"
    # odd replicates, half of the others above and half below: the median is the law
    around = law[:, None] * np.array([1e-3, 0.2, 1.0, 1.1, 1e6])
    assert fit(around, n=n).slope == pytest.approx(exponent, abs=1e-13)


def test_the_slope_is_that_of_least_squares_on_log_medians(rng: np.random.Generator) -> None:
    values = noisy(rng, SIZES**-0.4, 8, sd=1.0)
    expected = scipy.stats.linregress(np.log(SIZES), np.log(np.median(values, axis=1))).slope
    assert fit(values).slope == pytest.approx(expected, rel=1e-12)


def test_least_squares_with_one_expert_converges_at_the_square_root(
    rng: np.random.Generator,
) -> None:
    errors = np.zeros((len(SIZES), 200))
    for i, n in enumerate(SIZES):
        for j in range(errors.shape[1]):
            x = rng.uniform(size=n)
            y = 15 - 20 * x + 0.3 * rng.normal(size=n)
            errors[i, j] = abs(np.polyfit(x, y, 1)[0] + 20)
    found = fit(errors)
    assert found.high - found.low < 0.2
    assert verdict(found, HALF) == "consistent"
    assert verdict(found, power_rate(1, 4)) == "faster"
    assert verdict(found, power_rate(1, 1)) == "slower"


def test_a_constant_sequence_has_slope_zero_inside_the_interval(rng: np.random.Generator) -> None:
    exact = fit(np.full((4, 6), 0.1))
    assert exact[:3] == (0.0, 0.0, 0.0)
    found = fit(noisy(rng, np.full(4, 0.4), 12))
    assert found.low < 0 < found.high
    assert found.high - found.low < 0.3
    assert verdict(found, NO_RATE) == "consistent"
    assert verdict(found, HALF) == "slower"


def test_one_over_log_n_is_not_called_the_square_root(rng: np.random.Generator) -> None:
    found = fit(noisy(rng, 1 / np.log(SIZES), 12, sd=0.1))
    assert -0.25 < found.low < found.high < -0.05
    assert verdict(found, HALF) == "slower"


def test_a_far_local_maximum_does_not_ruin_the_slope(rng: np.random.Generator) -> None:
    values = noisy(rng, SIZES**-0.5, 12)
    values[-1, :3] = 1e5
    assert verdict(fit(values), HALF) == "consistent"


def contaminated(rng: np.random.Generator, shape: Any) -> np.ndarray:
    """Log losses of which 15 % are far local maxima."""
    return 0.4 * rng.normal(size=shape) + 4 * (rng.uniform(size=shape) < 0.15)


LAWS = {
    "normal": lambda rng, shape: 0.5 * rng.normal(size=shape),
    "skewed": lambda rng, shape: np.log(np.abs(rng.normal(size=shape))),
    "contaminated": contaminated,
    "heteroscedastic": lambda rng, shape: (
        np.linspace(0.3, 2, shape[0])[:, None] * rng.normal(size=shape)
    ),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("r", [6, 20])
def test_the_interval_covers_in_simulated_studies(law: str, r: int) -> None:
    rng = np.random.default_rng(5)
    covered, widths = 0, []
    for study in range(200):
        logs = -0.5 * np.log(SIZES)[:, None] + LAWS[law](rng, (len(SIZES), r))
        found = fit(np.exp(logs), key=study, n_bootstrap=400)
        covered += found.low <= -0.5 <= found.high
        widths.append(found.high - found.low)
    assert covered >= 0.93 * 200, f"covered {covered} of 200"
    assert np.median(widths) < 2.5


def location_mle(y: np.ndarray) -> np.ndarray:
    """θ >= 0 of ½N(-θ, 1) + ½N(θ, 1) for y ``(r, n)``: Newton's method; zero unless mean y² > 1."""
    square, fourth = np.mean(y**2, axis=-1), np.mean(y**4, axis=-1)
    theta = 1.05 * np.sqrt(np.maximum(3 * (square - 1) / fourth, 0.0))
    for _ in range(12):
        shares = np.tanh(theta[:, None] * y)
        gradient = np.mean(y * shares, axis=-1) - theta
        curvature = np.mean(y**2 * (1 - shares**2), axis=-1) - 1
        theta = np.where(square > 1, np.maximum(theta - gradient / curvature, theta / 2), 0.0)
    assert np.max(np.abs(gradient[square > 1]), initial=0.0) < 1e-10
    return theta


@pytest.mark.slow
def test_two_components_for_one_are_learned_at_the_fourth_root() -> None:
    """200 studies of a location mixture fitted to one normal law: θ is of order n^-1/4."""
    rng, sizes = np.random.default_rng(0), np.array([100, 300, 1000, 3000])
    covered, slopes = 0, []
    for study in range(200):
        theta = np.stack([location_mle(rng.normal(size=(20, n))) for n in sizes])
        found = fit(theta, n=sizes, key=study)  # estimates of zero have no logarithm
        assert found.n_used == np.sum(theta > 0) < theta.size
        covered += found.low <= -0.25 <= found.high
        slopes.append(found.slope)
    assert covered >= 0.93 * 200, f"covered {covered} of 200"
    assert np.mean(slopes) == pytest.approx(-0.25, abs=4 * np.std(slopes) / np.sqrt(200) + 0.01)


def test_a_lower_level_gives_a_shorter_interval_inside(rng: np.random.Generator) -> None:
    values = noisy(rng, SIZES**-0.5, 12)
    wide, short = fit(values), fit(values, level=0.5)
    assert wide.low < short.low < short.slope < short.high < wide.high


def test_the_order_of_replicates_does_not_matter_and_the_key_decides(
    rng: np.random.Generator,
) -> None:
    values, used = noisy(rng, SIZES**-0.5, 9), rng.uniform(size=(4, 9)) < 0.8
    order = rng.permuted(np.tile(np.arange(9), (4, 1)), axis=1)
    base = fit(values, used)
    assert fit(np.take_along_axis(values, order, 1), np.take_along_axis(used, order, 1)) == base
    assert fit(values, used, key=jax.random.key(0)) == base
    other = fit(values, used, key=1)
    assert other.slope == base.slope
    assert other != base


def test_sample_sizes_may_come_in_any_order(rng: np.random.Generator) -> None:
    values = noisy(rng, SIZES**-0.5, 9)
    found, back = fit(values), fit(values[::-1], n=SIZES[::-1])
    assert back.slope == pytest.approx(found.slope, rel=1e-12)
    assert back[1:3] == pytest.approx(found[1:3], abs=0.02)


def test_fits_out_of_use_are_counted_and_never_used(rng: np.random.Generator) -> None:
    values = noisy(rng, SIZES**-0.5, 8)
    used = np.ones((4, 8), bool)
    used[0, 5:], used[3, 6:] = False, False
    spoiled = np.where(used, values, 1e9)
    found = fit(spoiled, used)
    assert found == fit(np.where(used, values, np.nan), used)
    assert (found.n_used, found.n_total) == (27, 32)
    medians = [np.median(row[keep]) for row, keep in zip(values, used, strict=True)]
    expected = scipy.stats.linregress(np.log(SIZES), np.log(medians)).slope
    assert found.slope == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_values_without_logarithm_are_counted_but_not_used(
    rng: np.random.Generator, bad: float
) -> None:
    values = noisy(rng, SIZES**-0.5, 8)
    used = np.ones((4, 8), bool)
    used[1, 2] = False
    assert fit(np.where(used, values, bad)) == fit(values, used)
    assert fit(np.where(used, values, bad)).n_used == 31


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_known", [0, 1])
def test_fewer_than_two_sample_sizes_have_no_slope(n_known: int) -> None:
    used = np.zeros((4, 6), bool)
    used[:n_known] = True
    found = fit(np.ones((4, 6)), used)
    assert np.all(np.isnan(found[:3]))
    assert (found.n_used, found.n_total) == (6 * n_known, 24)
    assert verdict(found, HALF) == "unknown"


def test_a_size_without_fits_in_use_is_left_out(rng: np.random.Generator) -> None:
    values, used = noisy(rng, SIZES**-0.5, 8), np.ones((4, 8), bool)
    used[1] = False
    found, short = fit(values, used), fit(values[[0, 2, 3]], n=SIZES[[0, 2, 3]])
    assert found[:4] == short[:4]
    assert (found.n_total, short.n_total) == (32, 24)


def test_two_replicates_at_a_size_have_a_slope_without_interval(rng: np.random.Generator) -> None:
    values, used = noisy(rng, SIZES**-0.5, 8), np.ones((4, 8), bool)
    used[1, 2:] = False
    found = fit(values, used)
    assert found.slope == pytest.approx(-0.5, abs=0.2)
    assert np.isnan(found.low)
    assert np.isnan(found.high)
    assert verdict(found, HALF) == "unknown"
    used[1, 2] = True
    assert verdict(fit(values, used), HALF) == "consistent"


def test_local_slopes_are_those_between_neighbours(rng: np.random.Generator) -> None:
    n = np.array([1000, 100, 10_000])  # in any order
    law = np.where(n < 1000, n**-0.5, 1000**-0.5 * (n / 1000) ** -0.125)
    values = noisy(rng, law, 21, sd=0.01)
    used = np.ones(values.shape, bool)
    found = local_slopes(n, values, used, key=1)
    assert [centre for centre, _ in found] == pytest.approx([np.sqrt(1e5), np.sqrt(1e7)])
    medians = np.log10(np.median(values, axis=1))
    expected = [medians[0] - medians[1], medians[2] - medians[0]]
    assert [slope.slope for _, slope in found] == pytest.approx(expected, rel=1e-12)
    assert [verdict(slope, HALF) for _, slope in found] == ["consistent", "slower"]
    assert verdict(found[1][1], power_rate(1, 8)) == "consistent"
    with pytest.raises(ValueError, match="two sample sizes or more"):
        local_slopes(n[:1], values[:1], used[:1], key=1)


def test_the_verdict_compares_the_interval_with_the_exponent() -> None:
    for low, high, expected in (
        (-0.6, -0.4, "consistent"),
        (-0.5, -0.4, "consistent"),
        (-0.6, -0.5, "consistent"),
        (-0.7, -0.51, "faster"),
        (-0.49, 0.1, "slower"),
        (np.nan, np.nan, "unknown"),
    ):
        assert verdict(Slope((low + high) / 2, low, high, 24, 24), HALF) == expected


def test_what_is_flat_is_consistent_with_a_constant() -> None:
    for low, high, expected in (
        (-0.02, -0.01, "consistent"),
        (0.01, 0.02, "consistent"),
        (-0.5, -0.05, "consistent"),
        (-0.5, -0.11, "faster"),
        (0.11, 0.5, "slower"),
    ):
        assert verdict(Slope((low + high) / 2, low, high, 24, 24), NO_RATE) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": SIZES[:3]}, r"values \(s, r\), got \(3,\) and \(4, 6\); one row"),
        ({"n": SIZES[:, None]}, r"n must have shape \(s,\)"),
        ({"values": np.ones(4)}, r"got \(4,\) and \(4,\); one row"),
        ({"values": np.ones((4, 6, 2))}, r"got \(4,\) and \(4, 6, 2\)"),
        ({"used": np.ones((4, 5), bool)}, r"shape of values, \(4, 6\); got bool of shape \(4, 5\)"),
        ({"used": np.ones((4, 6))}, r"used must be boolean .* got float64"),
        ({"n": [100, 0, 200, 300]}, r"positive and finite, got \[100\.0, 0\.0"),
        ({"n": [100, np.inf, 200, 300]}, r"positive and finite, got"),
        ({"n": [100, 200, 100, 300]}, r"must be distinct, got .*one row"),
        ({"level": 95}, r"level must lie between 0 and 1, got 95; use 0\.95"),
        ({"level": 0.0}, r"level must lie between 0 and 1"),
        ({"n_bootstrap": 0}, r"n_bootstrap must be a whole number of at least 1, got 0"),
        ({"key": -1}, r"key must be a JAX key or a non-negative int"),
    ],
)
def test_errors_name_the_value_and_the_mend(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "n": SIZES,
        "values": np.ones((4, 6)),
        "used": np.ones((4, 6), bool),
        "key": 0,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        fit_slope(**arguments)
