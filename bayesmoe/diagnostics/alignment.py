"""Naming experts alike over draws, modulo the gate's gauge."""

from __future__ import annotations

from typing import overload

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from xarray import DataTree

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.core.validate import check_covariates

_MANY = 100  # draws, whose spread within experts is known
_PASSES = 20

Floats = npt.NDArray[np.float64]


@overload
def align(
    estimate: DataTree, gate: Gate, reference: MixingMeasure, x: ArrayLike | None = None
) -> DataTree: ...


@overload
def align(
    estimate: MixingMeasure, gate: Gate, reference: MixingMeasure, x: ArrayLike | None = None
) -> MixingMeasure: ...


def align(
    estimate: DataTree | MixingMeasure,
    gate: Gate,
    reference: MixingMeasure,
    x: ArrayLike | None = None,
) -> DataTree | MixingMeasure:
    """Estimates or draws with their experts named as in ``reference``.

    Each is relabelled, by an element of the gate's gauge, so that its experts' slopes, levels and
    log variances are nearest to the reference's in least squares. Units are their overall spreads;
    of a hundred draws or more, the spreads within experts so named, by which they are named again.
    Levels are of the lines at the mean of the covariates: intercepts, where the covariates are far
    from zero as years are, say no more than slopes do. Densities do not change. Where the gate
    allows it, the reference expert may become another one, and its gate parameters are moved to
    zero; otherwise it keeps its place. A prior may know which it was: of draws, ``sample_stats``
    keeps it as ``reference``.

    Parameters
    ----------
    estimate
        From `sample_posterior`, or a measure with any batch axes.
    gate
        The model's gate.
    reference
        A single measure with as many experts, for instance a MAP estimate.
    x
        Covariates ``(n, d)`` or ``(n,)`` that estimates are of. A tree has its own; of a measure
        without them the levels are intercepts.

    Raises
    ------
    ValueError
        If the numbers of experts or covariates differ, or an expert has a value that is not
        finite.
    """
    if isinstance(estimate, MixingMeasure):
        fields = {name: np.asarray(getattr(estimate, name)) for name in FIELDS}
        return MixingMeasure(**_aligned(gate, fields, reference, _middle(x))[0])
    group = estimate["posterior"].to_dataset()
    arrays = {name: group[name].transpose("chain", "draw", ...) for name in FIELDS}
    fields = {name: array.to_numpy() for name, array in arrays.items()}
    if x is None and "constant_data" in estimate.children:
        x = estimate["constant_data"]["x"].transpose("obs", "covariate").to_numpy()
    aligned, order = _aligned(gate, fields, reference, _middle(x))
    # where the expert that was the reference is now
    place = np.argmax(order == _reference(estimate)[..., None], axis=-1)
    result = estimate.copy()
    result["posterior"] = DataTree(
        group.assign({name: (arrays[name].dims, aligned[name]) for name in FIELDS})
    )
    if "sample_stats" in estimate.children:
        stats = estimate["sample_stats"].to_dataset()
        result["sample_stats"] = DataTree(stats.assign(reference=(("chain", "draw"), place)))
    return result


def mirrored(measures: MixingMeasure, gate: Gate, reference: MixingMeasure) -> MixingMeasure:
    """Under an even activation, with the signs of gate slopes that the reference's have.

    A prior may know the signs, which `align` therefore leaves as they are.
    """
    if not gate.even:
        return measures
    slope = np.asarray(measures.gate_slope)
    along = np.sum(slope * np.asarray(reference.gate_slope), axis=-1, keepdims=True)
    return measures.replace(gate_slope=np.where(along < 0, -slope, slope))


def as_sampled(estimate: DataTree, gate: Gate) -> MixingMeasure:
    """Draws with the reference expert under which they were sampled, batch shape (chain, draw).

    The other experts keep the order that they have: a prior does not know them apart.
    """
    group = estimate["posterior"].to_dataset()
    fields = {name: group[name].transpose("chain", "draw", ...).to_numpy() for name in FIELDS}
    place = _reference(estimate).ravel()
    k = fields["slope"].shape[-2]
    order = np.tile(np.arange(k), (len(place), 1))
    order[np.arange(len(place)), place], order[:, -1] = k - 1, place
    return MixingMeasure(**_in_order(gate, fields, order))


def _reference(estimate: DataTree) -> npt.NDArray[np.int_]:
    """The expert that was the reference when each draw was sampled, ``(chain, draw)``."""
    sizes = estimate["posterior"].sizes
    if "sample_stats" in estimate.children and "reference" in estimate["sample_stats"]:
        return estimate["sample_stats"]["reference"].transpose("chain", "draw").to_numpy()
    return np.full((sizes["chain"], sizes["draw"]), sizes["expert"] - 1)


def _middle(x: ArrayLike | None) -> Floats | None:
    """The mean of the covariates, ``(d,)``; None where they are not known."""
    return None if x is None else np.asarray(check_covariates(x)).mean(axis=0)


