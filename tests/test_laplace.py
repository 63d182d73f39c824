"""Modes and importance-resampled Laplace approximations against closed forms and NUTS."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import arviz_stats
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import CASE
from oracles import Floats, Oracle
from xarray import DataTree

import bayesmoe as bm
from bayesmoe.core.layout import Layout
from bayesmoe.core.likelihood import log_density
from bayesmoe.data.table import read_table
from bayesmoe.inference.chart import Chart
from bayesmoe.inference.laplace import MAX_PARETO_K, _systematic, smooth, weigh
from bayesmoe.inference.mixture import Mixture
from bayesmoe.inference.modes import Modes, _triangular, find_modes, spread_out
from bayesmoe.inference.posterior import make_posterior

STRAIGHT = Layout(CASE["softmax"].gate(), 2, 1)  # charts are straight without a temperature
P = STRAIGHT.size


@functools.cache
def line(n: int = 20) -> tuple[Floats, Floats]:
    """A noisy line, standardised: there the weak prior is as written below."""
    rng = np.random.default_rng(5)
    x = rng.uniform(size=n)
    x = (x - x.mean()) / x.std()
    y = 0.8 * x + rng.normal(size=n)
    return x, (y - y.mean()) / y.std()


@functools.cache
def one_expert(seed: int = 0) -> DataTree:
    return bm.sample_laplace(bm.moe("softmax", 1), *line(), key=seed)


@functools.cache
def exact() -> dict[str, Floats]:
    """Means and standard deviations of a, b, ν: normal given ν, and a sum over a grid of log ν."""
    x, y = line()
    design = np.stack([x, np.ones_like(x)], axis=1)
    log_variance = np.linspace(-4, 4, 4001)
    weights, given = [], []
    for variance in np.exp(log_variance):
        law = scipy.stats.multivariate_normal(
            np.zeros(len(y)), 4 * design @ design.T + variance * np.eye(len(y))
        )
        weights.append(law.logpdf(y))
        precision = design.T @ design / variance + np.eye(2) / 4
        given.append((np.linalg.solve(precision, design.T @ y / variance), precision))
    total = np.array(weights) + scipy.stats.norm(np.log(0.1), 1.5).logpdf(log_variance)
    share = np.exp(total - total.max())
    share /= share.sum()
    means = np.array([mean for mean, _ in given])
    covariances = np.array([np.linalg.inv(precision) for _, precision in given])
    mean = share @ means
    second = np.einsum("s,spp->p", share, covariances) + share @ means**2
    nu = np.exp(log_variance)
    return {
        "mean": np.append(mean, share @ nu),
        "sd": np.sqrt(np.append(second, share @ nu**2) - np.append(mean, share @ nu) ** 2),
    }


@pytest.mark.slow
def test_one_expert_has_the_posterior_of_a_regression() -> None:
    """To five standard errors, skewness and heavy tails of the variance included."""
    group = one_expert()["posterior"]
    draws = [group[name].values.ravel() for name in ("slope", "intercept", "variance")]
    m = len(draws[0])
    for draw, mean, sd in zip(draws, exact()["mean"], exact()["sd"], strict=True):
        assert abs(draw.mean() - mean) < 5 * sd / np.sqrt(m)
        kurtosis = np.mean((draw - mean) ** 4) / sd**4
        assert abs(draw.std() / sd - 1) < 5 * np.sqrt((kurtosis - 1) / m) / 2
    attributes = one_expert().attrs
    assert attributes["status"] == "converged"
    assert attributes["pareto_k"] < 0.7
    assert attributes["method"] == "laplace"
    assert (attributes["n_modes"], attributes["mode_weight"]) == (1, 1.0)


@pytest.mark.slow
def test_arviz_reads_the_tree() -> None:
    elpd = arviz_stats.loo(one_expert())
    law = scipy.stats.norm(np.polyval(np.polyfit(*line(), 1), line()[0]), 0.65)
    assert abs(elpd.elpd - law.logpdf(line()[1]).sum()) < 5  # a rough one: that of the plug-in
    assert one_expert()["sample_stats"]["lp"].shape == (4, 1000)


def test_seeds_decide() -> None:
    again = bm.sample_laplace(bm.moe("softmax", 1), *line(), key=0)
    assert again["posterior"].equals(one_expert()["posterior"])
    assert not one_expert(1)["posterior"].equals(again["posterior"])


def test_proposals_have_the_density_of_a_mixture_of_t_laws() -> None:
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, P, P))
    centres = rng.normal(size=(2, P))
    u, shares = rng.normal(size=(5, P)), np.array([0.3, 0.7])
    got = Mixture.of(Chart(centres, roots, np.zeros((2, P))), shares).log_density(STRAIGHT, u)
    laws = [scipy.stats.multivariate_t(centres[i], roots[i] @ roots[i].T, df=8) for i in range(2)]
    expected = np.log(sum(s * law.pdf(u) for s, law in zip(shares, laws, strict=True)))
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_proposals_depend_on_the_curvature_alone() -> None:
    """Not on signs or rotations of its eigenvectors, in which builds of LAPACK differ."""
    rng = np.random.default_rng(3)
    root, centre = rng.normal(size=(3, 3)), rng.normal(size=(1, 3))
    turned = root @ scipy.stats.ortho_group.rvs(3, random_state=4)
    first, second = (
        Mixture.of(Chart(centre, _triangular(r[None]), np.zeros((1, 3))), np.ones(1)).draw(
            STRAIGHT, np.random.default_rng(5), 20_000
        )
        for r in (root, turned)
    )
    np.testing.assert_allclose(_triangular(root[None])[0], np.linalg.cholesky(root @ root.T))
    np.testing.assert_allclose(first, second, rtol=1e-9, atol=1e-9)
    covariance = 8 / 6 * root @ root.T  # of a t law with eight degrees of freedom
    found = np.cov(first.T)
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    # fourth moments are 3/2 of the normal law's: a product's variance is at most 4.5 - 1, scaled
    assert np.all(np.abs(found - covariance) < 5 * np.sqrt(3.5 / 20_000) * scale)


class TwoHills(NamedTuple):
    """A density of mass 3 on two normal laws, as a target."""

    layout: Layout = STRAIGHT

    def log_density(self, u: jax.Array, data: Any) -> jax.Array:
        heights = jnp.stack([jnp.log(2.4) - jnp.sum((u - 3) ** 2) / 2,
                             jnp.log(0.6) - jnp.sum((u + 3) ** 2) / 2])  # fmt: skip
        return jax.nn.logsumexp(heights) - P / 2 * jnp.log(2 * jnp.pi)


def test_proposals_and_their_weights_belong_together() -> None:
    """The mean weight is the mass of the density, to five standard errors, from both modes."""
    centres, roots = np.array([P * [3.0], P * [-3.0]]), np.stack([np.eye(P)] * 2)
    shares = np.array([0.95, 0.05])
    proposal = Mixture.of(Chart(centres, roots, np.zeros((2, P))), shares)
    u = proposal.draw(STRAIGHT, np.random.default_rng(2), 40_000)
    _, log_ratio = weigh(TwoHills(), None, proposal, u)
    for side, mass in ((u.mean(axis=1) > 0, 2.4), (u.mean(axis=1) < 0, 0.6)):
        weights = np.exp(log_ratio) * side
        assert abs(weights.mean() - mass) < 5 * weights.std() / np.sqrt(len(u))
        assert weights.std() / np.sqrt(len(u)) < 0.03 * mass


@pytest.mark.parametrize("n_seen", [0, 1, 399, 400, 2000])
def test_proposals_without_a_density_have_no_weight(n_seen: int) -> None:
    """And where they are too many for a tail to be told, Pareto k says that nothing is known."""
    ratio = np.full(2000, -np.inf)
    ratio[:n_seen] = np.random.default_rng(0).normal(size=n_seen)
    weights, pareto_k = smooth(ratio)
    assert weights.sum() == pytest.approx(1)
    if n_seen < 400:
        assert pareto_k == np.inf
    else:
        assert not np.any(weights[n_seen:])
        assert np.all(weights[:n_seen] > 0)
        assert pareto_k <= MAX_PARETO_K


def test_resampling_keeps_to_the_weights() -> None:
    rng = np.random.default_rng(1)
    weights = rng.dirichlet(np.full(50, 0.3))
    counts = np.bincount(_systematic(weights, rng, 400), minlength=50)
    assert counts.sum() == 400
    assert np.all(np.abs(counts - 400 * weights) < 1)
    order = _systematic(np.full(400, 1 / 400), rng, 400)
    assert abs(scipy.stats.spearmanr(order, np.arange(400)).statistic) < 0.2


@functools.cache
def split(label: str) -> tuple[Any, ...]:
    """Three experts for two lines: the posterior's modes, its model, x, y and MAP fit."""
    truth = bm.scenario("weak", CASE[label].gate(2))
    x, y = (np.asarray(part) for part in truth.simulate(2, 200))
    x = (x - x.mean(0)) / x.std(0) if CASE[label].linear else x / np.sqrt((x**2).mean(0))
    y = (y - y.mean()) / y.std()
    model = bm.moe(CASE[label].gate(3), 3)
    fit = bm.fit_map(model, x, y, key=3)
    return make_posterior(model, x, y, (1, 1), key=jax.random.key(0), start=fit), model, x, y, fit


