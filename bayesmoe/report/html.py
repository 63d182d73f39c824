"""One self-contained HTML page about a convergence study."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Hashable, Mapping
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import xarray as xr
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from bayesmoe.report.style import (
    ESTIMATOR_LABELS,
    QUANTITY_LABELS,
    estimate,
    number,
    rate_parts,
    size_text,
    specification,
    style,
)

#: slopes between -NEGLIGIBLE and NEGLIGIBLE count as flat in the headline
NEGLIGIBLE = 0.1

STATUS_LABELS = {
    "converged": "converged",
    "at_variance_floor": "at the variance floor",
    "separated": "separated (no finite optimum)",
    "stalled": "stalled",
    "not_mixed": "chains not mixed",
    "missing": "missing",
}

_START_NOTES = {
    "agnostic": "starts know nothing of the truth",
    "near_truth": "starts are perturbed copies of the truth, so along a flat ray an optimiser "
    "stays where it was put: slopes of MLE and MAP there are no evidence of convergence",
}

_CAPTIONS = {
    "contraction": "Voronoi loss of MLE and MAP and contraction radius of the posterior against "
    "the sample size. Lines parallel to the grey line decay at the expected rate. Where a ray "
    "leaves the loss flat, the dashed lines show that the loss modulo the ray does decay. The "
    "numbers are measured slopes with their intervals.",
    "blocks": "Error of each parameter block; the coloured numbers are slopes of MLE, MAP and "
    "posterior, in grey the expected rate. In the column of the temperature, the dash-dotted line "
    "is the posterior standard deviation of τ. In over-specified fits the lines with points belong "
    "to atoms that share a cell, dotted lines to atoms alone in theirs, and the latter should fall "
    "faster.",
    "temperature_sd": "Posterior standard deviation of the temperature τ. A flat line means that "
    "more data teach nothing about τ; a line parallel to the falling grey line means the "
    "parametric rate.",
}

_READING = (
    " Points are medians over the replicates that converged, bars their quartiles; a hollow point "
    "says that some fits were left out."
)


def render_study(
    results: xr.Dataset,
    slopes: pd.DataFrame,
    counts: pd.DataFrame,
    figures: Mapping[str, Figure],
) -> str:
    """The report of a study as one HTML page that needs nothing else.

    Parameters
    ----------
    results
        The study; see the engine for its layout.
    slopes
        Measured slopes: gate, n_experts, estimator, quantity, slope, low, high, expected,
        expected_text, verdict, n_used, n_total.
    counts
        How often each fit status occurred: gate, n_experts, estimator, status, count.
    figures
        Figures by name, shown in this order. Names that start with ``contraction``, ``blocks`` or
        ``temperature_sd`` have captions.

    Returns
    -------
    str
        The page, every name in it escaped.
    """
    labels = _labels(results)
    template = _environment().get_template("study.html")
    return template.render(
        title=f"Convergence study: {results.attrs.get('scenario', 'unnamed')}",
        answers=headline(results, slopes),
        verdicts=_verdicts(slopes, labels),
        figures=[_figure(name, figure, results, slopes) for name, figure in figures.items()],
        slopes=_slope_rows(slopes, labels),
        statuses=_statuses(counts),
        counts=_count_rows(counts, labels),
        left_out=_left_out(counts),
        runs=_run_rows(results, labels),
        settings=_settings(results),
        versions=_versions(results.attrs.get("versions", "")),
        plan=results.attrs.get("plan", ""),
    )


def headline(results: xr.Dataset, slopes: pd.DataFrame) -> list[str]:
    """The answers in words, each with the measured slope and interval it rests on.

    A temperature counts as contracting if its whole interval lies below -`NEGLIGIBLE`, and as not
    contracting if the whole interval lies above; otherwise the runs cannot tell. Without any gate
    that has a temperature the answers are about the losses.
    """
    labels = _labels(results)
    true = {str(g): int(results["n_experts_true"].sel(gate=g)) for g in results["gate"].to_numpy()}
    spread = slopes[slopes["quantity"] == "temperature_sd"]
    if spread.empty:
        spread = slopes[slopes["quantity"].isin(["normalised_loss"])]
    ordered = spread.sort_values("n_experts", kind="stable")
    return [
        _answer(row, labels, true)
        for gate in labels
        for _, row in ordered[ordered["gate"] == gate].iterrows()
    ]


def _answer(row: pd.Series, labels: dict[str, str], true: dict[str, int]) -> str:
    if row["quantity"] == "temperature_sd":
        subject = "the posterior standard deviation of τ"
    else:
        name = ESTIMATOR_LABELS.get(row["estimator"], row["estimator"])
        subject = f"the normalised Voronoi loss ({name})"
    where = specification(int(row["n_experts"]), true[row["gate"]])
    start = f"{_capital(labels[row['gate']])}, {where}: {subject}"
    slope, low, high = (float(row[c]) for c in ("slope", "low", "high"))
    interval = f"[{number(low)}, {number(high)}]"
    if not all(map(math.isfinite, (slope, low, high))):
        return f"{start} has no measured slope."
    if high < -NEGLIGIBLE:
        return f"{start} contracts, at n^{number(slope)} {interval}."
    if low > NEGLIGIBLE:
        return f"{start} grows: slope {number(slope)} {interval}."
    if low >= -NEGLIGIBLE:
        return f"{start} does not contract: slope {number(slope)} {interval}."
    return (
        f"{start}: these runs cannot tell whether it contracts: slope {number(slope)} {interval}."
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _labels(results: xr.Dataset) -> dict[str, str]:
    values = results["gate_label"].to_numpy()
    return {str(g): str(v) for g, v in zip(results["gate"].to_numpy(), values, strict=True)}


def _level(results: xr.Dataset) -> float:
    return float(results.attrs.get("level", 0.9))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bayesmoe", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["rate"] = rate_html
    environment.filters["powers"] = powers_html
    return environment


def rate_html(text: str) -> Markup:
    """An expected rate with its exponent raised; any other text escaped."""
    parts = rate_parts(text)
    if parts is None:
        return escape(text)
    return Markup("n<sup>−{}/{}</sup>").format(*parts)


def powers_html(text: str) -> Markup:
    """``text`` escaped, powers such as ``n^−0.49`` with their exponent raised."""
    return Markup(re.sub(r"\bn\^([−\d.]*\d)", r"n<sup>\1</sup>", str(escape(text))))


# --- figures


def _figure(name: str, figure: Figure, results: xr.Dataset, slopes: pd.DataFrame) -> dict[str, str]:
    kind = next((key for key in _CAPTIONS if name.startswith(key)), "")
    caption = _CAPTIONS[kind] + _READING if kind else name
    alt = caption
    if kind == "temperature_sd":
        alt = " ".join(headline(results, slopes))
    elif kind == "contraction":
        alt = _slope_summary(slopes, "normalised_loss", "Log-log panels of the Voronoi loss.")
    elif kind == "blocks":
        alt = _slope_summary(slopes, "temperature_sd", "Log-log panels per parameter block.")
    return {"name": name, "caption": caption, "alt": alt, "source": _svg(figure)}


def _slope_summary(slopes: pd.DataFrame, quantity: str, start: str) -> str:
    rows = slopes[slopes["quantity"] == quantity]
    parts = [
        f"{r['gate']}, k = {r['n_experts']}, {r['estimator']}: {number(float(r['slope']))}"
        for _, r in rows.iterrows()
    ]
    return f"{start} Slopes of {QUANTITY_LABELS[quantity]}: {'; '.join(parts)}."


def _svg(figure: Figure) -> str:
    """The figure as a data URI: an image of its own, so that no names can clash."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# --- tables


