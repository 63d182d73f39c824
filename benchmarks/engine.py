"""The study engine: throughput of workers, cost of a cell beside its fits, batches, 1000 workers.

The cost of a large study on many workers is simulated: by the engine's own order of cells, from
times of cells measured here and from the time that Dask's scheduler takes for a cell.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe import moe, scenario
from bayesmoe.core.observations import Data
from bayesmoe.inference.newton import Box, maximise
from bayesmoe.inference.problem import N_STARTS, mean_objective, prepare
from bayesmoe.study.cell import compute_cell
from bayesmoe.study.cluster import cluster
from bayesmoe.study.engine import run_study
from bayesmoe.study.executors import Executor, Model, Outcome, Waiting, in_threads
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.processes import in_processes
from bayesmoe.study.store import Store
from benchmarks.timing import Entry, Figure, Skipped, compare, row

ROUNDS = 5
N_WORKERS = 2
#: what the guide has workers of a cluster started with, each on one core
WORKERS_STARTED_WITH = {
    "NPROC": "1",
    "MALLOC_TRIM_THRESHOLD_": "536870912",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
}
TASKS = 2000
UNDER_WAY = 256  # cells that Dask has to keep going
BATCH = 16  # small data sets in one program
WORKERS = (1, 10, 100, 300, 1000)
#: 100 000 cells of the kind of the preset "paper"
LARGE = {
    "gates": ["softmax", "dense_to_sparse", "activation_dense_to_sparse"],
    "n_experts": [2, 3],
    "sizes": [100, 300, 1000, 3000, 10_000, 30_000, 100_000],
    "replicates": 2381,
}


in_one_thread = partial(in_threads, n_threads=1)


class Costs(NamedTuple):
    """Seconds of a cell by its `Cell.cost`, and those that the first cell of a model adds."""

    factor: float
    compiling: float


def plan_of(**changes: Any) -> Plan:
    """One gate, two experts, large samples."""
    fields: dict[str, Any] = {
        "scenarios": ["lambda"], "gates": ["softmax"], "n_experts": [2], "sizes": [10_000, 20_000],
        "replicates": 20, "estimators": ["mle", "map"], "seed": 1,
    }  # fmt: skip
    return Plan.model_validate(fields | changes)


def entries() -> Iterator[Entry]:
    """Two workers beside one, the overhead of a cell, and the simulated curve."""
    plan = plan_of()
    in_two_processes = partial(in_processes, n_workers=N_WORKERS)
    alone = _cells_per_second(plan, in_one_thread)
    peers: dict[str, tuple[Executor, float | None]] = {
        "processes, started and compiled anew": (in_two_processes, None)
    }
    try:
        import distributed
    except ImportError:
        yield Skipped("Dask", "it is not installed: pip install 'bayesmoe[cluster]'")
        yield from _rows(plan, alone, peers)
        return
    with _local_cluster(distributed) as address, cluster(address) as on_cluster:
        yield from _rows(plan, alone, peers | {"Dask workers": (on_cluster, 1.7)})
    yield from _overhead()
    yield from _batched()
    dispatch = _dispatch()
    yield Figure(
        f"Dask's scheduler and client, for each of {UNDER_WAY} cells under way",
        f"{1e3 * dispatch:.2f} ms",
    )
    yield from _curve(dispatch)


@contextlib.contextmanager
def _local_cluster(distributed: Any) -> Iterator[str]:
    """The address of a cluster whose workers are started as the guide says."""
    import dask

    with contextlib.ExitStack() as stack:
        with (
            dask.config.set({"distributed.worker.profile.enabled": False}),
            mock.patch.dict(os.environ, WORKERS_STARTED_WITH),  # for the workers alone
        ):
            running = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=N_WORKERS, threads_per_worker=1, dashboard_address=None
                )
            )
        yield running.scheduler_address


def _rows(
    plan: Plan, alone: Callable[[], float], peers: dict[str, tuple[Executor, float | None]]
) -> Iterator[Entry]:
    """Throughput of two workers each way, by turns with one thread."""
    ours = {name: _cells_per_second(plan, execute) for name, (execute, _) in peers.items()}
    for warm in (alone, *ours.values()):
        warm()  # compiles, in every worker that lives on
    n_cells = len(list(plan.cells()))
    rates = np.array([[alone(), *(rate() for rate in ours.values())] for _ in range(ROUNDS)])
    for i, (name, (_, least)) in enumerate(peers.items(), start=1):
        yield row(
            f"{n_cells} cells of n >= 10 000, {N_WORKERS} {name}", "one thread",
            rates[:, i], rates[:, 0], unit="cells/s", least=least,
        )  # fmt: skip


def _cells_per_second(plan: Plan, execute: Executor) -> Callable[[], float]:
    return lambda: len(list(plan.cells())) / _run(plan, execute)[0]


def _run(plan: Plan, execute: Executor) -> tuple[float, float]:
    """Seconds that a study takes, and how many of them its estimators took."""
    with (
        tempfile.TemporaryDirectory() as directory,
        Store.open(Path(directory) / "study", plan) as store,
    ):
        start = time.perf_counter()
        if left := run_study(plan, store, execute=execute):
            raise RuntimeError(f"{left} cells were not computed")
        elapsed = time.perf_counter() - start
        fits = sum(float(np.sum(store.read(cell)["seconds"])) for cell in store.finished())
    return elapsed, fits


def _overhead() -> Iterator[Entry]:
    """What simulation of data, losses, the engine and the store add to the fits."""
    for n, replicates, wanted in ((100, 50, "below 20 ms"), (100_000, 2, "below 5 %")):
        plan = plan_of(sizes=[n, n + 1], replicates=replicates, estimators=["mle"])
        _run(plan, in_one_thread)
        elapsed, fits = _run(plan, in_one_thread)
        each, share = (elapsed - fits) / (2 * replicates), (elapsed - fits) / elapsed
        met = each < 0.02 if n == 100 else share < 0.05
        yield Figure(
            f"beside the fits, n = {n}",
            f"{1e3 * each:.1f} ms for a cell of {elapsed / (2 * replicates):.3f} s, {share:.1%}",
            wanted,
            met,
        )


def _batched() -> Iterator[Entry]:
    """Small data sets one by one, as the engine does them, beside all in one program."""
    for gate, n in (("softmax", 100), ("activation_dense_to_sparse", 100), ("softmax", 1000)):
        yield compare(
            f"{BATCH} MLEs of n = {n}, {gate}, one by one",
            "by jax.vmap at once",
            *_climbs(gate, n),
            rounds=7,
        )


def _climbs(gate: str, n: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Maximise from all starts of some data sets: in turn, and in one program."""
    model, truth = moe(gate, 2), scenario("lambda", gate=gate)
    samples = (truth.simulate(jax.random.key(i), n) for i in range(BATCH))
    problems = [
        prepare(model, *sample, key=i, n_starts=N_STARTS, starts=None, variance_floor=1e-4)
        for i, sample in enumerate(samples)
    ]
    layout, box = problems[0].layout, Box(problems[0].lower)
    data = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one.data for one in problems))
    starts = jnp.stack([one.starts for one in problems], axis=1)

    def climb(data: Data, start: Array) -> Array:
        return maximise(partial(mean_objective, layout, None, data), start, box).value

    one = jax.jit(lambda data, starts: jax.lax.map(partial(climb, data), starts))
    batch = jax.jit(lambda data, starts: jax.lax.map(partial(jax.vmap(climb), data), starts))
    return (lambda: [one(each.data, each.starts) for each in problems]), (
        lambda: batch(data, starts)
    )


