"""Predictions, prior draws and prior densities beside a posterior, against NumPy and SciPy."""

from __future__ import annotations

import functools

import arviz_base
import arviz_plots
import arviz_stats
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import xarray as xr
from conftest import CASE
from fabricated_fit import CENTRE, make_tree, simulate
from oracles import Oracle
from xarray import DataTree

import bayesmoe as bm
from bayesmoe.core.measure import FIELDS
from bayesmoe.diagnostics.posterior import DIMS, describe_model

Floats = np.ndarray
N = 150


@functools.cache
def sample(label: str) -> tuple[Floats, Floats]:
    """Data on the standard scale, where the weak prior is as written in the oracle."""
    x, y = (np.asarray(v) for v in bm.scenario("lambda", CASE[label].gate(2)).simulate(1, N))
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


@functools.cache
def model(label: str) -> bm.MoE:
    return bm.moe(CASE[label].gate(2), 2)


@functools.cache
def posterior(label: str) -> DataTree:
    return bm.sample_posterior(
        model(label), *sample(label), key=2, n_chains=2, n_warmup=300, n_draws=400
    )


@functools.cache
def extended(label: str) -> DataTree:
    return bm.sample_predictive(model(label), posterior(label), key=4, n_prior_draws=2000)


def measures(tree: DataTree, group: str) -> list[bm.MixingMeasure]:
    stacked = tree[group].to_dataset().stack(sample=("chain", "draw")).transpose("sample", ...)
    blocks = {field: stacked[field].values for field in FIELDS}
    return [bm.MixingMeasure(**{f: block[i] for f, block in blocks.items()})
            for i in range(stacked.sizes["sample"])]  # fmt: skip


LABELS = ["dense_to_sparse", "sigmoid"]


@pytest.mark.slow
@pytest.mark.parametrize("label", LABELS)
def test_the_log_prior_is_that_of_the_papers_parameters(label: str) -> None:
    oracle, group = Oracle(CASE[label], 2, 1), extended(label)["log_prior"].to_dataset()
    assert set(group) == set(FIELDS)
    total = sum(group[name] for name in group).values.ravel()
    draws = measures(posterior(label), "posterior")
    expected = [oracle.log_weak_prior(oracle.theta(m)) for m in draws]
    np.testing.assert_allclose(total, expected, rtol=1e-9)


def test_the_log_prior_does_not_depend_on_how_draws_are_named() -> None:
    """A prior knows which expert was the reference, that may have become another one since."""
    three, (x, y), rng = bm.moe("softmax", 3), sample("softmax"), np.random.default_rng(0)
    shape = (2, 20)
    slope, intercept = rng.normal(size=(2, *shape, 3))
    gate_slope, gate_intercept = slope - slope[..., -1:], intercept - intercept[..., -1:]
    draws = {
        "gate_slope": gate_slope[..., None],
        "gate_intercept": gate_intercept,
        "temperature": np.ones(shape),
        "slope": rng.normal(size=(*shape, 3, 1)),
        "intercept": rng.normal(size=(*shape, 3)),
        "variance": rng.uniform(0.1, 1.0, size=(*shape, 3)),
    }
    tree = arviz_base.from_dict(
        {
            "posterior": draws,
            "sample_stats": {"lp": np.zeros(shape)},
            "log_likelihood": {"y": np.zeros((*shape, N))},
            "observed_data": {"y": y},
            "constant_data": {"x": x},
        },
        dims=DIMS,
        coords={"expert": np.arange(3), "covariate": [0], "obs": np.arange(N)},
        attrs={"/": describe_model(three)},
    )
    first, second = measures(tree, "posterior")[:2]
    named = bm.align(bm.align(tree, three.gate, first), three.gate, second)
    assert len(np.unique(named["sample_stats"]["reference"])) == 3
    expected, found = (
        bm.sample_predictive(three, one, n_prior_draws=2)["log_prior"].to_dataset()
        for one in (tree, named)
    )
    xr.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.slow
def test_log_priors_of_blocks_have_their_own_terms() -> None:
    tree = extended("dense_to_sparse")
    log_prior, group = tree["log_prior"].to_dataset(), tree["posterior"].to_dataset()
    slope = scipy.stats.norm(0, 3).logpdf(group["gate_slope"][:, :, 0, 0])
    np.testing.assert_allclose(log_prior["gate_slope"], slope, rtol=1e-9)
    temperature = scipy.stats.lognorm(0.5).logpdf(group["temperature"])
    np.testing.assert_allclose(log_prior["temperature"], temperature, rtol=1e-9)


def ranks(label: str, drawn: Floats, parameters: list[bm.MixingMeasure]) -> Floats:
    """F(y|x) of drawn responses ``(s, n)`` under the measures they were drawn from: uniform."""
    x, values = sample(label)[0], []
    for row, m in zip(drawn, parameters, strict=True):
        lines = x @ np.asarray(m.slope).T + np.asarray(m.intercept)
        below = scipy.stats.norm.cdf((row[:, None] - lines) / np.sqrt(np.asarray(m.variance)))
        values.append((CASE[label].probabilities(m, x) * below).sum(1))
    return np.array(values)


