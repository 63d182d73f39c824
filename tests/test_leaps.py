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
from hypothesis import given, settings
from hypothesis import strategies as st

import bayesmoe as bm
from bayesmoe.core.layout import Layout
from bayesmoe.core.priors import weak
from bayesmoe.inference.chart import Chart
from bayesmoe.inference.leaps import MAX_LAWS, Regions, _Charted, make_regions, run_leaping_chain
from bayesmoe.inference.mixture import Mixture, copies
from bayesmoe.inference.modes import Modes
from bayesmoe.inference.nuts import Draws, sample_chains
from bayesmoe.inference.pilots import choose_pilots, explore
from bayesmoe.inference.target import Target
from bayesmoe.models import make_gate

SOFTMAX, SIGMOID = CASE["softmax"].gate(), CASE["sigmoid"].gate()
STRAIGHT = Layout(SOFTMAX, 2, 1)
P = STRAIGHT.size
HILLS, WIDTHS, MASSES = np.array([3.0, -3.0]), np.array([1.0, 0.4]), np.array([0.8, 0.2])


class TwoHills(NamedTuple):
    """Two normal laws that no chain crosses between, as a target: along the diagonal, ±3."""

    layout: Layout = STRAIGHT
    bounded: bool = False

    def log_density(self, u: jax.Array, data: Any) -> jax.Array:
        z = (u - HILLS[:, None]) / WIDTHS[:, None]
        return jax.nn.logsumexp(np.log(MASSES) - P * np.log(WIDTHS) - jnp.sum(z**2, axis=1) / 2)


TWO_HILLS: Any = TwoHills()
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


def random_regions(seed: int, layout: Layout, m: int) -> Regions:
    """Laws of unlike shapes, in bent charts where the gate has any."""
    rng, p = np.random.default_rng(seed), layout.size
    powers = np.zeros((m, p))
    if layout.gate.has_temperature:
        powers[:, : layout.n_gate - 1] = rng.uniform(size=(m, layout.n_gate - 1))
    roots = np.linalg.cholesky(np.eye(p) + 0.1 * np.ones((p, p))) * rng.uniform(0.5, 2, (m, 1, 1))
    charts = Chart(rng.normal(size=(m, p)), roots, powers)
    return make_regions(Mixture.of(charts, rng.dirichlet(np.ones(m))), rng.uniform(0.5, 1, m))


def sample(target: Any, regions: Regions, n_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws of four chains ``(chain, draw, p)``, and the law of each."""
    runs = [
        run_leaping_chain(target, 300, n_draws, None, regions, jax.random.key(0), chain, 0)
        for chain in range(4)
    ]
    return np.stack([run[0].u for run in runs]), np.stack([run[1] for run in runs])


def errors(draws: np.ndarray, expected: float) -> float:
    """The distance of a mean of draws ``(chain, draw)`` from what it should be, in errors."""
    ess = float(array_stats.ess(draws[None], chain_axis=1, draw_axis=2, method="mean")[0])
    assert ess > 400
    return float(abs(draws.mean() - expected) / (draws.std() / np.sqrt(ess)))


def test_masses_and_widths_do_not_depend_on_the_mixture() -> None:
    """Four standard errors: one true program in 5000 fails. The mixture has both of them wrong."""
    charts = Chart(
        np.tile(HILLS[:, None] + 0.3, P), 0.7 * np.stack([np.eye(P)] * 2), np.zeros((2, P))
    )
    u, law = sample(TwoHills(), make_regions(Mixture.of(charts, np.full(2, 0.5)), np.ones(2)), 3000)
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

    Laws overlap, so that shares, volumes of bent charts and scales of coordinates all matter.
    """
    prior, layout = weak(SIGMOID), Layout(SIGMOID, 2, 1)
    target = Target(layout, prior)
    u, law = sample(PriorOnly(target), random_regions(1, layout, 3), 8000)
    assert np.all(np.bincount(law.ravel(), minlength=MAX_LAWS)[:3] > 1000)
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


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(1, MAX_LAWS))
def test_places_in_a_chart_and_shares_of_laws(seed: int, m: int) -> None:
    layout = Layout(SIGMOID, 3, 2)
    space = _Charted(Target(layout, weak(SIGMOID)), NO_DATA, random_regions(seed, layout, m))
    law = np.random.default_rng(seed).integers(m)
    z = np.random.default_rng(seed + 1).normal(size=layout.size)
    u, excess = space.join(law, jnp.asarray(z))
    np.testing.assert_allclose(space.part(law, u), z, rtol=1e-8, atol=1e-8)
    shares = np.exp(space.log_shares(u))
    assert shares.sum() == pytest.approx(1)
    assert not np.any(shares[m:])
    # under the other name of the two experts but for the reference, the same
    swapped = np.exp(space.log_shares(u[copies(layout)[1]]))
    np.testing.assert_allclose(swapped, shares[:, ::-1], rtol=1e-10)
    # the density of z: that of u, times the volume but for the whitening's, times the share
    derivative = jax.jacfwd(lambda point: space.join(law, point)[0])(jnp.asarray(z))
    regions = space.regions
    constant = np.linalg.slogdet(regions.mixture.charts.whitening[law])[1]
    constant += layout.size * np.log(regions.scale[law])
    expected = np.linalg.slogdet(derivative)[1] - constant + np.log(shares[law, 0])
    assert float(excess) == pytest.approx(expected, abs=1e-8)


