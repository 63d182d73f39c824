"""Formulas, as in ``"nox ~ bs(equivalence_ratio, df=4)"``: covariates computed from columns.

formulaic (extra ``bayesmoe[formula]``) parses and computes the terms, which are those of R:
``a + b``, ``a:b``, ``a * b``, ``poly(a, 2)``, ``bs(a, df=4)``, ``C(a)``, ``log(a)``, ``I(a**2)``.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bayesmoe.data.frames import Frame, as_pandas
from bayesmoe.data.grammar import FormulaError, Parsed, load_formulaic, parse, reason
from bayesmoe.data.table import (
    Axis,
    Table,
    check_names,
    check_present,
    drop_incomplete,
    numbers_or_levels,
    read_texts,
)

__all__ = ["Design", "FormulaError", "design", "read_design"]

_POINTS = 161  # of an axis


class _Training(NamedTuple):
    """What the rows that a design was made of leave for others."""

    parsed: Parsed
    specs: tuple[Any, ...]  # of experts and gate: terms, with knots, centres, levels and the like
    data: pd.DataFrame
    levels: dict[str, list[Any]]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Design:
    """The covariates and the response of a formula, from `bayesmoe.design`.

    Attributes
    ----------
    formula, gate
        As given; gate is None if the gate has the terms of the experts.
    x
        Covariates, one row for each of the frame: the experts' columns, then those of the gate
        alone. There is no intercept: experts and gates have their own.
    y
        The response, named as the formula has it.
    expert_covariates, gate_covariates
        The numbers of the columns that each depends on; None for all.
    """

    formula: str
    gate: str | None
    x: pd.DataFrame
    y: pd.Series
    expert_covariates: tuple[int, ...] | None
    gate_covariates: tuple[int, ...] | None
    _training: _Training

    @property
    def covariates(self) -> dict[str, tuple[int, ...] | None]:
        """The columns of gate and experts as arguments of `bayesmoe.moe` or `MoERegressor`."""
        return {
            "gate_covariates": self.gate_covariates,
            "expert_covariates": self.expert_covariates,
        }

    @property
    def columns(self) -> pd.DataFrame:
        """The columns of the frame that terms are computed from, as terms see them."""
        return self._training.data[list(self._training.parsed.covariates)]

    @property
    def levels(self) -> dict[str, list[Any]]:
        """Of each of these columns that has levels, which these are."""
        return {name: self._training.levels[name] for name in self.columns
                if name in self._training.levels}  # fmt: skip

    @property
    def table(self) -> Table:
        """x and y."""
        return Table(self.x, self.y)

    def at(self, frame: Frame) -> pd.DataFrame:
        """The covariates in other rows, shape ``(m, d)``, with the columns of ``x``.

        Knots, centres, scales, orthogonal polynomials and levels are those of the rows that the
        design was made of. The response is not needed.

        Raises
        ------
        FormulaError
            If a column is missing or of another type, a value is missing or infinite, or gives a
            term that is, a level is new, or a spline is asked for beyond its range.
        """
        rows: pd.DataFrame = as_pandas(frame)
        _column_names(rows)
        x = self._terms_at(self._read(rows)).set_axis(rows.index)
        _check_finite(x)
        return x

    def axis(self) -> Axis | None:
        """The first column of numbers that a term is computed from, for curves along it.

        None if there is none, all being levels. Points at which a term is not finite are left out.
        """
        parsed, _, data, levels = self._training
        name = next((name for name in parsed.covariates if name not in levels), None)
        if name is None:
            return None
        values = data[name].to_numpy()
        points = np.linspace(values.min(), values.max(), _POINTS)
        held = {other: _middle(data[other]) for other in parsed.covariates if other != name}
        rows = {name: points} | {
            other: pd.Series([value] * _POINTS, dtype=data[other].dtype)
            for other, value in held.items()
        }
        at = self._terms_at(pd.DataFrame(rows)).to_numpy()
        there = np.isfinite(at).all(axis=1)
        told = {other: str(value) if other in levels else value for other, value in held.items()}
        return Axis(name, values, points[there], at[there], told) if there.sum() > 1 else None

    def __repr__(self) -> str:
        gate = "" if self.gate is None else f", gate={self.gate!r}"
        return f"<Design {self.formula!r}{gate}: n = {len(self.y)}, d = {self.x.shape[1]}>"

    def _terms_at(self, data: pd.DataFrame) -> pd.DataFrame:
        terms = zip((self.formula, self.gate), self._training.specs, strict=False)
        return _union([_evaluate(spec, data, text)[0] for text, spec in terms])

    def _read(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Columns of the types that those of the design have, with no other levels."""
        parsed, _, data, levels = self._training
        read = _typed(frame, parsed.covariates, levels)
        for name, values in read.items():
            _check_values(str(name), values, levels.get(str(name)))
        return read.astype(data.dtypes[read.columns])