@pytest.mark.slow
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("group", ["posterior", "prior"])
def test_predictions_follow_the_mixture_of_their_draw(label: str, group: str) -> None:
    """Two tests on 60 000 values or more, each erring once in a thousand."""
    tree = extended(label)
    drawn = tree[f"{group}_predictive"]["y"].values.reshape(-1, N)[:800]
    u = ranks(label, drawn, measures(tree, group)[:800])
    assert scipy.stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    # draws of neighbouring rows have nothing in common
    assert scipy.stats.pearsonr(u[:, :-1].ravel(), u[:, 1:].ravel()).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("label", LABELS)
def test_prior_draws_follow_the_prior(label: str) -> None:
    """Five Kolmogorov-Smirnov tests, each erring once in 10 000."""
    group = {field: extended(label)["prior"][field].values[0] for field in FIELDS}
    tau, spread = group["temperature"], CASE[label].gate().spread
    tempered = 1.0 if label == "dense_to_sparse" else tau
    centre, width = (1.0, 0.5) if label == "dense_to_sparse" else (spread / 3, 1.0)
    laws = [
        (group["gate_slope"][:, 0, 0], scipy.stats.norm(0, 3)),
        (group["gate_intercept"][:, 0] / tempered, scipy.stats.norm(0, 3)),
        (tau, scipy.stats.lognorm(width, scale=centre)),
        (group["slope"][:, 1, 0], scipy.stats.norm(0, 2)),
        (group["variance"][:, 0], scipy.stats.lognorm(1.5, scale=0.1)),
    ]
    for draws, law in laws:
        assert scipy.stats.kstest(draws, law.cdf).pvalue > 1e-4


@pytest.mark.slow
def test_the_posterior_is_kept_and_names_are_shared() -> None:
    before, after = posterior("dense_to_sparse"), extended("dense_to_sparse")
    for name, child in before.children.items():
        xr.testing.assert_identical(child.to_dataset(), after[name].to_dataset())
    assert "prior" not in before.children
    assert after.attrs == before.attrs
    assert after["posterior_predictive"]["y"].dims == ("chain", "draw", "obs")
    assert after["prior"]["slope"].dims == ("chain", "draw", "expert", "covariate")
    again = bm.sample_predictive(model("dense_to_sparse"), before, key=4, n_prior_draws=2000)
    xr.testing.assert_equal(after["prior_predictive"].to_dataset(),
                                again["prior_predictive"].to_dataset())  # fmt: skip


@pytest.mark.slow
def test_power_scaling_finds_the_ray() -> None:
    """No one told ArviZ: the prior moves τ, and no parameter of an expert."""
    summary = arviz_stats.psense_summary(extended("dense_to_sparse"), round_to=6)
    sensitivity = summary["prior"]
    assert sensitivity["temperature"] > 0.05
    of_experts = summary.index.str.startswith(("slope", "intercept", "variance"))
    experts = sensitivity[of_experts]
    assert experts.max() < 0.05
    assert experts.max() < 0.25 * sensitivity["temperature"]


@pytest.mark.slow
def test_arvizs_plots_take_the_tree_as_it_is() -> None:
    mpl.use("Agg")
    tree = extended("sigmoid")
    for plot in (arviz_plots.plot_ppc_dist, arviz_plots.plot_loo_pit, arviz_plots.plot_ppc_pit):
        assert plot(tree).viz["figure"].item() is not None
    for plot in (arviz_plots.plot_psense_dist, arviz_plots.plot_prior_posterior,
                 arviz_plots.plot_trace_dist, arviz_plots.plot_rank):  # fmt: skip
        plot(tree, var_names=["temperature"])
    arviz_plots.plot_energy(tree)
    plt.close("all")


def test_trees_of_other_models_are_refused() -> None:
    tree = make_tree(CENTRE, *simulate(), ("x",))
    tree.attrs |= describe_model(model("dense_to_sparse"))
    with pytest.raises(ValueError, match="the tree's gate is 'dense_to_sparse', the model's 'soft"):
        bm.sample_predictive(bm.moe("softmax", 2), tree)
    with pytest.raises(ValueError, match="the tree has 2 experts, the model 3"):
        bm.sample_predictive(bm.moe("dense_to_sparse", 3), tree)
    with pytest.raises(ValueError, match="the tree's prior is 'weak', the model's 'compact'"):
        bm.sample_predictive(bm.moe("dense_to_sparse", 2, prior="compact"), tree)
    part = tree.copy()
    del part["constant_data"]
    with pytest.raises(ValueError, match="no group 'constant_data'"):
        bm.sample_predictive(model("dense_to_sparse"), part)
    with pytest.raises(ValueError, match="n_prior_draws must be a whole number of at least 1"):
        bm.sample_predictive(model("dense_to_sparse"), tree, n_prior_draws=0)
    with pytest.raises(ValueError, match="'flat' is improper"):
        bm.sample_predictive(bm.moe("dense_to_sparse", 2, prior="flat"), tree)
