"""Leaps between regions: exact for any mixture, with masses that are known otherwise."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from arviz_stats.base import array_stats
from conftest import CASE
from hills import HILLS, MASSES, WIDTHS, TwoHills
from hypothesis import given, settings
from hypothesis import strategies as st

import bayesmoe as bm
from bayesmoe.core.layout import Layout
from bayesmoe.core.priors import weak
from bayesmoe.inference import patience
from bayesmoe.inference.chart import Chart
from bayesmoe.inference.kernel import Length, Pace
from bayesmoe.inference.leaps import _Charted, begin_leaping_chain, run_leaping_chain
from bayesmoe.inference.mixture import Mixture, copies
from bayesmoe.inference.nuts import Draws, sample_chains
from bayesmoe.inference.target import Target
from bayesmoe.models import make_gate

SOFTMAX, SIGMOID = CASE["softmax"].gate(), CASE["sigmoid"].gate()
STRAIGHT = Layout(SOFTMAX, 2, 1)
P = STRAIGHT.size
NO_DATA: Any = None


class PriorOnly(NamedTuple):
    """A posterior without data."""

    target: Target
    bounded: bool = False

    @property
    def layout(self) -> Layout:
        return self.target.layout

    def log_density(self, u: jax.Array, data: Any) -> jax.Array:
        return self.target.log_prior(u)


def random_mixture(seed: int, layout: Layout, m: int) -> Mixture:
    """Laws of unlike shapes, in bent charts where the gate has any."""
    rng, p = np.random.default_rng(seed), layout.size
    powers = np.zeros((m, p))
    if layout.gate.has_temperature:
        powers[:, : layout.n_gate - 1] = rng.uniform(size=(m, layout.n_gate - 1))
    roots = np.linalg.cholesky(np.eye(p) + 0.1 * np.ones((p, p))) * rng.uniform(0.5, 2, (m, 1, 1))
    charts = Chart(rng.normal(size=(m, p)), roots, powers)
    return Mixture.of(charts, rng.dirichlet(np.ones(m)))


def sample(target: Any, mixture: Mixture, n_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws of four chains ``(chain, draw, p)``, and the law of each."""
    settings = target, Length(300, n_draws), NO_DATA, mixture

    def run(chain: int) -> tuple[Any, ...]:
        state = begin_leaping_chain(*settings, jax.random.key(0), chain, 0)
        return run_leaping_chain(*settings, state, Pace(300, 1))

    runs = [run(chain) for chain in range(4)]
    return np.stack([run[0].u for run in runs]), np.stack([run[1] for run in runs])


def errors(draws: np.ndarray, expected: float) -> float:
    """The distance of a mean of draws ``(chain, draw)`` from what it should be, in errors."""
    ess = float(array_stats.ess(draws[None], chain_axis=1, draw_axis=2, method="mean")[0])
    assert ess > 400
    return float(abs(draws.mean() - expected) / (draws.std() / np.sqrt(ess)))


@pytest.mark.slow
def test_masses_and_widths_do_not_depend_on_the_mixture() -> None:
    """Four standard errors: one true program in 5000 fails. The mixture has both of them wrong."""
    charts = Chart(
        np.tile(HILLS[:, None] + 0.3, P), 0.7 * np.stack([np.eye(P)] * 2), np.zeros((2, P))
    )
    u, law = sample(TwoHills(STRAIGHT), Mixture.of(charts, np.full(2, 0.5)), 3000)
    up = u.mean(axis=-1) > 0  # three widths of one coordinate reach beyond zero
    assert errors(up.astype(float), MASSES[0]) < 4
    for hill, side in zip((0, 1), (up, ~up), strict=True):
        assert np.mean(law[side] == hill) > 0.999
        deviation = (u[side] - HILLS[hill]) / WIDTHS[hill]
        n = side.sum() / 4  # as many independent draws, at least
        assert np.all(np.abs(deviation.mean(axis=0)) < 4 / np.sqrt(n))
        assert np.all(np.abs(deviation.var(axis=0) - 1) < 4 * np.sqrt(2 / n))


@pytest.mark.slow
def test_charts_of_several_laws_leave_a_known_density_as_it_is() -> None:
    """Without data draws have the prior's law, by Kolmogorov-Smirnov at a level of 1e-4 each.

    Laws overlap, so that shares and volumes of bent charts matter.
    """
    prior, layout = weak(SIGMOID), Layout(SIGMOID, 2, 1)
    target = Target(layout, prior)
    u, law = sample(PriorOnly(target), random_mixture(1, layout, 3), 8000)
    assert np.all(np.bincount(law.ravel(), minlength=3) > 1000)
    thinned = u[:, ::16].reshape(-1, layout.size)
    log_tau = thinned[:, layout.n_gate - 1]
    laws = {
        "slope": (thinned[:, 0], prior.gate_slope),
        "temperature": (np.exp(log_tau), prior.temperature),
        "variance": (np.exp(thinned[:, -1]), prior.variance),
        "line": (thinned[:, layout.n_gate], prior.slope),
    }
    for name, (values, expected) in laws.items():
        uniform = np.asarray(expected.cdf(values))
        assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-4, name


