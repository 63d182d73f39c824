"""Which modes get a pilot, and what laws say of pilots' draws."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CASE
from hills import HILLS, TwoHills

from bayesmoe.core.layout import Layout
from bayesmoe.inference.chart import Chart
from bayesmoe.inference.kernel import Length
from bayesmoe.inference.mixture import DEGREES, MAX_LAWS, copies
from bayesmoe.inference.modes import Modes
from bayesmoe.inference.pilots import Pilots, candidates_for_pilots, send_pilots
from bayesmoe.inference.runs import Run

SOFTMAX, SIGMOID = CASE["softmax"].gate(), CASE["sigmoid"].gate()
STRAIGHT = Layout(SOFTMAX, 2, 1)
P = STRAIGHT.size
TWO_HILLS: Any = TwoHills(STRAIGHT)
NO_DATA: Any = None


def modes(weights: list[float]) -> Modes:
    m = len(weights)
    with np.errstate(divide="ignore"):
        return Modes(np.zeros((m, P)), np.zeros((m, P, P)), np.log(weights))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1.0], []),
        ([1.0, 1e-8], []),  # nothing is worth a pilot but the one mode
        ([0.9, 0.1, 1e-4, 1e-8], [0, 1, 2]),
        ([0.08] * 12, list(range(12))),
    ],
)
def test_modes_that_may_get_a_pilot(weights: list[float], expected: list[int]) -> None:
    assert candidates_for_pilots(STRAIGHT, modes(weights)).tolist() == expected


def test_more_experts_than_five_have_no_pilots() -> None:
    """Copies under other names are too many to look at: 120 of six experts."""
    for k, expected in ((5, [0, 1]), (6, [])):
        layout = Layout(SOFTMAX, k, 1)
        assert candidates_for_pilots(layout, modes([0.5, 0.5])).tolist() == expected
        assert len(copies(layout)) == (24 if expected else 1)


def test_laws_begin_as_wide_as_draws() -> None:
    """A t law with eight degrees of freedom has 8/6 of its scale matrix as covariance."""
    layout = Layout(SIGMOID, 2, 1)
    rng, p = np.random.default_rng(0), layout.size
    root = np.linalg.cholesky(np.eye(p) + 0.3)
    u = rng.normal(size=p) + rng.normal(size=(1, 50_000, p)) @ root.T
    charts = Chart(np.zeros((1, p)), 3 * np.eye(p)[None], np.zeros((1, p)))
    laws = Pilots(np.zeros(1, int), charts, u).mixture(layout).charts
    np.testing.assert_allclose(laws.mode[0], u[0].mean(axis=0), rtol=1e-10)
    covariance = DEGREES / (DEGREES - 2) * laws.whitening[0] @ laws.whitening[0].T
    np.testing.assert_allclose(covariance, root @ root.T, atol=0.05)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_region_gets_one_pilot(n_threads: int) -> None:
    """Of six modes, four lie within a hill that has a pilot by the time it is their turn."""
    places = np.array(
        [HILLS[0], HILLS[1], HILLS[0] + 0.5, HILLS[1] - 0.2, HILLS[0] - 0.5, HILLS[0]]
    )
    modes = Modes(np.tile(places[:, None], P), np.stack([0.5 * np.eye(P)] * 6), -np.arange(6.0))
    run = Run(TWO_HILLS, Length(1, 1), NO_DATA, jax.random.key(0))
    pilots = send_pilots(run, modes, np.arange(6), jax.random.key(1), n_threads)
    assert pilots.modes.tolist() == [0, 1]
    np.testing.assert_allclose(pilots.u.mean(axis=(1, 2)), HILLS, atol=0.3)


class Wells(NamedTuple):
    """A hill around every point of a lattice."""

    layout: Layout = STRAIGHT
    bounded: bool = False

    def log_density(self, u: jax.Array, data: Any) -> jax.Array:
        return -jnp.sum((u - 200 * jnp.round(u / 200)) ** 2) / 2


def test_no_more_pilots_than_laws() -> None:
    m, target = MAX_LAWS + 4, Wells()
    places = 200.0 * np.arange(m)
    modes = Modes(np.tile(places[:, None], P), np.stack([np.eye(P)] * m), np.zeros(m))
    run = Run(cast("Any", target), Length(1, 1), NO_DATA, jax.random.key(0))
    pilots = send_pilots(run, modes, np.arange(m), jax.random.key(1), 2)
    assert pilots.modes.tolist() == list(range(MAX_LAWS))
    np.testing.assert_allclose(pilots.u.mean(axis=(1, 2)), places[:MAX_LAWS], atol=0.3)
