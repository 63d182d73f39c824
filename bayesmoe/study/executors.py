"""Executors turn cells into outcomes, anywhere and in any order; this one does it in threads.

On an accelerator threads take `TOGETHER` cells at a time if they are alike and small. Not on a CPU:
a data set that has arrived goes on being computed there until the last of the others has, which
costs more than it gains but for a softmax gate and n near 100 (``python -m benchmarks engine``).
"""

from __future__ import annotations

import collections
import os
import queue
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from bayesmoe.core.device import TOGETHER, on_accelerator
from bayesmoe.core.observations import CHUNK, SMALLEST_CAPACITY
from bayesmoe.study.columns import Arrays
from bayesmoe.study.plan import Cell

Model = tuple[str, str, int]

_SMALL = CHUNK * SMALLEST_CAPACITY  # observations: they have storages of one shape


class WorkerError(RuntimeError):
    """Workers that cannot be started or reached any more; the cells are not to blame."""


class Outcome(NamedTuple):
    """What became of a cell: its arrays, or why there are none."""

    cell: Cell
    arrays: Arrays | None
    failure: str | None = None


#: gives the outcomes of cells of one model and size; can be pickled, and raises nothing
Attempt = Callable[[Sequence[Cell]], list[Outcome]]


class Executor(Protocol):
    """Computes cells in some kind of workers."""

    def __call__(
        self, attempt: Attempt, cells: Collection[Cell], stop: threading.Event
    ) -> Generator[Outcome, None, None]:
        """The outcome of every cell as it comes; once ``stop`` is set, only of those begun.

        Raises
        ------
        WorkerError
            If the workers are lost for good.
        """
        ...


def in_threads(
    attempt: Attempt,
    cells: Collection[Cell],
    stop: threading.Event,
    n_threads: int | None = None,
) -> Generator[Outcome, None, None]:
    """Outcomes from threads of this process, as many as there are cores by default.

    Threads share compiled programs.
    """
    return share_out(cells, stop, [attempt] * (n_threads or os.cpu_count() or 1), _n_together)


def _n_together(cell: Cell) -> int:
    """How many cells like this one are computed together."""
    return TOGETHER if on_accelerator() and cell.n <= _SMALL else 1


def share_out(
    cells: Collection[Cell],
    stop: threading.Event,
    workers: Sequence[Attempt],
    n_together: Callable[[Cell], int] = lambda cell: 1,
) -> Generator[Outcome, None, None]:
    """Outcomes from workers, each of which is called in a thread of its own, again and again.

    The cells of one model follow each other in one worker, so that each program is compiled once; a
    worker without a model of its own helps with another's cells.
    """
    waiting, done = Waiting(cells, n_together), queue.SimpleQueue[Outcome | None]()
    given_up = threading.Event()

    def work(worker: Attempt) -> None:
        own: Model | None = None
        try:
            while not (stop.is_set() or given_up.is_set()) and (some := waiting.take(own)):
                own = some[0][:3]
                for outcome in worker(some):
                    done.put(outcome)
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
    """Cells to be computed, grouped by model; thread-safe.

    Parameters
    ----------
    cells
        The cells, those of one size next to each other.
    n_together
        How many like a cell are taken at a time.
    """

    def __init__(
        self, cells: Iterable[Cell], n_together: Callable[[Cell], int] = lambda cell: 1
    ) -> None:
        self._lock, self._n_together = threading.Lock(), n_together
        self._groups: dict[Model, collections.deque[Cell]] = {}
        for cell in cells:
            self._groups.setdefault(cell[:3], collections.deque()).append(cell)
        self._cost = {
            model: sum(cell.cost for cell in group) for model, group in self._groups.items()
        }
        self._unclaimed = sorted(self._groups, key=self._cost.__getitem__)

    def take(self, own: Model | None) -> list[Cell]:
        """The next cells of one size, of the worker's own model, an unclaimed one or the fullest.

        Nothing if none is left.
        """
        with self._lock:
            if own is not None and self._groups[own]:
                return self._pop(own)
            while self._unclaimed:
                if self._groups[claimed := self._unclaimed.pop()]:
                    return self._pop(claimed)
            left = [model for model, group in self._groups.items() if group]
            return self._pop(max(left, key=self._cost.__getitem__)) if left else []

    def _pop(self, model: Model) -> list[Cell]:
        group = self._groups[model]
        some = [group.pop()]
        while len(some) < self._n_together(some[0]) and group and group[-1].n == some[0].n:
            some.append(group.pop())
        self._cost[model] -= sum(cell.cost for cell in some)
        return some
