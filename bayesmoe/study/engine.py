"""Running a study: cells in threads, each finished one stored at once.

Threads share compiled programs. The cells of one model follow each other in one thread, so that
each program is compiled once; a thread without a model of its own helps with another's cells.
Numbers do not depend on the order or the number of threads: every cell has its own seeds.
"""

from __future__ import annotations

import collections
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from bayesmoe.study.cell import compute_cell
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.programs import bound_compiled_programs
from bayesmoe.study.results import cells_missing
from bayesmoe.study.store import Store

Observer = Callable[[Cell], None]


class CellError(RuntimeError):
    """A cell whose computation failed; the cause is chained."""


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


def run_study(
    plan: Plan,
    store: Store,
    *,
    n_threads: int | None = None,
    observe: Observer = lambda cell: None,
) -> None:
    """Compute the cells that ``store`` lacks.

    Parameters
    ----------
    plan, store
        The study and its directory.
    n_threads
        Cells computed at a time; as many as there are cores by default.
    observe
        Called with each cell once it is stored, in any thread.

    Raises
    ------
    CellError
        If a cell fails; cells that are finished stay stored.
    """
    queue = _Queue(cells_missing(plan, store.finished()))
    stop = threading.Event()

    def work() -> None:
        own: tuple[str, str, int] | None = None
        while not stop.is_set():
            cell = queue.take(own)
            if cell is None:
                return
            own = cell[:3]
            _compute(plan, store, cell)
            observe(cell)

    count = n_threads or os.cpu_count() or 1
    with ThreadPoolExecutor(count) as pool:
        tasks = [pool.submit(work) for _ in range(count)]
        try:
            done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
        for task in done:
            task.result()


def _compute(plan: Plan, store: Store, cell: Cell) -> None:
    try:
        store.write(cell.name, compute_cell(plan, cell))
        bound_compiled_programs()
    except Exception as error:
        raise CellError(
            f"the cell {cell} failed: {error}; finished cells are kept, and repeating the command "
            "tries it again"
        ) from error
