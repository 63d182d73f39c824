"""Results as JSON for other programs: what is not finite is null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bayesmoe.data.table import Table
from bayesmoe.diagnostics.analysis import Analysis, estimates, mle_errors, posterior_summary
from bayesmoe.diagnostics.stored_comparison import StoredComparison
from bayesmoe.diagnostics.stored_fit import StoredFit, data_digest
from bayesmoe.diagnostics.verdict import Checks
from bayesmoe.inference.point import Fit
from bayesmoe.report._findings import find_troubles

_POSTERIOR = {"mean": "mean", "sd": "sd", "eti90_lb": "low", "eti90_ub": "high",
              "ess_bulk": "ess", "r_hat": "r_hat"}  # fmt: skip


def fit_json(stored: StoredFit, directory: Path) -> str:
    """One object about a fit.

    Keys ``request``, ``data``, ``mle``, ``map``, ``posterior``, ``estimates`` (by parameter),
    ``checks``, ``troubles`` and ``directory``.
    """
    analysis = stored.analysis
    attributes = analysis.posterior.attrs
    return _dumps(
        {
            "request": stored.request._asdict(),
            "data": _data(analysis.table),
            "mle": _point(analysis.mle),
            "map": _point(analysis.map),
            "posterior": {name: attributes[name] for name in ("status", "max_rhat", "min_ess")},
            "estimates": _estimates(analysis),
            "checks": _checks(analysis.checks),
            "troubles": [trouble._asdict() for trouble in find_troubles(analysis)],
            "directory": str(directory),
        }
    )


def comparison_json(stored: StoredComparison, directory: Path) -> str:
    """One object about a comparison.

    Keys ``request``, ``data``, ``models``, ``recommended``, ``text`` and ``directory``; ``models``
    has a row per model with the columns of `Comparison.to_frame`, in its order.
    """
    comparison = stored.comparison
    frame = comparison.to_frame()
    checks = {assessment.name: assessment.checks for assessment in comparison.assessments}
    return _dumps(
        {
            "request": stored.request._asdict(),
            "data": _data(comparison.table),
            "models": [
                {"model": str(name), **row, "all_checks": _checks(checks[str(name)])}
                for name, row in zip(frame.index, frame.to_dict("records"), strict=True)
            ],
            "recommended": comparison.recommendation.model,
            "text": comparison.recommendation.text,
            "directory": str(directory),
        }
    )


def _data(table: Table) -> dict[str, Any]:
    return {"rows": len(table.y), "sha256": data_digest(table)}


def _point(fit: Fit) -> dict[str, Any]:
    starts = zip(fit.starts.objective, fit.starts.status, strict=True)
    return {
        "status": fit.status.name.lower(),
        "converged": fit.converged,
        "log_likelihood": fit.log_likelihood,
        "log_density": fit.log_density,
        "starts": [{"objective": value, "status": end.name.lower()} for value, end in starts],
    }


def _estimates(analysis: Analysis) -> dict[str, dict[str, Any]]:
    points, errors = estimates(analysis), mle_errors(analysis)
    summary = posterior_summary(analysis.posterior, analysis.model.gate)
    posterior = summary[list(_POSTERIOR)].rename(columns=_POSTERIOR)
    return {
        str(name): dict(row, posterior=dict(posterior.loc[str(name)]))
        for name, row in points.join(errors).iterrows()
    }


def _checks(checks: Checks) -> dict[str, Any]:
    rows = checks.to_frame().reset_index().to_dict("records")
    return {"verdict": checks.verdict.label, "checks": rows}


def _dumps(value: object) -> str:
    return json.dumps(_plain(value), allow_nan=False, indent=2, ensure_ascii=True)


def _plain(value: Any) -> Any:
    """JSON's own types; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