def _aligned(
    gate: Gate, fields: dict[str, Floats], reference: MixingMeasure, middle: Floats | None
) -> tuple[dict[str, Floats], npt.NDArray[np.int_]]:
    """The fields aligned, and the expert that takes each place, shape ``(..., k)``."""
    shape = fields["slope"].shape
    if shape[-2:] != reference.slope.shape:
        raise ValueError(
            f"the estimate has (k, d) = {shape[-2:]}, the reference {reference.slope.shape}; "
            "use a single measure of the same model"
        )
    if middle is not None and middle.shape != shape[-1:]:
        raise ValueError(f"x has {len(middle)} covariates, the estimate {shape[-1]}")
    order = _nearest(gate, _flat(fields), reference, np.zeros(()) if middle is None else middle)
    return _in_order(gate, fields, order), order.reshape(shape[:-1])


def _in_order(
    gate: Gate, fields: dict[str, Floats], order: npt.NDArray[np.int_]
) -> dict[str, Floats]:
    moved = _relabel(gate, _flat(fields), order)
    return {name: values.reshape(fields[name].shape) for name, values in moved.items()}


def _flat(fields: dict[str, Floats]) -> dict[str, Floats]:
    """With one batch axis."""
    batch = fields["slope"].ndim - 2
    return {name: values.reshape(-1, *values.shape[batch:]) for name, values in fields.items()}


def _nearest(
    gate: Gate, draws: dict[str, Floats], reference: MixingMeasure, middle: Floats
) -> np.ndarray:
    """For every draw the expert that takes each place, shape ``(m, k)``."""
    atoms = _atoms(draws["slope"], draws["intercept"], draws["variance"], middle)
    blocks = (reference.slope, reference.intercept, reference.variance)
    slope, intercept, variance = (np.asarray(block) for block in blocks)
    target = _atoms(slope, intercept, variance, middle)
    if not (np.all(np.isfinite(atoms)) and np.all(np.isfinite(target))):
        raise ValueError(
            "an expert of the estimate or the reference has a slope, intercept or variance that is "
            "not finite, so it cannot be named; leave such fits and draws out"
        )
    k = target.shape[0]
    free = k if gate.translates or (gate.flip and k == 2) else k - 1
    # the reference's included: else a coordinate in which one estimate's experts hardly differ,
    # and which tells nothing, would decide
    spread = np.concatenate([atoms.reshape(-1, atoms.shape[-1]), target]).std(axis=0)
    order = _assign(atoms, target, spread, free)
    for _ in range(_PASSES if len(atoms) >= _MANY else 0):
        named = np.take_along_axis(atoms, order[..., None], axis=1)
        # what tells experts apart makes overall spreads wide: within experts it is worth more
        spread = np.sqrt(np.mean(named.var(axis=0), axis=0))
        before, order = order, _assign(atoms, target, spread, free)
        if np.array_equal(before, order):
            break
    return order


def _assign(atoms: Floats, target: Floats, spread: Floats, free: int) -> np.ndarray:
    """The nearest names, distances being in units of ``spread``; the last experts keep theirs."""
    unit = np.where(spread > 0, spread, 1.0)
    cost = np.sum(((atoms[:, :, None] - target) / unit) ** 2, axis=-1)
    order = np.tile(np.arange(target.shape[0]), (len(cost), 1))
    for row, own in zip(order, cost, strict=True):
        experts, places = linear_sum_assignment(own[:free, :free])
        row[places] = experts
    return order


def _atoms(slope: Floats, intercept: Floats, variance: Floats, middle: Floats) -> Floats:
    level = intercept + np.sum(slope * middle, axis=-1)
    return np.concatenate([slope, level[..., None], np.log(variance)[..., None]], axis=-1)


def _relabel(gate: Gate, draws: dict[str, Floats], order: np.ndarray) -> dict[str, Floats]:
    """Experts in the given order, the gate's parameters moved so that the last is the reference."""
    moved = {name: _take(values, order) for name, values in draws.items() if values.ndim > 1}
    slope, intercept = moved["gate_slope"], moved["gate_intercept"]
    if gate.translates:
        slope = slope - slope[:, -1:]
    else:
        # σ(v) - σ(u) = σ(-u) - σ(-v): where two experts swapped, the slopes (v, u) become (-u, -v)
        swapped = order[:, -1] != order.shape[1] - 1
        slope = np.where(swapped[:, None, None], -slope[:, ::-1], slope)
    moved["gate_slope"] = slope
    moved["gate_intercept"] = intercept - intercept[:, -1:]
    return draws | moved


def _take(values: Floats, order: np.ndarray) -> Floats:
    index = order.reshape(*order.shape, *[1] * (values.ndim - 2))
    return np.take_along_axis(values, index, axis=1)
