"""Standardisation: round trips, equal densities, volumes."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CASE, GateCase
from hypothesis import given
from hypothesis import strategies as st

import bayesmoe as bm
from bayesmoe.core.gate import Gate
from bayesmoe.core.scaling import Scaling


def assert_same(one: bm.MixingMeasure, other: bm.MixingMeasure, relative: float) -> None:
    for got, want in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=relative * np.abs(want).max())


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_equal_densities_before_and_after_standardising(gate_case: GateCase, size: float) -> None:
    """g_orig(y|x) = g_std(ỹ|x̃) / y_scale, the original built by `restore`."""
    case = gate_case
    rng = np.random.default_rng(11)
    x = size * rng.normal([1.0, -3.0], [0.5, 2.0], size=(30, 2))
    y = size**-1 * rng.normal(4.0, 3.0, size=30)
    scaling = Scaling.from_data(case.gate(), x, y)
    inner = case.measure(3)
    outer = scaling.restore(inner)
    maps = {name: np.asarray(value) for name, value in vars(scaling).items()}
    gate_x = (x - maps["gate_shift"]) / maps["gate_scale"]
    expert_x = (x - maps["x_shift"]) / maps["x_scale"]
    response = (y - maps["y_shift"]) / maps["y_scale"]
    laws = case.components(inner, expert_x).pdf(response[:, None])
    standard = (case.probabilities(inner, gate_x) * laws).sum(1)
    want = np.log(standard) - np.log(maps["y_scale"])
    np.testing.assert_allclose(
        bm.moe(case.gate(), 3).log_likelihood(outer, x, y), want, rtol=1e-9, atol=1e-9
    )
    assert_same(scaling.standardise(outer), inner, 1e-12)


def test_the_maps_are_the_documented_moments(gate_case: GateCase) -> None:
    case = gate_case
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, size=(50, 2)), rng.normal(-1, 4, size=50)
    scaling = Scaling.from_data(case.gate(), x, y)
    gate_shift = x.mean(0) if case.linear else np.zeros(2)
    gate_scale = x.std(0) if case.linear else np.sqrt((x**2).mean(0))
    for got, want in (
        (scaling.x_shift, x.mean(0)),
        (scaling.x_scale, x.std(0)),
        (scaling.gate_shift, gate_shift),
        (scaling.gate_scale, gate_scale),
        (scaling.y_shift, y.mean()),
        (scaling.y_scale, y.std()),
    ):
        np.testing.assert_allclose(got, want, rtol=1e-13)
    bare = Scaling.from_data(case.gate(), x, None)
    assert (bare.y_shift, bare.y_scale) == (0, 1)


@functools.partial(jax.jit, static_argnums=0)
def traced_maps(gate: Gate, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    return vars(Scaling.from_data(gate, x, y))


@pytest.mark.parametrize("size", [2.0**-960, 2.0**-30, 2.0**1015])
@pytest.mark.parametrize("label", ["softmax", "sigmoid"])
def test_moments_are_safe_at_any_size_and_may_be_traced(label: str, size: float) -> None:
    rng = np.random.default_rng(1)
    unit_x = rng.normal([3.0, 1e6], [2.0, 1e-2], size=(50, 2)) / [1.0, 1e6]
    unit_y = rng.normal(-1, 4, size=50)
    gate = CASE[label].gate()
    fields = [field.name for field in dataclasses.fields(Scaling)]
    traced = traced_maps(gate, size * unit_x, size * unit_y)
    known = vars(Scaling.from_data(gate, size * unit_x, size * unit_y))
    unit = vars(Scaling.from_data(gate, unit_x, unit_y))
    np.testing.assert_allclose(unit["x_scale"], unit_x.std(0), rtol=1e-13)
    for field in fields:
        np.testing.assert_allclose(known[field] / size, unit[field], rtol=1e-14)
        np.testing.assert_allclose(traced[field], known[field], rtol=1e-12)


def test_constant_columns_have_a_unit_scale_when_traced() -> None:
    x = np.tile([0.1, 0.0, 1e-320], (49, 1))
    traced = jax.jit(lambda x: Scaling.from_data(CASE["sigmoid"].gate(), x, x[:, 0]).x_scale)(x)
    np.testing.assert_array_equal(traced, 1)


def test_constant_and_zero_columns_keep_a_unit_scale(gate_case: GateCase) -> None:
    case = gate_case
    x = np.column_stack([np.zeros(7), np.full(7, 0.1)])
    scaling = Scaling.from_data(case.gate(), x, np.full(7, 1 / 3))
    for values in jax.tree.leaves(vars(scaling)):
        assert jnp.isfinite(values).all()
    np.testing.assert_array_equal(scaling.x_scale, 1)
    assert scaling.y_scale == 1


@given(st.floats(-9, 9), st.floats(-9, 9), st.integers(0, 10_000))
def test_standardise_and_restore_are_inverse(x_log10: float, y_log10: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = 10**x_log10 * rng.normal(1, 1, size=(20, 2))
    y = 10**y_log10 * rng.normal(1, 1, size=20)
    for label in ("softmax", "sigmoid"):
        scaling = Scaling.from_data(CASE[label].gate(), x, y)
        measure = CASE[label].measure(seed)
        assert_same(scaling.standardise(scaling.restore(measure)), measure, 1e-11)


@pytest.mark.parametrize(
    ("label", "k", "d"), [("softmax", 1, 1), ("softmax", 3, 2), ("sigmoid", 3, 2)]
)
def test_log_volume_is_a_log_determinant(label: str, k: int, d: int) -> None:
    case = CASE[label]
    rng = np.random.default_rng(2)
    x, y = rng.normal(2, 3, size=(30, d)), rng.normal(1, 5, size=30)
    scaling, measure = Scaling.from_data(case.gate(), x, y), case.measure(0, k, d)
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, measure))
    free = [leaves[0][:-1], leaves[1][:-1], *leaves[3:]]
    shapes = [leaf.shape for leaf in free]

    def restored(flat: jax.Array) -> jax.Array:
        parts = jnp.split(flat, np.cumsum([np.prod(shape) for shape in shapes])[:-1].astype(int))
        slope, intercept, *experts = [
            part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)
        ]
        whole = [
            jnp.concatenate([slope, jnp.zeros((1, d))]),
            jnp.concatenate([intercept, jnp.zeros(1)]),
            leaves[2],
            *experts,
        ]
        out = scaling.restore(jax.tree.unflatten(tree, whole))
        blocks = (
            out.gate_slope[:-1],
            out.gate_intercept[:-1],
            out.slope,
            out.intercept,
            out.variance,
        )
        return jnp.concatenate([block.ravel() for block in blocks])

    flat = np.concatenate([leaf.ravel() for leaf in free])
    step = 1e-3  # the map is affine, so that differences are exact up to rounding
    shifts = step * np.eye(flat.size)
    restore_all = jax.jit(jax.vmap(restored))
    above, below = (np.asarray(restore_all(flat + sign * shifts)) for sign in (1, -1))
    want = np.linalg.slogdet((above - below) / (2 * step))[1]
    np.testing.assert_allclose(scaling.log_volume(k), want, rtol=1e-9, atol=1e-9)
