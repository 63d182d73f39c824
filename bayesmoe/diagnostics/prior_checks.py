"""What the prior decides: its influence, and directions that the data leave to it."""

from __future__ import annotations

import logging

import arviz_stats
import numpy as np
import pandas as pd
import xarray as xr
from xarray import DataTree

from bayesmoe.core.gate import Gate
from bayesmoe.diagnostics.alignment import align
from bayesmoe.diagnostics.determination import densest_draw, determination, free_parameters
from bayesmoe.diagnostics.posterior import tree_selection
from bayesmoe.diagnostics.verdict import Check, Verdict, listed_text, missing_group, too_few

_CONSTANT = 1e-12  # relative, of a log density that varies by rounding alone


def check_sensitivity(gate: Gate, tree: DataTree) -> Check:
    """Whether conclusions move with the prior."""
    name = "prior sensitivity"
    if "log_prior" not in tree.children:
        return missing_group(name, "log_prior")
    if few := too_few(name, tree):
        return few
    table = power_scaling(gate, tree)
    conflict = _labels(table, "conflict")
    weak = _labels(table, "weak likelihood")
    if not (conflict or weak):
        text = "no parameter moves when the prior is given more or less weight"
        return Check(name, Verdict.PASSED, float(table["prior"].max()), text)
    parts = [f"prior and data both move {listed_text(conflict)}"] if conflict else []
    parts += [f"the prior more than the data moves {listed_text(weak)}"] if weak else []
    return Check(name, Verdict.DOUBTFUL, float(table["prior"].max()), "; ".join(parts))


def power_scaling(gate: Gate, tree: DataTree) -> pd.DataFrame:
    """ArviZ's table of power-scaling sensitivity (Kallioinen et al., Stat. Comput. 2024).

    Parameters
    ----------
    gate
        The gate of the model that was sampled.
    tree
        With the group ``log_prior``; experts are named as in its densest draw.

    Returns
    -------
    One row for each free parameter; columns ``prior`` and ``likelihood``, how far its posterior
    moves when either gets more or less weight, and ``diagnosis``.
    """
    named = align(tree, gate, densest_draw(tree))
    draws = free_parameters(named["posterior"], gate, tree_selection(tree))
    shape = tree["sample_stats"]["lp"].shape
    # by number: xarray refuses names of columns such as "km/h" in a tree
    columns = {
        f"{i:06d}": (("chain", "draw"), values.reshape(shape))
        for i, values in enumerate(draws.to_numpy().T)
    }
    named["posterior"] = DataTree(xr.Dataset(columns))
    table = _sensitivities(named)
    return table.set_axis([str(draws.columns[int(number)]) for number in table.index])


def _sensitivities(tree: DataTree) -> pd.DataFrame:
    log_prior = np.sum(
        [block.to_numpy() for block in tree["log_prior"].to_dataset().values()], axis=0
    )
    if np.ptp(log_prior) <= _CONSTANT * np.max(np.abs(log_prior)):
        # more or less of a uniform prior is the same prior: ArviZ wants its logarithm to vary
        of_likelihood = arviz_stats.psense(tree, group="likelihood")
        values = pd.Series({name: float(value) for name, value in of_likelihood.items()})
        return pd.DataFrame({"prior": 0.0, "likelihood": values.round(6), "diagnosis": "✓"})
    log = logging.getLogger("arviz_stats")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of what is reported here
    try:
        table: pd.DataFrame = arviz_stats.psense_summary(tree, round_to=6)
    finally:
        log.setLevel(level)
    return table


def _labels(table: pd.DataFrame, diagnosis: str) -> list[str]:
    return [str(name) for name in table.index[table["diagnosis"].str.contains(diagnosis)]]


def check_determined(gate: Gate, tree: DataTree) -> Check:
    """Whether the posterior is the prior along some direction."""
    name = "determined by data"
    if "prior" not in tree.children:
        return missing_group(name, "prior")
    if few := too_few(name, tree):
        return few
    found = determination(gate, tree)
    widest = float(found.spreads["ratio"].max())
    if not found.left_to_the_prior:
        text = f"no parameter keeps more than {widest:.0%} of its prior's spread"
        return Check(name, Verdict.PASSED, widest, text)
    parts = [listed_text(list(direction.parameters)) for direction in found.left_to_the_prior]
    first = found.left_to_the_prior[0].ratio
    text = (
        f"the data hardly determine {'; '.join(parts)} (the posterior is {first:.2g} times as wide "
        "as the prior there)"
    )
    return Check(name, Verdict.DOUBTFUL, first, text)
