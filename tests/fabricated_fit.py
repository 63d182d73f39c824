"""Fits that no sampler made, for tests of what is written about them."""

from __future__ import annotations

import json

import arviz_base
import numpy as np
import pandas as pd
import scipy.special
import scipy.stats
import xarray as xr
from arviz_stats.utils import ELPDData

import bayesmoe as bm
from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.data.table import Table
from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.diagnostics.comparison import Assessment, Comparison, name_models
from bayesmoe.diagnostics.posterior import DIMS
from bayesmoe.diagnostics.recommendation import Recommendation
from bayesmoe.diagnostics.requests import CompareRequest, FitRequest
from bayesmoe.diagnostics.stored_comparison import StoredComparison
from bayesmoe.diagnostics.stored_fit import StoredFit
from bayesmoe.diagnostics.verdict import Check, Checks, Verdict
from bayesmoe.inference.outcome import Starts, Status
from bayesmoe.inference.point import Fit
from bayesmoe.report._findings import _CHECKS

N = 60
HOSTILE = '<script>alert(1)</script>"&'
CENTRE = MixingMeasure([[4.0], [0.0]], [0.5, 0.0], 1.0, [[1.0], [-1.0]], [0.1, 2.0], [0.04, 0.09])
PLANE = CENTRE.replace(gate_slope=[[4.0, -2.0], [0.0, 0.0]], slope=[[1.0, 0.5], [-1.0, 0.2]])


def point(
    objective: list[float], status: list[Status], measure: MixingMeasure = CENTRE, *, map_: bool
) -> Fit:
    """A fit whose first start is the best."""
    n = len(objective)
    scale = 1 + 0.01 * np.arange(n)  # of the first, the best, one
    fields = (np.multiply.outer(scale, np.asarray(getattr(measure, field))) for field in FIELDS)
    batch = MixingMeasure(*fields)
    numbers = np.linspace(0.1, 0.2, n)
    starts = Starts(np.array(objective), tuple(status), numbers / 1e9, numbers, np.arange(n), batch)
    density = objective[0] if map_ else float("nan")
    return Fit(measure, objective[0], density, status[0], 1e-10, 0.1, starts)


def simulate(measure: MixingMeasure = CENTRE) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.uniform(-2, 2, N)
    first = rng.random(N) < 1 / (1 + np.exp(-(4.0 * x + 0.5)))
    y = np.where(first, 0.1 + x, 2.0 - x) + np.where(first, 0.2, 0.3) * rng.normal(size=N)
    return x[:, None], y


