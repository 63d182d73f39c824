"""Executors: threads, processes and a Dask cluster give the same, whoever dies meanwhile."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
import distributed
import jax
import numpy as np
import pytest
from deadly import Deadly, count_threads, entries, tries
from fabricated import assert_arrays_equal, fabricate, make_plan

from bayesmoe.study import cluster as cluster_module
from bayesmoe.study.cluster import ClusterError, cluster
from bayesmoe.study.columns import Arrays
from bayesmoe.study.engine import attempt_cells, run_study
from bayesmoe.study.executors import Attempt, Executor, Outcome, WorkerError, in_threads, share_out
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.processes import in_processes
from bayesmoe.study.store import Store

MADE_UP = make_plan(replicates=4)
CELLS = list(MADE_UP.cells())
REAL = make_plan(
    gates=["dense_to_sparse"], sizes=[100, 150, 200], replicates=1, estimators=["mle"], n_starts=2
)


def collect(execute: Executor, attempt: Attempt, cells: list[Cell]) -> list[Any]:
    return list(execute(attempt, cells, threading.Event()))


def by_cell(outcomes: list[Outcome]) -> dict[Cell, Arrays]:
    found = {outcome.cell: outcome.arrays for outcome in outcomes}
    assert len(found) == len(outcomes), "each cell once"
    assert None not in found.values(), [outcome.failure for outcome in outcomes]
    return {cell: arrays for cell, arrays in found.items() if arrays is not None}


def assert_undisturbed(outcomes: list[Outcome], plan: Plan) -> None:
    """What a run without any death gives, bit for bit."""
    found = by_cell(outcomes)
    assert set(found) == set(plan.cells())
    for cell, arrays in found.items():
        assert_arrays_equal(arrays, fabricate(plan, cell))


# --- sharing out, without processes


def test_workers_keep_to_a_model_and_help_out() -> None:
    """Two workers at equal pace, two models with 8 and 4 cells."""
    plan = make_plan(n_experts=[2, 3], replicates=4)
    cells = [cell for cell in plan.cells() if cell.n_experts == 2 or cell.replicate < 2]
    pace = threading.Barrier(2, timeout=10)
    seen: list[list[int]] = [[], []]

    def worker(number: int, cells: Sequence[Cell]) -> list[Outcome]:
        pace.wait()
        seen[number] += [cell.n_experts for cell in cells]
        return [Outcome(cell, {}) for cell in cells]

    workers = [functools.partial(worker, number) for number in range(2)]
    outcomes = list(share_out(cells, threading.Event(), workers))
    assert Counter(outcome.cell for outcome in outcomes) == Counter(cells)
    assert sorted(seen) == [[2] * 6, [3] * 4 + [2] * 2]


def test_a_worker_that_is_lost_ends_the_study(tmp_path: Path) -> None:
    begun: list[Cell] = []

    def broken(cells: Sequence[Cell]) -> list[Outcome]:
        begun.extend(cells)
        raise WorkerError("no memory")

    def execute(attempt: Any, cells: Any, stop: threading.Event) -> Any:
        return share_out(cells, stop, [broken])

    with Store.open(tmp_path / "out", MADE_UP) as store:
        with pytest.raises(WorkerError, match="no memory"):
            run_study(MADE_UP, store, execute=execute)
        assert len(begun) == 1
        assert not store.failed()


def test_cells_of_one_model_and_size_are_handed_out_together() -> None:
    plan = make_plan(n_experts=[2, 3], sizes=[100, 200, 1000], replicates=5)
    groups: list[list[Cell]] = []

    def worker(cells: Sequence[Cell]) -> list[Outcome]:
        groups.append(list(cells))
        return [Outcome(cell, {}) for cell in cells]

    most = {100: 3, 200: 3, 1000: 1}
    outcomes = list(
        share_out(list(plan.cells()), threading.Event(), [worker], lambda cell: most[cell.n])
    )
    assert Counter(outcome.cell for outcome in outcomes) == Counter(plan.cells())
    assert all(len({cell[:4] for cell in group}) == 1 for group in groups)
    sizes = Counter((group[0].n, len(group)) for group in groups)
    in_two = {(n, length): 2 for n in (100, 200) for length in (3, 2)}  # five of each model
    assert sizes == in_two | {(1000, 1): 10}


# --- processes


@pytest.fixture(autouse=True, scope="module")
def _workers_keep_what_they_compile() -> Iterator[None]:
    """In the directory in which the tests' own process does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
        yield


