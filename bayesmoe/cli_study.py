"""The commands ``bayesmoe study run``, ``status``, ``merge`` and ``schema``."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from bayesmoe.cli_common import INTERRUPTED, Out, say_error, user_errors
from bayesmoe.report.files import write_study
from bayesmoe.report.terminal import (
    StudyProgress,
    print_failures,
    print_plan,
    print_status,
    print_study,
)
from bayesmoe.study.cluster import cluster
from bayesmoe.study.engine import run_study
from bayesmoe.study.executors import Executor, WorkerError, in_threads
from bayesmoe.study.merge import merge
from bayesmoe.study.outputs import write_outputs
from bayesmoe.study.plan import Plan, load_plan
from bayesmoe.study.processes import in_processes
from bayesmoe.study.progress import count_cells, draw_bytes, estimate_core_time
from bayesmoe.study.results import failures
from bayesmoe.study.store import Store, WriteError, check_directory
from bayesmoe.study.stored import Stored, StoreError

study = typer.Typer(help="Convergence studies.", no_args_is_help=True)

_PLAN_HELP = "A preset (quick, standard, paper, lineage) or a TOML file."
PlanName = Annotated[str, typer.Argument(help=_PLAN_HELP)]
Directories = Annotated[list[Path], typer.Argument(help="Directories of studies.")]


@study.command("run")
def run(
    plan: PlanName,
    out: Out,
    max_time: Annotated[
        float | None, typer.Option(min=0, help="Minutes after which no further cell is begun.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Look for damaged cells and compute them anew.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what there is to do, and how long it takes.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Compute in so many processes, not in threads.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Compute on the Dask cluster with this address.")
    ] = None,
) -> None:
    """Run a study, go on with one that was interrupted, or extend one."""
    with contextlib.ExitStack() as stack:
        with user_errors():
            _check_where(workers, scheduler)
            chosen = load_plan(plan)
            if dry_run:
                _dry_run(chosen, out)
                return
            check_directory(out, chosen)
            execute = stack.enter_context(_executor(workers, scheduler))
            store = stack.enter_context(Store.open(out, chosen))
        stack.enter_context(_run_errors(out))
        if repair:
            typer.echo(f"damaged cells found: {len(store.repair())}", err=True)
        progress = stack.enter_context(StudyProgress(chosen, store.finished()))
        stop = stack.enter_context(_stopping(max_time))
        left = run_study(chosen, store, execute=execute, stop=stop.event, observe=progress.advance)
        if not left:
            progress.finish("slopes, figures and report")
            outputs = write_outputs(chosen, store)
            page = write_study(out, outputs.results, outputs.slopes, outputs.counts)
    if left:
        print_failures({cell: store.failure(cell) for cell in sorted(store.failed())})
        typer.echo(f"left to compute: {left} cells; go on with the same command")
        raise typer.Exit(INTERRUPTED if stop.interrupted else 0)
    print_study(outputs.results, outputs.slopes, outputs.counts)
    print_failures(failed := failures(outputs.results))
    typer.echo(f"report: {page}")
    if failed:
        raise typer.Exit(1)


@study.command("status")
def status(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A study's directory.")],
) -> None:
    """Say how far a study is; it may be running."""
    with user_errors():
        stored = Stored(directory)
        counts = count_cells(stored)
        reasons = {cell: stored.failure(cell) for cell in sorted(stored.failed())}
    print_status(counts)
    print_failures(reasons)


@study.command("merge")
def merge_studies(directories: Directories, out: Out) -> None:
    """Put the cells of several directories into one; go on there with "run"."""
    with user_errors(), _run_errors(out, WriteError):
        merged = merge(directories, out)
    typer.echo(f"{merged.finished} of {merged.total} cells are in {out}, {merged.failed} failed")
    typer.echo(f"go on with: bayesmoe study run {out / 'plan.toml'} --out {out}")


@study.command("schema")
def schema() -> None:
    """Print the JSON schema of plans."""
    typer.echo(json.dumps(Plan.model_json_schema(), indent=2, ensure_ascii=False))


def _check_where(workers: int | None, scheduler: str | None) -> None:
    if workers is not None and scheduler is not None:
        raise ValueError(
            f"--workers {workers} is for this machine and --scheduler {scheduler} for a cluster; "
            "give one of them"
        )


@contextlib.contextmanager
def _executor(workers: int | None, scheduler: str | None) -> Iterator[Executor]:
    """What computes the cells: a cluster, processes or, by default, threads."""
    if scheduler is not None:
        with cluster(scheduler) as execute:
            yield execute
    elif workers is not None:
        yield functools.partial(in_processes, n_workers=workers)
    else:
        yield in_threads


def _dry_run(plan: Plan, out: Path) -> None:
    """What there is to do; nothing is written or locked."""
    stored = check_directory(out, plan)
    cells = list(plan.cells())
    finished = stored.finished() if stored else set()
    missing = [cell for cell in cells if cell not in finished]
    estimate = estimate_core_time(plan, missing, stored)
    print_plan(len(cells), len(missing), estimate, draw_bytes(plan, missing))


class _Stop:
    """A wish to stop, and whether it came from the keyboard."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.interrupted = False

    def interrupt(self, *_: object) -> None:
        """Handle a signal: first finish what was begun, then leave at once."""
        if self.interrupted:
            os._exit(INTERRUPTED)  # threads cannot be ended; the store may be left at any moment
        self.interrupted = True
        self.event.set()
        typer.echo("interrupted: cells begun are finished; press Ctrl-C again to leave", err=True)


@contextlib.contextmanager
def _stopping(minutes: float | None) -> Iterator[_Stop]:
    """Have Ctrl-C and the time limit stop a study without loss."""
    stop = _Stop()
    timer = threading.Timer(60 * (minutes or 0), stop.event.set)
    timer.daemon = True
    previous = signal.signal(signal.SIGINT, stop.interrupt)
    try:
        if minutes is not None:
            timer.start()
        yield stop
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _run_errors(out: Path, kind: type[StoreError] = StoreError) -> Iterator[None]:
    """What disk or workers refuse once work has begun is one message and exit status 1."""
    try:
        yield
    except (kind, WorkerError) as error:
        say_error(error)
    except OSError as error:
        say_error(f"cannot write to {out}: {error.strerror}; finished cells are kept")
    else:
        return
    raise typer.Exit(1)
