"""Coordinates around a mode in which the posterior is close to a normal law.

Whitening by the curvature at a mode makes the posterior's widths one there, and leaves them to
change elsewhere. Where β1 is no multiple of τ in a gate's coordinates, they do: data tell β1/τ as
far as logits are nearly linear in x, so that the width of β1 goes with τ and the posterior narrows
to a funnel, whose end no chain of one step size reaches. A prior on β1 keeps the width as it is.
Slopes are therefore sampled as v in u = v (τ/τ0)^s, with τ0 the temperature at the mode and s the
share of what is known that data tell: a partial non-centring, after Papaspiliopoulos, Roberts &
Sköld (Statistical Science 2007, 22(1), 59-73).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import Distribution

from bayesmoe.core.layout import Layout
from bayesmoe.inference.modes import LEAST_CURVATURE
from bayesmoe.inference.target import Target

Floats = Any  # arrays of NumPy or of JAX


class Chart(NamedTuple):
    """Coordinates v around a mode, for u of `Target`.

    Attributes
    ----------
    mode
        The mode, where u = v, shape ``(..., p)``.
    whitening
        An inverse root of the curvature in v at the mode, shape ``(..., p, p)``.
    powers
        s: the power of τ with which each coordinate's width goes, shape ``(..., p)``.
    """

    mode: Floats
    whitening: Floats
    powers: Floats

    def bend(self, layout: Layout, v: Floats) -> tuple[Floats, Floats]:
        """u at v ``(..., p)``, and the log determinant of ∂u/∂v ``(...)``."""
        place = temperature_place(layout)
        if place is None:
            return v, np.zeros(())
        of = jnp if isinstance(v, Array) else np  # JAX would compile it for every number of modes
        rise = v[..., place] - self.mode[..., place]
        return v * of.exp(self.powers * rise[..., None]), self.powers.sum(axis=-1) * rise

    def straighten(self, layout: Layout, u: Floats) -> tuple[Floats, Floats]:
        """The inverse of `bend`: v at u ``(..., p)``, and the log determinant of ∂u/∂v."""
        backwards = self._replace(powers=-self.powers)
        v, log_volume = backwards.bend(layout, u)
        return v, -log_volume

    def moved_to(self, layout: Layout, u: np.ndarray) -> Chart:
        """Around other points u ``(..., p)``, as wide in u as charts are at the temperature there.

        Of coordinates v the scale is another one then: at a chart's own mode they are those of u.
        """
        place = temperature_place(layout)
        if place is None:
            return self._replace(mode=u)
        rise = u[..., place] - self.mode[..., place]
        wider = np.exp(self.powers * rise[..., None])[..., None]
        return self._replace(mode=u, whitening=self.whitening * wider)


def blank_charts(m: int, p: int) -> Chart:
    """m charts of p coordinates, of which the shapes alone matter."""
    return Chart(np.zeros((m, p)), np.zeros((m, p, p)), np.zeros((m, p)))


def make_charts(target: Target, u: np.ndarray, whitening: np.ndarray) -> Chart:
    """Charts around modes ``(m, p)``, from inverse roots of the curvature in u ``(m, p, p)``.

    They are straight under a bounded prior. There u goes on where τ ends, and posteriors reach far
    from the mode, where steep slopes are no multiples of τ: bent charts do harm.
    """
    layout, prior = target
    gate, free = layout.gate, (layout.n_experts - 1) * layout.n_gate_covariates
    place, powers = temperature_place(layout), np.zeros(u.shape)
    if place is None or target.bounded:
        return Chart(u, whitening, powers)
    if not gate.slope_per_temperature:
        powers[:, :free] = _told_by_data(whitening, place, slice(0, free), prior.gate_slope)
    if not gate.intercept_per_temperature:
        rest = slice(free, place)
        powers[:, rest] = (
            1.0
            if prior.intercept_per_temperature
            else _told_by_data(whitening, place, rest, prior.gate_intercept)
        )
    # ∂u/∂v at a mode is the identity but for the column of log τ, which has powers * mode added
    along = whitening[:, place, None]
    return Chart(u, whitening - (powers * u)[..., None] * along, powers)


def temperature_place(layout: Layout) -> int | None:
    """The place of log τ among the coordinates; None where no width goes with it.

    That is where all of a gate's coordinates are divided by τ already, and where the density jumps,
    so that its curvature says nothing.
    """
    gate = layout.gate
    divided = gate.slope_per_temperature and gate.intercept_per_temperature
    if not gate.has_temperature or divided or gate.jumps(layout.n_experts):
        return None
    return layout.n_gate - 1


def _told_by_data(
    whitening: np.ndarray, place: int, where: slice, prior: Distribution
) -> np.ndarray:
    """One less the ratio of posterior to prior variance, both given τ: ``(m, w)``, in [0, 1].

    No prior counts as wider than a posterior may be.
    """
    along, rows = whitening[:, place], whitening[:, where]
    covariance = np.einsum("mwp,mp->mw", rows, along)
    given = np.sum(rows**2, axis=-1) - covariance**2 / np.sum(along**2, axis=-1)[:, None]
    widest = min(_variance(prior), 1.0 / LEAST_CURVATURE)
    return np.clip(1.0 - given / widest, 0.0, 1.0)


def _variance(prior: Distribution) -> float:
    """The variance of a prior; infinite if it has none, or none that NumPyro knows."""
    try:
        variance = float(prior.variance)
    except NotImplementedError:
        return np.inf
    return np.inf if np.isnan(variance) else variance
