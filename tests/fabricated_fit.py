"""Fits that no sampler made, for tests of what is written about them."""

from __future__ import annotations

import json

import arviz_base
import numpy as np
import pandas as pd
import scipy.special
import scipy.stats

import bayesmoe as bm
from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.data.table import Table
from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.diagnostics.checks import Check, Checks, Verdict
from bayesmoe.diagnostics.posterior import DIMS
from bayesmoe.diagnostics.stored_fit import FitRequest, StoredFit
from bayesmoe.inference.outcome import Starts, Status
from bayesmoe.inference.point import Fit
from bayesmoe.report._findings import _CHECKS

N = 60
HOSTILE = '<script>alert(1)</script>"&'
CENTRE = MixingMeasure([[4.0], [0.0]], [0.5, 0.0], 1.0, [[1.0], [-1.0]], [0.1, 2.0], [0.04, 0.09])


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
    model, (x, y) = bm.moe("softmax", 2), simulate()
    rng = np.random.default_rng(2)
    draws: dict[str, np.ndarray] = {}
    for field in FIELDS:
        value = np.asarray(getattr(CENTRE, field))
        noise = 0.02 * rng.normal(size=(2, 50, *value.shape))
        if field.startswith("gate"):
            noise[:, :, -1] = 0.0
        draws[field] = value * np.exp(noise if field != "temperature" else 0 * noise)
    stats = {"log_likelihood": rng.normal(size=(2, 50)), "lp": rng.normal(size=(2, 50))}
    tree = arviz_base.from_dict(
        {"posterior": draws, "sample_stats": stats, "observed_data": {"y": y},
         "log_likelihood": {"y": pointwise(draws, x, y)}, "constant_data": {"x": x}},
        dims=DIMS,
        coords={"expert": np.arange(2), "covariate": [names[0]], "obs": np.arange(N)},
        attrs={"/": {"status": "converged", "max_rhat": 1.0, "min_ess": np.inf, "n_warmup": 5,
                     "bayesmoe_version": "9.9", "versions": json.dumps({"jax": "0.0"})}},
    )  # fmt: skip
    mle = mle or point([-5.0, -5.0], [Status.CONVERGED] * 2, map_=False)
    map_ = map_ or point([-9.0, -9.0], [Status.CONVERGED] * 2, map_=True)
    table = Table(pd.DataFrame(x, columns=[names[0]]), pd.Series(y, name=names[1]))
    return Analysis(model, table, mle, map_, mle.measure, tree, checks or passed())


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