def _verdicts(slopes: pd.DataFrame, labels: dict[str, str]) -> dict[str, Any]:
    """How many slopes agree with the theory, and which are slower."""
    found = slopes["verdict"].value_counts()
    slow = slopes[slopes["verdict"] == "slower"]
    names = [
        f"{labels.get(r['gate'], r['gate'])}, k = {r['n_experts']}, "
        f"{ESTIMATOR_LABELS.get(r['estimator'], r['estimator'])}: {_quantity(r['quantity'])}"
        for _, r in slow.iterrows()
    ]
    order = ("consistent", "faster", "slower", "unknown")
    counted = [(v, int(found.get(v, 0))) for v in order]
    return {"total": len(slopes), "counted": [c for c in counted if c[1]], "slower": names}


def _quantity(name: str) -> str:
    return QUANTITY_LABELS.get(name, name)


def _slope_rows(slopes: pd.DataFrame, labels: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "gate": labels.get(r["gate"], r["gate"]),
            "k": int(r["n_experts"]),
            "estimator": ESTIMATOR_LABELS.get(r["estimator"], r["estimator"]),
            "quantity": _quantity(r["quantity"]),
            "slope": estimate(float(r["slope"]), float(r["low"]), float(r["high"])),
            "slope_value": _sort_value(r["slope"]),
            "expected": r["expected_text"],
            "expected_value": _sort_value(r["expected"]),
            "verdict": r["verdict"],
            "used": int(r["n_used"]),
            "total": int(r["n_total"]),
        }
        for _, r in slopes.iterrows()
    ]


def _sort_value(value: float) -> str:
    return f"{float(value):.6g}" if math.isfinite(float(value)) else ""


