"""Accelerators take many chunks, starts and chains at once: the numbers are those of the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesmoe import fit_mle, moe, scenario
from bayesmoe.core import compilation, device, observations
from bayesmoe.core.layout import Layout
from bayesmoe.core.likelihood import evaluate_log_likelihood, log_likelihood
from bayesmoe.core.observations import CHUNK, Data, make_data
from bayesmoe.core.scaling import Scaling
from bayesmoe.inference import nuts

MODEL = moe("softmax", 2)
LAYOUT = MODEL.layout(1)


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    """Chunks for one whole block and a part of another, the last chunk not full."""
    x, y = scenario("lambda").simulate(3, (observations._AT_ONCE + 2) * CHUNK + 7)
    return np.asarray(x), np.asarray(y)


@pytest.fixture
def as_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The programs of an accelerator on the CPU; none of them is left to later tests."""
    jax.clear_caches()
    for module in (device, observations, nuts):
        monkeypatch.setattr(module, "on_accelerator", lambda: True)
    yield
    monkeypatch.undo()
    jax.clear_caches()


def _results(layout: Layout, data: Data) -> list[jax.Array]:
    points = jnp.asarray(np.random.default_rng(0).normal(size=(20, layout.size)))

    def one(point: jax.Array) -> tuple[jax.Array, ...]:
        value, gradient = jax.value_and_grad(lambda at: log_likelihood(layout, at, data))(point)
        return value, gradient, *evaluate_log_likelihood(layout, point, data)

    return jax.tree.leaves(jax.jit(lambda: device.each(one, points))())


@pytest.mark.slow
def test_sums_of_many_chunks_and_points_at_once(
    sample: tuple[np.ndarray, np.ndarray], as_accelerator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(*sample, Scaling.from_data(MODEL.gate, *sample))
    # as `Problem.sample`: what is beyond the chunks in use is no padding
    few = data._replace(n_chunks=jnp.asarray(3), n_observations=jnp.asarray(3 * CHUNK))
    at_once = [_results(LAYOUT, each) for each in (data, few)]
    for module in (device, observations):
        monkeypatch.setattr(module, "on_accelerator", lambda: False)
    in_turn = [_results(LAYOUT, each) for each in (data, few)]
    for ours, theirs in zip(at_once, in_turn, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-9)


@pytest.mark.slow
def test_fits_and_chains_at_once(
    sample: tuple[np.ndarray, np.ndarray], as_accelerator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = (values[:400] for values in sample)
    at_once = fit_mle(MODEL, x, y)
    draws = nuts.sample_chains(MODEL, x, y, n_warmup=60, n_draws=40, n_chains=2)
    # twice the distance from the maximum is about χ² with as many degrees as there are parameters
    below = 2 * (at_once.log_likelihood - np.asarray(draws.log_likelihood))
    assert draws.measures.batch_shape == (2, 40)
    assert LAYOUT.size / 2 < np.median(below) < 2 * LAYOUT.size
    for module in (device, observations, nuts):
        monkeypatch.setattr(module, "on_accelerator", lambda: False)
    jax.clear_caches()
    in_turn = fit_mle(MODEL, x, y)
    assert at_once.status is in_turn.status
    assert at_once.log_likelihood == pytest.approx(in_turn.log_likelihood, rel=1e-12)


def test_options_that_a_compiler_does_not_know_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compilation, "QUICKLY", {"xla_no_such_option": True})
    compilation._quickly.cache_clear()
    try:
        doubled = compilation.jit_quickly(static_argnums=0)(lambda factor, x: factor * x)
        assert doubled(2, jnp.asarray(3.0)) == 6.0
    finally:
        compilation._quickly.cache_clear()
