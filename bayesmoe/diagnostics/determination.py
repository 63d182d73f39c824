"""What did the data determine? The posterior's spread in units of the prior's.

Experts are named as in the densest draw, modulo the gate's gauge; positive parameters are judged by
their logarithms. With every free parameter in units of its prior's spread, intercepts being those
at the mean of the covariates, the prior is as wide in all directions; the principal axes along
which the posterior is nearly as wide are those that the data leave to the prior, whether they are
single parameters or several that only move together, as on a ray.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from xarray import DataTree

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.selection import Selection
from bayesmoe.diagnostics.alignment import align
from bayesmoe.diagnostics.posterior import tree_selection

#: a direction is left to the prior where the posterior has more than this share of its spread
LEFT_TO_THE_PRIOR = 0.5

_NAMED = 0.1  # an axis is named by parameters that have this share of it (squared cosine),
_TOGETHER = 0.9  # or move with it: this correlation
_QUARTILES = 1.349  # standard deviations between the quartiles of a normal law
_TAIL = 4.0  # spreads: draws beyond count as this far, so that none decides alone

Floats = np.ndarray


class Direction(NamedTuple):
    """Parameters that move together, and the posterior's spread along them over the prior's."""

    parameters: tuple[str, ...]
    ratio: float


class Determination(NamedTuple):
    """What the data determined.

    Attributes
    ----------
    spreads
        One row per free parameter, positive ones by their logarithms; columns ``prior``,
        ``posterior`` (standard deviations, of the normal laws with the same quartiles) and their
        ``ratio``.
    left_to_the_prior
        The directions whose ratio is above `LEFT_TO_THE_PRIOR`, the widest first; in these,
        intercepts are those at the mean of the covariates.
    """

    spreads: pd.DataFrame
    left_to_the_prior: tuple[Direction, ...]


def determination(gate: Gate, tree: DataTree) -> Determination:
    """Compare the posterior's spread with the prior's, parameter by parameter and by direction.

    Parameters
    ----------
    gate
        The model's gate.
    tree
        A posterior with the data and the group ``prior``, as `sample_predictive` adds it.

    Raises
    ------
    ValueError
        If there is no group ``prior``.
    """
    if "prior" not in tree.children:
        raise ValueError("the tree has no group 'prior'; add it with bayesmoe.sample_predictive")
    named = align(tree, gate, densest_draw(tree))
    selection, scaling = tree_selection(tree), _scaling(gate, tree)
    parts = [named[group] for group in ("posterior", "prior")]
    posterior, prior, about, prior_about = (
        _on_the_line(free_parameters(part, gate, selection))
        for part in (*parts, *(_about_the_mean(part, scaling) for part in parts))
    )
    spreads = pd.DataFrame({"prior": _spread(prior), "posterior": _spread(posterior)})
    spreads = spreads.rename_axis("parameter").assign(ratio=spreads["posterior"] / spreads["prior"])
    return Determination(spreads, _directions(about, _spread(prior_about)))


def _scaling(gate: Gate, tree: DataTree) -> Scaling:
    """Where the covariates lie, by which the prior was made."""
    x = tree["constant_data"]["x"].transpose("obs", "covariate").to_numpy()
    return Scaling.from_data(gate, x, None)


def _about_the_mean(group: Any, scaling: Scaling) -> DataTree:
    """The draws with their lines and logits given by the values at the mean of the covariates.

    Of these and of slopes the prior is independent. At the origin it is not: far from the data, as
    at the year zero, an intercept is a slope times the distance, and nothing else.
    """
    dataset = group.to_dataset()
    shifts = {"intercept": ("slope", scaling.x_shift)}
    shifts["gate_intercept"] = ("gate_slope", scaling.gate_shift)
    moved = {
        name: dataset[name] + dataset[slope].dot(xr.DataArray(np.asarray(shift), dims="covariate"))
        for name, (slope, shift) in shifts.items()
    }
    return DataTree(dataset.assign(moved))


def densest_draw(tree: DataTree) -> MixingMeasure:
    """The draw with the largest log posterior density in the coordinates sampled."""
    lp = tree["sample_stats"]["lp"].transpose("chain", "draw").values
    chain, draw = np.unravel_index(np.argmax(lp), lp.shape)
    group = tree["posterior"].to_dataset().isel(chain=chain, draw=draw)
    return MixingMeasure(**{field: group[field].values for field in FIELDS})


def free_variables(group: Any, gate: Gate, selection: Selection) -> dict[str, xr.DataArray]:
    """The paper's free parameters, by field: no reference expert, no covariates left out."""
    dataset = group.to_dataset()
    last = dataset.sizes["expert"] - 1
    found: dict[str, xr.DataArray] = {}
    for field in FIELDS:
        values = dataset[field]
        if field.startswith("gate_"):
            values = values.isel(expert=slice(0, last))
        columns = {"gate_slope": selection.gate, "slope": selection.experts}.get(field)
        if columns is not None:
            values = values.isel(covariate=list(columns))
        if values.size and (field != "temperature" or gate.has_temperature):
            found[field] = values
    return found


def free_parameters(group: Any, gate: Gate, selection: Selection) -> pd.DataFrame:
    """Draws of the paper's free parameters, one column each under ArviZ's name."""
    columns: dict[str, Floats] = {}
    for field, variable in free_variables(group, gate, selection).items():
        values = variable.transpose("chain", "draw", ...)
        if field == "temperature":
            columns[field] = values.values.ravel()
            continue
        flat = values.values.reshape(
            values.sizes["chain"] * values.sizes["draw"], *values.shape[2:]
        )
        labels = [values[name].values for name in values.dims[2:]]
        for place in np.ndindex(*flat.shape[1:]):
            name = ", ".join(str(label[i]) for label, i in zip(labels, place, strict=True))
            columns[f"{field}[{name}]"] = flat[(slice(None), *place)]
    return pd.DataFrame(columns)


def _on_the_line(draws: pd.DataFrame) -> pd.DataFrame:
    """Positive parameters by their logarithms, whose spread has no unit."""
    positive = [name for name in draws if str(name).startswith(("temperature", "variance"))]
    logs = draws[positive].apply(np.log).add_prefix("log ")
    return pd.concat([draws.drop(columns=positive), logs], axis=1)


def _spread(draws: pd.DataFrame) -> pd.Series:
    low, high = (draws.quantile(q) for q in (0.25, 0.75))
    return (high - low) / _QUARTILES


def _directions(posterior: pd.DataFrame, unit: pd.Series) -> tuple[Direction, ...]:
    """Principal axes of the posterior, in units of the prior, that are too wide."""
    centred = (posterior - posterior.median()) / unit
    width = (_TAIL * _spread(centred)).clip(lower=1e-12)
    clipped = centred.clip(-width, width, axis=1)
    variances, axes = np.linalg.eigh(np.cov(clipped.to_numpy(), rowvar=False))
    found = []
    for variance, axis in zip(variances[::-1], axes.T[::-1], strict=True):
        ratio = float(np.sqrt(variance))
        if ratio > LEFT_TO_THE_PRIOR:
            together = np.abs(clipped.corrwith(clipped @ axis).to_numpy()) >= _TOGETHER
            named = (axis**2 >= _NAMED) | together
            order = [i for i in np.argsort(-np.abs(axis), kind="stable") if named[i]]
            found.append(Direction(tuple(str(posterior.columns[i]) for i in order), ratio))
    return tuple(found)
