"""One chain: NUTS transitions and other moves between them.

NumPyro's NUTS is driven by one compiled program per model, capacity of the data and length of the
run: data and chart are arguments, so that replicates and sample sizes share it.

No gradient tells of a jump. Where the density jumps as the gate moves (top-K with K < k), NUTS
over all coordinates shortens its steps until they fit between two jumps, and stands still. There
it moves the experts given the gate, where nothing jumps, and Metropolis steps of many sizes move
the gate given the experts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.infer.hmc import HMCState, hmc
from numpyro.infer.util import ParamInfo

from bayesmoe.core.compilation import jit_unoptimised, jit_wide
from bayesmoe.core.observations import Data
from bayesmoe.inference.chart import Chart
from bayesmoe.inference.target import Target

_SPREAD = 0.5  # of the chains' starts around the mode, in its standard deviations
_ACCEPT = 0.9  # over-specified posteriors have narrow necks

_N_HOPS = 20  # Metropolis steps of a gate that jumps, after each transition of the experts
_SIZES = (1e-3, 3.0)  # of their proposals: a threshold passes one observation, or many

Density = Callable[[Array], Array]


class Chain(NamedTuple):
    """One chain's draws in the coordinates sampled, leading axis ``draw``; see `Draws`."""

    u: Array
    lp: Array
    energy: Array
    acceptance_rate: Array
    n_steps: Array
    diverging: Array


class Length(NamedTuple):
    """How long a chain is: iterations for adaptation and to keep, and the longest trajectory.

    That has less than two to the power of ``max_tree_depth`` leapfrog steps. In whitened
    coordinates tens are needed: hundreds mean that whitening failed.
    """

    n_warmup: int
    n_draws: int
    max_tree_depth: int = 8


class State(NamedTuple):
    """A chain between two iterations: NUTS's state, what it holds, and the key to move that."""

    nuts: HMCState
    held: Array
    key: Array


class Space(Protocol):
    """Where NUTS moves z of shape ``(q,)``, given what it holds and other moves change."""

    @property
    def accept(self) -> float:
        """The mean acceptance that NUTS's step size is adapted to."""

    def potential(self, held: Array) -> Density:
        """Less the log density of z."""

    def join(self, held: Array, z: Array) -> tuple[Array, Array]:
        """u, and how much larger the log density of z is than that of u."""

    def move(self, held: Array, nuts: HMCState, key: Array) -> tuple[Array, HMCState, Array]:
        """What is held after the moves between two transitions, NUTS's state, and the next key."""


class _Split(NamedTuple):
    """A target over a held block of coordinates u, moved by Metropolis, and one moved by NUTS."""

    target: Target
    data: Data
    chart: Chart
    whitening: Array  # (p - h, p - h), an inverse root of the free block's curvature
    n_held: int

    @property
    def accept(self) -> float:
        return _ACCEPT

    def join(self, held: Array, z: Array) -> tuple[Array, Array]:
        """u, and the log determinant of its derivative in the free block."""
        free = self.chart.mode[self.n_held :] + self.whitening @ z
        return self.chart.bend(self.target.layout, jnp.concatenate([held, free]))

    def log_density(self, held: Array, z: Array) -> Array:
        u, log_volume = self.join(held, z)
        return self.target.log_density(u, self.data) + log_volume

    def potential(self, held: Array) -> Density:
        return lambda z: -self.log_density(held, z)

    def move(self, held: Array, nuts: HMCState, key: Array) -> tuple[Array, HMCState, Array]:
        if not self.n_held:
            return held, nuts, key
        density = functools.partial(self.log_density, z=nuts.z)
        held, key = _hops(density, held, -nuts.potential_energy, key)
        return held, moved_to(self, held, nuts, nuts.z), key


def _split(target: Target, data: Data, chart: Chart) -> _Split:
    layout, whitening = target.layout, chart.whitening
    if not layout.gate.jumps(layout.n_experts):
        return _Split(target, data, chart, whitening, 0)
    held = layout.n_gate
    # given the held block, the curvature of the free one is its block of the whole
    curvature = jnp.linalg.inv(whitening @ whitening.T)[held:, held:]
    root = jnp.linalg.inv(jnp.linalg.cholesky(curvature)).T
    return _Split(target, data, chart, root, held)


def _kernel(space: Space, length: Length) -> tuple[Callable[..., HMCState], Callable[..., Any]]:
    """NumPyro's NUTS: what makes a state of a start, what is held and a key; and the next one."""
    initialise, transition = hmc(potential_fn_gen=space.potential)

    def begin(start: ParamInfo, held: Array, key: Array) -> HMCState:
        return initialise(
            start,
            length.n_warmup,
            dense_mass=True,
            target_accept_prob=space.accept,
            max_tree_depth=length.max_tree_depth,
            model_args=(held,),
            rng_key=key,
        )

    return begin, transition


def begin(space: Space, length: Length, held: Array, z: Array, keys: Sequence[Array]) -> State:
    """The state in which a chain begins: at z, or at zero if z lies where the density underflows.

    Of the two keys, one is NUTS's and one the other moves'.
    """
    initialise, _ = _kernel(space, length)
    nuts = initialise(_start(space.potential(held), z), held, keys[0])
    return State(nuts, held, keys[1])


