"""Formulas: terms against matrices written by hand, at any rows; misuse; fits and reports."""

from __future__ import annotations

import functools
import json
import pickle
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.interpolate
from fabricated_fit import make_analysis, make_request, point
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from typer.testing import CliRunner

import bayesmoe as bm
from bayesmoe.cli import app
from bayesmoe.data.formula import FormulaError, read_design
from bayesmoe.data.table import Axis, Table, read_table
from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.diagnostics.requests import FitRequest
from bayesmoe.diagnostics.stored_fit import load_fit, save_fit
from bayesmoe.inference.outcome import Status
from bayesmoe.regression import MoERegressor
from bayesmoe.report._curves import posterior_curves
from bayesmoe.report._panels import posterior_draws
from bayesmoe.report.files import rewrite_report, write_analysis
from bayesmoe.report.fit_figure import fit_figure
from bayesmoe.report.terminal import print_analysis

pytestmark = pytest.mark.filterwarnings("error")

N = 40
RNG = np.random.default_rng(17)
X, Z, Y = RNG.uniform(1, 3, N), RNG.normal(size=N), RNG.uniform(1, 2, N)
GROUP, YEAR = RNG.permutation(list("abcd") * 10), RNG.integers(2001, 2004, N)
FRAME = pd.DataFrame(
    {"y": Y, "x": X, "z": Z, "group": GROUP, "year": YEAR, "two words": Z**2},
    index=range(100, 100 + N),
)


def raw_poly(x: np.ndarray) -> np.ndarray:
    """Orthonormal polynomials of degrees 1 and 2 on the training rows, by QR, at any x."""
    q, r = np.linalg.qr(np.vander(X, 3, increasing=True))
    q = (q * np.sign(np.diag(r)))[:, 1:]
    return np.column_stack([np.polyval(np.polyfit(X, q[:, j], j + 1), x) for j in range(2)])


def b_spline(x: np.ndarray, n_knots: int = 2) -> np.ndarray:
    """Cubic B-splines but the first, knots at quantiles of the training rows."""
    inner = np.quantile(X, np.linspace(0, 1, n_knots + 2))
    knots = np.concatenate([[X.min()] * 3, inner, [X.max()] * 3])
    return scipy.interpolate.BSpline.design_matrix(x, knots, 3).toarray()[:, 1:]


def treatment(values: np.ndarray, levels: Any) -> np.ndarray:
    return np.column_stack([values == level for level in levels]).astype(float)


NEW = FRAME.iloc[[7, 3, 3, 30]].assign(
    x=[X.min(), 1.9, X.max(), 2.5], z=[0.0, 9.0, -9.0, 1.0], group=list("dabb"), year=2002
)


