"""Starts for gates with one active expert, whose likelihood is a step function of the gate.

A gradient says nothing about such a gate. But along a line in its parameters every row changes its
expert once at most, so that the best point of the line is found exactly by sorting the rows. Lines
along single parameters in turn, and least squares for the rows that each expert owns, raise the
likelihood until neither does. Then both are done at once, for the rows next to the borders: a
parameter is moved past some of them and all experts are fitted anew.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from bayesmoe.core.compilation import jit_quickly
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import GateParameters
from bayesmoe.core.selection import take

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]

_ROUNDS = 50
_GAIN = 1e-9  # per row: smaller ones are rounding
_LEAST_VARIANCE = 1e-4  # of standardised data
_NEAR = 64  # rows on either side of a border


def sharpen_starts(layout: Layout, starts: Array, gate_x: Floats, x: Floats, y: Floats) -> Array:
    """Starts ``(S, p)`` moved as by `sharpen`, where the gate has one active expert.

    Parameters
    ----------
    layout
        Of a linear gate with one active expert.
    starts
        In identifiable coordinates of standardised data.
    gate_x, x, y
        Standardised data, shapes ``(n, d)``, ``(n, d)`` and ``(n,)``.
    """
    selection = layout.selection
    gate_design, design = _design(take(gate_x, selection.gate)), _design(take(x, selection.experts))
    gates, slope, intercept, log_variance = map(np.asarray, _split(layout, starts))
    moved = []
    for i in range(len(starts)):
        lines = np.column_stack([slope[i], intercept[i]])
        start = Start(gates[i], lines, np.exp(log_variance[i]))
        sharpen(start, gate_design, design, y)
        moved.append((start.gate, start.lines, np.log(start.variance)))
    return _join(layout, *(np.stack(block) for block in zip(*moved, strict=True)))


def _design(x: Floats) -> Floats:
    return np.column_stack([x, np.ones(len(x))])


@jit_quickly(static_argnums=0)
def _split(layout: Layout, starts: Array) -> tuple[Array, ...]:
    """Slopes and intercepts of the logits ``(S, k, e + 1)``, and the experts."""

    def one(point: Array) -> tuple[Array, ...]:
        coordinates, *experts = layout.split(point)
        gate = layout.gate_parameters(coordinates)
        return jnp.column_stack([gate.slope, gate.intercept]), *experts

    return jax.vmap(one)(starts)


@jit_quickly(static_argnums=0)
def _join(layout: Layout, gates: Array, lines: Array, log_variance: Array) -> Array:
    """The inverse of `_split`."""

    def one(gate: Array, line: Array, log_variance: Array) -> Array:
        parameters = GateParameters(gate[:, :-1], gate[:, -1], jnp.ones(()))
        coordinates = layout.gate.to_coordinates(parameters)
        return jnp.concatenate([coordinates, line[:, :-1].ravel(), line[:, -1], log_variance])

    return jax.vmap(one)(gates, lines, log_variance)


class Start:
    """One start on standardised data, moved in place.

    Attributes
    ----------
    gate
        Slopes and intercept of each logit, the reference's being zero, shape ``(k, e + 1)``.
    lines
        Slopes and intercept of each expert, shape ``(k, d + 1)``.
    variance
        Shape ``(k,)``.
    """

    def __init__(self, gate: Floats, lines: Floats, variance: Floats) -> None:
        self.gate, self.lines, self.variance = gate.copy(), lines.copy(), variance.copy()

    def log_densities(self, design: Floats, y: Floats) -> Floats:
        """log N(y_j | line_i, ν_i) without the factor 2π, shape ``(k, n)``."""
        residual = y - self.lines @ design.T
        variance = self.variance[:, None]
        return -0.5 * (residual**2 / variance + np.log(variance))


def sharpen(start: Start, gate_design: Floats, design: Floats, y: Floats) -> float:
    """Move a start to where neither one parameter of the gate nor the experts can be bettered.

    Parameters
    ----------
    start
        Changed in place.
    gate_design, design
        Covariates of gate and experts with a column of ones, shapes ``(n, e + 1)``, ``(n, d + 1)``.
    y
        The response ``(n,)``.

    Returns
    -------
    The log-likelihood there, without the factor 2π.
    """
    moments, value = _moments(design, y), -np.inf
    for _ in range(_ROUNDS):
        _search_gate(start.gate, gate_design, start.log_densities(design, y))
        new = _fit_owners(start, gate_design, design, y)
        if new <= value + _GAIN * len(y):
            if not _move_border(start.gate, gate_design, moments):
                break
            new = _fit_owners(start, gate_design, design, y)
        value = new
    start.gate -= start.gate[-1].copy()
    return value


def _search_gate(gate: Floats, design: Floats, density: Floats) -> None:
    """The best value of each parameter in turn, the others and the experts fixed; in place."""
    for i in range(len(gate)):
        rival, margin = _rivals(gate, design, i)
        gain = density[i] - density[rival, np.arange(len(rival))]
        for column, direction in enumerate(design.T):
            step = best_step(margin, direction, gain)
            gate[i, column] += step
            margin = margin - step * direction


def _rivals(gate: Floats, design: Floats, i: int) -> tuple[Labels, Floats]:
    """The largest logit but that of expert i in each row, and by how much it is the larger."""
    logits = gate @ design.T
    own = logits[i].copy()
    logits[i] = -np.inf
    rival = np.argmax(logits, axis=0)
    return rival, logits[rival, np.arange(len(rival))] - own


def best_step(margin: Floats, direction: Floats, gain: Floats) -> float:
    """The c that maximises Σ gain_j over the rows with c · direction_j > margin_j; 0 if none does.

    Parameters
    ----------
    margin, direction, gain
        Shape ``(n,)``.
    """
    rows, at = _crossings(margin, direction)
    change = np.where(direction[rows] > 0, gain[rows], -gain[rows])
    # the value right of the m-th crossing, less that at minus infinity
    values = np.concatenate([[0.0], np.cumsum(change)])
    steps, distinct = _between(at)
    here = values[np.searchsorted(at, 0.0)]
    best = int(np.argmax(np.where(distinct, values, -np.inf)))
    return float(steps[best]) if values[best] > here + _GAIN * len(gain) else 0.0


def _crossings(margin: Floats, direction: Floats) -> tuple[Labels, Floats]:
    """The rows that change their expert as c grows from minus infinity, in order, and where."""
    moving = np.flatnonzero(direction)
    at = margin[moving] / direction[moving]
    order = np.argsort(at, kind="stable")
    return moving[order], at[order]


def _between(at: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Points before, halfway between and after ``(m,)`` crossings, and which lie on none."""
    if not len(at):
        return np.zeros(1), np.ones(1, bool)
    ends = np.concatenate([at[:1] - 1.0, at, at[-1:] + 1.0])
    distinct = np.diff(ends) > 1e-12 * (1.0 + np.abs(ends[1:]))
    return 0.5 * (ends[:-1] + ends[1:]), distinct


