"""Partial dependence: what a model says along one covariate, averaged over the others' values."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import Array

from bayesmoe.core.compilation import jit_quickly
from bayesmoe.core.density import conditional_density
from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.report._curves import Band, band, expert_lines
from bayesmoe.report._panels import chosen_rows, find_levels

#: rows and draws that are averaged over at most, and columns that are shown at most
ROWS, DRAWS, MOST = 200, 200, 9

_POINTS = 41  # along a covariate
_TAILS = (0.1, 0.9)  # from where to where a covariate moves when gates are compared


class Sweep(NamedTuple):
    """A column, and the covariates of some rows with the column set to one value after the other.

    Attributes
    ----------
    name
        The column.
    values
        Its values in the table, shape ``(n,)``; numbers of levels from 0 where it has names for
        them.
    points
        What it is set to, ascending, shape ``(m,)``.
    at
        Covariates of r rows at each point, shape ``(m, r, d)``; all else is as observed.
    labels
        Names of the points, where they are levels.
    levels
        Whether the points are all values that there are, so that nothing lies between them.
    """

    name: str
    values: np.ndarray
    points: np.ndarray
    at: np.ndarray
    labels: tuple[str, ...] = ()
    levels: bool = False


class Dependence(NamedTuple):
    """Averages over rows, their posterior means and 90 % bands.

    Attributes
    ----------
    mean
        Of E[Y|x], shape ``(m,)``.
    probability
        Of each gate probability, shape ``(k, m)``.
    """

    mean: Band
    probability: Band


def points_along(values: np.ndarray) -> tuple[np.ndarray, bool]:
    """Where to set a column of numbers to, and whether these are its levels."""
    levels = find_levels(values)
    if levels is not None:
        return levels, True
    return np.linspace(values.min(), values.max(), _POINTS), False


def table_sweeps(x: pd.DataFrame) -> list[Sweep]:
    """Sweeps of the first `MOST` covariates, over up to `ROWS` rows chosen by a fixed seed."""
    every = x.to_numpy(dtype=float)
    base, found = every[chosen_rows(len(x), ROWS)], []
    for j, name in enumerate(x.columns[:MOST]):
        points, levels = points_along(every[:, j])
        at = np.repeat(base[None], len(points), axis=0)
        at[:, :, j] = points[:, None]
        found.append(Sweep(str(name), every[:, j], points, at, levels=levels))
    return found


def partial_dependence(gate: Gate, draws: MixingMeasure, sweep: Sweep) -> Dependence:
    """Friedman's partial dependence (Annals of Statistics 2001) of E[Y|x] and the gates.

    For each draw, predictions are averaged over the rows of the sweep at each of its points; bands
    are quantiles over up to `DRAWS` draws, evenly chosen. Points go one by one, so that memory
    holds one prediction for each draw, row and expert.

    Parameters
    ----------
    gate, draws
        Draws with any batch axes, experts named alike.
    sweep
        Where to predict.
    """
    n_axes = len(draws.batch_shape)
    flat = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[n_axes:]), draws)
    total = len(flat.intercept)
    chosen = np.linspace(0, total - 1, min(total, DRAWS)).round().astype(int)
    kept = jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)[chosen]), flat)
    found = [map(np.asarray, _averages(gate, kept, jax.device_put(x))) for x in sweep.at]
    means, probabilities = (np.stack(parts, axis=-1) for parts in zip(*found, strict=True))
    return Dependence(band(means), band(probabilities))


@jit_quickly(static_argnums=0)
def _averages(gate: Gate, draws: MixingMeasure, x: Array) -> tuple[Array, Array]:
    """Of E[Y|x] and gate probabilities over the rows x ``(r, d)``, by draw."""

    def one(draw: MixingMeasure) -> tuple[Array, Array]:
        law = conditional_density(gate, draw, x)
        return jnp.mean(law.mean), jnp.mean(jnp.exp(law.log_weights), axis=0)

    return jax.vmap(one)(draws)


def gate_dependence(gate: Gate, measure: MixingMeasure, x: pd.DataFrame) -> np.ndarray:
    """How much of the gate's probability changes hands along each covariate, shape ``(d,)``.

    The covariate goes from its first to its last decile, from its least to its largest value if
    these are equal, all others being as observed: the total variation between the gate's
    probabilities, from 0 to 1, averaged over up to `ROWS` rows.
    """
    every = x.to_numpy(dtype=float)
    base, found = every[chosen_rows(len(x), ROWS)], []
    for j, values in enumerate(every.T):
        ends = np.quantile(values, _TAILS)
        if ends[0] == ends[1]:
            ends = np.array([values.min(), values.max()])
        low, high = (_shares(gate, measure, base, j, end) for end in ends)
        found.append(0.5 * np.abs(high - low).sum(axis=0).mean())
    return np.array(found)


def _shares(
    gate: Gate, measure: MixingMeasure, x: np.ndarray, column: int, value: float
) -> np.ndarray:
    """Gate probabilities ``(k, r)`` at rows whose column has one value."""
    moved = x.copy()
    moved[:, column] = value
    return np.asarray(expert_lines(gate, measure, jnp.asarray(moved))[1])