@pytest.mark.slow
@pytest.mark.parametrize("label", ["softmax", "sigmoid"])
def test_modes_are_distinct_maxima_of_the_density(label: str) -> None:
    posterior, _, x, y, fit = split(label)
    modes, oracle = posterior.modes, Oracle(CASE[label], 3, 1, x.mean(0), x.std(0))
    assert 2 <= len(modes.u) <= len(fit.starts.objective)
    assert np.all(np.diff(modes.log_evidence) < 0)
    np.testing.assert_allclose(modes.weights.sum(), 1)

    def height(u: Floats) -> float:
        theta, log_jacobian = oracle.from_unconstrained(u)
        slope, intercept = theta[-9:-6] / x.std(0), theta[-6:-3]  # sampled for standardised x
        theta[-9:-6], theta[-6:-3] = slope, intercept - slope * x.mean(0)
        return oracle.log_likelihood(theta, x, y) + oracle.log_weak_prior(theta) + log_jacobian

    heights, masses = [], []
    for u, root in zip(np.asarray(modes.u), np.asarray(modes.whitening), strict=True):
        steps = 0.01 * root.T
        middle = height(u)
        for step in steps:  # where the curvature is one a parabola that falls
            up, down = height(u + step) - middle, height(u - step) - middle
            assert abs(up - down) < 2e-5
            assert -1.1e-4 < up + down < 0
        heights.append(middle)
        masses.append(middle + np.linalg.slogdet(root)[1])
    np.testing.assert_allclose(np.diff(masses), np.diff(modes.log_evidence), atol=1e-6)
    for one, other in itertools.combinations(zip(heights, masses, strict=True), 2):
        assert np.max(np.abs(np.subtract(one, other))) > 1e-4, "as dense and as wide: the same mode"


