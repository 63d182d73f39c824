"""Data that no one should fit: every fit ends with a status that an independent search confirms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
from conftest import CASE
from oracles import Oracle

import bayesmoe as bm

Floats = np.ndarray


def switch(rng: np.random.Generator, n: int = 200) -> tuple[Floats, Floats]:
    """Two lines that change places around x = 0.4."""
    x = rng.uniform(0, 1, n)
    first = rng.uniform(size=n) < 1 / (1 + np.exp(20 * (x - 0.4)))
    return x, np.where(first, 15 * x - 2, -20 * x + 10) + 0.4 * rng.standard_normal(n)


def separated(rng: np.random.Generator) -> tuple[Floats, Floats]:
    x = np.concatenate([rng.uniform(-2, -1, 60), rng.uniform(1, 2, 60)])
    return x, np.where(x < 0, 3 * x, -2 * x + 1) + 0.1 * rng.standard_normal(120)


def y_outlier(rng: np.random.Generator) -> tuple[Floats, Floats]:
    x, y = switch(rng)
    y[7] = 1e6 * y.std()
    return x, y


def x_outlier(rng: np.random.Generator) -> tuple[Floats, Floats]:
    x, y = switch(rng)
    x[7] = 1e6 * x.std()
    return x, y


def six_rows(rng: np.random.Generator) -> tuple[Floats, Floats]:
    return np.repeat(rng.uniform(size=6), 4), np.repeat(rng.standard_normal(6), 4)


def repeated(levels: int) -> Callable[[np.random.Generator], tuple[Floats, Floats]]:
    def data(rng: np.random.Generator) -> tuple[Floats, Floats]:
        x = np.repeat(np.arange(float(levels)), 120 // levels)
        return x, x**2 + rng.standard_normal(len(x))

    return data


def rescaled(
    x_scale: float, x_shift: float, y_scale: float, y_shift: float
) -> Callable[[np.random.Generator], tuple[Floats, Floats]]:
    def data(rng: np.random.Generator) -> tuple[Floats, Floats]:
        x, y = switch(rng)
        return x_scale * x + x_shift, y_scale * y + y_shift

    return data


def exact_lines(rng: np.random.Generator) -> tuple[Floats, Floats]:
    x = rng.standard_normal(100)
    return x, np.where(rng.uniform(size=100) < 0.5, 2 * x + 1, -x)


def rounded(rng: np.random.Generator) -> tuple[Floats, Floats]:
    x = rng.standard_normal(150)
    return x, np.round(x)


def heavy_tails(rng: np.random.Generator) -> tuple[Floats, Floats]:
    x = rng.standard_cauchy(150)
    return x, x + rng.standard_cauchy(150)


DATA: dict[str, Callable[[np.random.Generator], tuple[Floats, Floats]]] = {
    "separated": separated,
    "an outlier in y": y_outlier,
    "an outlier in x": x_outlier,
    "six distinct rows": six_rows,
    "two distinct x": repeated(2),
    "three distinct x": repeated(3),
    "tiny x": rescaled(1e-9, 0.0, 1.0, 0.0),
    "huge x": rescaled(1e9, 0.0, 1.0, 0.0),
    "shifted": rescaled(1.0, 1e6, 1.0, -1e6),
    "tiny y": rescaled(1.0, 0.0, 1e-12, 0.0),
    "as many rows as parameters": lambda rng: switch(rng, 8),
    "exact lines": exact_lines,
    "rounded": rounded,
    "heavy tails": heavy_tails,
}


QUICK = ("two distinct x", "huge x", "shifted", "exact lines")


def search(oracle: Oracle, x: Floats, y: Floats, fit: bm.Fit) -> float:
    """By how much SciPy can raise the NumPy log-likelihood from an estimate, within Θ."""
    start = oracle.to_unconstrained(oracle.theta(fit.measure))
    unit = np.maximum(np.abs(start), 1e-3)
    floor = np.log(1e-4 * y.var())
    bounds = [(None, None)] * (len(start) - oracle.k)
    bounds += [(floor, None)] * oracle.k

    def negative(v: Floats) -> float:
        theta, _ = oracle.from_unconstrained(v * unit)
        return -oracle.log_likelihood(theta, x[:, None], y)

    scaled = [(None if low is None else low / size, None) for (low, _), size in
              zip(bounds, unit, strict=True)]  # fmt: skip
    here = negative(start / unit)
    with np.errstate(over="ignore"):
        found = [
            scipy.optimize.minimize(negative, start / unit, method=method, bounds=scaled).fun
            for method in ("L-BFGS-B", "Powell")
        ]
    return here - min(found)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DATA],
)
def test_the_status_is_true(name: str) -> None:
    x, y = DATA[name](np.random.default_rng(3))
    model, oracle = bm.moe("softmax", 2), Oracle(CASE["softmax"], 2, 1)
    mle, map_ = bm.fit_mle(model, x, y), bm.fit_map(model, x, y)
    for fit in (mle, map_):
        theta = oracle.theta(fit.measure)
        assert np.isfinite(theta).all()
        expected = oracle.log_likelihood(theta, x[:, None], y)
        assert fit.log_likelihood == pytest.approx(expected, rel=1e-8)
        if fit.converged:
            assert fit.gradient_norm <= 1e-8
            assert fit.least_curvature >= -1e-8
    assert map_.converged  # the prior is proper
    if mle.converged:
        assert search(oracle, x, y, mle) < 1e-4
    if mle.status is bm.Status.SEPARATED:  # a steeper gate is no worse, and a flatter one is
        gate = mle.measure.gate_slope, mle.measure.gate_intercept
        values = [
            float(np.sum(model.log_likelihood(mle.measure.replace(
                gate_slope=c * gate[0], gate_intercept=c * gate[1]), x, y)))
            for c in (0.5, 1.0, 2.0)
        ]  # fmt: skip
        assert values[0] <= values[1] + 1e-9
        assert values[1] <= values[2] + 1e-6


@pytest.mark.slow
def test_the_cases_reach_the_statuses_that_need_care() -> None:
    """A test of statuses proves nothing about those that never come up."""
    model, seen = bm.moe("softmax", 2), set()
    for data in DATA.values():
        seen |= set(bm.fit_mle(model, *data(np.random.default_rng(3))).starts.status)
    assert seen >= {
        bm.Status.CONVERGED,
        bm.Status.AT_VARIANCE_FLOOR,
        bm.Status.SEPARATED,
        bm.Status.MAX_ITERATIONS,
    }


@pytest.mark.parametrize("k", [2, 3])
def test_fewer_rows_than_parameters_are_refused(k: int) -> None:
    x, y = switch(np.random.default_rng(0), k + 2)
    with pytest.raises(ValueError, match=f"{k + 2} rows cannot determine {5 * k - 2} parameters"):
        bm.fit_mle(bm.moe("softmax", k), x, y)
