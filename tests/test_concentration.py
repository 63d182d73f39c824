"""Concentration: predictions against closed forms, coverage against SciPy and by simulation."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from xarray import DataTree

import bayesmoe as bm
from bayesmoe.core.measure import FIELDS
from bayesmoe.diagnostics.concentration import Concentration, concentration, coverage

NU = 0.25


@functools.cache
def single() -> tuple[bm.Scenario, bm.MoE, DataTree]:
    measure = bm.MixingMeasure([[0.0]], [0.0], 1.0, [[2.0]], [-1.0], [NU])
    truth, model = bm.Scenario("line", bm.GATES["softmax"](), measure), bm.moe("softmax", 1)
    return truth, model, bm.sample_laplace(model, *truth.simulate(5, 400))


@functools.cache
def tempered() -> tuple[bm.Scenario, bm.MoE, DataTree]:
    truth, model = bm.scenario("lambda", "dense_to_sparse"), bm.moe("dense_to_sparse", 2)
    x, y = truth.simulate(2, 400)
    return truth, model, bm.sample_laplace(model, x, y)


def test_for_one_expert_the_prediction_is_that_of_least_squares() -> None:
    truth, model, posterior = single()
    found = concentration(model, posterior, truth)
    # X uniform on [0, 1]: Var X = 1/12, E X² = 1/3
    expected = np.sqrt([12 * NU, NU * (1 / 3) * 12, 2 * NU**2]) / np.sqrt(400)
    table = found.parameters
    assert list(table.index) == ["slope[0, 0]", "intercept[0]", "variance[0]"]
    np.testing.assert_allclose(table["predicted_sd"], expected, rtol=1e-4)
    # four standard errors of the sample's own information, and of 4000 draws
    np.testing.assert_allclose(table["sd"], expected, rtol=4 / np.sqrt(400))
    assert found.covariance_ratio.shape == (3,)
    assert np.all((found.covariance_ratio > 0.65) & (found.covariance_ratio < 1.5))
    low, high = np.quantile(posterior["posterior"]["slope"], [0.05, 0.95])
    assert (table.loc["slope[0, 0]", ["low", "high"]] == [low, high]).all()
    assert table.loc["slope[0, 0]", "covers"] == (low <= 2.0 <= high)


@pytest.mark.slow
def test_on_a_ray_the_information_is_silent_but_on_ratios() -> None:
    """The same density without a temperature: β/τ is then the softmax gate's β."""
    truth, model, posterior = tempered()
    found = concentration(model, posterior, truth).parameters
    softmax = bm.scenario("lambda", "softmax")
    soft_model = bm.moe("softmax", 2)
    soft = bm.sample_laplace(soft_model, *softmax.simulate(2, 400))
    plain = concentration(soft_model, soft, softmax).parameters
    silent = ["gate_slope[0, 0]", "gate_intercept[0]", "temperature"]
    assert np.isinf(found.loc[silent, "predicted_sd"]).all()
    for name in ("gate_slope[0, 0]", "gate_intercept[0]"):
        ratio = found.loc[f"{name} / temperature"]
        assert ratio["truth"] == pytest.approx(plain.loc[name, "truth"])
        assert ratio["predicted_sd"] == pytest.approx(plain.loc[name, "predicted_sd"], rel=1e-6)
    experts = [name for name in plain.index if not name.startswith("gate")]
    np.testing.assert_allclose(
        found.loc[experts, "predicted_sd"], plain.loc[experts, "predicted_sd"], rtol=1e-6
    )


@pytest.mark.slow
def test_names_of_experts_do_not_matter() -> None:
    truth, model, posterior = tempered()
    swapped = posterior.copy()
    group = posterior["posterior"].to_dataset()
    arrays = {name: group[name].transpose("chain", "draw", ...) for name in FIELDS}
    turned = {
        n: a.to_numpy()[:, :, ::-1] if a.ndim > 2 else a.to_numpy() for n, a in arrays.items()
    }
    for name in ("gate_slope", "gate_intercept"):
        turned[name] = turned[name] - turned[name][:, :, -1:]
    swapped["posterior"] = DataTree(
        group.assign({name: (arrays[name].dims, turned[name]) for name in FIELDS})
    )
    one, other = (concentration(model, tree, truth) for tree in (posterior, swapped))
    pd.testing.assert_frame_equal(one.parameters, other.parameters)
    np.testing.assert_allclose(one.covariance_ratio, other.covariance_ratio)


