"""One self-contained HTML page about a fit of one's own data."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bayesmoe.core.selection import listed
from bayesmoe.diagnostics.analysis import Analysis, estimates, mle_errors, posterior_summary
from bayesmoe.diagnostics.checks import Verdict
from bayesmoe.diagnostics.stored_fit import StoredFit, data_digest
from bayesmoe.inference.point import Fit
from bayesmoe.report._findings import CLOSE, find_optima, find_troubles
from bayesmoe.report.html import environment, svg
from bayesmoe.report.style import ESTIMATOR_LABELS, STATUS_LABELS, Number, size_text

_VERDICTS = {
    Verdict.PASSED: "may be used: every check passed.",
    Verdict.NOT_CHECKED: "may be used as far as it was checked; not every check could be made.",
    Verdict.DOUBTFUL: "may be used, with the reservations below.",
    Verdict.FAILED: "must not be used as it is: a check failed.",
}

Row = dict[str, Any]


def render_fit(stored: StoredFit, figure: Figure, calibration: Figure, optima: Figure) -> str:
    """The report of a fit as one HTML page that needs nothing else.

    Parameters
    ----------
    stored
        The request and its analysis, as `load_fit` returns them.
    figure, calibration, optima
        From `fit_figure`, `pit_figure` and `optima_figure`.

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
        figure={"source": svg(figure), "caption": _caption(stored), "alt": _alternative(analysis)},
        checks=analysis.checks.checks,
        calibration={"source": svg(calibration), "caption": _CALIBRATION, "alt": _CALIBRATION_ALT},
        optima={"source": svg(optima), "caption": _OPTIMA, "alt": _optima_alternative(analysis)},
        starts=_start_rows(analysis),
        settings=_settings(stored),
        versions=json.loads(attributes["versions"]).items(),
        command=stored.request.command("again"),
        digest=data_digest(table),
    )  # fmt: skip


def _caption(stored: StoredFit) -> str:
    straight = "" if stored.request.formulas else "straight "
    return (
        f"Above: observations, coloured by the expert that is responsible for them; {straight}"
        "lines are the experts of the MAP; grey bands are the posterior's. Below: gate "
        "probabilities. Experts have the numbers of the table."
    )


_CALIBRATION = (
    "Where each observation lies in what all other rows predict of it, from 0 (below all that was "
    "expected) to 1 (above). If the model is right, points fill the square evenly at every "
    "covariate: black lines, the quartiles of neighbouring rows, lie on the grey ones."
)
_CALIBRATION_ALT = "P(Y at most y given x) of rows left out, against each covariate."
_OPTIMA = (
    "How far below the best every start ended, the highest first; each further height is another "
    "optimum, and says how many starts ended there. Trust the best if many starts share it; optima "
    "above the dashed line are hardly told apart from it by the data. Grey shapes are no optima."
)


def _optima_alternative(analysis: Analysis) -> str:
    """How many starts found the best, in words."""
    found = [
        f"{ESTIMATOR_LABELS[name]}: {optima.reached} of {optima.total} starts found the best"
        for name, optima in (
            ("mle", find_optima(analysis.mle)), ("map", find_optima(analysis.map))
        )
    ]  # fmt: skip
    return f"Heights at which the starts ended, below the best. {'; '.join(found)}."


def _alternative(analysis: Analysis) -> str:
    """What the figure shows, in words."""
    y, axis = analysis.table.y.name, analysis.axis
    first = analysis.table.x.columns[0] if axis is None else axis.name
    return f"{y} against {first}: data, the experts' lines, posterior mean and bands; below, gates."


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
        ("Rows", size_text(len(stored.analysis.table.y))),
        ("Gate", stored.analysis.model.gate.label),
        ("Experts", str(request.n_experts)),
        ("Prior", request.prior),
        ("Seed", str(request.seed)),
        ("Sampler", f"NUTS, {sizes['chain']} chains, {tree.attrs['n_warmup']} warm-up iterations "
                    f"and {sizes['draw']} draws each"),
        ("Created", str(tree["posterior"].attrs["created_at"])[:19].replace("T", " ") + " UTC"),
        ("bayesmoe", str(tree.attrs["bayesmoe_version"])),
    ]  # fmt: skip
