"""Moves of a gate whose density jumps (top-K with K < k), between two transitions of NUTS.

No gradient tells of a jump: NUTS moves the experts given the gate, and Metropolis steps of many
sizes move the gate. Some move it alone, as far as the experts that it has allow. Others put experts
in place that suit the new gate, drawn from a law that the gate alone decides: between two ways to
share out the rows there may be no path along which each step is likely.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular
from numpyro.infer.hmc import HMCState

from bayesmoe.core.observations import Data, sum_over_chunks
from bayesmoe.inference.kernel import moved_to
from bayesmoe.inference.mixture import DEGREES
from bayesmoe.inference.modes import LEAST_CURVATURE
from bayesmoe.inference.target import Target

_ACCEPT = 0.95  # experts with few rows have narrow necks
_N_HOPS = 20  # steps of the gate alone, after each transition
_N_REFITS = 4  # steps with other experts: each takes a Hessian
_SIZES = (1e-3, 3.0)  # of the former: a threshold passes one observation, or many
_FAR_SIZES = (0.1, 3.0)  # and of the latter, up to the width of the prior
# where the experts' law is begun: by least squares, as if a little more were known of standardised
# data than there is, for experts with few rows
_RIDGE = 0.02
_PRIOR_ROWS, _PRIOR_VARIANCE = 0.2, 0.1

T = TypeVar("T")


class Experts(NamedTuple):
    """A t law of the experts given a gate, by the curvature of the density near their best.

    Attributes
    ----------
    centre
        Shape ``(q,)``.
    root
        The lower triangular root of the curvature, ``(q, q)``.
    """

    centre: Array
    root: Array

    @classmethod
    def given(cls, target: Target, data: Data, gate: Array) -> Experts:
        """That of the coordinates of u which follow the gate's ``(g,)``."""
        g, layout = len(gate), target.layout
        blank = jnp.concatenate([gate, jnp.zeros(layout.size - g)])
        theta = target.coordinates(blank).at[g:].set(_by_least_squares(target, data, blank))
        start = target.unconstrain(theta)
        local = target.evaluate(start, data)
        curvature, directions = jnp.linalg.eigh(-local.hessian[g:, g:])
        curvature = jnp.maximum(jnp.abs(curvature), LEAST_CURVATURE)
        step = directions @ ((directions.T @ local.gradient[g:]) / curvature)
        # the triangular root is unique, unlike eigenvectors, and alike for gates that are
        root = jnp.linalg.cholesky((directions * curvature) @ directions.T)
        return cls(start[g:] + step, root)

    @property
    def log_volume(self) -> Array:
        """The log determinant of `place`'s derivative."""
        return -jnp.sum(jnp.log(jnp.diagonal(self.root)))

    def place(self, z: Array) -> Array:
        """Experts at whitened coordinates z, both of shape ``(q,)``."""
        return self.centre + solve_triangular(self.root.T, z)

    def whiten(self, experts: Array) -> Array:
        """The inverse of `place`."""
        return self.root.T @ (experts - self.centre)

    def draw(self, key: Array) -> Array:
        """Experts ``(q,)``."""
        q = len(self.centre)
        normal = jax.random.normal(key, (q + DEGREES,))
        return self.place(normal[:q] * jnp.sqrt(DEGREES / jnp.sum(normal[q:] ** 2)))

    def log_density(self, experts: Array) -> Array:
        """At experts ``(q,)``, up to a constant that all these laws share."""
        z = self.whiten(experts)
        return -self.log_volume - (DEGREES + len(z)) / 2 * jnp.log1p(z @ z / DEGREES)


class Held(NamedTuple):
    """A gate's coordinates ``(g,)``, and its experts' law."""

    gate: Array
    law: Experts


class _Place(NamedTuple):
    """Where a chain is: a gate, experts ``(q,)`` and the log density of both."""

    held: Held
    experts: Array
    value: Array

    @property
    def log_weight(self) -> Array:
        return self.value - self.held.law.log_density(self.experts)


