"""The scikit-learn regressor: the library's own estimates behind scikit-learn's interface."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import scipy.stats
from conftest import CASE
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning, NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from xarray import DataTree

import bayesmoe as bm
from bayesmoe import regression
from bayesmoe.models import Softmax
from bayesmoe.regression import MoERegressor

Floats = np.ndarray
SMALL = {"n_starts": 12, "n_chains": 2, "n_warmup": 200, "n_draws": 300, "random_state": 0}
POINT = pytest.mark.parametrize("method", ["mle", "map"])
ALL = pytest.mark.parametrize(
    "method", ["mle", "map", pytest.param("posterior", marks=pytest.mark.slow)]
)


def sample(n: int = 300, seed: int = 0) -> tuple[Floats, Floats]:
    x, y = bm.scenario("lambda", "softmax").simulate(seed, n)
    return np.asarray(x), np.asarray(y)


@functools.cache
def fitted(method: str) -> MoERegressor:
    return MoERegressor(method=method, **SMALL).fit(*sample())


# --- what is learnt


@POINT
def test_a_point_fit_is_the_librarys_own(method: str) -> None:
    (x, y), regressor = sample(), fitted(method)
    fit = getattr(bm, f"fit_{method}")(bm.moe("softmax", 2), x, y, key=9, n_starts=12)
    assert regressor.log_likelihood_ == pytest.approx(fit.log_likelihood, rel=1e-10)
    assert (regressor.status_, regressor.converged_) == ("converged", True)
    assert regressor.n_features_in_ == 1
    mean = CASE["softmax"].probabilities(fit.measure, x)
    mean = (mean * CASE["softmax"].components(fit.measure, x).mean()).sum(1)
    np.testing.assert_allclose(regressor.predict(x), mean, rtol=1e-6, atol=1e-6)
    assert not hasattr(regressor, "posterior_")


@pytest.mark.slow
def test_a_posterior_is_the_librarys_own_with_experts_named_alike() -> None:
    (x, y), regressor = sample(), fitted("posterior")
    tree = regressor.posterior_
    assert tree["posterior"].sizes["draw"] == 300
    assert tree["observed_data"]["y"].values == pytest.approx(y)
    assert regressor.status_ == tree.attrs["status"]
    pointwise = tree["log_likelihood"]["y"].values.reshape(-1, len(y))
    expected = scipy.special.logsumexp(pointwise, axis=0) - np.log(len(pointwise))
    np.testing.assert_allclose(regressor.predict_log_density(x, y), expected, rtol=1e-9)
    assert regressor.log_likelihood_ == pytest.approx(expected.sum(), rel=1e-9)
    slopes = tree["posterior"]["slope"].values[..., 0]
    np.testing.assert_allclose(slopes.mean((0, 1)), regressor.measure_.slope[:, 0], rtol=0.1)
    again = clone(regressor).fit(pd.DataFrame(x, columns=["size"]), y)
    assert list(again.posterior_["posterior"]["covariate"].values) == ["size"]
    np.testing.assert_array_equal(again.posterior_["posterior"]["slope"].values[..., 0], slopes)


@pytest.mark.slow
def test_experts_that_swap_names_between_draws_are_named_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = {**SMALL, "n_warmup": 30, "n_draws": 20, "method": "posterior"}

    def swapped(*args: Any, **options: Any) -> Any:
        tree = bm.sample_posterior(*args, **options)
        first, group = {"chain": 0}, tree["posterior"].dataset.copy(deep=True)
        for name in ("slope", "intercept", "variance"):
            group[name][first] = group[name][first].values[:, ::-1]
        for name in ("gate_slope", "gate_intercept"):  # the last stays at zero
            group[name][first] = -group[name][first]
        tree["posterior"] = DataTree(group)
        return tree

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        plain = MoERegressor(**short).fit(*sample()).posterior_["posterior"]
        monkeypatch.setattr(regression, "sample_posterior", swapped)
        mended = MoERegressor(**short).fit(*sample()).posterior_["posterior"]
    for name in ("gate_slope", "slope", "variance"):
        np.testing.assert_allclose(mended[name], plain[name], atol=1e-12)


@ALL
def test_predictions_are_those_of_the_estimate(method: str) -> None:
    (x, y), regressor = sample(40, 1), fitted(method)
    law = regressor.predictive_
    mean, deviation = regressor.predict(x, return_std=True)
    np.testing.assert_array_equal(mean, law.mean(x))
    np.testing.assert_array_equal(deviation, law.standard_deviation(x))
    quantiles = regressor.predict_quantiles(x, [0.1, 0.5])
    np.testing.assert_array_equal(quantiles, law.quantiles(x, [0.1, 0.5]))
    np.testing.assert_array_equal(regressor.predict_interval(x, 0.8), law.interval(x, 0.8))
    np.testing.assert_array_equal(regressor.predict_density(x, y), law.density(x, y))
    np.testing.assert_array_equal(regressor.predict_log_density(x, y), law.log_density(x, y))
    np.testing.assert_array_equal(regressor.gate_probabilities(x), law.gate_probabilities(x))
    np.testing.assert_array_equal(regressor.responsibilities(x, y), law.responsibilities(x, y))
    assert regressor.score(x, y) == pytest.approx(r2_score(y, mean))
    assert regressor.score(x, y) > 0.7
    one, two = (regressor.sample(x, 3, random_state=seed) for seed in (1, 1))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (40, 3)
    assert not np.any(one == regressor.sample(x, 3, random_state=2))


@pytest.mark.slow
def test_one_expert_is_linear_regression() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(80, 3)) * [1, 10, 0.1] + [0, 50, 1]
    y = x @ [1.0, -0.2, 5.0] + rng.normal(size=80)
    at = x[::-1] * 1.5
    line = LinearRegression().fit(x, y)
    mean, deviation = MoERegressor(n_experts=1, method="mle").fit(x, y).predict(at, True)
    np.testing.assert_allclose(mean, line.predict(at), rtol=1e-8)
    np.testing.assert_allclose(deviation, np.sqrt(np.mean((y - line.predict(x)) ** 2)), rtol=1e-8)


def test_random_states_are_scikit_learns() -> None:
    x, y = sample()

    def paths(random_state: Any) -> Floats:
        regressor = MoERegressor(n_starts=12, random_state=random_state)
        return regressor.fit(x, y).fit_.starts.n_iterations

    np.testing.assert_array_equal(paths(3), paths(3))
    np.testing.assert_array_equal(paths(3), paths(np.random.RandomState(3)))
    assert not np.array_equal(paths(3), paths(4))
    shared = np.random.RandomState(3)
    assert not np.array_equal(paths(shared), paths(shared))  # it moves on


# --- scikit-learn's tools


def test_parameters_are_kept_as_they_are_given() -> None:
    regressor = MoERegressor(Softmax(), 3, method="mle", random_state=1)
    copy = clone(regressor)
    assert copy.get_params() == regressor.get_params()
    assert copy.set_params(gate="top_k_sparse", top_k=1).get_params()["top_k"] == 1
    assert vars(MoERegressor()).keys() == regressor.get_params().keys()


@ALL
def test_fitted_regressors_survive_pickling(method: str) -> None:
    (x, _), regressor = sample(20), fitted(method)
    copy = pickle.loads(pickle.dumps(regressor))
    np.testing.assert_array_equal(copy.predict_interval(x), regressor.predict_interval(x))
    assert copy.status_ == regressor.status_
    assert copy.fit_.starts.status == regressor.fit_.starts.status


def test_pipelines_and_cross_validation() -> None:
    x, y = sample()
    pipeline = make_pipeline(StandardScaler(), MoERegressor(**SMALL))
    np.testing.assert_allclose(pipeline.fit(x, y).predict(x), fitted("map").predict(x), rtol=1e-6)
    scores = cross_val_score(pipeline, x, y, cv=3)
    assert np.all(scores > 0.8)


@pytest.mark.slow
def test_a_grid_over_gates_and_numbers_of_experts_finds_the_truth() -> None:
    x, y = sample()
    grid = [
        {"gate": ["softmax", Softmax()], "n_experts": [1, 2]},
        {"gate": ["top_k_sparse"], "top_k": [1, 2]},
    ]
    search = GridSearchCV(MoERegressor(**SMALL), grid, cv=2, error_score="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the top-1 gate, which jumps
        search.fit(x, y)
    single, double, same_single, same_double, top_1, top_2 = search.cv_results_["mean_test_score"]
    assert (single, double) == (same_single, same_double)
    assert single < 0.5 < 0.8 < min(double, top_1)
    assert top_2 == pytest.approx(double, rel=1e-6)
    assert search.best_score_ == max(double, top_1, top_2)


def test_data_frames_name_the_covariates() -> None:
    x, y = sample()
    frame = pd.DataFrame({"größe": x[:, 0]})
    regressor = MoERegressor(**SMALL).fit(frame, pd.Series(y))
    assert list(regressor.feature_names_in_) == ["größe"]
    np.testing.assert_array_equal(regressor.predict(frame), fitted("map").predict(x))
    with pytest.raises(ValueError, match="feature names should match"):
        regressor.predict(frame.set_axis(["size"], axis=1))


def test_a_column_as_y_is_taken_with_a_warning() -> None:
    x, y = sample()
    with pytest.warns(DataConversionWarning, match="column-vector y"):
        found = MoERegressor(**SMALL).fit(x, y[:, None])
    np.testing.assert_array_equal(found.predict(x), fitted("map").predict(x))


def test_another_method_leaves_nothing_of_the_last() -> None:
    regressor = clone(fitted("map")).set_params(random_state=0)
    regressor.posterior_ = "of an earlier fit"
    regressor.fit(*sample())
    assert not hasattr(regressor, "posterior_")


# --- data that a prior settles


@pytest.mark.slow
@pytest.mark.parametrize("method", ["map", "posterior"])
def test_under_a_prior_columns_may_be_constant_or_repeated(method: str) -> None:
    x, y = sample()
    wide = np.column_stack([x, np.full(len(x), 7.0), x])
    found = MoERegressor(method=method, **SMALL).fit(wide, y)
    assert found.converged_
    np.testing.assert_allclose(found.predict(wide), fitted("map").predict(x), atol=0.2)
    if method == "map":  # the mode of a slope that no row speaks of is the prior's
        np.testing.assert_allclose(np.asarray(found.measure_.slope)[:, 1], 0.0, atol=1e-12)
        slopes = np.asarray(found.measure_.slope)
        np.testing.assert_allclose(slopes[:, 0], slopes[:, 2], rtol=1e-6)


@pytest.mark.slow
def test_under_a_prior_rows_may_be_fewer_than_parameters() -> None:
    x, y = sample(5)
    assert MoERegressor(**SMALL).fit(x, y).converged_
    with pytest.raises(ValueError, match="5 rows cannot determine 8 parameters"):
        MoERegressor(method="mle", **SMALL).fit(x, y)
    with pytest.raises(ValueError, match="5 rows cannot determine 8 parameters"):
        MoERegressor(prior="flat", **SMALL).fit(x, y)


# --- mistakes


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"method": "mcmc"}, "unknown method 'mcmc'; choose one of mle, map, posterior"),
        ({"gate": "softmaxx"}, "unknown gate 'softmaxx'; choose one of softmax"),
        ({"gate": Softmax(), "top_k": 1}, "go with a gate's name"),
        ({"top_k": 1}, "gate 'softmax' has no option 'top_k'"),
        ({"n_experts": 0}, "n_experts must be a whole number of at least 1, got 0"),
        ({"n_experts": 2.0}, "n_experts must be a whole number of at least 1, got 2.0"),
        ({"n_experts": 301}, "too few rows, 300, for n_experts = 301: at least 301 are needed"),
        ({"prior": "strong"}, "unknown prior 'strong'"),
        ({"n_starts": 0}, "n_starts must be a whole number of at least 1"),
        ({"random_state": "one"}, "cannot be used to seed"),
        ({"method": "posterior", "prior": "flat"}, "'flat' is improper"),
        ({"method": "posterior", "n_draws": 0}, "n_draws must be a whole number of at least 1"),
        ({"method": "posterior", "n_warmup": -1}, "n_warmup must be a whole number"),
        ({"method": "posterior", "n_chains": None}, "n_chains must be a whole number"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoERegressor(**parameters).fit(*sample())


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[1.0]], [1.0], "1 sample"),
        ([[1.0], [2.0]], [3.0, 3.0], "y is constant at 3"),
        ([[1.0], [2.0]], [3.0], "inconsistent numbers of samples"),
        ([[1.0], [2.0]], ["a", "b"], "could not convert string to float: 'a'|y must be numeric"),
        ([["a"], ["b"]], [1.0, 2.0], "could not convert string to float: 'a'"),
        ([[1.0], [np.nan]], [1.0, 2.0], "Input X contains NaN"),
        ([[1.0], [2.0]], [1.0, np.inf], "Input y contains infinity"),
        ([[1.0], [2.0]], None, "requires y to be passed"),
        ([[1.0], [2e120]], [1.0, 2.0], r"covariate 0 reaches 2e\+120"),
        ([[1.0], [2.0]], [1e-150, 2e-150], "y varies by 1e-150, and must vary by more than 1e-100"),
        ([[1], [10**400]], [1.0, 2.0], "must be float64 numbers: int too large"),
        (np.zeros((3, 0)), [1.0, 2.0, 3.0], r"0 feature\(s\)"),
        ([1.0, 2.0], [1.0, 2.0], "Expected 2D array"),
        (np.array([[1.0 + 1j], [2.0]]), [1.0, 2.0], "Complex data not supported"),
        (np.eye(2), np.ma.masked_equal([1.0, 2.0], 2.0), "y has masked values; remove or impute"),
        (np.ma.masked_equal(np.eye(2), 1.0), [1.0, 2.0], "X has masked values; remove or impute"),
    ],
)
def test_bad_data(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoERegressor().fit(x, y)


def test_sparse_matrices_are_refused() -> None:
    with pytest.raises(TypeError, match="Sparse data was passed"):
        MoERegressor().fit(scipy.sparse.eye_array(9).tocsr(), np.arange(9.0))


def test_nothing_is_predicted_before_a_fit() -> None:
    x, y = sample()
    for call in (
        lambda r: r.predict(x),
        lambda r: r.sample(x),
        lambda r: r.predict_interval(x),
        lambda r: r.responsibilities(x, y),
        lambda r: r.predictive_,
    ):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            call(MoERegressor())


@pytest.mark.slow
def test_a_fit_that_did_not_converge_warns_with_its_mend() -> None:
    x = np.concatenate([np.linspace(-2, -1, 60), np.linspace(1, 2, 60)])[:, None]
    y = np.where(x[:, 0] < 0, 3 * x[:, 0], 1 - 2 * x[:, 0]) + 0.1 * np.sin(37 * x[:, 0])
    with pytest.warns(ConvergenceWarning, match=r"\(separated\): .* use method='map'"):
        regressor = MoERegressor(method="mle", random_state=0).fit(x, y)
    assert not regressor.converged_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert regressor.set_params(method="map").fit(x, y).converged_


@pytest.mark.slow
def test_a_posterior_too_short_to_judge_warns() -> None:
    short = {**SMALL, "n_draws": 4, "n_warmup": 10}
    with pytest.warns(ConvergenceWarning, match=r"\(not_mixed\): .* raise n_warmup and n_draws"):
        MoERegressor(method="posterior", **short).fit(*sample())


# --- the extra


@pytest.mark.slow
def test_without_scikit_learn_the_package_works_and_the_error_names_the_extra() -> None:
    code = """
