"""Point estimates against closed forms, SciPy and finite differences of a NumPy likelihood."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from conftest import CASE
from oracles import Floats, Oracle

import bayesmoe as bm
from bayesmoe.core.observations import CHUNK
from bayesmoe.inference import problem
from bayesmoe.inference.climb import climb
from bayesmoe.inference.domain import domain
from bayesmoe.inference.outcome import Status
from bayesmoe.inference.point import Fit, agree, fit_map, fit_mle
from bayesmoe.inference.starts import near_truth

FLOOR = 1e-4
GATES = ["softmax", "dense_to_sparse", "sigmoid"]
SOFTMAX_FIRST = ["softmax", *(pytest.param(label, marks=pytest.mark.slow) for label in GATES[1:])]


def oracle_of(label: str, measure: bm.MixingMeasure) -> Oracle:
    return Oracle(CASE[label], measure.n_experts, measure.n_covariates)


def gradient(function: Callable[[Floats], float], theta: Floats) -> Floats:
    """Central differences, per relative change of each parameter."""
    out = np.empty(len(theta))
    for i, value in enumerate(theta):
        shift = 2e-6 * max(abs(value), 1e-2) * np.eye(len(theta))[i]
        out[i] = (function(theta + shift) - function(theta - shift)) / 4e-6
    return out


# --- data and fits, each made once ---


@functools.cache
def sample(name: str, label: str, n: int, seed: int = 0) -> tuple[Floats, Floats]:
    x, y = bm.scenario(name, CASE[label].gate(3)).simulate(seed, n)
    return np.asarray(x), np.asarray(y)


@functools.cache
def standard_sample(name: str, label: str, n: int, seed: int = 0) -> tuple[Floats, Floats]:
    x, y = sample(name, label, n, seed)
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


@functools.cache
def fitted(estimator: Any, name: str, label: str, k: int, n: int, prior: str = "weak") -> Fit:
    return estimator(model(label, k, prior), *standard_sample(name, label, n), key=1)


def model(label: str, k: int, prior: str = "weak") -> bm.MoE:
    return bm.moe(CASE[label].gate(k), k, prior)


def identifiable(label: str, measure: bm.MixingMeasure) -> Floats:
    layout = model(label, measure.n_experts).layout(measure.n_covariates)
    coordinates = np.asarray(layout.pack(measure))
    if CASE[label].ray and CASE[label].linear:  # log τ is on the ray
        return np.delete(coordinates, layout.n_gate - 1)
    return coordinates


def relative(one: Floats, other: Floats) -> float:
    return float(np.max(np.abs(one - other) / np.maximum(np.abs(other), 1e-2)))


# --- maximum likelihood ---


@pytest.mark.parametrize(
    ("label", "d"),
    [("softmax", 1), ("softmax", 3), pytest.param("sigmoid", 1, marks=pytest.mark.slow)],
)
def test_one_expert_is_least_squares(label: str, d: int) -> None:
    rng = np.random.default_rng(d)
    x = rng.normal(3.0, [1.0, 10.0, 0.1][:d], size=(50, d))
    y = x @ rng.normal(size=d) + 7 + 0.5 * rng.normal(size=50)
    fit = fit_mle(model(label, 1), x, y)
    design = np.column_stack([x, np.ones(50)])
    line, error, *_ = np.linalg.lstsq(design, y, rcond=None)
    assert fit.status is Status.CONVERGED
    np.testing.assert_allclose(fit.measure.slope[0], line[:-1], rtol=1e-10)
    np.testing.assert_allclose(fit.measure.intercept[0], line[-1], rtol=1e-10)
    np.testing.assert_allclose(fit.measure.variance[0], error[0] / 50, rtol=1e-10)
    want = scipy.stats.norm.logpdf(y, design @ line, np.sqrt(error[0] / 50)).sum()
    np.testing.assert_allclose(fit.log_likelihood, want, rtol=1e-12)
    assert np.isnan(fit.log_density)


@pytest.mark.parametrize("label", SOFTMAX_FIRST)
def test_the_mle_has_a_zero_score(label: str) -> None:
    x, y = sample("lambda", label, 300)
    fit = fit_mle(model(label, 2), x, y, key=1)
    oracle = oracle_of(label, fit.measure)
    theta = oracle.theta(fit.measure)
    score = gradient(lambda t: oracle.log_likelihood(t, x, y) / len(y), theta)
    assert fit.status is Status.CONVERGED
    assert np.abs(score).max() < 1e-8
    # and away from the MLE it is not zero
    other = gradient(lambda t: oracle.log_likelihood(t, x, y) / len(y), 1.001 * theta)
    assert np.abs(other).max() > 1e-5
    np.testing.assert_allclose(fit.log_likelihood, oracle.log_likelihood(theta, x, y), rtol=1e-12)


def peer_maximum(
    oracle: Oracle, x: Floats, y: Floats, begin: list[bm.MixingMeasure]
) -> tuple[float, Floats]:
    """The best that L-BFGS-B reaches, variances (and τ) on the log scale, above the floor."""
    k = oracle.k
    positive = np.zeros(len(oracle.theta(begin[0])), bool)
    positive[-k:] = True
    if oracle.case.temperature:
        positive[(k - 1) * (oracle.d + 1)] = True

    def paper(u: Floats) -> Floats:
        return np.where(positive, np.exp(np.clip(u, -50, 50)), u)

    bounds: list[Any] = [(-12, 12) if log else (None, None) for log in positive]
    bounds[-k:] = [(np.log(FLOOR * y.var()), None)] * k
    best = (-np.inf, np.zeros(0))
    for start in begin:
        theta = oracle.theta(start)
        u = np.where(positive, np.log(np.where(positive, theta, 1.0)), theta)
        result = scipy.optimize.minimize(
            lambda u: -oracle.log_likelihood(paper(u), x, y) / len(y),
            u,
            jac="3-point",
            bounds=bounds,
            method="L-BFGS-B",
            options={"maxiter": 2000, "maxfun": 10**6, "ftol": 1e-14, "gtol": 1e-9},
        )
        best = max(best, (-result.fun * len(y), paper(result.x)), key=lambda pair: pair[0])
    return best


def peer_starts(name: str, label: str, k: int, x: Floats, y: Floats) -> list[bm.MixingMeasure]:
    """The truth, split where k exceeds k*, and jittered copies of it."""
    truth = bm.scenario(name, CASE[label].gate(3)).measure
    copies = near_truth(jax.random.key(5), truth, k, len(y), 2)
    return [copies[i] for i in range(2)]


SETTINGS = [(name, 0) for name in ("lambda", "three", "plane", "weak")]
SETTINGS += [("lambda", 1), ("weak", 1)]
FAST = [("softmax", "lambda", 0)]


@pytest.mark.parametrize(
    ("label", "name", "extra"),
    FAST
    + [
        pytest.param(label, *setting, marks=pytest.mark.slow)
        for label in GATES
        for setting in SETTINGS
        if (label, *setting) not in FAST
    ],
)
def test_no_peer_reaches_a_higher_likelihood(label: str, name: str, extra: int) -> None:
    """From the peer's optimum always; from starts that know nothing, where k is the true one.

    Over-specified likelihoods have more local maxima than a few starts can be sure to see.
    """
    x, y = sample(name, label, 300)
    k = bm.scenario(name, CASE[label].gate(3)).measure.n_experts + extra
    fit = fit_mle(model(label, k), x, y, key=1)
    oracle = Oracle(CASE[label], k, x.shape[1])
    peer, theta = peer_maximum(oracle, x, y, peer_starts(name, label, k, x, y))
    begin = bm.MixingMeasure(*oracle.blocks(theta))
    polished = fit_mle(model(label, k), x, y, starts=begin, n_starts=0)
    ours = oracle.log_likelihood(oracle.theta(fit.measure), x, y)
    np.testing.assert_allclose(fit.log_likelihood, ours, rtol=1e-10, atol=1e-8)
    assert polished.log_likelihood >= peer - 1e-6
    if extra == 0:
        assert ours >= peer - 1e-6
        assert peer >= polished.log_likelihood - 0.1  # it is no straw man


# --- maximum a posteriori ---


@pytest.mark.parametrize("label", SOFTMAX_FIRST)
def test_map_under_the_flat_prior_is_the_mle(label: str) -> None:
    x, y = sample("lambda", label, 300)
    mle = fit_mle(model(label, 2), x, y, key=1)
    flat = fit_map(model(label, 2, "flat"), x, y, key=1)
    assert flat.log_density == pytest.approx(flat.log_likelihood, rel=1e-13)
    assert mle.converged
    assert flat.converged
    distance = relative(identifiable(label, flat.measure), identifiable(label, mle.measure))
    assert distance < 1e-6
    np.testing.assert_allclose(flat.log_likelihood, mle.log_likelihood, rtol=1e-12)


@pytest.mark.parametrize("label", SOFTMAX_FIRST)
def test_the_map_is_stationary_in_the_papers_parameters(label: str) -> None:
    x, y = standard_sample("lambda", label, 300)
    fit = fitted(fit_map, "lambda", label, 2, 300)
    oracle = oracle_of(label, fit.measure)
    theta = oracle.theta(fit.measure)

    def posterior(t: Floats) -> float:
        return oracle.log_likelihood(t, x, y) + oracle.log_weak_prior(t)

    assert fit.status is Status.CONVERGED
    assert np.abs(gradient(lambda t: posterior(t) / len(y), theta)).max() < 1e-8
    np.testing.assert_allclose(fit.log_density, posterior(theta), rtol=1e-10)
    np.testing.assert_allclose(fit.log_likelihood, oracle.log_likelihood(theta, x, y), rtol=1e-10)
    # the Jacobian of any coordinates with log ν would have been seen
    assert np.abs(gradient(lambda t: np.log(t[-1]) / len(y), theta)).max() > 1e-3


@pytest.mark.parametrize("label", ["softmax", "sigmoid"])
def test_the_log_density_is_that_of_the_data_as_given(label: str) -> None:
    """p(θ) p(y|θ) changes by the volume of the affine map of parameters and data."""
    x, y = standard_sample("lambda", label, 300)
    unit = fitted(fit_map, "lambda", label, 2, 300)
    given = fit_map(model(label, 2), 4.0 * x, 10.0 * y, key=1)
    volume = 2 * (np.log(10 / 4) + 3 * np.log(10)) - np.log(4)
    np.testing.assert_allclose(
        given.log_density, unit.log_density - volume - 300 * np.log(10), rtol=1e-10
    )


def test_on_the_ray_the_map_sits_where_the_prior_puts_it() -> None:
    fit = fitted(fit_map, "lambda", "dense_to_sparse", 2, 300)
    oracle = oracle_of("dense_to_sparse", fit.measure)
    theta = oracle.theta(fit.measure)

    def prior_along(log_c: float) -> float:
        moved = theta.copy()
        moved[:3] *= np.exp(log_c)  # (β1, β0, τ)
        return -oracle.log_weak_prior(moved)

    best = scipy.optimize.minimize_scalar(
        prior_along, bracket=(-1.0, 0.5), method="brent", options={"xtol": 1e-9}
    )
    assert abs(best.x) < 1e-6
    # the position is not that of the start, nor of τ's own mode
    assert abs(theta[2] - np.exp(-0.25)) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("label", ["softmax", "sigmoid"])
def test_map_approaches_the_mle_like_one_over_n(label: str) -> None:
    sizes, replicates = np.array([300, 1000, 3000, 10_000, 30_000]), range(5)
    truth = bm.scenario("lambda", CASE[label].gate(2)).measure
    options: dict[str, Any] = {"starts": truth, "n_starts": 0}
    medians = []
    for n in sizes:
        distances = []
        for seed in replicates:
            x, y = sample("lambda", label, int(n), 100 + seed)
            mle, posterior = (f(model(label, 2), x, y, **options) for f in (fit_mle, fit_map))
            assert mle.status is Status.CONVERGED
            assert posterior.status is Status.CONVERGED
            gap = aligned(label, posterior.measure) - aligned(label, mle.measure)
            distances.append(np.linalg.norm(gap))
        medians.append(np.median(distances))
    slope = np.polyfit(np.log(sizes), np.log(medians), 1)[0]
    assert -1.2 < slope < -0.8


# --- priors with bounded supports ---


def in_groups(n: int = 200) -> tuple[Floats, Floats]:
    """Two groups with a gap in x between them, and a line in each; standardised."""
    rng = np.random.default_rng(0)
    x = np.sort(np.concatenate([rng.uniform(0, 0.4, n // 2), rng.uniform(0.6, 1, n // 2)]))
    y = np.where(x < 0.5, 15 - 20 * x, -5 + 20 * x) + 0.3 * rng.normal(size=n)
    return ((x - x.mean()) / x.std())[:, None], (y - y.mean()) / y.std()


def at_a_step() -> tuple[Floats, Floats]:
    """One line on either side of a point of x, with no gap; standardised."""
    rng = np.random.default_rng(1)
    x = rng.uniform(size=400)
    y = np.where(x < 0.47, 3 - 4 * x, 4 * x - 1) + 0.2 * rng.normal(size=400)
    return ((x - x.mean()) / x.std())[:, None], (y - y.mean()) / y.std()


WEAK = {
    "gate_slope": scipy.stats.norm(0, 3),
    "gate_intercept": scipy.stats.norm(0, 3),
    "temperature": scipy.stats.lognorm(0.5),
    "slope": scipy.stats.norm(0, 2),
    "intercept": scipy.stats.norm(0, 2),
    "variance": scipy.stats.lognorm(1.5, scale=0.1),
}
BLOCKS = tuple(WEAK)


def uniform(low: float, high: float) -> tuple[dist.Distribution, Any]:
    return dist.Uniform(low, high), scipy.stats.uniform(low, high - low)


def above(low: float) -> tuple[dist.Distribution, Any]:
    return dist.TruncatedNormal(0.0, 2.0, low=low), scipy.stats.truncnorm(low / 2, np.inf, 0, 2)


COMPACT = {
    "gate_slope": uniform(-50, 50),
    "gate_intercept": uniform(-50, 50),
    "temperature": uniform(0.01, 10),
    "slope": uniform(-10, 10),
    "intercept": uniform(-10, 10),
    "variance": uniform(1e-4, 10),
}
#: gate, data, laws, and which parameters rest on an edge
BOUNDED: dict[str, tuple[str, Any, dict[str, Any], set[str]]] = {
    "variance": ("softmax", in_groups, {"variance": uniform(0.2, 2)}, {"variance"}),
    "slope": ("softmax", in_groups, {"slope": above(0.95)}, {"slope"}),
    "temperature": (
        "dense_to_sparse", in_groups, {"temperature": uniform(0.5, 2)}, {"temperature"}
    ),
    "gate over the temperature": (
        "dense_to_sparse", at_a_step,
        {"gate_slope": uniform(-1, 1), "gate_intercept": uniform(-2, 2)}, {"gate_slope"},
    ),
    "several": (
        "dense_to_sparse", in_groups,
        {
            "gate_slope": uniform(0.5, 4), "temperature": uniform(0.7, 3),
            "intercept": above(0.4), "variance": uniform(0.01, 0.04),
        },
        {"gate_slope", "temperature", "intercept", "variance"},
    ),
    "compact": ("softmax", at_a_step, COMPACT, {"gate_slope"}),
    "compact, activation": ("sigmoid", at_a_step, COMPACT, {"temperature"}),
}  # fmt: skip


class BoundedCase:
    """A model under a prior with bounds, and its log posterior density by NumPy and SciPy."""

    def __init__(self, name: str) -> None:
        label, data, laws, self.resting = BOUNDED[name]
        self.x, self.y = data()
        weak = bm.moe(CASE[label].gate(2), 2).prior
        given = {block: law for block, (law, _) in laws.items()}
        prior = dataclasses.replace(weak, **given, intercept_per_temperature=False)
        self.model = bm.moe(CASE[label].gate(2), 2, prior)
        self.oracle = Oracle(CASE[label], 2, 1)
        self.laws = {block: laws[block][1] if block in laws else WEAK[block] for block in BLOCKS}

    @property
    def blocks(self) -> list[str]:
        """The block of each parameter."""
        tau = ["temperature"] * self.oracle.case.temperature
        experts = [block for block in ("slope", "intercept", "variance") for _ in range(2)]
        return ["gate_slope", "gate_intercept", *tau, *experts]

    @property
    def bounds(self) -> list[tuple[float, float]]:
        interval = {block: law.support() for block, law in self.laws.items()}
        interval["temperature"] = max(1e-3, interval["temperature"][0]), interval["temperature"][1]
        interval["variance"] = max(FLOOR, interval["variance"][0]), interval["variance"][1]
        return [interval[block] for block in self.blocks]

    def log_density(self, theta: Floats) -> float:
        prior = sum(self.laws[b].logpdf(v) for b, v in zip(self.blocks, theta, strict=True))
        return float(self.oracle.log_likelihood(theta, self.x, self.y) + prior)

    def peer(self, start: Floats) -> tuple[float, Floats]:
        """Where L-BFGS-B ends from a start, by differences within the bounds."""
        low, high = map(np.array, zip(*self.bounds, strict=True))
        found = scipy.optimize.minimize(
            lambda theta: -self.log_density(np.clip(theta, low, high)) / len(self.y),
            np.clip(start, low, high), jac="3-point", bounds=self.bounds, method="L-BFGS-B",
            options={"maxiter": 3000, "maxfun": 10**6, "ftol": 1e-15, "gtol": 1e-9},
        )  # fmt: skip
        return -found.fun * len(self.y), found.x

    def gradient(self, theta: Floats) -> Floats:
        """Of the mean log density, per relative change of each, by differences that stay inside."""
        out = np.empty(len(theta))
        for i, (low, high) in enumerate(self.bounds):
            step = 1e-6 * max(abs(theta[i]), 1e-2)
            ends = np.clip(theta[i] + np.array([-step, step]), low, high)
            values = [
                self.log_density(np.where(np.arange(len(theta)) == i, e, theta)) for e in ends
            ]
            out[i] = (values[1] - values[0]) / (ends[1] - ends[0]) * step / 1e-6 / len(self.y)
        return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("variance", "several") else pytest.mark.slow)
        for name in BOUNDED
    ],
)
def test_the_map_over_a_bounded_support_is_that_of_scipy(name: str) -> None:
    """Karush, Kuhn and Tucker: the score is zero inside, and on an edge it points out."""
    case = BoundedCase(name)
    fit = fit_map(case.model, case.x, case.y, key=1)
    theta = case.oracle.theta(fit.measure)
    low, high = map(np.array, zip(*case.bounds, strict=True))
    assert np.all((theta >= low * (1 - 1e-12 * np.sign(low))) & (theta <= high * (1 + 1e-12)))
    theta = np.clip(theta, low, high)
    np.testing.assert_allclose(fit.log_density, case.log_density(theta), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        fit.log_likelihood, case.oracle.log_likelihood(theta, case.x, case.y), rtol=1e-9
    )
    below, over = theta <= low + 1e-9, theta >= high - 1e-9
    assert fit.status is Status.AT_PRIOR_BOUND
    assert fit.gradient_norm <= 1e-8
    assert {case.blocks[i] for i in np.flatnonzero(below | over)} == case.resting
    score = case.gradient(theta)
    np.testing.assert_allclose(score[~(below | over)], 0.0, atol=1e-7)
    assert np.all(score[below] < -1e-6)
    assert np.all(score[over] > 1e-6)
    perturbed = theta * np.random.default_rng(2).uniform(0.8, 1.25, len(theta))
    for start in (theta, perturbed):
        height, _ = case.peer(start)
        assert height <= fit.log_density + 1e-7
    assert height >= fit.log_density - 1e-3  # it is no straw man


def test_under_the_compact_prior_a_separated_gate_goes_to_the_edge() -> None:
    """The likelihood flattens long before, and has no maximum: the prior's support has one."""
    x, y = in_groups()
    fit = fit_map(model("softmax", 2, "compact"), x, y, key=1)
    assert fit.status is Status.AT_PRIOR_BOUND
    assert all(status.converged for status in fit.starts.status)
    assert len(fit.starts.status) == 12
    np.testing.assert_allclose(abs(fit.measure.gate_slope[0, 0]), 50.0, rtol=1e-12)
    mle = fit_mle(model("softmax", 2), x, y, key=1)
    assert mle.status is Status.SEPARATED
    assert abs(fit.log_likelihood - mle.log_likelihood) < 1e-3


