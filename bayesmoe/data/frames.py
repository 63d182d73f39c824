"""Data frames of pandas and of polars."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import pandas as pd


class Frame(Protocol):
    """What data frames of both kinds have."""

    @property
    def columns(self) -> Any:
        """The columns' names."""
        ...

    def __getitem__(self, name: Any, /) -> Any: ...


def as_pandas(frame: Any) -> Any:
    """A polars frame as one of pandas; anything else as it is.

    Nulls become NaN or None, categories their texts.
    """
    if not _is_polars(frame):
        return frame
    return pd.DataFrame({name: frame[name].to_numpy() for name in frame.columns})


def column_names(x: Any) -> list[str] | None:
    """The names of a data frame's columns; None if ``x`` is none."""
    is_frame = isinstance(x, pd.DataFrame) or _is_polars(x)
    return [str(name) for name in x.columns] if is_frame else None


def read_parquet(path: Path) -> pd.DataFrame:
    """The columns of a Parquet file, in pandas.

    Raises
    ------
    ValueError
        If it cannot be read, or polars (extra ``bayesmoe[polars]``) is not installed.
    """
    try:
        import polars
    except ImportError:
        raise ValueError(
            'Parquet files are read by polars; install it by pip install "bayesmoe[polars]"'
        ) from None
    try:
        return pd.DataFrame(as_pandas(polars.read_parquet(path)))
    except (OSError, polars.exceptions.PolarsError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from None


def _is_polars(frame: Any) -> bool:
    """Whether it is a polars frame, without importing polars, which need not be installed."""
    kind = type(frame)
    return kind.__module__.partition(".")[0] == "polars" and kind.__name__ == "DataFrame"