@pytest.mark.slow
def test_modes_of_bounded_parameters_are_inside() -> None:
    """There the coordinates sampled are others than those of MAP, which presses on its bounds."""
    rng = np.random.default_rng(6)
    x = rng.uniform(-1, 1, 60)
    y = 2.0 * x + np.where(x > 0, 0.1, 1e-3) * rng.standard_normal(60)  # below the least variance
    model = bm.moe("softmax", 2, "compact")
    posterior = make_posterior(model, x, y, (1, 1), key=jax.random.key(0), start=None)
    target, modes = posterior.target, posterior.modes
    assert target.bounded
    for u, root in zip(modes.u, modes.whitening, strict=True):
        gradient = jax.grad(target.log_density)(jnp.asarray(u), posterior.data)
        assert np.max(np.abs(gradient)) < 1e-8 * len(y)
        hessian = jax.hessian(target.log_density)(jnp.asarray(u), posterior.data)
        curvature = np.linalg.eigvalsh(-np.asarray(hessian))
        whitened = np.linalg.eigvalsh(root.T @ -np.asarray(hessian) @ root)
        expected = np.sort(curvature / np.maximum(np.abs(curvature), 0.1))  # flat ones stay flat
        np.testing.assert_allclose(whitened, expected, atol=1e-6)


@pytest.mark.slow
def test_copies_under_other_labels_count_once() -> None:
    posterior, model, x, y, fit = split("softmax")
    best = fit.measure
    order = jnp.array([1, 0, 2])
    swapped = jax.tree.map(lambda leaf: leaf[order] if leaf.ndim else leaf, best)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), best, swapped)
    doubled = bm.fit_map(model, x, y, n_starts=0, starts=both)
    assert len(doubled.starts.objective) >= 2
    alone = bm.fit_map(model, x, y, n_starts=0, starts=best)
    one, two = (
        find_modes(posterior.target, posterior.scaling, posterior.data, start, 1)
        for start in (alone, doubled)
    )
    np.testing.assert_allclose(two.log_evidence, one.log_evidence, rtol=1e-6)


def test_mirror_images_are_no_copies() -> None:
    """Data that are odd in x have pairs of modes of equal height and mass."""
    x = np.linspace(-2, 2, 60)
    y = np.round(1.2 * x)
    posterior = make_posterior(
        bm.moe("softmax", 2), x, y, (1, 1), key=jax.random.key(0), start=None
    )
    modes, target = posterior.modes, posterior.target
    np.testing.assert_allclose(modes.log_evidence[0], modes.log_evidence[1], atol=1e-6)
    one, other = (
        np.asarray(
            log_density(
                target.layout.gate, posterior.scaling.restore(target.measure(u)), x[:, None], y
            )
        )
        for u in jnp.asarray(modes.u[:2])
    )
    np.testing.assert_allclose(one, other[::-1], atol=1e-4)
    assert np.max(np.abs(one - other)) > 0.5


