"""One self-contained HTML page about a comparison of models."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bayesmoe.diagnostics.comparison import Assessment
from bayesmoe.diagnostics.stored_comparison import StoredComparison
from bayesmoe.diagnostics.stored_fit import data_digest
from bayesmoe.diagnostics.verdict import Verdict
from bayesmoe.report.fit_html import dropped_text, sampler_text
from bayesmoe.report.html import environment, svg
from bayesmoe.report.style import STATUS_LABELS, Number, number, size_text

_CRITERIA = ("log_likelihood", "aic", "bic", "icl", "elpd")
_CAPTION = (
    "How much worse than the best each model predicts rows that are left out: difference in elpd "
    "with ± 2 standard errors. In the grey band a difference is noise whatever its standard error; "
    "so is one whose bar reaches zero. The recommended model is in colour; on the right the "
    "difference and the weight in a stack of all models."
)

Row = dict[str, Any]


def render_comparison(stored: StoredComparison, figure: Figure) -> str:
    """The report of a comparison as one HTML page that needs nothing else.

    Parameters
    ----------
    stored
        The request and its comparison, as `load_comparison` returns them.
    figure
        From `compare_figure`.

    Returns
    -------
    str
        The page; column names and all else that comes from the user are escaped.
    """
    request, comparison = stored
    table = comparison.table
    first, *reasons = comparison.recommendation.text.splitlines()
    attributes = comparison.assessments[0].posterior.attrs
    covariates = ", ".join(map(str, table.x.columns))
    return environment().get_template("compare.html").render(
        title=f"Models of {request.formulas or f'{table.y.name} given {covariates}'}",
        answer=first,
        found=comparison.recommendation.model is not None,
        reasons=reasons,
        models=model_rows(stored),
        checks=[row for assessment in comparison.assessments for row in _check_rows(assessment)],
        figure={"source": svg(figure), "caption": _CAPTION, "alt": _alternative(stored)},
        settings=_settings(stored),
        versions=json.loads(attributes["versions"]).items(),
        command=request.command("again"),
        digest=data_digest(table),
    )  # fmt: skip


def model_rows(stored: StoredComparison) -> list[Row]:
    """One row per model, in the order of `Comparison.to_frame`."""
    frame = stored.comparison.to_frame()
    return [_model_row(str(name), row) for name, row in frame.iterrows()]


def _model_row(name: str, row: pd.Series) -> Row:
    criteria = [Number(number(row[column], 1), row[column]) for column in _CRITERIA]
    reliable = bool(row["reliable"])
    return {
        "name": name,
        "recommended": bool(row["recommended"]),
        "reliable": reliable,
        "mle": STATUS_LABELS[row["mle_status"]],
        "numbers": [
            Number(str(row["n_parameters"]), row["n_parameters"]),
            *criteria,
            Number(f"± {number(row['elpd_se'], 1)}", row["elpd_se"]),
            Number(_difference(row) if reliable else "unreliable", row["elpd_diff"]),
            Number(number(row["weight"]) if reliable else "–", row["weight"]),
            Number(number(row["effective_experts"], 1), row["effective_experts"]),
            Number(_bad_text(row), row["bad_rows"]),
        ],
    }


def _difference(row: pd.Series) -> str:
    return f"{number(row['elpd_diff'], 1)} ± {number(row['elpd_diff_se'], 1)}"


def _bad_text(row: pd.Series) -> str:
    """How many rows had a bad Pareto k, and what was done about it."""
    refitted = f", {row['refitted_rows']} refitted" if row["bad_rows"] else ""
    return f"{row['bad_rows']}{refitted}"


def _check_rows(assessment: Assessment) -> list[Row]:
    """What of a model's checks did not pass."""
    return [
        {
            "model": assessment.name,
            "check": check.name,
            "verdict": check.verdict,
            "text": check.text,
        }
        for check in assessment.checks.checks
        if check.verdict is not Verdict.PASSED
    ]


def _alternative(stored: StoredComparison) -> str:
    frame = stored.comparison.to_frame()
    told = [
        f"{name} {_difference(row)}" if row["reliable"] else f"{name} unreliable"
        for name, row in frame.iterrows()
    ]
    return f"Differences in elpd to the best model: {'; '.join(told)}."


def _settings(stored: StoredComparison) -> list[tuple[str, str]]:
    request, comparison = stored
    tree = comparison.assessments[0].posterior
    return [
        ("Data", request.data),
        *([("Formula", request.formulas)] if request.formulas else []),
        ("Response", request.response),
        ("Covariates", ", ".join(map(str, comparison.table.x.columns))),
        ("Rows", f"{size_text(len(comparison.table.y))}{dropped_text(request.n_dropped)}"),
        ("Prior", comparison.assessments[0].model.prior_name),
        ("Seed", str(request.seed)),
        ("Sampler", sampler_text([one.posterior for one in comparison.assessments])),
        ("Created", str(tree["posterior"].attrs["created_at"])[:19].replace("T", " ") + " UTC"),
        ("bayesmoe", str(tree.attrs["bayesmoe_version"])),
    ]  # fmt: skip