def test_starts_outside_the_support_are_moved_inside() -> None:
    """Whoever gives them; the borders of a linear gate stay where they are."""
    x, y = in_groups()
    weak = bm.moe("softmax", 2).prior
    prior = dataclasses.replace(weak, variance=dist.Uniform(0.2, 2.0), slope=dist.Beta(2.0, 2.0))
    given = bm.MixingMeasure(
        [[-80.0], [0.0]], [8.0, 0.0], 1.0, [[-3.0], [9.0]], [0.0, 0.0], [1e-3, 50.0]
    )
    fit = fit_map(bm.moe("softmax", 2, prior), x, y, key=1, n_starts=3, starts=given)
    assert np.all(np.isfinite(fit.starts.objective))
    assert all(status.converged for status in fit.starts.status)
    assert np.all((fit.starts.measures.slope > 0) & (fit.starts.measures.slope < 1))
    compact = bm.moe("softmax", 2, "compact")
    layout = compact.layout(1)
    where = domain(layout, compact.prior, np.full(layout.size, -np.inf))
    (begun,) = where.begin(np.asarray(layout.pack(given))[None])
    assert np.all((begun > where.lower) & (begun < where.upper))
    np.testing.assert_allclose(begun[1] / begun[0], 8.0 / -80.0, rtol=1e-12)
    assert begun[0] == pytest.approx(-50, abs=0.02)


