"""Charts: coordinates in which the width of a gate's slopes does not go with the temperature."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from conftest import CASE
from hypothesis import given
from hypothesis import strategies as st

import bayesmoe as bm
from bayesmoe.core.layout import Layout
from bayesmoe.core.priors import compact, weak
from bayesmoe.inference import chart, nuts
from bayesmoe.inference.chart import Chart, make_charts
from bayesmoe.inference.mixture import Mixture
from bayesmoe.inference.modes import Modes
from bayesmoe.inference.posterior import Posterior, make_posterior
from bayesmoe.inference.target import Target
from bayesmoe.models.activation_dense_to_sparse import ActivationDenseToSparse

SIGMOID = CASE["sigmoid"].gate()


class Undivided(ActivationDenseToSparse):
    """The activation gate with all coordinates the paper's parameters, but for log τ."""

    intercept_per_temperature = False


def random_chart(seed: int, layout: Layout, m: int = 1) -> Chart:
    rng, p = np.random.default_rng(seed), layout.size
    powers = np.zeros((m, p))
    powers[:, : layout.n_gate - 1] = rng.uniform(size=(m, layout.n_gate - 1))
    return Chart(rng.normal(size=(m, p)), rng.normal(size=(m, p, p)), powers)


@given(st.integers(0, 1000), st.integers(2, 4), st.integers(1, 3))
def test_bending_is_undone_and_its_volume_is_its_determinant(seed: int, k: int, d: int) -> None:
    layout = Layout(SIGMOID, k, d)
    one = jax.tree.map(lambda leaf: leaf[0], random_chart(seed, layout))
    v = np.random.default_rng(seed + 1).normal(size=(1, layout.size))
    u, log_volume = one.bend(layout, v)
    back, same_volume = one.straighten(layout, u)
    np.testing.assert_allclose(back, v, rtol=1e-12)
    np.testing.assert_allclose(same_volume, log_volume, rtol=1e-12)
    derivative = jax.jacfwd(lambda point: one.bend(layout, point)[0])(jnp.asarray(v[0]))
    np.testing.assert_allclose(np.linalg.slogdet(derivative)[1], log_volume[0], rtol=1e-10)


def test_slopes_go_with_powers_of_the_temperature() -> None:
    """β1 = v (τ/τ0)^s, and no other coordinate moves."""
    layout, mode = Layout(SIGMOID, 3, 1), np.arange(1.0, 15.0)
    powers = np.zeros(14)
    powers[:2] = 1.0, 0.5
    v = mode.copy()
    v[4] += np.log(4.0)  # four times the temperature at the mode
    u, log_volume = Chart(mode, np.eye(14), powers).bend(layout, v)
    np.testing.assert_allclose(u / v, [4.0, 2.0, *np.ones(12)], rtol=1e-14)
    np.testing.assert_allclose(log_volume, 1.5 * np.log(4.0), rtol=1e-14)


@functools.cache
def posterior(n: int) -> Posterior:
    """Two lines and the gate that tells them apart, by the activation gate."""
    x, y = bm.scenario("lambda", gate="activation_dense_to_sparse").simulate(111, n)
    model = bm.moe("activation_dense_to_sparse", 2)
    return make_posterior(model, x, y, (1, 1), key=jax.random.key(0), start=None)


@pytest.mark.slow
def test_whitening_is_that_of_the_bent_density() -> None:
    """In z the negative Hessian at the mode is the identity: of the density, volume included."""
    target, _, data, modes, *_ = posterior(120)
    one = jax.tree.map(lambda leaf: leaf[0], make_charts(target, modes.u, modes.whitening))
    assert one.powers[0] > 0.5

    def log_density(z: jax.Array) -> jax.Array:
        u, log_volume = one.bend(target.layout, one.mode + one.whitening @ z)
        return target.log_density(u, data) + log_volume

    zero = jnp.zeros(target.layout.size)
    np.testing.assert_allclose(-jax.hessian(log_density)(zero), np.eye(len(zero)), atol=1e-5)
    # the mode is that of u, not of v
    np.testing.assert_allclose(
        jax.grad(log_density)(zero), one.powers.sum() * one.whitening[2], atol=1e-5
    )