def pointwise(draws: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """log g(y_j|x_j) of each draw, shape ``(chain, draw, n)``."""
    logits = draws["gate_slope"] @ x.T + draws["gate_intercept"][..., None]
    means = draws["slope"] @ x.T + draws["intercept"][..., None]
    laws = scipy.stats.norm(means, np.sqrt(draws["variance"])[..., None])
    weights = scipy.special.softmax(logits, axis=-2)
    return np.log((weights * laws.pdf(y)).sum(-2))


def passed(**others: tuple[Verdict, float, str]) -> Checks:
    """All checks passed but those given by name, underscores for spaces."""
    found = dict.fromkeys(_CHECKS, (Verdict.PASSED, 0.5, "well"))
    found |= {name.replace("_", " "): value for name, value in others.items()}
    return Checks(tuple(Check(name, *value) for name, value in found.items()))


def make_analysis(
    mle: Fit | None = None,
    map_: Fit | None = None,
    checks: Checks | None = None,
    names: tuple[str, str] = ("u", "v"),
) -> Analysis:
    """An analysis that no sampler made: draws around ``CENTRE``, in a whole tree."""
    x, y = simulate()
    mle = mle or point([-5.0, -5.0], [Status.CONVERGED] * 2, map_=False)
    map_ = map_ or point([-9.0, -9.0], [Status.CONVERGED] * 2, map_=True)
    tree = make_tree(CENTRE, x, y, (names[0],))
    table = Table(pd.DataFrame(x, columns=[names[0]]), pd.Series(y, name=names[1]))
    model = bm.moe("softmax", 2)
    return Analysis(model, table, mle, map_, mle.measure, tree, checks or passed())


def make_tree(
    centre: MixingMeasure, x: np.ndarray, y: np.ndarray, names: tuple[str, ...]
) -> xr.DataTree:
    """Draws around a measure, in a tree that has all that an analysis leaves."""
    rng = np.random.default_rng(2)
    draws: dict[str, np.ndarray] = {}
    for field in FIELDS:
        value = np.asarray(getattr(centre, field))
        noise = 0.02 * rng.normal(size=(2, 50, *value.shape))
        if field.startswith("gate"):
            noise[:, :, -1] = 0.0
        draws[field] = value * np.exp(noise if field != "temperature" else 0 * noise)
    stats = {"log_likelihood": rng.normal(size=(2, 50)), "lp": rng.normal(size=(2, 50))}
    prior = scipy.stats.norm(0, 5).logpdf(draws["slope"]).sum((2, 3))
    return arviz_base.from_dict(
        {"posterior": draws, "sample_stats": stats, "observed_data": {"y": y},
         "log_likelihood": {"y": pointwise(draws, x, y)}, "constant_data": {"x": x},
         "log_prior": {"slopes": prior}},
        dims=DIMS,
        coords={"expert": np.arange(2), "covariate": list(names), "obs": np.arange(len(y))},
        attrs={"/": {"status": "converged", "max_rhat": 1.0, "min_ess": np.inf, "n_warmup": 5,
                     "bayesmoe_version": "9.9", "versions": json.dumps({"jax": "0.0"})}},
    )  # fmt: skip


def make_plane(
    n: int = N, names: tuple[str, ...] = ("u", "v"), *, binary: bool = False
) -> Analysis:
    """An analysis by two covariates that no sampler made, the second of 0 and 1 if asked."""
    rng = np.random.default_rng(3)
    x = rng.uniform(-2, 2, (n, 2))
    if binary:
        x[:, 1] = rng.random(n) < 0.4
    means = x @ np.asarray(PLANE.slope).T + np.asarray(PLANE.intercept)
    first = rng.random(n) < scipy.special.expit(x @ np.asarray(PLANE.gate_slope[0]) + 0.5)
    noise = rng.normal(size=n)
    y = np.where(first, means[:, 0] + 0.2 * noise, means[:, 1] + 0.3 * noise)
    table = Table(pd.DataFrame(x, columns=list(names)), pd.Series(y, name="y"))
    mle, map_ = (
        point([-5.0, -5.0], [Status.CONVERGED] * 2, PLANE, map_=which) for which in (False, True)
    )
    tree = make_tree(PLANE, x, y, names)
    return Analysis(bm.moe("softmax", 2), table, mle, map_, PLANE, tree, passed())


def make_request(names: tuple[str, str] = ("u", "v")) -> FitRequest:
    return FitRequest("my data.csv", names[1], (names[0],), "softmax", {}, 2, seed=3)


def fitted() -> Fit:
    """A true maximum of the simulated data, for standard errors."""
    x, y = simulate()
    return bm.fit_mle(bm.moe("softmax", 2), x, y, n_starts=0, starts=CENTRE)


def hostile() -> StoredFit:
    """A fit whose names are hostile."""
    names = (HOSTILE, "{{ 7 * 7 }}<img src=x onerror=alert(2)>")
    return StoredFit(make_request(names), make_analysis(fitted(), names=names))


def make_comparison(names: tuple[str, str] = ("u", "v")) -> StoredComparison:
    """Three models that no sampler made; the last one's chains disagree, and it has a bad row."""
    gates = ("softmax", "dense_to_sparse", "activation_dense_to_sparse")
    request = CompareRequest(
        "my data.csv",
        names[1],
        (names[0],),
        gates,
        (2,),
        {"activation": "tanh"},
        seed=3,
        n_dropped=4,
    )
    analysis = make_analysis(names=names)
    models = name_models(request.models([names[0]]), [names[0]])
    assessments = tuple(
        _assessment(number, name, model, analysis)
        for number, (name, model) in enumerate(models.items())
    )
    text = f"Recommended: nothing\nBeware of {names[1]}."
    return StoredComparison(
        request, Comparison(analysis.table, assessments, Recommendation("softmax, k = 2", text))
    )


def _assessment(number: int, name: str, model: bm.MoE, analysis: Analysis) -> Assessment:
    tree = analysis.posterior.copy(deep=True)
    tree.attrs |= {"status": "chains disagree" if number == 2 else "converged", "mode_weight": 0.9}
    tree["posterior"].attrs["created_at"] = "2026-01-02T03:04:05.678"
    n = len(analysis.table.y)
    elpd = np.linspace(-2.0, -1.0 - number, n)
    k = np.linspace(0.1, 0.6 + 0.2 * (number == 2), n)
    loo = ELPDData(
        "loo", float(elpd.sum()), 2.5, 4.0 + number, 100, n, "log", number == 2, 0.7,
        elpd_i=xr.DataArray(elpd, dims="obs"), pareto_k=xr.DataArray(k, dims="obs"),
    )  # fmt: skip
    doubtful = passed(chains=(Verdict.DOUBTFUL, float("nan"), f"{name} has <b>doubts</b>"))
    bad = (3, n - 1) if number == 2 else ()
    return Assessment(
        name, model, analysis.mle, analysis.map, tree, doubtful, 8 + number, number % 2,
        20.5, 30.25, 30.75, 1.75, loo, bad, bad[:1],
    )  # fmt: skip