def test_a_floor_above_the_support_of_the_variance_counts_as_the_floor() -> None:
    x, y = in_groups()
    prior = dataclasses.replace(bm.moe("softmax", 2).prior, variance=dist.Uniform(1e-3, 2.0))
    given = bm.moe("softmax", 2, prior)
    fit = fit_map(given, x, y, key=1, variance_floor=0.3)
    assert fit.status is Status.AT_VARIANCE_FLOOR
    assert fit.measure.variance == pytest.approx(0.3, rel=1e-9)


@pytest.mark.parametrize(
    ("laws", "message"),
    [
        ({"variance": dist.Uniform(1e-6, 1e-5)}, "variance has support up to 1e-05, .* 0.0001"),
        ({"slope": dist.Gamma(0.5, 1.0)}, "prior of slope is not bounded at 0"),
        ({"gate_slope": dist.Beta(2.0, 0.5)}, "prior of gate_slope is not bounded at 1"),
        ({"intercept": dist.Poisson(2.0)}, "prior of intercept has support .*interval"),
        ({"temperature": dist.Gamma(0.5, 1.0)}, "prior of temperature is not bounded at 0"),
    ],
)
def test_a_prior_without_a_map_is_refused_before_computing(
    laws: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = "dense_to_sparse" if "temperature" in laws else "softmax"
    prior = dataclasses.replace(bm.moe(gate, 2).prior, **laws)
    monkeypatch.setattr(problem, "starting_points", None)
    with pytest.raises(ValueError, match=message):
        fit_map(bm.moe(gate, 2, prior), *in_groups())


@pytest.mark.slow
def test_a_posterior_starts_from_a_map_on_the_edge() -> None:
    case = BoundedCase("several")
    fit = fit_map(case.model, case.x, case.y, key=1)
    tree = bm.sample_posterior(
        case.model, case.x, case.y, key=1, start=fit, n_chains=2, n_warmup=100, n_draws=50
    )
    tau = tree.posterior["temperature"].to_numpy()
    assert np.all((tau > 0.7) & (tau < 3))
    assert np.all(tree.posterior["intercept"].to_numpy() > 0.4)


def aligned(label: str, measure: bm.MixingMeasure) -> Floats:
    """Identifiable coordinates with the expert of the lesser slope first.

    Swapping two experts changes the signs of the gate's parameters: under the sigmoid gate, too,
    for σ(-u) - σ(0) = -(σ(u) - σ(0)).
    """
    if measure.slope[0, 0] < measure.slope[1, 0]:
        return identifiable(label, measure)
    swapped = jax.tree.map(lambda leaf: leaf[::-1] if leaf.ndim else leaf, measure)
    gate_slope, gate_intercept = -measure.gate_slope, -measure.gate_intercept
    return identifiable(
        label, swapped.replace(gate_slope=gate_slope, gate_intercept=gate_intercept)
    )


# --- many observations, of which a sample serves to begin with ---


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem, "MANY", 1000)
    monkeypatch.setattr(problem, "SAMPLE", CHUNK)