def iterate(space: Space, length: Length, state: State) -> tuple[Chain, Array, Array]:
    """A chain's draws, what it held at each, and its step size after warm-up."""
    initialise, transition = _kernel(space, length)
    # the transition has its settings from the initialisation: it is traced, not run again
    first = state.nuts
    start = ParamInfo(first.z, first.potential_energy, first.z_grad)
    jax.eval_shape(initialise, start, state.held, state.key)

    def step(state: State, _: None) -> tuple[State, tuple[Chain, Array]]:
        nuts, held, key = state
        nuts = transition(nuts, (held,), {})
        held, nuts, key = space.move(held, nuts, key)
        u, excess = space.join(held, nuts.z)
        lp = -nuts.potential_energy - excess
        draw = Chain(u, lp, nuts.energy, nuts.accept_prob, nuts.num_steps, nuts.diverging)
        return State(nuts, held, key), (draw, held)

    # one loop for warm-up and draws: the kernel is compiled once
    last, run = jax.lax.scan(step, state, None, length=length.n_warmup + length.n_draws)
    draws, held = jax.tree.map(lambda leaf: leaf[length.n_warmup :], run)
    return draws, held, last.nuts.adapt_state.step_size


def moved_to(space: Space, held: Array, nuts: HMCState, z: Array) -> HMCState:
    """NUTS's state at another point, or with something else held."""
    value, gradient = jax.value_and_grad(space.potential(held))(z)
    return nuts._replace(z=z, potential_energy=value, z_grad=gradient)


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
    split = _split(target, data, chart)
    start_key, *keys = jax.random.split(jax.random.fold_in(key, chain), 3)
    z = scatter(start_key, chart.mode[split.n_held :])
    return begin(split, length, chart.mode[: split.n_held], z, keys)


def scatter(key: Array, mode: Array) -> Array:
    """Where a chain starts around a mode ``(q,)``, in whitened coordinates."""
    return _SPREAD * jax.random.normal(key, mode.shape)


@jit_wide(static_argnums=(0, 1))
def run_chain(
    target: Target,
    length: Length,
    data: Data,
    chart: Chart,
    state: State,
) -> tuple[Chain, Array]:
    """One chain from a state of `begin_chain`, and its step size after warm-up.

    Parameters
    ----------
    target, data
        What is sampled.
    length
        Of the chain.
    chart
        Coordinates around a mode.
    """
    draws, _, step_size = iterate(_split(target, data, chart), length, state)
    return draws, step_size


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_chains(
    target: Target,
    length: Length,
    data: Data,
    charts: Chart,
    key: Array,
) -> tuple[Chain, Array]:
    """Chains side by side in one program, as an accelerator wants it; see `run_chain`.

    Charts have a leading axis of c chains, as all results do; the chains share the key.
    """

    def one(chart: Chart, chain: Array) -> tuple[Chain, Array]:
        state = begin_chain.function(target, length, data, chart, key, chain)
        return run_chain.function(target, length, data, chart, state)

    return jax.vmap(one)(charts, jnp.arange(len(charts.mode)))


def _start(potential: Density, z: Array) -> ParamInfo:
    """A chain's start: z, or the mode (zero) if z lies where the density underflows."""
    points = jnp.stack([z, jnp.zeros_like(z)])
    values, gradients = jax.lax.map(jax.value_and_grad(potential), points)
    chosen = jnp.where(jnp.isfinite(values[0] + jnp.sum(gradients[0])), 0, 1)
    return ParamInfo(points[chosen], values[chosen], gradients[chosen])


def _hops(log_density: Density, gate: Array, value: Array, key: Array) -> tuple[Array, Array]:
    """`_N_HOPS` Metropolis steps from a gate of shape ``(g,)`` with log density ``value``."""

    def hop(_: int, current: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        gate, value, key = current
        key, proposal_key, accept_key = jax.random.split(key, 3)
        proposal, log_volume = _propose(gate, proposal_key)
        new = log_density(proposal)
        accepted = jnp.log(jax.random.uniform(accept_key)) < new - value + log_volume
        return jnp.where(accepted, proposal, gate), jnp.where(accepted, new, value), key

    gate, _, key = jax.lax.fori_loop(0, _N_HOPS, hop, (gate, value, key))
    return gate, key


def _propose(gate: Array, key: Array) -> tuple[Array, Array]:
    """A normal step of random size, or a random factor; and the log volume ratio of the move.

    A factor common to all logits keeps every selection of experts and changes their weights alone:
    without it, the logits' size would move no faster than the places of the jumps.
    """
    size_key, step_key, kind_key = jax.random.split(key, 3)
    low, high = np.log(_SIZES)
    size = jnp.exp(jax.random.uniform(size_key, minval=low, maxval=high))
    step = size * jax.random.normal(step_key, gate.shape)
    scale = jax.random.bernoulli(kind_key)
    return (
        jnp.where(scale, gate * jnp.exp(step[0]), gate + step),
        jnp.where(scale, gate.shape[0] * step[0], 0.0),
    )
