"""One self-contained HTML page about a fit of one's own data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from bayesmoe.core.selection import listed
from bayesmoe.diagnostics.analysis import Analysis, estimates, mle_errors, posterior_summary
from bayesmoe.diagnostics.checks import INFLUENCE, Verdict, power_scaling
from bayesmoe.diagnostics.stored_fit import StoredFit, data_digest
from bayesmoe.inference.point import Fit
from bayesmoe.report._dependence import MOST as SHOWN
from bayesmoe.report._findings import CLOSE, find_optima, find_troubles
from bayesmoe.report.density_figure import ROW_DRAWS, drawn_text
from bayesmoe.report.dependence_figure import averaged_text
from bayesmoe.report.html import environment, svg
from bayesmoe.report.pairs_figure import MOST as PAIRED
from bayesmoe.report.pairs_figure import paired_covariates
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
        title=stored.request.formulas or f"{table.y.name} given {_listed(list(table.x.columns))}",
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
            name: {"source": svg(figure), **_WORDS[name](stored)._asdict()}
            for name, figure in figures.items()
        },
        without=_without(stored, "dependence" in figures),
        checks=analysis.checks.checks,
        sensitivity=sensitivity_rows(analysis),
        starts=_start_rows(analysis),
        settings=_settings(stored),
        versions=json.loads(attributes["versions"]).items(),
        command=stored.request.command("again"),
        digest=data_digest(table),
    )  # fmt: skip


# --- figures in words


class _Words(NamedTuple):
    """The caption of a figure, and what it shows where it cannot be seen."""

    caption: str
    alt: str


def _fit_words(stored: StoredFit) -> _Words:
    analysis = stored.analysis
    straight = "" if stored.request.formulas else "straight "
    y, axis = analysis.table.y.name, analysis.axis
    first = analysis.table.x.columns[0] if axis is None else axis.name
    bands = (
        "Their coloured bands hold 90 % of the posterior of each expert's mean; both are the "
        "fainter, the less probability the gate gives the expert, and wide bands are fainter. "
        if analysis.model.n_experts > 1
        else ""
    )
    return _Words(
        f"Above: observations, coloured by the expert that is responsible for them; {straight}"
        f"lines are the experts of the MAP. {bands}The black line is the posterior mean of the "
        "response, with a grey 90 % band; light grey is where 90 % of single observations are "
        "expected. Below: gate probabilities. Experts have the numbers of the table.",
        f"{y} against {first}: data, the experts' lines and bands, posterior mean; below, gates.",
    )


def _density_words(stored: StoredFit) -> _Words:
    analysis = stored.analysis
    y, axis = analysis.table.y.name, analysis.axis
    first = analysis.table.x.columns[0] if axis is None else axis.name
    several = analysis.table.x.shape[1] > 1 if axis is None else bool(axis.held)
    others = ", all else as in the figure above" if several else ""
    return _Words(
        f"What is expected of {y} at some values of {first}{others}: the posterior predictive "
        f"density, averaged over {drawn_text(analysis)}, and the 90 % of the draws' densities in "
        "grey. Two summits mean two kinds of response at the same covariates, which no mean and no "
        "interval tells. Ticks are the rows nearest to the value, coloured by the responsible "
        f"expert; the dashed line is the average of their own densities (up to {ROW_DRAWS} draws): "
        "compare the ticks with it. Every panel has its own height, and all have a square-root "
        "scale if a narrow expert would hide another one.",
        f"Predictive densities of {y} at values of {first}, with the nearest rows.",
    )


def _dependence_words(stored: StoredFit) -> _Words:
    x, formulas = stored.analysis.table.x, stored.request.formulas
    d, y = x.shape[1], stored.analysis.table.y.name
    what = "column" if formulas else "covariate"
    shown = f" Shown are the first {SHOWN} of {d} covariates." if d > SHOWN and not formulas else ""
    return _Words(
        f"What the model says of the mean of {y} if one {what} is set to a value in every row, all "
        "else in the rows as observed (partial dependence, Friedman 2001), and of the gate "
        f"probabilities below: averages over {averaged_text(stored.analysis)}, posterior mean and "
        "90 % bands. Ticks are rows; where there are none, or where covariates go together, "
        f"averages are over rows that do not occur.{shown}",
        f"Partial dependence of the mean of {y} and of the gate probabilities on each {what}.",
    )


def _pairs_words(stored: StoredFit) -> _Words:
    analysis = stored.analysis
    names = [str(name) for name in analysis.table.x.columns]
    shown = paired_covariates(analysis)
    left = [name for j, name in enumerate(names) if j not in shown]
    others = ", all other covariates at their medians" if len(names) > 2 else ""
    rule = (
        f" Shown are the {PAIRED} covariates along which most of the gate's probability changes "
        f"hands, from their first to their last decile; left out: {_listed(left)}."
        if left
        else ""
    )
    return _Words(
        "Rows over each pair of covariates, coloured by the expert that is responsible for them; "
        f"behind them the gate probabilities of the MAP in the same colours{others}. At the grey "
        f"lines another expert becomes the most probable.{rule}",
        f"Rows over pairs of {_listed([names[j] for j in shown])}, by expert, and gates behind.",
    )


def _calibration_words(stored: StoredFit) -> _Words:
    return _Words(
        "Where each observation lies in what all other rows predict of it, from 0 (below all that "
        "was expected) to 1 (above). If the model is right, points fill the square evenly at every "
        "covariate: black lines, the quartiles of neighbouring rows, lie on the grey ones.",
        "P(Y at most y given x) of rows left out, against each covariate.",
    )


def _residual_words(stored: StoredFit) -> _Words:
    return _Words(
        "The same as standard normal numbers, each as far out as the observation is in what all "
        "other rows predict (quantile residuals, Dunn & Smyth 1996). Plain differences from the "
        "mean have no common shape under a mixture; these are standard normal at every covariate "
        "if the model is right: black lines, mean and one standard deviation of neighbouring rows, "
        "lie on the grey ones, and few points are beyond the dotted ones at ± 2. Colours are those "
        "of the responsible experts.",
        "Quantile residuals of rows left out, against each covariate, by expert.",
    )


def _influence_words(stored: StoredFit) -> _Words:
    (told,) = [c.text for c in stored.analysis.checks.checks if c.name == INFLUENCE]
    return _Words(
        "How unevenly draws would have to be weighted to leave a row out. Above the dashed line "
        "the posterior without the row may differ from this one: look at these rows first. Row 1 "
        "is the first one below the heading of the table.",
        f"Pareto k of each row against its number: {told}.",
    )


def _optima_words(stored: StoredFit) -> _Words:
    found = [
        f"{ESTIMATOR_LABELS[name]}: {optima.reached} of {optima.total} starts found the best"
        for name, optima in (
            ("mle", find_optima(stored.analysis.mle)), ("map", find_optima(stored.analysis.map))
        )
    ]  # fmt: skip
    return _Words(
        "How far below the best every start ended, the highest first; each further height is "
        "another optimum, and says how many starts ended there. Trust the best if many starts "
        "share it; optima above the dashed line are hardly told apart from it by the data. Grey "
        "shapes are no optima.",
        f"Heights at which the starts ended, below the best. {'; '.join(found)}.",
    )


_WORDS: dict[str, Callable[[StoredFit], _Words]] = {
    "fit": _fit_words,
    "densities": _density_words,
    "dependence": _dependence_words,
    "pairs": _pairs_words,
    "calibration": _calibration_words,
    "residuals": _residual_words,
    "influence": _influence_words,
    "optima": _optima_words,
}


def _without(stored: StoredFit, drawn: bool) -> list[str]:
    """What is not drawn of the columns of a formula, if they are several, and why."""
    axis = stored.analysis.axis
    if not stored.request.formulas or (axis is not None and not axis.held):
        return []
    pairs = "Pairs are drawn of columns only, not where a formula made the covariates."
    if drawn:
        return [pairs]
    along = (
        "There is no figure along each column of the formula: rows at other values of a column "
        "were not stored with this fit. Fit again to have it."
    )
    return [along, pairs]


# --- sentences


def _listed(names: list[Any]) -> str:
    shown = [str(name) for name in names]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _model_text(stored: StoredFit) -> str:
    analysis, formulas = stored.analysis, stored.request.formulas
    model, n = analysis.model, size_text(len(analysis.table.y))
    experts = "1 expert" if model.n_experts == 1 else f"{model.n_experts} experts"
    names = [str(name) for name in analysis.table.x.columns]
    selected = "" if formulas else model.selection.describe(names)
    return (
        f"{formulas or f'{analysis.table.y.name} by {_listed(names)}'}, n = {n}, with "
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
    sizes = tree["posterior"].sizes
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
        ("Sampler", f"NUTS, {sizes['chain']} chains, {tree.attrs['n_warmup']} warm-up iterations "
                    f"and {sizes['draw']} draws each"),
        ("Created", str(tree["posterior"].attrs["created_at"])[:19].replace("T", " ") + " UTC"),
        ("bayesmoe", str(tree.attrs["bayesmoe_version"])),
    ]  # fmt: skip