def design(formula: str, frame: Frame, gate: str | None = None) -> Design:
    """Covariates and response from a data frame by a formula, and by another for the gate.

    Parameters
    ----------
    formula
        Response and the terms of the experts' means, as in ``"nox ~ poly(equivalence_ratio, 2)"``.
        ``.`` stands for all other columns, 1 for none. The response may be transformed; everything
        is then on its scale, log-likelihoods too.
    frame
        Of pandas or polars. Any other columns are ignored. Columns of text and of categories have
        levels; numbers have them inside ``C()``. The first level is the reference.
    gate
        The terms of the gate's logits, as in ``"~ equivalence_ratio"``; ``"~ 1"`` for constant
        mixing weights, None for the terms of the experts.

    Returns
    -------
    Design
        ``x``, ``y``, and the columns of gate and experts: ``bm.moe("softmax", 2,
        **design.covariates)``.

    Raises
    ------
    FormulaError
        A ValueError that names what is wrong: a malformed formula, one without intercept, without
        a response or with two, the response among the covariates, unknown columns or functions,
        values that are missing or infinite, in a column or in a term.

    Notes
    -----
    A formula is arithmetic of columns and of the functions in `bayesmoe.data.grammar.FUNCTIONS`,
    and of NumPy's that work value by value (``np.sqrt``); no variable of the caller is seen and
    nothing else is evaluated. A square is ``I(a**2)``: ``a**2``, in R ``a`` itself, is refused.
    The bases of ``cr``, ``cs`` and ``cc`` sum to one; beside an intercept they need
    ``constraints="center"``.
    """
    rows: pd.DataFrame = as_pandas(frame)
    parsed = parse(formula, gate, _column_names(rows))
    used = (*parsed.response_columns, *parsed.covariates)
    check_names(used)
    data = _typed(rows, used, parsed.categorical)
    levels = {name: _find_levels(data[name]) for name in used
              if name in parsed.categorical or data[name].dtype != float}  # fmt: skip
    y = _response(parsed, data, levels, formula).set_axis(rows.index)
    terms = (formula, parsed.experts), (gate, parsed.gate)
    parts, specs = zip(
        *(_evaluate(_spec(part), data, text) for text, part in terms if part is not None),
        strict=True,
    )
    x = _union(parts).set_axis(rows.index)
    if not x.shape[1]:
        raise FormulaError(f"the terms of {formula!r} give no column; choose other terms")
    _check_finite(x)
    experts, gates = (_numbers(part.columns, x.columns) for part in (parts[0], parts[-1]))
    training = _Training(parsed, specs, data, levels)
    return Design(formula, gate, x, y, experts, gates, training)


def _response(
    parsed: Parsed, data: pd.DataFrame, levels: Collection[str], formula: str
) -> pd.Series:
    for name in parsed.response_columns:
        if name in levels:
            raise FormulaError(
                f"the response {name!r} has levels, such as {data[name].tolist()[0]!r}; it must be "
                "numbers"
            )
    response, _ = _evaluate(_spec(parsed.response), data, formula)
    if response.shape[1] != 1:
        raise FormulaError(
            f"the response of {formula!r} is {response.shape[1]} columns; it must be one"
        )
    _check_finite(response)
    return response.iloc[:, 0]


def read_design(
    source: str, formula: str, gate: str | None = None, *, drop_missing: bool = False
) -> Design:
    """The design of a CSV file or a shipped data set, as of `read_table`.

    A column with any number is one of numbers, any other one of levels. With ``drop_missing``
    the rows in which a column of the formulas has no value are left out.

    Raises
    ------
    ValueError
        As `read_table` and `design` do; and if a covariate or the response is constant.
    """
    return make_design(read_texts(source), formula, gate, drop_missing)


def make_design(texts: pd.DataFrame, formula: str, gate: str | None, drop_missing: bool) -> Design:
    """The design of columns of texts, as `read_design` makes it."""
    parsed = parse(formula, gate, _column_names(texts))
    names = (*parsed.response_columns, *parsed.covariates)
    frame = pd.DataFrame({name: numbers_or_levels(texts[name]) for name in names})
    if drop_missing:
        frame = drop_incomplete(frame)
    found = design(formula, frame, gate)
    for name, values in [*found.x.items(), (found.y.name, found.y)]:
        if values.nunique() < 2:
            raise FormulaError(
                f"{name} of {formula!r} has the one distinct value {values[0]:g}; there is nothing "
                "to model: leave it out, or use other data"
            )
    return found


# --- columns of the frame


def _column_names(frame: Any) -> list[str]:
    """The names, once they are known to be of a data frame with rows, and distinct texts."""
    if not isinstance(frame, pd.DataFrame):
        raise FormulaError(
            f"frame must be a DataFrame of pandas or polars, got {type(frame).__name__}; convert "
            "it first"
        )
    names = list(frame.columns)
    for name in names:
        if not isinstance(name, str):
            raise FormulaError(f"frame has a column named {name!r}; names must be texts")
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise FormulaError(f"frame has two columns named {repeated[0]!r}; rename one")
    if not len(frame):
        raise FormulaError("frame has no rows; at least one row is needed")
    return names


