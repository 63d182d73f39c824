"""One verdict on a posterior: every check with its number, its threshold and plain words.

Nothing here depends on how experts are named, but for the prior's influence, for which they are
named as in the densest draw. What cannot be computed is reported as not checked.
"""

from __future__ import annotations

import enum
import logging
from typing import NamedTuple

import arviz_stats
import numpy as np
import pandas as pd
import scipy.stats
import xarray as xr
from arviz_stats.base import array_stats
from xarray import DataTree

from bayesmoe.core.gate import Gate
from bayesmoe.core.model import MoE
from bayesmoe.diagnostics.alignment import align
from bayesmoe.diagnostics.chain_modes import chain_modes
from bayesmoe.diagnostics.determination import densest_draw, determination, free_parameters
from bayesmoe.diagnostics.left_out import LEAST_DRAWS, groups_by, left_out
from bayesmoe.diagnostics.mixing import watched
from bayesmoe.diagnostics.posterior import check_tree, tree_selection

_MOST_LISTED = 4  # parameters named in a sentence
_CONSTANT = 1e-12  # relative, of a log density that varies by rounding alone
_LEAST_LENGTH = 4  # draws of a chain, of which R-hat compares the halves

#: the names of the checks of calibration in groups of rows, and of influential rows
GIVEN_X, INFLUENCE = "calibration given x", "influential rows"
_CALIBRATION = "calibration"


class Verdict(enum.IntEnum):
    """How a check ended; the worst of several is the largest."""

    PASSED = 0
    NOT_CHECKED = 1
    DOUBTFUL = 2
    FAILED = 3

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", " ")


class Check(NamedTuple):
    """One check: its name, verdict, the number judged (NaN if there is none) and a sentence."""

    name: str
    verdict: Verdict
    value: float
    text: str


