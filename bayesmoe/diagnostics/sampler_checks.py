"""Whether the sampler did its work: chains, effective draws, divergences, energy, modes."""

from __future__ import annotations

import numpy as np
from arviz_stats.base import array_stats
from xarray import DataTree

from bayesmoe.core.model import MoE
from bayesmoe.diagnostics.chain_modes import chain_modes
from bayesmoe.diagnostics.mixing import watched
from bayesmoe.diagnostics.verdict import (
    BFMI,
    DIVERGENCES,
    ELSEWHERE,
    ESS,
    PARETO_K,
    RHAT,
    Check,
    Verdict,
    all_alike,
    bound_text,
    judged,
    too_short,
)


def check_chains(model: MoE, tree: DataTree) -> Check:
    """Whether chains agree, and the modes that they are in if they do not."""
    if tree["posterior"].sizes["chain"] < 2:
        return Check("chains", Verdict.NOT_CHECKED, np.nan, "one chain cannot be compared")
    if short := too_short("chains", tree):
        return short
    with np.errstate(invalid="ignore", divide="ignore"):  # chains that never move: NaN
        rhat = array_stats.rhat(watched(tree), chain_axis=1, draw_axis=2)
    value = float(np.max(rhat))
    if np.isnan(value):
        return Check("chains", Verdict.FAILED, value, "a chain never moved")
    text = f"R-hat of quantities without labels is at most {bound_text(value, 3)} "
    text += f"(good to {RHAT.good})"
    modes = chain_modes(model, tree) if value > RHAT.fair else ()
    if len(modes) > 1:
        text += "; the chains are in different modes, so that their average is no posterior: "
        text += "; ".join(mode.text for mode in modes)
    return judged("chains", RHAT, value, text)


def check_effective(tree: DataTree) -> Check:
    """What the draws are worth."""
    name = "effective draws"
    if tree.attrs.get("method") == "laplace":
        least = float(tree.attrs["min_ess"])
    elif untold := too_short(name, tree) or all_alike(name, tree):
        return untold
    else:
        with np.errstate(invalid="ignore", divide="ignore"):
            quantities, axes = watched(tree), {"chain_axis": 1, "draw_axis": 2}
            bulk = array_stats.ess(quantities, **axes, method="bulk")
            tail = array_stats.ess(quantities, **axes, method="tail", prob=(0.05, 0.95))
        least = float(np.min([bulk, tail]))
    text = f"the draws are worth at least {bound_text(least, 0, np.floor)} independent ones "
    text += f"(good from {-ESS.good:.0f})"
    return judged(name, ESS, -least, text)


def check_divergences(tree: DataTree) -> Check:
    """The share of divergent transitions."""
    diverging = np.asarray(tree["sample_stats"]["diverging"])
    # of several transitions that lead to a draw more than one may have diverged
    number = int(tree.attrs.get("divergences", diverging.sum()))
    transitions = diverging.size * int(tree.attrs.get("thinning", 1))
    text = f"{number} of {transitions} transitions diverged"
    return judged("divergences", DIVERGENCES, number / transitions, text)


def check_energy(tree: DataTree) -> Check:
    """Whether NUTS explores the energies (Betancourt, arXiv 1604.00695)."""
    if untold := too_short("energy", tree) or all_alike("energy", tree):
        return untold
    if "bfmi" in tree.attrs:  # of thinned chains, whose draws change their energy more
        least = float(tree.attrs["bfmi"])
    else:
        least = float(np.min(array_stats.bfmi(tree["sample_stats"]["energy"].values)))
    text = f"the energy's fraction of missing information is {bound_text(least, 2, np.floor)} "
    text += f"(good from {-BFMI.good})"
    return judged("energy", BFMI, -least, text)


def check_weights(tree: DataTree) -> Check:
    """Whether importance weights may be trusted, and are worth what is taken."""
    k = float(tree.attrs["pareto_k"])
    text = f"Pareto k of the importance weights is {bound_text(k, 2)} (good to {PARETO_K.good})"
    check = judged("importance weights", PARETO_K, k, text)
    worth, taken = float(tree.attrs["min_ess"]), tree["sample_stats"]["lp"].size
    if check.verdict is not Verdict.PASSED or worth >= taken:
        return check
    text += (
        f", but the proposals are worth {bound_text(worth, 0, np.floor)} independent draws where "
    )
    text += f"{taken} are taken"
    return check._replace(verdict=Verdict.DOUBTFUL, text=text)


def check_modes(tree: DataTree) -> Check:
    """The share of the mass near modes that no chain reached."""
    number, share = int(tree.attrs["n_modes"]), float(tree.attrs["mode_weight"])
    if tree.attrs.get("method") == "laplace" or number == 1:
        text = f"{number} modes were found; draws come from all" if number > 1 else "one was found"
        return Check("modes", Verdict.PASSED, 0.0, text)
    if np.isnan(share):
        text = f"{number} modes were found; how much of the posterior is near each is not known "
        text += "where the density jumps: see whether the chains agree"
        return Check("modes", Verdict.NOT_CHECKED, np.nan, text)
    if tree.attrs.get("leaps"):
        text = f"{number} modes were found, between which chains leap; {1 - share:.0%} of the mass "
        text += "is near some where none was"
    else:
        text = f"{number} modes were found; by Laplace's approximation {1 - share:.0%} of the mass "
        text += "is near some where no chain started"
    return judged("modes", ELSEWHERE, 1 - share, text)
