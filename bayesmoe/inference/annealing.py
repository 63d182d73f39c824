"""Temperature annealing: MAP at a falling sequence of fixed temperatures, each from the last.

It is how mixtures of experts are trained from dense to sparse: every expert takes part everywhere
while τ is high, and the gate sharpens as τ falls. Here each step is solved to convergence. Along a
ray the likelihood alone does not see τ, since β follows it; what makes the gate dense at a high
temperature is then the prior of β, as weight decay is in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.device import each
from bayesmoe.core.gate import Gate
from bayesmoe.core.hessian import Evaluation
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.observations import Data, sum_over_chunks
from bayesmoe.core.priors import Prior, weak
from bayesmoe.core.support import supports
from bayesmoe.inference import newton
from bayesmoe.inference.domain import check_support, domain
from bayesmoe.inference.outcome import best_start, describe, gate_states, judge, row
from bayesmoe.inference.point import Fit, fit_map
from bayesmoe.inference.problem import N_STARTS, VARIANCE_FLOOR, mean_objective, prepare

_HIGHEST, _LOWEST, _STEPS = 30.0, 0.1, 25  # of the schedule, times the prior's median of τ
_INSIDE = 1e-12  # relative, so that no rounding leads out of a prior's support


@dataclasses.dataclass(frozen=True, eq=False)
class Annealing:
    """Paths of S starts over T falling temperatures.

    Attributes
    ----------
    model
        The model.
    temperatures
        The schedule, falling, shape ``(T,)``.
    log_density
        log prior + log likelihood at its maximum given τ: the profile of the posterior density in
        τ as the path sees it, shape ``(S, T)``.
    log_likelihood
        Σ log g(y_j|x_j) there, shape ``(S, T)``.
    gate_entropy
        Mean over the data of the entropy of π(x), in nats: log k for a gate that is the same for
        all experts, 0 for a hard one; shape ``(S, T)``.
    n_active
        Mean over the data of exp(entropy of π(x)): the effective number of experts that are active
        at one x, shape ``(S, T)``.
    converged
        Whether each step ended at a maximum given τ, shape ``(S, T)``.
    ends
        The measures at the last temperature, a batch of S: starts for any estimator.
    fit
        MAP with τ free, from the ends.
    """

    model: MoE
    temperatures: np.ndarray
    log_density: np.ndarray
    log_likelihood: np.ndarray
    gate_entropy: np.ndarray
    n_active: np.ndarray
    converged: np.ndarray
    ends: MixingMeasure
    fit: Fit

    @property
    def best(self) -> int:
        """The path whose end led to `fit`, at once or on from there under another reference."""
        ends = self.fit.starts[: len(self.log_density)]
        return best_start(ends.objective, np.array([status.converged for status in ends.status]))


class _Step(NamedTuple):
    """One step of a path: where it ended, and how sharp the gate is there."""

    optimum: newton.Optimum
    gate_entropy: Array
    n_active: Array


def anneal(
    model: MoE,
    x: ArrayLike,
    y: ArrayLike,
    *,
    key: Array | int = 0,
    n_starts: int = N_STARTS,
    temperatures: Sequence[float] | np.ndarray | None = None,
    variance_floor: float = VARIANCE_FLOOR,
) -> Annealing:
    """Follow the MAP from a dense gate to a sparse one; then let τ free.

    Parameters
    ----------
    model
        From `bayesmoe.moe`, with a gate that has a temperature.
    x, y
        Covariates ``(n, d)`` or ``(n,)`` and response ``(n,)``.
    key
        A JAX key or an int; seeds the starts.
    n_starts
        How many agnostic starts, each with a path of its own.
    temperatures
        The schedule, falling, at least two; by default 25 from 30 times the median of τ under the
        weak prior to a tenth of it, or as far as the model's prior goes.
    variance_floor
        The least variance allowed, as a multiple of Var(y).

    Raises
    ------
    ValueError
        If the gate has no temperature, the prior does not make the path differ from one
        temperature to the next or does not allow those of the schedule, the schedule does not
        fall, or data or an argument cannot be used.
    """
    schedule = _schedule(model, temperatures)
    check_support(model.gate, model.prior, variance_floor)
    problem = prepare(
        model, x, y, key=key, n_starts=n_starts, starts=None, variance_floor=variance_floor
    )
    layout, data = problem.layout, problem.data
    where = domain(layout, model.prior, problem.lower)
    starts = jnp.asarray(where.end(where.begin(problem.starts)))
    steps = jax.device_get(
        _follow(layout, model.prior, data, starts, problem.lower, jnp.asarray(schedule))
    )
    optima = steps.optimum
    shape = optima.value.shape
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), optima)
    described = describe(layout, model.prior, problem.scaling, flat.coordinates)
    measures, log_prior = jax.device_get(described)
    gates = jax.device_get(gate_states(layout, data, flat.coordinates))
    statuses = [judge(row(flat, i), row(gates, i), model.prior.proper) for i in range(len(flat[0]))]
    n = int(data.n_observations)
    volume = model.prior.log_volume(problem.scaling, model.n_experts, layout.selection)
    log_density = n * optima.value - problem.log_unit
    ends = measures[np.arange(shape[0]) * shape[1] + shape[1] - 1]
    return Annealing(
        model,
        schedule,
        log_density - volume,
        log_density - log_prior.reshape(shape),
        steps.gate_entropy,
        steps.n_active,
        np.array([status.converged for status in statuses]).reshape(shape),
        ends,
        fit_map(model, x, y, n_starts=0, starts=ends, variance_floor=variance_floor),
    )


def _schedule(model: MoE, temperatures: Sequence[float] | np.ndarray | None) -> np.ndarray:
    gate = model.gate
    if not gate.has_temperature or model.n_experts == 1:
        raise ValueError(
            f"the {gate.label} gate with {model.n_experts} experts has no temperature to anneal; "
            "use dense_to_sparse or activation_dense_to_sparse with two experts or more"
        )
    if gate.ray and not model.prior.proper:
        raise ValueError(
            f"under the {gate.label} gate and a flat prior every temperature has the same maximum, "
            "so that there is nothing to follow; use the weak prior"
        )
    allowed = supports(gate, model.prior)["temperature"]
    if temperatures is None:
        return _default_schedule(gate, allowed)
    schedule = np.asarray(temperatures, dtype=float)
    if schedule.ndim != 1 or len(schedule) < 2:
        raise ValueError(f"temperatures must be two or more numbers, got {temperatures!r}")
    if not np.all(np.isfinite(schedule) & (schedule > 0)) or np.any(np.diff(schedule) >= 0):
        raise ValueError(
            f"temperatures must be positive and fall from each to the next, got {schedule.tolist()}"
        )
    if schedule[-1] < allowed[0] or schedule[0] > allowed[1]:
        raise ValueError(
            f"temperatures must lie in the support of their prior, from {allowed[0]:g} to "
            f"{allowed[1]:g}, got {schedule.tolist()}"
        )
    return _kept_within(schedule, allowed)


def _default_schedule(gate: Gate, allowed: tuple[float, float]) -> np.ndarray:
    median = float(weak(gate).temperature.icdf(0.5))
    reach = allowed[0] / median, allowed[1] / median
    highest, lowest = _kept_within(np.array([_HIGHEST, _LOWEST]), reach)
    if not lowest < highest:
        raise ValueError(
            f"the prior of the temperature is supported from {allowed[0]:g} to {allowed[1]:g}, "
            "where the default schedule has no temperatures; pass temperatures"
        )
    return median * np.geomspace(highest, lowest, _STEPS)


def _kept_within(temperatures: np.ndarray, allowed: tuple[float, float]) -> np.ndarray:
    """Temperatures on or beyond the ends of an interval moved just inside."""
    return np.clip(temperatures, allowed[0] * (1 + _INSIDE), allowed[1] * (1 - _INSIDE))


@partial(jax.jit, static_argnums=(0, 1))
def _follow(
    layout: Layout, prior: Prior, data: Data, starts: Array, lower: Array, temperatures: Array
) -> _Step:
    """Steps with leading axes ``(S, T)``; ``starts`` are coordinates ``(S, p)``."""
    place = layout.n_gate - 1  # of log τ among the coordinates
    where = domain(layout, prior, lower)

    def step(coordinates: Array, temperature: Array) -> tuple[Array, _Step]:
        # β stays where it was: a lower temperature first sharpens the gate
        moved = layout.pack(layout.unpack(coordinates).replace(temperature=temperature))
        fixed = moved[place]

        def evaluate(free: Array) -> Evaluation:
            whole = mean_objective(layout, prior, data, _with(free, place, fixed))
            rest = jnp.delete(jnp.arange(layout.size), place, assume_unique_indices=True)
            return Evaluation(whole.value, whole.gradient[rest], whole.hessian[rest[:, None], rest])

        box = where.box_at(temperature)
        start, free = jax.tree.map(lambda v: jnp.delete(v, place), (moved, box))
        found = newton.maximise(evaluate, start, free)
        end = _with(found.coordinates, place, fixed)
        at_bound = _with(found.at_bound, place, jnp.asarray(False))
        found = found._replace(coordinates=end, at_bound=at_bound)
        return end, _Step(found, *_sharpness(layout, data, end))

    return each(lambda start: jax.lax.scan(step, start, temperatures)[1], starts)


def _with(free: Array, place: int, value: Array) -> Array:
    return jnp.concatenate([free[:place], value[None], free[place:]])


def _sharpness(layout: Layout, data: Data, coordinates: Array) -> tuple[Array, Array]:
    """Means over the data of the entropy of π(x), and of its exponential."""
    parameters = layout.gate_parameters(layout.split(coordinates)[0])

    def terms(index: Array) -> tuple[Array, Array]:
        log_share = layout.gate.log_probabilities(parameters, data.gate_x[index])
        share = jnp.exp(log_share)
        entropy = -jnp.sum(jnp.where(share > 0, share * log_share, 0.0), axis=0)
        mask = data.mask[index]
        return mask @ entropy, mask @ jnp.exp(entropy)

    sums = sum_over_chunks(data, terms)
    return sums[0] / data.n_observations, sums[1] / data.n_observations