def _nothing(cells: Sequence[Cell]) -> list[Outcome]:
    return [Outcome(cell, None, "nothing was to be done") for cell in cells]


def _dispatch() -> float:
    """Seconds for a cell in which nothing is done, of many under way; its worker is counted in."""
    import distributed

    cells = list(plan_of(replicates=TASKS // 2).cells())
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=UNDER_WAY, dashboard_address=None
        ) as running,
        cluster(running.scheduler_address) as execute,
    ):
        for _ in range(2):  # the first time the worker has yet to start its threads
            start = time.perf_counter()
            for _ in execute(_nothing, cells, threading.Event()):
                pass
            elapsed = time.perf_counter() - start
    return elapsed / len(cells)


def _curve(dispatch: float) -> Iterator[Entry]:
    """Hours that 100 000 cells take on more and more workers."""
    plan = plan_of(**LARGE)
    cells = list(plan.cells())
    costs = _costs()
    base: float | None = None
    for n_workers in WORKERS:
        hours = simulate(cells, n_workers, dispatch, costs) / 3600
        base = hours if base is None else base
        yield Figure(
            f"{len(cells)} cells on {n_workers} workers, simulated",
            f"{hours:.2f} h, {base / hours / n_workers:.0%} of the ideal speed",
        )


def _costs() -> Costs:
    """Measured on two sizes, of which the dearer counts."""
    factors, compiling = [], []
    for n in (1000, 30_000):
        plan = plan_of(sizes=[n, n + 1], n_experts=[3], replicates=3)
        cells = list(plan.cells())
        times = [_seconds(plan, cell) for cell in cells]
        usual = float(np.median(times[1:]))
        factors.append(usual / cells[0].cost)
        compiling.append(times[0] - usual)
    return Costs(max(factors), max(compiling))


def _seconds(plan: Plan, cell: Cell) -> float:
    start = time.perf_counter()
    compute_cell(plan, cell)
    return time.perf_counter() - start


def simulate(cells: list[Cell], n_workers: int, dispatch: float, costs: Costs) -> float:
    """Seconds until the last cell is done, cells being handed out one after the other.

    Workers take cells as those of a cluster do; each compiles what it has not compiled yet.
    """
    waiting = Waiting(cells)
    free: list[tuple[float, int]] = [(0.0, worker) for worker in range(n_workers)]
    own: list[Model | None] = [None] * n_workers
    known: list[set[Model]] = [set() for _ in range(n_workers)]
    desk = end = 0.0
    while some := waiting.take(own[free[0][1]]):
        (cell,) = some
        at, worker = heapq.heappop(free)
        desk = max(desk, at) + dispatch
        model = own[worker] = cell[:3]
        first = model not in known[worker]
        done = desk + costs.factor * cell.cost + first * costs.compiling
        known[worker].add(model)
        end = max(end, done)
        heapq.heappush(free, (done, worker))
    return end
