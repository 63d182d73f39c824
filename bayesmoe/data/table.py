"""Tables of one's own data, checked before anything is computed; and the data sets shipped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from bayesmoe.core.validate import check_spread
from bayesmoe.data.frames import read_parquet

_PARQUET = (".parquet", ".pq")
_SHOWN = 5  # rows in an error
_MISSING = ("", "na", "nan", "null")


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


class Axis(NamedTuple):
    """A column of one's own that curves run along, where covariates are derived from it.

    Attributes
    ----------
    name
        The column.
    values
        Its value in each row of the table, shape ``(n,)``.
    points
        Ascending values to draw at, shape ``(m,)``.
    at
        The covariates at these points, shape ``(m, d)``.
    held
        The other columns, and where they are held: numbers at their median, levels at the most
        frequent.
    """

    name: str
    values: np.ndarray
    points: np.ndarray
    at: np.ndarray
    held: dict[str, float | str]


def shipped_data_sets() -> dict[str, Path]:
    """The data sets of the package: name, as in ``"co2"``, to CSV file."""
    files = resources.files("bayesmoe.data").iterdir()
    paths = sorted(Path(str(file)) for file in files if file.name.endswith(".csv"))
    return {path.stem: path for path in paths}


def read_table(
    source: str, response: str, covariates: Sequence[str] = (), *, drop_missing: bool = False
) -> Table:
    """Read a CSV or Parquet file, or a shipped data set by its name.

    Parameters
    ----------
    source
        Path of a CSV file with a header, of a Parquet file (its name ends in ``.parquet`` or
        ``.pq``; extra ``bayesmoe[polars]``), or a name out of `shipped_data_sets`, with or without
        the ending ``.csv``.
    response
        The column to model.
    covariates
        The columns to model it by; all others by default.
    drop_missing
        Leave out the rows in which one of these has no value; by default there may be none.

    Raises
    ------
    ValueError
        If the file cannot be read, a column is missing, named twice, constant or varies too little
        for its size, or a value is not a finite number.
    """
    return make_table(read_texts(source), source, response, covariates, drop_missing)


def make_table(
    frame: pd.DataFrame,
    source: str,
    response: str,
    covariates: Sequence[str],
    drop_missing: bool,
) -> Table:
    """The table of columns of texts, as `read_table` makes it."""
    chosen = list(covariates) or [name for name in frame.columns if name != response]
    for name in (response, *chosen):
        if name not in frame.columns:
            known = ", ".join(map(repr, frame.columns))
            raise ValueError(f"{source} has no column {name!r}; name one of its columns: {known}")
    check_names(chosen)
    if response in chosen:
        raise ValueError(f"{response!r} is the response and a covariate; name other covariates")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"a covariate is named twice: {', '.join(chosen)}; name each once")
    if not chosen:
        raise ValueError(f"{source} has no column beside {response!r}; covariates are needed")
    names = (*chosen, response)
    numbers = pd.DataFrame({name: _numbers(frame[name], name, drop_missing) for name in names})
    if drop_missing:
        numbers = drop_incomplete(numbers)
    for name in names:
        check_varies(name, numbers[name])
        check_spread(f"column {name!r}", numbers[name].to_numpy())
    return Table(numbers[chosen], numbers[response])


def check_names(chosen: Sequence[str]) -> None:
    """Raise ValueError if a column chosen has no name, as row names written by pandas and R."""
    if not all(name.strip() for name in chosen):
        raise ValueError(
            "a column without a name, row names perhaps, would be a covariate; name the covariates "
            "to use, or write the file without it (in pandas index=False, in R row.names = FALSE)"
        )


def read_texts(source: str) -> pd.DataFrame:
    """All columns of a file, or of a shipped data set, as the texts that are in it as CSV.

    Raises
    ------
    ValueError
        If the file cannot be read, has no rows, or two columns of one name.
    """
    path = Path(source)
    if not path.exists() or path.is_dir():
        path = shipped_data_sets().get(source.removesuffix(".csv"), path)
    if path.suffix.lower() in _PARQUET and path.exists():
        return _checked_rows(_texts(read_parquet(path)), source)
    try:
        raw = _read_csv(path)
    except FileNotFoundError:
        raise ValueError(
            f"there is no file {source!r}; shipped data sets: {', '.join(shipped_data_sets())}"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{source} is not encoded as UTF-8; save it as UTF-8") from None
    except pd.errors.ParserError as error:
        _check_commas(_read_csv(path, nrows=1), source)
        raise ValueError(f"{source} cannot be read as CSV: {_fault(str(error))}") from None
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{source} cannot be read as CSV: {error}") from None
    _check_commas(raw, source)
    names = raw.iloc[0]
    if names.duplicated().any():
        raise ValueError(
            f"{source} has two columns named {names[names.duplicated()].iloc[0]!r}; rename one"
        )
    rows = raw.iloc[1:].reset_index(drop=True).set_axis(names.tolist(), axis=1)
    return _checked_rows(rows, source)


def _read_csv(path: Path, nrows: int | None = None) -> pd.DataFrame:
    """Texts, the header among the rows, so that pandas does not rename columns that occur twice."""
    return pd.read_csv(
        path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig", nrows=nrows
    )


def _check_commas(raw: pd.DataFrame, source: str) -> None:
    """Raise ValueError if the header is one name with semicolons or tabs in it."""
    header = str(raw.iloc[0, 0])
    if raw.shape[1] == 1 and (";" in header or "\t" in header):
        raise ValueError(
            f"{source} has no comma in its header, {header!r}; write it with commas between "
            "values, and with decimal points"
        )


def _fault(text: str) -> str:
    """What is wrong with a CSV file, and the mend, out of the words of pandas' parser."""
    rows = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", text)
    if rows:
        return (
            f"line {rows[2]} has {rows[3]} values, but the lines before have {rows[1]}; give every "
            "row as many values as the header has names (in R, row.names = FALSE)"
        )
    if "EOF inside string" in text:
        return "a quotation mark is never closed; close it, or leave it out"
    return text.rpartition("C error: ")[2]


