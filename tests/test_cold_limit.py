"""Temperatures that run to zero, against softmax gates and steps fitted without the package."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from conftest import CASE
from oracles import Floats, Oracle

import bayesmoe as bm
from bayesmoe.data.table import shipped_data_sets
from bayesmoe.inference import newton
from bayesmoe.inference.cold_limit import LEAST_TEMPERATURE, bounded, can_run_cold
from bayesmoe.inference.outcome import GateState, Status, judge
from bayesmoe.inference.point import Fit
from bayesmoe.inference.problem import Problem

MODEL = bm.moe("activation_dense_to_sparse", 2)
CO2, ETHANOL = ("co2", 1, 2), ("ethanol", 1, 0)


@functools.cache
def data(source: tuple[str, int, int] | int) -> tuple[Floats, Floats]:
    """Columns of a shipped data set, or a seed's draw."""
    if isinstance(source, int):
        x, y = bm.scenario("lambda", MODEL.gate).simulate(source, 60)
        return np.asarray(x)[:, 0], np.asarray(y)
    path = shipped_data_sets()[source[0]]
    rows = np.genfromtxt(path, delimiter=",", skip_header=1, usecols=source[1:])
    return rows[:, 0], rows[:, 1]


@functools.cache
def fitted(source: tuple[str, int, int] | int) -> Fit:
    return bm.fit_mle(MODEL, *data(source), n_starts=4)


def likelihood(fit: Fit, x: Floats, y: Floats) -> float:
    """In NumPy."""
    oracle = Oracle(CASE["sigmoid"], 2, 1)
    return float(oracle.log_likelihood(oracle.theta(fit.measure), x[:, None], y))


@pytest.mark.slow
def test_a_softmax_limit_is_told() -> None:
    x, y = data(CO2)
    fit, oracle = fitted(CO2), Oracle(CASE["softmax"], 2, 1)
    scale = float(fit.measure.temperature)
    slope, intercept = fit.measure.gate_slope / (4 * scale), fit.measure.gate_intercept / scale
    limit = fit.measure.replace(gate_slope=slope, gate_intercept=intercept, temperature=1.0)
    best = scipy.optimize.minimize(
        lambda theta: -oracle.log_likelihood(theta, x[:, None], y),
        oracle.theta(limit),
        method="BFGS",
    )
    assert fit.status is Status.TEMPERATURE_TO_ZERO
    assert not fit.converged
    assert fit.measure.temperature < 1e-6
    assert fit.log_likelihood == pytest.approx(-best.fun, abs=1e-7)
    assert fit.log_likelihood == pytest.approx(likelihood(fit, x, y), abs=1e-7)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Starts end after 60 iterations; what was compiled for more is let go, before and after."""
    monkeypatch.setattr(newton, "MAX_ITERATIONS", 60)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_start_that_does_not_end_is_led_on_to_a_maximum() -> None:
    fit = bm.fit_mle(MODEL, *data(13), n_starts=4)
    assert Status.MAX_ITERATIONS in fit.starts.status
    assert fit.status is Status.CONVERGED
    # the maximum of the next test
    assert fit.log_likelihood == pytest.approx(-23.9458989833, abs=1e-8)
    assert fit.measure.temperature == pytest.approx(0.001268202, rel=1e-4)


@pytest.mark.slow
def test_a_maximum_at_a_small_temperature_is_found() -> None:
    x, y = data(13)
    fit, oracle = fitted(13), Oracle(CASE["sigmoid"], 2, 1)
    assert fit.status is Status.CONVERGED
    assert fit.log_likelihood == pytest.approx(-23.9458989833, abs=1e-8)
    assert 1e-3 < fit.measure.temperature < 2e-3
    assert fit.log_likelihood == pytest.approx(likelihood(fit, x, y), abs=1e-8)
    theta = oracle.theta(fit.measure)

    def profile(log_ratio: float) -> float:
        """At another temperature, from the same borders and from wider ones."""
        tau = theta[2] * np.exp(log_ratio)

        def loss(free: Floats) -> float:
            beta, offset, *experts = free
            # (σ(βx) - σ(0) + β0)/τ with the limit of σ apart, which keeps its digits
            intercept = offset * tau - 0.5
            point = np.array([beta, intercept, tau, *experts[:4], *np.exp(experts[4:])])
            return -float(oracle.log_likelihood(point, x[:, None], y))

        start = np.array([theta[0], (theta[1] + 0.5) / theta[2], *theta[3:7], *np.log(theta[7:])])
        options = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-10, "fatol": 1e-10}
        return -scipy.optimize.minimize(loss, start, method="Nelder-Mead", options=options).fun

    for log_ratio in (-0.7, 0.7):
        assert profile(log_ratio) < fit.log_likelihood - 1e-5


@pytest.mark.slow
def test_a_step_is_separated_and_its_likelihood_true() -> None:
    """Logits beyond 1e16 would swallow the experts' densities, and fake a likelihood of one."""
    x, y = data(ETHANOL)
    fit = fitted(ETHANOL)
    assert fit.status is Status.SEPARATED
    assert fit.log_likelihood == pytest.approx(likelihood(fit, x, y), abs=1e-7)
    assert fit.log_likelihood == pytest.approx(two_lines(x, y), abs=1e-7)


