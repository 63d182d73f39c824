"""Steps of expectation-maximisation: moments by their definition, and laws moved as they say."""

from __future__ import annotations

import jax
import numpy as np
from conftest import CASE

from bayesmoe.core.layout import Layout
from bayesmoe.inference.chart import Chart
from bayesmoe.inference.fitting import BATCH, _moments, batches_of, moments_of, refit
from bayesmoe.inference.mixture import DEGREES, Mixture, copies

SOFTMAX, SIGMOID = CASE["softmax"].gate(), CASE["sigmoid"].gate()


def test_moments_are_those_of_their_definition() -> None:
    layout = Layout(SOFTMAX, 3, 1)
    rng, p = np.random.default_rng(2), layout.size
    root = np.tril(rng.normal(size=(p, p))) + 4 * np.eye(p)
    charts = Chart(rng.normal(size=(1, p)), root[None], np.zeros((1, p)))
    u, weights = rng.normal(size=(5, p)), rng.uniform(size=(1, 5, 2))
    sums = _moments(layout, Mixture.of(charts, np.ones(1)), u, weights)
    scale, first, second = 0.0, np.zeros(p), np.zeros((p, p))
    for i in range(5):
        for c, places in enumerate(copies(layout)):
            z = np.linalg.solve(root, u[i, places] - charts.mode[0])
            w = weights[0, i, c] * (DEGREES + p) / (DEGREES + z @ z)
            scale, first, second = scale + w, first + w * z, second + w * np.outer(z, z)
    np.testing.assert_allclose(sums.weight[0], weights.sum())
    np.testing.assert_allclose(sums.square[0], np.sum(weights**2))
    np.testing.assert_allclose(sums.scale[0], scale)
    np.testing.assert_allclose(sums.first[0], first)
    np.testing.assert_allclose(sums.second[0], second)


def test_moments_do_not_depend_on_batches() -> None:
    layout = Layout(SOFTMAX, 2, 1)
    rng, p, n = np.random.default_rng(0), layout.size, 2 * BATCH + 7
    mixture = Mixture.of(
        Chart(rng.normal(size=(3, p)), np.stack([np.eye(p)] * 3), np.zeros((3, p))), np.ones(3) / 3
    )
    u, weights, shares = rng.normal(size=(n, p)), rng.uniform(size=n), rng.uniform(size=(3, n, 1))
    assert [len(batch) for batch in batches_of(u)] == [669, 669, 669]
    at_once = _moments(layout, mixture, u, shares * weights[:, None])
    in_parts = moments_of(layout, mixture, u, weights, shares)
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-9), at_once, in_parts
    )


def test_points_more_are_as_wide_as_they_are_said_to_be() -> None:
    """Without others, laws stay where they are and become so wide."""
    layout = Layout(SOFTMAX, 2, 1)
    p = layout.size
    charts = Chart(np.zeros((1, p)), 2 * np.eye(p)[None], np.zeros((1, p)))
    mixture, nothing = Mixture.of(charts, np.ones(1)), np.zeros((1, 5, 1))
    moments = moments_of(layout, mixture, np.ones((5, p)), np.ones(5), nothing)
    found = refit(layout, charts, moments.with_points(1e6, 0.1, 9 * np.eye(p)))
    np.testing.assert_array_equal(found.mode, charts.mode)
    np.testing.assert_allclose(found.whitening, 3 * charts.whitening, rtol=1e-4)


def test_laws_in_bent_charts_move_as_moments_say() -> None:
    """By where points of a law go, whose coordinates count from another temperature then."""
    layout = Layout(SIGMOID, 2, 1)
    rng, p = np.random.default_rng(1), layout.size
    powers = np.zeros((1, p))
    powers[:, : layout.n_gate - 1] = rng.uniform(0.3, 1, size=layout.n_gate - 1)
    old = Chart(rng.normal(size=(1, p)), np.eye(p)[None] + 0.2 * rng.normal(size=(p, p)), powers)
    mixture = Mixture.of(old, np.ones(1))
    u = mixture.place(layout, np.zeros(50, int), 1 + rng.normal(size=(50, p)), np.full(50, 8.0))
    moments = moments_of(layout, mixture, u, np.ones(50), np.ones((1, 50, 1)))
    move, spread = moments.step()
    new = refit(layout, old, moments)
    assert abs(new.mode[0, layout.n_gate - 1] - old.mode[0, layout.n_gate - 1]) > 0.1
    for z in rng.normal(size=(5, p)):
        in_old = old.whitening @ (move[0] + np.linalg.cholesky(spread)[0] @ z)
        np.testing.assert_allclose(
            new.bend(layout, new.mode + new.whitening @ z)[0],
            old.bend(layout, old.mode + in_old)[0],
            rtol=1e-9,
        )
