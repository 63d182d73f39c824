"""What the commands share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import pandas as pd
import typer

from bayesmoe.data.formula import Design, make_design
from bayesmoe.data.table import Axis, Table, make_table, read_texts
from bayesmoe.diagnostics.requests import NO_COVARIATE

INTERRUPTED = 130  # exit status

Out = Annotated[Path, typer.Option("--out", help="Directory for the results.")]


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """A ValueError becomes one message on stderr and exit status 2."""
    try:
        yield
    except ValueError as error:
        say_error(error)
        raise typer.Exit(2) from None


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C is one line on stderr and exit status 130, where results are written at the end."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing was written", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextlib.contextmanager
def write_errors(directory: Path, mend: str = "choose another --out") -> Iterator[None]:
    """What the disk refuses once all is computed is one message and exit status 1."""
    try:
        yield
    except OSError as error:  # HDF5 puts lines of its own in place of the system's words
        reason = f"{os.strerror(error.errno)}; {mend}" if error.errno else error
        say_error(f"cannot write to {directory}: {reason}")
        raise typer.Exit(1) from None


def say_error(error: object) -> None:
    """One line on stderr for each line of the error."""
    for line in str(error).splitlines():
        typer.echo(f"error: {line}", err=True)


class Data(NamedTuple):
    """What is to be modelled: a table, and the columns of it that gate and experts depend on.

    ``n_dropped`` rows of the file lack a value, and were left out; None if none may be.
    """

    table: Table
    n_dropped: int | None
    gate_covariates: tuple[str, ...] | None
    expert_covariates: tuple[str, ...] | None
    design: Design | None = None

    @property
    def axis(self) -> Axis | None:
        """What curves run along, where a formula made the covariates."""
        return None if self.design is None else self.design.axis()

    @property
    def columns(self) -> list[str]:
        """The covariates by name."""
        return [str(name) for name in self.table.x.columns]

    @property
    def response(self) -> str:
        """The response by name."""
        return str(self.table.y.name)


def read_data(
    source: str,
    response: str | None,
    covariates: list[str] | None,
    gate_covariates: list[str] | None,
    expert_covariates: list[str] | None,
    formula: str | None,
    gate_formula: str | None,
    drop_missing: bool,
) -> Data:
    """Read what the options of ``fit`` and ``compare`` say, columns or formulas.

    Raises
    ------
    ValueError
        If both are given, or neither, or as `bayesmoe.data.table.read_table` and
        `bayesmoe.data.formula.read_design` do.
    """
    by_column = {
        "--response": response,
        "--covariate": covariates,
        "--gate-covariate": gate_covariates,
        "--expert-covariate": expert_covariates,
    }
    given = [option for option, value in by_column.items() if value]
    if formula is None:
        if gate_formula is not None:
            raise ValueError(
                "--gate-formula needs --formula; by columns, it is --gate-covariate that says "
                "what the gate depends on"
            )
        if response is None:
            raise ValueError("what to model is missing; give --formula, or --response")
        texts = read_texts(source)
        table = make_table(texts, source, response, covariates or (), drop_missing)
        columns = [str(name) for name in table.x.columns]
        gates, experts = (_names(given, columns) for given in (gate_covariates, expert_covariates))
        return Data(table, _say_dropped(texts, table, drop_missing), gates, experts)
    if given:
        raise ValueError(
            f"--formula names response and covariates, and so does {given[0]}; give one of them"
        )
    texts = read_texts(source)
    design = make_design(texts, formula, gate_formula, drop_missing)
    names = [str(name) for name in design.x.columns]
    gates, experts = (
        None if numbers is None else tuple(names[number] for number in numbers)
        for numbers in (design.gate_covariates, design.expert_covariates)
    )
    n_dropped = _say_dropped(texts, design.table, drop_missing)
    return Data(design.table, n_dropped, gates, experts, design)


def _say_dropped(texts: pd.DataFrame, table: Table, drop_missing: bool) -> int | None:
    """How many rows were left out, which is told on stderr."""
    if not drop_missing:
        return None
    n_dropped = len(texts) - len(table.y)
    typer.echo(f"{n_dropped} of {len(texts)} rows lack a value and are left out", err=True)
    return n_dropped


def _names(given: list[str] | None, columns: list[str]) -> tuple[str, ...] | None:
    """The names given to a repeated option; the word for none, if no column, stands for none."""
    if given is None:
        return None
    return () if given == [NO_COVARIATE] and NO_COVARIATE not in columns else tuple(given)
