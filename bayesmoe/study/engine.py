"""Running a study: an executor computes cells, each finished one is stored at once.

Executors turn cells into outcomes, anywhere and in any order; `run_study` alone writes to the
store. Numbers do not depend on the order or the number of workers: every cell has its own seeds.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import queue
import threading
import traceback
from collections.abc import Callable, Collection, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from bayesmoe.study.cell import Arrays, compute_cell
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.programs import bound_compiled_programs
from bayesmoe.study.store import Store

Observer = Callable[[Cell], None]

_ATTEMPTS = 2


class Outcome(NamedTuple):
    """What became of a cell: its arrays, or why there are none."""

    cell: Cell
    arrays: Arrays | None
    failure: str | None = None


class Executor(Protocol):
    """Computes cells in some kind of workers."""

    def __call__(
        self, attempt: Callable[[Cell], Outcome], cells: Collection[Cell], stop: threading.Event
    ) -> Generator[Outcome, None, None]:
        """The outcome of every cell as it comes; once ``stop`` is set, only of those begun.

        ``attempt`` can be pickled, and raises nothing.
        """
        ...


def attempt_cell(plan: Plan, cell: Cell) -> Outcome:
    """Compute a cell; an exception is tried once more, and then part of the outcome."""
    failure = ""
    for _ in range(_ATTEMPTS):
        try:
            arrays = compute_cell(plan, cell)
            bound_compiled_programs()
            return Outcome(cell, arrays)
        except Exception:
            failure = traceback.format_exc()
    return Outcome(cell, None, failure)


def run_study(
    plan: Plan,
    store: Store,
    *,
    execute: Executor | None = None,
    stop: threading.Event | None = None,
    observe: Observer = lambda cell: None,
) -> int:
    """Compute the cells that ``store`` lacks; those that failed before are tried again.

    Parameters
    ----------
    plan, store
        The study and its directory.
    execute
        Computes the cells; `in_threads` by default.
    stop
        Once it is set, no further cell is begun.
    observe
        Called with each cell once it is stored.

    Returns
    -------
    The number of cells that were not begun.

    Raises
    ------
    WriteError
        If the store cannot be written; cells that are finished stay stored.
    """
    finished = store.finished()
    missing = [cell for cell in plan.cells() if cell not in finished]
    left, attempt = len(missing), functools.partial(attempt_cell, plan)
    outcomes = (execute or in_threads)(attempt, missing, stop or threading.Event())
    with contextlib.closing(outcomes):
        for outcome in outcomes:
            if outcome.arrays is None:
                store.write_failure(outcome.cell, outcome.failure or "")
            else:
                store.write(outcome.cell, outcome.arrays)
            left -= 1
            observe(outcome.cell)
    return left


def in_threads(
    attempt: Callable[[Cell], Outcome],
    cells: Collection[Cell],
    stop: threading.Event,
    n_threads: int | None = None,
) -> Generator[Outcome, None, None]:
    """Outcomes from threads of this process, as many as there are cores by default.

    Threads share compiled programs. The cells of one model follow each other in one thread, so that
    each program is compiled once; a thread without a model of its own helps with another's cells.
    """
    waiting, done = _Queue(cells), queue.SimpleQueue[Outcome | None]()
    given_up = threading.Event()

    def work() -> None:
        own: tuple[str, str, int] | None = None
        try:
            while (
                not (stop.is_set() or given_up.is_set()) and (cell := waiting.take(own)) is not None
            ):
                own = cell[:3]
                done.put(attempt(cell))
        finally:
            done.put(None)

    count = n_threads or os.cpu_count() or 1
    with ThreadPoolExecutor(count) as pool:
        try:
            tasks = [pool.submit(work) for _ in range(count)]
            working = count
            while working:
                outcome = done.get()
                if outcome is None:
                    working -= 1
                else:
                    yield outcome
        finally:
            given_up.set()
        for task in tasks:
            task.result()


class _Queue:
    """Cells grouped by model; thread-safe."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self._lock = threading.Lock()
        self._groups: dict[tuple[str, str, int], collections.deque[Cell]] = {}
        for cell in cells:
            self._groups.setdefault(cell[:3], collections.deque()).append(cell)
        self._unclaimed = sorted(self._groups, key=self._cost)

    def _cost(self, model: tuple[str, str, int]) -> float:
        return sum(cell.cost for cell in self._groups[model])

    def take(self, own: tuple[str, str, int] | None) -> Cell | None:
        """The next cell: of the thread's own model, of an unclaimed one, or of the fullest."""
        with self._lock:
            if own is not None and self._groups[own]:
                return self._groups[own].pop()
            while self._unclaimed:
                claimed = self._groups[self._unclaimed.pop()]
                if claimed:
                    return claimed.pop()
            fullest = max(self._groups, key=self._cost, default=None)
            if fullest is None or not self._groups[fullest]:
                return None
            return self._groups[fullest].pop()
