"""One chain in the chart around a mode, or given a gate where the density jumps.

NumPyro's NUTS is driven by one compiled program per model, capacity of the data and length of the
run: data and chart are arguments, so that replicates and sample sizes share it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.infer.hmc import HMCState

from bayesmoe.core.compilation import jit_unoptimised, jit_wide
from bayesmoe.core.observations import Data
from bayesmoe.inference.chart import Chart
from bayesmoe.inference.jumps import GivenGate
from bayesmoe.inference.kernel import Chain, Length, Pace, State, begin, iterate, scatter
from bayesmoe.inference.target import Target

_ACCEPT = 0.9  # over-specified posteriors have narrow necks


class _Charted(NamedTuple):
    """A target in the chart around a mode; nothing is held."""

    target: Target
    data: Data
    chart: Chart

    @property
    def accept(self) -> float:
        return _ACCEPT

    def join(self, held: Array, z: Array) -> tuple[Array, Array]:
        chart = self.chart
        return chart.bend(self.target.layout, chart.mode + chart.whitening @ z)

    def move(self, held: Array, nuts: HMCState, key: Array) -> tuple[Array, HMCState, Array]:
        return held, nuts, key


def _space(target: Target, data: Data, chart: Chart) -> _Charted | GivenGate:
    jumps = target.layout.gate.jumps(target.layout.n_experts)
    return GivenGate(target, data) if jumps else _Charted(target, data, chart)


@jit_unoptimised(static_argnums=(0, 1))
def begin_chain(
    target: Target,
    length: Length,
    data: Data,
    chart: Chart,
    key: Array,
    chain: Array,
) -> State:
    """The state in which a chain begins, around a mode; as `run_chain`, and:

    Parameters
    ----------
    key, chain
        A JAX key that all chains share, and the chain's number ``()``.
    """
    space = _space(target, data, chart)
    start_key, *keys = jax.random.split(jax.random.fold_in(key, chain), 3)
    if isinstance(space, GivenGate):
        held, z = space.hold(chart.mode)
        return begin(space, length, held, z + scatter(start_key, z), keys)
    return begin(space, length, chart.mode[:0], scatter(start_key, chart.mode), keys)


@jit_wide(static_argnums=(0, 1))
def run_chain(
    target: Target,
    length: Length,
    data: Data,
    chart: Chart,
    state: State,
    pace: Pace,
) -> tuple[Chain, State]:
    """One chain from a state, and the state in which it ends.

    Parameters
    ----------
    target, data
        What is sampled.
    length
        Of the chain.
    chart
        Coordinates around a mode.
    state
        From `begin_chain`, or one in which the chain ended before.
    pace
        Its transitions.
    """
    draws, _, last = iterate(_space(target, data, chart), length, state, pace)
    return draws, last


@functools.partial(jax.jit, static_argnums=(0, 1))
def begin_chains(target: Target, length: Length, data: Data, charts: Chart, key: Array) -> State:
    """`begin_chain` side by side, as an accelerator wants it.

    Charts have a leading axis of c chains, as all results do; the chains share the key.
    """

    def one(chart: Chart, chain: Array) -> State:
        return begin_chain.function(target, length, data, chart, key, chain)

    return jax.vmap(one)(charts, jnp.arange(len(charts.mode)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_chains(
    target: Target, length: Length, data: Data, charts: Chart, states: State, pace: Pace
) -> tuple[Chain, State]:
    """`run_chain` side by side; charts and states have a leading axis of c chains."""

    def one(chart: Chart, state: State) -> tuple[Chain, State]:
        return run_chain.function(target, length, data, chart, state, pace)

    return jax.vmap(one)(charts, states)
