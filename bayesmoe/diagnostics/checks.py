"""One verdict on a posterior: every check with its number, its threshold and plain words.

Nothing here depends on how experts are named, but for the prior's influence, for which they are
named as in the densest draw. What cannot be computed is reported as not checked.
"""

from __future__ import annotations

from xarray import DataTree

from bayesmoe.core.model import MoE
from bayesmoe.diagnostics.model_checks import check_left_out
from bayesmoe.diagnostics.posterior import check_tree
from bayesmoe.diagnostics.prior_checks import check_determined, check_sensitivity
from bayesmoe.diagnostics.sampler_checks import (
    check_chains,
    check_divergences,
    check_effective,
    check_energy,
    check_modes,
    check_weights,
)
from bayesmoe.diagnostics.verdict import Checks


def check_posterior(model: MoE, tree: DataTree) -> Checks:
    """Judge a posterior: the sampler, the model and what the data determined.

    Parameters
    ----------
    model
        The model that was sampled.
    tree
        From `sample_posterior` or `sample_laplace`; with the groups that `sample_predictive` adds,
        the prior's influence is checked, too.

    Returns
    -------
    The checks, with thresholds `RHAT`, `ESS`, `DIVERGENCES`, `BFMI`, `PARETO_K`, `INFLUENTIAL`,
    `ELSEWHERE` and `UNIFORM` of `bayesmoe.diagnostics.verdict`.

    Raises
    ------
    ValueError
        If ``tree`` lacks a group or does not come from ``model``.
    """
    check_tree(model, tree)
    nuts = tree.attrs.get("method") != "laplace"
    sampler = (
        (check_effective, check_divergences, check_energy)
        if nuts
        else (check_weights, check_effective)
    )
    return Checks(
        (
            *([check_chains(model, tree)] if nuts else []),
            *(check(tree) for check in (*sampler, check_modes)),
            *check_left_out(model.gate, tree),
            check_sensitivity(model.gate, tree),
            check_determined(model.gate, tree),
        )
    )