def by_hand(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Terms by their formulas, at rows whose training rows are those of ``FRAME``."""
    x, z, group, year = (rows[name].to_numpy() for name in ("x", "z", "group", "year"))
    dummies = treatment(group, "bcd")
    return {
        "x + z": np.column_stack([x, z]),
        "poly(x, 2)": raw_poly(x),
        "bs(x, df=5)": b_spline(x),
        "bs(x, df=6, include_intercept=True)": b_spline(x),
        "scale(x) + center(z)": np.column_stack([(x - X.mean()) / X.std(ddof=1), z - Z.mean()]),
        "group": dummies,
        "C(year)": treatment(year, [2002, 2003]),
        "C(group, Treatment('c'))": treatment(group, "abd"),
        "C(group, contr.sum)": treatment(group, "abc") - (group == "d")[:, None],
        "x * group": np.column_stack([x, dummies, x[:, None] * dummies]),
        "x:group": x[:, None] * treatment(group, "abcd"),
        "(x + z)**2": np.column_stack([x, z, x * z]),
        "I(x**2) + np.sqrt(x) + log(x)": np.column_stack([x**2, np.sqrt(x), np.log(x)]),
        "`two words` + I(z > 0)": np.column_stack([rows["two words"], z > 0]),
        "np.exp(scale(z))": np.exp((z - Z.mean()) / Z.std(ddof=1))[:, None],
    }


@pytest.mark.parametrize("terms", by_hand(FRAME))
def test_terms_are_those_written_by_hand_here_and_elsewhere(terms: str) -> None:
    """At the training rows, at some of them exactly, and at others."""
    made = bm.design(f"y ~ {terms}", FRAME)
    np.testing.assert_allclose(made.x, by_hand(FRAME)[terms], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(made.y, Y)
    assert made.y.name == "y"
    assert isinstance(made.table, Table)
    assert made.table.x is made.x
    assert made.table.y is made.y
    assert made.covariates == {"gate_covariates": None, "expert_covariates": None}
    assert made.x.index.equals(FRAME.index)
    pd.testing.assert_frame_equal(made.at(FRAME.drop(columns="y")), made.x, check_exact=True)
    for some in (FRAME.iloc[[5]], FRAME.iloc[[20, 3, 9]], FRAME[FRAME["group"] == "c"]):
        pd.testing.assert_frame_equal(made.at(some), made.x.loc[some.index], check_exact=True)
    there = made.at(NEW)
    np.testing.assert_allclose(there, by_hand(NEW)[terms], rtol=1e-9, atol=1e-12)
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(made)).at(NEW), there)


def test_new_rows_leave_the_state_of_the_training_rows() -> None:
    made = bm.design("y ~ poly(x, 2) + bs(z, df=4) + scale(z) + group", FRAME)
    made.at(FRAME.iloc[:9])
    pd.testing.assert_frame_equal(made.at(FRAME), made.x, check_exact=True)


def test_constraints_of_a_natural_spline_are_those_of_the_training_rows() -> None:
    made = bm.design("y ~ cr(x, df=4, constraints='center')", FRAME)
    np.testing.assert_allclose(made.x.mean(), 0, atol=1e-14)
    np.testing.assert_allclose(made.at(FRAME.iloc[[8]]), made.x.iloc[[8]], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("formula", "gate", "names", "experts", "gates"),
    [
        ("y ~ x", "~ x", ["x"], None, None),
        ("y ~ x + z", "~ z + x", ["x", "z"], None, None),
        ("y ~ x", "~ z", ["x", "z"], (0,), (1,)),
        ("y ~ x + z", "~ z", ["x", "z"], None, (1,)),
        ("y ~ z", "~ x + z", ["z", "x"], (0,), None),
        ("y ~ x", "~ 1", ["x"], None, ()),
        ("y ~ 1", "~ x", ["x"], (), None),
        ("y ~ x:z + z", "~ z:x", ["z", "x:z"], None, (1,)),
        ("y ~ poly(x, 2)", "~ x", ["poly(x, 2)[1]", "poly(x, 2)[2]", "x"], (0, 1), (2,)),
        ("y ~ x + z", "~ .", ["x", "z", "group[T.b]", "group[T.c]", "group[T.d]", "year",
                              "two words"], (0, 1), None),
    ],
)  # fmt: skip
def test_both_parts_share_columns(
    formula: str, gate: str, names: list[str], experts: Any, gates: Any
) -> None:
    made = bm.design(formula, FRAME, gate)
    assert list(made.x.columns) == names
    assert (made.expert_covariates, made.gate_covariates) == (experts, gates)
    model = bm.moe("softmax", 2, **made.covariates)
    assert model.selection == (gates, experts)


def test_a_dot_is_all_columns_but_the_response() -> None:
    made = bm.design("log(y) ~ .", FRAME[["year", "y", "x"]], gate="~ .")
    assert list(made.x.columns) == ["year", "x"]
    assert made.y.name == "log(y)"
    np.testing.assert_array_equal(made.y, np.log(Y))


def test_columns_of_any_type_are_numbers_or_levels() -> None:
    frame = pd.DataFrame({
        "y": Y[:6],
        "category": pd.Categorical([2, 1, 3, 1, 2, 3], categories=[3, 1, 2]),
        "whole": pd.array([4, 1, 2, 5, 2, 9], dtype="Int64"),
        "flag": [True, False, True, True, False, False],
        "text": pd.Series(list("vuvuuv"), dtype="string"),
        "object": np.array([1, 2.5, 3, 4, 5, 6], dtype=object),
    })  # fmt: skip
    made = bm.design("y ~ category + whole + flag + text + object", frame)
    names = ["category[T.1]", "category[T.2]", "whole", "flag", "text[T.v]", "object"]
    assert list(made.x.columns) == names
    want = [
        [0, 1, 4, 1, 1, 1], [1, 0, 1, 0, 0, 2.5], [0, 0, 2, 1, 1, 3],
        [1, 0, 5, 1, 0, 4], [0, 1, 2, 0, 0, 5], [0, 0, 9, 0, 1, 6],
    ]  # fmt: skip
    np.testing.assert_array_equal(made.x, want)
    plain = frame.astype({"category": int, "text": object, "whole": float})
    pd.testing.assert_frame_equal(made.at(plain.iloc[2:4]), made.x.iloc[2:4], check_exact=True)


def test_categories_that_no_row_has_are_no_levels() -> None:
    frame = pd.DataFrame({"y": Y[:4], "a": pd.Categorical(list("vuvw"), categories=list("wxvu"))})
    made = bm.design("y ~ a", frame)
    assert list(made.x.columns) == ["a[T.v]", "a[T.u]"]
    assert made.levels == {"a": ["w", "v", "u"]}
    pd.testing.assert_frame_equal(made.at(frame.iloc[:2]), made.x.iloc[:2], check_exact=True)
    with pytest.raises(FormulaError, match="has 'x' in row 1, a level that the rows of the design"):
        made.at(frame.assign(a=pd.Categorical(list("xuvw"), categories=list("wxvu"))))


# --- misuse

SECRET = np.ones(N)
MISUSE = {
    ("x", None): "'x' has no response; write it before ~",
    ("~ x", None): "'~ x' has no response",
    ("y + z ~ x", None): "must have one response before ~",
    ("y:z ~ x", None): "must have one response before ~",
    ("poly(y, 2) ~ x", None): "the response of 'poly(y, 2) ~ x' is 2 columns; it must be one",
    ("1 ~ x", None): "has a constant before ~, 1; name a column",
    ("group ~ x", None): f"the response 'group' has levels, such as '{GROUP[0]}'; it must be numb",
    ("y ~ x - 1", None): "leaves out the intercept, but every expert and every gate has one",
    ("y ~ 0 + x", None): "leaves out the intercept",
    ("y ~ x", "~ z - 1"): "the gate's formula '~ z - 1' leaves out the intercept",
    ("y ~ 1", None): "'y ~ 1' has no covariate, nor has the gate's",
    ("y ~ 1", "~ 1"): "'y ~ 1' has no covariate, nor has the gate's",
    ("y ~", None): "has nothing after ~; write '~ 1' for no covariates",
    ("y ~ x | z", None): "has parts divided by |; the gate has a formula of its own",
    ("y ~ x", "z ~ x"): "the gate's formula 'z ~ x' must begin with ~ and have no response",
    ("y ~ x", "z"): "the gate's formula 'z' must begin with ~ and have no response",
    ("y ~ x", "~ y"): "'y' is the response and a covariate; leave it out after ~",
    ("log(y) ~ x + y", None): "'y' is the response and a covariate",
    ("y ~ q", None): "names 'q', but the columns are y, x, z, group, year, two words",
    ("y ~ I(x + q)", None): "names 'q', but the columns are",
    ("y ~ SECRET", None): "names 'SECRET', but the columns are",
    ("y ~ x +* z", None): "cannot be read: Operator `+*` is incorrectly used.",
    ("y ~ (x", None): "cannot be read: Could not find matching context marker.",
    ("y ~ x z", None): "cannot be read: Missing operator between `x` and `z`.",
    ("y ~ x ~ z", None): "cannot be read: Operator `~` is incorrectly used.",
    ("y ~ x**2", None): "has a power of one term, x**2, which as in R is the term itself; "
                        "write I(x**2)",
    ("y ~ 2:x", None): "scales a term, 2:x; leave out the number, or write it inside I()",
    ("y ~ sqrt(x)", None): "calls sqrt; the functions are bs, C, cc,",
    ("y ~ lag(x)", None): "calls lag; the functions are",
    ("y ~ bs(x, df=2)", None): "'y ~ bs(x, df=2)' cannot be computed: Unable to evaluate factor "
                               "`bs(x, df=2)`",
    ("y ~ x", "~ bs(x, df=2)"): "'~ bs(x, df=2)' cannot be computed",
    ("y ~ log(z)", None): f"log(z) is missing or infinite in {np.sum(Z <= 0)} rows, the first row "
                          f"{np.argmax(Z <= 0) + 1}; choose a term that every row has",
    ("log(z) ~ x", None): "log(z) is missing or infinite",
    (3, None): "the formula must be a text, as in 'y ~ x'; got 3",
    ("y ~ x", 3): "the gate's formula must be a text, as in 'y ~ x'; got 3",
}  # fmt: skip


@pytest.mark.parametrize(("formulas", "message"), MISUSE.items())
def test_misuse_is_named(formulas: tuple[Any, Any], message: str) -> None:
    formula, gate = formulas
    with pytest.raises(FormulaError, match=re.escape(message)) as caught:
        bm.design(formula, FRAME, gate)
    assert "\n" not in str(caught.value)


def test_values_without_a_level_are_refused_whatever_becomes_of_warnings() -> None:
    message = "has values without a level, 'd'; name all levels in C"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FormulaError, match=message):
            bm.design("y ~ C(group, levels=['a', 'b', 'c'])", FRAME)


@pytest.mark.parametrize(
    "expression",
    [
        "{open('MARK', 'w')}",
        "I(open('MARK', 'w'))",
        "open('MARK', 'w')",
        "{__import__('os').mkdir('MARK')}",
        "I(x.to_csv('MARK'))",
        "{np.save('MARK', x)}",
        "I([open('MARK', 'w') for _ in x])",
        "I((lambda: open('MARK', 'w'))())",
        "bs(x, knots=[open('MARK', 'w')])",
        "bs(x, **open('MARK', 'w'))",
        "bs(*open('MARK', 'w'))",
        "I(f\"{open('MARK', 'w')}\")",
        "C(group, {'a': open('MARK', 'w')})",
        "I(x if open('MARK', 'w') else z)",
        "contr.sum.__init__(open('MARK', 'w'))",
        "scale(x, _state=open('MARK', 'w'))",
    ],
)
def test_nothing_is_run_but_arithmetic_and_known_functions(
    expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for formula, gate in ((f"y ~ {expression}", None), ("y ~ x", f"~ {expression}")):
        with pytest.raises(FormulaError, match=r"calls|neither arithmetic nor|cannot be read"):
            bm.design(formula, FRAME, gate)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "expression",
    ["np.add(x, 1, z)", "np.add(x, 1, out=z)", "np.add.reduce(x)", "np.matmul(x, z)",
     "I(x @ z)", "np.mean(x)", "x.mean()", "scale(x, _state={})"],
)  # fmt: skip
def test_nothing_is_computed_that_mixes_or_changes_rows(expression: str) -> None:
    frame = FRAME.copy()
    with pytest.raises(FormulaError, match=r"calls|neither arithmetic nor"):
        bm.design(f"y ~ I({expression})", frame)
    pd.testing.assert_frame_equal(frame, FRAME, check_exact=True)


def test_a_column_must_not_hide_a_function() -> None:
    frame = FRAME.assign(scale=1.0 * YEAR)
    with pytest.raises(FormulaError, match="function scale, which a column of that name hides"):
        bm.design("y ~ scale(scale)", frame)
    assert bm.design("y ~ scale(x)", frame).x.shape == (N, 1)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (FRAME.assign(x=FRAME["x"].where(Z > -1)),
         f"column 'x' has {np.sum(Z <= -1)} values that are missing or infinite, in rows "
         f"{', '.join(map(str, np.flatnonzero(Z <= -1)[:5] + 1))} and "),
        (FRAME.assign(y=np.where(Z > 1, np.inf, Y)), "column 'y' has"),
        (FRAME.assign(group=FRAME["group"].where(FRAME["group"] != "c", None)),
         "column 'group' has 10 values that are missing"),
        (FRAME.assign(group=FRAME["group"].where(FRAME["year"] > 2001).astype("category")),
         f"column 'group' has {np.sum(YEAR == 2001)} values that are missing"),
        (FRAME.assign(group="a"), "column 'group' has the one level 'a'; there is nothing"),
        (FRAME.assign(group=pd.Categorical(["a"] * N, ["a", "b"])), "has the one level 'a'"),
        (FRAME.assign(x=[1.0, "b"] * 20), "column 'x' is neither all numbers nor all texts"),
        (FRAME.assign(x=pd.Timestamp("2020-01-01")), "'x' is neither all numbers nor all texts: "
         "it has datetime64"),
        (FRAME.assign(x=1j * X), "'x' is neither all numbers nor all texts: it has complex128"),
        (FRAME.iloc[:0], "frame has no rows; at least one row is needed"),
        (FRAME.to_numpy(), "frame must be a DataFrame of pandas or polars, got ndarray"),
        (FRAME.rename(columns={"z": 3}), "frame has a column named 3; names must be texts"),
        (FRAME.rename(columns={"z": "x"}), "frame has two columns named 'x'; rename one"),
    ],
)  # fmt: skip
def test_bad_frames_are_refused(frame: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        bm.design("y ~ x + group", frame)


def test_columns_named_as_terms_are_not_taken_for_them() -> None:
    frame = FRAME.assign(**{"x:z": Y, "Intercept": Z})
    for formula, gate in (("y ~ x:z", "~ `x:z`"), ("y ~ x:z + `x:z`", None)):
        with pytest.raises(FormulaError, match=r"two terms .* a column 'x:z'"):
            bm.design(formula, frame.assign(y=X), gate)
    np.testing.assert_array_equal(bm.design("y ~ Intercept", frame).x["Intercept"], Z)


@pytest.mark.parametrize(
    ("formula", "name"),
    [
        ("y ~ log(`lambda`)", "lambda"),
        ("y ~ I(lambda**2)", "lambda"),
        ("y ~ x + exp(`None`)", "None"),
    ],
)
def test_a_keyword_within_a_function_is_named(formula: str, name: str) -> None:
    frame = FRAME.assign(**{name: X})
    with pytest.raises(FormulaError, match=rf"column '{name}' within a function, .*; rename the c"):
        bm.design(formula, frame)
    assert list(bm.design(f"y ~ `{name}`", frame).x.columns) == [name]


def test_columns_that_no_formula_uses_may_be_bad() -> None:
    frame = FRAME.assign(z=np.nan, year=pd.Timestamp("2020-01-01"))
    pd.testing.assert_frame_equal(bm.design("y ~ x", frame).x, FRAME[["x"]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": list("abez") * 10}, "'group' has 'e' in row 3, a level that the rows of the "
                                       "design lack: they have 'a', 'b', 'c', 'd'; nothing is"),
        ({"year": 2002.5}, "column 'year' has 2002.5 in row 1, a level that the rows"),
        ({"year": "2002"}, "column 'year' has '2002' in row 1, a level that the rows"),
        ({"group": 1.0}, "column 'group' has 1 in row 1, a level that"),
        ({"x": X + 1}, "cannot be computed: Unable to evaluate factor `bs(x, df=4)`"),
        ({"x": "a"}, "column 'x' has levels, 'a' in row 1, but numbers in the rows of the"),
        ({"x": np.nan}, "has 40 values that are missing or infinite, in rows 1, 2, 3, 4, 5 and 35"),
        ({"z": 0.0}, "log(np.abs(z)) is missing or infinite in 40 rows, the first row 1"),
    ],
)  # fmt: skip
def test_new_rows_that_nothing_is_known_of_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    made = bm.design("y ~ bs(x, df=4) + group + C(year)", FRAME, gate="~ log(np.abs(z))")
    with pytest.raises(ValueError, match=re.escape(message)):
        made.at(FRAME.assign(**changes))
    with pytest.raises(FormulaError, match="has no column 'z', which the formula needs"):
        made.at(FRAME.drop(columns="z"))


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "formulaic", None)
    with pytest.raises(FormulaError, match=r'run pip install "bayesmoe\[formula\]"'):
        bm.design("y ~ x", FRAME)
    said = refused(tmp_path, "fit", "co2", "--formula", "co2 ~ gnp", "--gate", "softmax")
    assert 'run pip install "bayesmoe[formula]"' in said


# --- fits


@pytest.mark.slow
def test_constant_weights_have_the_published_maximum() -> None:
    frame = pd.read_csv(Path(bm.__file__).parent / "data" / "co2.csv")
    made = bm.design("co2 ~ gnp", frame, gate="~ 1")
    fit = bm.fit_mle(bm.moe("softmax", 2, **made.covariates), made.x, made.y)
    assert fit.converged
    assert fit.log_likelihood == pytest.approx(-66.93976779, abs=1e-8)


def test_one_expert_of_polynomials_is_least_squares() -> None:
    rows = read_table("ethanol", "nox")
    frame = rows.x.assign(nox=rows.y)
    x, y = rows.x.to_numpy()[:, 0], rows.y.to_numpy()
    made = bm.design("nox ~ poly(equivalence_ratio, 2)", frame)
    model = bm.moe("softmax", 1, **made.covariates)
    fit = bm.fit_mle(model, made.x, made.y)
    powers = np.vander(x, 3)
    coefficients, (squares,), *_ = np.linalg.lstsq(powers, y)
    np.testing.assert_allclose(fit.measure.variance, squares / len(y), rtol=1e-8)
    want = -len(y) / 2 * (np.log(2 * np.pi * squares / len(y)) + 1)
    assert fit.log_likelihood == pytest.approx(want, abs=1e-9)
    new = pd.DataFrame({"equivalence_ratio": [0.4, 0.93, 1.5]})  # beyond the data as well
    mean = bm.Predictive(model, fit.measure).mean(made.at(new))
    values = np.vander(new["equivalence_ratio"], 3) @ coefficients
    np.testing.assert_allclose(mean, values, rtol=1e-6)
    regressor = MoERegressor(n_experts=1, method="mle", **made.covariates).fit(made.x, made.y)
    np.testing.assert_allclose(regressor.predict(made.at(new)), values, rtol=1e-6)


def test_collinear_and_constant_columns_are_left_to_the_estimators() -> None:
    twice, model = bm.design("y ~ x + I(2 * x)", FRAME), bm.moe("softmax", 1)
    fit = bm.fit_mle(model, twice.x, twice.y)
    errors = bm.standard_errors(model, fit, twice.x, twice.y)
    assert np.all(np.isinf(errors.measure.slope))
    assert np.all(np.isfinite(errors.measure.intercept))
    constant = bm.design("y ~ x + I(0 * x)", FRAME)
    with pytest.raises(ValueError, match="covariate 1 has the one distinct value 0"):
        bm.fit_mle(bm.moe("softmax", 1), constant.x, constant.y)


# --- files


def write(directory: Path, text: str) -> str:
    path = directory / "data.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_columns_of_a_file_are_numbers_or_levels(tmp_path: Path) -> None:
    path = write(tmp_path, "y,dose,smoker,note\n1, 2 ,none,a\n2,3,often,7\n4,4, often,\n")
    made = read_design(path, "y ~ dose + smoker")
    assert list(made.x.columns) == ["dose", "smoker[T.often]"]
    np.testing.assert_array_equal(made.x, [[2, 0], [3, 1], [4, 1]])
    assert made.y.tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    ("text", "formula", "message"),
    [
        ("y,a\n1,2\n2,red\n3,4\n", "y ~ a", "column 'a' has numbers, but row 2 is 'red'; mend"),
        ("y,a\n1,red\n2,\n3,blue\n", "y ~ a", "'a' has a value that is missing .* in row 2"),
        ("y,a\n1,2\n2,none\n3,4\n", "y ~ a", "'a' has a value that is missing .* in row 2"),
        ("y,a\n1,2\n2,inf\n3,4\n", "y ~ a", "'a' has a value that is missing or infinite"),
        ("y,a\n1,2\n2,2\n3,2\n", "y ~ a", "^a of 'y ~ a' has the one distinct value 2; there is"),
        ("y,a\n1,2\n1,3\n1,4\n", "y ~ a", "^y of 'y ~ a' has the one distinct value 1"),
        ("y,a,a\n1,2,3\n", "y ~ a", "two columns named 'a'"),
        ("y,a\n", "y ~ a", "has a header but no rows"),
        ("y,a\n1,2\n", "y ~ b", "names 'b', but the columns are y, a"),
        (",y,a\n1,1,2\n2,2,4\n", "y ~ .", "a column without a name, row names perhaps"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, formula: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_design(write(tmp_path, text), formula)


def test_row_names_that_no_term_names_do_not_matter(tmp_path: Path) -> None:
    made = read_design(write(tmp_path, ",y,a\n1,1,2\n2,2,4\n3,4,5\n"), "y ~ a")
    assert made.x.columns.tolist() == ["a"]


def test_rows_that_lack_a_value_are_left_out_if_asked_for(tmp_path: Path) -> None:
    path = write(
        tmp_path, "y,dose,group,other\n1,2,red,\n2,,blue,1\n3,4,,1\n5,6,blue,1\n,1,red,1\n"
    )
    made = read_design(path, "y ~ dose + group", drop_missing=True)
    np.testing.assert_array_equal(made.y, [1, 5])
    np.testing.assert_array_equal(made.x["dose"], [2, 6])
    np.testing.assert_array_equal(made.x["group[T.red]"], [1, 0])
    path = write(tmp_path, "y,dose\n1,2\n2,\n3,inf\n")
    with pytest.raises(ValueError, match=r"'dose' has a value .* infinite, in row 3"):
        read_design(path, "y ~ dose", drop_missing=True)


# --- the axis of the figure


def test_curves_run_along_a_column_of_the_data() -> None:
    made = bm.design("y ~ group + poly(x, 2)*z", FRAME, gate="~ z + C(year)")
    axis = made.axis()
    assert axis is not None
    assert axis.name == "x"
    np.testing.assert_array_equal(axis.values, X)
    np.testing.assert_allclose(axis.points, np.linspace(X.min(), X.max(), 161))
    middle, frequent = np.sort(Z)[19], pd.Series(YEAR).mode()[0]
    assert axis.held == {"group": "a", "z": middle, "year": str(frequent)}
    rows = pd.DataFrame({"x": axis.points, "z": middle, "group": "a", "year": frequent})
    np.testing.assert_array_equal(axis.at, made.at(rows))


def test_curves_leave_out_points_that_have_no_terms() -> None:
    frame = FRAME.assign(x=np.round(X - 2, 1) + 0.05)
    axis = bm.design("y ~ log(np.abs(x)) + I(1 / z)", frame.assign(x=np.linspace(-1, 1, N))).axis()
    assert axis is not None
    assert len(axis.points) == 160, "not the one at zero"
    assert np.all(np.isfinite(axis.at))
    assert bm.design("y ~ group", FRAME).axis() is None


def derived() -> tuple[FitRequest, Analysis]:
    """A fit whose one covariate ``exp(raw)[a]`` is derived, with curves along ``raw``."""
    mle = point([-5.0, -6.0], [Status.SEPARATED] * 2, map_=False)
    analysis = make_analysis(mle, names=("exp(raw)[a]", "log(v)"))
    points = np.linspace(0.1, 3, 50)
    u = analysis.table.x.to_numpy()
    axis = Axis("raw", np.exp(u[:, 0]), points, np.log(points)[:, None], {"w": 1.5, "g": "b"})
    request = make_request(("exp(raw)[a]", "log(v)"))
    asked = request._replace(covariates=(), formula="log(v) ~ exp(raw)", gate_formula="~ w")
    return asked, analysis._replace(axis=axis)


@pytest.mark.slow
def test_the_figure_is_drawn_along_that_column() -> None:
    request, analysis = derived()
    axis = analysis.axis
    assert axis is not None
    figure = fit_figure(analysis, request.formulas)
    upper, lower = figure.axes
    assert (upper.get_ylabel(), lower.get_xlabel()) == ("log(v)", "raw")
    curves = posterior_curves(analysis.model.gate, posterior_draws(analysis), jnp.asarray(axis.at))
    (mean,) = [line for line in upper.get_lines() if line.get_label() == "mean"]
    np.testing.assert_array_equal(mean.get_xydata()[:, 0], axis.points)
    np.testing.assert_allclose(mean.get_xydata()[:, 1], curves.mean.centre)
    (points,) = [drawn for drawn in upper.collections if isinstance(drawn, PathCollection)]
    np.testing.assert_allclose(points.get_offsets(), np.column_stack([axis.values, analysis[1].y]))
    said = [text.get_text() for text in figure.texts]
    assert said[1].startswith("points: data, coloured by expert; lines: experts at the MAP")
    assert said[2:] == [
        "log(v) ~ exp(raw), gate ~ w",
        "all curves are at w = 1.5, g = b, while the data vary in all",
    ]


def test_a_formula_is_kept_with_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And neither opening nor reporting it needs formulaic, nor evaluates anything."""
    said: list[str] = []

    def empty(analysis: Analysis, formulas: str, columns: object) -> dict[str, Figure]:
        said.append(formulas)
        return {"fit": Figure()}

    monkeypatch.setattr("bayesmoe.report.files.fit_figures", empty)
    request, analysis = derived()
    write_analysis(tmp_path / "fit", request, analysis)
    monkeypatch.setitem(sys.modules, "formulaic", None)
    opened = load_fit(tmp_path / "fit")
    assert opened.request == request
    axis, before = opened.analysis.axis, analysis.axis
    assert axis is not None
    assert before is not None
    assert (axis.name, axis.held) == (before.name, before.held)
    for one, other in zip(axis[1:4], before[1:4], strict=True):
        np.testing.assert_array_equal(one, other)
    page = (tmp_path / "fit" / "report.html").read_text()
    assert rewrite_report(tmp_path / "fit").read_text() == page
    assert said == ["log(v) ~ exp(raw), gate ~ w"] * 2
    assert "<h1>log(v) ~ exp(raw), gate ~ w</h1>" in page
    assert "<dt>Formula</dt><dd>log(v) ~ exp(raw), gate ~ w</dd>" in page
    assert "log(v) against raw:" in page
    assert "straight lines" not in page
    assert (
        "--formula &#39;log(v) ~ exp(raw)&#39; --gate-formula &#39;~ w&#39; --gate softmax" in page
    )
    assert "--response" not in page


def test_fits_of_columns_are_stored_as_ever(tmp_path: Path) -> None:
    request, analysis = make_request(), make_analysis()
    save_fit(tmp_path, request, analysis)
    opened = load_fit(tmp_path)
    assert opened.request == request
    assert opened.analysis.axis is None
    assert request.formulas == ""
    assert request.command("out").startswith("bayesmoe fit 'my data.csv' --response v --covariate")


def test_names_of_terms_are_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_analysis(make_analysis(names=("x:g[a]", "y")))
    assert capsys.readouterr().out.count("slope[0, x:g[a]]") >= 2
    print_analysis(make_analysis(names=("bs(equivalence_ratio, df=4)[1]", "y")))
    assert "…" not in capsys.readouterr().out, "names may be broken, numbers may not"


# --- the command line


def refused(directory: Path, command: str, *words: str) -> str:
    """What the command says on stderr in one line; it must exit with 2 and write nothing."""
    before = set(directory.iterdir())
    kind = ["--experts", "2", "--out", str(directory / "out")]
    result = CliRunner().invoke(app, [command, *words, *kind])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert set(directory.iterdir()) == before
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "what to model is missing; give --formula, or --response"),
        (["--gate-formula", "~ gnp"], "--gate-formula needs --formula; by columns, it is "
                                      "--gate-covariate that"),
        (["--formula", "co2 ~ gnp", "--response", "co2"],
         "--formula names response and covariates, and so does --response; give one of them"),
        (["--formula", "co2 ~ gnp", "--covariate", "gnp"], "and so does --covariate"),
        (["--formula", "co2 ~ gnp", "--gate-covariate", "none"], "and so does --gate-covariate"),
        (["--formula", "co2 ~ gnp", "--expert-covariate", "gnp"], "does --expert-covariate"),
        (["--formula", "co2 ~ gnp - 1"], "leaves out the intercept"),
        (["--formula", "co2 ~ gdp"], "names 'gdp', but the columns are country, gnp, co2"),
        (["--formula", "country ~ gnp"], "the response 'country' has levels, such as 'CAN'"),
        (["--formula", "co2 ~ gnp", "--gate-formula", "~ co2"], "'co2' is the response and a cov"),
        (["--formula", "co2 ~ country"], "28 rows cannot determine"),
        (["--formula", "co2 ~ {__import__('os').system('x')}"], "calls __import__('os').system"),
        (["--formula", "co2 ~ bs(gnp, df=4"], "cannot be read: Formula ended before"),
    ],
)  # fmt: skip
def test_the_command_line_refuses_misuse(tmp_path: Path, words: list[str], message: str) -> None:
    assert message in refused(tmp_path, "fit", "co2", *words, "--gate", "softmax")
    assert message in refused(tmp_path, "compare", "co2", *words, "--gates", "softmax")


