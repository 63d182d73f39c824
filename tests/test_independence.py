"""Independence conditions of activations, against matrices written out in NumPy."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SIGMAS, softsign

from bayesmoe.models.activation_dense_to_sparse import ACTIVATIONS
from bayesmoe.theory.independence import (
    FAILS,
    HOLDS,
    general_slopes,
    independence,
    opposite_slopes,
)

X1 = (np.arange(512) + 0.5) / 512
SMOOTH = ["sigmoid", "tanh", "gelu", "silu", "softplus"]


def derivative(name: str, u: np.ndarray) -> np.ndarray:
    """σ' by the complex step."""
    return np.imag(SIGMAS[name](np, u + 1e-30j)) / 1e-30


def second_derivative(name: str, u: np.ndarray) -> np.ndarray:
    return (derivative(name, u + 1e-5) - derivative(name, u - 1e-5)) / 2e-5


def unit_columns(columns: list[np.ndarray]) -> np.ndarray:
    matrix = np.stack(columns, axis=1)
    return matrix / np.linalg.norm(matrix, axis=0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_verdict_at_first_order(name: str) -> None:
    found = independence(ACTIVATIONS[name])
    assert found.verdict == ("fails" if name in ("identity", "relu") else "holds")
    assert found.names == ("1", "s(b[0] x)", "x[0] s'(b[0] x)", "s(b[1] x)", "x[0] s'(b[1] x)")


@pytest.mark.parametrize("name", ["identity", "sigmoid", "gelu"])
def test_the_verdict_at_second_order(name: str) -> None:
    assert independence(ACTIVATIONS[name], 2).verdict == (
        "fails" if name == "identity" else "holds"
    )


@pytest.mark.parametrize("name", SMOOTH)
def test_opposite_slopes_are_dependent_at_first_order(name: str) -> None:
    # σ(u) + σ(-u) = c, or σ(u) - σ(-u) = u and hence βX (σ'(βX) + σ'(-βX)) = βX
    assert independence(ACTIVATIONS[name], slopes=opposite_slopes(1)).verdict == "fails"


@pytest.mark.parametrize("slopes", [[6.0, -4.0], [6.0, 2.0], [-3.0, -1.0]])
def test_relu_fails_wherever_its_kink_is(slopes: list[float]) -> None:
    for x in (X1, 2 * X1 - 1):  # the kink at the edge, and inside
        assert independence(ACTIVATIONS["relu"], slopes=slopes, x=x).verdict == "fails"


def test_a_kink_inside_makes_a_shifted_relu_independent() -> None:
    def shifted(u: Any) -> Any:
        return jnp.maximum(u - 0.5, 0.0)

    assert independence(shifted, slopes=[2.0, 1.0]).verdict == "holds"
    assert independence(shifted, slopes=[0.4, 0.3]).verdict == "fails"  # zero all over [0, 1]


@pytest.mark.parametrize("name", ["sigmoid", "gelu"])
def test_singular_values_at_first_order(name: str) -> None:
    x = np.random.default_rng(0).random((512, 2))
    slopes = np.array([[3.0, -2.0], [1.0, 4.0], [-2.5, 0.5]])
    columns = [np.ones(512)]
    for u in slopes @ x.T:
        columns += [SIGMAS[name](np, u), *(x.T * derivative(name, u))]
    expected = np.linalg.svd(unit_columns(columns), compute_uv=False)
    found = independence(ACTIVATIONS[name], slopes=slopes, x=x)
    np.testing.assert_allclose(found.singular_values, expected, rtol=1e-9)


def test_singular_values_at_second_order() -> None:
    x = np.random.default_rng(1).random((512, 2))
    slopes = np.array([[3.0, -2.0], [1.0, 4.0]])
    columns = [np.ones(512)]
    for u in slopes @ x.T:
        s, first, second = (
            SIGMAS["tanh"](np, u),
            derivative("tanh", u),
            second_derivative("tanh", u),
        )
        columns += [s, s**2]
        columns += [x[:, i] * part for i in range(2) for part in (first, s * first)]
        columns += [
            x[:, i] * x[:, j] * part
            for i, j in ((0, 0), (0, 1), (1, 1))
            for part in (second, first**2)
        ]
    expected = np.linalg.svd(unit_columns(columns), compute_uv=False)
    found = independence(ACTIVATIONS["tanh"], 2, slopes=slopes, x=x)
    assert len(found.names) == len(columns)
    np.testing.assert_allclose(found.singular_values, expected, rtol=1e-4)


def test_the_relation_is_the_dependence() -> None:
    found = independence(ACTIVATIONS["identity"], slopes=[2.0])
    # of unit functions 1, σ = 2x and x σ' = x
    np.testing.assert_allclose(np.abs(found.relation), [0, np.sqrt(0.5), np.sqrt(0.5)], atol=1e-12)
    assert found.relation[1] * found.relation[2] < 0


def test_a_users_own_function() -> None:
    assert independence(softsign).verdict == "holds"
    assert independence(lambda u: 3 * u + 1).verdict == "fails"
    # exp(x)² = exp(2x): one slope's square is the other's activation
    assert independence(jnp.exp, 2, slopes=[2.0, 1.0]).verdict == "fails"
    assert independence(jnp.exp, 1, slopes=[2.0, 1.0]).verdict == "holds"


def test_what_is_too_near_to_dependent_is_left_open() -> None:
    found = independence(lambda u: u + 1e-12 * jnp.tanh(u), slopes=[6.0])
    assert FAILS < found.smallest < HOLDS
    assert found.verdict == "cannot tell"


def test_slopes_in_general_position() -> None:
    for d in (1, 2, 5):
        slopes = general_slopes(d)
        assert slopes.shape == (2, d)
        assert np.all(np.abs(slopes[0] + slopes[1]) + np.abs(slopes[0] - slopes[1]) > 0.1)
        np.testing.assert_array_equal(opposite_slopes(d).sum(axis=0), 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"order": 3}, "order must be 1 or 2, got 3"),
        ({"slopes": [1.0, 1.0]}, "slopes must be distinct"),
        ({"slopes": np.ones((2, 2))}, r"slopes must have shape \(m, 1\) as x has, got \(2, 2\)"),
        ({"x": [0.1, 0.2]}, "5 functions need as many points of X at least, got 2"),
        ({"activation": lambda u: jnp.log(u)}, "is not finite on these points"),
    ],
)
def test_misuse(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        independence(**({"activation": jnp.tanh} | arguments))
