"""Comparison of models: criteria by hand, leave-one-out by quadrature, the rule, independence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
from conftest import CASE, GateCase

import bayesmoe as bm
from bayesmoe.diagnostics.comparison import (
    Assessment,
    Comparison,
    compare_models,
    n_undetermined,
)
from bayesmoe.diagnostics.recommendation import is_noise, recommend

K2 = "dense-to-sparse, k = 2"


def frame(**models: tuple[float, float, int, bool]) -> pd.DataFrame:
    """By model: difference, its standard error, number of parameters, whether reliable."""
    rows = {
        name: {
            "elpd": -50.0 + diff,
            "elpd_diff": diff if reliable else np.nan,
            "elpd_diff_se": se if reliable else np.nan,
            "noise": reliable and is_noise(diff, se),
            "n_parameters": p,
            "n_undetermined": 0,
            "reliable": reliable,
            "posterior_status": "converged",
            "mle_status": "converged",
            "checks": "passed",
            "mode_weight": 1.0,
            "bad_rows": 0 if reliable else 12,
            "refitted_rows": 0,
        }
        for name, (diff, se, p, reliable) in models.items()
    }
    return pd.DataFrame(list(rows.values()), index=pd.Index(rows))


@pytest.mark.parametrize(
    ("difference", "error", "noise"),
    [(-3.9, 0.1, True), (-4.1, 0.1, False), (-9.0, 4.6, True), (-9.0, 4.4, False), (0, 0, True)],
)
def test_noise_is_below_four_or_two_standard_errors(
    difference: float, error: float, noise: bool
) -> None:
    assert is_noise(difference, error) is noise


def test_the_simplest_within_noise_is_recommended() -> None:
    found = recommend(frame(a=(0, 0, 13, True), b=(-3, 1, 8, True), c=(-9, 2, 3, True)), 200)
    assert found.model == "b"
    assert "b (8 identifiable parameters)" in found.text
    assert "-3.0 ± 1.0 from a" in found.text
    assert "More than noise (elpd less that of a): c -9.0 ± 2.0" in found.text
    assert "tend to be too small" not in found.text


def test_the_best_is_recommended_where_all_simpler_are_worse_by_more_than_noise() -> None:
    found = recommend(frame(a=(0, 0, 13, True), c=(-9, 2, 3, True)), 28)
    assert found.model == "a"
    assert "the best by more than noise" in found.text
    assert "With 28 rows these errors tend to be too small" in found.text


def test_an_unreliable_elpd_is_never_recommended() -> None:
    found = recommend(frame(a=(0, 0, 8, True), b=(9, 0, 3, False)), 200)
    assert found.model == "a"
    assert "Left out: b, whose elpd of -41.0 is unreliable: 12 rows have a bad" in found.text
    assert "the only one that is reliable" in found.text
    assert "more than noise" not in found.text
    none = recommend(frame(b=(0, 0, 3, False)), 200)
    assert none.model is None
    assert none.text.startswith("No model can be recommended")


def test_a_mode_with_little_of_the_mass_is_the_reason_that_is_given() -> None:
    table = frame(a=(0, 0, 8, True), b=(9, 0, 3, False)).assign(mode_weight=[1.0, 0.28])
    assert "b, whose elpd of -41.0 is unreliable: the modes of its" in recommend(table, 99).text
    assert "28% of the mass" in recommend(table, 99).text


def test_the_best_of_many_is_said_to_be_chosen() -> None:
    many = {f"m{i}": (-float(i), 1.0, 5, True) for i in range(12)}
    assert "The best of 12 models" in recommend(frame(**many), 200).text
    del many["m11"]
    assert "The best of" not in recommend(frame(**many), 200).text


def test_caveats_of_the_recommended_model_are_told() -> None:
    table = frame(a=(0, 0, 8, True))
    table.loc["a", ["mode_weight", "mle_status"]] = [0.4, "separated"]
    text = recommend(table, 200).text
    assert "40% of the mass" in text
    assert "its MLE is separated: AIC, BIC and ICL mean little" in text


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ([], "no model to compare"),
        ([bm.moe("softmax", 2, prior="flat")], "improper"),
        ([bm.moe("softmax", 9)], "cannot determine"),
        (
            [bm.moe("activation_dense_to_sparse", 2, activation=f) for f in (
                lambda u: u * u, lambda u: u + u * u)],
            "two different models are named",
        ),
    ],
)  # fmt: skip
def test_misuse_is_refused_before_anything_is_computed(models: Any, words: str) -> None:
    rng = np.random.default_rng(0)

    def never(text: str) -> None:
        raise AssertionError(text)

    with pytest.raises(ValueError, match=words):
        compare_models(models, (rng.normal(size=30), rng.normal(size=30)), observe=never)


# --- what the likelihood depends on


def collinear(kind: str) -> np.ndarray:
    """Forty rows of covariates of which some are determined by others, or none."""
    rng = np.random.default_rng(7)
    x, level = rng.normal(size=40), rng.integers(3, size=40)
    columns = {
        "none": [x, 10 + rng.normal(size=40)],
        "twice": [x, 3 * x],
        "shifted": [x, 3 * x + 1],
        "levels": [x, *np.eye(3)[level].T],
    }
    return np.column_stack(columns[kind])


def n_told(case: GateCase, k: int, x: np.ndarray, gate_columns: list[int]) -> int:
    """How many parameters change the density: the rank of differences at a point of no meaning."""
    rng, d = np.random.default_rng(k), x.shape[1]
    free_slopes = (k - 1) * len(gate_columns)
    sizes = [free_slopes, k - 1, int(case.temperature), k * d, k, k]
    rows, y = np.tile(x, (3, 1)), 3 * rng.normal(size=3 * len(x))

    def log_density(point: np.ndarray) -> np.ndarray:
        beta1, beta0, tau, a, b, nu = np.split(point, np.cumsum(sizes)[:-1])
        slopes = np.zeros((k, d))
        slopes[:-1, gate_columns] = beta1.reshape(k - 1, len(gate_columns))
        measure = bm.MixingMeasure(
            slopes, np.append(beta0, 0.0), np.exp(tau).prod(), a.reshape(k, d), b, np.exp(nu)
        )
        return np.log(case.density(measure, rows, y))

    point, step = 0.5 * rng.normal(size=sum(sizes)), 1e-5
    ends = [(log_density(point + h), log_density(point - h)) for h in step * np.eye(len(point))]
    scores = np.column_stack([(up - down) / (2 * step) for up, down in ends])
    return int(np.linalg.matrix_rank(scores, tol=1e-6 * np.linalg.norm(scores)))


@pytest.mark.parametrize("kind", ["none", "twice", "shifted", "levels"])
@pytest.mark.parametrize("label", ["softmax", "dense_to_sparse", "tanh", "identity"])
def test_parameters_that_change_no_density_do_not_count(label: str, kind: str) -> None:
    x, case = collinear(kind), CASE[label]
    every = list(range(x.shape[1]))
    for k, columns in ((1, every), (2, every), (3, every), (3, [0])):
        if k == 1 and case.temperature:  # such models have a softmax gate
            continue
        model = bm.moe(case.gate(k), k, gate_covariates=columns)
        expected = model.layout(x.shape[1]).size - n_told(case, k, x, columns)
        assert n_undetermined(model, x) == expected
    assert n_undetermined(bm.moe("softmax", 2, gate_covariates=(), expert_covariates=()), x) == 0


@pytest.mark.parametrize("origin", [0.0, 2000.0, 2451545.0, 1e8])
def test_collinear_covariates_do_not_count_twice_wherever_they_are_counted_from(
    origin: float, rng: np.random.Generator
) -> None:
    """Two calendars: their sum is rounded, by more than the rank of their deviations forgives."""
    x = rng.normal(size=200)
    model, both = bm.moe("softmax", 2), np.column_stack([origin + x, x])
    assert n_undetermined(model, both) == 3
    apart = both + 1e-5 * np.column_stack([np.zeros(200), rng.normal(size=200)])
    assert n_undetermined(model, apart) == 0


@pytest.mark.slow
def test_a_covariate_given_twice_changes_no_criterion() -> None:
    model = bm.moe("softmax", 2)
    once = compare_models([model], (X, Y)).assessments[0]
    twice = compare_models([model], (np.column_stack([X, X]), Y)).assessments[0]
    assert (once.n_parameters, once.n_undetermined) == (8, 0)
    assert (twice.n_parameters, twice.n_undetermined) == (8, 3)
    for one, other in ((once.aic, twice.aic), (once.bic, twice.bic), (once.icl, twice.icl)):
        assert other == pytest.approx(one, rel=1e-6)


# --- real fits of a small table: two lines and noise

N = 30
RNG = np.random.default_rng(4)
X = np.sort(RNG.uniform(-1, 1, N))
Y = np.where(X > 0, 1 + 2 * X, -1 - X) + 0.3 * RNG.normal(size=N)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    models = [bm.moe("dense_to_sparse", k) for k in (2, 1)] + [bm.moe("softmax", 1)]
    return compare_models(models, (X, Y), key=3)


def of(comparison: Comparison, name: str) -> Assessment:
    (found,) = [a for a in comparison.assessments if a.name == name]
    return found


@pytest.mark.slow
def test_criteria_are_those_of_the_formulas(comparison: Comparison) -> None:
    assert [a.name for a in comparison.assessments] == [K2, "one expert"]  # one k = 1 only
    for name, case, p in ((K2, CASE["dense_to_sparse"], 8), ("one expert", CASE["softmax"], 3)):
        row, measure = comparison.to_frame().loc[name], of(comparison, name).mle.measure
        joint = case.probabilities(measure, X[:, None]) * case.components(measure, X[:, None]).pdf(
            Y[:, None]
        )
        loglik = np.log(joint.sum(1)).sum()
        shares = joint / joint.sum(1, keepdims=True)
        entropy = -scipy.special.xlogy(shares, shares).sum()
        expected = [loglik, 2 * p - 2 * loglik, p * np.log(N) - 2 * loglik]
        expected.append(expected[-1] + 2 * entropy)
        np.testing.assert_allclose(
            row[["log_likelihood", "aic", "bic", "icl"]].astype(float), expected, rtol=1e-9
        )
        assert row["n_parameters"] == p
        assert row["n_undetermined"] == (1 if name == K2 else 0)
    assert of(comparison, "one expert").effective_experts == pytest.approx(1.0)
    assert 1.5 < of(comparison, K2).effective_experts <= 2.0


@pytest.mark.slow
def test_one_expert_is_left_out_as_by_quadrature(comparison: Comparison) -> None:
    """Given its variance a line is conjugate; the variance is integrated out on a grid."""
    x, y = (X - X.mean()) / X.std(), (Y - Y.mean()) / Y.std()
    design = np.column_stack([x, np.ones(N)])
    variances = np.exp(np.linspace(-7, 4, 1500))
    prior = scipy.stats.lognorm(1.5, scale=0.1).pdf(variances) * variances  # on the log's grid

    def evidence(rows: np.ndarray) -> float:
        a, b = design[rows], y[rows]
        values = []
        for v in variances:
            law = scipy.stats.multivariate_normal(cov=4 * a @ a.T + v * np.eye(len(b)))
            values.append(law.logpdf(b))
        return float(scipy.special.logsumexp(np.array(values) + np.log(prior)))

    whole, rows = evidence(np.arange(N)), np.arange(N)
    exact = np.array([whole - evidence(rows[rows != i]) for i in range(0, N, 5)]) - np.log(Y.std())
    found = np.asarray(of(comparison, "one expert").loo.elpd_i)[::5]
    np.testing.assert_allclose(found, exact, atol=0.03)


@pytest.mark.slow
def test_a_model_does_not_depend_on_the_others_and_a_refit_is_exact(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = of(comparison, "one expert")
    # all rows bad: every value is then from a refit, which must agree with PSIS where that is good
    monkeypatch.setattr("bayesmoe.diagnostics.comparison.MAX_REFITS", N)
    import arviz_stats

    loo = arviz_stats.loo

    def strict(*args: Any, **options: Any) -> Any:
        found = loo(*args, **options)
        found.pareto_k = found.pareto_k.copy()
        found.pareto_k[[0, 7]] = 2.0
        return found

    monkeypatch.setattr("arviz_stats.loo", strict)
    alone = compare_models([bm.moe("softmax", 1)], (X, Y), key=3)
    after = of(alone, "one expert")
    for field in ("slope", "variance"):
        np.testing.assert_array_equal(
            before.posterior["posterior"][field], after.posterior["posterior"][field]
        )
    assert after.bad_rows == after.refitted_rows == (0, 7)
    assert after.reliable
    values, psis = np.asarray(after.loo.elpd_i), np.asarray(before.loo.elpd_i)
    others = np.delete(np.arange(N), [0, 7])
    np.testing.assert_array_equal(values[others], psis[others])
    np.testing.assert_allclose(values[[0, 7]], psis[[0, 7]], atol=0.06)
    assert np.all(values[[0, 7]] != psis[[0, 7]])
    assert after.loo.elpd == pytest.approx(values.sum())
    assert after.loo.se == pytest.approx(np.sqrt(N) * values.std())
    monkeypatch.setattr("bayesmoe.diagnostics.comparison.MAX_REFITS", 1)
    beyond = compare_models([bm.moe("softmax", 1)], (X, Y), key=3)
    assert not of(beyond, "one expert").reliable
    assert beyond.recommendation.model is None
    assert np.isnan(beyond.to_frame().loc["one expert", "elpd_diff"])
