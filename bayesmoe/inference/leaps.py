"""One chain that leaps between regions of the posterior which NUTS does not cross.

A mixture of t laws, one in a chart for each region, does two things. It proposes: after each
transition the chain may move to one of some draws from the mixture, in proportion to their
importance weights, its own place being one of them (iterated sampling importance resampling;
Andrieu, Lee & Vihola, Bernoulli 2018, 24(2), 842-872). And it says whose chart to move in: the law
is a coordinate of its own, which given u has the probabilities of having made it, so that NUTS in
a law's chart moves in the posterior times that law's share in the mixture: close to the law itself,
as far as the mixture is close to the posterior. Neither changes the posterior of u, but for labels:
of the copies of u (`Mixture`) the chain is in one near a law.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.infer.hmc import HMCState

from bayesmoe.core.compilation import jit_unoptimised, jit_wide
from bayesmoe.core.observations import Data
from bayesmoe.inference.chart import blank_charts
from bayesmoe.inference.kernel import (
    Chain,
    Length,
    Pace,
    State,
    begin,
    iterate,
    moved_to,
    scatter,
)
from bayesmoe.inference.mixture import DEGREES, Mixture, copies
from bayesmoe.inference.outcome import row
from bayesmoe.inference.target import Target

_ACCEPT = 0.95  # laws meet along narrow seams
_PROPOSALS = 32  # a transition of NUTS evaluates tens of gradients
_AT_ONCE = 8  # are weighed side by side: more take no less time


def blank_mixture(m: int, p: int) -> Mixture:
    """One of m laws in p coordinates, of which the shapes alone matter."""
    charts, each_law = blank_charts(m, p), np.zeros(m)
    return Mixture(charts, charts.whitening, each_law, each_law)


class _Charted(NamedTuple):
    """The posterior of u and the law, which is held; z has u's place in the law's chart."""

    target: Target
    data: Data
    mixture: Mixture

    @property
    def accept(self) -> float:
        return _ACCEPT

    def log_shares(self, u: Array) -> Array:
        """log p(law, copy | u), shape ``(m, c)``; u itself is the first copy."""
        terms = self.mixture.terms(self.target.layout, u[None])[:, 0]
        return terms - jax.nn.logsumexp(terms)

    def join(self, law: Array, z: Array) -> tuple[Array, Array]:
        chart = row(self.mixture.charts, law)
        v = chart.mode + chart.whitening @ z
        u, log_volume = chart.bend(self.target.layout, v)
        return u, log_volume + self.log_shares(u)[law, 0]

    def part(self, law: Array, u: Array) -> Array:
        """The inverse of `join`: z at u."""
        chart = row(self.mixture.charts, law)
        v, _ = chart.straighten(self.target.layout, u)
        return self.mixture.inverse[law] @ (v - chart.mode)

    def move(self, law: Array, nuts: HMCState, key: Array) -> tuple[Array, HMCState, Array]:
        key, leap_key, law_key = jax.random.split(key, 3)
        here, excess = self.join(law, nuts.z)
        u, leapt = self._leap(here, -nuts.potential_energy - excess, leap_key)
        every = copies(self.target.layout)
        new, copy = jnp.divmod(
            jax.random.categorical(law_key, self.log_shares(u).ravel()), len(every)
        )

        def enter(nuts: HMCState) -> HMCState:
            return moved_to(self, new, nuts, self.part(new, u[jnp.asarray(every)[copy]]))

        elsewhere = leapt | (new != law) | (copy != 0)
        return new, jax.lax.cond(elsewhere, enter, lambda same: same, nuts), key

    def _leap(self, u: Array, lp: Array, key: Array) -> tuple[Array, Array]:
        """u or one of the proposals, by their importance weights, and whether it is one of them."""
        propose_key, choice_key = jax.random.split(key)
        proposals = self._propose(propose_key)
        theirs = jax.lax.map(
            lambda one: self.target.log_density(one, self.data), proposals, batch_size=_AT_ONCE
        )
        among = jnp.concatenate([u[None], proposals])
        log_density = self.mixture.log_density(self.target.layout, among)
        weights = jnp.concatenate([lp[None], theirs]) - log_density
        # what the density has no value for has no weight
        weights = jnp.where(jnp.isnan(weights), -jnp.inf, weights)
        chosen = jax.random.categorical(choice_key, weights)
        return among[chosen], chosen > 0

    def _propose(self, key: Array) -> Array:
        """Draws from the mixture, shape ``(s, p)``."""
        law_key, normal_key = jax.random.split(key)
        law = jax.random.categorical(law_key, jnp.log(self.mixture.weights), shape=(_PROPOSALS,))
        size = self.target.layout.size
        normal = jax.random.normal(normal_key, (_PROPOSALS, size + DEGREES))
        square = jnp.sum(normal[:, size:] ** 2, axis=1)
        return self.mixture.place(self.target.layout, law, normal[:, :size], square)


@jit_unoptimised(static_argnums=(0, 1))
def begin_leaping_chain(
    target: Target,
    length: Length,
    data: Data,
    mixture: Mixture,
    key: Array,
    chain: Array,
    law: Array,
) -> State:
    """The state in which a chain begins, in the chart of a law; as `run_leaping_chain`, and:

    Parameters
    ----------
    key, chain
        A JAX key that all chains share, and the chain's number ``()``.
    law
        Where it starts, ``()``.
    """
    start_key, *keys = jax.random.split(jax.random.fold_in(key, chain), 3)
    z = scatter(start_key, mixture.charts.mode[0])
    return begin(_Charted(target, data, mixture), length, law, z, keys)


@jit_wide(static_argnums=(0, 1))
def run_leaping_chain(
    target: Target,
    length: Length,
    data: Data,
    mixture: Mixture,
    state: State,
    pace: Pace,
) -> tuple[Chain, Array, State]:
    """One chain from a state, the law in whose chart each draw is, and the state that it ends in.

    Parameters
    ----------
    target, data
        What is sampled.
    length
        Of the chain.
    mixture
        What the chain leaps between.
    state
        From `begin_leaping_chain`, or one in which the chain ended before.
    pace
        Its transitions.
    """
    return iterate(_Charted(target, data, mixture), length, state, pace)


@functools.partial(jax.jit, static_argnums=(0, 1))
def begin_leaping_chains(
    target: Target, length: Length, data: Data, mixture: Mixture, key: Array, laws: Array
) -> State:
    """`begin_leaping_chain` side by side, from laws ``(c,)``, as an accelerator wants it."""

    def one(chain: Array, law: Array) -> State:
        return begin_leaping_chain.function(target, length, data, mixture, key, chain, law)

    return jax.vmap(one)(jnp.arange(len(laws)), laws)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_leaping_chains(
    target: Target, length: Length, data: Data, mixture: Mixture, states: State, pace: Pace
) -> tuple[Chain, Array, State]:
    """`run_leaping_chain` side by side, from states with a leading axis of c chains."""

    def one(state: State) -> tuple[Chain, Array, State]:
        return run_leaping_chain.function(target, length, data, mixture, state, pace)

    return jax.vmap(one)(states)
