"""One self-contained HTML page about a fit of one's own data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from xarray import DataTree

from bayesmoe.core.selection import listed
from bayesmoe.diagnostics.analysis import Analysis, estimates, mle_errors, posterior_summary
from bayesmoe.diagnostics.prior_checks import power_scaling
from bayesmoe.diagnostics.stored_fit import StoredFit, data_digest
from bayesmoe.diagnostics.verdict import Verdict
from bayesmoe.inference.point import Fit
from bayesmoe.report._findings import CLOSE, find_optima, find_troubles
from bayesmoe.report._fit_words import WORDS, absent_text, joined
from bayesmoe.report.html import environment, svg
from bayesmoe.report.style import ESTIMATOR_LABELS, STATUS_LABELS, Number, size_text

_VERDICTS = {
    Verdict.PASSED: "may be used: every check passed.",
    Verdict.NOT_CHECKED: "may be used as far as it was checked; not every check could be made.",
    Verdict.DOUBTFUL: "may be used, with the reservations below.",
    Verdict.FAILED: "must not be used as it is: a check failed.",
}

Row = dict[str, Any]


def render_fit(stored: StoredFit, figures: Mapping[str, Figure]) -> str:
    """The report of a fit as one HTML page that needs nothing else.

    Parameters
    ----------
    stored
        The request and its analysis, as `load_fit` returns them.
    figures
        From `fit_figures`; those that are not among them are left out.

    Returns
    -------
    str
        The page; column names and all else that comes from the user are escaped.
    """
    analysis = stored.analysis
    table, attributes = analysis.table, analysis.posterior.attrs
    return environment().get_template("fit.html").render(
        title=stored.request.formulas or f"{table.y.name} given {joined(list(table.x.columns))}",
        model=_model_text(stored),
        points=[
            {"name": ESTIMATOR_LABELS[name].upper(), "converged": fit.converged,
             "text": _point_text(name, fit)}
            for name, fit in (("mle", analysis.mle), ("map", analysis.map))
        ],
        verdict=_VERDICTS[analysis.checks.verdict],
        usable=analysis.checks.verdict is not Verdict.FAILED,
        troubles=find_troubles(analysis),
        estimates=estimate_rows(analysis),
        errors_missing="" if analysis.mle.converged else STATUS_LABELS[_status(analysis.mle)],
        figures={
            name: {"source": svg(figure), **WORDS[name](stored)._asdict()}
            for name, figure in figures.items()
        },
        without=absent_text(stored, "dependence" in figures),
        checks=analysis.checks.checks,
        sensitivity=sensitivity_rows(analysis),
        starts=_start_rows(analysis),
        settings=_settings(stored),
        versions=json.loads(attributes["versions"]).items(),
        command=stored.request.command("again"),
        digest=data_digest(table),
    )  # fmt: skip


# --- sentences


def _model_text(stored: StoredFit) -> str:
    analysis, formulas = stored.analysis, stored.request.formulas
    model, n = analysis.model, size_text(len(analysis.table.y))
    experts = "1 expert" if model.n_experts == 1 else f"{model.n_experts} experts"
    names = [str(name) for name in analysis.table.x.columns]
    selected = "" if formulas else model.selection.describe(names)
    return (
        f"{formulas or f'{analysis.table.y.name} by {joined(names)}'}, n = {n}, with "
        f"{experts} under the {model.gate.label} gate; {selected}{'; ' if selected else ''}"
        f"prior: {model.prior_name}."
    )


def _point_text(name: str, fit: Fit) -> str:
    """How the best start ended, how many joined it, and what other optima are near."""
    reached, total, below = find_optima(fit)
    head = "converged to" if fit.converged else "did not converge:"
    joined = f"{reached} of {total} starts" if reached else f"No optimum of the {total} starts"
    optima = f"{len(below) or 'no'} other {'optimum' if len(below) == 1 else 'optima'}"
    unit = "log-likelihood" if name == "mle" else "log posterior density"
    return (
        f"{head} {fit.status.value} (log-likelihood {_number(fit.log_likelihood, 6)}). "
        f"{joined} reached this height; {optima} within {CLOSE:g} unit of {unit}."
    )


def _status(fit: Fit) -> str:
    return fit.status.name.lower()


# --- tables


_DIAGNOSES = {
    "✓": ("the prior hardly moves it", 0),
    "potential prior-data conflict": ("prior and data both move it: they may disagree", 1),
    "potential strong prior / weak likelihood": ("the prior moves it, the data hardly do", 2),
}


def sensitivity_rows(analysis: Analysis) -> list[Row]:
    """One row per parameter: how far prior and likelihood move it, and what that says in words.

    None if the posterior has no group ``log_prior``.
    """
    if "log_prior" not in analysis.posterior.children:
        return []
    table = power_scaling(analysis.model.gate, analysis.posterior)
    rows: list[Row] = []
    for name, row in table.iterrows():
        text, order = _DIAGNOSES[row["diagnosis"]]
        numbers = [Number(_number(row[part], 2), row[part]) for part in ("prior", "likelihood")]
        rows.append({"name": str(name), "numbers": numbers, "text": text, "order": order})
    return rows


_SHOWN = ("mean", "eti90_lb", "eti90_ub", "ess_bulk", "r_hat")


def estimate_rows(analysis: Analysis) -> list[Row]:
    """One row per parameter: MLE with standard error, MAP, posterior mean, interval, ESS, R-hat."""
    points, errors = estimates(analysis), mle_errors(analysis)
    summary = posterior_summary(analysis.posterior, analysis.model.gate)
    together = points.join(errors).join(summary[list(_SHOWN)])
    return [
        {
            "name": str(name),
            "numbers": [
                Number(_number(row["mle"]), row["mle"]),
                Number(_error(row["mle_se"]), row["mle_se"]),
                Number(_number(row["map"]), row["map"]),
                Number(_number(row["mean"]), row["mean"]),
                Number(_interval(row["eti90_lb"], row["eti90_ub"]), row["eti90_lb"]),
                Number(f"{row['ess_bulk']:.0f}", row["ess_bulk"]),
                Number(f"{row['r_hat']:.3f}", row["r_hat"]),
            ],
        }
        for name, row in together.iterrows()
    ]


def _number(value: float, digits: int = 4) -> str:
    """Significant digits with a typographic minus sign; a dash for NaN."""
    if math.isnan(value):
        return "–"
    return f"{value:.{digits}g}".replace("inf", "∞").replace("-", "−")


def _interval(low: float, high: float) -> str:
    return f"[{_number(low)}, {_number(high)}]"


def _error(value: float) -> str:
    return "not determined" if math.isinf(value) else _number(value, 2)


def _start_rows(analysis: Analysis) -> list[Row]:
    """Every start, the best first."""
    rows: list[Row] = []
    for name, fit in (("mle", analysis.mle), ("map", analysis.map)):
        starts = fit.starts
        heights = np.where(np.isfinite(starts.objective), starts.objective, -np.inf)
        order = np.argsort(-heights, kind="stable").tolist()
        for i in order:
            height, gradient = float(starts.objective[i]), float(starts.gradient_norm[i])
            rows.append(
                {
                    "estimator": ESTIMATOR_LABELS[name],
                    "start": i,
                    "objective": Number(_number(height, 9), height),
                    "status": STATUS_LABELS[starts.status[i].name.lower()],
                    "converged": starts.status[i].converged,
                    "gradient": Number(f"{gradient:.0e}".replace("-", "−"), gradient),
                    "iterations": int(starts.n_iterations[i]),
                }
            )
    return rows


def dropped_text(n_dropped: int | None) -> str:
    """That rows were left out, for the end of a count of the others."""
    return f"; {n_dropped} that lack a value were left out, and have no number" if n_dropped else ""


def sampler_text(trees: Sequence[DataTree]) -> str:
    """How posteriors were sampled that have as many chains and draws."""
    sizes, n_warmup = trees[0]["posterior"].sizes, trees[0].attrs["n_warmup"]
    text = f"NUTS, {sizes['chain']} chains, {n_warmup} warm-up iterations and {sizes['draw']} draws"
    # posteriors of earlier versions do not say: every transition was a draw
    thinned = sorted({int(tree.attrs.get("thinning", 1)) for tree in trees} - {1})
    ordinals = " or ".join("2nd" if one == 2 else f"{one}th" for one in thinned)
    every = f", every {ordinals} transition where chains mix slowly" if thinned else ""
    return f"{text} each{every}"


def _selected(stored: StoredFit) -> list[tuple[str, str]]:
    """What gate and experts were asked to depend on, where that is not all covariates."""
    names = [str(name) for name in stored.analysis.table.x.columns]
    selection = stored.analysis.model.selection
    columns = {
        "Covariates of the gate": selection.gate,
        "Covariates of the experts": selection.experts,
    }
    return [(key, listed(value, names)) for key, value in columns.items() if value is not None]


def _settings(stored: StoredFit) -> list[tuple[str, str]]:
    request, tree = stored.request, stored.analysis.posterior
    return [
        ("Data", request.data),
        *([("Formula", request.formulas)] if request.formulas else []),
        ("Response", request.response),
        ("Covariates", ", ".join(map(str, stored.analysis.table.x.columns))),
        *_selected(stored),
        ("Rows", f"{size_text(len(stored.analysis.table.y))}{dropped_text(request.n_dropped)}"),
        ("Gate", stored.analysis.model.gate.label),
        ("Experts", str(request.n_experts)),
        ("Prior", request.prior),
        ("Seed", str(request.seed)),
        ("Sampler", sampler_text([tree])),
        ("Created", str(tree["posterior"].attrs["created_at"])[:19].replace("T", " ") + " UTC"),
        ("bayesmoe", str(tree.attrs["bayesmoe_version"])),
    ]  # fmt: skip
