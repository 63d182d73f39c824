"""Which model to prefer: the simplest whose elpd differs from the best by noise alone.

Sivula, Magnusson, Matamoros & Vehtari (Uncertainty in Bayesian leave-one-out cross-validation based
model comparison, arXiv 2008.10296): the standard error of a difference in elpd says little where
the difference is small, and is too small where there are few rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import arviz_stats
import numpy as np
import pandas as pd
from arviz_stats.utils import ELPDData

#: a difference in elpd below this is noise, whatever its standard error;
SMALL = 4.0
#: so is one below as many of its standard errors
N_ERRORS = 2.0

#: the share of the mass near the mode where the chains started from which on an elpd is the model's
LEAST_MASS = 0.5

_FEW_ROWS = 100  # below, standard errors of differences are too small
_MAIN_MODE = 0.95  # the share of the mass from which on other modes need no mention
_MANY_MODELS = 11  # beyond, the best of them owes something to chance

_ENDINGS = {
    "at_variance_floor": "rests on the variance floor",
    "separated": "is separated",
    "temperature_to_zero": "has a temperature that goes to zero",
    "empty_expert": "has an empty expert",
    "max_iterations": "ran out of iterations",
    "stalled": "stalled short of a maximum",
    "negative_curvature": "stopped at a saddle point",
}


class Recommendation(NamedTuple):
    """The name of the model to take (None if no elpd is reliable), and the reason in words."""

    model: str | None
    text: str


def is_noise(difference: float, standard_error: float) -> bool:
    """Whether a difference in elpd may be due to chance."""
    return abs(difference) < SMALL or abs(difference) < N_ERRORS * standard_error


def differences(results: Mapping[str, ELPDData]) -> pd.DataFrame:
    """Differences in elpd to the best model, standard errors, whether noise, stacking weights.

    Parameters
    ----------
    results
        By model, with values for each row.

    Returns
    -------
    One row per model, columns ``elpd_diff`` (at most zero), ``elpd_diff_se``, ``noise`` and
    ``weight``.
    """
    pointwise = pd.DataFrame({name: np.ravel(loo.elpd_i) for name, loo in results.items()})
    best = pointwise.sum().idxmax() if len(results) else None
    apart = pointwise.sub(pointwise[best], axis=0) if len(results) else pointwise
    frame = pd.DataFrame(
        {"elpd_diff": apart.sum(), "elpd_diff_se": np.sqrt(len(apart) * apart.var(ddof=0))}
    )
    pairs = zip(frame["elpd_diff"], frame["elpd_diff_se"], strict=True)
    frame["noise"] = [is_noise(*pair) for pair in pairs]
    frame["weight"] = stack(results)
    return frame


def stack(results: Mapping[str, ELPDData]) -> pd.Series:
    """Stacking weights; ArviZ compares two models or more."""
    if len(results) < 2:
        return pd.Series(1.0, index=list(results))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of many models: told in `recommend`
        warnings.simplefilter("ignore", DeprecationWarning)  # ArviZ's own use of pandas
        table = arviz_stats.compare(dict(results), method="stacking")
    return table["weight"].clip(lower=0.0)


def recommend(frame: pd.DataFrame, n_rows: int) -> Recommendation:
    """Choose a model, and say why.

    Parameters
    ----------
    frame
        One row per model: the columns of `Comparison.to_frame` but ``recommended``.
    n_rows
        The number of observations.
    """
    usable = frame[frame["reliable"]].sort_values("elpd", ascending=False, kind="stable")
    left_out = [_unreliable(name, row) for name, row in frame[~frame["reliable"]].iterrows()]
    if usable.empty:
        text = "No model can be recommended, since no elpd is reliable."
        return Recommendation(None, "\n".join([text, *left_out]))
    close = usable[usable["noise"]]
    simplest = close.sort_values(["n_parameters", "n_undetermined", "elpd"],
                                 ascending=[True, True, False], kind="stable")  # fmt: skip
    name, best = str(simplest.index[0]), str(usable.index[0])
    lines = [
        _choice(name, best, close, alone=len(usable) == 1),
        *_listed("Noise, and no reason to prefer either", close.drop(index=best), best),
        *_listed("More than noise", usable[~usable["noise"]], best),
        _rule(len(usable), n_rows),
        *left_out,
        *(line for each, row in usable.iterrows() for line in _caveats(str(each), row)),
    ]
    return Recommendation(name, "\n".join(lines))


def _choice(name: str, best: str, close: pd.DataFrame, alone: bool) -> str:
    row: Any = close.loc[name]
    head = f"Recommended: {name} ({row['n_parameters']} identifiable parameters)."
    if alone:
        return f"{head} Its elpd of {row['elpd']:.1f} is the only one that is reliable."
    if len(close) == 1:
        return f"{head} Its elpd of {row['elpd']:.1f} is the best by more than noise."
    if name == best:
        return (
            f"{head} Its elpd of {row['elpd']:.1f} is the best, and no model within noise of it is "
            "simpler."
        )
    return (
        f"{head} It is the simplest whose elpd differs from the best by noise alone: "
        f"{_difference(row)} from {best}."
    )


def _listed(what: str, rows: pd.DataFrame, best: str) -> list[str]:
    if rows.empty:
        return []
    named = (f"{name} {_difference(row)}" for name, row in rows.iterrows())
    return [f"{what} (elpd less that of {best}): {'; '.join(named)}."]


def _difference(row: pd.Series) -> str:
    return f"{row['elpd_diff']:.1f} ± {row['elpd_diff_se']:.1f}"


def _rule(n_models: int, n_rows: int) -> str:
    rule = (
        f"Rule: a difference in elpd is noise below {SMALL:g}, or below {N_ERRORS:g} of its "
        "standard errors (given after ±)."
    )
    if n_models > _MANY_MODELS:
        rule += f" The best of {n_models} models owes part of its lead to having been chosen."
    if n_models > 1 and n_rows < _FEW_ROWS:
        rule += f" With {n_rows} rows these errors tend to be too small: a difference may be noise"
        rule += " though it is not called so."
    return rule


def _unreliable(name: object, row: pd.Series) -> str:
    if row["posterior_status"] != "converged":
        reason = f"its posterior is {str(row['posterior_status']).replace('_', ' ')}"
    elif row["mode_weight"] < LEAST_MASS:
        reason = (
            "the modes of its posterior near which chains started have "
            f"{row['mode_weight']:.0%} of the mass"
        )
    else:
        left = row["bad_rows"] - row["refitted_rows"]
        rows = "1 row has" if left == 1 else f"{left} rows have"
        reason = f"{rows} a bad Pareto k and no refit that converged"
    return f"Left out: {name}, whose elpd of {row['elpd']:.1f} is unreliable: {reason}."


def _caveats(name: str, row: Any) -> list[str]:
    """What to beware of in a model that the choice rests on."""
    found = []
    if row["mode_weight"] < _MAIN_MODE:
        found.append(
            "the modes of its posterior near which chains started have "
            f"{row['mode_weight']:.0%} of the mass, and the others may not have been reached"
        )
    if row["checks"] == "failed":
        found.append("a check of its posterior failed: see its checks")
    if row["mle_status"] != "converged":
        ending = _ENDINGS.get(row["mle_status"], "has no maximum")
        found.append(f"its MLE {ending}: AIC, BIC and ICL mean little")
    return [f"Beware of {name}: {'; '.join(found)}."] if found else []
