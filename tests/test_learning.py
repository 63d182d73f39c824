"""What draws teach: laws where the mixture was too thin, whatever it was before."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from conftest import CASE
from hills import HILLS, MASSES, WIDTHS, TwoHills

from bayesmoe.core.layout import Layout
from bayesmoe.inference.chart import Chart
from bayesmoe.inference.cover import Cover
from bayesmoe.inference.kernel import Chain, Length
from bayesmoe.inference.learning import _around, _fit, learn
from bayesmoe.inference.mixture import MAX_LAWS, Mixture, copies
from bayesmoe.inference.modes import Modes
from bayesmoe.inference.outcome import row
from bayesmoe.inference.runs import Leaping, Run, Stretch

STRAIGHT, BENT = Layout(CASE["softmax"].gate(), 2, 1), Layout(CASE["sigmoid"].gate(), 2, 1)
P = STRAIGHT.size
TWO_HILLS: Any = TwoHills(STRAIGHT)
NO_DATA: Any = None
#: of which the mixture knows the first alone; nothing is at the second
MODES = Modes(
    np.tile(np.array([HILLS[0], 40.0, HILLS[1]])[:, None], P),
    np.stack([np.eye(P)] * 3),
    np.zeros(3),
)


def first_hill() -> Cover:
    """One law, on the larger hill and wider than it."""
    charts = Chart(np.full((1, P), HILLS[0]), 1.5 * np.eye(P)[None], np.zeros((1, P)))
    return Cover.of(STRAIGHT, MODES, Mixture.of(charts, np.ones(1)), np.ones(1), np.zeros(1, int))


def draws(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """From both hills, the smaller one last, and their log density."""
    rng = np.random.default_rng(seed)
    hill = np.sort(rng.choice(2, size=size, p=MASSES))
    u = HILLS[hill, None] + WIDTHS[hill, None] * rng.normal(size=(size, P))
    return u, np.asarray(jax.vmap(lambda one: TWO_HILLS.log_density(one, NO_DATA))(u))


def spread_of_weights(mixture: Mixture, u: np.ndarray, lp: np.ndarray) -> float:
    """How far the densest draws are above the median in the ratio of posterior to mixture."""
    ratio = lp - mixture.log_density(STRAIGHT, u)
    return float(np.quantile(ratio, 0.99) - np.median(ratio))


@pytest.mark.parametrize("size", [3000, 9001])
def test_what_the_mixture_left_out_is_covered(size: int) -> None:
    before = first_hill()
    learnt = learn(STRAIGHT, MODES, before, *draws(0, size))
    held_out = draws(1, 4000)
    assert spread_of_weights(before.laws, *held_out) > 10
    assert spread_of_weights(learnt.laws, *held_out) < 3
    assert len(learnt.masses) == MAX_LAWS
    assert learnt.masses.sum() == pytest.approx(1)
    assert np.all(learnt.laws.weights > 0)
    # laws that went to the other hill have its name
    here = np.bincount(learnt.modes, learnt.masses, minlength=3)
    np.testing.assert_allclose(here, [MASSES[0], 0, MASSES[1]], atol=4 * 0.4 / np.sqrt(4000))


def test_few_draws_teach_little() -> None:
    """No law narrows down to a few points, nor has none of the weight."""
    learnt = learn(STRAIGHT, MODES, first_hill(), *draws(0, 12))
    assert np.all(np.isfinite(learnt.mixture.inverse))
    held_out = draws(1, 4000)
    up = held_out[0].mean(axis=1) > 0
    log_density = learnt.laws.log_density(STRAIGHT, held_out[0][up])
    before = first_hill().laws.log_density(STRAIGHT, held_out[0][up])
    assert np.all(log_density > before - np.log(100))


def test_a_law_moves_to_a_draw_as_wide_as_it_is_there() -> None:
    """In u, at the draw's temperature: widths of a bent chart change with it."""
    rng, p = np.random.default_rng(0), BENT.size
    place, powers = BENT.n_gate - 1, np.zeros((1, p))
    powers[:, :place] = 0.7
    charts = Chart(rng.normal(size=(1, p)), np.eye(p)[None] + 0.1 * rng.normal(size=(p, p)), powers)
    mixture, u = Mixture.of(charts, np.ones(1)), rng.normal(size=p)
    law, moved = _around(BENT, mixture, u)
    assert law == 0
    np.testing.assert_allclose(moved.bend(BENT, moved.mode)[0], u)

    def derivative(chart: Chart) -> np.ndarray:
        """Of u by whitened coordinates in which log τ does not change, at the draw."""
        v, _ = chart.straighten(BENT, u)
        z = np.linalg.solve(chart.whitening, v - chart.mode)
        along = np.linalg.svd(chart.whitening[[place]])[2][1:]

        def at(z: np.ndarray) -> np.ndarray:
            return np.asarray(chart.bend(BENT, chart.mode + chart.whitening @ z)[0])

        return np.stack([(at(z + 1e-6 * one) - at(z - 1e-6 * one)) / 2e-6 for one in along])

    there, here = derivative(row(charts, 0)), derivative(moved)
    np.testing.assert_allclose(there.T @ there, here.T @ here, rtol=1e-6, atol=1e-8)


