"""Whether the model describes the rows: influence, calibration, each row left out in turn."""

from __future__ import annotations

import numpy as np
import scipy.stats
import xarray as xr
from xarray import DataTree

from bayesmoe.core.gate import Gate
from bayesmoe.diagnostics.left_out import LEAST_ROWS, groups_by, left_out
from bayesmoe.diagnostics.verdict import (
    INFLUENTIAL,
    PARETO_K,
    UNIFORM,
    Check,
    Verdict,
    judged,
    too_few,
)

#: the names of the checks of calibration in groups of rows, and of influential rows
GIVEN_X, INFLUENCE = "calibration given x", "influential rows"
_CALIBRATION = "calibration"


def check_left_out(gate: Gate, tree: DataTree) -> tuple[Check, ...]:
    """What leaving each row out in turn tells, by importance: influence and calibration."""
    few = [too_few(name, tree) for name in (INFLUENCE, _CALIBRATION, GIVEN_X)]
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
    return judged(INFLUENCE, INFLUENTIAL, len(bad) / len(k), text)


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
    return judged(_CALIBRATION, UNIFORM, -float(result.pvalue), text)


def _calibration_given_x(pit: np.ndarray, x: xr.DataArray) -> Check:
    """The same in groups of rows by each covariate, with Bonferroni's correction."""
    columns = zip(
        x["covariate"].to_numpy(), x.transpose("covariate", "obs").to_numpy(), strict=True
    )
    groups = [(name, one) for name, values in columns for one in groups_by(values, pit)]
    if not groups:
        text = f"{len(pit)} rows are too few, or of too few values, for groups of {LEAST_ROWS}"
        return Check(GIVEN_X, Verdict.NOT_CHECKED, np.nan, text)
    name, worst = groups[int(np.argmin([group.pvalue for _, group in groups]))]
    pvalue = float(np.minimum(1.0, len(groups) * worst.pvalue))  # NaN stays NaN
    text = (
        f"the same in {len(groups)} groups of rows, worst where covariate {name} is in "
        f"[{worst.low:.4g}, {worst.high:.4g}]: p = {pvalue:.2g} after Bonferroni's correction"
    )
    return judged(GIVEN_X, UNIFORM, -pvalue, text)
