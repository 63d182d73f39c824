"""One active expert: line searches against brute force, and the MLE against all segmentations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import CASE, GateCase
from hypothesis import given
from hypothesis import strategies as st

import bayesmoe as bm
from bayesmoe.inference.outcome import Status
from bayesmoe.inference.sharp_gate import Start, _moments, _move_border, best_step, sharpen

FLOOR = 1e-4  # of variances, as a multiple of Var(y)
LEAST = 10  # rows of a segment: fewer make narrow peaks of the likelihood, which starts may miss
NUMBERS = st.integers(-4, 4).map(float)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, st.floats(-3, 3)), min_size=1, max_size=8))
def test_no_step_is_better_than_the_best(rows: list[tuple[float, float, float]]) -> None:
    margin, direction, gain = np.array(rows).T
    margin = margin + 0.1  # no row is tied at zero

    def value(c: float) -> float:
        return float(gain[c * direction > margin].sum())

    at = margin[direction != 0] / direction[direction != 0]
    tried = [*(at + 1e-6), *(at - 1e-6), 0.0]
    step = best_step(margin, direction, gain)
    assert value(step) == pytest.approx(max(map(value, tried)), abs=1e-6)
    if value(0.0) >= max(map(value, tried)) - 1e-12:
        assert step == 0.0


def segment(x: np.ndarray, y: np.ndarray, floor: float) -> float:
    """The largest log-likelihood of one line for some rows."""
    design = np.column_stack([x, np.ones(len(y))])
    error = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    variance = max(float(np.mean(error**2)), floor)
    return -0.5 * float(np.sum(error**2 / variance + np.log(2 * np.pi * variance)))


def best_segmentation(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """The largest log-likelihood of k lines on neighbouring intervals, by trying all of them."""
    order, floor, n = np.argsort(x), FLOOR * y.var(), len(y)
    x, y = x[order], y[order]
    spans = {
        (i, j): segment(x[i:j], y[i:j], floor)
        for i, j in itertools.combinations(range(n + 1), 2)
        if j - i >= LEAST
    }
    cuts = ((0, *inner, n) for inner in itertools.combinations(range(1, n), k - 1))
    return max(sum(spans.get(pair, -np.inf) for pair in itertools.pairwise(ends)) for ends in cuts)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("name", "n", "k"),
    [
        ("lambda", 120, 2),
        ("weak", 60, 2),
        ("three", 60, 3),
    ],
)
def test_the_mle_is_the_best_segmentation(name: str, n: int, k: int, seed: int) -> None:
    """In one covariate the experts of the largest logits own neighbouring intervals, in any order.

    No segmentation with ten rows or more each is better; with fewer rows one may be, and is not
    looked for: a line through few rows has a variance near zero, and says nothing.
    """
    case = GateCase("top_1", "top_k_sparse", {"top_k": 1})
    x, y = map(np.asarray, bm.scenario(name, case.gate()).simulate(seed, n))
    fit = bm.fit_mle(bm.moe(case.gate(), k), x, y, key=seed)
    assert fit.log_likelihood >= best_segmentation(x[:, 0], y, k) - 1e-6


@pytest.mark.slow
def test_the_mle_of_many_rows_is_where_the_truth_leads() -> None:
    case = GateCase("top_1", "top_k_sparse", {"top_k": 1})
    scenario = bm.scenario("lambda", case.gate())
    model = bm.moe(case.gate(), 2)
    x, y = scenario.simulate(3, 10_000)
    fit = bm.fit_mle(model, x, y, key=1)
    near = bm.fit_mle(model, x, y, n_starts=0, starts=scenario.measure)
    assert fit.status is Status.CONVERGED
    np.testing.assert_allclose(fit.log_likelihood, near.log_likelihood, rtol=1e-10)
    likeliest = float(np.log(case.density(scenario.measure, np.asarray(x), np.asarray(y))).sum())
    assert 0 < fit.log_likelihood - likeliest < 30  # 7 parameters, one a threshold


def test_a_border_among_many_rows_goes_where_the_best_fit_is() -> None:
    """Among the 64 rows on either side; all of them are tried here."""
    rng = np.random.default_rng(2)
    x = np.sort(rng.uniform(size=600))
    y = np.where(x < x[299] + 1e-9, 2 * x, 1 - x) + 0.4 * rng.normal(size=600)
    design = np.column_stack([x, np.ones(600)])
    gate = np.array([[-3.0, 3.0 * (x[329] + x[330]) / 2], [0.0, 0.0]])  # the first owns 330 rows
    assert _move_border(gate, design, _moments(design, y))
    tried = {m: segment(x[:m], y[:m], 1e-4) + segment(x[m:], y[m:], 1e-4) for m in range(266, 395)}
    assert int((gate[0] @ design.T > 0).sum()) == max(tried, key=lambda m: tried[m])
    assert not _move_border(gate, design, _moments(design, y))


def test_a_sharpened_start_is_never_worse() -> None:
    """Also in two covariates; and its value is the log-likelihood that NumPy finds there."""
    case = GateCase("top_1", "top_k_sparse", {"top_k": 1})
    x, y = map(np.asarray, bm.scenario("plane", case.gate()).simulate(1, 200))
    design = np.column_stack([x, np.ones(200)])
    for seed in range(10):
        m = CASE["softmax"].measure(seed, k=3, d=2)
        blocks = (np.column_stack([m.gate_slope, m.gate_intercept]),
                  np.column_stack([m.slope, m.intercept]))  # fmt: skip
        start = Start(*blocks, np.asarray(m.variance))
        value = sharpen(start, design, design, y)
        moved = bm.MixingMeasure(
            start.gate[:, :-1], start.gate[:, -1], 1.0, start.lines[:, :-1], start.lines[:, -1],
            start.variance,
        )  # fmt: skip
        constant = 0.5 * len(y) * np.log(2 * np.pi)
        np.testing.assert_allclose(value - constant, np.log(case.density(moved, x, y)).sum())
        with np.errstate(divide="ignore"):
            assert value - constant > np.log(case.density(m, x, y)).sum()
        assert not start.gate[-1].any()
        for i, column in itertools.product(range(2), range(3)):  # no single parameter betters it
            for step in (-0.3, -0.01, 0.01, 0.3):
                gate = start.gate.copy()
                gate[i, column] += step
                other = moved.replace(gate_slope=gate[:, :-1], gate_intercept=gate[:, -1])
                with np.errstate(divide="ignore"):
                    worse = np.log(case.density(other, x, y)).sum()
                assert worse <= value - constant + 1e-4