@pytest.mark.slow
@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([1, 2, 7]))  # every number compiles anew
def test_places_in_a_chart_and_shares_of_laws(seed: int, m: int) -> None:
    layout = Layout(SIGMOID, 3, 2)
    space = _Charted(Target(layout, weak(SIGMOID)), NO_DATA, random_mixture(seed, layout, m))
    law = np.random.default_rng(seed).integers(m)
    z = np.random.default_rng(seed + 1).normal(size=layout.size)
    u, excess = space.join(law, jnp.asarray(z))
    np.testing.assert_allclose(space.part(law, u), z, rtol=1e-8, atol=1e-8)
    shares = np.exp(space.log_shares(u))
    assert shares.sum() == pytest.approx(1)
    # under the other name of the two experts but for the reference, the same
    swapped = np.exp(space.log_shares(u[copies(layout)[1]]))
    np.testing.assert_allclose(swapped, shares[:, ::-1], rtol=1e-10)
    # the density of z: that of u, times the volume but for the whitening's, times the share
    derivative = jax.jacfwd(lambda point: space.join(law, point)[0])(jnp.asarray(z))
    constant = np.linalg.slogdet(space.mixture.charts.whitening[law])[1]
    expected = np.linalg.slogdet(derivative)[1] - constant + np.log(shares[law, 0])
    assert float(excess) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_copies_are_the_experts_under_other_names(name: str) -> None:
    layout = Layout(CASE[name].gate(), 4, 2)
    u = np.random.default_rng(0).normal(size=layout.size)
    first = layout.unpack(jnp.asarray(u))
    for place, order in zip(copies(layout), itertools.permutations(range(3)), strict=True):
        other, experts = layout.unpack(jnp.asarray(u[place])), np.array([*order, 3])
        for field in ("slope", "intercept", "variance", "gate_slope", "gate_intercept"):
            expected = getattr(first, field)[experts]
            np.testing.assert_array_equal(getattr(other, field), expected, err_msg=field)
        assert other.temperature == first.temperature


@functools.cache
def two_modes(n_threads: int = 2, leap: bool = True) -> Draws:
    """Few data under softplus, whose posterior has one mode for each reference expert."""
    model = bm.moe(make_gate("activation_dense_to_sparse", activation="softplus"), 2)
    x, y = bm.scenario("lambda", gate="activation_dense_to_sparse").simulate(1, 120)
    lengths = {"n_warmup": 300, "n_draws": 600, "n_threads": n_threads}
    return sample_chains(model, x, y, key=1, leap=leap, **lengths)


@pytest.mark.slow
def test_chains_leap_where_they_would_stay_apart() -> None:
    draws = two_modes()
    assert draws.leaps
    # which expert is the reference: the line that falls or the one that rises
    falls = np.asarray(draws.measures.slope)[..., -1, 0] < 0
    shares = falls.mean(axis=1)
    assert np.all((shares > 0.05) & (shares < 0.95))
    np.testing.assert_allclose(shares, shares.mean(), atol=0.15)
    rhat = array_stats.rhat(falls[None].astype(float), chain_axis=1, draw_axis=2)
    assert float(rhat[0]) < 1.05
    near = np.bincount(draws.near.ravel(), minlength=len(draws.mode_weights)) / draws.near.size
    np.testing.assert_allclose(near, draws.mode_weights, atol=0.1)
    apart = two_modes(leap=False)
    assert not apart.leaps
    stays = (np.asarray(apart.measures.slope)[..., -1, 0] < 0).mean(axis=1)
    assert np.all((stays < 0.01) | (stays > 0.99))


@pytest.mark.slow
def test_draws_do_not_depend_on_threads() -> None:
    one, two = two_modes(1), two_modes(2)
    assert one.leaps
    np.testing.assert_array_equal(one.lp, two.lp)
    np.testing.assert_array_equal(one.near, two.near)


@pytest.mark.slow
@pytest.mark.parametrize("anew", [False, True])
def test_reference_experts_have_the_shares_that_the_prior_gives_them(
    anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The likelihood does not know which of three experts is the reference; the prior does.

    Given a draw but for that, each expert is it in proportion to the prior at the three relabelled
    parameters: a closed form, to four Monte Carlo errors. So too with a mixture fitted to draws.
    """
    monkeypatch.setattr(patience, "ENOUGH", np.inf if anew else 0.0)
    monkeypatch.setattr(patience, "APART", np.inf)
    monkeypatch.setattr(patience, "MOST_THINNING", 1)
    model, prior = bm.moe("softmax", 3), weak(SOFTMAX)
    x, y = bm.scenario("lambda").simulate(1, 300)
    draws = sample_chains(model, x, y, key=1, n_warmup=300, n_draws=500)
    assert draws.leaps
    slope, intercept = (
        np.asarray(getattr(draws.measures, name)) for name in ("gate_slope", "gate_intercept")
    )
    # the gate's prior is on standardised covariates
    intercept = intercept + slope @ np.mean(x, axis=0)
    slope = slope[..., 0] * np.std(x)

    def log_prior(reference: int) -> np.ndarray:
        others = [i for i in range(3) if i != reference]
        total = np.zeros(slope.shape[:-1])
        for values, law in ((slope, prior.gate_slope), (intercept, prior.gate_intercept)):
            moved = values[..., others] - values[..., [reference]]
            total += np.asarray(law.log_prob(moved)).sum(axis=-1)
        return total

    by_reference = np.stack([log_prior(i) for i in range(3)], axis=-1)
    share = np.exp(by_reference - by_reference.max(axis=-1, keepdims=True))
    share /= share.sum(axis=-1, keepdims=True)
    line = np.asarray(draws.measures.slope)[..., 0]
    for near in (-20.0, 20.0):  # the two true experts' slopes; the third one's is anything
        which = np.argmin(np.abs(line - near), axis=-1)
        given_the_rest = np.take_along_axis(share, which[..., None], axis=-1)[..., 0]
        is_reference = (which == 2).astype(float)
        assert 0.02 < is_reference.mean() < 0.8
        assert errors(is_reference - given_the_rest, 0.0) < 4