@pytest.fixture(scope="module")
def alone() -> dict[Cell, Arrays]:
    """The real plan, computed in one thread of this process."""
    attempt = functools.partial(attempt_cells, REAL)
    return by_cell(collect(functools.partial(in_threads, n_threads=1), attempt, list(REAL.cells())))


def assert_same_numbers(found: dict[Cell, Arrays], alone: dict[Cell, Arrays]) -> None:
    assert found.keys() == alone.keys()
    for cell, arrays in found.items():
        for name, values in arrays.items():
            if name == "seconds":
                continue
            if values.dtype.kind == "f":
                np.testing.assert_allclose(
                    values, alone[cell][name], rtol=1e-9, atol=1e-9, err_msg=name
                )
            else:  # statuses, and digests of the data
                np.testing.assert_array_equal(values, alone[cell][name], err_msg=name)


@pytest.mark.slow
def test_processes_give_the_numbers_of_one_process(alone: dict[Cell, Arrays]) -> None:
    attempt = functools.partial(attempt_cells, REAL)
    execute = functools.partial(in_processes, n_workers=2)
    assert_same_numbers(by_cell(collect(execute, attempt, list(REAL.cells()))), alone)


@pytest.mark.slow
def test_dead_processes_are_replaced_and_deadly_cells_fail(tmp_path: Path) -> None:
    """One cell kills the first worker that tries it, another one each that does."""
    once, always = CELLS[2], CELLS[5]
    attempt = Deadly(MADE_UP, tmp_path / "diary", {once: 1, always: 9})
    outcomes = collect(functools.partial(in_processes, n_workers=2), attempt, CELLS)
    (failed,) = [outcome for outcome in outcomes if outcome.arrays is None]
    assert failed.cell == always
    assert failed.failure.startswith("worker died: the process that computed this cell was killed")
    assert failed.failure.count("signal 9") == 2
    found = by_cell([outcome for outcome in outcomes if outcome is not failed])
    assert set(found) == set(CELLS) - {always}
    assert_arrays_equal(found[once], fabricate(MADE_UP, once))
    assert tries(attempt.diary) == Counter(map(str, [*CELLS, once, always]))
    assert len({pid for pid, cell in entries(attempt.diary) if cell == str(once)}) == 2


@pytest.mark.slow
def test_processes_share_the_cores() -> None:
    (outcome,) = in_processes(count_threads, CELLS[:1], threading.Event(), os.cpu_count() or 1)
    assert outcome.failure == "1"
    if (os.cpu_count() or 1) > 1:
        (outcome,) = in_processes(count_threads, CELLS[:1], threading.Event(), 1)
        assert outcome.failure == str(os.cpu_count())


@pytest.mark.slow
def test_processes_that_cannot_start_end_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayesmoe.study.processes._serve", os.abort)  # which takes no arguments
    with pytest.raises(WorkerError, match="process ended with exit code 1 before it could begin"):
        collect(functools.partial(in_processes, n_workers=1), print, CELLS)


# --- a Dask cluster

ALLOWED = 3  # Dask's default: two workers that are killed on purpose may not cost a cell


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of four workers, each a process."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": ALLOWED}),
        distributed.LocalCluster(
            n_workers=4, threads_per_worker=1, processes=True, dashboard_address=None
        ) as running,
    ):
        yield running.scheduler_address


@pytest.mark.slow
def test_a_cluster_gives_the_numbers_of_one_process(
    address: str, alone: dict[Cell, Arrays]
) -> None:
    attempt = functools.partial(attempt_cells, REAL)
    with cluster(address) as execute:
        assert_same_numbers(by_cell(collect(execute, attempt, list(REAL.cells()))), alone)


def test_a_cluster_without_workers_says_so_and_waits(caplog: pytest.LogCaptureFixture) -> None:
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as running,
        cluster(running.scheduler_address) as execute,
    ):
        joining = threading.Timer(1.0, running.scale, [1])
        joining.start()
        outcomes = collect(execute, lambda cells: [Outcome(*cells, None, "")], CELLS[:3])
        joining.join()
    assert sorted(outcome.cell for outcome in outcomes) == sorted(CELLS[:3])
    assert "no workers at present: cells wait until some join" in caplog.text


@pytest.mark.slow
def test_two_of_four_workers_killed_lose_nothing(address: str, tmp_path: Path) -> None:
    attempt = Deadly(MADE_UP, tmp_path / "diary", seconds=0.5)
    killed: list[tuple[int, str]] = []

    def kill() -> None:
        while len(killed) < 2:
            for pid, cell in entries(attempt.diary)[len(killed) :]:
                if len(killed) < 2 and pid not in dict(killed):
                    os.kill(pid, signal.SIGKILL)  # it has begun its cell, which takes a while
                    killed.append((pid, cell))
            time.sleep(0.01)

    with cluster(address) as execute:
        threading.Thread(target=kill, daemon=True).start()
        outcomes = collect(execute, attempt, CELLS)
    assert len(killed) == 2
    assert_undisturbed(outcomes, MADE_UP)
    times = tries(attempt.diary)
    assert all(times[cell] > 1 for _, cell in killed), "they were under way"


