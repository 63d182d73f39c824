"""Laws that cover a posterior: fitted to one of known masses and widths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import CASE
from hills import HILLS, MASSES, WIDTHS, TwoHills

from bayesmoe.core.layout import Layout
from bayesmoe.inference.chart import Chart
from bayesmoe.inference.fitting import shares_of_laws
from bayesmoe.inference.mixture import MAX_LAWS, Mixture
from bayesmoe.inference.modes import Modes
from bayesmoe.inference.pilots import Pilots
from bayesmoe.inference.population import (
    _Proposals,
    _propose,
    _refit,
    cover,
)

SOFTMAX, SIGMOID = CASE["softmax"].gate(), CASE["sigmoid"].gate()
STRAIGHT = Layout(SOFTMAX, 2, 1)
P = STRAIGHT.size
TWO_HILLS: Any = TwoHills(STRAIGHT)
NO_DATA: Any = None
#: the second hill is the last one's; those between are nowhere
PLACES = np.array([HILLS[0], 40.0, 50.0, HILLS[1]])
MODES = Modes(np.tile(PLACES[:, None], P), np.stack([np.eye(P)] * 4), np.zeros(4))


def pilots(widths: np.ndarray) -> Pilots:
    """Draws around the two hills, and charts that have them wrong."""
    rng = np.random.default_rng(3)
    u = HILLS[:, None, None] + widths[:, None, None] * rng.normal(size=(2, 150, P))
    charts = Chart(np.zeros((2, P)), np.stack([np.eye(P)] * 2), np.zeros((2, P)))
    return Pilots(np.array([0, 3]), charts, u)


@pytest.mark.parametrize("wrong", [0.5, 1.0, 2.0])
def test_masses_and_widths_are_found(wrong: float) -> None:
    """From pilots that saw a part of each hill, or too much. Weights are worth 800 draws."""
    covered = cover(TWO_HILLS, NO_DATA, MODES, pilots(wrong * WIDTHS), np.random.default_rng(0))
    assert covered is not None
    np.testing.assert_allclose(covered.masses, MASSES, atol=4 * 0.4 / np.sqrt(800))
    np.testing.assert_array_equal(covered.modes, [0, 3])
    laws, weights = covered.mixture.charts, covered.mixture.weights
    assert len(weights) == MAX_LAWS
    assert np.all(weights[:2] >= 0.05)
    assert not np.any(weights[2:])
    np.testing.assert_allclose(laws.mode[:2], np.tile(HILLS[:, None], P), atol=0.4)
    assert np.all(np.isneginf(covered.mixture.log_peak[2:]))


def test_nothing_is_leapt_between_where_laws_do_not_cover() -> None:
    """A pilot that did not move, in a corner of its hill: no proposals reach the rest."""
    sent = pilots(0 * WIDTHS)
    sent = sent._replace(u=sent.u + 2.0)
    assert cover(TWO_HILLS, NO_DATA, MODES, sent, np.random.default_rng(0)) is None


def test_a_mixture_fits_itself() -> None:
    """The step of expectation-maximisation stays where the posterior is the mixture, bent too."""
    layout = Layout(SIGMOID, 2, 1)
    rng, p = np.random.default_rng(1), layout.size
    powers = np.zeros((2, p))
    powers[:, : layout.n_gate - 1] = rng.uniform(size=(2, layout.n_gate - 1))
    charts = Chart(np.array([[4.0], [-4.0]]) + np.zeros(p), 0.5 * np.stack([np.eye(p)] * 2), powers)
    mixture = Mixture.of(charts, np.array([0.5, 0.5]))
    u = mixture.draw(layout, rng, 40_000)
    shares = shares_of_laws(layout, mixture, u)
    np.testing.assert_allclose(shares.sum(axis=(0, 2)), 1)
    found = _Proposals(u, np.full(len(u), 1 / len(u)), shares, covered=True)
    assert found.worth == pytest.approx(len(u))
    again = _refit(layout, mixture, found)
    np.testing.assert_allclose(again.charts.mode, charts.mode, atol=0.02)
    np.testing.assert_allclose(again.charts.whitening, charts.whitening, atol=0.02)
    np.testing.assert_allclose(again.weights, mixture.weights, atol=0.01)


def with_a_lost_pilot() -> Pilots:
    """One that began at the second mode, and is where the third one is, far from the hills."""
    sent = pilots(WIDTHS)
    u = np.concatenate([sent.u, PLACES[2] + 0.01 * sent.u[:1]])
    m = len(u)
    charts = Chart(np.zeros((m, P)), np.stack([np.eye(P)] * m), np.zeros((m, P)))
    return Pilots(np.array([0, 3, 1]), charts, u)


def test_a_law_that_holds_nothing_does_no_harm() -> None:
    mixture = with_a_lost_pilot().mixture(STRAIGHT)
    found = _propose(TWO_HILLS, NO_DATA, mixture, np.random.default_rng(0))
    np.testing.assert_allclose(found.masses, [*MASSES, 0.0], atol=4 * 0.4 / np.sqrt(found.worth))
    again = _refit(STRAIGHT, mixture, found)
    assert np.all(np.isfinite(again.inverse))
    np.testing.assert_allclose(again.weights, 0.5 * found.masses + 0.5 / 3)
    # weights that underflow altogether
    unlucky = found._replace(shares=found.shares * np.array([1.0, 1.0, 0.0])[:, None, None])
    stays = _refit(STRAIGHT, mixture, unlucky)
    np.testing.assert_array_equal(stays.charts.mode[2], mixture.charts.mode[2])
    np.testing.assert_array_equal(stays.charts.whitening[2], mixture.charts.whitening[2])


def test_a_law_that_left_its_mode_has_the_name_of_another() -> None:
    covered = cover(TWO_HILLS, NO_DATA, MODES, with_a_lost_pilot(), np.random.default_rng(0))
    assert covered is not None
    assert covered.modes.tolist() == [0, 3, 2]
