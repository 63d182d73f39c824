"""scikit-learn's own checks of estimators, for every method."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

from bayesmoe.regression import MoERegressor

#: checks of what methods do not share: fitting and what it leaves; data are checked in one place
#: for all, and samplers take long to compile for each new number of covariates
_OF_FITTING = {
    "check_dict_unchanged",
    "check_estimators_overwrite_params",
    "check_estimators_pickle",
    "check_fit_idempotent",
    "check_methods_subset_invariance",
}


@pytest.mark.slow
def test_map_passes_all() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits to noise that do not converge
        results = check_estimator(MoERegressor(method="map", n_starts=2), on_skip=None)
    others = {r["check_name"]: r["status"] for r in results if r["status"] != "passed"}
    assert len(results) > 40
    assert set(others) <= {"check_array_api_input"}  # which needs an environment variable


@pytest.mark.slow
def test_the_posterior_passes_those_of_fitting() -> None:
    short: dict[str, Any] = {"n_starts": 2, "n_chains": 1, "n_warmup": 30, "n_draws": 30}
    assert failures(MoERegressor(method="posterior", **short), only=_OF_FITTING) == {}


#: n, d and parameters of two experts in the checks that the MLE has to refuse
_TOO_FEW = {
    "check_n_features_in_after_fitting": "15 rows cannot determine 17 parameters",
    "check_estimators_nan_inf": "10 rows cannot determine 14 parameters",
    "check_regressors_no_decision_function": "10 rows cannot determine 17 parameters",
}


@pytest.mark.slow
def test_the_mle_of_two_experts_refuses_too_few_rows_and_that_alone() -> None:
    refused = failures(MoERegressor(method="mle", n_starts=2), only=None)
    assert set(refused) == set(_TOO_FEW)
    assert all(refused[name].startswith(text) for name, text in _TOO_FEW.items())


@pytest.mark.slow
def test_the_mle_of_one_expert_passes_these_too() -> None:
    assert failures(MoERegressor(method="mle", n_experts=1), only=set(_TOO_FEW)) == {}


def failures(estimator: MoERegressor, only: set[str] | None) -> dict[str, str]:
    """The checks that end with a ValueError, and its text."""
    refused, tried = {}, set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for fresh, check in estimator_checks_generator(estimator):
            name = getattr(check, "func", check).__name__
            if name == "check_array_api_input" or (only and name not in only):
                continue
            tried.add(name)
            try:
                check(fresh)
            except ValueError as error:
                refused[name] = str(error)
    assert only is None or tried == only
    return refused