class Checks(NamedTuple):
    """All checks of one posterior; prints as a list in plain words."""

    checks: tuple[Check, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of all."""
        return max(check.verdict for check in self.checks)

    def to_frame(self) -> pd.DataFrame:
        """One row per check, columns ``verdict``, ``value`` and ``text``."""
        rows = [(c.name, c.verdict.label, c.value, c.text) for c in self.checks]
        return pd.DataFrame(rows, columns=["check", "verdict", "value", "text"]).set_index("check")

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"{c.verdict.label:>11}  {c.name:<{width}}  {c.text}" for c in self.checks]
        return "\n".join([*lines, f"{self.verdict.label:>11}  in all"])


class _Limits(NamedTuple):
    """A number passes up to ``good`` and is doubtful up to ``fair``."""

    good: float
    fair: float

    def judge(self, value: float) -> Verdict:
        if np.isnan(value):
            return Verdict.NOT_CHECKED
        if value <= self.good:
            return Verdict.PASSED
        return Verdict.DOUBTFUL if value <= self.fair else Verdict.FAILED


#: rank-normalised split R-hat, the largest (Vehtari et al., Bayesian Analysis 2021)
RHAT = _Limits(1.01, 1.05)
#: bulk and tail effective sample size, the least; negative, since more is better
ESS = _Limits(-400.0, -100.0)
#: share of divergent transitions
DIVERGENCES = _Limits(0.001, 0.02)
#: energy fraction of missing information, the least of the chains; negative
BFMI = _Limits(-0.3, -0.2)
#: Pareto k of importance weights, and the share of rows whose k is above it
PARETO_K = _Limits(0.5, 0.7)
INFLUENTIAL = _Limits(0.0, 0.02)
#: share of the mass that is not near the mode sampled; an approximation, so that it fails none
ELSEWHERE = _Limits(0.05, 1.0)
#: p-value of a uniform PIT; negative
UNIFORM = _Limits(-0.01, -1e-4)


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
    `ELSEWHERE` and `UNIFORM` of this module.

    Raises
    ------
    ValueError
        If ``tree`` lacks a group or does not come from ``model``.
    """
    check_tree(model, tree)
    nuts = tree.attrs.get("method") != "laplace"
    sampler = (_effective, _divergences, _energy) if nuts else (_weights, _effective)
    return Checks(
        (
            *([_chains(model, tree)] if nuts else []),
            *(check(tree) for check in (*sampler, _modes)),
            *_left_out(model.gate, tree),
            _sensitivity(model.gate, tree),
            _determined(model.gate, tree),
        )
    )


def _check(name: str, limits: _Limits, value: float, text: str) -> Check:
    return Check(name, limits.judge(value), abs(value), text)


def _bound(value: float, digits: int, outwards: np.ufunc = np.ceil) -> str:
    """Rounded away from what is good: a number beyond a limit is not shown as the limit."""
    return f"{outwards(round(value * 10**digits, 6)) / 10**digits:.{digits}f}"


def _missing(name: str, group: str) -> Check:
    text = f"no group {group!r} in the tree; add it with bayesmoe.sample_predictive"
    return Check(name, Verdict.NOT_CHECKED, np.nan, text)


def _too_short(name: str, tree: DataTree) -> Check | None:
    """What is said of chains too short for `name` to be computed."""
    length = tree["posterior"].sizes["draw"]
    if length >= _LEAST_LENGTH:
        return None
    text = f"too few draws in each chain, {length}; {_LEAST_LENGTH} are needed"
    return Check(name, Verdict.NOT_CHECKED, np.nan, text)


def _too_few(name: str, tree: DataTree) -> Check | None:
    """What is said of draws too few for `name`, however many chains they are of."""
    number = tree["sample_stats"]["lp"].size
    if number >= LEAST_DRAWS:
        return None
    text = f"too few draws in all, {number}; {LEAST_DRAWS} are needed"
    return Check(name, Verdict.NOT_CHECKED, np.nan, text)


# --- the sampler


def _chains(model: MoE, tree: DataTree) -> Check:
    if tree["posterior"].sizes["chain"] < 2:
        return Check("chains", Verdict.NOT_CHECKED, np.nan, "one chain cannot be compared")
    if short := _too_short("chains", tree):
        return short
    with np.errstate(invalid="ignore", divide="ignore"):  # chains that never move: NaN
        rhat = array_stats.rhat(watched(tree), chain_axis=1, draw_axis=2)
    value = float(np.max(rhat))
    if np.isnan(value):
        return Check("chains", Verdict.FAILED, value, "a chain never moved")
    text = f"R-hat of quantities without labels is at most {_bound(value, 3)} (good to {RHAT.good})"
    modes = chain_modes(model, tree) if value > RHAT.fair else ()
    if len(modes) > 1:
        text += "; the chains are in different modes, so that their average is no posterior: "
        text += "; ".join(mode.text for mode in modes)
    return _check("chains", RHAT, value, text)


def _effective(tree: DataTree) -> Check:
    name = "effective draws"
    if tree.attrs.get("method") == "laplace":
        least = float(tree.attrs["min_ess"])
    elif short := _too_short(name, tree):
        return short
    else:
        with np.errstate(invalid="ignore", divide="ignore"):
            quantities, axes = watched(tree), {"chain_axis": 1, "draw_axis": 2}
            bulk = array_stats.ess(quantities, **axes, method="bulk")
            tail = array_stats.ess(quantities, **axes, method="tail", prob=(0.05, 0.95))
        least = float(np.min([bulk, tail]))
    text = f"the draws are worth at least {_bound(least, 0, np.floor)} independent ones "
    text += f"(good from {-ESS.good:.0f})"
    return _check(name, ESS, -least, text)


def _divergences(tree: DataTree) -> Check:
    diverging = np.asarray(tree["sample_stats"]["diverging"])
    share = float(np.mean(diverging))
    text = f"{int(diverging.sum())} of {diverging.size} transitions diverged"
    return _check("divergences", DIVERGENCES, share, text)


def _energy(tree: DataTree) -> Check:
    if short := _too_short("energy", tree):
        return short
    least = float(np.min(array_stats.bfmi(tree["sample_stats"]["energy"].values)))
    text = f"the energy's fraction of missing information is {_bound(least, 2, np.floor)} "
    text += f"(good from {-BFMI.good})"
    return _check("energy", BFMI, -least, text)


def _weights(tree: DataTree) -> Check:
    k = float(tree.attrs["pareto_k"])
    text = f"Pareto k of the importance weights is {_bound(k, 2)} (good to {PARETO_K.good})"
    check = _check("importance weights", PARETO_K, k, text)
    worth, taken = float(tree.attrs["min_ess"]), tree["sample_stats"]["lp"].size
    if check.verdict is not Verdict.PASSED or worth >= taken:
        return check
    text += f", but the proposals are worth {_bound(worth, 0, np.floor)} independent draws where "
    text += f"{taken} are taken"
    return check._replace(verdict=Verdict.DOUBTFUL, text=text)


def _modes(tree: DataTree) -> Check:
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
    return _check("modes", ELSEWHERE, 1 - share, text)


# --- the model


def _left_out(gate: Gate, tree: DataTree) -> tuple[Check, ...]:
    """What leaving each row out in turn tells, by importance: influence and calibration."""
    few = [_too_few(name, tree) for name in (INFLUENCE, _CALIBRATION, GIVEN_X)]
    if any(few):
        return tuple(check for check in few if check)
    rows, n_draws = left_out(gate, tree), tree["sample_stats"]["lp"].size
    conditional = _calibration_given_x(rows.pit, tree["constant_data"].to_dataset()["x"])
    return _influence(rows.pareto_k, n_draws), _calibration(rows.pit), conditional


def _influence(k: np.ndarray, n_draws: int) -> Check:
    """Rows that the posterior hangs on: their leave-one-out weights have no finite variance."""
    limit = influence_limit(n_draws)
    bad = np.flatnonzero(k > limit)
    text = f"{len(bad)} of {len(k)} rows have a Pareto k above {limit:.2f}" + (
        f", the first is row {bad[0] + 1}, counted from 1: the posterior without them may differ"
        if len(bad)
        else ""
    )
    return _check(INFLUENCE, INFLUENTIAL, len(bad) / len(k), text)


def influence_limit(n_draws: int) -> float:
    """The Pareto k up to which so many draws carry weights (Vehtari et al., JMLR 2024)."""
    return float(min(PARETO_K.fair, 1 - 1 / np.log10(n_draws)))


def _calibration(pit: np.ndarray) -> Check:
    """Whether P(Y <= y|x) of the rows, each left out, are uniform (Kolmogorov and Smirnov)."""
    result = scipy.stats.kstest(pit, "uniform")
    text = (
        f"P(Y <= y|x) of rows left out is off a uniform law by {result.statistic:.3f} at most, "
        f"p = {result.pvalue:.2g}"
    )
    return _check(_CALIBRATION, UNIFORM, -float(result.pvalue), text)


def _calibration_given_x(pit: np.ndarray, x: xr.DataArray) -> Check:
    """The same in groups of rows by each covariate, with Bonferroni's correction."""
    columns = zip(
        x["covariate"].to_numpy(), x.transpose("covariate", "obs").to_numpy(), strict=True
    )
    groups = [(name, one) for name, values in columns for one in groups_by(values, pit)]
    if not groups:
        text = f"{len(pit)} rows are too few to be looked at in groups; 20 are needed"
        return Check(GIVEN_X, Verdict.NOT_CHECKED, np.nan, text)
    name, worst = groups[int(np.argmin([group.pvalue for _, group in groups]))]
    pvalue = float(np.minimum(1.0, len(groups) * worst.pvalue))  # NaN stays NaN
    text = (
        f"the same in {len(groups)} groups of rows, worst where covariate {name} is in "
        f"[{worst.low:.4g}, {worst.high:.4g}]: p = {pvalue:.2g} after Bonferroni's correction"
    )
    return _check(GIVEN_X, UNIFORM, -pvalue, text)


# --- the prior


def _sensitivity(gate: Gate, tree: DataTree) -> Check:
    name = "prior sensitivity"
    if "log_prior" not in tree.children:
        return _missing(name, "log_prior")
    if few := _too_few(name, tree):
        return few
    table = power_scaling(gate, tree)
    conflict = _labels(table, "conflict")
    weak = _labels(table, "weak likelihood")
    if not (conflict or weak):
        text = "no parameter moves when the prior is given more or less weight"
        return Check(name, Verdict.PASSED, float(table["prior"].max()), text)
    parts = [f"prior and data both move {_listed(conflict)}"] if conflict else []
    parts += [f"the prior more than the data moves {_listed(weak)}"] if weak else []
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


def _determined(gate: Gate, tree: DataTree) -> Check:
    name = "determined by data"
    if "prior" not in tree.children:
        return _missing(name, "prior")
    if few := _too_few(name, tree):
        return few
    found = determination(gate, tree)
    widest = float(found.spreads["ratio"].max())
    if not found.left_to_the_prior:
        text = f"no parameter keeps more than {widest:.0%} of its prior's spread"
        return Check(name, Verdict.PASSED, widest, text)
    parts = [_listed(list(direction.parameters)) for direction in found.left_to_the_prior]
    first = found.left_to_the_prior[0].ratio
    text = (
        f"the data hardly determine {'; '.join(parts)} (the posterior is {first:.2g} times as wide "
        "as the prior there)"
    )
    return Check(name, Verdict.DOUBTFUL, first, text)


def _listed(names: list[str]) -> str:
    shown = names[:_MOST_LISTED]
    more = len(names) - len(shown)
    if more:
        return f"{', '.join(shown)} and {more} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} with {shown[-1]}"
