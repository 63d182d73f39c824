"""Chains that go on: the same chain, fewer of its transitions, and no more of them than help."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats
from conftest import CASE
from hills import TwoHills

import bayesmoe as bm
from bayesmoe.core.layout import Layout
from bayesmoe.diagnostics.sampler_checks import check_energy
from bayesmoe.inference import patience
from bayesmoe.inference.chart import Chart
from bayesmoe.inference.kernel import Chain, Length, Pace
from bayesmoe.inference.nuts import Draws, sample_chains
from bayesmoe.inference.patience import MOST_THINNING, sample_patiently
from bayesmoe.inference.posterior import Sampled
from bayesmoe.inference.runs import InCharts, Leaping, Run, States, Stretch

Floats = np.ndarray

SMALL = Layout(CASE["softmax"].gate(), 2, 1)
N = 12
NO_DATA: Any = None


def hill(n_draws: int) -> InCharts:
    """Two chains of a normal law, as far as they get."""
    p = SMALL.size
    charts = Chart(np.full((2, p), 3.0), np.stack([np.eye(p)] * 2), np.zeros((2, p)))
    run = Run(cast("Any", TwoHills(SMALL)), Length(30, n_draws), NO_DATA, jax.random.key(0))
    return InCharts(run, charts, 2)


def stretch_of(chains: InCharts, *paces: Pace) -> Stretch:
    """The last of stretches that go on from each other."""
    states, stretch = chains.begin(), None
    for pace in paces:
        stretch = chains.advance(states, pace)
        states = stretch.ends
    assert stretch is not None
    return stretch


def every_transition() -> Chain:
    return stretch_of(hill(4 * N), Pace(30, 1)).chains


def agree(chain: Chain, wanted: Chain) -> None:
    for name, one, other in zip(Chain._fields, chain, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, err_msg=name)


def thinned(chain: Chain, by: int) -> Chain:
    """What a chain is whose draws take ``by`` transitions each."""

    def groups(values: Any) -> Floats:
        return np.asarray(values).reshape(2, -1, by)

    kept: dict[str, Any] = {
        name: np.asarray(getattr(chain, name))[:, by - 1 :: by] for name in ("u", "lp", "energy")
    }
    return Chain(
        **kept,
        acceptance_rate=groups(chain.acceptance_rate).mean(-1),
        n_steps=groups(chain.n_steps).sum(-1),
        most_steps=groups(chain.most_steps).max(-1),
        n_diverging=groups(chain.n_diverging).sum(-1),
    )


def test_a_thinned_chain_is_part_of_the_whole_one() -> None:
    whole = every_transition()
    agree(stretch_of(hill(N), Pace(30, 4)).chains, thinned(whole, 4))
    assert np.any(np.asarray(whole.n_steps) != np.asarray(whole.n_steps)[0, 0])


def test_skipped_transitions_are_no_part_of_a_draw() -> None:
    whole = every_transition()
    np.testing.assert_array_equal(whole.n_steps, whole.most_steps)
    assert np.max(whole.acceptance_rate) <= 1


def test_a_chain_goes_on_from_where_it_ended() -> None:
    whole = every_transition()
    second = stretch_of(hill(N), Pace(30, 1), Pace(0, 1)).chains
    agree(second, jax.tree.map(lambda leaf: leaf[:, N : 2 * N], whole))


class Wave:
    """Two chains of an autoregressive series whose draws are worth about a given share."""

    def __init__(self, worth: float, n_draws: int = 4000, teaches: Wave | None = None) -> None:
        rho, self.n_draws, self.teaches = (1 - worth) / (1 + worth), n_draws, teaches
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((2, 20 + 4 * n_draws)) * np.sqrt(1 - rho**2)
        self.whole = np.empty(noise.shape)
        last = rng.standard_normal(2)
        for i in range(noise.shape[1]):
            self.whole[:, i] = last = rho * last + noise[:, i]
        self.n_stretches = 0

    def begin(self) -> States:
        return 0

    def advance(self, states: States, pace: Pace) -> Stretch:
        self.n_stretches += 1
        first, thinning = states + int(pace.skipped), int(pace.thinning)
        end = first + thinning * self.n_draws
        values = self.whole[:, first:end][:, thinning - 1 :: thinning]
        ones = np.ones(values.shape)
        chain: Any = Chain(values[..., None], values, values, ones, thinning * ones, ones, 0 * ones)
        return Stretch(chain, None, end)

    def taught(self, stretch: Stretch) -> Wave | None:
        assert stretch.ends == 20 + self.n_draws
        return self.teaches


def restore(chain: Chain) -> Sampled:
    """A series as a log-likelihood; what else is watched is constant, or the same."""
    series = np.asarray(chain.u)[..., 0]
    measures: Any = SimpleNamespace(temperature=np.ones(series.shape))
    return Sampled(measures, jnp.asarray(series), jnp.asarray(series[..., None]), np.zeros(1, int))


@pytest.mark.parametrize(
    ("worth", "thinning"), [(1.0, 1), (0.4, 1), (0.13, 2), (0.06, 4), (0.04, 4), (0.005, 1)]
)
def test_no_more_transitions_than_help(worth: float, thinning: int) -> None:
    """Draws are worth twice as much when twice as many transitions lead to each."""
    wave = Wave(worth)
    ran, (stretch, _, found, energy) = sample_patiently(wave, 20, restore)
    assert ran is wave
    assert (found, wave.n_stretches) == (thinning, {1: 1, 2: 2, 4: 3}[thinning])
    kept = wave.whole[:, 20 : 20 + thinning * wave.n_draws][:, thinning - 1 :: thinning]
    np.testing.assert_array_equal(stretch.chains.lp, kept)
    assert np.all(np.asarray(stretch.chains.n_steps) == thinning)
    np.testing.assert_array_equal(energy, wave.whole[:, 20 : 20 + wave.n_draws])


def test_chains_that_never_move_do_not_go_on() -> None:
    wave = Wave(1.0, 50)
    wave.whole[:] = 1.0
    assert sample_patiently(wave, 20, restore)[1].thinning == 1


@pytest.mark.parametrize(
    ("worth", "then", "thinning"), [(0.4, 0.3, 1), (0.13, 0.4, 1), (0.004, 0.13, 2), (0.1, 0.06, 4)]
)
def test_chains_begin_anew_once_where_draws_are_worth_little(
    worth: float, then: float, thinning: int
) -> None:
    """Of those that ran before nothing is kept."""
    anew = Wave(then, teaches=Wave(1.0))
    ran, sample = sample_patiently(Wave(worth, teaches=anew), 20, restore)
    assert (ran is anew) == (worth < patience.ENOUGH)
    if ran is anew:
        assert (sample.thinning, anew.n_stretches) == (thinning, {1: 1, 2: 2, 4: 3}[thinning])
        kept = anew.whole[:, 20 : 20 + thinning * anew.n_draws][:, thinning - 1 :: thinning]
        np.testing.assert_array_equal(sample.stretch.chains.lp, kept)
        np.testing.assert_array_equal(sample.energy, anew.whole[:, 20 : 20 + anew.n_draws])


def test_chains_begin_anew_where_one_has_been_where_others_were_not() -> None:
    """Draws that are worth as many independent ones, of which one chain's spread is another."""
    wave = Wave(1.0, teaches=Wave(0.5))
    wave.whole[0] *= 3
    ran, sample = sample_patiently(wave, 20, restore)
    assert ran is wave.teaches
    assert sample.thinning == 1
    alone = Wave(1.0)
    alone.whole[0] *= 3
    ran, sample = sample_patiently(alone, 20, restore)
    assert (ran is alone, sample.thinning, alone.n_stretches) == (True, 1, 1)


