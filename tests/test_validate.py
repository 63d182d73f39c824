"""Mistakes of users: each is a ValueError that names what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import CASE

import bayesmoe as bm
from bayesmoe.core.validate import as_key, check_estimable, check_fraction, check_observations

X, Y = np.arange(12.0).reshape(6, 2), np.arange(6.0)
ACTIVATION = "activation_dense_to_sparse"
moe: Any = bm.moe  # untyped, to pass what types would not let through


def likelihood(x: Any = X, y: Any = Y) -> jax.Array:
    return bm.moe("softmax", 3).log_likelihood(CASE["softmax"].measure(0), x, y)


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed.flat[3] = value
    return changed


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            with_value(X, np.nan),
            Y,
            r"x has 1 values that are NaN or infinite, the first at \(1, 1\)",
        ),
        (with_value(X, np.inf), Y, "x has 1 values that are NaN or infinite"),
        (X * [np.nan, 1], Y, r"x has 6 .* at \(0, 0\), others in rows 1, 2, 3, 4, 5; remove"),
        (
            np.full((9, 2), np.nan),
            Y,
            "x has 18 .*, others in rows 1, 2, 3, 4, 5 and 3 more",
        ),
        (X, with_value(Y, np.nan), r"y has 1 values that are NaN or infinite, the first at \(3,\)"),
        (X, with_value(Y, -np.inf), "y has 1 values"),
        (np.full((6, 2), "red"), Y, "x must be numeric"),
        (X, list("abcdef"), "y must be numeric"),
        (pd.DataFrame({"a": range(6), "b": list("uvwxyz")}), Y, "x must be numeric"),
        (X + 1j, Y, "x must be numeric"),
        ([[1.0], [1.0, 2.0]], [1.0, 2.0], "x must be numeric"),
        (X, [None, 1, 2, 3, 4, 5], "y has 1 values that are NaN"),
        (
            X,
            np.ma.masked_greater(Y, 3),
            r"y has 2 .* masked, the first at \(4,\), others in rows 5",
        ),
        (np.ma.masked_equal(X.astype(int), 3), Y, r"x has 1 .* masked, the first at \(1, 1\)"),
        (X, Y[:5], "x has 6 rows but y has 5; they must agree"),
        (X[0], Y, "x has 2 rows but y has 6"),
        (X, X, r"y must have shape \(n,\), got \(6, 2\)"),
        (X[None], Y, r"x must have shape \(n, d\)"),
        (X[:, :0], Y, r"x must have shape \(n, d\) with d >= 1"),
        (3.0, Y, "x must have shape"),
        (X[:0], Y[:0], "empty; at least one row"),
        (X[:, :1], Y, "x has 1 covariates, the measure 2"),
        (Y, Y, "x has 1 covariates, the measure 2"),
    ],
)
def test_bad_data(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        likelihood(x, y)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X.tolist(), Y.tolist()),
        (X.astype(int), Y[:, None]),
        (X.astype(np.float32), Y),
        (pd.DataFrame(X), pd.Series(Y)),
        (X.astype(object), jnp.asarray(Y)),
    ],
)
def test_data_in_any_usual_form(x: Any, y: Any) -> None:
    got = likelihood(x, y)
    assert got.dtype == jnp.float64
    np.testing.assert_array_equal(got, likelihood())


def by_rows(u: jax.Array) -> jax.Array:
    return jax.nn.softmax(u, axis=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bm.moe("softmax", 0), "n_experts must be a whole number of at least 1, got 0"),
        (lambda: bm.moe("softmax", -2), "n_experts must be a whole number"),
        (lambda: moe("softmax", 2.5), "n_experts must be a whole number of at least 1, got 2.5"),
        (lambda: bm.moe("softmax", True), "n_experts must be a whole number"),
        (lambda: moe("softmax", "2"), "n_experts must be a whole number"),
        (lambda: bm.moe("softmaxx", 2), "unknown gate 'softmaxx'; choose one of softmax"),
        (
            lambda: bm.moe("softmax", 2, prior="strong"),
            "unknown prior 'strong'; choose one of weak",
        ),
        (lambda: bm.moe("softmax", 2, top_k=1), "gate 'softmax' has no option 'top_k'"),
        (lambda: bm.moe("top_k_sparse", 2, topk=1), "has no option 'topk'; its options: "),
        (lambda: bm.moe("top_k_sparse", 2, top_k=3), "top_k = 3 exceeds n_experts = 2"),
        (lambda: bm.moe("top_k_sparse", 2, top_k=0), "top_k must be a whole number of at least 1"),
        (lambda: bm.moe("top_k_sparse", 2, top_k=True), "top_k must be a whole number"),
        (lambda: bm.moe("top_k_sparse", 2, top_k=1.5), "top_k must be a whole number"),
        (lambda: bm.moe(ACTIVATION, 2, activation="sigmod"), "unknown activation 'sigmod'"),
        (lambda: bm.moe(ACTIVATION, 2, activation=3), "must be a name or a JAX function, got 3"),
        (lambda: bm.moe(ACTIVATION, 2, activation=jnp.sum), "same shape"),
        (lambda: bm.moe(ACTIVATION, 2, activation=lambda u: u[1:]), "same shape"),
        (lambda: bm.moe(ACTIVATION, 2, activation=jnp.log), "finite values; at -8"),
        (lambda: bm.moe(ACTIVATION, 2, activation=np.tanh), "must be a JAX function"),
        (lambda: bm.moe(ACTIVATION, 2, activation=jnp.ones_like), "not constant"),
        (lambda: bm.moe(ACTIVATION, 2, activation=by_rows), "entry by entry; on an array of"),
        (lambda: bm.moe(CASE["softmax"].gate(), 2, top_k=1), "go with a gate's name"),
    ],
)
def test_bad_models(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_options_named_are_those_that_can_be_set() -> None:
    with pytest.raises(ValueError, match=r"its options: top_k$"):
        bm.moe("top_k_sparse", 2, topk=1)


def test_a_class_variable_is_no_option() -> None:
    with pytest.raises(ValueError, match="no option 'linear'"):
        bm.moe("softmax", 2, linear=False)


@pytest.mark.parametrize("activation", [jax.nn.softmax, jnp.cumsum, lambda u: u - u.mean()])
def test_an_activation_that_mixes_its_entries_is_refused(activation: Any) -> None:
    with pytest.raises(ValueError, match="activation"):
        bm.moe(ACTIVATION, 2, activation=activation)


def test_top_k_may_be_a_numpy_integer() -> None:
    assert moe("top_k_sparse", np.int64(3), top_k=np.int64(2)).gate.top_k == 2


def test_a_measure_with_other_experts_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="experts"):
        bm.moe("softmax", 2).log_likelihood(CASE["softmax"].measure(0, 3), X, Y)


@pytest.mark.parametrize("key", [-1, 2**63, True, 1.0, "0", None, jnp.zeros(3), jnp.zeros(2)])
def test_bad_keys(key: Any) -> None:
    with pytest.raises(ValueError, match="key must be a JAX key or a non-negative int"):
        as_key(key)


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), np.float64(0.25)])
def test_a_fraction_may_be_a_number_of_numpy(value: Any) -> None:
    assert type(check_fraction("level", value)) is float


def test_a_batch_of_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="key must be a JAX key"):
        as_key(jax.random.split(jax.random.key(0)))


GOOD: dict[str, Any] = {
    "gate_slope": np.zeros((3, 2)),
    "gate_intercept": np.zeros(3),
    "temperature": 1.0,
    "slope": np.zeros((3, 2)),
    "intercept": np.zeros(3),
    "variance": np.ones(3),
}


@pytest.mark.parametrize("field", ["gate_slope", "gate_intercept", "temperature", "variance"])
def test_blocks_of_a_measure_must_fit_its_slope(field: str) -> None:
    for wrong in (np.zeros(4), np.zeros((1, *np.shape(GOOD[field])))):
        with pytest.raises(ValueError, match=f"{field} has shape"):
            bm.MixingMeasure(**{**GOOD, field: wrong})


def test_the_slope_of_a_measure_needs_two_axes() -> None:
    with pytest.raises(ValueError, match=r"slope must have shape \(\.\.\., k, d\), got \(3,\)"):
        bm.MixingMeasure(**{**GOOD, "slope": np.zeros(3)})


def test_a_measure_is_immutable_and_float64_and_indexes_its_batch() -> None:
    measure = bm.MixingMeasure(**GOOD)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(measure)} == {"float64"}
    with pytest.raises(AttributeError):
        measure.variance = jnp.ones(3)  # type: ignore[misc]
    with pytest.raises(IndexError, match="no batch axes"):
        measure[0]
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), measure)
    assert batch.batch_shape == (2,)
    assert batch[1].batch_shape == ()
    np.testing.assert_array_equal(batch[1].variance, 2)


@pytest.mark.parametrize("convert", [jnp.asarray, np.asarray])
def test_a_batch_of_measures_ends_where_a_numpy_array_does(convert: Callable[[Any], Any]) -> None:
    measure = bm.MixingMeasure(**GOOD)
    batch = jax.tree.map(lambda leaf: convert(jnp.stack([leaf, leaf + 1, leaf + 2])), measure)
    np.testing.assert_array_equal(batch[-3].variance, measure.variance)
    assert batch[np.asarray([2, 0])].batch_shape == (2,)
    assert batch[1:9].batch_shape == (2,)
    for index in (3, -4, np.int64(3), (3,), [0, 3], (0, 0)):
        with pytest.raises(IndexError):
            batch[index]


def test_a_batch_of_measures_has_traced_indices() -> None:
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), bm.MixingMeasure(**GOOD))
    one = jax.jit(lambda index: batch[index])(1)
    np.testing.assert_array_equal(one.variance, batch[1].variance)


@pytest.mark.parametrize(
    ("x", "y", "parameters", "message"),
    [
        (X, Y, 7, "6 rows cannot determine 7 parameters"),
        (np.column_stack([Y, np.full(6, 4.0)]), Y, 2, "covariate 1 has the one distinct value 4"),
        (1.7e12 + Y, Y, 2, r"covariate 0 varies by .* at values of 1.7e\+12, .* subtract"),
        (Y, 1e-12 * Y - 1, 2, r"y varies by .* at values of 1, .* subtract a constant"),
        (X, np.full(6, 2.5), 2, "y is constant at 2.5"),
    ],
)
def test_data_that_cannot_be_estimated_from(x: Any, y: Any, parameters: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_estimable(*check_observations(x, y), parameters)