def _move_border(gate: Floats, design: Floats, moments: Floats) -> bool:
    """Move one parameter past rows near a border where that is better; whether one was."""
    owner = np.argmax(gate @ design.T, axis=0)
    total = np.stack([moments[owner == i].sum(axis=0) for i in range(len(gate))])
    value = _profile(total).sum()
    if not np.isfinite(value):  # an expert without rows enough
        return False
    for i, column in np.ndindex(gate.shape):
        rival, margin = _rivals(gate, design, i)
        rows, at = _crossings(margin, design[:, column])
        steps, distinct = _between(at)
        here = int(np.searchsorted(at, 0.0))
        first = max(here - _NEAR, 0)
        rows = rows[first : here + _NEAR]
        sign = np.where(design[rows, column] > 0, 1.0, -1.0)
        moved = _moved(sign[:, None, None] * moments[rows], i, rival[rows], len(gate))
        values = _profile(total + moved - moved[here - first]).sum(axis=-1)
        values[~distinct[first : first + len(values)]] = -np.inf
        best = int(np.argmax(values))
        if values[best] > value + _GAIN * len(owner):
            gate[i, column] += steps[first + best]
            return True
    return False


def _moved(moments: Floats, i: int, rival: Labels, k: int) -> Floats:
    """What k experts have gained when 0, 1, ... rows went from their rival to expert i, in turn."""
    count = np.arange(1, len(rival) + 1)
    change = np.zeros((len(rival) + 1, k, *moments.shape[1:]))
    change[count, i] = moments
    change[count, rival] = -moments
    return np.cumsum(change, axis=0)


def _moments(design: Floats, y: Floats) -> Floats:
    """Each row's products of (x, 1, y) with itself, shape ``(n, d + 2, d + 2)``."""
    whole = np.column_stack([design, y])
    return whole[:, :, None] * whole[:, None, :]


def _profile(moments: Floats) -> Floats:
    """The largest log-likelihood of one line from sums of moments ``(..., d + 2, d + 2)``.

    Minus infinity where there are too few rows for a line.
    """
    gram, cross, square = moments[..., :-1, :-1], moments[..., :-1, -1], moments[..., -1, -1]
    count, size = gram[..., -1, -1], gram.shape[-1]
    enough = count > size + 0.5
    line = np.linalg.solve(gram + 1e-10 * np.eye(size), cross[..., None])[..., 0]
    error = np.maximum(square - np.sum(line * cross, axis=-1), 0.0)
    variance = np.maximum(error / np.where(enough, count, 1.0), _LEAST_VARIANCE)
    return np.where(enough, -0.5 * (error / variance + count * np.log(variance)), -np.inf)


def _fit_owners(start: Start, gate_design: Floats, design: Floats, y: Floats) -> float:
    """Least squares for each expert's own rows, and the log-likelihood; few keep their line."""
    owner = np.argmax(start.gate @ gate_design.T, axis=0)
    for i in range(len(start.gate)):
        own = owner == i
        if own.sum() > design.shape[1]:
            line, *_ = np.linalg.lstsq(design[own], y[own], rcond=None)
            error = float(np.mean((y[own] - design[own] @ line) ** 2))
            start.lines[i], start.variance[i] = line, max(error, _LEAST_VARIANCE)
    return float(start.log_densities(design, y)[owner, np.arange(len(y))].sum())
