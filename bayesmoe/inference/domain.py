"""Where an estimate is sought: the prior's support, as a box, above the floors common to all.

Priors are supported by intervals of the paper's parameters. Bounds of a coordinate that is a
parameter divided by τ move with τ: where a prior bounds such a parameter, the search moves in the
parameter itself, and all bounds are constant.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.gate import Gate
from bayesmoe.core.layout import Layout
from bayesmoe.core.priors import Prior
from bayesmoe.core.support import bounded_blocks, supports
from bayesmoe.inference.newton import Box

#: bounds of a prior are met this far inside, relative: coordinates round, and a support may be open
INSIDE = 1e-14

_MARGIN = 0.01  # starts keep this far from the bounds of a prior, where its density may vanish
_EDGE = 1e-10  # what counts as on a bound, relative
_STEEP = 0.1  # a log density that rises so much between 1e-4 and 1e-8 from a bound has no limit


class Domain(NamedTuple):
    """Bounds in the coordinates of the search; p of them.

    Attributes
    ----------
    floor
        Lower bounds common to all estimators, whatever the prior (-inf for none), ``(p,)``.
    lower, upper
        The prior's bounds (infinite for none), ``(p,)``.
    powers
        The coordinates of the search are the identifiable ones times these powers of τ, ``(p,)``.
    layout
        Of the identifiable coordinates.
    """

    floor: Array | np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    powers: np.ndarray
    layout: Layout

    @property
    def bounded(self) -> bool:
        """Whether the prior bounds any coordinate."""
        return bool(np.any(np.isfinite(self.lower) | np.isfinite(self.upper)))

    @property
    def box(self) -> Box:
        """All bounds, those of the prior met from inside."""
        if not self.bounded:
            return Box(jnp.asarray(self.floor))
        lower = self.lower + INSIDE * _size(self.lower)
        upper = self.upper - INSIDE * _size(self.upper)
        return Box(jnp.maximum(lower, self.floor), jnp.asarray(upper))

    def box_at(self, temperature: Array) -> Box:
        """Bounds of the identifiable coordinates at τ."""
        lower, upper = self.box
        if upper is None:
            return Box(lower)
        unit = temperature**self.powers
        return Box(lower / unit, upper / unit)

    def begin(self, starts: Array | np.ndarray) -> np.ndarray:
        """Starts ``(S, p)`` in identifiable coordinates moved inside the prior's support.

        In the coordinates of the search. Linear gates are made less sharp as a whole: that leaves
        the borders between experts where they are.
        """
        points = np.asarray(starts)
        if not self.bounded:
            return points
        points = np.array(scaled(self.layout, points, self.powers))
        margin = _MARGIN * np.minimum(1.0, self.upper - self.lower)
        lower, upper = self.lower + margin, self.upper - margin
        if self.layout.gate.linear:
            gate = slice(0, self.layout.n_gate - self.layout.gate.has_temperature)
            points[:, gate] *= _shrinkage(points[:, gate], lower[gate], upper[gate])
        return np.clip(points, lower, upper)

    def nearest(self, coordinates: Array) -> Array:
        """The identifiable coordinates ``(p,)``, moved into the box if rounding led out of it."""
        inside = self.box.clip(scaled(self.layout, coordinates, self.powers))
        return jnp.asarray(scaled(self.layout, inside, -self.powers))

    def end(self, points: Any) -> Any:
        """Identifiable coordinates of points of the search, ``(S, p)``, as NumPy's or JAX's."""
        return scaled(self.layout, points, -self.powers)

    def on_bounds(self, coordinates: Array | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which identifiable coordinates ``(..., p)`` rest on the prior's lower and upper bounds.

        A floor as high as the prior's bound is taken for a floor.
        """
        points = scaled(self.layout, coordinates, self.powers)
        alone = self.lower > np.asarray(self.floor) + _EDGE
        return alone & _near(points, self.lower), _near(points, self.upper)

    def at_floor(self, coordinates: Array | np.ndarray) -> np.ndarray:
        """Which of the coordinates ``(..., p)`` rest on their floor."""
        return _near(coordinates, np.asarray(self.floor))


