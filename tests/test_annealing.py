"""Annealing: each step is the MAP given τ, by NumPyro's own density and SciPy's own optimiser."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
from conftest import CASE
from numpyro.infer.util import log_density

import bayesmoe as bm
from bayesmoe.inference.annealing import Annealing
from bayesmoe.inference.outcome import Starts, Status
from bayesmoe.inference.point import Fit
from bayesmoe.report.annealing_figure import annealing_figure

LABELS = ("dense_to_sparse", "sigmoid")
N, K = 200, 2


@functools.cache
def data(label: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = bm.scenario("weak", CASE[label].gate(K)).simulate(3, N)
    return np.asarray(x), np.asarray(y)


@functools.cache
def annealed(label: str) -> Annealing:
    return bm.anneal(bm.moe(CASE[label].gate(K), K), *data(label), key=1, n_starts=3)


def sites(measure: bm.MixingMeasure, temperature: float) -> dict[str, Any]:
    return {
        "temperature": jnp.asarray(temperature),
        "gate_slope_free": measure.gate_slope[:-1],
        "gate_intercept_free": measure.gate_intercept[:-1],
        "slope": measure.slope,
        "intercept": measure.intercept,
        "variance": measure.variance,
    }


@pytest.mark.slow
@pytest.mark.parametrize("label", LABELS)
def test_the_last_step_is_the_mode_given_the_temperature(label: str) -> None:
    found, (x, y) = annealed(label), data(label)
    last = float(found.temperatures[-1])
    program = bm.moe(CASE[label].gate(K), K).numpyro
    joint = jax.jit(lambda values: log_density(program, (x, y), {}, values)[0])

    assert found.converged.all()
    for path in range(3):
        end = found.ends[path]
        assert float(end.temperature) == pytest.approx(last, rel=1e-12)
        assert found.log_density[path, -1] == pytest.approx(
            float(joint(sites(end, last))), abs=1e-8
        )
        laws = CASE[label].density(end, x, y)
        assert found.log_likelihood[path, -1] == pytest.approx(np.log(laws).sum(), abs=1e-8)

    end = found.ends[found.best]

    def loss(u: np.ndarray) -> float:  # variances by their logarithm, τ left alone
        measure = bm.MixingMeasure(
            [[u[0]], [0.0]], [u[1], 0.0], last, u[2:4, None], u[4:6], np.exp(u[6:8])
        )
        return -float(joint(sites(measure, last)))

    at = np.concatenate(
        [
            np.ravel(end.gate_slope[:-1]),
            np.ravel(end.gate_intercept[:-1]),
            np.ravel(end.slope),
            np.ravel(end.intercept),
            np.log(np.ravel(end.variance)),
        ]
    )
    search = scipy.optimize.minimize(loss, at + 0.02, method="Nelder-Mead", options={"maxfev": 600})
    assert search.fun < loss(at + 0.02)
    assert -search.fun <= found.log_density[found.best, -1] + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("label", LABELS)
def test_the_path_through_the_temperature_of_map_meets_map(label: str) -> None:
    model, (x, y) = bm.moe(CASE[label].gate(K), K), data(label)
    best = bm.fit_map(model, x, y, key=1)
    tau = float(best.measure.temperature)
    schedule = tau * np.geomspace(60, 1, 25)
    found = bm.anneal(model, x, y, key=1, n_starts=3, temperatures=schedule)
    assert found.log_density[:, -1].max() == pytest.approx(best.log_density, abs=1e-8)
    assert found.fit.log_density == pytest.approx(best.log_density, abs=1e-8)
    # the posterior density given another τ is lower
    assert np.all(annealed(label).log_density <= best.log_density + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("label", LABELS)
def test_entropies_are_those_of_the_gate(label: str) -> None:
    found, (x, _) = annealed(label), data(label)
    for path in range(3):
        entropy = scipy.stats.entropy(CASE[label].probabilities(found.ends[path], x), axis=1)
        assert found.gate_entropy[path, -1] == pytest.approx(entropy.mean(), rel=1e-9)
        assert found.n_active[path, -1] == pytest.approx(np.exp(entropy).mean(), rel=1e-9)
    best = found.n_active[found.best]
    assert best[0] > best[-1]
    assert np.all((found.n_active >= 1) & (found.n_active <= K))


@pytest.mark.slow
def test_along_a_ray_only_the_prior_holds_the_path_back() -> None:
    """Given τ the prior takes τ²‖η‖²/18 off: without p(τ), the density rises as τ falls."""
    found = annealed("dense_to_sparse")
    prior = scipy.stats.lognorm(0.5).logpdf(found.temperatures)
    assert np.all(np.diff(found.log_density[found.best] - prior) > -1e-9)


@pytest.mark.slow
def test_a_flat_prior_of_an_activation_gate_leads_to_the_mle() -> None:
    gate, (x, y) = CASE["sigmoid"].gate(K), data("sigmoid")
    mle = bm.fit_mle(bm.moe(gate, K), x, y)
    tau = float(mle.measure.temperature)
    found = bm.anneal(
        bm.moe(gate, K, "flat"), x, y, n_starts=3, temperatures=[9 * tau, 3 * tau, tau]
    )
    assert found.log_likelihood[:, -1].max() == pytest.approx(mle.log_likelihood, abs=1e-8)


@pytest.mark.parametrize(
    ("gate", "k", "prior", "temperatures", "message"),
    [
        ("softmax", 2, "weak", None, "no temperature to anneal"),
        ("dense_to_sparse", 1, "weak", None, "no temperature to anneal"),
        ("dense_to_sparse", 2, "flat", None, "the same maximum"),
        ("dense_to_sparse", 2, "weak", [1.0], "two or more numbers"),
        ("dense_to_sparse", 2, "weak", [1.0, 2.0], "fall from each to the next"),
        ("dense_to_sparse", 2, "weak", [1.0, 0.0], "positive"),
        ("dense_to_sparse", 2, "weak", [float("nan"), 1.0], "positive"),
    ],
)
def test_what_cannot_be_annealed_is_refused(
    gate: str, k: int, prior: str, temperatures: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bm.anneal(bm.moe(gate, k, prior), *data("sigmoid"), temperatures=temperatures)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["dense_to_sparse"])
def test_under_a_prior_with_bounds_the_path_stays_within_them(label: str) -> None:
    """Those of β1 are met at one temperature and not at another."""
    weak = bm.moe(CASE[label].gate(K), K).prior
    laws = {"gate_slope": dist.Uniform(-0.6, 0.6), "temperature": dist.Uniform(0.4, 2.0)}
    model, (x, y) = bm.moe(label, K, dataclasses.replace(weak, **laws)), data(label)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    found = bm.anneal(model, x, y, key=1, n_starts=2)
    np.testing.assert_allclose(found.temperatures[[0, -1]], [2.0, 0.4], rtol=1e-9)
    assert np.all(found.converged)
    assert np.all(np.isfinite(found.log_density))
    assert np.all(np.abs(found.ends.gate_slope) <= 0.6 + 1e-9)
    assert found.fit.converged
    assert found.log_density.max() <= found.fit.log_density + 1e-9
    with pytest.raises(ValueError, match=r"support of their prior, from 0\.4 to 2"):
        bm.anneal(model, x, y, temperatures=[3.0, 1.0])
    far = dataclasses.replace(weak, temperature=dist.Uniform(40.0, 50.0))
    with pytest.raises(ValueError, match=r"from 40 to 50, .* pass temperatures"):
        bm.anneal(bm.moe(label, K, far), x, y)


@pytest.mark.slow
def test_the_figure_shows_the_path_that_led_to_the_fit() -> None:
    some = [annealed(label) for label in LABELS]
    lame = dataclasses.replace(some[1], converged=some[1].converged & (np.arange(25) != 7))
    figure = annealing_figure([some[0], lame])
    assert len(figure.axes) == 4
    upper, lower = figure.axes[2:]
    best = lame.best
    lost = lame.fit.log_likelihood - lame.log_likelihood[best]
    drawn = [line for line in upper.lines if line.get_zorder() == 3]
    np.testing.assert_allclose(drawn[0].get_ydata(), lost)
    hollow = [line for line in lower.lines if line.get_markerfacecolor() == "white"]
    np.testing.assert_allclose(hollow[0].get_xdata(), lame.temperatures[7:8])
    assert upper.get_xlim()[0] > upper.get_xlim()[1]  # dense to sparse
    with pytest.raises(ValueError, match="at least one"):
        annealing_figure([])


@pytest.mark.slow
def test_the_best_path_is_the_one_that_led_to_the_fit() -> None:
    found = annealed("sigmoid")
    starts = dataclasses.replace(found.fit.starts, objective=np.array([-3.0, -1.0, -2.0]))
    other = dataclasses.replace(found, fit=dataclasses.replace(found.fit, starts=starts))
    assert other.best == 1


def test_a_start_under_another_reference_is_no_path() -> None:
    """It began where the best of the paths' ends led."""
    one, paths = CASE["dense_to_sparse"].measure(1), np.zeros((2, 4))
    reached = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), one)
    heights, status = np.array([-3.0, -2.0, -1.0]), Status.CONVERGED
    starts = Starts(heights, (status,) * 3, np.zeros(3), np.zeros(3), np.ones(3, int), reached)
    fit = Fit(one, -1.0, -1.0, status, 0.0, 0.0, starts)
    model, schedule = bm.moe("dense_to_sparse", 3), np.array([4.0, 3.0, 2.0, 1.0])
    values = (schedule, *[paths] * 4, paths == 0, jax.tree.map(lambda leaf: leaf[:2], reached))
    assert Annealing(model, *values, fit).best == 1
