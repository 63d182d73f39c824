"""Expectation-maximisation: the baseline of the literature, for every gate.

The E-step takes the experts' responsibilities r_ij for the observations. The M-step maximises

    Σ_j Σ_i r_ij log N(y_j | a_iᵀx_j + b_i, ν_i)  +  Σ_j Σ_i r_ij log π_i(x_j),

the first sum by weighted least squares, exactly, the second by Newton's method. No step lowers the
likelihood, but each may raise it by little: that the likelihood rises slowly does not mean that it
has arrived, and `fit_em` therefore judges where it stopped as `fit_mle` judges its optima.

Under a top-K gate the second sum is -∞ as soon as an expert with a responsibility is left out of
an observation: EM keeps the sets of active experts that it starts with.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.compilation import jit_by_size
from bayesmoe.core.density import log_sum_exp_and_shares
from bayesmoe.core.device import each
from bayesmoe.core.hessian import Evaluation
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.observations import Data, sum_over_chunks
from bayesmoe.core.validate import check_fraction, check_whole
from bayesmoe.inference import newton
from bayesmoe.inference.outcome import (
    GateState,
    Starts,
    Status,
    best_start,
    describe,
    gate_states,
    judge,
    row,
)
from bayesmoe.inference.problem import N_STARTS, VARIANCE_FLOOR, Problem, mean_objective, prepare

_SEGMENT = 256  # iterations per call of the compiled program, which keeps their values
_RANK = 1e-12  # what least squares takes for rank deficiency: relative eigenvalues below it
_STARVED = 1e-250  # an expert with less responsibility than this in all is left as it is
_ROUNDING = 1e-13  # by which a mean may fall without having fallen
_GATE_TOLERANCE = 1e-12  # the gradient at which the gate's part of an M-step ends
_LOG_2PI = float(np.log(2 * np.pi))


@dataclasses.dataclass(frozen=True, eq=False)
class EMFit:
    """Where EM stopped, and the evidence; fields as in `Fit` where not said otherwise.

    Attributes
    ----------
    measure
        The estimate of the best start, on the scale of the data.
    log_likelihood
        Σ log g(y_j|x_j).
    status, converged
        How the best start ended, and whether that is a maximum, whatever the stopping rule says.
    gradient_norm, least_curvature
        The certificate of a maximum.
    n_iterations
        Iterations t of the best start.
    path
        Its log-likelihood after 0, ..., t iterations, shape ``(t + 1,)``.
    starts
        All starts.
    """

    measure: MixingMeasure
    log_likelihood: float
    status: Status
    gradient_norm: float
    least_curvature: float
    n_iterations: int
    path: np.ndarray
    starts: Starts

    @property
    def converged(self) -> bool:
        return self.status.converged


def fit_em(
    model: MoE,
    x: ArrayLike,
    y: ArrayLike,
    *,
    key: Array | int = 0,
    n_starts: int = N_STARTS,
    starts: MixingMeasure | None = None,
    variance_floor: float = VARIANCE_FLOOR,
    tolerance: float = 1e-10,
    max_iterations: int = 10_000,
) -> EMFit:
    """Maximise the likelihood by EM; the model's prior plays no part.

    Parameters
    ----------
    model, x, y, key, n_starts, starts, variance_floor
        As for `fit_mle`.
    tolerance
        EM stops once an iteration changes the log-likelihood by less than this multiple of its
        magnitude. The log-likelihood is that of the data as given, hence the rule depends on the
        units of y. The rule published with the rates of the softmax gate (Nguyen, Nguyen & Ho,
        NeurIPS 2023, arXiv 2305.03288) is 1e-6, with at most 2000 iterations.
    max_iterations
        The most iterations of any start.

    Raises
    ------
    ValueError
        If the data or an argument cannot be used; nothing is computed then.
    """
    max_iterations = check_whole("max_iterations", max_iterations, least=1)
    tolerance = check_fraction("tolerance, a relative change,", tolerance)
    problem = prepare(
        model, x, y, key=key, n_starts=n_starts, starts=starts, variance_floor=variance_floor
    )
    return run_em(problem, tolerance, max_iterations)


def run_em(problem: Problem, tolerance: float, max_iterations: int) -> EMFit:
    """`fit_em` of a problem from `prepare`."""
    layout, data, lower = problem.layout, problem.data, problem.lower
    rule = _Rule(jnp.asarray(tolerance), jnp.asarray(max_iterations), jnp.asarray(problem.log_unit))
    runs = [_run(layout, data, lower, rule, jnp.maximum(one, lower)) for one in problem.starts]
    return _assemble(problem, runs)


class _Rule(NamedTuple):
    """When to stop."""

    tolerance: Array
    max_iterations: Array
    offset: Array  # log-likelihood of standardised data less that of the data as given


class _State(NamedTuple):
    """One start under way."""

    point: Array
    value: Array  # log-likelihood of the data as given, at the point when it was last taken
    n_iterations: Array
    met: Array  # whether the stopping rule is met
    done: Array


_Run = tuple[_State, np.ndarray]  # a start at its end, and its log-likelihood after 0, 1, ... steps


def _run(layout: Layout, data: Data, lower: Array, rule: _Rule, start: Array) -> _Run:
    no = jnp.asarray(False)
    state = _State(start, jnp.asarray(-jnp.inf), jnp.asarray(0), no, no)
    segments = []
    while not state.done:
        state, values = _advance(layout, data, lower, rule, state)
        segments.append(np.asarray(values))
    return state, np.concatenate(segments)[: int(state.n_iterations) + 1]


@partial(jax.jit, static_argnums=0)
def _advance(
    layout: Layout, data: Data, lower: Array, rule: _Rule, first: _State
) -> tuple[_State, Array]:
    """At most `_SEGMENT` iterations, and the log-likelihood before each (and after the last)."""

    def keep_going(carry: tuple[_State, Array]) -> Array:
        return ~carry[0].done & (carry[0].n_iterations - first.n_iterations < _SEGMENT)

    def iterate(carry: tuple[_State, Array]) -> tuple[_State, Array]:
        state, values = carry
        expected = _expect(layout, state.point, data)
        value = expected.log_likelihood - rule.offset
        met = jnp.abs(value - state.value) < rule.tolerance * jnp.abs(state.value)
        done = met | ~jnp.isfinite(value) | (state.n_iterations >= rule.max_iterations)
        step = partial(_maximise, layout, data, lower, state.point, expected)
        point = jax.lax.cond(done, lambda: state.point, step)
        values = values.at[state.n_iterations - first.n_iterations].set(value)
        return _State(point, value, state.n_iterations + ~done, met, done), values

    return jax.lax.while_loop(keep_going, iterate, (first, jnp.zeros(_SEGMENT)))


class _Expectation(NamedTuple):
    """What the M-step needs of the responsibilities r at a point, summed over the observations.

    With u = (x, 1), and e the residual under an expert's line at that point.
    """

    log_likelihood: Array  # ()
    gate: Evaluation  # Σ Σ r log π at the gate, with derivatives
    held: Array  # Σ r, (k,)
    gram: Array  # Σ r u uᵀ, (k, d + 1, d + 1)
    cross: Array  # Σ r u e, (k, d + 1)
    error: Array  # Σ r e², (k,)


def _expect(layout: Layout, point: Array, data: Data) -> _Expectation:
    gate = layout.split(point)[0]

    def terms(index: Array) -> _Expectation:
        evidence, r, residual = _responsibilities(layout, point, data, index)
        design = jnp.concatenate([data.expert_x[index], jnp.ones_like(data.y[index])[None]])
        weighted = r[:, None] * design
        return _Expectation(
            jnp.sum(evidence),
            _evaluate_gate(layout, gate, data.gate_x[index], r),
            jnp.sum(r, axis=1),
            weighted @ design.T,
            jnp.einsum("iam,im->ia", weighted, residual),
            jnp.sum(r * residual**2, axis=1),
        )

    return sum_over_chunks(data, terms)


def _responsibilities(
    layout: Layout, point: Array, data: Data, index: Array
) -> tuple[Array, Array, Array]:
    """log g ``(m,)``, r and residuals ``(k, m)`` of one chunk; zeros (but residuals) in padding."""
    gate, slope, intercept, log_variance = layout.split(point)
    log_share = layout.gate.log_probabilities(layout.gate_parameters(gate), data.gate_x[index])
    residual = data.y[index] - (slope @ data.expert_x[index] + intercept[:, None])
    square = (residual * jnp.exp(-0.5 * log_variance)[:, None]) ** 2
    log_normal = -0.5 * (_LOG_2PI + log_variance[:, None] + square)
    evidence, r = log_sum_exp_and_shares(log_share + log_normal, 0)
    mask = data.mask[index]
    return jnp.where(mask > 0, evidence, 0.0), mask * r, residual


def _maximise(
    layout: Layout, data: Data, lower: Array, point: Array, expected: _Expectation
) -> Array:
    """The M-step."""
    gate, slope, intercept, log_variance = layout.split(point)
    change, variance = _least_squares(expected)
    starved, least = expected.held < _STARVED, lower[-layout.n_experts :]
    change = jnp.where(starved[:, None], 0.0, change)
    log_variance = jnp.where(starved, log_variance, jnp.maximum(jnp.log(variance), least))
    if layout.n_experts > 1:  # a single expert has all the weight under any gate
        gate = _maximise_gate(layout, data, point, expected.gate)
    slope, intercept = slope + change[:, :-1], intercept + change[:, -1]
    return jnp.concatenate([gate, slope.ravel(), intercept, log_variance])


def _least_squares(expected: _Expectation) -> tuple[Array, Array]:
    """By how much to change the lines ``(k, d + 1)``, and the variances that this leaves ``(k,)``.

    Lines keep their value where an expert's observations do not determine them. A change, since
    the errors of rounding are then relative to the residuals.
    """
    held = jnp.maximum(expected.held, _STARVED)
    gram, cross = expected.gram / held[:, None, None], expected.cross / held[:, None]
    inverse = jnp.linalg.pinv(gram, rtol=_RANK, hermitian=True)
    change = jnp.einsum("iab,ib->ia", inverse, cross)
    gain = jnp.sum(change * (2 * cross - jnp.einsum("iab,ib->ia", gram, change)), axis=1)
    variance = jnp.maximum(expected.error / held - gain, np.finfo(float).tiny)
    return change, variance


def _maximise_gate(layout: Layout, data: Data, point: Array, opening: Evaluation) -> Array:
    """Gate coordinates at a maximum of Σ Σ r log π, given its ``opening`` value and derivatives.

    The responsibilities are computed anew in every pass, for memory's sake.
    """

    def negative_mean(sums: Evaluation) -> Evaluation:
        return Evaluation(*(-term / data.n_observations for term in sums))

    def evaluate(gate: Array) -> Evaluation:
        def terms(index: Array) -> Evaluation:
            _, r, _ = _responsibilities(layout, point, data, index)
            return _evaluate_gate(layout, gate, data.gate_x[index], r)

        return negative_mean(sum_over_chunks(data, terms))

    def keep_going(state: newton.State) -> Array:
        steep = jnp.max(jnp.abs(state.local.gradient)) > _GATE_TOLERANCE
        return steep & ~state.done & (state.n_iterations < newton.MAX_ITERATIONS)

    gate, local = layout.split(point)[0], negative_mean(opening)
    step = partial(newton.iterate, evaluate, newton.Box(jnp.full_like(gate, -jnp.inf)))
    last = jax.lax.while_loop(keep_going, step, newton.begin(gate, local))
    rounding = _ROUNDING * (1.0 + jnp.abs(local.value))
    return jnp.where(last.local.value <= local.value + rounding, last.point, gate)


def _evaluate_gate(layout: Layout, gate: Array, gate_x: Array, r: Array) -> Evaluation:
    """Σ r log π of a chunk, with derivatives: those of log-softmax, and of the logits by JAX."""

    def logits(free: Array) -> Array:
        return layout.gate.logits(layout.gate_parameters(free), gate_x)

    z = logits(gate)
    # dz[c, i] = ∂z_i/∂gate_c, shape (n_gate, k, m)
    dz = jax.vmap(lambda e: jax.jvp(logits, (gate,), (e,))[1])(jnp.eye(layout.n_gate))
    log_total, share = log_sum_exp_and_shares(z, 0)
    held = jnp.sum(r, axis=0)
    surplus = r - held * share
    mean = jnp.einsum("im,cim->cm", share, dz)
    flat = (dz * jnp.sqrt(held * share)).reshape(layout.n_gate, r.size)

    def bent(free: Array) -> Array:
        moved = logits(free)
        return jnp.sum(jnp.where(jnp.isfinite(moved), surplus * moved, 0.0))

    hessian = (held * mean) @ mean.T - flat @ flat.T + jax.hessian(bent)(gate)
    value = jnp.sum(jnp.where(r > 0, r * (z - log_total), 0.0))  # -inf if it leaves out an r > 0
    return Evaluation(value, jnp.einsum("im,cim->c", surplus, dz), hessian)


@jit_by_size(static_argnums=0, data=1)
def _certify(layout: Layout, data: Data, lower: Array, points: Array) -> newton.Optimum:
    """What `fit_mle` would say of points ``(S, p)``: a runaway where its next step is long."""

    def negative(point: Array) -> Evaluation:
        return Evaluation(*(-term for term in mean_objective(layout, None, data, point)))

    box = newton.Box(lower)

    def one(point: Array) -> newton.Optimum:
        unknown = Evaluation(jnp.asarray(jnp.inf), jnp.zeros_like(point), jnp.eye(layout.size))
        pair = (newton.begin(point, unknown),) * 2
        here, beyond = jax.lax.fori_loop(
            0, 2, lambda _, pair: (pair[1], newton.iterate(negative, box, pair[1])), pair
        )
        return newton.summarise(here, box)._replace(runaway=beyond.n_long > 0)

    return each(one, points)


def _judge(state: _State, optimum: newton.Optimum, gate: GateState) -> Status:
    """The status of one start; in ill-conditioned data a small gradient alone is no arrival."""
    far = optimum.runaway and not (gate.empty or gate.separated)
    if optimum.gradient_norm > newton.GRADIENT_TOLERANCE or far:
        return Status.STOPPED_EARLY if state.met else Status.MAX_ITERATIONS
    return judge(optimum, gate, proper=False)


def _assemble(problem: Problem, runs: list[_Run]) -> EMFit:
    layout, data, lower = problem.layout, problem.data, problem.lower
    states, paths = zip(*runs, strict=True)
    points = jnp.stack([state.point for state in states])
    measures, _ = describe(layout, None, problem.scaling, points)
    ends = _certify(layout, data, lower, points), gate_states(layout, data, points)
    optima, gates = jax.device_get(ends)
    statuses = tuple(_judge(state, row(optima, i), row(gates, i)) for i, state in enumerate(states))
    starts = Starts(
        np.array([path[-1] for path in paths]),
        statuses,
        np.asarray(optima.gradient_norm),
        np.asarray(optima.least_curvature),
        np.array([int(state.n_iterations) for state in states]),
        measures,
    )
    best = best_start(starts.objective, np.array([status.converged for status in statuses]))
    return EMFit(
        measures[best],
        float(starts.objective[best]),
        statuses[best],
        float(optima.gradient_norm[best]),
        float(optima.least_curvature[best]),
        int(starts.n_iterations[best]),
        paths[best],
        starts,
    )
