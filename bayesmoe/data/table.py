"""Tables of one's own data, checked before anything is computed; and the data sets shipped."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd


class Table(NamedTuple):
    """Covariates and response: finite float64, no constant column.

    Attributes
    ----------
    x
        ``n`` rows, ``d`` columns.
    y
        ``n`` rows.
    """

    x: pd.DataFrame
    y: pd.Series


def shipped_data_sets() -> dict[str, Path]:
    """The data sets of the package: name, as in ``"co2"``, to CSV file."""
    files = resources.files("bayesmoe.data").iterdir()
    paths = sorted(Path(str(file)) for file in files if file.name.endswith(".csv"))
    return {path.stem: path for path in paths}


def read_table(source: str, response: str, covariates: Sequence[str] = ()) -> Table:
    """Read a CSV file, or a shipped data set by its name.

    Parameters
    ----------
    source
        Path of a CSV file with a header, or a name out of `shipped_data_sets`, with or without
        the ending ``.csv``.
    response
        The column to model.
    covariates
        The columns to model it by; all others by default.

    Raises
    ------
    ValueError
        If the file cannot be read, a column is missing, named twice or constant, or a value is
        not a finite number.
    """
    frame = _read(source)
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise ValueError(f"{source} has two columns named {repeated[0]!r}; rename one")
    chosen = list(covariates) or [name for name in frame.columns if name != response]
    for name in (response, *chosen):
        if name not in frame.columns:
            raise ValueError(
                f"{source} has no column {name!r}; its columns: {', '.join(frame.columns)}"
            )
    if response in chosen:
        raise ValueError(f"{response!r} is the response and a covariate; name other covariates")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"a covariate is named twice: {', '.join(chosen)}; name each once")
    if not chosen:
        raise ValueError(f"{source} has no column beside {response!r}; covariates are needed")
    if frame.empty:
        raise ValueError(f"{source} has a header but no rows; at least one row is needed")
    numbers = {name: _numbers(frame[name], name) for name in (*chosen, response)}
    return Table(pd.DataFrame({name: numbers[name] for name in chosen}), numbers[response])


def _read(source: str) -> pd.DataFrame:
    path = Path(source)
    if not path.exists() or path.is_dir():
        path = shipped_data_sets().get(source.removesuffix(".csv"), path)
    try:
        # header=None, so that pandas does not rename columns that occur twice
        raw = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(
            f"there is no file {source!r}; shipped data sets: {', '.join(shipped_data_sets())}"
        ) from None
    except (OSError, ValueError) as error:  # pandas' parser and decoding errors are ValueErrors
        raise ValueError(f"{source} cannot be read as CSV: {error}") from None
    names = raw.iloc[0].tolist()
    return raw.iloc[1:].reset_index(drop=True).set_axis(names, axis=1)


def _numbers(texts: pd.Series, name: str) -> pd.Series:
    """The column as finite numbers that vary; row numbers in errors count from 1, header apart."""
    values = pd.to_numeric(texts.str.strip(), errors="coerce").astype(float)
    blank = texts.str.strip().str.lower().isin(["", "na", "nan", "null", "none"])
    text = values.isna() & ~blank
    if text.any():
        row = int(np.argmax(text)) + 1
        raise ValueError(
            f"column {name!r} is not numeric: row {row} is {texts[row - 1]!r}; "
            "choose numeric covariates with --covariate, or encode it as numbers"
        )
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad)) + 1
        raise ValueError(
            f"column {name!r} has {int(bad.sum())} values that are missing or infinite, the first "
            f"in row {row}; remove or impute these rows first"
        )
    if values.nunique() < 2:
        raise ValueError(
            f"column {name!r} has the one distinct value {values[0]:g}; there is nothing to model: "
            "leave it out, or use other data"
        )
    return values