def _checked_rows(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    if not len(frame):
        raise ValueError(f"{source} has a header but no rows; at least one row is needed")
    return frame


def _texts(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of any type as texts, empty where a value is missing; numbers lose no digit."""
    columns = {}
    for name, values in frame.items():
        values = values.astype(float) if values.dtype.kind == "f" else values
        columns[str(name)] = values.astype(object).map(str).where(values.notna(), "")
    return pd.DataFrame(columns, dtype=object)


def numbers_or_levels(texts: pd.Series) -> pd.Series:
    """The column as numbers if it has any, else as levels; what is missing becomes NaN or None.

    "none" is missing among numbers, and a level among levels.

    Raises
    ------
    ValueError
        If it has numbers as well as other texts.
    """
    stripped = texts.str.strip()
    values = pd.to_numeric(stripped, errors="coerce").astype(float)
    missing, none = stripped.str.lower().isin(_MISSING), stripped.str.lower() == "none"
    text = values.isna() & ~missing & ~none
    if not text.any():
        return values
    if values.notna().any():
        row = int(np.argmax(text)) + 1
        raise ValueError(
            f"column {texts.name!r} has numbers, but row {row} is {texts[row - 1]!r}; mend this "
            "value, or if these are levels write all of them as words"
        )
    return stripped.astype(object).where(~missing, None)


def check_present(name: str, bad: pd.Series | np.ndarray) -> None:
    """Raise ValueError if any value is bad, with their count and their rows, from 1."""
    if np.any(bad):
        raise ValueError(
            f"column {name!r} has {_told(np.flatnonzero(bad) + 1)}; remove or impute first what is "
            "missing, or leave out those rows (--drop-missing, drop_missing=True)"
        )


def _told(rows: np.ndarray) -> str:
    if len(rows) == 1:
        return f"a value that is missing or infinite, in row {rows[0]}"
    shown = ", ".join(map(str, rows[:_SHOWN]))
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"{len(rows)} values that are missing or infinite, in rows {shown}{more}"


def drop_incomplete(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in which nothing is missing, numbered anew.

    Raises
    ------
    ValueError
        If there is none; infinite numbers are not missing, and raise it, too.
    """
    for name, values in frame.items():
        if values.dtype == float:
            check_present(str(name), np.isinf(values))
    kept = frame.dropna().reset_index(drop=True)
    if not len(kept):
        names = ", ".join(map(str, frame.columns))
        raise ValueError(
            f"every row lacks a value in one of {names}; leave columns out that are mostly empty"
        )
    return kept


def check_varies(name: str, values: pd.Series) -> None:
    """Raise ValueError if all values are the same."""
    if values.nunique() < 2:
        raise ValueError(
            f"column {name!r} has the one distinct value {values[0]:g}; there is nothing to model: "
            "leave it out, or use other data"
        )


def _numbers(texts: pd.Series, name: str, missing: bool) -> pd.Series:
    """The column as finite numbers; row numbers in errors count from 1, header apart."""
    exact = pd.to_numeric(texts.str.strip(), errors="coerce")
    values = exact.astype(float)
    if values.nunique() < 2 <= exact.nunique():
        raise ValueError(
            f"column {name!r} has whole numbers near {values[0]:g} that float64 cannot tell apart; "
            "subtract a constant from it"
        )
    blank = texts.str.strip().str.lower().isin([*_MISSING, "none"])
    text = values.isna() & ~blank
    if text.any():
        row = int(np.argmax(text)) + 1
        raise ValueError(
            f"column {name!r} is not numeric: row {row} is {texts[row - 1]!r}; "
            "choose numeric covariates with --covariate, or encode it as numbers"
        )
    if not missing:
        check_present(name, ~np.isfinite(values))
    return values
