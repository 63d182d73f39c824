"""Programs are compiled once for each model and capacity of storage, not for every data set."""

from __future__ import annotations

import logging

import jax
import pytest

import bayesmoe as bm
from bayesmoe.inference.nuts import sample_chains


def _whole_way(truth: bm.Scenario, seed: int, n: int) -> None:
    """What a cell of a study computes."""
    x, y = truth.simulate(seed, n)
    model = bm.moe(truth.gate, 2)
    mle = bm.fit_mle(model, x, y, key=seed, n_starts=3)
    map_ = bm.fit_map(model, x, y, key=seed, n_starts=2, starts=mle.measure)
    draws = sample_chains(model, x, y, key=seed, start=map_, n_warmup=40, n_draws=10)
    bm.voronoi_loss(draws.measures, truth).block_until_ready()


@pytest.mark.slow
def test_a_first_posterior_compiles_few_programs(caplog: pytest.LogCaptureFixture) -> None:
    """15 of them: NumPy does on the host what it can, and one program climbs to MAP and modes."""
    x, y = bm.scenario("weak").simulate(0, 300)
    jax.clear_caches()
    with caplog.at_level(logging.DEBUG, logger="jax"), jax.log_compiles():
        sample_chains(bm.moe("softmax", 2), x, y, n_chains=1, n_warmup=10, n_draws=10)
    assert sum("Finished XLA compilation" in record.getMessage() for record in caplog.records) < 20


@pytest.mark.slow
def test_another_seed_and_sample_size_compile_nothing(caplog: pytest.LogCaptureFixture) -> None:
    truth = bm.scenario("weak")
    with caplog.at_level(logging.DEBUG, logger="jax"), jax.log_compiles():
        _whole_way(truth, 0, 1100)  # beyond the shortest stream
        first = [record.getMessage() for record in caplog.records]
        # chains and draws find the programs that were compiled while their start was sought
        for name in ("run_chain", "_restore"):
            assert sum(f"XLA compilation of jit({name})" in text for text in first) == 1
        caplog.clear()
        _whole_way(truth, 1, 1300)
    messages = [record.getMessage() for record in caplog.records]
    assert [text for text in messages if "Compiling" in text or "XLA comp" in text] == []
