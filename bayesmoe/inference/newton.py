"""A trust-region Newton method with the exact Hessian, for one start or a batch of them.

Each step minimises the quadratic model in the ball, after the eigenvalues λ of the Hessian have
been replaced by |λ|: away from a maximum the method then leaves saddle points instead of being
drawn to them (Nocedal & Wright, Numerical Optimization, 2006, sections 3.4 and 4.1). Lower bounds
are honoured by freezing the coordinates that press against them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bayesmoe.core.likelihood import Evaluation

#: what convergence means: projected gradient of the mean objective, in max norm
GRADIENT_TOLERANCE = 1e-8
#: and the least eigenvalue of its negative Hessian, relative to the largest
CURVATURE_TOLERANCE = 1e-8

MAX_ITERATIONS = 300

_POLISHED = 1e-13  # iterate on past the tolerance while it is nearly free: convergence is quadratic
_LARGEST_RADIUS = 1e3
_SMALLEST_RADIUS = 1e-14


class Optimum(NamedTuple):
    """Where a run ended, and the evidence. Leading axes are starts.

    Attributes
    ----------
    coordinates
        Shape ``(p,)``.
    value
        The objective (a mean per observation), shape ``()``.
    gradient_norm
        Max norm of the projected gradient of the mean objective.
    least_curvature
        Least eigenvalue of the negative Hessian over the coordinates not at a bound, divided by
        the largest magnitude: >= 0 at a maximum, 0 along a flat direction.
    at_bound
        Which coordinates rest on their lower bound, pushed outwards, shape ``(p,)``.
    n_iterations
        Evaluations used.
    """

    coordinates: Array
    value: Array
    gradient_norm: Array
    least_curvature: Array
    at_bound: Array
    n_iterations: Array


class _State(NamedTuple):
    point: Array
    local: Evaluation  # of the negative objective
    radius: Array
    n_iterations: Array
    done: Array


def maximise(
    evaluate: Callable[[Array], Evaluation],
    start: Array,
    lower: Array,
) -> Optimum:
    """Maximise a function from one start.

    Parameters
    ----------
    evaluate
        Gives value, gradient and Hessian at coordinates of shape ``(p,)``; a value of -inf or
        NaN marks a point as outside the domain.
    start, lower
        The first iterate and the lower bounds (-inf for none), shape ``(p,)``.
    """

    def negative(point: Array) -> Evaluation:
        return Evaluation(*(-term for term in evaluate(point)))

    def keep_going(state: _State) -> Array:
        return ~state.done & (state.n_iterations < MAX_ITERATIONS)

    point = jnp.maximum(start, lower)
    first = _State(point, negative(point), jnp.ones(()), jnp.asarray(1), jnp.asarray(False))
    first = first._replace(done=~jnp.isfinite(first.local.value))
    last = jax.lax.while_loop(keep_going, lambda state: _iterate(negative, lower, state), first)
    return _summarise(last, lower)


def _pressed(state: _State, lower: Array) -> Array:
    """Coordinates at their bound which descent would push through it."""
    return (state.point <= lower) & (state.local.gradient > 0)


def _free_model(state: _State, lower: Array) -> tuple[Array, Array, Array]:
    """Gradient, eigenvalues and eigenvectors with the pressed coordinates frozen."""
    frozen = _pressed(state, lower)
    gradient = jnp.where(frozen, 0.0, state.local.gradient)
    keep = ~(frozen[:, None] | frozen[None, :])
    scale = jnp.max(jnp.abs(state.local.hessian))
    hessian = jnp.where(keep, state.local.hessian, 0.0) + jnp.diag(jnp.where(frozen, scale, 0.0))
    eigenvalues, eigenvectors = jnp.linalg.eigh(hessian)
    return gradient, eigenvalues, eigenvectors


def _iterate(negative: Callable[[Array], Evaluation], lower: Array, state: _State) -> _State:
    gradient, eigenvalues, eigenvectors = _free_model(state, lower)
    step = _step(gradient, eigenvalues, eigenvectors, state.radius)
    trial = jnp.maximum(state.point + step, lower)
    step = trial - state.point
    predicted = -(state.local.gradient @ step + 0.5 * step @ state.local.hessian @ step)
    local = negative(trial)
    actual = state.local.value - local.value
    ratio = jnp.where(predicted > 0, actual / predicted, -jnp.inf)
    # differences of values are noise near the optimum: there the gradient decides
    noise = 1e-13 * (1.0 + jnp.abs(state.local.value))
    moved = state._replace(point=trial, local=local)
    old_norm = jnp.max(jnp.abs(gradient))
    new_norm = jnp.max(jnp.where(_pressed(moved, lower), 0.0, jnp.abs(local.gradient)))
    at_noise = (jnp.abs(predicted) < noise) & (actual > -noise) & (new_norm < old_norm)
    accepted = (jnp.isfinite(local.value) & (ratio > 1e-4)) | at_noise
    length = jnp.linalg.norm(step)
    good = at_noise | (ratio > 0.75)
    radius = jnp.where(good, jnp.maximum(state.radius, 2 * length), state.radius)
    radius = jnp.where(accepted & (ratio > 0.25), radius, jnp.where(good, radius, 0.25 * length))
    radius = jnp.minimum(radius, _LARGEST_RADIUS)

    least = eigenvalues[0] >= -CURVATURE_TOLERANCE * jnp.max(jnp.abs(eigenvalues))
    polished = (old_norm <= _POLISHED) & least
    # at noise level a rejected step cannot be mended by a shorter one
    stalled = ~accepted & ((jnp.abs(predicted) < noise) | (radius < _SMALLEST_RADIUS))
    kept = jax.tree.map(lambda new, old: jnp.where(accepted & ~polished, new, old), moved, state)
    return kept._replace(
        radius=radius, n_iterations=state.n_iterations + 1, done=polished | stalled
    )


def _step(gradient: Array, eigenvalues: Array, eigenvectors: Array, radius: Array) -> Array:
    """The step of length at most ``radius`` for the model with eigenvalues |λ|."""
    magnitude = jnp.abs(eigenvalues)
    # a floor, so that rounding in the gradient does not become drift along a flat direction
    magnitude = jnp.maximum(magnitude, 1e-11 * jnp.max(magnitude))
    slope = eigenvectors.T @ gradient
    # on a saddle the gradient has no component to follow: take the most negative direction
    saddle = (jnp.max(jnp.abs(gradient)) <= GRADIENT_TOLERANCE) & (
        eigenvalues[0] < -CURVATURE_TOLERANCE * jnp.max(magnitude)
    )
    push = jnp.where(slope[0] > 0, 1.0, -1.0) * radius * magnitude[0]
    slope = slope.at[0].add(jnp.where(saddle, push, 0.0))

    def excess(shift: Array) -> Array:
        return jnp.linalg.norm(slope / (magnitude + shift)) - radius

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        outside = excess(middle) > 0
        return jnp.where(outside, middle, low), jnp.where(outside, high, middle)

    start = (jnp.zeros(()), jnp.linalg.norm(slope) / radius)
    _, shift = jax.lax.fori_loop(0, 40, halve, start)
    shift = jnp.where(excess(jnp.zeros(())) <= 0, 0.0, shift)
    return -eigenvectors @ (slope / (magnitude + shift))


def _summarise(state: _State, lower: Array) -> Optimum:
    gradient, eigenvalues, _ = _free_model(state, lower)
    return Optimum(
        coordinates=state.point,
        value=-state.local.value,
        gradient_norm=jnp.max(jnp.abs(gradient), initial=0.0),
        least_curvature=eigenvalues[0] / jnp.max(jnp.abs(eigenvalues)),
        at_bound=_pressed(state, lower),
        n_iterations=state.n_iterations,
    )