import sys, bayesmoe
print("imported" if "sklearn" in sys.modules else "not imported")
sys.modules["sklearn"] = None
try:
    from bayesmoe.regression import MoERegressor
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, told = done.stdout.splitlines()
    assert first == "not imported"
    assert 'pip install "bayesmoe[sklearn]"' in told


# --- quality


@pytest.mark.slow
@pytest.mark.parametrize("method", ["map", "posterior"])
def test_prediction_intervals_cover(method: str) -> None:
    """Within a 99.9 % band of the binomial law about 0.9 and what estimation adds to it.

    Scales estimated from n rows are off by 1/√(2n), relatively, in standard deviation, and the
    coverage of new rows by 2 z φ(z) times that: 0.008 for n = 1000.
    """
    x, y = sample(5000, 1)
    regressor = MoERegressor(method=method, **SMALL).fit(x[:1000], y[:1000])
    low, high = regressor.predict_interval(x[1000:]).T
    inside = int(np.sum((low <= y[1000:]) & (y[1000:] <= high)))
    z = scipy.stats.norm.ppf(0.95)
    slack = 2 * z * scipy.stats.norm.pdf(z) / np.sqrt(2 * 1000)
    assert scipy.stats.binom(4000, 0.9 - slack).ppf(0.0005) <= inside
    assert inside <= scipy.stats.binom(4000, 0.9 + slack).ppf(0.9995)


def test_a_missing_response_of_pandas_is_named() -> None:
    x, y = np.arange(12.0)[:, None], np.arange(12.0).astype(object)
    y[3] = pd.NA
    with pytest.raises(ValueError, match="y contains pandas' NA; remove or impute"):
        MoERegressor().fit(x, y)
