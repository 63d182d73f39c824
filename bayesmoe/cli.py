"""The command line: ``bayesmoe study run`` and ``bayesmoe fit``.

Errors of the user are one line on stderr and exit status 2, before anything is computed or written.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bayesmoe.core.model import MoE
from bayesmoe.data.table import read_table, shipped_data_sets
from bayesmoe.diagnostics.analysis import analyse
from bayesmoe.models import GATES, moe
from bayesmoe.report.files import check_new, write_analysis, write_study
from bayesmoe.report.terminal import StudyProgress, print_analysis, print_study
from bayesmoe.study.engine import CellError, run_study
from bayesmoe.study.outputs import write_outputs
from bayesmoe.study.plan import load_plan
from bayesmoe.study.store import Store

app = typer.Typer(
    help="Bayesian Gaussian mixtures of experts: MLE, MAP and posteriors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
study = typer.Typer(help="Convergence studies.", no_args_is_help=True)
app.add_typer(study, name="study")

Out = Annotated[Path, typer.Option("--out", help="Directory for the results.")]


@study.command("run")
def study_run(
    plan: Annotated[str, typer.Argument(help='A preset ("quick") or a TOML file.')],
    out: Out,
) -> None:
    """Run a study, or go on with one that was interrupted."""
    with _user_errors():
        chosen = load_plan(plan)
        stack = contextlib.ExitStack()
        store = stack.enter_context(Store.open(out, chosen))
    with stack, StudyProgress(chosen, store.finished()) as progress:
        run_study(chosen, store, observe=progress.advance)
        progress.finish("slopes, figures and report")
        outputs = write_outputs(chosen, store)
        page = write_study(out, outputs.results, outputs.slopes, outputs.counts)
    print_study(outputs.results, outputs.slopes, outputs.counts)
    typer.echo(f"report: {page}")


@app.command()
def fit(
    data: Annotated[
        str, typer.Argument(help=f"A CSV file, or one of {', '.join(shipped_data_sets())}.")
    ],
    response: Annotated[str, typer.Option(help="The column to model.")],
    gate: Annotated[str, typer.Option(help=f"One of {', '.join(GATES)}.")],
    experts: Annotated[int, typer.Option(help="The number of experts k.")],
    out: Out,
    covariate: Annotated[
        list[str] | None, typer.Option(help="A column to model by; all others by default.")
    ] = None,
    activation: Annotated[
        str | None, typer.Option(help="Of the gate activation_dense_to_sparse.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Of the gate top_k_sparse.")] = None,
    prior: Annotated[str, typer.Option(help="weak or compact.")] = "weak",
    seed: Annotated[int, typer.Option(min=0, help="Seeds starts and chains.")] = 0,
) -> None:
    """Fit one model to one's own data: MLE, MAP and posterior."""
    with _user_errors():
        check_new(out)
        options: dict[str, Any] = {"activation": activation, "top_k": top_k}
        given = {name: value for name, value in options.items() if value is not None}
        model: MoE = moe(gate, experts, prior, **given)
        table = read_table(data, response, covariate or ())
        analysis = analyse(model, table, key=seed)
    write_analysis(out, analysis)
    print_analysis(analysis)
    typer.echo(f"results: {out}")


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """A ValueError becomes one message on stderr and exit status 2."""
    try:
        yield
    except ValueError as error:
        for line in str(error).splitlines():
            typer.echo(f"error: {line}", err=True)
        raise typer.Exit(2) from None


def main() -> None:
    """The entry point."""
    try:
        app()
    except CellError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; repeat the command to go on")
        sys.exit(130)