@pytest.mark.parametrize("label", ["softmax", "dense_to_sparse"])
def test_a_sample_leads_to_the_same_maximum(label: str, request: pytest.FixtureRequest) -> None:
    x, y = sample("lambda", label, 3000)
    expected = fit_mle(model(label, 2), x, y, key=1)
    request.getfixturevalue("few_are_many")
    found = fit_mle(model(label, 2), x, y, key=1)
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, rtol=1e-12)
    for i, status in enumerate(found.starts.status):  # whatever it says holds for all observations
        measure = found.starts.measures[i]
        oracle = oracle_of(label, measure)
        log_likelihood = np.sum(oracle.log_likelihood(oracle.theta(measure), x, y))
        np.testing.assert_allclose(found.starts.objective[i], log_likelihood, rtol=1e-10)
        assert status.converged == (found.starts.gradient_norm[i] <= 1e-8)
    if label == "dense_to_sparse":  # starts keep their place on the ray
        assert len(np.unique(np.round(found.starts.measures.temperature, 3))) == 12


def test_starts_that_are_given_climb_on_all_observations(few_are_many: None) -> None:
    x, y = sample("lambda", "softmax", 3000)
    best = fit_mle(model("softmax", 2), x, y, key=1)
    again = fit_mle(model("softmax", 2), x, y, starts=best.measure, n_starts=11)
    assert again.starts.n_iterations[0] <= 3 < min(again.starts.n_iterations[1:])