def _typed(frame: pd.DataFrame, names: Iterable[str], levels: Collection[str]) -> pd.DataFrame:
    """Columns as float64, or as what has levels: texts, categories, whole numbers."""
    columns = {}
    for name in names:
        if name not in frame.columns:
            raise FormulaError(f"frame has no column {name!r}, which the formula needs")
        values = _column(name, frame[name].reset_index(drop=True))
        if name in levels and values.dtype == float and (values == values.round()).all():
            values = values.astype(int)  # so that levels are named 2 and not 2.0
        columns[name] = values
    return pd.DataFrame(columns)


def _column(name: str, values: pd.Series) -> pd.Series:
    if isinstance(values.dtype, pd.CategoricalDtype):
        check_present(name, values.isna())
        return values.cat.remove_unused_categories()
    present = values.dropna()
    if len(present) and all(isinstance(value, str) for value in present):
        check_present(name, values.isna())
        return values.astype(object)
    try:
        if values.dtype.kind not in "biufO":
            raise TypeError(f"it has {values.dtype}")
        numbers = values.astype(object).where(~values.isna(), np.nan).astype(float)
    except (TypeError, ValueError, OverflowError) as error:
        raise FormulaError(
            f"column {name!r} is neither all numbers nor all texts: {error}; convert it first"
        ) from None
    check_present(name, ~np.isfinite(numbers))
    return numbers


def _check_values(name: str, values: pd.Series, levels: list[Any] | None) -> None:
    """Raise FormulaError at new levels, and at levels in place of numbers."""
    shown = values.tolist()
    if levels is None:
        if values.dtype != float:
            raise FormulaError(
                f"column {name!r} has levels, {shown[0]!r} in row 1, but numbers in the rows of "
                "the design; pass numbers"
            )
        return
    new = ~values.isin(levels).to_numpy()
    if new.any():
        row = int(np.argmax(new))
        raise FormulaError(
            f"column {name!r} has {shown[row]!r} in row {row + 1}, a level that the rows of the "
            f"design lack: they have {_listed(levels)}; nothing is known of others"
        )


def _find_levels(values: pd.Series) -> list[Any]:
    """The levels, in the order in which terms have them."""
    categories = isinstance(values.dtype, pd.CategoricalDtype)
    found = values.cat.categories.tolist() if categories else sorted(values.unique().tolist())
    if len(found) < 2:
        raise FormulaError(
            f"column {values.name!r} has the one level {found[0]!r}; there is nothing to compare: "
            "leave it out, or use other data"
        )
    return found


def _middle(values: pd.Series) -> Any:
    """A median of numbers, the most frequent of levels: a value that occurs."""
    if values.dtype == float:
        return float(np.sort(values)[(len(values) - 1) // 2])
    return values.mode().iloc[0]


def _listed(levels: list[Any]) -> str:
    shown = ", ".join(map(repr, levels[:10]))
    return shown if len(levels) <= 10 else f"{shown} and {len(levels) - 10} more"


# --- terms


def _spec(terms: Any) -> Any:
    """What formulaic is to compute; missing values are refused before and after."""
    formulaic = load_formulaic()
    return formulaic.ModelSpec(formula=terms, na_action="ignore", output="numpy")


def _evaluate(spec: Any, data: pd.DataFrame, formula: str | None) -> tuple[pd.DataFrame, Any]:
    """The columns of all terms but the intercept, and the terms with what the data settled."""
    errors = load_formulaic().errors
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # values are checked
            warnings.simplefilter("error", errors.DataMismatchWarning)
            matrix = spec.get_model_matrix(data, context={})
    except errors.DataMismatchWarning as error:
        found = str(error).partition("}")[0].rpartition("{")[2]
        raise FormulaError(
            f"{formula!r} has values without a level, {found}; name all levels in C()"
        ) from None
    except Exception as error:  # what fails in a term depends on the user's text and data alone
        raise FormulaError(f"{formula!r} cannot be computed: {reason(error)}") from error
    fitted = matrix.model_spec
    kept = [i for term, columns in fitted.term_indices.items() if term.degree for i in columns]
    names = [fitted.column_names[i] for i in kept]
    for name in names:
        if names.count(name) > 1:
            raise FormulaError(f"two terms of {formula!r} have a column {name!r}; leave out one")
    return pd.DataFrame(np.asarray(matrix, dtype=float)[:, kept], columns=names), fitted


def _union(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The columns of all parts, those of one name once."""
    columns: dict[str, pd.Series] = {}
    for name, values in (item for part in parts for item in part.items()):
        if not columns.setdefault(str(name), values).equals(values):
            raise FormulaError(f"two terms give a column {name!r}; rename columns of the table")
    return pd.DataFrame(columns)


def _numbers(own: Iterable[str], every: Iterable[str]) -> tuple[int, ...] | None:
    """Where a part's columns are among all; None for all."""
    names = list(every)
    found = sorted(names.index(name) for name in own)
    return None if len(found) == len(names) else tuple(found)


def _check_finite(columns: pd.DataFrame) -> None:
    for name, values in columns.items():
        bad = ~np.isfinite(values.to_numpy())
        if bad.any():
            raise FormulaError(
                f"{name} is missing or infinite in {int(bad.sum())} rows, the first row "
                f"{int(np.argmax(bad)) + 1}; choose a term that every row has"
            )