def modes(weights: list[float]) -> Modes:
    m = len(weights)
    with np.errstate(divide="ignore"):
        return Modes(np.zeros((m, P)), np.zeros((m, P, P)), np.log(weights))


@pytest.mark.parametrize(
    ("weights", "n_draws", "expected"),
    [
        ([1.0], 1000, []),
        ([1.0, 1e-8], 1000, []),  # nothing is worth a pilot but the one mode
        ([0.9, 0.1, 1e-4, 1e-8], 1000, [0, 1, 2]),
        ([0.9, 0.1], 159, []),  # too few draws for eight coordinates
        ([0.9, 0.1], 160, [0, 1]),
        ([0.1] * 8 + [0.01] * 2, 1000, []),  # ten that hold mass
        ([0.1] * 8 + [1e-4] * 2, 1000, list(range(8))),
    ],
)
def test_modes_with_pilots(weights: list[float], n_draws: int, expected: list[int]) -> None:
    assert choose_pilots(STRAIGHT, modes(weights), n_draws).tolist() == expected


def test_more_experts_than_five_have_no_pilots() -> None:
    """Copies under other names are too many to look at: 120 of six experts."""
    for k, expected in ((5, [0, 1]), (6, [])):
        layout = Layout(SOFTMAX, k, 1)
        assert choose_pilots(layout, modes([0.5, 0.5]), 1000).tolist() == expected
        assert len(copies(layout)) == (24 if expected else 1)


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


def pilots(widths: np.ndarray) -> tuple[np.ndarray, Chart, np.ndarray, np.ndarray]:
    """Arguments of `explore`: draws around the two hills, and charts that have them wrong."""
    rng = np.random.default_rng(3)
    u = HILLS[:, None, None] + widths[:, None, None] * rng.normal(size=(2, 500, P))
    charts = Chart(np.zeros((2, P)), np.stack([np.eye(P)] * 2), np.zeros((2, P)))
    return np.array([0, 3]), charts, u, np.array([0.2, 0.1])


def test_pilots_tell_widths_and_masses() -> None:
    explored = explore(TWO_HILLS, NO_DATA, *pilots(WIDTHS), np.random.default_rng(0))
    assert explored is not None
    np.testing.assert_allclose(explored.masses, MASSES, atol=0.05)
    np.testing.assert_array_equal(explored.modes, [0, 3])
    laws = explored.regions.mixture.charts
    np.testing.assert_allclose(laws.mode[:2, 0], HILLS, atol=0.2)
    # a t law with eight degrees of freedom is as wide as the draws
    covariance = 8 / 6 * laws.whitening[1] @ laws.whitening[1].T
    np.testing.assert_allclose(covariance, 0.16 * np.eye(P), atol=0.04)
    np.testing.assert_array_equal(explored.regions.scale[:2], [1.0, 0.5])


@pytest.mark.parametrize("widths", [0.05 * WIDTHS, 0.0 * WIDTHS])
def test_nothing_is_leapt_between_where_laws_do_not_cover(widths: np.ndarray) -> None:
    """Pilots in a corner of each hill, and pilots that did not move."""
    assert explore(TWO_HILLS, NO_DATA, *pilots(widths), np.random.default_rng(0)) is None


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
def test_reference_experts_have_the_shares_that_the_prior_gives_them() -> None:
    """The likelihood does not know which of three experts is the reference; the prior does.

    Given a draw but for that, each expert is it in proportion to the prior at the three relabelled
    parameters: a closed form, to four Monte Carlo errors.
    """
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
