"""One self-contained HTML page about a convergence study."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping

import jinja2
import pandas as pd
import xarray as xr
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from bayesmoe.report import _study, _tables
from bayesmoe.report._answers import headline, slope_summary
from bayesmoe.report._samplers import RULE, sampler_rows
from bayesmoe.report.style import ESTIMATOR_LABELS, rate_exponent, style
from bayesmoe.study.early_em import measure_gaps
from bayesmoe.study.results import measure_samplers
from bayesmoe.theory.rates import NEGLIGIBLE

_CAPTIONS = {
    "contraction": "Voronoi loss of MLE and MAP and contraction radius of the posterior against "
    "the sample size. Lines parallel to the grey line decay at the expected rate. Where a ray "
    "keeps the loss from any rate, the dashed lines are the loss modulo the ray. The numbers are "
    "measured slopes with their intervals.",
    "rates": "Measured slopes at one glance: those of the normalised loss and of each parameter "
    "block, with 95 % bootstrap intervals. Bars that cover the grey tick agree with the expected "
    "exponent; bars that cover the line at zero cannot be told from errors that do not contract. "
    "Where nothing contracts by theory, the tick lies on that line. The loss and τ are of no cell. "
    "A hollow point has no interval and a cross no slope, for want of fits that converged; arrows "
    "point to what lies beyond the axis, and the table below has all numbers.",
    "replicates": "The loss of every replicate, of which the first figure has medians and "
    "quartiles. Points far above the others are other optima, or posteriors around them; hollow "
    "points are fits that did not converge, which take no part in medians and slopes.",
    "blocks": "Error of each parameter block; the coloured numbers are slopes of MLE, MAP and "
    "posterior, in grey the expected rate. In the column of the temperature, the dash-dotted line "
    "is the posterior standard deviation of τ. In over-specified fits the lines with points belong "
    "to atoms that share a cell, dotted lines to atoms alone in theirs, and the latter should fall "
    "faster.",
    "local_slopes": "Slopes of the Voronoi loss between neighbouring sample sizes, with 95 % "
    "intervals, at the geometric mean of the two. A rate that holds over the whole range of n has "
    "points along the grey line, the expected exponent; slopes that drift say that the range is "
    "not asymptotic yet. Intervals that leave the panel are wider than it.",
    "temperature_sd": "Posterior standard deviation of the temperature τ. A flat line means that "
    "more data teach nothing about τ; a line parallel to a falling grey line decays at the "
    "expected rate.",
}

_EM = (
    "EM is the published one, stopped by its rule; where that is short of a maximum, it is drawn "
    "all the same."
)
_EM_CAPTIONS = ("contraction", "rates", "replicates", "blocks", "local_slopes")

_ALTERNATIVES = {
    "contraction": ("Log-log panels of the Voronoi loss, with slopes:", "normalised_loss"),
    "rates": (
        "Rows of slopes with intervals beside the expected exponents, for the loss and each "
        "parameter block. Slopes of the loss:",
        "normalised_loss",
    ),
    "replicates": (
        "A point for the loss of every replicate, log-log, with medians. Slopes of the loss:",
        "normalised_loss",
    ),
    "blocks": ("Log-log panels of the error of each parameter block. Slopes of the loss:", "loss"),
    "local_slopes": (
        "Slopes of the Voronoi loss between neighbouring sample sizes. Over all sizes:",
        "normalised_loss",
    ),
    "temperature_sd": (
        "Log-log panels of the posterior standard deviation of τ, with slopes:",
        "temperature_sd",
    ),
}


def render_study(
    results: xr.Dataset,
    slopes: pd.DataFrame,
    counts: pd.DataFrame,
    figures: Mapping[str, Figure | bytes],
) -> str:
    """The report of a study as one HTML page that needs nothing else.

    Parameters
    ----------
    results, slopes, counts
        From `load_results`, `measure_slopes` and `count_statuses` of `bayesmoe.study`.
    figures
        From `study_figures`, or the SVG files that were made of them.

    Returns
    -------
    str
        The page, every name in it escaped.
    """
    labels, parts = _study.gate_labels(results), _study.split(results)
    unique, fits = _tables.once(slopes, results), _tables.once(counts, results)
    rows = _tables.slope_rows(unique, labels)
    gaps = _tables.gap_rows(measure_gaps(results), labels)
    return environment().get_template("study.html").render(
        title=f"Convergence study: {results.attrs['name']}",
        several=_study.several_settings(results),
        parts=[
            {
                "name": part.name,
                "answers": headline(part.study, slopes),
                "figures": _figures(part, figures, slopes),
            }
            for part in parts
        ],
        negligible=NEGLIGIBLE,
        warning=_tables.start_warning(results),
        verdicts=_tables.verdicts(unique),
        slopes=rows,
        slower=[row for row in rows if row["verdict"] == "slower"],
        statuses=_tables.statuses(fits),
        converged=_tables.CONVERGED,
        counts=_tables.count_rows(fits, labels),
        failed=_tables.failed_cells(results),
        left_out=_tables.left_out(fits[~_tables.ended_by_rule(fits)]),
        early=_tables.early(fits),
        gaps=gaps,
        at_floor=_tables.at_floor(fits),
        estimators=[ESTIMATOR_LABELS[name] for name in _study.estimators(results)],
        samplers=sampler_rows(measure_samplers(results), labels),
        rule=RULE,
        runs=[row for part in parts for row in _tables.run_rows(part.study, labels)],
        settings=_tables.setting_rows(results),
        versions=_tables.version_rows(results),
        plan=results.attrs["plan"],
    )  # fmt: skip


def environment() -> jinja2.Environment:
    """The templates of this package: what is put into them is escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("bayesmoe", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["rate"] = rate_html
    made.filters["powers"] = powers_html
    made.filters["sort_value"] = sort_value
    return made


def rate_html(text: str) -> Markup:
    """An expected rate with its exponent raised; any other text escaped."""
    power = rate_exponent(text)
    return escape(text) if power is None else Markup("n<sup>−{}</sup>").format(power)


def powers_html(text: str) -> Markup:
    """``text`` escaped, powers such as ``n^−0.49`` with their exponent raised."""
    return Markup(re.sub(r"\bn\^([−\d.]*\d)", r"n<sup>\1</sup>", str(escape(text))))


def sort_value(value: float) -> str:
    """The number by which a table sorts, as browsers read it; empty for NaN, which comes last."""
    return "" if math.isnan(value) else repr(float(value)).replace("inf", "Infinity")


def _figures(
    part: _study.Setting, figures: Mapping[str, Figure | bytes], slopes: pd.DataFrame
) -> list[dict[str, str]]:
    """The figures of one scenario and prior with captions and what they show in words."""
    found, labels = [], _study.gate_labels(part.study)
    own = _study.own(slopes, part.study)
    for name, figure in figures.items():
        for kind, caption in _CAPTIONS.items():
            if name.startswith(part.prefix + kind):
                start, quantity = _ALTERNATIVES[kind]
                if kind in _EM_CAPTIONS and "em" in _study.estimators(part.study):
                    caption = f"{caption} {_EM}"
                words = f"{start} {slope_summary(own, labels, quantity)}"
                found.append({"caption": caption, "alt": words, "source": svg(figure)})
    return found


def svg(figure: Figure | bytes) -> str:
    """The figure, or its SVG, as a data URI: an image of its own, so that no names can clash."""
    content = figure if isinstance(figure, bytes) else _draw(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(content).decode("ascii")


def _draw(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