def domain(layout: Layout, prior: Prior | None, floor: Array | np.ndarray) -> Domain:
    """The domain of an estimator: of MAP under a prior, or of the MLE.

    ``floor`` is `Problem.lower`.
    """
    lower, upper = np.full(layout.size, -np.inf), np.full(layout.size, np.inf)
    for block in () if prior is None else bounded_blocks(layout, prior):
        lower[block.where], upper[block.where] = block.lower, block.upper
    return Domain(floor, lower, upper, search_powers(layout, prior), layout)


def search_powers(layout: Layout, prior: Prior | None) -> np.ndarray:
    """By which power of τ the coordinates of the search exceed the identifiable ones: ``(p,)``."""
    powers = np.zeros(layout.size, int)
    for block in () if prior is None else bounded_blocks(layout, prior):
        powers[block.where] = block.power
    return powers


def scaled(layout: Layout, points: Any, powers: np.ndarray) -> Any:
    """Coordinates ``(..., p)`` times powers of τ, as NumPy's or JAX's."""
    if not powers.any():
        return points
    xp = np if isinstance(points, np.ndarray) else jnp
    place = layout.n_gate - 1
    return points * xp.exp(powers * points[..., place : place + 1])


def check_support(gate: Gate, prior: Prior, variance_floor: float) -> None:
    """Raise ValueError if a density need have no maximum over the prior's support.

    Supports must be intervals, that of variances reach above ``variance_floor``, a multiple of
    Var(y), and densities be bounded where an interval ends.
    """
    reason = why_no_map(gate, prior, variance_floor)
    if reason is not None:
        raise ValueError(reason)


def why_no_map(gate: Gate, prior: Prior, variance_floor: float) -> str | None:
    """What `check_support` says of a prior whose supports are intervals, and the mend."""
    for name, interval in supports(gate, prior).items():
        if name == "variance" and interval[1] <= variance_floor:
            return (
                f"the prior of variance has support up to {interval[1]:g}, but variances are kept "
                f"above variance_floor = {variance_floor:g}: choose a smaller variance_floor or "
                "another prior"
            )
        lowest = variance_floor if name == "variance" else -np.inf
        for bound, inwards in zip(interval, (1, -1), strict=True):
            room = inwards * min(1.0, interval[1] - interval[0])
            reached = np.isfinite(bound) and bound > lowest
            if reached and _rises(getattr(prior, name), bound, room):
                return (
                    f"the density of the prior of {name} is not bounded at {bound:g}, so that "
                    "there is no MAP: choose a prior with a bounded density, or sample the "
                    "posterior"
                )
    return None


def _rises(law: Any, bound: float, room: float) -> bool:
    """Whether a log density grows without end towards a bound; ``room`` leads to points inside."""
    near, nearer = (float(law.log_prob(bound + room * part)) for part in (1e-4, 1e-8))
    return nearer > near + _STEEP


def _near(points: Any, bound: np.ndarray) -> np.ndarray:
    finite = np.where(np.isfinite(bound), bound, 0.0)
    return np.asarray(np.isfinite(bound) & (np.abs(points - finite) <= _EDGE * _size(bound)))


def _size(bound: np.ndarray) -> np.ndarray:
    """The unit that is relative to a bound; one where there is none."""
    return np.maximum(1.0, np.abs(np.where(np.isfinite(bound), bound, 0.0)))


def _shrinkage(gates: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """By how much each gate ``(S, q)`` must shrink towards zero to fit its bounds: ``(S, 1)``."""
    bound = np.where(gates > 0, upper, lower)
    share = np.where((gates != 0) & (bound * gates > 0), bound / np.where(gates, gates, 1.0), 1.0)
    return np.min(np.minimum(share, 1.0), axis=1, keepdims=True, initial=1.0)
