"""Priors: weakly informative, flat and compact, on standardised data."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, SupportsIndex

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.selection import ALL, Selection, take


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
    """Independent priors of the paper's parameters, stated for standardised data.

    Each field is a scalar NumPyro distribution, used for every free entry of its block. On the
    original scale the same prior is the affine image under `Scaling`.

    Attributes
    ----------
    gate_slope
        Prior of each free β1.
    gate_intercept
        Prior of each free β0, or of β0/τ if ``intercept_per_temperature``.
    temperature
        Prior of τ (unused by gates without a temperature).
    slope, intercept, variance
        Priors of each a, b and ν.
    intercept_per_temperature
        Whether ``gate_intercept`` describes β0/τ. Wide priors on β0 alone put nearly all prior
        mass on empty experts when τ is small.
    proper
        Whether the prior integrates to one, so that a posterior is sure to exist.
    """

    gate_slope: dist.Distribution
    gate_intercept: dist.Distribution
    temperature: dist.Distribution
    slope: dist.Distribution
    intercept: dist.Distribution
    variance: dist.Distribution
    intercept_per_temperature: bool = False
    proper: bool = True

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        return vars(self).get("_origin") or super().__reduce_ex__(protocol)

    def log_density(self, gate: Gate, measure: MixingMeasure, selection: Selection = ALL) -> Array:
        """log p(measure) in the paper's parameters of standardised data.

        The reference, and slopes of covariates that are not selected, are no parameters. This is
        the density that MAP estimation uses: no Jacobian of any coordinates. It is -inf outside the
        support.
        """
        tau = measure.temperature
        intercept = measure.gate_intercept[:-1]
        total = jnp.zeros(())
        if self.intercept_per_temperature:
            intercept = intercept / tau
            total -= intercept.size * jnp.log(tau)
        total += _log_prob(self.gate_slope, take(measure.gate_slope[:-1], selection.gate))
        total += _log_prob(self.gate_intercept, intercept)
        if gate.has_temperature:
            total += _log_prob(self.temperature, tau)
        total += _log_prob(self.slope, take(measure.slope, selection.experts))
        total += _log_prob(self.intercept, measure.intercept)
        return total + _log_prob(self.variance, measure.variance)

    def log_volume(self, scaling: Scaling, n_experts: int, selection: Selection = ALL) -> float:
        """By how much `log_density` exceeds the log density on the original scale.

        That is `Scaling.log_volume` of the blocks that have a density: what is improper is constant
        on any scale.
        """
        volumes = scaling.log_volumes(n_experts, selection)
        return sum(volumes[block] for block in volumes if not _improper(getattr(self, block)))


def _named(make: Callable[[Gate], Prior]) -> Callable[[Gate], Prior]:
    """One prior for each gate, which is pickled by its name: priors are equal by identity."""

    @functools.cache
    @functools.wraps(make)
    def named(gate: Gate) -> Prior:
        prior = make(gate)
        object.__setattr__(prior, "_origin", (named, (gate,)))
        return prior

    return named


def check_positive(gate: Gate, prior: Prior) -> None:
    """Raise ValueError if the prior of a positive parameter reaches below zero.

    Sampling would cut it off at zero, where the NumPyro program of the model would not.
    """
    for name in ("variance", "temperature") if gate.has_temperature else ("variance",):
        support = getattr(prior, name).support
        unbounded = isinstance(support, type(constraints.real)) or hasattr(support, "upper_bound")
        if getattr(support, "lower_bound", -math.inf if unbounded else 0.0) < 0:
            raise ValueError(
                f"the prior of {name} has support {support}, but {name} is positive: choose a "
                "prior of positive values, such as TruncatedNormal(..., low=0) or LogNormal of "
                "numpyro.distributions"
            )


@_named
def weak(gate: Gate) -> Prior:
    """Weakly informative on standardised data: the default.

    Experts: slopes and intercepts within a few standard deviations of y per standard deviation of
    x, variances around a tenth of Var(y) with two orders of magnitude either way. Gate: logits
    with a standard deviation of about 3 at the centre and 4 one standard deviation away, so
    that prior gate probabilities are neither all at 0 and 1 nor all equal. For gates with an
    activation τ is centred where the tempered activation has that spread.
    """
    per_temperature = gate.intercept_per_temperature and not gate.slope_per_temperature
    activated = gate.has_temperature and per_temperature
    location, scale = (math.log(gate.spread / 3.0), 1.0) if activated else (0.0, 0.5)
    return Prior(
        gate_slope=dist.Normal(0.0, 3.0),
        gate_intercept=dist.Normal(0.0, 3.0),
        temperature=dist.LogNormal(location, scale),
        slope=dist.Normal(0.0, 2.0),
        intercept=dist.Normal(0.0, 2.0),
        variance=dist.LogNormal(math.log(0.1), 1.5),
        intercept_per_temperature=activated,
    )


@_named
def flat(gate: Gate) -> Prior:
    """Constant on the paper's parameters: MAP equals MLE. Improper, so never sampled."""
    del gate
    real = dist.ImproperUniform(constraints.real, (), ())
    positive = dist.ImproperUniform(constraints.positive, (), ())
    return Prior(real, real, positive, real, real, positive, proper=False)


@_named
def compact(gate: Gate) -> Prior:
    """Uniform on a box of the paper's parameters: the compact Θ of the theorems."""
    del gate
    wide, narrow = dist.Uniform(-50.0, 50.0), dist.Uniform(-10.0, 10.0)
    return Prior(
        gate_slope=wide,
        gate_intercept=wide,
        temperature=dist.Uniform(0.01, 10.0),
        slope=narrow,
        intercept=narrow,
        variance=dist.Uniform(1e-4, 10.0),
    )


PRIORS = {"weak": weak, "flat": flat, "compact": compact}


def _improper(base: dist.Distribution) -> bool:
    return isinstance(base, dist.ImproperUniform)


def _log_prob(base: dist.Distribution, value: Array) -> Array:
    """Σ log density of ``value``; -inf outside the support, zero for an improper uniform."""
    if _improper(base):
        return jnp.zeros(())
    inside = base.support(value)
    # a point of the support stands in for values outside, to keep gradients finite
    safe = jnp.where(inside, value, base.support.feasible_like(value))
    return jnp.sum(jnp.where(inside, base.log_prob(safe), -jnp.inf))