def _statuses(counts: pd.DataFrame) -> list[tuple[str, str]]:
    """The statuses that occur, converged first, with their names in words."""
    found = [str(s) for s in counts.groupby("status")["count"].sum().loc[lambda c: c > 0].index]
    known = [s for s in STATUS_LABELS if s in found]
    return [(s, STATUS_LABELS.get(s, s)) for s in (*known, *(s for s in found if s not in known))]


def _count_rows(counts: pd.DataFrame, labels: dict[str, str]) -> list[dict[str, Any]]:
    rows = []
    for key, group in counts.groupby(["gate", "n_experts", "estimator"], sort=False):
        gate, k, estimator = _key(key)
        found = group.groupby("status")["count"].sum()
        rows.append(
            {
                "gate": labels.get(gate, gate),
                "k": int(k),
                "estimator": ESTIMATOR_LABELS.get(estimator, estimator),
                "counts": {str(s): int(c) for s, c in found.items()},
                "total": int(found.sum()),
            }
        )
    gates, estimators = list(labels.values()), list(ESTIMATOR_LABELS.values())
    order = {name: i for i, name in enumerate([*gates, *estimators])}
    return sorted(
        rows, key=lambda r: (order.get(r["gate"], 99), r["k"], order.get(r["estimator"], 99))
    )


def _key(key: Hashable) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def _left_out(counts: pd.DataFrame) -> str:
    """One sentence on the fits that did not converge."""
    found = counts.groupby("status")["count"].sum()
    if found.empty:
        return "No fits were counted."
    total, other = int(found.sum()), found[(found.index != "converged") & (found > 0)]
    if other.empty:
        return f"All {size_text(total)} fits converged."
    named = ", ".join(
        f"{size_text(c)} {STATUS_LABELS.get(str(s), str(s))}"
        for s, c in other.sort_values(ascending=False).items()
    )
    return f"{size_text(other.sum())} of {size_text(total)} fits did not converge: {named}."


def _run_rows(results: xr.Dataset, labels: dict[str, str]) -> list[dict[str, Any]]:
    """Per gate and fitted k: the sampler's health, the cost, and how far MAP is from MLE."""
    rows = []
    for gate in results["gate"].to_numpy():
        for k in results["n_experts"].to_numpy():
            cell = results.sel(gate=gate, n_experts=k)
            distance = [cell["map_mle_distance"].isel(n=i).to_numpy() for i in (0, -1)]
            seconds = [cell["seconds"].sel(estimator=e).to_numpy() for e in ESTIMATOR_LABELS]
            rows.append(
                {
                    "gate": labels[str(gate)],
                    "k": int(k),
                    "divergences": _sum(cell["divergences"].to_numpy()),
                    "ess": _extreme(cell["min_ess"].to_numpy(), np.min, 0),
                    "rhat": _extreme(cell["max_rhat"].to_numpy(), np.max, 3),
                    "distance": " → ".join(_scientific(d) for d in distance),
                    "seconds": " / ".join(_extreme(s, np.median, 2) for s in seconds),
                }
            )
    return rows


def _sum(values: np.ndarray) -> str:
    kept = values[np.isfinite(values)]
    return size_text(kept.sum()) if kept.size else "–"


def _extreme(values: np.ndarray, reduce: Any, digits: int) -> str:
    kept = values[np.isfinite(values)]
    return number(float(reduce(kept)), digits) if kept.size else "–"


def _scientific(values: np.ndarray) -> str:
    kept = values[np.isfinite(values)]
    return f"{np.median(kept):.1e}".replace("e-0", "e-").replace("-", "−") if kept.size else "–"


# --- settings


def _settings(results: xr.Dataset) -> list[tuple[str, str]]:
    attributes = results.attrs
    starts = str(attributes.get("starts", "unknown"))
    note = _START_NOTES.get(starts)
    return [
        ("Scenario", str(attributes.get("scenario", "unknown"))),
        ("Prior", str(attributes.get("prior", "unknown"))),
        ("Start protocol", f"{starts}: {note}" if note else starts),
        ("Gates", ", ".join(_labels(results).values())),
        ("Experts fitted", ", ".join(str(k) for k in results["n_experts"].to_numpy())),
        ("Sample sizes", ", ".join(size_text(n) for n in results["n"].to_numpy())),
        ("Replicates", str(results.sizes["replicate"])),
        ("Posterior radius", f"{_level(results):.0%} quantile of the loss".replace("%", " %")),
        ("Created", str(attributes.get("created", "unknown"))),
        ("bayesmoe", str(attributes.get("package_version", "unknown"))),
    ]


def _versions(text: str) -> list[tuple[str, str]]:
    """Library versions out of their JSON text; the text itself if it is not an object."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return [("versions", str(text))] if text else []
    return [(str(name), str(version)) for name, version in found.items()]
