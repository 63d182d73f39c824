"""A comparison of models in a directory: written with all that it takes to open it again.

``models.nc`` has what was asked for, and of every model its draws, every start of MLE and MAP bit
for bit, its checks and its leave-one-out values. Nothing in it is executed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from arviz_stats.utils import ELPDData
from xarray import DataTree

from bayesmoe.core.model import MoE
from bayesmoe.diagnostics.comparison import Assessment, Comparison, name_models
from bayesmoe.diagnostics.recommendation import Recommendation
from bayesmoe.diagnostics.requests import CompareRequest, as_stored, from_stored
from bayesmoe.diagnostics.stored_fit import (
    StoredFitError,
    data_digest,
    fit_dataset,
    open_tree,
    stored_checks,
    stored_fit,
    stored_table,
    write_tree,
)

MODELS = "models.nc"
FORMAT = "bayesmoe comparison 1"

_NUMBERS = ("n_parameters", "n_undetermined", "aic", "bic", "icl", "effective_experts")
_ROWS = ("bad_rows", "refitted_rows")
_LOO_NUMBERS = ("elpd", "se", "p", "n_samples", "n_data_points", "good_k")
_LOO_TEXTS = ("kind", "scale")
_LOO_ARRAYS = ("elpd_i", "pareto_k")


class StoredComparison(NamedTuple):
    """What was asked for, and what came of it."""

    request: CompareRequest
    comparison: Comparison


def save_comparison(directory: Path, request: CompareRequest, comparison: Comparison) -> None:
    """Write ``models.nc`` into a directory that exists."""
    groups: dict[str, xr.Dataset] = {}
    for number, assessment in enumerate(comparison.assessments):
        groups |= {f"/{number}{path}": data for path, data in _groups(assessment).items()}
    tree = DataTree.from_dict(groups)
    tree.attrs = {
        "format": FORMAT,
        "request": json.dumps(as_stored(request)),
        "data_digest": data_digest(comparison.table),
        "recommendation": json.dumps(comparison.recommendation),
    }
    write_tree(directory / MODELS, tree)


def load_comparison(directory: str | Path) -> StoredComparison:
    """Open again what ``bayesmoe compare`` wrote.

    Parameters
    ----------
    directory
        The ``--out`` of the comparison.

    Returns
    -------
    The request, and the comparison as `bayesmoe.compare_models` returns it: of every model
    ``posterior`` (an ArviZ DataTree), ``mle``, ``map``, ``checks`` and ``loo``, which lacks the
    importance weights of draws. Numbers are those written, bit for bit.

    Raises
    ------
    StoredFitError
        If there is no comparison, or the file cannot be read.
    """
    path = Path(directory) / MODELS
    tree = open_tree(path, "comparison")
    if tree.attrs.get("format") != FORMAT:
        raise StoredFitError(f"{path} was not written by this version of bayesmoe; compare again")
    try:
        return _assemble(tree)
    except StoredFitError as error:
        raise StoredFitError(f"{path} {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise StoredFitError(f"{path} is damaged ({error!r}); compare again") from None


def _assemble(tree: DataTree) -> StoredComparison:
    request: CompareRequest = from_stored(CompareRequest, json.loads(tree.attrs["request"]))
    table = stored_table(tree.children["0"].children["posterior"], request.response)
    if data_digest(table) != tree.attrs["data_digest"]:
        raise StoredFitError("holds other data than were compared; compare again")
    covariates = [str(name) for name in table.x.columns]
    named = name_models(request.models(covariates), covariates)
    if len(named) != len(tree.children):
        raise StoredFitError(f"holds {len(tree.children)} of {len(named)} models; compare again")
    assessments = tuple(
        _assessment(name, model, tree.children[str(number)])
        for number, (name, model) in enumerate(named.items())
    )
    recommendation = Recommendation(*json.loads(tree.attrs["recommendation"]))
    return StoredComparison(request, Comparison(table, assessments, recommendation))


def _groups(assessment: Assessment) -> dict[str, xr.Dataset]:
    """One model's groups by path."""
    numbers: dict[str, Any] = {name: getattr(assessment, name) for name in _NUMBERS}
    rows = {name: np.array(getattr(assessment, name), dtype=np.int64) for name in _ROWS}
    posterior = {
        f"/posterior{node.path}".rstrip("/"): node.to_dataset(inherit=False)
        for node in assessment.posterior.subtree
    }
    return {
        "": xr.Dataset(attrs=numbers),
        "/rows": xr.Dataset({name: (f"{name}_", values) for name, values in rows.items()}),
        "/mle": fit_dataset(assessment.mle),
        "/map": fit_dataset(assessment.map),
        "/checks": assessment.checks.to_frame().to_xarray(),
        "/loo": _loo_dataset(assessment.loo),
        **posterior,
    }


def _assessment(name: str, model: MoE, node: DataTree) -> Assessment:
    parts = {part: child.to_dataset() for part, child in node.children.items()}
    numbers: dict[str, Any] = {key: node.attrs[key].item() for key in _NUMBERS}
    rows: dict[str, Any] = {key: tuple(parts["rows"][key].values.tolist()) for key in _ROWS}
    return Assessment(
        name=name,
        model=model,
        mle=stored_fit(parts["mle"]),
        map=stored_fit(parts["map"]),
        posterior=node.children["posterior"].copy(),  # with no parent
        checks=stored_checks(parts["checks"]),
        loo=_loo(parts["loo"]),
        **numbers,
        **rows,
    )


def _loo_dataset(loo: ELPDData) -> xr.Dataset:
    attributes = {name: getattr(loo, name) for name in (*_LOO_NUMBERS, *_LOO_TEXTS)}
    values = {name: ("obs", np.ravel(getattr(loo, name))) for name in _LOO_ARRAYS}
    return xr.Dataset(values, attrs={**attributes, "warning": int(loo.warning)})


def _loo(dataset: xr.Dataset) -> ELPDData:
    numbers = {name: dataset.attrs[name].item() for name in _LOO_NUMBERS}
    texts = {name: str(dataset.attrs[name]) for name in _LOO_TEXTS}
    values = {name: dataset[name] for name in _LOO_ARRAYS}
    return ELPDData(**numbers, **texts, warning=bool(dataset.attrs["warning"]), **values)