def test_a_sample_that_is_separated_leads_nowhere(few_are_many: None) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(0, 0.4, 1500), rng.uniform(0.6, 1, 1498), [0.45, 0.55]])
    first = np.repeat([True, False, False, True], [1500, 1498, 1, 1])  # the last two are alone
    y = np.where(first, 1 + 2 * x, 8 - 3 * x) + 0.1 * rng.standard_normal(3000)
    fit = fit_mle(model("softmax", 2), x, y, key=2)
    assert all(status is Status.CONVERGED for status in fit.starts.status)
    assert np.ptp(fit.starts.objective) < 1e-8
    assert min(fit.starts.n_iterations) > 25  # from where it began, after it had run away


# --- starts that do not agree, of which more are taken


@functools.cache
def outcrop() -> tuple[Floats, Floats]:
    """Few rows by chance alone: the likelihood of three experts has many maxima."""
    rng = np.random.default_rng(2)
    return rng.normal(size=(28, 1)), rng.normal(size=28)


@pytest.mark.parametrize(("n_best", "enough"), [(4, False), (5, True)])
def test_five_starts_that_reach_the_best_agree(n_best: int, enough: bool) -> None:
    lower, lost = [-100.1] * 6, [np.nan, -np.inf]  # of these none counts
    assert agree(np.array([*lost, *lower, *[-100.0] * n_best])) is enough
    assert not agree(np.array(lost))


