"""The figures of a fit in words: captions, and what is said in place of those that are missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from bayesmoe.diagnostics.model_checks import INFLUENCE
from bayesmoe.diagnostics.stored_fit import StoredFit
from bayesmoe.report._dependence import MOST as SHOWN
from bayesmoe.report._findings import find_optima
from bayesmoe.report.density_figure import ROW_DRAWS, drawn_text
from bayesmoe.report.dependence_figure import averaged_text
from bayesmoe.report.pairs_figure import MOST as PAIRED
from bayesmoe.report.pairs_figure import paired_covariates
from bayesmoe.report.style import ESTIMATOR_LABELS


class Words(NamedTuple):
    """The caption of a figure, and what it shows where it cannot be seen."""

    caption: str
    alt: str


def _fit_words(stored: StoredFit) -> Words:
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
    return Words(
        f"Above: observations, coloured by the expert that is responsible for them; {straight}"
        f"lines are the experts of the MAP. {bands}The black line is the posterior mean of the "
        "response, with a grey 90 % band; light grey is where 90 % of single observations are "
        "expected. Below: gate probabilities. Experts have the numbers of the table.",
        f"{y} against {first}: data, the experts' lines and bands, posterior mean; below, gates.",
    )


def _density_words(stored: StoredFit) -> Words:
    analysis = stored.analysis
    y, axis = analysis.table.y.name, analysis.axis
    first = analysis.table.x.columns[0] if axis is None else axis.name
    several = analysis.table.x.shape[1] > 1 if axis is None else bool(axis.held)
    others = ", all else as in the figure above" if several else ""
    return Words(
        f"What is expected of {y} at some values of {first}{others}: the posterior predictive "
        f"density, averaged over {drawn_text(analysis)}, and the 90 % of the draws' densities in "
        "grey. Two summits mean two kinds of response at the same covariates, which no mean and no "
        "interval tells. Ticks are the rows nearest to the value, coloured by the responsible "
        f"expert; the dashed line is the average of their own densities (up to {ROW_DRAWS} draws): "
        "compare the ticks with it. Every panel has its own height, and all have a square-root "
        "scale if a narrow expert would hide another one.",
        f"Predictive densities of {y} at values of {first}, with the nearest rows.",
    )


def _dependence_words(stored: StoredFit) -> Words:
    x, formulas = stored.analysis.table.x, stored.request.formulas
    d, y = x.shape[1], stored.analysis.table.y.name
    what = "column" if formulas else "covariate"
    shown = f" Shown are the first {SHOWN} of {d} covariates." if d > SHOWN and not formulas else ""
    return Words(
        f"What the model says of the mean of {y} if one {what} is set to a value in every row, all "
        "else in the rows as observed (partial dependence, Friedman 2001), and of the gate "
        f"probabilities below: averages over {averaged_text(stored.analysis)}, posterior mean and "
        "90 % bands. Ticks are rows; where there are none, or where covariates go together, "
        f"averages are over rows that do not occur.{shown}",
        f"Partial dependence of the mean of {y} and of the gate probabilities on each {what}.",
    )


def _pairs_words(stored: StoredFit) -> Words:
    analysis = stored.analysis
    names = [str(name) for name in analysis.table.x.columns]
    shown = paired_covariates(analysis)
    left = [name for j, name in enumerate(names) if j not in shown]
    others = ", all other covariates at their medians" if len(names) > 2 else ""
    rule = (
        f" Shown are the {PAIRED} covariates along which most of the gate's probability changes "
        f"hands, from their first to their last decile; left out: {joined(left)}."
        if left
        else ""
    )
    return Words(
        "Rows over each pair of covariates, coloured by the expert that is responsible for them; "
        f"behind them the gate probabilities of the MAP in the same colours{others}. At the grey "
        f"lines another expert becomes the most probable.{rule}",
        f"Rows over pairs of {joined([names[j] for j in shown])}, by expert, and gates behind.",
    )


def _calibration_words(stored: StoredFit) -> Words:
    return Words(
        "Where each observation lies in what all other rows predict of it, from 0 (below all that "
        "was expected) to 1 (above). If the model is right, points fill the square evenly at every "
        "covariate: black lines, the quartiles of neighbouring rows, lie on the grey ones.",
        "P(Y at most y given x) of rows left out, against each covariate.",
    )


def _residual_words(stored: StoredFit) -> Words:
    return Words(
        "The same as standard normal numbers, each as far out as the observation is in what all "
        "other rows predict (quantile residuals, Dunn & Smyth 1996). Plain differences from the "
        "mean have no common shape under a mixture; these are standard normal at every covariate "
        "if the model is right: black lines, mean and one standard deviation of neighbouring rows, "
        "lie on the grey ones, and few points are beyond the dotted ones at ± 2. Colours are those "
        "of the responsible experts.",
        "Quantile residuals of rows left out, against each covariate, by expert.",
    )


def _influence_words(stored: StoredFit) -> Words:
    first = "Row 1 is the first one below the heading of the table."
    if stored.request.n_dropped:
        first = "Rows that lack a value are left out, and have no number."
    (told,) = [c.text for c in stored.analysis.checks.checks if c.name == INFLUENCE]
    return Words(
        "How unevenly draws would have to be weighted to leave a row out. Above the dashed line "
        "the posterior without the row may differ from this one: look at these rows first. "
        f"{first}",
        f"Pareto k of each row against its number: {told}.",
    )


def _optima_words(stored: StoredFit) -> Words:
    found = [
        f"{ESTIMATOR_LABELS[name]}: {optima.reached} of {optima.total} starts found the best"
        for name, optima in (
            ("mle", find_optima(stored.analysis.mle)), ("map", find_optima(stored.analysis.map))
        )
    ]  # fmt: skip
    return Words(
        "How far below the best every start ended, the highest first; each further height is "
        "another optimum, and says how many starts ended there. Trust the best if many starts "
        "share it; optima above the dashed line are hardly told apart from it by the data. Grey "
        "shapes are no optima.",
        f"Heights at which the starts ended, below the best. {'; '.join(found)}.",
    )


#: by the name of the figure
WORDS: dict[str, Callable[[StoredFit], Words]] = {
    "fit": _fit_words,
    "densities": _density_words,
    "dependence": _dependence_words,
    "pairs": _pairs_words,
    "calibration": _calibration_words,
    "residuals": _residual_words,
    "influence": _influence_words,
    "optima": _optima_words,
}


def absent_text(stored: StoredFit, drawn: bool) -> list[str]:
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


def joined(names: list[Any]) -> str:
    """Names in a row, as a sentence has them."""
    shown = [str(name) for name in names]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
