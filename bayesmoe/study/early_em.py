"""EM as published with the rates of the softmax gate: an estimator that stops early.

Nguyen, Nguyen & Ho (NeurIPS 2023, arXiv 2305.03288) end EM once a step changes the log-likelihood
by less than 1e-6 of its magnitude, and after 2000 steps in any case. With more experts than the
truth has, the likelihood is so flat that this is met long before a maximum. In a study this
estimator is therefore judged twice: ``converged`` says whether it stands at a maximum, by the
certificate of the MLE; and it is used, in medians and slopes, wherever its own rule ended it, since
that is the estimator whose rate was published; but not where it ran away with a gate that separates
the data, which has no end.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import xarray as xr

from bayesmoe.inference.em import run_em
from bayesmoe.inference.outcome import Status

#: the name of the estimator in plans and stores
EM = "em"
#: the published rule: a relative change of the log-likelihood, and a number of steps
TOLERANCE, MAX_STEPS = 1e-6, 2000

run_early_em = partial(run_em, tolerance=TOLERANCE, max_iterations=MAX_STEPS)

#: ends of EM short of a maximum: by the relative change, and by the number of steps
SHORT = (Status.STOPPED_EARLY.name.lower(), Status.MAX_ITERATIONS.name.lower())

#: log-likelihood units that the MLE may be below EM by rounding alone, relative to its magnitude
_ROUNDING = 1e-10


def used(results: xr.Dataset) -> xr.DataArray:
    """Which fits enter medians and slopes: those that converged; of EM also those in `SHORT`.

    Parameters
    ----------
    results
        A study's results, with the dimension ``estimator`` or one estimator selected.
    """
    short = results["status"].isin(SHORT) & (results["estimator"] == EM)
    return results["converged"] | short


def measure_gaps(results: xr.Dataset) -> pd.DataFrame:
    """How far below the MLE of the same data and starts EM stopped; empty without "em".

    Columns: scenario, gate, n_experts, n; ``fits`` in use of EM, how many of them ``short`` of a
    maximum, the median number of ``steps``; ``pairs`` of them and an MLE that converged; median,
    0.9 quantile and largest ``gap`` in log-likelihood over the pairs (``gap``, ``gap_90``,
    ``gap_max``); and in how many pairs EM stands higher (``above``): from the same points it may
    climb another hill.
    """
    names = [str(name) for name in results["estimator"].to_numpy()]
    if EM not in names:
        return pd.DataFrame()
    study = results.isel(prior=0)  # no prior enters
    axes = ["scenario", "gate", "n_experts", "n"]
    em, usable = study.sel(estimator=EM), used(study).sel(estimator=EM)
    gaps = np.full(usable.transpose(*axes, "replicate").shape, np.nan)
    if "mle" in names:
        mle = study.sel(estimator="mle")
        gap = (mle["log_likelihood"] - em["log_likelihood"]).where(usable & mle["converged"])
        gaps = gap.transpose(*axes, "replicate").to_numpy()
    keep = usable.transpose(*axes, "replicate").to_numpy()
    short = keep & em["status"].isin(SHORT).transpose(*axes, "replicate").to_numpy()
    steps = em["n_iterations"].transpose(*axes, "replicate").to_numpy()
    height = em["log_likelihood"].transpose(*axes, "replicate").to_numpy()
    names_of = {axis: study[axis].to_numpy().tolist() for axis in axes}
    return pd.DataFrame(
        {axis: values[i] for (axis, values), i in zip(names_of.items(), index, strict=True)}
        | _row(keep[index], short[index], steps[index], gaps[index], height[index])
        for index in np.ndindex(keep.shape[:-1])
    )


def _row(
    keep: np.ndarray, short: np.ndarray, steps: np.ndarray, gaps: np.ndarray, height: np.ndarray
) -> dict[str, float]:
    """One line of the table, over replicates."""
    pairs = gaps[np.isfinite(gaps)]
    middle, far, most = np.quantile(pairs, [0.5, 0.9, 1.0]).tolist() if pairs.size else 3 * [np.nan]
    above = gaps < -_ROUNDING * (1 + np.abs(height))
    return {
        "fits": int(keep.sum()),
        "short": int(short.sum()),
        "steps": float(np.median(steps[keep])) if keep.any() else np.nan,
        "pairs": len(pairs),
        "gap": middle,
        "gap_90": far,
        "gap_max": most,
        "above": int(above.sum()),
    }
