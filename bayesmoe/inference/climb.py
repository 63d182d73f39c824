"""Where starts end: each climbs by Newton's method.

On a CPU the starts are shared out among threads in pairs, so that programs, and all bits, are the
same for every number of starts and of threads. On an accelerator many climb at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.compilation import jit_by_size
from bayesmoe.core.device import TOGETHER, each, on_accelerator
from bayesmoe.core.hessian import Evaluation
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.observations import Data
from bayesmoe.core.priors import Prior
from bayesmoe.inference import newton
from bayesmoe.inference.cold_limit import can_run_cold
from bayesmoe.inference.domain import Domain, domain, scaled, search_powers
from bayesmoe.inference.outcome import GateState, Status, describe, gate_states, judge, row
from bayesmoe.inference.problem import Problem, mean_objective

T = TypeVar("T")

#: heights of one maximum agree to this, relative
ALIKE = 1e-9

_PAIR = 2  # to call a program takes as long as to evaluate few observations some times


def climb(problem: Problem, prior: Prior | None, n_threads: int) -> newton.Optimum:
    """Where all starts of a problem end."""
    if problem.sample is not None:
        return _climb_by_sample(problem, prior, problem.sample, n_threads)
    every = np.ones(len(problem.starts), bool)
    return _climb(problem, prior, problem.data, every, n_threads)


def climb_together(problems: Sequence[Problem], prior: Prior | None) -> Iterator[newton.Optimum]:
    """Where all starts of each problem end; problems of one layout, storage and number of starts.

    A program serves batches of `TOGETHER`: where there are fewer, the last one fills the rest.
    """
    layout = problems[0].layout
    for first in range(0, len(problems), TOGETHER):
        batch = problems[first : first + TOGETHER]
        padded = [*batch, *[batch[-1]] * (TOGETHER - len(batch))]
        domains = [domain(layout, prior, p.lower) for p in padded]
        each_one = zip(padded, domains, strict=True)
        data, starts, box = jax.tree.map(
            lambda *leaves: jnp.stack(leaves),
            *((p.data, d.begin(p.starts), d.box) for p, d in each_one),
        )
        wanted = jnp.arange(TOGETHER) < len(batch)
        optima = jax.device_get(_maximise_together(layout, prior, data, starts, wanted, box))
        yield from (_ended(domains[i], row(optima, i)) for i in range(len(batch)))


def _climb_by_sample(
    problem: Problem, prior: Prior | None, sample: Data, n_threads: int
) -> newton.Optimum:
    """Where starts end that climb on a sample first; those given, on all observations alone.

    A start that finds no maximum on the sample begins anew on all, from where it began.
    """
    agnostic = np.arange(len(problem.starts)) >= len(problem.starts) - problem.n_agnostic
    approach = _climb(problem, prior, sample, agnostic, n_threads)
    statuses = described(problem, prior, sample, approach)[2]
    settled = agnostic & [status.converged for status in statuses]
    starts = np.where(settled[:, None], approach.coordinates, problem.starts)
    first = _first_alike(np.where(settled, approach.value, np.nan), problem.layout.gate.ray)
    alone = first == np.arange(len(first))
    again = problem._replace(starts=jnp.asarray(starts))
    optima = _climb(again, prior, problem.data, alone, n_threads)
    optima = jax.tree.map(lambda leaf: leaf[first], optima)
    used = np.where(agnostic, approach.n_iterations, 0) + optima.n_iterations
    return optima._replace(n_iterations=used)


def _climb(
    problem: Problem, prior: Prior | None, data: Data, wanted: np.ndarray, n_threads: int
) -> newton.Optimum:
    """Where the wanted starts end on these data; the others stay."""

    where = domain(problem.layout, prior, problem.lower)
    box = where.box

    def program(starts: np.ndarray, wanted: np.ndarray) -> newton.Optimum:
        return maximise(problem.layout, prior, data, starts, wanted, box, np.zeros(()))

    return _ended(where, in_pairs(program, where.begin(problem.starts), wanted, n_threads))


def _ended(where: Domain, optima: newton.Optimum) -> newton.Optimum:
    """Optima in identifiable coordinates."""
    return optima._replace(coordinates=where.end(optima.coordinates))


def in_pairs(
    program: Callable[[np.ndarray, np.ndarray], newton.Optimum],
    starts: np.ndarray,
    wanted: np.ndarray,
    n_threads: int,
) -> newton.Optimum:
    """Where starts ``(S, p)`` end by a program of some starts, and which of them are wanted."""

    def run(some: np.ndarray, count: np.ndarray) -> newton.Optimum:
        return program(starts[some], wanted[some] & count)

    return _by_pairs(run, len(starts), n_threads)


def _by_pairs(program: Callable[[np.ndarray, np.ndarray], T], n: int, n_threads: int) -> T:
    """What a program makes of n starts, given the indices of some and whether they count.

    The last may lack a partner: another start stands in, and does not count.
    """
    size = n if on_accelerator() else _PAIR

    def run(first: int) -> T:
        some = np.arange(first, first + size)
        return jax.device_get(program(some % n, some < n))

    with ThreadPoolExecutor(n_threads) as pool:
        parts = list(pool.map(run, range(0, n, size)))
    joined: T = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)
    return joined


def _first_alike(values: np.ndarray, on_ray: bool) -> np.ndarray:
    """For each start the first one that settled at the same height, else itself: ``(S,)``.

    Heights at a maximum agree to rounding, and those of two maxima do not. On a ray the same
    height says nothing of the place.
    """
    if on_ray:
        return np.arange(len(values))
    alike = np.abs(values[:, None] - values) <= ALIKE * (1 + np.abs(values))
    return np.argmax(alike | np.eye(len(values), dtype=bool), axis=1)


def described(
    problem: Problem, prior: Prior | None, data: Data, optima: newton.Optimum, cold: bool = False
) -> tuple[MixingMeasure, Array, tuple[Status, ...]]:
    """Measures on the scale of the data, log priors and statuses; ``cold`` as for `judge`."""
    points, layout = np.asarray(optima.coordinates), problem.layout

    def restored(some: np.ndarray, _: np.ndarray) -> tuple[MixingMeasure, Array]:
        return describe(layout, prior, problem.scaling, points[some])

    measures, log_prior = _by_pairs(restored, len(points), 1)
    proper = prior is not None and prior.proper
    no = np.zeros(len(points), bool)
    at_least, where = no, domain(layout, prior, problem.lower)
    if can_run_cold(layout.gate):  # a temperature that presses on the least of all
        at_floor = np.asarray(optima.at_bound) & where.at_floor(points)
        at_least = at_floor[:, layout.n_gate - 1]
    on_edge = np.any(np.logical_or(*where.on_bounds(points)), axis=1)
    gates = GateState(no, no)
    if cold or not proper or np.any(at_least | optima.runaway):  # else no status asks for them
        gates = _gate_states(layout, data, points)
    statuses = tuple(
        judge(row(optima, i), row(gates, i), proper, cold or bool(at_least[i]), bool(on_edge[i]))
        for i in range(len(points))
    )
    return measures, log_prior, statuses


def _gate_states(layout: Layout, data: Data, points: np.ndarray) -> GateState:
    def run(some: np.ndarray, _: np.ndarray) -> GateState:
        return gate_states(layout, data, points[some])

    return _by_pairs(run, len(points), 1)


@jit_by_size(static_argnums=(0, 1), data=2)
def maximise(
    layout: Layout,
    prior: Prior | None,
    data: Data,
    starts: Array,
    wanted: Array,
    box: newton.Box,
    jacobian: Array,
) -> newton.Optimum:
    """Maxima of `mean_objective`, whose ``jacobian`` is ``()``.

    From starts ``(s, p)``, those that are wanted ``(s,)``, in a box; starts, box and maxima in the
    coordinates of the search, see `Domain`.
    """
    evaluate = _objective(layout, prior, data, jacobian)
    return each(lambda one: newton.maximise(evaluate, one[0], box, one[1]), (starts, wanted))


@jit_by_size(static_argnums=(0, 1), data=2)
def _maximise_together(
    layout: Layout,
    prior: Prior | None,
    data: Data,
    starts: Array,
    wanted: Array,
    box: newton.Box,
) -> newton.Optimum:
    """`maximise` of many data sets, on the leading axis of all arguments but the static ones."""

    def one(data: Data, starts: Array, wanted: Array, box: newton.Box) -> newton.Optimum:
        evaluate = _objective(layout, prior, data)
        return each(lambda start: newton.maximise(evaluate, start, box, wanted), starts)

    return jax.vmap(one)(data, starts, wanted, box)


def _objective(
    layout: Layout, prior: Prior | None, data: Data, jacobian: Array | None = None
) -> Callable[[Array], Evaluation]:
    """`mean_objective` in the coordinates of the search."""
    evaluate = partial(mean_objective, layout, prior, data, jacobian=jacobian)
    powers = search_powers(layout, prior)
    if not powers.any():
        return evaluate
    identifiable = partial(scaled, layout, powers=-powers)

    def in_search(point: Array) -> Evaluation:
        inner, turned = evaluate(identifiable(point)), jax.jacfwd(identifiable)(point)
        bend = jax.hessian(lambda point: inner.gradient @ identifiable(point))(point)
        hessian = turned.T @ inner.hessian @ turned + bend
        return Evaluation(inner.value, turned.T @ inner.gradient, hessian)

    return in_search