def test_a_law_moves_to_a_draw_by_its_nearest_name() -> None:
    layout = Layout(CASE["softmax"].gate(), 3, 1)
    rng, p = np.random.default_rng(1), layout.size
    charts = Chart(10 * rng.normal(size=(2, p)), np.stack([np.eye(p)] * 2), np.zeros((2, p)))
    u = charts.mode[1] + 0.1
    law, moved = _around(layout, Mixture.of(charts, np.full(2, 0.5)), u[copies(layout)[1]])
    assert law == 1
    np.testing.assert_array_equal(moved.mode, u)


def test_a_law_that_no_draw_speaks_for_stays_as_wide_as_it_was() -> None:
    """In a bent chart, also where it has been moved to another temperature."""
    rng, p = np.random.default_rng(2), BENT.size
    powers = np.zeros((2, p))
    powers[:, : BENT.n_gate - 1] = 0.7
    first = Chart(rng.normal(size=(2, p)), 0.1 * np.stack([np.eye(p)] * 2), powers)
    moved = first.moved_to(BENT, first.mode + np.array([0.0, 3.0])[:, None])
    near_one = first.mode[0] + 0.1 * rng.normal(size=(200, p))
    found, masses = _fit(BENT, Mixture.of(moved, np.full(2, 0.5)), first, near_one)
    np.testing.assert_allclose(masses, [1, 0], atol=1e-6)
    np.testing.assert_allclose(found.charts.mode[1], moved.mode[1])
    np.testing.assert_allclose(found.charts.whitening[1], moved.whitening[1], atol=1e-10)


def test_laws_that_are_added_have_the_name_of_the_one_they_come_from() -> None:
    """Of two modes that lie near each other it is not the nearest."""
    near = np.array([HILLS[0], HILLS[1] + 0.1, HILLS[1]])[:, None]
    modes = MODES._replace(u=np.tile(near, P))
    roots = np.array([1.0, 0.2])[:, None, None] * WIDTHS[:, None, None] * np.eye(P)  # one too small
    charts = Chart(np.tile(HILLS[:, None], P), roots, np.zeros((2, P)))
    began = np.array([0, 1])
    before = Cover.of(STRAIGHT, modes, Mixture.of(charts, MASSES), MASSES, began)
    learnt = learn(STRAIGHT, modes, before, *draws(0, 3000))
    at_small = learnt.laws.charts.mode.mean(axis=1) < 0
    assert 1 < at_small.sum() < MAX_LAWS
    np.testing.assert_array_equal(learnt.modes, np.where(at_small, 1, 0))


def test_chains_begin_anew_with_other_randomness() -> None:
    run = Run(TWO_HILLS, Length(10, 6), NO_DATA, jax.random.key(0))
    chains = Leaping(run, MODES, first_hill(), 4, 1)
    u, lp = (leaf.reshape(2, 6, -1) for leaf in draws(0, 12))
    ones = np.ones((2, 6))
    chain: Any = Chain(u, lp[..., 0], *[ones] * 5)
    anew = chains.taught(Stretch(chain, None, None))
    assert len(anew.cover.masses) == MAX_LAWS
    assert len(anew.start) == 4
    used = [jax.random.fold_in(run.key, chain) for chain in range(100)]
    used += [run.key, *jax.random.split(run.key, 100)]
    fresh = jax.random.key_data(anew.run.key)
    assert not any(np.array_equal(fresh, jax.random.key_data(key)) for key in used)
