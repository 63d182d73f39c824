"""NumPyro's NUTS with other moves between its transitions, over a space of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.infer.hmc import HMCState, hmc
from numpyro.infer.util import ParamInfo

from bayesmoe.core.observations import Data
from bayesmoe.inference.target import Target

_SPREAD = 0.5  # of the chains' starts around the mode, in its standard deviations

Density = Callable[[Array], Array]
Held = Any  # arrays, or a tree of them


class Chain(NamedTuple):
    """One chain's draws in the coordinates sampled, leading axis ``draw``; see `Draws`."""

    u: Array
    lp: Array
    energy: Array
    acceptance_rate: Array
    n_steps: Array
    most_steps: Array
    n_diverging: Array

    def halved(self) -> Chain:
        """Every second draw of an even number, with what two of them took; any leading axes."""
        u, lp, energy, acceptance, steps, most, n_diverging = self

        def pairs(values: Array) -> Array:
            return values.reshape(*values.shape[:-1], -1, 2)

        return Chain(
            u[..., 1::2, :],
            lp[..., 1::2],
            energy[..., 1::2],
            pairs(acceptance).mean(-1),
            pairs(steps).sum(-1),
            pairs(most).max(-1),
            pairs(n_diverging).sum(-1),
        )


class Length(NamedTuple):
    """How long a chain is: iterations for adaptation and to keep, and the longest trajectory.

    That has less than two to the power of ``max_tree_depth`` leapfrog steps. In whitened
    coordinates tens are needed: hundreds mean that whitening failed.
    """

    n_warmup: int
    n_draws: int
    max_tree_depth: int = 8


class Pace(NamedTuple):
    """How many transitions a chain makes: ``skipped`` ones, then ``thinning`` for each draw."""

    skipped: Array | int
    thinning: Array | int


class State(NamedTuple):
    """A chain between two transitions: NUTS's state, what it holds, and the key to move that."""

    nuts: HMCState
    held: Held
    key: Array

    @property
    def step_size(self) -> Array:
        """Of the leapfrog steps to come."""
        return self.nuts.adapt_state.step_size


class _Effort(NamedTuple):
    """What NUTS reports of the transitions that lead to a draw; acceptance is summed."""

    acceptance: Array
    n_steps: Array
    most_steps: Array
    n_diverging: Array

    def joined(self, nuts: HMCState, counted: Array) -> _Effort:
        """With that of a further transition, if it is counted."""
        accept, steps, diverging = (
            jnp.where(counted, new, 0) for new in (nuts.accept_prob, nuts.num_steps, nuts.diverging)
        )
        return _Effort(
            self.acceptance + accept,
            self.n_steps + steps,
            jnp.maximum(self.most_steps, steps),
            self.n_diverging + diverging,
        )


class Space(Protocol):
    """Where NUTS moves z of shape ``(q,)``, given what it holds and other moves change."""

    @property
    def target(self) -> Target:
        """What is sampled, as a density of u."""

    @property
    def data(self) -> Data:
        """Its observations."""

    @property
    def accept(self) -> float:
        """The mean acceptance that NUTS's step size is adapted to."""

    def join(self, held: Held, z: Array) -> tuple[Array, Array]:
        """u, and how much larger the log density of z is than that of u."""

    def move(self, held: Held, nuts: HMCState, key: Array) -> tuple[Held, HMCState, Array]:
        """What is held after the moves between two transitions, NUTS's state, and the next key."""


def _potential(space: Space, held: Held) -> Density:
    """Less the log density of z."""

    def of(z: Array) -> Array:
        u, excess = space.join(held, z)
        return -space.target.log_density(u, space.data) - excess

    return of


def _kernel(space: Space, length: Length) -> tuple[Callable[..., HMCState], Callable[..., Any]]:
    """NumPyro's NUTS: what makes a state of a start, what is held and a key; and the next one."""
    initialise, transition = hmc(potential_fn_gen=partial(_potential, space))

    def begin(start: ParamInfo, held: Held, key: Array) -> HMCState:
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


def begin(space: Space, length: Length, held: Held, z: Array, keys: Sequence[Array]) -> State:
    """The state in which a chain begins: at z, or at zero if z lies where the density underflows.

    Of the two keys, one is NUTS's and one the other moves'.
    """
    initialise, _ = _kernel(space, length)
    nuts = initialise(_start(_potential(space, held), z), held, keys[0])
    return State(nuts, held, keys[1])


def iterate(space: Space, length: Length, state: State, pace: Pace) -> tuple[Chain, Held, State]:
    """A chain's draws, what it held at each, and the state in which it ends."""
    initialise, transition = _kernel(space, length)
    # the transition has its settings from the initialisation: it is traced, not run again
    first = state.nuts
    start = ParamInfo(first.z, first.potential_energy, first.z_grad)
    jax.eval_shape(initialise, start, state.held, state.key)
    none = _Effort(
        *jax.tree.map(
            jnp.zeros_like, (first.accept_prob, first.num_steps, first.num_steps, first.num_steps)
        )
    )

    def move(state: State) -> State:
        nuts, held, key = state
        held, nuts, key = space.move(held, transition(nuts, (held,), {}), key)
        return State(nuts, held, key)

    def step(state: State, n_transitions: Array) -> tuple[State, tuple[Chain, Held]]:
        def go(i: Array, carry: tuple[State, _Effort]) -> tuple[State, _Effort]:
            state = move(carry[0])
            return state, carry[1].joined(state.nuts, i >= n_transitions - pace.thinning)

        state, effort = jax.lax.fori_loop(0, n_transitions, go, (state, none))
        nuts, held, _ = state
        u, excess = space.join(held, nuts.z)
        acceptance = effort.acceptance / pace.thinning
        draw = Chain(u, -nuts.potential_energy - excess, nuts.energy, acceptance, *effort[1:])
        return state, (draw, held)

    # one loop for what is skipped and what is kept: the kernel is compiled once
    transitions = jnp.full(length.n_draws, pace.thinning).at[0].add(pace.skipped)
    last, (draws, held) = jax.lax.scan(step, state, transitions)
    return draws, held, last


def moved_to(space: Space, held: Held, nuts: HMCState, z: Array) -> HMCState:
    """NUTS's state at another point, or with something else held."""
    value, gradient = jax.value_and_grad(_potential(space, held))(z)
    return nuts._replace(z=z, potential_energy=value, z_grad=gradient)


def scatter(key: Array, mode: Array) -> Array:
    """Where a chain starts around a mode ``(q,)``, in whitened coordinates."""
    return _SPREAD * jax.random.normal(key, mode.shape)


def _start(potential: Density, z: Array) -> ParamInfo:
    """A chain's start: z, or the mode (zero) if z lies where the density underflows."""
    points = jnp.stack([z, jnp.zeros_like(z)])
    values, gradients = jax.lax.map(jax.value_and_grad(potential), points)
    chosen = jnp.where(jnp.isfinite(values[0] + jnp.sum(gradients[0])), 0, 1)
    return ParamInfo(points[chosen], values[chosen], gradients[chosen])
