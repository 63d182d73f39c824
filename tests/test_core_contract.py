"""Gates of one's own that are not what they declare: each is refused, and told why."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import bayesmoe as bm
from bayesmoe.core.contract import check_behaviour, check_state
from bayesmoe.core.gate import BlockExponents, Gate, Rate, polynomial_order, power_rate
from bayesmoe.core.measure import GateParameters
from bayesmoe.core.program import Sites, observe
from bayesmoe.models import GATES


@dataclasses.dataclass(frozen=True)
class Plain(Gate):
    """A softmax gate that declares nothing."""

    name: ClassVar[str] = "plain"

    def logits(self, parameters: GateParameters, x: Array) -> Array:
        return parameters.slope @ x + parameters.intercept[:, None]

    def program(self, x: Array, y: Array | None, sites: Sites) -> None:
        observe(self, bm.MixingMeasure(*sites.gate(), *sites.experts()), x, y)

    def voronoi_exponents(self, cell_size: Array, *, identified: bool) -> BlockExponents:
        return BlockExponents(*[polynomial_order(cell_size)] * 5)

    def expected_rate(self, quantity: str, over_specified: bool) -> Rate:
        return power_rate(1, 2)


class Bent(Plain):
    def logits(self, parameters: GateParameters, x: Array) -> Array:
        return jnp.exp(parameters.slope @ x) + parameters.intercept[:, None]


class Linear(Bent):
    linear: ClassVar[bool] = True


class Translates(Bent):
    @property
    def translates(self) -> bool:
        return True


class Flips(Bent):
    @property
    def flip(self) -> bool:
        return True


class Even(Bent):
    @property
    def even(self) -> bool:
        return True


class Ray(Plain):
    has_temperature: ClassVar[bool] = True

    @property
    def ray(self) -> bool:
        return True

    def logits(self, parameters: GateParameters, x: Array) -> Array:
        return super().logits(parameters, x) / parameters.temperature**2


class Distances(Plain):
    def logits(self, parameters: GateParameters, x: Array) -> Array:
        square = jnp.sum((x[None] - parameters.slope[:, :, None]) ** 2, axis=1)
        return parameters.intercept[:, None] - square


class Products(Plain):
    def logits(self, parameters: GateParameters, x: Array) -> Array:
        return (parameters.slope @ x) * parameters.intercept[:, None]


class Sums(Plain):
    separable: ClassVar[bool] = True

    def logits(self, parameters: GateParameters, x: Array) -> Array:
        return jnp.cumsum(super().logits(parameters, x)[::-1], axis=0)[::-1]


class SumsOfSlopes(Plain):
    separable: ClassVar[bool] = True

    def logits(self, parameters: GateParameters, x: Array) -> Array:
        return jnp.cumsum(parameters.slope @ x, axis=0) + parameters.intercept[:, None]


class RowsFirst(Plain):
    def logits(self, parameters: GateParameters, x: Array) -> Array:
        return super().logits(parameters, x).T


class Single(Plain):
    def logits(self, parameters: GateParameters, x: Array) -> Array:
        return super().logits(parameters, x).astype(jnp.float32)


class NumPys(Plain):
    def logits(self, parameters: GateParameters, x: Array) -> Array:
        return jnp.asarray(np.asarray(parameters.slope) @ np.asarray(x))


class Cold(Plain):
    has_temperature: ClassVar[bool] = True


class Warm(Plain):
    def program(self, x: Array, y: Array | None, sites: Sites) -> None:
        gate = sites.gate(sites.temperature())
        observe(self, bm.MixingMeasure(*gate, *sites.experts()), x, y)


class Forgets(Plain):
    def program(self, x: Array, y: Array | None, sites: Sites) -> None:
        sites.gate()
        sites.experts()


class Swaps(Plain):
    def program(self, x: Array, y: Array | None, sites: Sites) -> None:
        slope, intercept, variance = sites.experts()
        observe(self, bm.MixingMeasure(*sites.gate(), slope, intercept, variance[::-1]), x, y)


@pytest.mark.parametrize(
    ("gate", "why"),
    [
        (Linear(), r"\(linear\) x \+ c may have"),
        (Translates(), r"\(translates\) one vector"),
        (Flips(), r"\(flip\) two slopes"),
        (Even(), r"\(even\) β1 of any expert"),
        (Ray(), r"\(ray\)"),
        (Distances(), r"\(rescalable\)"),
        (Products(), "one number added to all β0"),
        (Sums(), "one number added to all β0"),
        (SumsOfSlopes(), "separable = True"),
        (RowsFirst(), r"float64 of shape \(k, n\).*float64 of shape \(7, 3\)"),
        (Single(), "float32 of shape"),
        (NumPys(), "by JAX alone"),
        (Cold(), "its program lacks a temperature"),
        (Warm(), "its program has a temperature"),
        (Forgets(), "must end in observe"),
        (Swaps(), "another density than its logits"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_does_not_hold_is_named(gate: Gate, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        bm.moe(gate, 3)


def test_gates_that_jax_could_not_tell_apart_are_refused() -> None:
    """Two of one class would share compiled programs, the second having the first one's numbers."""

    class Wide(Plain):
        def __init__(self, width: float) -> None:
            object.__setattr__(self, "width", width)

    assert Wide(1.0) == Wide(2.0)
    with pytest.raises(ValueError, match="Wide has 'width', which is no field"):
        bm.moe(Wide(1.0), 2)

    @dataclasses.dataclass(frozen=True)
    class Knots(Plain):
        at: Any = ()

    with pytest.raises(ValueError, match=r"Knots must be hashable.*'list'.*tuples"):
        bm.moe(Knots([1.0]), 2, gate_covariates=(0,))
    bm.moe(Knots((1.0,)), 2)
    with pytest.raises(ValueError, match=r"not its class; make one, Knots\(\)"):
        bm.moe(cast("Any", Knots), 2)


def test_a_gate_may_keep_what_it_has_computed() -> None:
    class Caches(Plain):
        @functools.cached_property
        def factor(self) -> float:
            return 2.0

    gate = Caches()
    assert gate.factor == 2.0
    bm.moe(gate, 2)


def test_a_gate_may_need_some_number_of_covariates() -> None:
    class Third(Plain):
        def logits(self, parameters: GateParameters, x: Array) -> Array:
            return parameters.slope[:, 2:3] * x[2] + parameters.intercept[:, None]

    bm.moe(Third(), 2)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("name", GATES)
def test_the_gates_of_this_package_keep_the_contract(name: str, k: int) -> None:
    gate = bm.moe(name, k, **({"top_k": 1} if name == "top_k_sparse" else {})).gate
    check_state(gate)
    check_behaviour(gate, k)


@pytest.mark.parametrize("activation", ["tanh", "gelu", "relu", "identity"])
def test_so_do_the_activations(activation: str) -> None:
    gate = bm.moe("activation_dense_to_sparse", 3, activation=activation).gate
    check_behaviour(gate, 3)


def test_a_model_may_be_made_while_a_function_is_traced() -> None:
    @dataclasses.dataclass(frozen=True)
    class Own(Plain):
        name: ClassVar[str] = "own"

    def total(slope: Array) -> Array:
        measure = bm.MixingMeasure([[0.4], [0.0]], [0.1, 0.0], 1.0, slope, [0.0, 1.0], [1.0, 2.0])
        return bm.moe(Own(), 2).log_likelihood(measure, [0.0, 1.0], [0.5, 2.0]).sum()

    slope = jnp.array([[1.0], [2.0]])
    np.testing.assert_allclose(jax.jit(total)(slope), total(slope), rtol=1e-12)