@pytest.mark.slow
def test_the_command_line_fits_a_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = functools.partial(bm.sample_posterior, n_chains=2, n_warmup=200, n_draws=200)
    monkeypatch.setattr("bayesmoe.diagnostics.analysis.sample_posterior", few)
    out = tmp_path / "fit"
    asked = ["--formula", "co2 ~ gnp", "--gate-formula", "~ 1", "--gate", "softmax"]
    done = CliRunner().invoke(
        app, ["fit", "co2", *asked, "--experts", "2", "--out", str(out), "--json"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["mle"]["log_likelihood"] == pytest.approx(-66.93976779, abs=1e-8)
    assert found["request"]["formula"] == "co2 ~ gnp"
    assert found["request"]["gate_formula"] == "~ 1"
    opened = load_fit(out)
    assert opened.analysis.model == bm.moe("softmax", 2, gate_covariates=())
    made = read_design("co2", opened.request.formula or "", opened.request.gate_formula)
    pd.testing.assert_frame_equal(made.x, opened.analysis.table.x, check_exact=True)
    assert rewrite_report(out).exists()


def test_the_command_line_compares_by_a_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compared; no model is fitted."""

    def stop(models: Any, table: Table, **_: Any) -> None:
        assert [model.selection for model in models] == [((), None)] * 2
        assert [model.n_experts for model in models] == [2, 3]
        x, y = read_table("co2", "co2", ["gnp"])
        np.testing.assert_allclose(table.x, np.column_stack([x, x**2]))
        np.testing.assert_allclose(table.y, np.log(y))
        raise ValueError("as it should be")

    monkeypatch.setattr("bayesmoe.cli.compare_models", stop)
    words = ["compare", "co2", "--formula", "log(co2) ~ gnp + I(gnp**2)", "--gate-formula", "~ 1"]
    words += ["--gates", "softmax", "--experts", "2,3", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.stderr == "error: as it should be\n", done.output