class GivenGate(NamedTuple):
    """The experts given a gate, which is held; z has them in the coordinates of its law."""

    target: Target
    data: Data

    @property
    def accept(self) -> float:
        return _ACCEPT

    def hold(self, u: Array) -> tuple[Held, Array]:
        """The gate of u ``(p,)``, and z."""
        g = self.target.layout.n_gate
        held = self._held(u[:g])
        return held, held.law.whiten(u[g:])

    def join(self, held: Held, z: Array) -> tuple[Array, Array]:
        u = jnp.concatenate([held.gate, held.law.place(z)])
        return u, held.law.log_volume

    def move(self, held: Held, nuts: HMCState, key: Array) -> tuple[Held, HMCState, Array]:
        key, hop_key, refit_key = jax.random.split(key, 3)
        experts, value = held.law.place(nuts.z), -nuts.potential_energy - held.law.log_volume
        gate, value = self._hop(held.gate, experts, value, hop_key)
        place = self._refit(_Place(self._held(gate), experts, value), refit_key)
        z = place.held.law.whiten(place.experts)
        return place.held, moved_to(self, place.held, nuts, z), key

    def _held(self, gate: Array) -> Held:
        return Held(gate, Experts.given(self.target, self.data, gate))

    def _log_density(self, gate: Array, experts: Array) -> Array:
        return self.target.log_density(jnp.concatenate([gate, experts]), self.data)

    def _hop(self, gate: Array, experts: Array, value: Array, key: Array) -> tuple[Array, Array]:
        """The gate after `_N_HOPS` steps with the same experts, and the log density there."""

        def hop(key: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
            proposal_key, accept_key = jax.random.split(key)
            gate, log_volume = _propose(here[0], proposal_key)
            there = gate, self._log_density(gate, experts)
            return _choose(there, here, there[1] - here[1] + log_volume, accept_key)

        return _repeat(hop, _N_HOPS, key, (gate, value))

    def _refit(self, place: _Place, key: Array) -> _Place:
        """Where a chain is after `_N_REFITS` steps to other gates and experts that suit them."""

        def refit(key: Array, here: _Place) -> _Place:
            gate_key, expert_key, accept_key = jax.random.split(key, 3)
            gate = _step(here.held.gate, _FAR_SIZES, gate_key)
            held = self._held(gate)
            experts = held.law.draw(expert_key)
            there = _Place(held, experts, self._log_density(gate, experts))
            return _choose(there, here, there.log_weight - here.log_weight, accept_key)

        return _repeat(refit, _N_REFITS, key, place)


def _choose(there: T, here: T, log_ratio: Array, key: Array) -> T:
    """Metropolis and Hastings's choice."""
    accepted = jnp.log(jax.random.uniform(key)) < log_ratio
    chosen: T = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), there, here)
    return chosen


def _repeat(step: Callable[[Array, T], T], number: int, key: Array, first: T) -> T:
    last, _ = jax.lax.scan(
        lambda here, key: (step(key, here), None), first, jax.random.split(key, number)
    )
    return last


def _by_least_squares(target: Target, data: Data, u: Array) -> Array:
    """Coordinates of experts ``(q,)`` fitted to the rows, weighted by the gate of u."""
    layout = target.layout
    gate = layout.gate_parameters(layout.split(target.coordinates(u))[0])

    def moments(index: Array) -> tuple[Array, ...]:
        weight = data.mask[index] * jnp.exp(layout.gate.log_probabilities(gate, data.gate_x[index]))
        y = data.y[index]
        design = jnp.concatenate([data.expert_x[index], jnp.ones_like(y)[None]])
        weighted = weight[:, None] * design
        return weighted @ design.T, weighted @ y, weight @ y**2, jnp.sum(weight, axis=1)

    gram, cross, square, held = sum_over_chunks(data, moments)
    lines = jnp.linalg.solve(gram + _RIDGE * np.eye(gram.shape[-1]), cross[..., None])[..., 0]
    left = jnp.maximum(square - jnp.sum(lines * cross, axis=1), 0.0)
    variance = (left + _PRIOR_ROWS * _PRIOR_VARIANCE) / (held + _PRIOR_ROWS)
    return jnp.concatenate([lines[:, :-1].ravel(), lines[:, -1], jnp.log(variance)])


def _propose(gate: Array, key: Array) -> tuple[Array, Array]:
    """A normal step of random size, or a random factor; and the log volume ratio of the move.

    A factor common to all logits keeps every selection of experts and changes their weights alone:
    without it, the logits' size would move no faster than the places of the jumps.
    """
    step_key, kind_key = jax.random.split(key)
    moved = _step(gate, _SIZES, step_key)
    log_factor = moved[0] - gate[0]
    scale = jax.random.bernoulli(kind_key)
    return (
        jnp.where(scale, gate * jnp.exp(log_factor), moved),
        jnp.where(scale, gate.shape[0] * log_factor, 0.0),
    )


def _step(gate: Array, sizes: tuple[float, float], key: Array) -> Array:
    """The gate after a normal step, the log of whose size is uniform."""
    size_key, direction_key = jax.random.split(key)
    low, high = np.log(sizes)
    size = jnp.exp(jax.random.uniform(size_key, minval=low, maxval=high))
    return gate + size * jax.random.normal(direction_key, gate.shape)
