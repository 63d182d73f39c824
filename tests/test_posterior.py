"""Posteriors against independent computations: importance sampling, quadrature, closed forms."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import arviz_stats
import jax
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import xarray as xr
from conftest import CASE
from oracles import Floats, Oracle
from xarray import DataTree

import bayesmoe as bm
from bayesmoe.core.measure import FIELDS
from bayesmoe.data.table import read_table
from bayesmoe.inference.nuts import sample_chains

FAST = {"n_chains": 2, "n_warmup": 300, "n_draws": 500}


@functools.cache
def sample(name: str, label: str, n: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Data on the standard scale, where the weak prior is as written in the oracle."""
    x, y = (np.asarray(v) for v in bm.scenario(name, CASE[label].gate(3)).simulate(seed, n))
    unit = x.std(0) if CASE[label].linear else np.sqrt((x**2).mean(0))
    shift = x.mean(0) if CASE[label].linear else 0.0
    return (x - shift) / unit, (y - y.mean()) / y.std()


def model(label: str, k: int) -> bm.MoE:
    return bm.moe(CASE[label].gate(k), k)


@functools.cache
def posterior(
    name: str, label: str, k: int, n: int, n_chains: int = 2, n_draws: int = 500
) -> DataTree:
    return bm.sample_posterior(
        model(label, k), *sample(name, label, n), key=3, n_chains=n_chains, n_warmup=300,
        n_draws=n_draws,
    )  # fmt: skip


_STRUCTURE = jax.tree.structure(CASE["softmax"].measure(0))


def plain(*blocks: Floats) -> bm.MixingMeasure:
    """A measure of NumPy's arrays, which take less time to make than JAX's."""
    return jax.tree.unflatten(_STRUCTURE, blocks)


def each_draw(tree: DataTree) -> Iterator[bm.MixingMeasure]:
    """The draws of all chains, one chain after the other."""
    group = (tree["posterior"][field].transpose("chain", "draw", ...).values for field in FIELDS)
    flat = [block.reshape(-1, *block.shape[2:]) for block in group]
    return (plain(*blocks) for blocks in zip(*flat, strict=True))


# --- importance sampling


def student(
    rng: np.random.Generator, mean: Floats, root: Floats, size: int
) -> tuple[Floats, Floats]:
    """Draws of a multivariate Student-t with 7 degrees of freedom and their log density."""
    p, nu = len(mean), 7.0
    z = rng.standard_normal((size, p)) / np.sqrt(rng.chisquare(nu, size) / nu)[:, None]
    log_density = -0.5 * (nu + p) * np.log1p((z**2).sum(1) / nu)
    return mean + z @ root.T, log_density - np.linalg.slogdet(root)[1]


