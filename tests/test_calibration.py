"""Simulation-based calibration: where the truth is drawn from the prior, it is one more draw.

The rank of the truth among draws of the posterior is then uniform, whatever the quantity (Talts,
Betancourt, Simpson, Vehtari & Gelman 2018; Modrák et al., Bayesian Analysis 2023). Quantities have
no labels; the log-likelihood of the data is one of them. Truths and data come from NumPy.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import scipy.stats
from conftest import CASE, GateCase
from oracles import activation_spread

import bayesmoe as bm
from bayesmoe.core.scaling import Scaling
from bayesmoe.inference.laplace import MAX_PARETO_K, resample_laplace
from bayesmoe.inference.nuts import sample_chains

Floats = np.ndarray
Sampler = Callable[[bm.MoE, Floats, Floats, int, bm.Fit], bm.MixingMeasure | None]

N, REPLICATIONS, RANKS = 50, 200, 19
X = np.linspace(-1.7, 1.7, N)[:, None]
WATCHED = (
    np.array([[-1.0], [0.2], [1.5]]),
    np.array([0.5, -0.5, 1.0]),
)  # the density at three points
LEVEL = 1e-4  # of each test: four gates and up to seven quantities err together in 3 of 1000

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _prior_does_not_depend_on_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stated for standardised data; here data count as standardised as they are."""
    identity = classmethod(lambda cls, gate, x, y: Scaling.identity(x.shape[1]))
    monkeypatch.setattr(Scaling, "from_data", identity)


def draw_truth(case: GateCase, rng: np.random.Generator) -> bm.MixingMeasure:
    """The weak prior, written out."""
    tau, per_tau = 1.0, 1.0
    if case.sigma is not None:
        tau = per_tau = rng.lognormal(np.log(activation_spread(case.label) / 3), 1.0)
    elif case.temperature:
        tau = rng.lognormal(0, 0.5)
    return bm.MixingMeasure(
        [[rng.normal(0, 3)], [0.0]],
        [rng.normal(0, 3) * per_tau, 0.0],
        tau,
        rng.normal(0, 2, size=(2, 1)),
        rng.normal(0, 2, size=2),
        rng.lognormal(np.log(0.1), 1.5, size=2),
    )


def simulate(case: GateCase, truth: bm.MixingMeasure, rng: np.random.Generator) -> Floats:
    weights, laws = case.probabilities(truth, X), case.components(truth, X)
    label = (rng.uniform(size=(N, 1)) > np.cumsum(weights, axis=1)).sum(1).clip(max=1)
    return rng.normal(laws.mean(), laws.std())[np.arange(N), label]


def log_density(case: GateCase, measure: bm.MixingMeasure, x: Floats, y: Floats) -> Floats:
    """That of `GateCase.density`, many times faster for few rows."""
    variance = np.asarray(measure.variance)
    residual = y[:, None] - x @ np.asarray(measure.slope).T - np.asarray(measure.intercept)
    laws = np.exp(-(residual**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    with np.errstate(divide="ignore"):
        return np.log((case.probabilities(measure, x) * laws).sum(1))


def quantities(case: GateCase, measure: bm.MixingMeasure, y: Floats) -> Floats:
    own = log_density(case, measure, X, y).sum()
    others = log_density(case, measure, *WATCHED)
    variance, slope = np.asarray(measure.variance), np.asarray(measure.slope)
    values = [own, *others, variance.max(), slope.min()]
    return np.array([*values, float(measure.temperature)] if case.temperature else values)


def rank(case: GateCase, sample: Sampler, seed: int) -> Floats | None:
    """Of the truth among `RANKS` draws, for every quantity; None where there are no draws."""
    rng = np.random.default_rng(seed)
    truth = draw_truth(case, rng)
    y = simulate(case, truth, rng)
    model = bm.moe(case.gate(2), 2)
    fit = bm.fit_map(model, X, y, key=seed, n_starts=4)
    measures = sample(model, X, y, seed, fit)
    if measures is None:
        return None
    draws = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), measures)
    below = []
    for i in np.linspace(0, len(draws.temperature) - 1, RANKS).astype(int):
        below.append(quantities(case, jax.tree.map(operator.itemgetter(i), draws), y))
    return (np.array(below) < quantities(case, truth, y)).sum(0)


def check_uniform(case: GateCase, sample: Sampler, least: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda seed: rank(case, sample, seed), range(REPLICATIONS)))
    ranks = np.array([one for one in found if one is not None])
    assert len(ranks) >= least
    for column in ranks.T:
        counts = np.bincount(column, minlength=RANKS + 1)
        assert scipy.stats.chisquare(counts.reshape(-1, 4).sum(1)).pvalue > LEVEL, counts
        # a statistic that sees shifts and wrong widths better
        for moment in (column, np.abs(column - RANKS / 2)):
            values = (
                np.arange(RANKS + 1)
                if moment is column
                else np.abs(np.arange(RANKS + 1) - RANKS / 2)
            )
            z = (moment.mean() - values.mean()) / (values.std() / np.sqrt(len(ranks)))
            assert 2 * scipy.stats.norm.sf(abs(z)) > LEVEL, counts


def by_nuts(model: bm.MoE, x: Floats, y: Floats, seed: int, fit: bm.Fit) -> bm.MixingMeasure:
    draws = sample_chains(
        model, x, y, key=seed, start=fit, n_chains=1, n_warmup=150, n_draws=229, n_threads=1
    )
    return draws.measures


def by_laplace(
    model: bm.MoE, x: Floats, y: Floats, seed: int, fit: bm.Fit
) -> bm.MixingMeasure | None:
    draws = resample_laplace(model, x, y, key=seed, start=fit, n_chains=1, n_draws=400)
    return draws.measures if draws.pareto_k < MAX_PARETO_K else None


TOP_ONE = GateCase("top_one", "top_k_sparse", {"top_k": 1})


@pytest.mark.parametrize(
    "case",
    [CASE["softmax"], TOP_ONE, CASE["dense_to_sparse"], CASE["sigmoid"]],
    ids=lambda case: case.label,
)
def test_nuts_is_calibrated(case: GateCase) -> None:
    check_uniform(case, by_nuts, least=REPLICATIONS)


@pytest.mark.parametrize("label", ["softmax", "sigmoid"])
def test_laplace_is_calibrated_where_it_says_so(label: str) -> None:
    """That a Pareto k is good depends on the data alone, so that ranks stay uniform."""
    check_uniform(CASE[label], by_laplace, least=REPLICATIONS // 4)