def test_starts_without_a_maximum_agree_as_the_report_counts_them() -> None:
    """Separated ends are as high as where each was stopped."""
    assert agree(-100.0 - 1e-7 * np.arange(5))
    assert not agree(-100.0 - 1e-3 * np.arange(5))


@pytest.mark.slow
def test_starts_go_on_until_some_agree_on_the_best() -> None:
    x, y = outcrop()
    three = model("softmax", 3)
    twelve = fit_mle(three, x, y, key=5, n_starts=12)
    found = fit_mle(three, x, y, key=5)
    heights = found.starts.objective
    np.testing.assert_array_equal(heights[:12], twelve.starts.objective)
    n_batches, rest = divmod(len(heights), 12)
    assert rest == 0

    def agreeing(n: int) -> int:
        return int(np.sum(heights[:n] >= np.max(heights[:n]) - 1e-6))

    assert n_batches > 1
    assert all(agreeing(12 * batch) < 5 for batch in range(1, n_batches))
    assert agreeing(len(heights)) >= 5 or n_batches == 8
    assert found.log_likelihood == np.max(heights) > twelve.log_likelihood + 0.1
    best = int(np.argmax(heights))
    oracle = oracle_of("softmax", found.measure)
    log_likelihood = oracle.log_likelihood(oracle.theta(found.measure), x, y)
    np.testing.assert_allclose(log_likelihood, heights[best], rtol=1e-9)
    assert found.status is found.starts.status[best]
    for one, other in zip(
        jax.tree.leaves(found.measure), jax.tree.leaves(found.starts.measures[best]), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(("label", "gain"), [("softmax", 0.1), ("identity", 1e-3)])
def test_no_other_reference_leads_to_a_higher_map(label: str, gain: float) -> None:
    """The prior tells which expert is the reference: no luck of the starts may."""
    x, y = bm.scenario("weak").simulate(1, 300)
    fits = [bm.fit_map(model(label, 3), x, y, key=key, n_starts=2) for key in range(3)]
    for fit in fits:
        assert fit.converged
        for order in ([1, 2, 0], [2, 0, 1]):
            turned = jax.tree.map(
                lambda leaf, order=order: np.asarray(leaf)[order] if leaf.ndim else leaf,
                fit.measure,
            )
            # the reference is moved to zero; the density stays
            turned = turned.replace(
                gate_slope=turned.gate_slope - turned.gate_slope[-1],
                gate_intercept=turned.gate_intercept - turned.gate_intercept[-1],
            )
            seen = bm.fit_map(model(label, 3), x, y, n_starts=0, starts=turned)
            assert seen.log_density <= fit.log_density + 1e-8
    by_luck = [np.max(fit.starts.objective[:2]) for fit in fits]
    assert any(fit.log_density > height + gain for fit, height in zip(fits, by_luck, strict=True))


@pytest.mark.slow
def test_where_starts_agree_there_are_no_more_of_them() -> None:
    x, y = sample("lambda", "softmax", 200)
    assert len(fit_mle(model("softmax", 2), x, y).starts.status) == 12
    assert len(fit_map(model("softmax", 2), x, y).starts.status) == 12
    assert len(fit_map(model("softmax", 3), *outcrop(), key=5).starts.status) > 12
    flat = fit_map(model("softmax", 3, "flat"), *outcrop(), key=5)
    likeliest = fit_mle(model("softmax", 3), *outcrop(), key=5)
    assert flat.starts.status == likeliest.starts.status
    np.testing.assert_allclose(flat.log_likelihood, likeliest.log_likelihood, rtol=1e-12)


@pytest.mark.parametrize("label", ["softmax", "sigmoid"])
def test_a_start_ends_where_it_does_whatever_the_threads_and_the_other_starts(label: str) -> None:
    """Bit for bit: the last of three has no partner."""
    truth = bm.scenario("lambda", CASE[label].gate(2))
    x, y = truth.simulate(4, 300)
    model = bm.moe(truth.gate, 2)
    whole = problem.prepare(model, x, y, key=1, n_starts=4, starts=None, variance_floor=1e-4)
    ends = climb(whole, None, 1)
    fewer = whole._replace(starts=whole.starts[1:], n_agnostic=3)
    for one, other in zip(
        jax.tree.leaves(ends), jax.tree.leaves(climb(fewer, None, 3)), strict=True
    ):
        np.testing.assert_array_equal(one[1:], other)


@pytest.mark.parametrize(("most_rows", "n_starts"), [(24 * 28 - 1, 12), (24 * 28, 24)])
def test_many_observations_have_fewer_starts(
    most_rows: int, n_starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bayesmoe.inference.point._MOST_ROWS", most_rows)
    assert len(fit_mle(model("softmax", 3), *outcrop(), key=5).starts.status) == n_starts