def replicates(covered: list[int], n: int) -> list[Concentration]:
    """n replicates of two parameters, of which so many cover the truth."""
    index = pd.Index(["a", "b"], name="parameter")
    tables = [
        pd.DataFrame(
            {
                "truth": [1.0, 2.0], "mean": [1.0 + r, 2.0], "sd": [1.0 + r, 1.0],
                "covers": [r < count for count in covered], "predicted_sd": [1.0, np.inf],
            },
            index=index,
        )
        for r in range(n)
    ]  # fmt: skip
    return [Concentration(table, np.ones(2), 100, 0.9) for table in tables]


def test_coverage_is_counted_with_clopper_and_pearson() -> None:
    found = coverage(replicates([18, 20], 20))
    assert list(found["covered"]) == [18, 20]
    beta = scipy.stats.beta
    assert found.loc["a", "low"] == pytest.approx(beta.ppf(0.025, 18, 3))
    assert found.loc["a", "high"] == pytest.approx(beta.ppf(0.975, 19, 2))
    assert found.loc["b", "high"] == 1.0
    means = np.arange(20.0)
    assert found.loc["a", "bias"] == pytest.approx(means.mean())
    assert found.loc["a", "sampling_sd"] == pytest.approx(means.std(ddof=1))
    assert found.loc["a", "sd"] == pytest.approx(np.sqrt(np.mean((1 + means) ** 2)))
    assert np.isinf(found.loc["b", "predicted_sd"])


def test_what_cannot_be_compared_is_refused() -> None:
    truth, model, posterior = single()
    with pytest.raises(ValueError, match="2 experts, the truth 1"):
        concentration(bm.moe("softmax", 2), posterior, truth)
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        concentration(model, posterior, truth, level=90)
    with pytest.raises(ValueError, match="posterior"):
        concentration(model, DataTree(), truth)
    some = replicates([1, 1], 3)
    with pytest.raises(ValueError, match="at least two"):
        coverage(some[:1])
    with pytest.raises(ValueError, match="replicate 2 has n = 7"):
        coverage([*some[:2], some[2]._replace(n=7)])
    with pytest.raises(ValueError, match="confidence"):
        coverage(some, confidence=1.0)


def test_a_truth_of_another_density_is_refused() -> None:
    """Under the softmax gate the parameters of a truth with τ* = 2 are another law of Y."""
    truth, model = bm.scenario("weak"), bm.moe("softmax", 2)
    posterior = bm.sample_laplace(model, *truth.simulate(1, 100))
    tempered_truth = bm.scenario("weak", "dense_to_sparse")
    with pytest.raises(ValueError, match=r"softmax gate .* those of the dense-to-sparse gate"):
        concentration(model, posterior, tempered_truth)
    same = tempered_truth.measure.replace(
        gate_slope=truth.measure.gate_slope, gate_intercept=truth.measure.gate_intercept,
        temperature=1.0,
    )  # fmt: skip
    found = concentration(model, posterior, bm.Scenario("one", tempered_truth.gate, same))
    pd.testing.assert_frame_equal(
        found.parameters, concentration(model, posterior, truth).parameters
    )


@pytest.mark.slow
def test_credible_intervals_cover_as_often_as_they_say_but_on_the_ray() -> None:
    """40 data sets; each count is binomial(40, 0.9): false alarms below 1e-4 a parameter."""
    truth, model = bm.scenario("lambda", "dense_to_sparse"), bm.moe("dense_to_sparse", 2)
    found = []
    for seed in range(40):
        x, y = truth.simulate(seed, 1000)
        tree = bm.sample_posterior(model, x, y, key=seed, n_chains=2, n_warmup=200, n_draws=200)
        found.append(concentration(model, tree, truth))
    table = coverage(found)
    least = scipy.stats.binom.ppf(1e-4, 40, 0.9)
    regular = table[np.isfinite(table["predicted_sd"])]
    assert len(regular) == 8
    assert (regular["covered"] >= least).all()
    np.testing.assert_allclose(regular["sd"], regular["predicted_sd"], rtol=0.25)
    np.testing.assert_allclose(regular["sampling_sd"], regular["predicted_sd"], rtol=0.5)
    # the prior alone places τ: every posterior is the same, and as wide as the prior leaves it
    tau = table.loc["temperature"]
    assert tau["sampling_sd"] < 0.33 * tau["sd"]
    assert tau["covered"] == 0  # τ* = 2 is far from where the prior puts it