def two_lines(x: Floats, y: Floats) -> float:
    """The highest likelihood of two lines with a step between them, each with 10 rows or more."""
    order = np.argsort(x)
    x, y = x[order], y[order]

    def line(rows: slice) -> float:
        design = np.column_stack([x[rows], np.ones(len(x[rows]))])
        error = y[rows] - design @ np.linalg.lstsq(design, y[rows])[0]
        return -0.5 * len(error) * (np.log(2 * np.pi * np.mean(error**2)) + 1)

    cuts = [cut for cut in range(10, len(x) - 9) if x[cut] > x[cut - 1]]
    return max(line(slice(cut)) + line(slice(cut, None)) for cut in cuts)


@pytest.mark.slow
def test_an_ordinary_fit_is_left_alone() -> None:
    fit = fitted(0)
    assert fit.status is Status.CONVERGED
    assert max(fit.starts.n_iterations) < newton.MAX_ITERATIONS


@pytest.mark.parametrize(
    ("empty", "separated", "status"),
    [
        (False, False, Status.TEMPERATURE_TO_ZERO),
        (False, True, Status.SEPARATED),
        (True, True, Status.EMPTY_EXPERT),
    ],
)
def test_a_limit_is_named_after_its_gate(empty: bool, separated: bool, status: Status) -> None:
    steep = newton.Optimum(
        *map(np.asarray, (np.zeros(9), -1.0, 0.1, 0.1, np.zeros(9, bool), False, 0, np.eye(9)))
    )
    gate = GateState(np.asarray(empty), np.asarray(separated))
    assert judge(steep, gate, proper=False, cold=True) is status
    assert judge(steep, gate, proper=False) is Status.STALLED


@pytest.mark.parametrize("gate", ["softmax", "dense_to_sparse", "activation_dense_to_sparse"])
def test_temperatures_are_bounded_unless_on_a_ray(gate: str) -> None:
    model = bm.moe(gate, 2)
    layout = model.layout(1)
    floors = np.full(layout.size, -np.inf)
    floors[-2:] = np.log(1e-4)
    problem = Problem(
        layout, cast(Any, None), cast(Any, None), jnp.zeros(0), jnp.asarray(floors), 0
    )
    lower = np.asarray(bounded(problem).lower)
    cold = can_run_cold(model.gate)
    assert cold == (gate == "activation_dense_to_sparse")
    assert np.sum(np.isfinite(lower)) == 2 + cold
    if cold:
        assert np.exp(lower[problem.layout.n_gate - 1]) == pytest.approx(
            LEAST_TEMPERATURE * model.gate.spread
        )
