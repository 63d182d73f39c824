"""What checks are made of: verdicts, limits, and what is said where there is no number."""

from __future__ import annotations

import enum
from typing import NamedTuple

import numpy as np
import pandas as pd
from xarray import DataTree

from bayesmoe.diagnostics.left_out import LEAST_DRAWS

_MOST_LISTED = 4  # parameters named in a sentence
_LEAST_LENGTH = 4  # draws of a chain, of which R-hat compares the halves


class Verdict(enum.IntEnum):
    """How a check ended; the worst of several is the largest."""

    PASSED = 0
    NOT_CHECKED = 1
    DOUBTFUL = 2
    FAILED = 3

    @property
    def label(self) -> str:
        """In words."""
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


class Limits(NamedTuple):
    """A number passes up to ``good`` and is doubtful up to ``fair``."""

    good: float
    fair: float

    def judge(self, value: float) -> Verdict:
        """NaN is not checked."""
        if np.isnan(value):
            return Verdict.NOT_CHECKED
        if value <= self.good:
            return Verdict.PASSED
        return Verdict.DOUBTFUL if value <= self.fair else Verdict.FAILED


#: rank-normalised split R-hat, the largest (Vehtari et al., Bayesian Analysis 2021)
RHAT = Limits(1.01, 1.05)
#: bulk and tail effective sample size, the least; negative, since more is better
ESS = Limits(-400.0, -100.0)
#: share of divergent transitions
DIVERGENCES = Limits(0.001, 0.02)
#: energy fraction of missing information, the least of the chains; negative
BFMI = Limits(-0.3, -0.2)
#: Pareto k of importance weights, and the share of rows whose k is above it
PARETO_K = Limits(0.5, 0.7)
INFLUENTIAL = Limits(0.0, 0.02)
#: share of the mass that is not near the mode sampled; an approximation, so that it fails none
ELSEWHERE = Limits(0.05, 1.0)
#: p-value of a uniform PIT; negative
UNIFORM = Limits(-0.01, -1e-4)


def judged(name: str, limits: Limits, value: float, text: str) -> Check:
    """The check of a number; shown without the sign that makes more better."""
    return Check(name, limits.judge(value), abs(value), text)


def bound_text(value: float, digits: int, outwards: np.ufunc = np.ceil) -> str:
    """Rounded away from what is good: a number beyond a limit is not shown as the limit."""
    return f"{outwards(round(value * 10**digits, 6)) / 10**digits:.{digits}f}"


def missing_group(name: str, group: str) -> Check:
    """What is said where the tree lacks what `name` needs."""
    text = f"no group {group!r} in the tree; add it with bayesmoe.sample_predictive"
    return Check(name, Verdict.NOT_CHECKED, np.nan, text)


def too_short(name: str, tree: DataTree) -> Check | None:
    """What is said of chains too short for `name` to be computed."""
    length = tree["posterior"].sizes["draw"]
    if length >= _LEAST_LENGTH:
        return None
    text = f"too few draws in each chain, {length}; {_LEAST_LENGTH} are needed"
    return Check(name, Verdict.NOT_CHECKED, np.nan, text)


def too_few(name: str, tree: DataTree) -> Check | None:
    """What is said of draws too few for `name`, however many chains they are of, or all alike."""
    number = tree["sample_stats"]["lp"].size
    if number >= LEAST_DRAWS:
        return all_alike(name, tree)
    text = f"too few draws in all, {number}; {LEAST_DRAWS} are needed"
    return Check(name, Verdict.NOT_CHECKED, np.nan, text)


def all_alike(name: str, tree: DataTree) -> Check | None:
    """What is said of chains that never moved, from one place."""
    if np.ptp(np.asarray(tree["sample_stats"]["lp"])) > 0:
        return None
    return Check(name, Verdict.NOT_CHECKED, np.nan, "all draws are the same")


def listed_text(names: list[str]) -> str:
    """Some names in a sentence."""
    shown = names[:_MOST_LISTED]
    more = len(names) - len(shown)
    if more:
        return f"{', '.join(shown)} and {more} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} with {shown[-1]}"
