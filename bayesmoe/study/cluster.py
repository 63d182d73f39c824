"""An executor of the workers of a Dask cluster, which may come, go and die without loss."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
import time
import uuid
from collections.abc import Collection, Generator, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bayesmoe.diagnostics.posterior import LIBRARIES
from bayesmoe.study.executors import Attempt, Executor, Model, Outcome, Waiting, WorkerError
from bayesmoe.study.plan import Cell

_LOG = logging.getLogger(__name__)
_TIMEOUT = 5.0  # seconds to reach the scheduler
_LOOK_AGAIN = 1.0  # seconds after which the workers are counted again
_RETRIES = 1  # of cells that a worker could not even begin
_PACKAGES = ("bayesmoe", *LIBRARIES)


class ClusterError(ValueError):
    """A cluster that cannot be used, found before anything is computed."""


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Executor]:
    """The executor of a Dask cluster that is already running.

    A cell whose worker dies is begun again on another; one that costs as many workers as the
    scheduler allows (``distributed.scheduler.allowed-failures``) has failed.

    Parameters
    ----------
    address
        Of the scheduler, as in "tcp://10.0.0.1:8786".

    Raises
    ------
    ClusterError
        If Dask is not installed, the scheduler cannot be reached, or a worker has another version
        of bayesmoe or of a library that numbers depend on.
    """
    with _client(address) as client:
        ours = _versions()
        for worker, theirs in client.get_versions(packages=_PACKAGES)["workers"].items():
            if difference := _difference(ours, theirs["packages"], worker):
                raise ClusterError(difference)
        yield functools.partial(_on_cluster, client)


def _client(address: str) -> Any:
    try:
        import distributed
    except ImportError:
        raise ClusterError(
            'studies on a cluster need Dask; install it by pip install "bayesmoe[cluster]"'
        ) from None
    try:
        return distributed.Client(address, timeout=_TIMEOUT, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {address!r} ({type(error).__name__}); give the address "
            'of one that is running, as in "tcp://10.0.0.1:8786"'
        ) from None


@functools.cache
def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _difference(
    ours: Mapping[str, str | None], theirs: Mapping[str, str | None], worker: str
) -> str | None:
    """The first package of another version, as a message, if there is one."""
    for package, wanted in ours.items():
        if theirs.get(package) != wanted:
            return (
                f"{package} is {wanted} here and {theirs.get(package) or 'missing'} on the worker "
                f"{worker}; install the same versions on all workers"
            )
    return None


def _on_cluster(
    client: Any,
    attempt: Attempt,
    cells: Collection[Cell],
    stop: threading.Event,
) -> Generator[Outcome, None, None]:
    """Outcomes from the cluster; as many cells are under way as its workers have threads."""
    from distributed import as_completed

    waiting, under_way = Waiting(cells), dict[Any, Cell]()
    finished = as_completed(loop=client.loop, with_results=True, raise_errors=False)
    task = functools.partial(_attempt, _versions(), attempt)
    n_threads = _Threads(client)

    def fill(own: Model | None) -> None:
        room = max(1, n_threads()) - len(under_way)
        for _ in range(room):
            if stop.is_set() or not (some := waiting.take(own)):
                return
            (cell,) = some
            future = client.submit(task, cell, key=f"{cell} {uuid.uuid4()}", retries=_RETRIES)
            under_way[future] = cell
            finished.add(future)

    try:
        fill(None)
        for future, result in finished:
            cell = under_way.pop(future)
            outcome = _outcome(cell, result)
            fill(cell[:3])  # its worker, free now, has the programs of this model
            yield outcome  # is stored while that worker computes
    except OSError as error:
        raise _lost(error) from error


class _Threads:
    """How many threads the workers have, asked for once a second at most: they come and go.

    If they have none it says so, for a cell that waits for them is no failure.
    """

    def __init__(self, client: Any) -> None:
        self._client, self._known, self._asked = client, 0, -math.inf

    def __call__(self) -> int:
        now = time.monotonic()
        if now >= self._asked + _LOOK_AGAIN:
            self._known, self._asked = sum(self._client.nthreads().values()), now
            if not self._known:
                _LOG.warning("the cluster has no workers at present: cells wait until some join")
        return self._known


def _attempt(versions: Mapping[str, str | None], attempt: Attempt, cell: Cell) -> Outcome:
    """Compute a cell on a worker, which may have joined after the others were checked."""
    if difference := _difference(versions, _versions(), "that took a cell"):
        raise WorkerError(difference)
    (outcome,) = attempt([cell])
    return outcome


def _outcome(cell: Cell, result: Any) -> Outcome:
    from distributed import KilledWorker

    if isinstance(result, Outcome):
        return result
    error = result[1] if isinstance(result, tuple) else result  # Dask adds type and traceback
    if isinstance(error, KilledWorker):
        return Outcome(cell, None, f"worker died: {error}")
    raise _lost(error)


def _lost(error: BaseException) -> WorkerError:
    why = " ".join(f"{type(error).__name__}: {error}".split())  # on one line
    return WorkerError(
        f"the cluster does not compute any more: {why}; finished cells are kept: mend this and "
        "repeat the command to go on"
    )
