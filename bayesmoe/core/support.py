"""The supports of priors: intervals, and which coordinates they bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from bayesmoe.core.gate import Gate
from bayesmoe.core.layout import Layout
from bayesmoe.core.priors import Prior, check_positive

_POSITIVE = ("temperature", "variance")  # their coordinates are logarithms

Bound = Array | float


class Block(NamedTuple):
    """A stretch of coordinates whose prior is bounded.

    Attributes
    ----------
    where
        The coordinates.
    lower, upper
        The interval, infinite for no bound; of logarithms where the coordinates are some.
    power
        The parameters bounded are the coordinates times this power of τ.
    """

    where: slice
    lower: float
    upper: float
    power: int

    def bounds(self, temperature: Array) -> tuple[Bound, Bound]:
        """Lower and upper bound of the coordinates at τ."""
        if not self.power:
            return self.lower, self.upper
        # an infinite bound stays a number: divided by τ its derivative would be NaN
        lower, upper = (
            bound / temperature**self.power if np.isfinite(bound) else bound
            for bound in (self.lower, self.upper)
        )
        return lower, upper


def supports(gate: Gate, prior: Prior) -> dict[str, tuple[float, float]]:
    """The interval that supports each parameter's prior, by the field of `Prior`.

    Raises
    ------
    ValueError
        If a support is no interval, or one of a positive parameter reaches below zero.
    """
    check_positive(gate, prior)
    names = ["gate_slope", "gate_intercept", "slope", "intercept", "variance"]
    if gate.has_temperature:
        names.append("temperature")
    return {name: _interval(name, getattr(prior, name)) for name in names}


def _interval(name: str, distribution: Any) -> tuple[float, float]:
    support = distribution.support
    if isinstance(distribution, dist.ImproperUniform):
        support = support.base_constraint
    lower = getattr(support, "lower_bound", -np.inf)
    upper = getattr(support, "upper_bound", np.inf)
    bounded = np.isfinite(lower) or np.isfinite(upper)
    if support.is_discrete or not (bounded or isinstance(support, type(constraints.real))):
        raise ValueError(
            f"the prior of {name} has support {support}; it must be an interval: "
            "choose a prior on the real line, a half-line or an interval"
        )
    return float(lower), float(upper)


def bounded_blocks(layout: Layout, prior: Prior) -> Iterator[Block]:
    """The blocks of θ with bounds; log τ comes first, since the others' bounds depend on it."""
    gate, k, d, g = layout.gate, layout.n_experts, layout.n_expert_covariates, layout.n_gate
    n_slopes = (k - 1) * layout.n_gate_covariates
    of_slope = int(gate.slope_per_temperature)
    of_intercept = int(gate.intercept_per_temperature) - int(prior.intercept_per_temperature)
    if not gate.has_temperature:
        of_slope = of_intercept = 0
    places = {
        "temperature": (slice(g - 1, g), 0),
        "gate_slope": (slice(0, n_slopes), of_slope),
        "gate_intercept": (slice(n_slopes, n_slopes + k - 1), of_intercept),
        "slope": (slice(g, g + k * d), 0),
        "intercept": (slice(g + k * d, g + k * (d + 1)), 0),
        "variance": (slice(g + k * (d + 1), layout.size), 0),
    }
    intervals = supports(gate, prior)
    for name, (where, power) in places.items():
        lower, upper = intervals.get(name, (-np.inf, np.inf))
        if name in _POSITIVE:
            lower, upper = (float(np.log(b)) if b > 0 else -np.inf for b in (lower, upper))
        if np.isfinite(lower) or np.isfinite(upper):
            yield Block(where, lower, upper, power)
