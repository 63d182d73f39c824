"""What the commands share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

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
