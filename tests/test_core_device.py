"""Accelerators take many chunks, starts, chains and cells at once, with the numbers of the CPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fabricated import fabricate, make_plan

from bayesmoe import fit_mle, moe, scenario
from bayesmoe.core import compilation, device, observations
from bayesmoe.core.hessian import evaluate_log_likelihood
from bayesmoe.core.layout import Layout
from bayesmoe.core.likelihood import log_likelihood
from bayesmoe.core.observations import CHUNK, Data, make_data
from bayesmoe.core.scaling import Scaling
from bayesmoe.inference import nuts, point, runs
from bayesmoe.models import make_gate
from bayesmoe.study import cell as cell_module
from bayesmoe.study import engine, executors
from bayesmoe.study.columns import Arrays
from bayesmoe.study.engine import run_study
from bayesmoe.study.executors import in_threads
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.store import Store

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
    for module in (device, observations, runs, point, executors):
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
def test_programs_are_optimised_in_full_for_many_observations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        compilation, "jit_quickly", lambda static_argnums: lambda function: lambda *_: "quickly"
    )

    @compilation.jit_by_size(static_argnums=0, data=1)
    def total(factor: int, data: Data) -> jax.Array:
        return factor * jnp.sum(data.mask)

    for n, quickly in ((16_384, True), (16_385, False)):
        data = make_data(np.zeros((n, 1)), np.ones(n), Scaling.identity(1))
        assert total(2, data) == ("quickly" if quickly else 2 * n)


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
    for module in (device, observations, runs):
        monkeypatch.setattr(module, "on_accelerator", lambda: False)
    jax.clear_caches()
    in_turn = fit_mle(MODEL, x, y)
    assert at_once.status is in_turn.status
    assert at_once.log_likelihood == pytest.approx(in_turn.log_likelihood, rel=1e-12)


@pytest.mark.slow
def test_chains_that_leap_at_once(as_accelerator: None) -> None:
    """Few data under softplus, whose posterior has one mode for each reference expert."""
    model = moe(make_gate("activation_dense_to_sparse", activation="softplus"), 2)
    x, y = scenario("lambda", gate="activation_dense_to_sparse").simulate(1, 120)
    draws = nuts.sample_chains(model, x, y, key=1, n_warmup=60, n_draws=40, n_chains=2)
    assert draws.leaps
    assert np.all(np.isfinite(draws.lp))
    assert len(np.unique(draws.near)) > 1


@pytest.mark.slow
def test_small_cells_of_a_study_at_once(
    as_accelerator: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Three replicates, which are a part of a batch; large cells are computed one by one."""
    plan = make_plan(sizes=[100, 20_000], replicates=3, estimators=["mle", "map"], n_starts=3)
    small = [cell for cell in plan.cells() if cell.n == 100]
    together: list[list[Cell]] = []

    def compute_cells(plan: Plan, cells: Sequence[Cell]) -> list[Arrays]:
        together.append(list(cells))
        return cell_module.compute_cells(plan, cells)

    monkeypatch.setattr(engine, "compute_cells", compute_cells)
    monkeypatch.setattr(engine, "compute_cell", fabricate)
    with Store.open(tmp_path / "at_once", plan) as store:
        run_study(plan, store, execute=functools.partial(in_threads, n_threads=1))
        at_once = {cell: store.read(cell) for cell in small}
    assert [sorted(cells) for cells in together] == [small]
    monkeypatch.undo()
    jax.clear_caches()
    for cell, ours in at_once.items():
        theirs = cell_module.compute_cell(plan, cell)
        for name, values in theirs.items():
            if values.dtype.kind != "f":
                np.testing.assert_array_equal(ours[name], values, err_msg=name)
            elif name != "seconds":
                np.testing.assert_allclose(ours[name], values, rtol=1e-7, atol=1e-9, err_msg=name)


def test_where_cells_fail_together_each_is_computed_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan(replicates=3)
    cells = list(plan.cells())[:3]

    def compute(plan: Plan, cell: Cell) -> Arrays:
        if cell == cells[1]:
            raise FloatingPointError("underflow")
        return fabricate(plan, cell)

    def compute_cells(plan: Plan, cells: Sequence[Cell]) -> list[Arrays]:
        return [compute(plan, cell) for cell in cells]

    monkeypatch.setattr(engine, "compute_cell", compute)
    monkeypatch.setattr(engine, "compute_cells", compute_cells)
    outcomes = engine.attempt_cells(plan, cells)
    assert [outcome.cell for outcome in outcomes] == cells
    assert [outcome.arrays is None for outcome in outcomes] == [False, True, False]
    assert "underflow" in str(outcomes[1].failure)
    assert "3 cells are computed one by one" in caplog.text


def test_options_that_a_compiler_does_not_know_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compilation, "UNOPTIMISED", {"xla_no_such_option": True})
    compilation._knows_options.cache_clear()
    try:
        doubled = compilation.jit_quickly(static_argnums=0)(lambda factor, x: factor * x)
        assert doubled(2, jnp.asarray(3.0)) == 6.0
    finally:
        compilation._knows_options.cache_clear()
