"""Naming experts alike over draws, modulo the gate's gauge."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from xarray import DataTree

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import FIELDS, MixingMeasure

Floats = npt.NDArray[np.float64]


def align(posterior: DataTree, gate: Gate, reference: MixingMeasure) -> DataTree:
    """The posterior with the experts of every draw named as in ``reference``.

    Each draw is relabelled, by an element of the gate's gauge, so that its experts' lines and log
    variances are nearest to the reference's in least squares, in units of the draws' spread around the
    overall mean. Densities do not change. Where the gate allows it, the reference expert may become
    another one, and its gate parameters are moved to zero; otherwise it keeps its place.

    Parameters
    ----------
    posterior
        From `sample_posterior`.
    gate
        The model's gate.
    reference
        A single measure with as many experts, for instance a MAP estimate.

    Raises
    ------
    ValueError
        If the numbers of experts or covariates differ.
    """
    group = posterior["posterior"]
    fields = {name: group[name].transpose("chain", "draw", ...).to_numpy() for name in FIELDS}
    if fields["slope"].shape[2:] != reference.slope.shape:
        raise ValueError(
            f"the draws have (k, d) = {fields['slope'].shape[2:]}, the reference "
            f"{reference.slope.shape}; use a measure of the same model"
        )
    flat = {name: values.reshape(-1, *values.shape[2:]) for name, values in fields.items()}
    order = _nearest(gate, flat, reference)
    aligned = _relabel(gate, flat, order)
    shaped = {name: values.reshape(fields[name].shape) for name, values in aligned.items()}
    result = posterior.copy()
    dataset = group.to_dataset()
    result["posterior"] = DataTree(
        dataset.assign({name: (group[name].dims, shaped[name]) for name in FIELDS})
    )
    return result


def _nearest(gate: Gate, draws: dict[str, Floats], reference: MixingMeasure) -> np.ndarray:
    """For every draw the expert that takes each place, shape ``(m, k)``."""
    atoms = _atoms(draws["slope"], draws["intercept"], draws["variance"])
    target = _atoms(
        *(np.asarray(b) for b in (reference.slope, reference.intercept, reference.variance))
    )
    spread = atoms.std(axis=(0, 1))
    unit = np.where(spread > 0, spread, 1.0)
    cost = np.sum(((atoms[:, :, None] - target) / unit) ** 2, axis=-1)
    k = target.shape[0]
    free = k if gate.linear or (gate.flip and k == 2) else k - 1
    order = np.tile(np.arange(k), (len(cost), 1))
    for row, own in zip(order, cost, strict=True):
        experts, places = linear_sum_assignment(own[:free, :free])
        row[places] = experts
    return order


def _atoms(slope: Floats, intercept: Floats, variance: Floats) -> Floats:
    return np.concatenate([slope, intercept[..., None], np.log(variance)[..., None]], axis=-1)


def _relabel(gate: Gate, draws: dict[str, Floats], order: np.ndarray) -> dict[str, Floats]:
    """Experts in the given order, the gate's parameters moved so that the last is the reference."""
    moved = {name: _take(values, order) for name, values in draws.items() if values.ndim > 1}
    slope, intercept = moved["gate_slope"], moved["gate_intercept"]
    # σ(u) - σ(0) = σ(0) - σ(-u): with two experts the swap has the slope -u, as for a linear gate
    moved["gate_slope"] = slope - slope[:, -1:]
    moved["gate_intercept"] = intercept - intercept[:, -1:]
    return draws | moved


def _take(values: Floats, order: np.ndarray) -> Floats:
    index = order.reshape(*order.shape, *[1] * (values.ndim - 2))
    return np.take_along_axis(values, index, axis=1)
