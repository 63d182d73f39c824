"""Malformed and extreme data: a right answer, or an error that says what is wrong."""

from __future__ import annotations

import functools
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning

import bayesmoe as bm
from bayesmoe.regression import MoERegressor

Floats = np.ndarray
Change = Callable[[Any, Any], tuple[Any, Any]]
PACKAGE = Path(bm.__file__).parent
#: where errors may be raised: by the package's checks or scikit-learn's
CHECKS = (str(PACKAGE), str(PACKAGE.parent / "models"), "sklearn/utils/")


def clean(seed: int, n: int = 40) -> tuple[Floats, Floats]:
    """Two lines, 6 noise deviations apart or more, that change places."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, size=(n, 1))
    first = rng.uniform(size=n) < 1 / (1 + np.exp(-4 * x[:, 0]))
    return x, np.where(first, 3 + x[:, 0], -3 - 2 * x[:, 0]) + 0.3 * rng.standard_normal(n)


# --- changes, one after the other, to numbers and to their form


def put(value: Any, row: int) -> Change:
    def change(x: Any, y: Any) -> tuple[Any, Any]:
        x = np.array(x, dtype=object if not isinstance(value, float) else None)
        x[row % len(x), 0] = value
        return x, y

    return change


def put_in_y(value: Any, row: int) -> Change:
    def change(x: Any, y: Any) -> tuple[Any, Any]:
        y = np.array(y, dtype=object if not isinstance(value, float) else None)
        y[row % len(y)] = value
        return x, y

    return change


rows = st.integers(0, 39)
odd = st.sampled_from([np.nan, np.inf, -np.inf, 1e308, -1e200, 1e-320, 0.0, "word", "", None,
                       10**400, 1j, "2.5", b"7", [1, 2], pd.NaT, pd.NA, True])  # fmt: skip
powers = st.floats(-300, 300)
numbers: st.SearchStrategy[Change] = st.one_of(
    st.builds(put, odd, rows),
    st.builds(put_in_y, odd, rows),
    powers.map(lambda e: lambda x, y: (x * 10.0**e, y)),
    powers.map(lambda e: lambda x, y: (x, y * 10.0**e)),
    powers.map(lambda e: lambda x, y: (x + 10.0**e, y)),
    powers.map(lambda e: lambda x, y: (x, y - 10.0**e)),
    st.integers(0, 40).map(lambda n: lambda x, y: (x[:n], y[:n])),
    st.integers(0, 40).map(lambda n: lambda x, y: (x[:n], y)),
    st.floats(-1e6, 1e6).map(lambda v: lambda x, y: (x, np.full(len(y), v))),
    st.floats(-1e6, 1e6).map(lambda v: lambda x, y: (np.full_like(x, v), y)),
    st.just(lambda x, y: (np.round(x), np.round(y))),
    st.just(lambda x, y: (np.hstack([x, x]), y)),
    st.just(lambda x, y: (np.hstack([x, np.zeros_like(x)]), y)),
    st.just(lambda x, y: (np.hstack([x, x.cumsum(0)]), y)),
)
names = st.sampled_from([["x"], ["größe"], ["数"], ["a", "a"], ["", " "], ["a", 1], [0, 1], [None]])
forms: st.SearchStrategy[Change] = st.one_of(
    st.sampled_from(["float32", "float16", "int8", "int64", "bool", "object", "str", "complex",
                     "S4", "datetime64[s]"]).map(
        lambda t: lambda x, y: (np.asarray(x).astype(t), y)),
    st.sampled_from(["float32", "int64", "bool", "object", "str", "complex", "datetime64[s]"]).map(
        lambda t: lambda x, y: (x, np.asarray(y).astype(t))),
    names.map(lambda n: lambda x, y: (pd.DataFrame(np.tile(x, len(n))[:, :len(n)], columns=n), y)),
    st.just(lambda x, y: (pd.DataFrame(x).astype(str), y)),
    st.just(lambda x, y: (pd.DataFrame({"a": x[:, 0], "b": ["w"] * len(x)}), y)),
    st.just(lambda x, y: (pd.DataFrame({"a": pd.Series(x[:, 0], dtype="Float64")}), y)),
    st.just(lambda x, y: (x, pd.Series(y, index=range(7, 7 + len(y))))),
    st.just(lambda x, y: (np.asarray(x).tolist(), np.asarray(y).tolist())),
    st.just(lambda x, y: ([*np.asarray(x).tolist(), [1.0, 2.0]], y)),
    st.just(lambda x, y: (np.asarray(x)[:, 0], y)),
    st.just(lambda x, y: (np.asarray(x)[None], y)),
    st.just(lambda x, y: (np.asfortranarray(x)[::-1], y[::-1])),
    st.just(lambda x, y: (x, np.asarray(y)[:, None])),
    st.just(lambda x, y: (x, np.column_stack([y, y]))),
    st.just(lambda x, y: (np.ma.masked_array(x, mask=np.zeros_like(x)), y)),
    st.just(lambda x, y: (scipy.sparse.csr_array(x), y)),
    st.sampled_from([None, 3, "text", {}, {"x": 1}, object(), [], [[]], 5.0]).map(
        lambda v: lambda x, y: (v, y)),
    st.sampled_from([None, 3, "text", {}, object(), [], [[]]]).map(lambda v: lambda x, y: (x, v)),
)  # fmt: skip


@st.composite
def malformed(draw: st.DrawFn) -> tuple[Any, Any]:
    """Up to two changes of the numbers, and perhaps one of their form; some cannot follow others"""
    x, y = clean(draw(st.integers(0, 3)))
    changes = draw(st.lists(numbers, max_size=2)) + draw(st.lists(forms, max_size=1))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for change in changes:
            try:
                x, y = change(x, y)
            except (TypeError, ValueError, IndexError, OverflowError, AttributeError):
                continue
            except ZeroDivisionError:
                continue
    return x, y


def raised_in(error: BaseException) -> str:
    """The file that raised, or that asked pandas or narwhals for what they cannot do."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return next(
        name
        for name in reversed(files)
        if not any(f"/{part}/" in name for part in ("pandas", "narwhals"))
    )


