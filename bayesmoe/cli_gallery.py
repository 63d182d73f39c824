"""The command line: ``bayesmoe gallery``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import typer

from bayesmoe.cli_common import Out, interruptible, user_errors, write_errors
from bayesmoe.report.files import check_new, write_gallery
from bayesmoe.report.gallery import PLAN, compute, draw
from bayesmoe.report.terminal import StudyProgress, print_failures
from bayesmoe.study.engine import run_study
from bayesmoe.study.outputs import Outputs, write_outputs
from bayesmoe.study.plan import load_plan
from bayesmoe.study.results import failures
from bayesmoe.study.store import Store


@interruptible()
def gallery(out: Out) -> None:
    """Draw every figure, from the study "quick" and shipped data: a quarter of an hour."""
    with user_errors():
        check_new(out)
    study = _run_study()
    models = compute(_say)
    _say("figures")
    with write_errors(out):
        page = write_gallery(out, draw(study.results, study.slopes, models))
    print_failures(failed := failures(study.results))
    typer.echo(f"gallery: {page}")
    if failed:
        raise typer.Exit(1)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _run_study() -> Outputs:
    """The preset's results; its store is not kept."""
    plan = load_plan(PLAN)
    with (
        tempfile.TemporaryDirectory(prefix="bayesmoe-gallery-") as directory,
        Store.open(Path(directory) / "study", plan) as store,
        StudyProgress(plan, ()) as progress,
    ):
        run_study(plan, store, observe=progress.advance)
        progress.finish("slopes")
        return write_outputs(plan, store)