@pytest.mark.slow
def test_a_cell_that_kills_its_workers_fails_alone(address: str, tmp_path: Path) -> None:
    always = CELLS[5]
    attempt = Deadly(MADE_UP, tmp_path / "diary", {always: 9})
    with cluster(address) as execute:
        outcomes = collect(execute, attempt, CELLS)
    (failed,) = [outcome for outcome in outcomes if outcome.arrays is None]
    assert failed.cell == always
    assert failed.failure.startswith("worker died: Attempted to run task")
    assert tries(attempt.diary)[str(always)] == ALLOWED + 1
    assert set(by_cell([o for o in outcomes if o is not failed])) == set(CELLS) - {always}


@pytest.mark.slow
def test_once_stopped_a_cluster_begins_no_cell(address: str, tmp_path: Path) -> None:
    attempt, stop = Deadly(MADE_UP, tmp_path / "diary"), threading.Event()
    with cluster(address) as execute:
        outcomes = execute(attempt, CELLS, stop)
        first = next(outcomes)
        stop.set()
        found = by_cell([first, *outcomes])
    assert tries(attempt.diary) == Counter(map(str, found))
    assert len(found) <= 4 + 1, "four at once, and one in place of the first"


@pytest.fixture
def frail(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a scheduler with one worker, and its process, which may be killed."""
    file = tmp_path / "scheduler.json"
    with contextlib.ExitStack() as stack:

        def start(role: str, *options: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", f"distributed.cli.dask_{role}", "--no-dashboard"]
            process = stack.enter_context(
                subprocess.Popen(
                    [*command, "--scheduler-file", str(file), *options],
                    env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
                    stderr=subprocess.DEVNULL,
                )
            )
            stack.callback(process.kill)
            return process

        scheduler = start("scheduler", "--port", "0", "--host", "127.0.0.1")
        start("worker", "--nthreads", "2", "--no-nanny")
        while not file.exists():
            time.sleep(0.05)
        yield json.loads(file.read_text())["address"], scheduler


@pytest.mark.slow
def test_a_scheduler_lost_amid_a_study_loses_nothing_that_was_complete(
    frail: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    address, scheduler = frail
    attempt = Deadly(MADE_UP, tmp_path / "diary", seconds=0.3)
    with Store.open(tmp_path / "s", MADE_UP) as store:

        def study() -> None:
            with cluster(address) as execute:
                for outcome in execute(attempt, CELLS, threading.Event()):
                    assert outcome.arrays is not None
                    store.write(outcome.cell, outcome.arrays)
                    if len(store.finished()) == 3:
                        scheduler.kill()

        with pytest.raises(WorkerError, match=r"does not compute any more: .* cells are kept"):
            study()
        assert 3 <= len(store.finished()) < len(CELLS)
        for cell in store.finished():
            assert_arrays_equal(store.read(cell), fabricate(MADE_UP, cell))


@pytest.mark.slow
def test_workers_of_another_version_are_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = cluster_module._versions()
    monkeypatch.setattr(cluster_module, "_versions", lambda: true | {"jax": "0.0.1"})
    with (
        pytest.raises(ClusterError, match=r"jax is 0\.0\.1 here and .* on the worker tcp:"),
        cluster(address),
    ):
        raise AssertionError("it must not begin")


def test_a_worker_that_joined_late_with_another_version_computes_nothing() -> None:
    wrong = cluster_module._versions() | {"bayesmoe": "9.9"}
    with pytest.raises(WorkerError, match=r"bayesmoe is 9\.9 here and"):
        cluster_module._attempt(wrong, count_threads, CELLS[0])


@pytest.mark.parametrize("bad", ["tcp://127.0.0.1:1", "nonsense", "http://", "", "tcp://a:b"])
def test_a_scheduler_that_does_not_answer_is_one_error(
    bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_TIMEOUT", 0.3)
    with pytest.raises(ClusterError, match="no Dask scheduler answers at"), cluster(bad):
        raise AssertionError("it must not begin")


@pytest.mark.slow
def test_without_dask_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ClusterError, match=r'pip install "bayesmoe\[cluster\]"'),
        cluster("tcp://127.0.0.1:1"),
    ):
        raise AssertionError("it must not begin")
