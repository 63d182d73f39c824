"""The end of runs that did not end: along the profile likelihood of the temperature.

As τ falls an activation gate may tend to a softmax gate (slopes shrink with τ), to a step (slopes
stay), or to one that is a step on one side (slopes grow). Whether the likelihood has a maximum at a
small τ, or none and a limit at τ → 0, its crest there is bent in any coordinates that serve all
three: the Newton method takes ever smaller steps along it, and its last gradient says nothing.

But with τ held it converges. So τ is halved again and again, and all else fitted anew each time. If
this profile likelihood falls, a maximum was passed, and the zero of its derivative finds it. If it
rises down to a temperature that no longer matters, there is no maximum, so far as can be computed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.compilation import jit_quickly
from bayesmoe.core.device import each
from bayesmoe.core.gate import Gate
from bayesmoe.core.hessian import Evaluation
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import GateParameters
from bayesmoe.core.observations import Data
from bayesmoe.inference import newton
from bayesmoe.inference.problem import Problem, mean_objective

#: temperatures as multiples of the gate's `spread`: a profile is followed down to the first; below
#: the second rounding loses an expert's log density when it is added to a logit
COLDEST, LEAST_TEMPERATURE = 1e-6, 1e-8

_SPAN = 1e3  # the profile is followed over such a factor at least
_WARMER = (1.0, 16.0)  # where it begins, times the last temperature: crests may fork in between
_ROUNDING = 1e-10  # of the mean log-likelihood
_BISECTIONS = 50
_LEAST_CURVATURE = 1e-6


class End(NamedTuple):
    """Where a path ended.

    Attributes
    ----------
    optimum
        The maximum that was passed, else the coldest point; leading axis one start.
    cold
        Whether the likelihood rose all the way to the coldest point.
    n_iterations
        Evaluations used.
    """

    optimum: newton.Optimum
    cold: bool
    n_iterations: int


def can_run_cold(gate: Gate) -> bool:
    """Whether a gate has a temperature that the data determine: none on a flat ray."""
    return gate.has_temperature and not gate.ray


def bounded(problem: Problem) -> Problem:
    """The problem with the least temperature among its lower bounds."""
    if not can_run_cold(problem.layout.gate):
        return problem
    least = np.log(LEAST_TEMPERATURE * problem.layout.gate.spread)
    return problem._replace(lower=problem.lower.at[problem.layout.n_gate - 1].set(least))


def follow(problem: Problem, last: Array) -> End | None:
    """Where the profile likelihood of τ leads from the last iterate ``(p,)`` of a run.

    None if to nothing as high. The gate must be one that `can_run_cold`.
    """
    first = _place(problem, last, 0)
    ends = [_descend(problem, first, warmer) for warmer in _WARMER]
    best = max(ends, key=lambda end: float(end.optimum.value[0]))
    used = sum(end.n_iterations for end in ends)
    higher = best.optimum.value[0] >= first.local.value - _ROUNDING
    return best._replace(n_iterations=used) if higher else None


class _Place(NamedTuple):
    """A point of the profile ``(p,)``, the mean log-likelihood there, and evaluations so far."""

    point: Array
    local: Evaluation
    n_iterations: int


def _descend(problem: Problem, first: _Place, warmer: float) -> End:
    """From a temperature ``warmer`` times the first downwards, to a maximum or to the coldest."""
    index, spread = problem.layout.n_gate - 1, problem.layout.gate.spread
    coldest = float(np.log(COLDEST * spread))
    level = max(float(first.point[index]) + np.log(warmer), coldest + np.log(_SPAN))
    path = [_refit(problem, first, level)]
    while level > coldest:
        level -= np.log(2.0)
        path.append(_refit(problem, path[-1], level))
        if not path[-1].local.value >= path[-2].local.value - _ROUNDING:
            high = level + np.log(2.0) * min(2, len(path) - 1)
            return _end(problem, _top(problem, path[-2:], level, high), False)
    return _end(problem, path[-1], True)


def _top(problem: Problem, passed: list[_Place], low: float, high: float) -> _Place:
    """The zero of the profile's derivative between two log temperatures, where it is a maximum."""
    place = passed[0]._replace(n_iterations=passed[1].n_iterations)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        place = _refit(problem, place, middle)
        rising = place.local.gradient[problem.layout.n_gate - 1] > 0
        low, high = (middle, high) if rising else (low, middle)
    return place


def _refit(problem: Problem, place: _Place, level: float) -> _Place:
    """The best point at log τ = ``level`` that is found from another point."""
    layout, data, lower = problem.layout, problem.data, problem.lower
    # in units of curvature: some coordinates are 1/τ times as steep as others
    curvature = jnp.abs(jnp.diag(place.local.hessian))
    unit = 1 / jnp.sqrt(jnp.maximum(curvature, _LEAST_CURVATURE))
    optima = _maximise(layout, data, _starts(layout, place.point, jnp.asarray(level)), lower, unit)
    best = int(np.argmax(np.nan_to_num(np.asarray(optima.value), nan=-np.inf)))
    used = place.n_iterations + int(np.sum(optima.n_iterations))
    return _place(problem, optima.coordinates[best], used)


@jit_quickly(static_argnums=0)
def _starts(layout: Layout, point: Array, level: Array) -> Array:
    """Two points at log τ = ``level``, ``(2, p)``.

    One keeps the logits where σ is straight, the other the borders between experts.
    """
    gate = layout.gate_parameters(point[: layout.n_gate])
    ratio = jnp.exp(level) / gate.temperature

    def moved(scale: Array) -> Array:
        new = GateParameters(scale * gate.slope, scale * gate.intercept, ratio * gate.temperature)
        return point.at[: layout.n_gate].set(layout.gate.to_coordinates(new))

    return jnp.stack([moved(ratio), moved(jnp.ones(()))])


@jit_quickly(static_argnums=0)
def _maximise(
    layout: Layout, data: Data, starts: Array, lower: Array, unit: Array
) -> newton.Optimum:
    """The maxima over all coordinates but log τ, from starts ``(2, p)``."""
    part = unit * (jnp.arange(layout.size) != layout.n_gate - 1)

    def one(start: Array) -> newton.Optimum:
        def evaluate(shift: Array) -> Evaluation:
            value, gradient, hessian = mean_objective(layout, None, data, start + unit * shift)
            return Evaluation(value, gradient * part, hessian * part[:, None] * part)

        box = newton.Box((lower - start) / unit)
        optimum = newton.maximise(evaluate, jnp.zeros_like(start), box)
        return optimum._replace(coordinates=start + unit * optimum.coordinates)

    return each(one, starts)


def _place(problem: Problem, point: Array, n_iterations: int) -> _Place:
    return _Place(point, _evaluate(problem.layout, problem.data, point), n_iterations)


def _end(problem: Problem, place: _Place, cold: bool) -> End:
    """No step is taken: the evidence at the place."""
    local = Evaluation(*(-term for term in place.local))
    optimum = newton.summarise(newton.begin(place.point, local), newton.Box(problem.lower))
    return End(jax.tree.map(lambda leaf: np.asarray(leaf)[None], optimum), cold, place.n_iterations)


@jit_quickly(static_argnums=0)
def _evaluate(layout: Layout, data: Data, point: Array) -> Evaluation:
    return mean_objective(layout, None, data, point)