def test_powers_are_the_share_that_data_tell() -> None:
    """From one, where the posterior of β1 given τ is narrow, to zero, where it is the prior."""
    target = Target(Layout(SIGMOID, 3, 1), weak(SIGMOID))
    root = np.diag([0.3, 3.0, 1.0, 1.0, 0.7, *np.ones(9)])  # β1 has a prior deviation of 3
    root[0, 4] = 2.0  # what goes with τ is no spread at a given τ
    root[1, 5] = 0.4  # wider than the prior: no share is negative
    found = make_charts(target, np.zeros((1, 14)), root[None]).powers[0]
    expected = np.zeros(14)
    expected[0] = 1 - 0.3**2 / 9
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.slow
def test_powers_follow_the_sample_size() -> None:
    found = [
        float(make_charts(one.target, one.modes.u, one.modes.whitening).powers[0, 0])
        for one in (posterior(30), posterior(120), posterior(3000))
    ]
    assert 0 <= found[0] < found[1] < found[2] <= 1
    assert found[2] > 0.97


@pytest.mark.parametrize("label", ["softmax", "dense_to_sparse", "top_k_sparse"])
def test_coordinates_divided_by_the_temperature_stay(label: str) -> None:
    gate = CASE[label].gate(3)
    layout = Layout(gate, 3, 2)
    rng, p = np.random.default_rng(0), layout.size
    u, root = rng.normal(size=(2, p)), rng.normal(size=(2, p, p))
    found = make_charts(Target(layout, weak(gate)), u, root)
    assert not np.any(found.powers)
    np.testing.assert_array_equal(found.whitening, root)
    moved, log_volume = found.bend(layout, u + 1.0)
    np.testing.assert_array_equal(moved, u + 1.0)
    assert not np.any(log_volume)


@pytest.mark.parametrize("per_temperature", [True, False])
def test_intercepts_go_with_the_temperature_as_their_prior_and_data_say(
    per_temperature: bool,
) -> None:
    prior = dataclasses.replace(weak(SIGMOID), intercept_per_temperature=per_temperature)
    layout = Layout(Undivided(), 2, 1)
    root = np.diag([*np.full(3, 0.3), *np.ones(6)])[None]
    powers = make_charts(Target(layout, prior), np.zeros((1, 9)), root).powers[0]
    expected = [0.99, 1.0 if per_temperature else 0.99, *np.zeros(7)]
    np.testing.assert_allclose(powers, expected, atol=1e-12)


@pytest.mark.parametrize("law", [dist.Normal(0.0, 50.0), dist.Cauchy(0.0, 1.0)])
def test_a_prior_is_no_wider_than_a_posterior_may_be(law: dist.Distribution) -> None:
    """Under a curvature of 0.1: where it is flat there, data tell nothing either."""
    prior = dataclasses.replace(weak(SIGMOID), gate_slope=law)
    target = Target(Layout(SIGMOID, 2, 1), prior)
    for variance, share in ((10.0, 0.0), (1.0, 0.9)):
        root = np.sqrt(variance) * np.eye(target.layout.size)[None]
        powers = make_charts(target, np.zeros((1, target.layout.size)), root).powers
        np.testing.assert_allclose(powers[0, 0], share, atol=1e-12)


def test_a_prior_whose_variance_is_not_known_counts_as_wide() -> None:
    law = dist.ImproperUniform(dist.constraints.real, (), ())
    with pytest.raises(NotImplementedError):
        _ = law.variance
    assert chart._variance(law) == np.inf
    assert chart._variance(dist.Cauchy(0.0, 1.0)) == np.inf
    assert chart._variance(dist.Normal(0.0, 3.0)) == 9.0


