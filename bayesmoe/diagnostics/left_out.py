"""What a posterior says of each row without that row, by importance sampling."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from arviz_stats.base import array_stats
from jax import Array
from xarray import DataTree

from bayesmoe.core.density import conditional_density
from bayesmoe.core.device import each
from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.theory.voronoi import as_measure

_GROUPS = 5  # of rows, by a covariate
#: rows in a group
LEAST_ROWS = 10
#: draws whose importance weights can be smoothed: a fifth are their tail, of five at least
LEAST_DRAWS = 25


class LeftOut(NamedTuple):
    """Rows left out one by one.

    Attributes
    ----------
    pit
        P(Y <= y_j | x_j, all other rows), shape ``(n,)``: uniform given x if the model is right.
    pareto_k
        Of the importance weights of each row, shape ``(n,)``.
    """

    pit: np.ndarray
    pareto_k: np.ndarray


class Group(NamedTuple):
    """Neighbouring rows by one covariate, and whether their PIT is uniform.

    Attributes
    ----------
    rows
        Indices of rows.
    low, high
        The range of the covariate among them.
    pvalue
        Of the test of Kolmogorov and Smirnov.
    """

    rows: np.ndarray
    low: float
    high: float
    pvalue: float


def left_out(gate: Gate, tree: DataTree) -> LeftOut:
    """Smoothed importance weights of all rows (Vehtari, Gelman & Gabry 2017), and their PIT.

    Both are NaN of fewer draws than `LEAST_DRAWS`.

    Parameters
    ----------
    gate
        The gate of the model that was sampled.
    tree
        From `sample_posterior` or `sample_laplace`.
    """
    pointwise = tree["log_likelihood"]["y"].transpose("chain", "draw", "obs").values
    n_rows = pointwise.shape[-1]
    if pointwise.size < LEAST_DRAWS * n_rows:
        return LeftOut(np.full(n_rows, np.nan), np.full(n_rows, np.nan))
    log_weights, k = array_stats.psislw(pointwise.reshape(-1, n_rows).T, axis=-1)
    x, y = np.asarray(tree["constant_data"]["x"]), np.asarray(tree["observed_data"]["y"])
    below = np.asarray(_below(gate, as_measure(tree), jnp.asarray(x), jnp.asarray(y)))
    weights = np.exp(log_weights.T - log_weights.max(axis=-1))
    pit = np.sum(weights * below.reshape(weights.shape), axis=0) / np.sum(weights, axis=0)
    return LeftOut(np.minimum(pit, 1.0), np.asarray(k))  # beyond one by rounding alone


def groups_by(values: np.ndarray, pit: np.ndarray) -> list[Group]:
    """Up to five groups of about as many rows, at least ten, by a covariate ``(n,)``.

    Rows are told apart by the covariate alone, equal values being in one group whatever the order
    of rows, so that their PIT is uniform in each group under a model that is right. None are found
    where there is one group only, as among fewer than twenty rows.
    """
    order = np.argsort(values, kind="stable")
    parts = np.split(order, _cuts(values[order]))
    return list(_groups(values, pit, parts)) if len(parts) > 1 else []


def _cuts(ranked: np.ndarray) -> list[int]:
    """Where groups begin but for the first: at the changes nearest to groups of one size."""
    n = len(ranked)
    number = min(_GROUPS, n // LEAST_ROWS)
    changes = np.flatnonzero(np.diff(ranked)) + 1
    cuts = [0]
    for place in np.cumsum([len(part) for part in np.array_split(ranked, max(number, 1))])[:-1]:
        allowed = changes[(changes >= cuts[-1] + LEAST_ROWS) & (changes <= n - LEAST_ROWS)]
        if len(allowed):
            cuts.append(int(allowed[np.argmin(np.abs(allowed - place))]))
    return cuts[1:]


def _groups(values: np.ndarray, pit: np.ndarray, parts: list[np.ndarray]) -> Iterator[Group]:
    for rows in parts:
        pvalue = float(scipy.stats.kstest(pit[rows], "uniform").pvalue)
        yield Group(rows, float(values[rows[0]]), float(values[rows[-1]]), pvalue)


@functools.partial(jax.jit, static_argnums=0)
def _below(gate: Gate, measures: MixingMeasure, x: Array, y: Array) -> Array:
    """P(Y <= y_j|x_j) of every draw, shape ``(chain, draw, n)``."""

    def one(measure: MixingMeasure) -> Array:
        return conditional_density(gate, measure, x).cdf(y)

    return jax.lax.map(lambda chain: each(one, chain), measures)