def test_where_the_density_jumps_chains_start_apart() -> None:
    """Beside the densest gate at those whose experts are farthest from each other."""
    layout = Layout(CASE["softmax"].gate(), 2, 1)
    g = layout.n_gate
    u = np.zeros((5, layout.size))
    u[:, g] = [0.0, 0.1, 3.0, 9.0, 2.0]  # a slope
    precise = np.eye(layout.size)
    precise[:g, :g] *= 1e-3  # what the curvature says of the gate does not count
    whitening = np.stack([np.eye(layout.size)] * 4 + [precise])
    heights = np.array([0.0, -0.1, -1.0, -5.0, -1.5])
    evidence = heights + np.linalg.slogdet(whitening)[1]
    modes = Modes(u, whitening, evidence)
    assert spread_out(layout, modes, 3).tolist() == [0, 2, 4]
    assert spread_out(layout, modes, 6).tolist() == [0, 2, 4, 1, 0, 2]


@pytest.mark.slow
def test_modes_are_sought_under_every_reference() -> None:
    """A linear gate's likelihood does not know its reference: nor may what is found hang on it.

    Twelve starts with seed 1 find the region that holds a quarter of this posterior under
    references alone that leave it next to nothing.
    """
    data = read_table("ethanol", "nox")
    model = bm.moe("softmax", 3)
    shares, steepest = [], []
    for key in range(3):
        start = bm.fit_map(model, data.x, data.y, key=key, n_starts=12)
        posterior = make_posterior(
            model, data.x, data.y, (1, 1), key=jax.random.key(0), start=start
        )
        modes = posterior.modes
        measures = [posterior.scaling.restore(posterior.target.measure(u)) for u in modes.u[:3]]
        shares.append(modes.weights[:3])
        steepest.append([float(jnp.min(measure.slope)) for measure in measures])
    assert shares[0][1] > 0.2
    np.testing.assert_allclose(shares, np.tile(shares[0], (3, 1)), atol=0.01)
    np.testing.assert_allclose(steepest, np.tile(steepest[0], (3, 1)), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["softmax", "dense_to_sparse", "sigmoid"])
def test_two_experts_agree_with_nuts(label: str) -> None:
    """Means to five standard errors of both samplers; a Pareto k that says so."""
    model = bm.moe(CASE[label].gate(2), 2)
    x, y = bm.scenario("lambda", CASE[label].gate(2)).simulate(1, 1000)
    fit = bm.fit_map(model, x, y, key=2)
    trees = [
        sample(model, x, y, key=1, start=fit) for sample in (bm.sample_laplace, bm.sample_posterior)
    ]
    assert trees[0].attrs["status"] == "converged"
    assert trees[0].attrs["min_ess"] > 1000
    names = ["variance", "slope", "intercept"] + ["temperature"] * CASE[label].temperature
    tables = [arviz_stats.summary(tree, var_names=names, round_to="none") for tree in trees]
    means, deviations = (np.array([t[c] for t in tables]) for c in ("mean", "sd"))
    ess = np.array(
        [np.full(len(tables[0]), 0.5 * trees[0].attrs["min_ess"]), tables[1]["ess_bulk"]]
    )
    error = np.sqrt(np.sum(deviations**2 / ess, axis=0))
    assert np.all(np.abs(means[0] - means[1]) < 5 * error)
    np.testing.assert_allclose(deviations[0], deviations[1], rtol=0.15)


@pytest.mark.slow
def test_an_approximation_that_fails_says_so() -> None:
    """Where an expert too many is nearly free, no t law is near the posterior."""
    _, model, x, y, fit = split("softmax")
    tree = bm.sample_laplace(model, x, y, start=fit, key=1)
    assert tree.attrs["pareto_k"] > 0.7
    assert tree.attrs["status"] == "unreliable"


def test_a_density_that_jumps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayesmoe.inference.posterior.fit_map", None)  # calling it would fail
    with pytest.raises(ValueError, match=r"jumps.*use bayesmoe.sample_posterior"):
        bm.sample_laplace(bm.moe("top_k_sparse", 2, top_k=1), *line())
    with pytest.raises(ValueError, match="n_draws must be a whole number"):
        bm.sample_laplace(bm.moe("softmax", 1), *line(), n_draws=0)
    with pytest.raises(ValueError, match="improper"):
        bm.sample_laplace(bm.moe("softmax", 1, "flat"), *line())