def importance(
    target: Callable[[Floats], Floats], mode: Floats, root: Floats, rounds: int = 4
) -> tuple[Floats, Floats]:
    """Draws and normalised weights, the proposal adapted to the moments round by round."""
    rng = np.random.default_rng(11)
    for round_ in range(rounds):
        last = round_ == rounds - 1
        u, proposal = student(rng, mode, root, 30_000 if last else 4000)
        logs = np.concatenate([target(part) for part in np.split(u, len(u) // 500)]) - proposal
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        mode = weights @ u
        spread = (weights[:, None] * (u - mode)).T @ (u - mode)
        root = np.linalg.cholesky(spread + 1e-9 * np.eye(len(mode)))
    return u, weights


def negative_hessian(function: Callable[[Floats], Floats], at: Floats) -> Floats:
    step = 1e-3 * np.eye(len(at))
    corner = [
        [
            function(at + a + b)
            - function(at + a - b)
            - function(at - a + b)
            + function(at - a - b)
            for a in step
        ]
        for b in step
    ]
    return -np.asarray(corner) / 4e-6


def reference_moments(oracle: Oracle, x: Floats, y: Floats, start: Floats) -> tuple[Floats, ...]:
    """Mean, standard deviation and error of the mean of (θ, log-likelihood)."""

    def target(u: Floats) -> Floats:
        return oracle.log_density(u, x, y)

    found = scipy.optimize.minimize(
        lambda u: -target(u), oracle.to_unconstrained(start), method="BFGS"
    )
    curvature, directions = np.linalg.eigh(negative_hessian(target, found.x))
    root = directions / np.sqrt(np.maximum(curvature, 0.1))
    u, weights = importance(target, found.x, root)
    assert 1 / (weights**2).sum() > 3000, "the weights are too uneven to be a reference"
    theta = oracle.from_unconstrained(u)[0]
    own = [oracle.log_likelihood(part, x, y) for part in np.split(theta, len(u) // 500)]
    values = np.column_stack([theta, np.concatenate(own)])
    mean = weights @ values
    sd = np.sqrt(weights @ (values - mean) ** 2)
    return mean, sd, np.sqrt(weights**2 @ (values - mean) ** 2)


@pytest.mark.parametrize(
    ("name", "label", "k", "n"),
    [
        ("lambda", "softmax", 2, 120),
        ("lambda", "dense_to_sparse", 2, 120),
        ("lambda", "sigmoid", 2, 200),
        ("lambda", "top_k_sparse", 2, 120),
    ],
)
@pytest.mark.slow
def test_posterior_moments_agree_with_importance_sampling(
    name: str, label: str, k: int, n: int
) -> None:
    x, y = sample(name, label, n)
    oracle = Oracle(CASE[label], k, 1, x.mean(0), x.std(0))
    reference = bm.fit_map(model(label, k), x, y).measure
    mean, sd, error = reference_moments(oracle, x, y, oracle.theta(reference))
    tree = posterior(name, label, k, n, n_chains=4, n_draws=1000)
    aligned = bm.align(tree, model(label, k).gate, reference)
    draws = np.asarray([oracle.theta(draw) for draw in each_draw(aligned)])
    draws = np.column_stack([draws, tree["sample_stats"]["log_likelihood"].values.ravel()])
    chains = draws.reshape(4, -1, draws.shape[1])
    for i in range(draws.shape[1]):
        mcse = float(arviz_stats.mcse(chains[..., i], method="mean"))
        tolerance = 4 * np.hypot(mcse, error[i])
        assert abs(draws[:, i].mean() - mean[i]) < tolerance, (i, draws[:, i].mean(), mean[i])
        np.testing.assert_allclose(draws[:, i].std(), sd[i], rtol=0.12)


# --- real data


def ensemble(
    log_density: Callable[[Floats], Floats], start: Floats, n_steps: int, seed: int
) -> Floats:
    """States ``(step, walker, p)`` of an affine-invariant ensemble: stretch moves, half by half.

    Goodman & Weare, Communications in Applied Mathematics and Computational Science 2010.
    """
    rng, u, value = np.random.default_rng(seed), start.copy(), log_density(start)
    half, p = len(start) // 2, start.shape[1]
    kept = np.empty((n_steps, *u.shape))
    for step in range(n_steps):
        for mine, others in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
            stretch = (1 + rng.uniform(size=half)) ** 2 / 2  # density as 1/√z from 1/2 to 2
            partner = u[others][rng.integers(half, size=half)]
            new = partner + stretch[:, None] * (u[mine] - partner)
            new_value = log_density(new)
            gain = (p - 1) * np.log(stretch) + new_value - value[mine]
            accepted = np.log(rng.uniform(size=half)) < gain
            u[mine] = np.where(accepted[:, None], new, u[mine])
            value[mine] = np.where(accepted, new_value, value[mine])
        kept[step] = u
    return kept


@pytest.mark.slow
@pytest.mark.parametrize(("name", "response"), [("ethanol", "nox"), ("tone", "tuned")])
def test_posteriors_of_real_data_agree_with_an_ensemble_sampler(name: str, response: str) -> None:
    """Quantities without labels: means within four standard errors, spreads within 5 %.

    Our chains leap to a second mode of `tone`, which holds 2 draws of 10 000 and which the ensemble
    does not come to: draws beyond all of the ensemble's are few, and left out of spreads.
    """
    table = read_table(name, response)
    x, y = (np.asarray(values, float) for values in (table.x.iloc[:, :1], table.y))
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    oracle = Oracle(CASE["softmax"], 2, 1)
    points = np.quantile(x, [0.1, 0.5, 0.9])[:, None]

    def watched(u: Floats) -> Floats:
        theta, _ = oracle.from_unconstrained(u)
        slope, intercept, tau, a, b, variance = oracle.blocks(theta)
        share = scipy.special.softmax(oracle.case.logits(slope, intercept, tau, points), axis=-1)
        means = (share * (points @ np.swapaxes(a, -1, -2) + b[..., None, :])).sum(-1)
        own = oracle.log_likelihood(theta, x, y)[..., None]
        return np.concatenate([own, means, np.sort(np.log(variance))], axis=-1)

    tree = bm.sample_posterior(model("softmax", 2), x, y, key=5, n_draws=2000)
    assert tree.attrs["status"] == "converged"
    draws = np.array([oracle.to_unconstrained(oracle.theta(draw)) for draw in each_draw(tree)])
    ours = watched(draws).reshape(4, 2000, -1)
    mode = oracle.to_unconstrained(oracle.theta(bm.fit_map(model("softmax", 2), x, y).measure))
    start = mode + 0.1 * np.random.default_rng(1).normal(size=(100, len(mode)))
    walks = ensemble(lambda u: oracle.log_density(u, x, y), start, 4000, seed=2)[1000::10]
    theirs = watched(walks)
    inside = np.all((ours >= theirs.min((0, 1))) & (ours <= theirs.max((0, 1))), axis=-1)
    assert np.mean(~inside) < 1e-3
    for i in range(ours.shape[-1]):
        errors = [
            float(arviz_stats.mcse(q, method="mean"))
            for q in (ours[..., i], theirs[..., i].mean(axis=1)[None])
        ]
        gap = ours[..., i].mean() - theirs[..., i].mean()
        assert abs(gap) < 4 * np.hypot(*errors), (i, gap, errors)
        np.testing.assert_allclose(ours[inside, i].std(), theirs[..., i].std(), rtol=0.05)


# --- jumps of the density: top-K with K < k


def segment(x: Floats, y: Floats) -> tuple[float, Floats]:
    """Log evidence of one expert on rows ``(m,)``, and its E(a), E(b), E(log ν): on a ν-grid."""
    design, log_nu = np.column_stack([x, np.ones(len(y))]), np.linspace(-9, 4, 400)
    gram, cross = design.T @ design, design.T @ y
    logs, lines = [], []
    for nu in np.exp(log_nu):
        precision = gram / nu + np.eye(2) / 4  # a, b ~ N(0, 4)
        line = np.linalg.solve(precision, cross / nu)
        log_det = np.linalg.slogdet(4 * precision)[1] + len(y) * np.log(2 * np.pi * nu)
        logs.append(-0.5 * (log_det + y @ y / nu - line @ cross / nu))
        lines.append(line)
    logs += scipy.stats.norm.logpdf(log_nu, np.log(0.1), 1.5)
    evidence = scipy.special.logsumexp(logs, b=log_nu[1] - log_nu[0])
    weights = np.exp(logs - scipy.special.logsumexp(logs))
    return evidence, np.append(weights @ np.asarray(lines), weights @ log_nu)


@pytest.mark.slow
def test_a_threshold_agrees_with_enumeration() -> None:
    """Top-1 of two splits the line at -β0/β1, a standard Cauchy variate: n + 1 cases in all.

    The data do not see β1² + β0²: it keeps its prior, 9 times a chi-squared variate of two degrees.
    """
    x, y = sample("weak", "softmax", 60)
    order = np.argsort(x[:, 0])
    left_x, left_y = x[order, 0], y[order]
    cuts = np.concatenate([[-np.inf], left_x, [np.inf]])
    left = [segment(left_x[:m], left_y[:m]) for m in range(61)]
    right = [segment(left_x[m:], left_y[m:]) for m in range(61)]
    evidence = np.array([a[0] + b[0] for a, b in zip(left, right, strict=True)])
    weights = np.exp(evidence - evidence.max()) * np.diff(scipy.stats.cauchy.cdf(cuts))
    weights /= weights.sum()
    size = np.arange(61.0)
    expected = [
        18.0, weights @ size, weights @ size**2,
        *(weights @ np.array([moments for _, moments in left])),
        *(weights @ np.array([moments for _, moments in right])),
    ]  # fmt: skip

    top_1 = bm.moe("top_k_sparse", 2, top_k=1)
    tree = bm.sample_posterior(top_1, x, y, key=3, n_warmup=300, n_draws=1000)
    assert tree.attrs["status"] == "converged"
    group = {field: tree["posterior"][field].values for field in FIELDS}
    beta1 = group["gate_slope"][:, :, 0, 0]
    threshold = -group["gate_intercept"][:, :, 0] / beta1
    n_left = (x[:, 0] < threshold[..., None]).sum(-1)
    swap = (beta1 < 0)[..., None]  # the first expert is then the left one
    a, b, log_nu = (
        np.where(swap, block, block[..., ::-1])
        for block in (group["slope"][..., 0], group["intercept"], np.log(group["variance"]))
    )
    sides = (q[..., side] for side in (0, 1) for q in (a, b, log_nu))
    square = beta1**2 + group["gate_intercept"][:, :, 0] ** 2
    ours = [square, n_left, n_left**2, *sides]
    for i, (draws, value) in enumerate(zip(ours, expected, strict=True)):
        mcse = float(arviz_stats.mcse(draws.astype(float), method="mean"))
        assert abs(draws.mean() - value) < 4 * mcse, (i, draws.mean(), value, mcse)


def random_walks(
    oracle: Oracle, x: Floats, y: Floats, starts: Floats, root: Floats, n_steps: int
) -> Floats:
    """Every tenth state of random walks of many step sizes, ``(walk, state, p)``.

    ``root`` only shapes their steps.
    """
    rng = np.random.default_rng(0)
    n_gate, kept = oracle.k, []  # of a linear gate in one covariate
    u, value, n_walks = starts.copy(), np.full(len(starts), -np.inf), (len(starts), 1)
    for i in range(n_steps):
        noise = rng.standard_normal(u.shape)
        all_of_it = noise @ root.T * np.exp(rng.uniform(np.log(0.1), 0.0, n_walks))
        size = np.exp(rng.uniform(np.log(0.01), np.log(2), n_walks))
        gate_alone = size * noise * (np.arange(u.shape[1]) < n_gate)
        new_u = u + np.where(rng.uniform(size=n_walks) < 0.5, gate_alone, all_of_it)
        new = oracle.log_density(new_u, x, y)
        accepted = np.log(rng.uniform(size=len(u))) < new - value
        u, value = np.where(accepted[:, None], new_u, u), np.where(accepted, new, value)
        if i % 10 == 0:
            kept.append(u)
    return np.stack(kept, axis=1)


@pytest.mark.slow
def test_jumping_posterior_agrees_with_random_walks() -> None:
    """Top-2 of three: means of quantities without labels, within four standard errors."""
    x, y = sample("three", "top_k_sparse", 300)
    case, oracle = CASE["top_k_sparse"], Oracle(CASE["top_k_sparse"], 3, 1)
    tree = posterior("three", "top_k_sparse", 3, 300, n_chains=4, n_draws=1000)
    assert tree.attrs["status"] == "converged"
    u = np.array([oracle.to_unconstrained(oracle.theta(draw)) for draw in each_draw(tree)])
    root = 0.5 * np.linalg.cholesky(np.cov(u[:1000].T) + 1e-9 * np.eye(u.shape[1]))
    walks = random_walks(oracle, x, y, u[::200], root, 6000)[:, 100:]
    rows = np.argsort(x[:, 0])[20::60]

    def watched(states: Floats) -> Floats:
        theta = [oracle.from_unconstrained(one)[0] for one in states]
        measures = [plain(*oracle.blocks(one)) for one in theta]
        means = [
            (case.probabilities(m, x[rows]) * (x[rows] @ m.slope.T + m.intercept)).sum(1)
            for m in measures
        ]
        return np.column_stack([means, oracle.log_likelihood(np.array(theta), x, y)])

    ours = watched(u).reshape(4, 1000, -1)
    theirs = np.array([watched(walk) for walk in walks])
    for i in range(ours.shape[-1]):
        errors = [float(arviz_stats.mcse(q[..., i], method="mean")) for q in (ours, theirs)]
        gap = ours[..., i].mean() - theirs[..., i].mean()
        assert abs(gap) < 4 * np.hypot(*errors), (i, gap, errors)
        np.testing.assert_allclose(ours[..., i].std(), theirs[..., i].std(), rtol=0.15)


@pytest.mark.slow
def test_one_expert_agrees_with_quadrature() -> None:
    """a, b ~ N(0, 4), ν log-normal: given ν all is Gaussian, and ν is integrated on a grid."""
    x, y = sample("weak", "softmax", 40)
    design = np.column_stack([x[:, 0], np.ones(len(y))])
    grid = np.linspace(-3, 2, 2001)
    logs, means = [], []
    for log_nu in grid:
        nu = np.exp(log_nu)
        precision = design.T @ design / nu + np.eye(2) / 4
        means.append(np.linalg.solve(precision, design.T @ y / nu))
        covariance = nu * np.eye(len(y)) + 4 * design @ design.T
        evidence = scipy.stats.multivariate_normal.logpdf(y, np.zeros(len(y)), covariance)
        logs.append(evidence + scipy.stats.norm.logpdf(log_nu, np.log(0.1), 1.5))
    weights = np.exp(np.asarray(logs) - np.max(logs))
    weights /= weights.sum()
    expected = [*(weights @ np.asarray(means)), weights @ np.exp(grid)]
    group = posterior("weak", "softmax", 1, 40)["posterior"]
    for field, value in zip(("slope", "intercept", "variance"), expected, strict=True):
        draws = group[field].values.reshape(2, -1)
        error = float(arviz_stats.mcse(draws, method="mean"))
        assert abs(draws.mean() - value) < 4 * error, field


@pytest.mark.slow
def test_a_prior_without_a_map_can_be_sampled_under() -> None:
    """a ~ Gamma(1/2, 1), whose density is unbounded at zero, near which the data put it."""
    rng = np.random.default_rng(4)
    x, y = (scipy.stats.zscore(rng.normal(size=30)) for _ in range(2))
    prior = dataclasses.replace(bm.moe("softmax", 1).prior, slope=dist.Gamma(0.5, 1.0))
    tree = bm.sample_posterior(bm.moe("softmax", 1, prior), x, y, key=1)
    assert tree.attrs["status"] == "converged"
    a, nu = np.exp(np.linspace(-25, 2, 1500))[:, None], np.exp(np.linspace(-2, 2, 400))
    total, square = np.sum(y - a * x, axis=1)[:, None], np.sum((y - a * x) ** 2, axis=1)[:, None]
    spread = 1 + 4 * len(y) / nu  # b ~ N(0, 4) is integrated out
    log_density = scipy.stats.gamma.logpdf(a, 0.5) + np.log(a)
    log_density = log_density + scipy.stats.norm.logpdf(np.log(nu), np.log(0.1), 1.5)
    log_density += -len(y) / 2 * np.log(nu) - 0.5 * np.log(spread)
    log_density += -square / (2 * nu) + 2 * (total / nu) ** 2 / spread
    weights = np.exp(log_density - log_density.max()).sum(axis=1)
    draws = tree["posterior"]["slope"].values[..., 0, 0]
    for power in (1, 0.25):
        ours, wanted = draws**power, np.average(a[:, 0] ** power, weights=weights)
        assert abs(ours.mean() - wanted) < 4 * float(arviz_stats.mcse(ours, method="mean"))


# --- the ray


@pytest.mark.slow
def test_on_the_ray_tau_has_its_closed_form() -> None:
    """p(τ | η) ∝ p(τ) p(β1 = τη1) p(β0 = τη0) τ²; the test errs once in a thousand."""
    tree = posterior("lambda", "dense_to_sparse", 2, 3000, n_chains=4)
    group = tree["posterior"].to_dataset()
    tau = group["temperature"].values
    assert not tree["sample_stats"]["diverging"].any()
    assert float(arviz_stats.ess(tau)) > 0.4 * tau.size
    eta1 = (group["gate_slope"].values[:, :, 0, 0] / tau).ravel()
    eta0 = (group["gate_intercept"].values[:, :, 0] / tau).ravel()
    grid = np.exp(np.linspace(-4, 2, 1500))
    logs = (
        scipy.stats.lognorm.logpdf(grid, 0.5)
        + scipy.stats.norm.logpdf(grid * eta1[:, None], scale=3)
        + scipy.stats.norm.logpdf(grid * eta0[:, None], scale=3)
        + 3 * np.log(grid)  # τ², and dτ on a logarithmic grid
    )
    cumulative = np.cumsum(np.exp(logs - logs.max(axis=1, keepdims=True)), axis=1)
    cumulative /= cumulative[:, -1:]
    uniform = np.random.default_rng(0).uniform(size=(len(eta1), 1))
    expected = grid[np.argmax(cumulative > uniform, axis=1)]
    thinned = tau[:, ::4].ravel()
    assert scipy.stats.ks_2samp(thinned, expected).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("label", "ratio"), [("dense_to_sparse", 1.0), ("sigmoid", 10**-0.5)])
def test_the_spread_of_tau_as_n_grows(label: str, ratio: float) -> None:
    n_chains = 4 if label == "dense_to_sparse" else 2
    trees = [posterior("lambda", label, 2, n, n_chains=n_chains) for n in (300, 3000)]
    spread = [float(tree["posterior"]["temperature"].std()) for tree in trees]
    np.testing.assert_allclose(spread[1] / spread[0], ratio, rtol=0.3)


# --- draws and trees


@pytest.mark.slow
def test_draws_depend_on_the_key_alone() -> None:
    x, y = sample("lambda", "softmax", 300)
    start = bm.fit_map(model("softmax", 2), x, y)
    one, two, other = (
        sample_chains(model("softmax", 2), x, y, key=key, start=start, n_threads=threads, **FAST)
        for key, threads in ((1, 1), (1, 2), (2, 2))
    )
    np.testing.assert_array_equal(one.lp, two.lp)
    np.testing.assert_array_equal(one.measures.slope, two.measures.slope)
    assert not np.any(one.lp == other.lp)
    assert not np.any(one.lp[0] == one.lp[1])


def test_the_tree_is_what_arviz_expects(tmp_path: Path) -> None:
    tree = posterior("lambda", "softmax", 2, 300)
    assert set(tree.children) == {
        "posterior", "sample_stats", "log_likelihood", "observed_data", "constant_data",
    }  # fmt: skip
    group = tree["posterior"].to_dataset()
    assert set(group.data_vars) == set(FIELDS)
    assert group["slope"].dims == ("chain", "draw", "expert", "covariate")
    assert group["temperature"].dims == ("chain", "draw")
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "obs")
    total = float(tree["sample_stats"]["log_likelihood"].mean())
    assert total - 30 < arviz_stats.loo(tree).elpd < total
    assert not arviz_stats.summary(tree, var_names=["slope"])["r_hat"].isna().any()
    stats = tree["sample_stats"].to_dataset()
    assert (2 ** stats["tree_depth"] > stats["n_steps"]).all()
    tree.to_netcdf(tmp_path / "p.nc")
    with xr.open_datatree(tmp_path / "p.nc") as reopened:
        for name, child in tree.children.items():
            xr.testing.assert_identical(reopened[name].to_dataset().load(), child.to_dataset())
        assert reopened.attrs["status"] == tree.attrs["status"] == "converged"


def test_the_pointwise_log_likelihood_sums_experts_out() -> None:
    tree = posterior("lambda", "softmax", 2, 300)
    x, y = sample("lambda", "softmax", 300)
    one = tree["posterior"].to_dataset().isel(chain=1, draw=7)
    measure = bm.MixingMeasure(**{field: one[field].values for field in FIELDS})
    expected = np.log(CASE["softmax"].density(measure, x, y))
    pointwise = tree["log_likelihood"]["y"].isel(chain=1, draw=7)
    np.testing.assert_allclose(pointwise, expected, rtol=1e-9)
    total = float(tree["sample_stats"]["log_likelihood"].isel(chain=1, draw=7))
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-9)


@pytest.mark.slow
def test_a_data_frame_names_the_covariates() -> None:
    x, y = sample("lambda", "softmax", 300)
    frame = pd.DataFrame({"dose": x[:, 0]})
    tree = bm.sample_posterior(model("softmax", 2), frame, y, key=3, **FAST)
    assert list(tree["posterior"]["covariate"].values) == ["dose"]
    np.testing.assert_array_equal(tree["constant_data"]["x"].sel(covariate="dose"), x[:, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_chains": 0}, "n_chains must be a whole number of at least 1, got 0"),
        ({"n_draws": 2.5}, "n_draws must be a whole number of at least 1, got 2.5"),
        ({"key": -1}, r"key must be a JAX key or a non-negative int below 2\*\*63, got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bm.sample_posterior(model("softmax", 2), *sample("lambda", "softmax", 300), **arguments)  # type: ignore[arg-type]


def test_an_improper_prior_is_refused() -> None:
    flat = bm.moe("softmax", 2, prior="flat")
    with pytest.raises(ValueError, match=r"'flat' is improper.*use a model with prior='weak'"):
        bm.sample_posterior(flat, *sample("lambda", "softmax", 120))
