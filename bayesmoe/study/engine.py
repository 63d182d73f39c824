"""Running a study: an executor computes cells, each finished one is stored at once.

`run_study` alone writes to the store. Numbers do not depend on the order or the number of workers:
every cell has its own seeds.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import traceback
from collections.abc import Callable, Sequence

from bayesmoe.study.cell import compute_cell, compute_cells
from bayesmoe.study.executors import Executor, Outcome, in_threads
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.programs import bound_compiled_programs
from bayesmoe.study.store import Store

Observer = Callable[[Cell], None]

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 2


def attempt_cells(plan: Plan, cells: Sequence[Cell]) -> list[Outcome]:
    """Compute cells of one model and size together; if that fails, one by one."""
    if len(cells) > 1:
        try:
            arrays = compute_cells(plan, cells)
            bound_compiled_programs()
            return [Outcome(*pair) for pair in zip(cells, arrays, strict=True)]
        except Exception as error:
            _LOG.warning("%d cells are computed one by one, for together: %s", len(cells), error)
    return [_attempt_cell(plan, cell) for cell in cells]


def _attempt_cell(plan: Plan, cell: Cell) -> Outcome:
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
    WorkerError
        If the executor loses its workers; likewise.
    """
    finished = store.finished()
    missing = [cell for cell in plan.cells() if cell not in finished]
    left, attempt = len(missing), functools.partial(attempt_cells, plan)
    outcomes = (execute or in_threads)(attempt, missing, stop or threading.Event())
    with contextlib.closing(outcomes):
        for outcome in outcomes:
            if outcome.arrays is None:
                store.write_failure(outcome.cell, outcome.failure or "no reason is known")
            else:
                store.write(outcome.cell, outcome.arrays)
            left -= 1
            observe(outcome.cell)
    return left
