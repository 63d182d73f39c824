"""One model on one's own data: MLE, MAP and posterior, experts named alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import arviz_stats
import jax
import numpy as np
import pandas as pd
from jax import Array
from xarray import DataTree

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.validate import as_key, check_estimable, check_observations
from bayesmoe.data.table import Axis, Table
from bayesmoe.diagnostics.alignment import align
from bayesmoe.diagnostics.checks import check_posterior
from bayesmoe.diagnostics.determination import free_variables
from bayesmoe.diagnostics.posterior import sample_posterior, tree_selection
from bayesmoe.diagnostics.predictive import sample_prior
from bayesmoe.diagnostics.verdict import Checks
from bayesmoe.inference.point import Fit, fit_map, fit_mle
from bayesmoe.inference.posterior import check_proper
from bayesmoe.inference.uncertainty import standard_errors


class Analysis(NamedTuple):
    """The three estimates of one model.

    Attributes
    ----------
    model, table
        What was fitted to what.
    mle, map
        Point estimates with their evidence.
    mle_measure
        The MLE with its experts named as the MAP's.
    posterior
        From `sample_posterior`, experts named as the MAP's, with the groups ``prior`` and
        ``log_prior``.
    checks
        The verdict on the posterior.
    axis
        What curves run along, where covariates are derived from columns by a formula.
    """

    model: MoE
    table: Table
    mle: Fit
    map: Fit
    mle_measure: MixingMeasure
    posterior: DataTree
    checks: Checks
    axis: Axis | None = None


def analyse(
    model: MoE,
    table: Table,
    *,
    key: Array | int = 0,
    axis: Axis | None = None,
    observe: Callable[[str], None] = lambda text: None,
) -> Analysis:
    """Fit MLE and MAP, then sample the posterior from the MAP.

    ``observe`` is called with a line of text before every lengthy step.

    Raises
    ------
    ValueError
        If the prior is improper or the data cannot determine the model; nothing is computed then.
    """
    check_proper(model)
    rows = check_observations(table.x, table.y)
    check_estimable(*rows, model.layout(table.x.shape[1]).size)
    fit_key, sample_key = jax.random.split(as_key(key))
    prior_key = jax.random.fold_in(sample_key, 1)
    x, y = table.x.to_numpy(), table.y.to_numpy()
    observe("MLE")
    mle = fit_mle(model, x, y, key=fit_key)
    observe("MAP")
    map_ = fit_map(model, x, y, key=fit_key, starts=mle.measure)
    observe("posterior")
    posterior = sample_posterior(model, table.x, y, key=sample_key, start=map_)
    observe("checks")
    whole = sample_prior(model, posterior, key=prior_key)
    # checks of what is kept: to name what the data leave open takes labels
    whole = align(whole, model.gate, map_.measure)
    return Analysis(
        model,
        table,
        mle,
        map_,
        align(mle.measure, model.gate, map_.measure, x),
        whole,
        check_posterior(model, whole),
        axis,
    )


def estimates(analysis: Analysis) -> pd.DataFrame:
    """MLE and MAP on the scale of the data: one row per parameter, columns ``mle``, ``map``."""
    names = [str(name) for name in analysis.table.x.columns]
    columns = {
        "mle": _labelled(analysis.mle_measure, analysis.model, names),
        "map": _labelled(analysis.map.measure, analysis.model, names),
    }
    return pd.DataFrame(columns).rename_axis("parameter")


def mle_errors(analysis: Analysis) -> pd.Series:
    """Standard errors of the MLE by the names of `estimates`; NaN if it is not a maximum.

    From `standard_errors`: infinite where the data do not determine the parameter, NaN where it
    rests on the variance floor.
    """
    names = [str(name) for name in analysis.table.x.columns]
    found = pd.Series(_labelled(analysis.mle_measure, analysis.model, names), name="mle_se")
    if not analysis.mle.converged:
        return found * np.nan
    named = dataclasses.replace(analysis.mle, measure=analysis.mle_measure)
    x, y = analysis.table.x.to_numpy(), analysis.table.y.to_numpy()
    errors = standard_errors(analysis.model, named, x, y)
    return pd.Series(_labelled(errors.measure, analysis.model, names), name="mle_se")


def _labelled(measure: MixingMeasure, model: MoE, names: list[str]) -> dict[str, float]:
    """Free parameters by the names `arviz_stats.summary` gives them."""
    selection, every = model.selection.resolve(len(names)), range(len(names))
    selected = {"gate_slope": selection.gate, "slope": selection.experts}
    entries: dict[str, float] = {}
    for field in FIELDS:
        values = np.asarray(getattr(measure, field))
        if field == "temperature":
            if model.gate.has_temperature:
                entries[field] = float(values)
            continue
        free = measure.n_experts - field.startswith("gate_")
        for expert in range(free):
            if values.ndim == 1:
                entries[f"{field}[{expert}]"] = float(values[expert])
            else:
                columns = selected[field]
                for column in every if columns is None else columns:
                    value = float(values[expert, column])
                    entries[f"{field}[{expert}, {names[column]}]"] = value
    return entries


def posterior_summary(posterior: DataTree, gate: Gate) -> pd.DataFrame:
    """Mean, standard deviation, 90 % interval, ESS, R-hat and Monte Carlo errors of aligned draws.

    One row for each parameter and one for the log-likelihood, which does not depend on how experts
    are named.
    """
    variables = free_variables(posterior["posterior"], gate, tree_selection(posterior))
    parts = [variable.to_dataset(name=name) for name, variable in variables.items()]
    parts.append(posterior["sample_stats"].to_dataset()[["log_likelihood"]])
    tables = [
        arviz_stats.summary(part, ci_prob=0.9, ci_kind="eti", round_to="none") for part in parts
    ]
    return pd.concat(tables).rename_axis("parameter")
