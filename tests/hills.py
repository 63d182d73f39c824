"""A posterior known in closed form that no chain crosses between the parts of."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesmoe.core.layout import Layout

HILLS, WIDTHS, MASSES = np.array([3.0, -3.0]), np.array([1.0, 0.4]), np.array([0.8, 0.2])


class TwoHills(NamedTuple):
    """Two normal laws as a target, which lie along the diagonal at ±3."""

    layout: Layout
    bounded: bool = False

    def log_density(self, u: jax.Array, data: Any) -> jax.Array:
        z = (u - HILLS[:, None]) / WIDTHS[:, None]
        size = self.layout.size
        return jax.nn.logsumexp(np.log(MASSES) - size * np.log(WIDTHS) - jnp.sum(z**2, axis=1) / 2)
