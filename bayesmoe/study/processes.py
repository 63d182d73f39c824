"""An executor of local processes, each of which may die without loss."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Collection, Generator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

from bayesmoe.study.executors import Attempt, Outcome, WorkerError, share_out
from bayesmoe.study.plan import Cell

_LIVES = 2  # workers that a cell may cost
_SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit locks of JAX's threads


def in_processes(
    attempt: Attempt,
    cells: Collection[Cell],
    stop: threading.Event,
    n_workers: int,
) -> Generator[Outcome, None, None]:
    """Outcomes from ``n_workers`` processes, each with its share of the cores.

    A process that dies is replaced and its cell tried once more; if that costs another process,
    the cell has failed.
    """
    n_cores = max(1, (os.cpu_count() or 1) // n_workers)
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(contextlib.closing(_Worker(attempt, n_cores)))
            for _ in range(n_workers)
        ]
        yield from share_out(cells, stop, workers)


class _Worker:
    """A process that computes one cell at a time; it is started when first needed."""

    def __init__(self, attempt: Attempt, n_cores: int) -> None:
        self._attempt, self._n_cores = attempt, n_cores
        self._running: tuple[multiprocessing.process.BaseProcess, Connection] | None = None

    def __call__(self, cells: Sequence[Cell]) -> list[Outcome]:
        return [self._compute(cell) for cell in cells]

    def _compute(self, cell: Cell) -> Outcome:
        deaths: list[str] = []
        while len(deaths) < _LIVES:
            process, connection = self._running or self._start()
            try:
                connection.send([cell])
                outcomes: list[Outcome] = connection.recv()
                return outcomes[0]
            except (EOFError, OSError):  # the other end of the pipe is gone
                self.close()
                deaths.append(_cause(process.exitcode))
        return Outcome(
            cell,
            None,
            f"worker died: the process that computed this cell {deaths[0]}, and another that tried "
            f"again {deaths[1]}; if memory is short, use fewer workers",
        )

    def _start(self) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        connection, far_end = _SPAWN.Pipe()
        process = _SPAWN.Process(
            target=_serve, args=(far_end, self._attempt, self._n_cores), daemon=True
        )
        # Ctrl-C reaches the whole process group, and is the parent's to handle: children inherit
        # the mask. Python's resource tracker would lift it, were it begun by the first of them.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        far_end.close()
        self._running = process, connection
        try:
            connection.recv()
        except (EOFError, OSError):
            self.close()
            raise WorkerError(
                f"a worker process {_cause(process.exitcode)} before it could begin; finished "
                "cells are kept: mend this and repeat the command to go on"
            ) from None
        return self._running

    def close(self) -> None:
        """Let the process end."""
        if self._running:
            process, connection = self._running
            connection.close()
            process.join()
            self._running = None


def _cause(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"was killed by signal {-exit_code}"
    return f"ended with exit code {exit_code}"


def _serve(connection: Connection, attempt: Attempt, n_cores: int) -> None:
    """The life of a worker: say that it is there, then give the outcomes of cells it is sent."""
    os.environ["NPROC"] = str(n_cores)  # of which JAX makes threads with its first array
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent needs it no longer
        connection.send("ready")
        while True:
            connection.send(attempt(connection.recv()))


def _end_with_parent() -> None:
    """Leave, even amid a cell, when nobody is there to take it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
