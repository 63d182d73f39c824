"""Executors turn cells into outcomes, anywhere and in any order; this one does it in threads."""

from __future__ import annotations

import collections
import os
import queue
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from bayesmoe.study.cell import Arrays
from bayesmoe.study.plan import Cell

Model = tuple[str, str, int]


class WorkerError(RuntimeError):
    """Workers that cannot be started or reached any more; the cells are not to blame."""


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

        Raises
        ------
        WorkerError
            If the workers are lost for good.
        """
        ...


def in_threads(
    attempt: Callable[[Cell], Outcome],
    cells: Collection[Cell],
    stop: threading.Event,
    n_threads: int | None = None,
) -> Generator[Outcome, None, None]:
    """Outcomes from threads of this process, as many as there are cores by default.

    Threads share compiled programs.
    """
    return share_out(cells, stop, [attempt] * (n_threads or os.cpu_count() or 1))


def share_out(
    cells: Collection[Cell], stop: threading.Event, workers: Sequence[Callable[[Cell], Outcome]]
) -> Generator[Outcome, None, None]:
    """Outcomes from workers, each of which is called in a thread of its own, cell after cell.

    The cells of one model follow each other in one worker, so that each program is compiled once; a
    worker without a model of its own helps with another's cells.
    """
    waiting, done = Waiting(cells), queue.SimpleQueue[Outcome | None]()
    given_up = threading.Event()

    def work(worker: Callable[[Cell], Outcome]) -> None:
        own: Model | None = None
        try:
            while (
                not (stop.is_set() or given_up.is_set()) and (cell := waiting.take(own)) is not None
            ):
                own = cell[:3]
                done.put(worker(cell))
        except BaseException:
            given_up.set()
            raise
        finally:
            done.put(None)

    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            tasks = [pool.submit(work, worker) for worker in workers]
            working = len(tasks)
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


class Waiting:
    """Cells to be computed, grouped by model; thread-safe."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self._lock = threading.Lock()
        self._groups: dict[Model, collections.deque[Cell]] = {}
        for cell in cells:
            self._groups.setdefault(cell[:3], collections.deque()).append(cell)
        self._cost = {
            model: sum(cell.cost for cell in group) for model, group in self._groups.items()
        }
        self._unclaimed = sorted(self._groups, key=self._cost.__getitem__)

    def take(self, own: Model | None) -> Cell | None:
        """The next cell: of the worker's own model, of an unclaimed one, or of the fullest."""
        with self._lock:
            if own is not None and self._groups[own]:
                return self._pop(own)
            while self._unclaimed:
                if self._groups[claimed := self._unclaimed.pop()]:
                    return self._pop(claimed)
            left = [model for model, group in self._groups.items() if group]
            return self._pop(max(left, key=self._cost.__getitem__)) if left else None

    def _pop(self, model: Model) -> Cell:
        cell = self._groups[model].pop()
        self._cost[model] -= cell.cost
        return cell