def test_charts_are_straight_under_a_bounded_prior() -> None:
    target = Target(Layout(SIGMOID, 2, 1), compact(SIGMOID))
    root = 0.1 * np.eye(target.layout.size)[None]
    found = make_charts(target, np.ones((1, target.layout.size)), root)
    assert not np.any(found.powers)
    np.testing.assert_array_equal(found.whitening, root)


def test_proposals_have_the_density_they_are_drawn_from() -> None:
    """The mean ratio to a known law is one: to five standard errors, over bent charts."""
    layout = Layout(SIGMOID, 2, 1)
    charts = random_chart(3, layout, m=2)
    roots = np.linalg.qr(charts.whitening)[0] * 0.3
    charts = charts._replace(whitening=roots, mode=charts.mode / 3)
    proposal = Mixture.of(charts, np.array([0.3, 0.7]))
    u = proposal.draw(layout, np.random.default_rng(4), 40_000)
    centre, spread = charts.mode[1], 0.2
    log_law = -0.5 * np.sum(((u - centre) / spread) ** 2, axis=1)
    log_law -= 9 * np.log(spread * np.sqrt(2 * np.pi))
    weights = np.exp(log_law - proposal.log_density(layout, u))
    error = weights.std() / np.sqrt(len(u))
    assert error < 0.05
    assert abs(weights.mean() - 1) < 5 * error


@pytest.mark.slow
def test_a_mixture_has_a_law_in_each_chart() -> None:
    target, modes = posterior(120).target, posterior(120).modes
    two = Modes(*(np.stack([block[0]] * 2) for block in modes[:2]), np.log([3.0, 1.0]))
    proposal = Mixture.around(target, two)
    np.testing.assert_allclose(proposal.weights, [0.725, 0.275])  # a tenth of them evenly
    np.testing.assert_array_equal(proposal.charts.powers[0], proposal.charts.powers[1])


def divergences() -> int:
    """Of 6000 draws from one posterior."""
    x, y = bm.scenario("lambda", gate="activation_dense_to_sparse").simulate(102, 120)
    model = bm.moe("activation_dense_to_sparse", 2)
    fit = bm.fit_map(model, x, y)
    runs = [
        nuts.sample_chains(model, x, y, key=key, start=fit, n_warmup=300, n_draws=500)
        for key in range(3)
    ]
    return sum(int(np.sum(np.asarray(run.n_diverging))) for run in runs)


@pytest.mark.slow
def test_no_funnel_is_left_in_which_chains_diverge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of these few data's draws, one in 2000 diverges; one in 75 where β1 itself is sampled.

    Measured over eight keys; counts of three keys are apart by far more than the seeds decide.
    """
    assert divergences() <= 12
    monkeypatch.setattr(chart, "_told_by_data", lambda *_: 0.0)
    assert divergences() >= 30


@pytest.mark.slow
def test_the_end_of_the_funnel_is_reached_as_often_as_its_closed_form_says() -> None:
    """As τ falls to zero the gate becomes linear, and data tell nothing of τ.

    Given β1/τ and β0/τ, log τ = t then has its normal prior's density times exp(t), the volume of
    β1: a normal law again. Of draws below a first bound the share below a second one is compared,
    to four standard errors of 80 batches.
    """
    x, y = bm.scenario("lambda", gate="activation_dense_to_sparse").simulate(102, 120)
    model = bm.moe("activation_dense_to_sparse", 2)
    draws = nuts.sample_chains(model, x, y, n_warmup=1000, n_draws=10_000)
    log_tau = np.log(np.asarray(draws.measures.temperature)).reshape(80, -1)
    first, second = -4.3, -4.8
    here, beyond = (np.mean(log_tau < bound, axis=1) for bound in (first, second))
    share = beyond.mean() / here.mean()
    error = np.std(beyond - share * here, ddof=1) / np.sqrt(80) / here.mean()
    law = scipy.stats.norm(float(model.prior.temperature.loc) + 1.0, model.prior.temperature.scale)
    assert error < 0.06
    assert abs(share - law.cdf(second) / law.cdf(first)) < 4 * error