@pytest.mark.parametrize(
    ("label", "scenario", "k"),
    [("softmax", "lambda", 2), pytest.param("softmax", "lambda", 3, marks=pytest.mark.slow)],
)
def test_draws_are_those_of_a_longer_run(
    label: str, scenario: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However chains come to go on, of three experts by leaps; none begin anew."""
    monkeypatch.setattr(Leaping, "taught", lambda *_: None)
    x, y = bm.scenario(scenario).simulate(1, 150)

    def sample(n: int) -> Draws:
        model = bm.moe(label, k)
        return sample_chains(model, x, y, key=2, n_chains=2, n_warmup=100, n_draws=n)

    monkeypatch.setattr(patience, "ENOUGH", 0.0)
    whole = sample(MOST_THINNING * N)
    monkeypatch.setattr(patience, "ENOUGH", np.inf)
    monkeypatch.setattr(patience, "_PROMISING", 0.0)
    draws = sample(N)
    assert (whole.thinning, draws.thinning) == (1, MOST_THINNING)
    assert draws.leaps == (k == 3)
    every = slice(MOST_THINNING - 1, None, MOST_THINNING)
    for name in ("log_likelihood", "row_log_density", "lp", "near"):
        wanted = np.asarray(getattr(whole, name))[:, every]
        np.testing.assert_allclose(getattr(draws, name), wanted, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(draws.step_size, whole.step_size)
    np.testing.assert_allclose(draws.unthinned_energy, whole.energy[:, :N], rtol=1e-6)
    assert np.sum(draws.n_steps) == np.sum(whole.n_steps)


@pytest.mark.slow
def test_the_energy_of_thinned_chains_is_judged_by_transitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of draws that several transitions lead to it changes more than NUTS makes it change."""
    x, y = bm.scenario("lambda").simulate(1, 50)
    model, n = bm.moe("softmax", 1), 50
    monkeypatch.setattr(patience, "ENOUGH", 0.0)
    whole = bm.sample_posterior(model, x, y, key=2, n_chains=2, n_warmup=100, n_draws=n)
    monkeypatch.setattr(patience, "ENOUGH", np.inf)
    monkeypatch.setattr(patience, "_PROMISING", 0.0)
    thin = bm.sample_posterior(model, x, y, key=2, n_chains=2, n_warmup=100, n_draws=n)
    assert (thin.attrs["thinning"], "bfmi" in whole.attrs) == (MOST_THINNING, False)
    one, other = (check_energy(tree) for tree in (whole, thin))
    assert other.value == pytest.approx(one.value, rel=1e-6)
    of_draws = array_stats.bfmi(thin["sample_stats"]["energy"].values).min()
    assert abs(of_draws - one.value) > 0.05