def refusal(call: Callable[[], Any]) -> Exception | None:
    """The error that ``call`` raises, which must be of the right kind, place and length."""
    error = None
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        # scikit-learn's, of infinities that it then refuses
        warnings.filterwarnings("ignore", "invalid value encountered in reduce")
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", DataConversionWarning)
        try:
            call()
        except (ValueError, TypeError) as caught:
            error = caught
    if error is not None:
        place = raised_in(error)
        assert any(part in place for part in CHECKS), f"{place}: {error!r}"
        assert len(str(error)) > 15, error
    return error


def fit_and_predict(gate: str, x: Any, y: Any) -> None:
    regressor = MoERegressor(gate, n_starts=2, random_state=0).fit(x, y)
    mean, deviation = regressor.predict(x, return_std=True)
    assert mean.shape == deviation.shape == (len(x),)
    assert np.isfinite(mean).all()
    assert (deviation > 0).all()
    assert np.isfinite(regressor.log_likelihood_)
    response = np.asarray(y, dtype=float).reshape(-1)
    assert np.abs(mean - response).max() < 20 * np.ptp(response)


def check_fits(x: Any, y: Any) -> None:
    for fit in (bm.fit_mle, bm.fit_map):

        def call(fit: Callable[..., bm.Fit] = fit) -> None:
            found = fit(bm.moe("softmax", 2), x, y, n_starts=2)
            assert np.isfinite(found.log_likelihood)
            assert np.isfinite(np.asarray(found.measure.slope)).all()
            assert (np.asarray(found.measure.variance) > 0).all()

        refusal(call)


gates = st.sampled_from(["softmax", "activation_dense_to_sparse"])


@pytest.mark.slow
@given(malformed())
@settings(max_examples=15)
def test_the_regressor_is_right_or_says_what_is_wrong(data: tuple[Any, Any]) -> None:
    refusal(lambda: fit_and_predict("softmax", *data))


@pytest.mark.slow
@given(gates, malformed())
@settings(max_examples=120)
def test_the_regressor_in_many_more_cases(gate: str, data: tuple[Any, Any]) -> None:
    refusal(lambda: fit_and_predict(gate, *data))


@pytest.mark.slow
@given(malformed())
@settings(max_examples=60)
def test_the_estimators_are_right_or_say_what_is_wrong(data: tuple[Any, Any]) -> None:
    check_fits(*data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:X has feature names")
@given(malformed())
@settings(max_examples=60)
def test_predictions_are_right_or_say_what_is_wrong(data: tuple[Any, Any]) -> None:
    """Of rows that the regressor was not fitted to."""
    law, (x, y) = fitted(), data
    refusal(lambda: check_finite(law.predict_interval(x)))
    refusal(lambda: check_finite(law.predict_density(x, y)))
    refusal(lambda: check_finite(law.responsibilities(x, y)))


@functools.cache
def fitted() -> MoERegressor:
    return MoERegressor(n_starts=2, random_state=0).fit(*clean(0))


def check_finite(values: Floats) -> None:
    assert np.isfinite(values).all()


@pytest.mark.slow
def test_clean_data_are_not_refused() -> None:
    for seed in range(4):
        x, y = clean(seed)
        assert refusal(lambda x=x, y=y: fit_and_predict("softmax", x, y)) is None
        assert refusal(lambda x=x, y=y: fit_and_predict("softmax", 1e90 * x, 1e-90 * y)) is None


@pytest.mark.slow
@given(
    st.integers(0, 3), st.floats(-60, 60), st.floats(-60, 60), st.floats(-9, 9), st.floats(-9, 9)
)
@settings(max_examples=10)
def test_other_units_give_the_same_predictions(
    seed: int, x_power: float, y_power: float, x_shift: float, y_shift: float
) -> None:
    """x and y in other units and from other origins: means and deviations follow."""
    x, y = clean(seed, 120)
    at = np.linspace(-2.5, 2.5, 40)[:, None]
    x_unit, y_unit = -(10.0**x_power), 10.0**y_power

    def predict(x: Floats, y: Floats, at: Floats) -> tuple[Floats, Floats]:
        return MoERegressor(random_state=0).fit(x, y).predict(at, return_std=True)

    mean, deviation = predict(x, y, at)
    moved, widened = predict(
        x_unit * (x + x_shift), y_unit * (y + y_shift), x_unit * (at + x_shift)
    )
    np.testing.assert_allclose(moved / y_unit - y_shift, mean, atol=1e-6 * np.std(y))
    np.testing.assert_allclose(widened / y_unit, deviation, rtol=1e-6)
