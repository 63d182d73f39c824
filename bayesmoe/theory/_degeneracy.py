"""How fast the Kullback-Leibler divergence grows away from a measure: order, hence rate.

If the smallest KL(g_* || g_G) over all G with one parameter displaced by t grows as t^q, data of
size n cannot tell displacements up to n^(-1/q) from none: that is the rate of the parameter, and
q = 2 in regular models. Where experts coincide, q may be 4, 6 or 8, along curves on which the other
parameters compensate; on a ray the divergence is zero and there is no rate.

The divergence is the sum of w (e^δ - 1 - δ), δ = log g_G - log g_*, over quadrature points of
weight w: every term is positive and nothing cancels, so that it can be followed down to 1e-28.
Its minimum is found by Levenberg and Marquardt's method on the signed roots of the terms.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax import Array

from bayesmoe.core.gate import Gate
from bayesmoe.core.likelihood import log_density
from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.theory._fisher import (
    Information,
    Parameters,
    Rule,
    flatten,
    joint_rule,
    pointwise_log_density,
    unflatten,
)
from bayesmoe.theory._nullspace import Direction, coinciding

#: Displacements, in conditional standard errors for one observation: the first `FEWEST`, and more
#: of them while the exponents are on the move.
DISPLACEMENTS = 0.08 * 0.5 ** np.arange(12)
FEWEST = 7

_POINTS_X, _NODES = 24, 6  # the exponent does not depend on the law of X or on the rule
_GAP = 1 / 3  # of a covariate's range, that points of X may be from the nearest one that is used
_ZERO = 1e-26  # a divergence that is rounding alone
_SMALL = 1e-18  # further down a minimum is not found to many digits
_STEADY = 0.25  # how much the last local exponents may differ for a verdict
_NEAR = 0.3  # and how far they may be from an even number
_TOLERANCE = 1e-10  # relative, of the divergence and of the place
_REACH = 3.0  # the others may move by this times √t: further than any compensation needs
_FURTHEST = 30.0  # |δ| of points that a long step throws far off: keeps e^δ finite


class Order(NamedTuple):
    """How a divergence grows with a displacement t.

    Attributes
    ----------
    order
        The even number q in t^q; infinite if the divergence is zero; NaN if this is not clear.
    displacements, divergences
        t, descending, and the divergence there, shape ``(m,)``.
    exponents
        The local exponents between neighbouring displacements, shape ``(m - 1,)``; NaN where a
        divergence is zero to rounding.
    """

    order: float
    displacements: np.ndarray
    divergences: np.ndarray
    exponents: np.ndarray

    @property
    def rate(self) -> float:
        """The exponent -1/q of the rate of n; zero on a ray, NaN if it is not clear."""
        return -1 / self.order


def judge(displacements: np.ndarray, divergences: np.ndarray) -> Order:
    """The order from divergences at descending displacements; NaN where they are not steady."""
    known = np.cumprod(divergences > _ZERO).astype(bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.where(known, divergences, np.nan))
        exponents = np.diff(logs) / np.diff(np.log(displacements))
    last = exponents[known[1:]][-3:]
    order = np.nan
    if not np.any(divergences > _ZERO):
        order = np.inf
    elif len(last) == 3:
        nearest = 2 * np.round(np.mean(last[1:]) / 2)
        near = np.max(np.abs(last[1:] - nearest)) <= _NEAR
        if near and np.ptp(last) <= _STEADY and nearest > 0:
            order = float(nearest)
    return Order(order, displacements, divergences, exponents)


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbourhood:
    """The measures around one, in standardised displacements u of the free parameters.

    θ = θ_0 + (unit) u, but τ and ν are multiplied by e^(unit u/θ_0), to the same first order, so
    that they stay positive. The relative weights of experts that coincide are kept: an expert of
    no weight could be anywhere.

    Attributes
    ----------
    parameters, units
        The free parameters and what one unit of u is.
    mixing
        The coordinates that may move: u = mixing @ z, shape ``(p, c)``.
    rule, log_truth
        Quadrature points and log g_* there.
    """

    parameters: Parameters
    units: np.ndarray
    mixing: np.ndarray
    rule: Rule
    log_truth: np.ndarray

    @classmethod
    def of(cls, information: Information, x: np.ndarray) -> Neighbourhood:
        """Around the information's measure, for X on some of the points x ``(m, d)``."""
        parameters = information.parameters
        few = _subset(x)
        rule = joint_rule(parameters.gate, parameters.origin, few, _NODES)
        # experts that coincide have empty intervals between their breakpoints
        rule = Rule(*(part[rule.weight > 0] for part in rule))
        zeros = np.zeros(parameters.size)
        log_truth, _ = _evaluate(parameters, information.units, zeros, rule)
        mixing = _mixing(parameters, information.units)
        return cls(parameters, information.units, mixing, rule, log_truth)

    def residuals(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Half the sum of whose squares is the divergence, ``(N,)``, and their derivatives."""
        log_value, slopes = _evaluate(self.parameters, self.units, u, self.rule)
        values, steep = self._roots(log_value)
        return values, steep[:, None] * slopes

    def _roots(self, log_value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """√(2w (e^δ - 1 - δ)) with the sign of δ, and its derivative in δ, each ``(N,)``."""
        delta = np.clip(log_value - self.log_truth, -_FURTHEST, _FURTHEST)
        small = np.abs(delta) < 1e-3
        safe = np.where(small, 1.0, delta)
        series = 1 + delta / 3 + delta**2 / 12 + delta**3 / 60
        ratio = np.where(small, series, 2 * (np.expm1(safe) - safe) / safe**2)
        series = 1 + delta / 2 + delta**2 / 6 + delta**3 / 24
        steep = np.where(small, series, np.expm1(safe) / safe)
        root, weight = np.sqrt(ratio), np.sqrt(self.rule.weight)
        return weight * delta * root, weight * steep / root

    def along(self, direction: Direction) -> Order:
        """The order along a direction of the null space.

        Where experts move apart, that of the best curve: of the parameter that moves, the others
        compensating. Otherwise that of the straight line, weights being e^(β0/τ).
        """
        if direction.kind == "split":
            names, (first, second) = self.parameters.names, direction.experts
            partner = direction.parameter.replace(f"[{first}", f"[{second}", 1)
            index = names.index(direction.parameter)
            return self.profile(index, names.index(partner) if partner in names else None)
        line = DISPLACEMENTS[:FEWEST]
        divergences = [self._divergence(self._moved(direction, t)) for t in line]
        return judge(line, np.asarray(divergences))

    def _moved(self, direction: Direction, t: float) -> MixingMeasure:
        origin = self.parameters.origin
        if direction.kind == "weight":
            i, j = direction.experts
            log_ratio = (origin.gate_intercept[i] - origin.gate_intercept[j]) / origin.temperature
            change = jnp.log1p(jnp.asarray([t, -t * jnp.exp(log_ratio)]) / 2)
            place = jnp.asarray([i, j])
            intercept = origin.gate_intercept.at[place].add(origin.temperature * change)
            return origin.replace(gate_intercept=intercept)
        whole = flatten(origin)
        whole[self.parameters.free] += t * direction.vector
        return unflatten(jnp.asarray(whole), origin.n_experts, origin.n_covariates)

    def _divergence(self, measure: MixingMeasure) -> float:
        value = pointwise_log_density(self.parameters.gate, measure, self.rule.x, self.rule.y)
        return 0.5 * float(np.sum(self._roots(value)[0] ** 2))

    def profile(self, index: int, partner: int | None = None) -> Order:
        """The order of the smallest divergence with one free parameter displaced, either way.

        With a partner, a parameter of the same unit, it is their difference that is displaced.
        """
        others = np.delete(self.mixing, _column(self.mixing, index), axis=1)
        if partner is not None:
            ratio = self.units[partner] / self.units[index]
            others[index, _column(others, partner)] = ratio
        orders = [self._profile(index, sign, others) for sign in (1.0, -1.0)]
        lowest = np.argmin([order.divergences[FEWEST - 1] for order in orders])
        return orders[lowest]

    def _profile(self, index: int, sign: float, others: np.ndarray) -> Order:
        rng = np.random.default_rng(index)
        origin, divergences = np.zeros(others.shape[1]), []
        last = DISPLACEMENTS[0] * rng.normal(size=len(origin))
        for t in DISPLACEMENTS:
            least, place = self._minimise(index, sign * t, others, origin)
            if least > _ZERO:
                other = self._minimise(index, sign * t, others, last / 2)
                least, place = min((least, place), other, key=lambda one: one[0])
            last = place
            divergences.append(least)
            order = judge(DISPLACEMENTS[: len(divergences)], np.asarray(divergences))
            if len(divergences) >= FEWEST and (least < _SMALL or not np.isnan(order.order)):
                break
        return order

    def _minimise(
        self, index: int, t: float, others: np.ndarray, start: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """The smallest divergence with u_index = t and the others in a box, and where it is.

        The box shrinks with t: far off there are other measures with the same density, and some
        where an expert has no weight.
        """
        reach, fixed = _REACH * np.sqrt(abs(t)), np.zeros(len(others))
        fixed[index] = t
        memory: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

        def evaluate(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if v.tobytes() not in memory:
                memory.clear()
                inside = np.tanh(v)
                values, slopes = self.residuals(fixed + others @ (reach * inside))
                memory[v.tobytes()] = values, slopes @ others * (reach * (1 - inside**2))
                if np.sum(values**2) / 2 <= _ZERO:
                    raise _Zero(v)
            return memory[v.tobytes()]

        try:
            found = scipy.optimize.least_squares(
                lambda v: evaluate(v)[0],
                np.arctanh(np.clip(start / reach, -0.99, 0.99)),
                lambda v: evaluate(v)[1],
                method="lm",
                xtol=_TOLERANCE,
                ftol=_TOLERANCE,
                gtol=1e-15,
                max_nfev=100,
            )
        except _Zero as zero:
            return 0.0, reach * np.tanh(zero.place)
        return float(found.cost), reach * np.tanh(found.x)


def _subset(x: np.ndarray) -> np.ndarray:
    """About `_POINTS_X` of the points x ``(m, d)``, and more where these leave out a part of them.

    Every so manieth point of a grid may have one and the same value of a covariate, whose
    parameters would then look flat; and so might those of a level that few points have.
    """
    step, span = max(1, len(x) // _POINTS_X), np.ptp(x, axis=0)
    scaled, chosen = x / np.where(span > 0, span, 1.0), list(range(0, len(x), step))
    distance = np.min([_distances(scaled, i) for i in chosen], axis=0)
    for _ in range(_POINTS_X):
        farthest = int(np.argmax(distance))
        if distance[farthest] <= _GAP:
            break
        chosen.append(farthest)
        distance = np.minimum(distance, _distances(scaled, farthest))
    return x[chosen]


def _distances(points: np.ndarray, index: int) -> np.ndarray:
    """Of all points from one of them, by the coordinate in which they differ most: ``(m,)``."""
    return np.max(np.abs(points - points[index]), axis=1)


class _Zero(Exception):  # noqa: N818 - good news
    """A divergence of zero is as low as can be, and rounding has no gradient to follow."""

    def __init__(self, place: np.ndarray) -> None:
        super().__init__()
        self.place = place.copy()


def _column(mixing: np.ndarray, index: int) -> int:
    """The coordinate that moves one parameter."""
    return int(np.flatnonzero(mixing[index])[0])


def _mixing(parameters: Parameters, units: np.ndarray) -> np.ndarray:
    """The identity, but for gate intercepts of experts that coincide: these move together."""
    place = {name: i for i, name in enumerate(parameters.names)}
    mixing, dropped = np.eye(parameters.size), []
    for first, second in coinciding(parameters.origin):
        i, j = (place.get(f"gate_intercept[{expert}]") for expert in (first, second))
        if j is not None and i is not None:
            mixing[j, i] = units[i] / units[j]
        dropped += [place for place in (j if j is not None else i,) if place is not None]
    return np.delete(mixing, dropped, axis=1)


def _evaluate(
    parameters: Parameters, units: np.ndarray, u: np.ndarray, rule: Rule
) -> tuple[np.ndarray, np.ndarray]:
    """log g ``(N,)`` and its derivatives in u ``(N, p)``."""
    whole = np.zeros(flatten(parameters.origin).size)
    scale = np.zeros_like(whole)
    whole[parameters.free], scale[parameters.free] = u, units
    value, slopes = _moved(parameters.gate, parameters.origin, whole, scale, rule.x, rule.y)
    return np.asarray(value), np.asarray(slopes)[:, parameters.free]


@partial(jax.jit, static_argnums=0)
def _moved(
    gate: Gate, origin: MixingMeasure, u: Array, units: Array, x: Array, y: Array
) -> tuple[Array, Array]:
    def value(displacement: Array) -> tuple[Array, Array]:
        step = unflatten(units * displacement, origin.n_experts, origin.n_covariates)
        fields = {field: getattr(origin, field) for field in FIELDS}
        moved = {
            field: now * jnp.exp(getattr(step, field) / now)
            if field in ("temperature", "variance")
            else now + getattr(step, field)
            for field, now in fields.items()
        }
        result = log_density(gate, MixingMeasure(**moved), x, y)
        return result, result

    slopes, result = jax.jacfwd(value, has_aux=True)(u)
    return result, slopes
