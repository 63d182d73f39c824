"""Observations in chunks, and sums over them.

Observations are laid out in contiguous rows of `CHUNK`, one row per covariate and expert, and the
number of chunks in use is data, not shape: one compiled program serves every sample size up to
the capacity of its storage, and memory beyond the data does not grow with n. Up to `FEW`
observations are laid out in shorter rows, so that they are not outnumbered by the padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from bayesmoe.core.device import on_accelerator
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.selection import ALL, Selection, take

CHUNK = 512
SHORT_CHUNK = 64
FEW = 3 * SHORT_CHUNK
SMALLEST_CAPACITY = 32  # chunks; larger data go to storages four times as large
_AT_ONCE = 128  # chunks that an accelerator takes at once: a divisor of all larger capacities

T = TypeVar("T")


class Data(NamedTuple):
    """Standardised observations in chunks of m = `CHUNK` or `SHORT_CHUNK`, padded to c chunks.

    Attributes
    ----------
    gate_x, expert_x
        The designs, shape ``(c, d, m)``, each with its selected covariates alone.
    y
        The response, shape ``(c, m)``.
    mask
        One for observations, zero for padding, shape ``(c, m)``.
    n_observations, n_chunks
        How many of each are in use, shape ``()``, integers.
    """

    gate_x: Array
    expert_x: Array
    y: Array
    mask: Array
    n_observations: Array
    n_chunks: Array


def make_data(x: ArrayLike, y: ArrayLike, scaling: Scaling, selection: Selection = ALL) -> Data:
    """Standardise and lay out x ``(n, d)`` and y ``(n,)``."""
    covariates, response = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n = response.shape[0]
    length = SHORT_CHUNK if n <= FEW else CHUNK
    n_chunks = -(-n // length)
    capacity = SMALLEST_CAPACITY
    while capacity < n_chunks:
        capacity *= 4

    lacking = capacity * length - n

    def rows(values: np.ndarray) -> Array:
        # the last row again: a gate need not be finite, nor have derivatives, away from the data
        padded = np.pad(values, [(0, lacking)] + [(0, 0)] * (values.ndim - 1), mode="edge")
        chunks = padded.reshape(capacity, length, *values.shape[1:])
        return jax.device_put(np.moveaxis(chunks, 1, -1))

    gate_x = (covariates - np.asarray(scaling.gate_shift)) / np.asarray(scaling.gate_scale)
    expert_x = (covariates - np.asarray(scaling.x_shift)) / np.asarray(scaling.x_scale)
    return Data(
        rows(take(gate_x, selection.gate)),
        rows(take(expert_x, selection.experts)),
        rows((response - np.asarray(scaling.y_shift)) / np.asarray(scaling.y_scale)),
        jax.device_put(np.pad(np.ones(n), (0, lacking)).reshape(capacity, length)),
        jax.device_put(np.int64(n)),
        jax.device_put(np.int64(n_chunks)),
    )


def sum_over_chunks(data: Data, terms: Callable[[Array], T]) -> T:
    """Σ of ``terms`` over the indices of the chunks in use; arrays or trees of them.

    An accelerator takes many chunks at once: then its memory holds the terms of all of these.
    """
    terms = jax.jit(terms, inline=True)  # traced once, for its shapes and for its values
    shapes = jax.eval_shape(terms, 0)  # weakly typed, as the loop's index is
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    if on_accelerator():
        width = min(_AT_ONCE, data.y.shape[0])
        return _sum_by_blocks(data.n_chunks, width, terms, zero)

    def add(index: Array, total: T) -> T:
        return jax.tree.map(jnp.add, total, terms(index))

    return jax.lax.fori_loop(0, data.n_chunks, add, zero)


def _sum_by_blocks(n_chunks: Array, width: int, terms: Callable[[Array], T], zero: T) -> T:
    """The sum over indices below ``n_chunks``, ``width`` of them at once."""

    def add(block: Array, total: T) -> T:
        indices = block * width + jnp.arange(width)

        def summed(leaf: Array) -> Array:
            used = (indices < n_chunks).reshape(-1, *(1,) * (leaf.ndim - 1))
            return jnp.sum(jnp.where(used, leaf, 0), axis=0)

        return jax.tree.map(jnp.add, total, jax.tree.map(summed, jax.vmap(terms)(indices)))

    return jax.lax.fori_loop(0, (n_chunks + width - 1) // width, add, zero)
