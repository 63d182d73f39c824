"""What the commands share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from bayesmoe.data.formula import read_design
from bayesmoe.data.table import Axis, Table, read_table
from bayesmoe.diagnostics.stored_fit import NO_COVARIATE

Out = Annotated[Path, typer.Option("--out", help="Directory for the results.")]


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """A ValueError becomes one message on stderr and exit status 2."""
    try:
        yield
    except ValueError as error:
        say_error(error)
        raise typer.Exit(2) from None


def say_error(error: object) -> None:
    """One line on stderr for each line of the error."""
    for line in str(error).splitlines():
        typer.echo(f"error: {line}", err=True)


class Data(NamedTuple):
    """What is to be modelled: a table, and the columns of it that gate and experts depend on."""

    table: Table
    gate_covariates: tuple[str, ...] | None
    expert_covariates: tuple[str, ...] | None
    axis: Axis | None = None

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
) -> Data:
    """Read what the options of ``fit`` and ``compare`` say, columns or formulas.

    Raises
    ------
    ValueError
        If both are given, or neither, or as `read_table` and `read_design` do.
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
        table = read_table(source, response, covariates or ())
        columns = [str(name) for name in table.x.columns]
        return Data(table, _names(gate_covariates, columns), _names(expert_covariates, columns))
    if given:
        raise ValueError(
            f"--formula names response and covariates, and so does {given[0]}; give one of them"
        )
    design = read_design(source, formula, gate_formula)
    names = [str(name) for name in design.x.columns]
    gate, experts = (
        None if numbers is None else tuple(names[number] for number in numbers)
        for numbers in (design.gate_covariates, design.expert_covariates)
    )
    return Data(design.table, gate, experts, design.axis())


def _names(given: list[str] | None, columns: list[str]) -> tuple[str, ...] | None:
    """The names given to a repeated option; the word for none, if no column, stands for none."""
    if given is None:
        return None
    return () if given == [NO_COVARIATE] and NO_COVARIATE not in columns else tuple(given)
