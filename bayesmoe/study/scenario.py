"""Scenarios: a true mixing measure under a gate, and a law of the covariates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from bayesmoe.core.density import conditional_density
from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.validate import as_key, check_whole
from bayesmoe.models import make_gate

_SHORTEST = 1024  # pairs simulated at least


@dataclasses.dataclass(frozen=True, eq=False)
class Scenario:
    """A truth to simulate from; X is uniform on the unit cube [0, 1]^d.

    Attributes
    ----------
    name
        The scenario's name.
    gate
        The true gate.
    measure
        The true mixing measure G*, reference expert last.
    """

    name: str
    gate: Gate
    measure: MixingMeasure

    @property
    def quadrature_x(self) -> Array:
        """Equally weighted points of the law of X, shape ``(512, d)``.

        For d = 1 the midpoint rule; for d > 1 a Kronecker sequence.
        """
        d, m = self.measure.n_covariates, 512
        step = np.ones(1) / m if d == 1 else _plastic(d) ** -np.arange(1.0, d + 1)
        return jnp.asarray(np.outer(np.arange(m) + 0.5, step) % 1.0)

    def simulate(self, key: Array | int, n: int) -> tuple[Array, Array]:
        """n independent pairs: x ``(n, d)`` and y ``(n,)``, the first n of one stream per key.

        Parameters
        ----------
        key
            A JAX key or a non-negative int.
        n
            The sample size, at least 1.

        Raises
        ------
        ValueError
            If ``key`` or ``n`` is not valid.
        """
        key, n = as_key(key), check_whole("n", n, least=1)
        # a stream of at least n pairs, cut by NumPy: JAX would compile anew for every n
        length = max(_SHORTEST, 1 << (n - 1).bit_length())
        x, y = _simulate(self.gate, length, self.measure, key)
        return jax.device_put(np.asarray(x)[:n]), jax.device_put(np.asarray(y)[:n])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _simulate(gate: Gate, n: int, measure: MixingMeasure, key: Array) -> tuple[Array, Array]:
    x_key, y_key = jax.random.split(key)
    x = jax.random.uniform(x_key, (n, measure.n_covariates))
    return x, conditional_density(gate, measure, x).sample(y_key)


def _plastic(d: int) -> float:
    """The root of g^(d+1) = g + 1: the base of a low-discrepancy Kronecker sequence."""
    root = 2.0
    for _ in range(64):
        root = (1.0 + root) ** (1.0 / (d + 1))
    return root


def scenario(name: str, gate: str | Gate = "softmax", **gate_options: Any) -> Scenario:
    """A named truth under a gate.

    Parameters
    ----------
    name
        "lambda", "three", "plane" or "weak"; see `SCENARIOS`.
    gate
        A gate's name or a `Gate` object.
    **gate_options
        Options of the named gate, as for `bayesmoe.moe`.

    Raises
    ------
    ValueError
        If the name, the gate or an option is unknown, or the gate cannot serve the truth.
    """
    gate = make_gate(gate, **gate_options)
    if name not in SCENARIOS:
        raise ValueError(f"unknown scenario {name!r}; choose one of {', '.join(SCENARIOS)}")
    measure = SCENARIOS[name](gate)
    gate.check(measure.n_experts)
    return Scenario(name, gate, measure)


def _linear(
    gate: Gate, slope: ArrayLike, intercept: ArrayLike, temperature: float = 2.0
) -> tuple[Any, Any, float]:
    """Gate parameters with logits slope·x + intercept; under a temperature the same density."""
    tau = temperature if gate.has_temperature else 1.0
    return tau * np.asarray(slope), tau * np.asarray(intercept), tau


def _lambda(gate: Gate) -> MixingMeasure:
    """The published truth of the lineage: two crossing lines, d = 1, k* = 2.

    Logits 25x - 8; with a temperature, τ* = 2 and the same density. Activation gates have a
    comparable switch: (σ(6x) - σ(0) - 0.35)/0.05.
    """
    if gate.linear:
        gate_parameters = _linear(gate, [[25.0], [0.0]], [-8.0, 0.0])
    else:
        gate_parameters = ([[6.0], [0.0]], [-0.35, 0.0], 0.05)
    return MixingMeasure(*gate_parameters, [[-20.0], [20.0]], [15.0, -5.0], [0.09, 0.16])


def _three(gate: Gate) -> MixingMeasure:
    """Three lines on three stretches of [0, 1], d = 1, k* = 3."""
    if gate.linear:
        gate_parameters = _linear(gate, [[20.0], [12.0], [0.0]], [-12.0, -4.0, 0.0])
    else:
        gate_parameters = ([[6.0], [2.0], [0.0]], [-0.30, -0.10, 0.0], 0.05)
    return MixingMeasure(
        *gate_parameters, [[4.0], [-6.0], [5.0]], [-3.0, 4.0, -1.0], [0.09, 0.16, 0.25]
    )


def _plane(gate: Gate) -> MixingMeasure:
    """Two planes over the unit square, d = 2, k* = 2."""
    if gate.linear:
        gate_parameters = _linear(gate, [[6.0, -4.0], [0.0, 0.0]], [-1.0, 0.0])
    else:
        gate_parameters = ([[4.0, -3.0], [0.0, 0.0]], [-0.10, 0.0], 0.1)
    return MixingMeasure(*gate_parameters, [[3.0, 1.0], [-2.0, 2.0]], [-1.0, 1.0], [0.16, 0.25])


def _weak(gate: Gate) -> MixingMeasure:
    """Two lines that overlap, under a soft gate: weak separation, d = 1, k* = 2."""
    if gate.linear:
        gate_parameters = _linear(gate, [[5.0], [0.0]], [-2.0, 0.0])
    else:
        gate_parameters = ([[6.0], [0.0]], [-0.30, 0.0], 0.15)
    return MixingMeasure(*gate_parameters, [[-2.0], [2.0]], [1.5, -0.5], [0.25, 0.36])


SCENARIOS: dict[str, Callable[[Gate], MixingMeasure]] = {
    "lambda": _lambda,
    "three": _three,
    "plane": _plane,
    "weak": _weak,
}
