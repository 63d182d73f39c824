"""The density that is sampled: the prior of the paper's parameters, likelihood and Jacobian."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
from conftest import CASE as PACKAGED
from conftest import GateCase

import bayesmoe as bm
from bayesmoe.core.gate import Gate
from bayesmoe.core.layout import Layout
from bayesmoe.core.likelihood import log_likelihood
from bayesmoe.core.observations import Data, make_data
from bayesmoe.core.priors import PRIORS, Prior
from bayesmoe.core.scaling import Scaling
from bayesmoe.inference.nuts import sample_chains
from bayesmoe.inference.posterior import check_proper
from bayesmoe.inference.problem import mean_objective
from bayesmoe.inference.target import Target
from bayesmoe.models import DenseToSparse
from bayesmoe.models.activation_dense_to_sparse import ActivationDenseToSparse

# every kind of interval: lines, half-lines either way, positive half-lines and their parts, boxes
BOUNDED = Prior(
    gate_slope=dist.TruncatedNormal(0.0, 3.0, low=-4.0),
    gate_intercept=dist.TruncatedNormal(0.0, 3.0, high=0.5),
    temperature=dist.Uniform(0.2, 3.0),
    slope=dist.Uniform(-6.0, 9.0),
    intercept=dist.StudentT(4.0, 0.0, 2.0),
    variance=dist.TruncatedNormal(0.0, 1.0, low=0.05),
)
# here intervals have bounds that move with τ, or would if β0 were not already divided by it
TEMPERED = dataclasses.replace(
    BOUNDED,
    gate_slope=dist.Uniform(-4.0, 7.0),
    temperature=dist.HalfNormal(1.0),
    variance=dist.TruncatedNormal(0.0, 1.0, low=0.0, high=2.0),
    intercept_per_temperature=True,
)
CUSTOM = {"bounded": BOUNDED, "tempered": TEMPERED}


class Undivided(ActivationDenseToSparse):
    """The activation gate with β0 itself as its coordinate."""

    intercept_per_temperature = False


class UndividedCase(GateCase):
    def gate(self, k: int = 3) -> Gate:
        return Undivided()


UNDIVIDED = UndividedCase(
    "undivided", "undivided", sigma=PACKAGED["sigmoid"].sigma, temperature=True
)
CASE = PACKAGED | {"undivided": UNDIVIDED}


def pairs(fast: list[tuple[str, str]], *others: tuple[str, str]) -> list[Any]:
    """Gates and priors, those but the fast ones marked slow: each is compiled anew."""
    return [*fast, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in others)]


GATES = ("softmax", "top_k_sparse", "dense_to_sparse", "sigmoid")
LAWS = ("weak", "compact", *CUSTOM)
FAST = [("softmax", "compact"), ("dense_to_sparse", "tempered"), ("sigmoid", "bounded")]
FAST.append(("undivided", "tempered"))
ALL = pairs(FAST, *(pair for pair in itertools.product(GATES, LAWS) if pair not in FAST))
# every gate and every prior; all of them where the temperature moves the bounds
DERIVED = pairs(
    [("softmax", "compact")],
    *[("dense_to_sparse", "tempered"), ("top_k_sparse", "bounded"), ("dense_to_sparse", "bounded")],
    *[("sigmoid", law) for law in LAWS],
    ("undivided", "tempered"),
)


def make_target(label: str, prior: str, d: int = 1, k: int = 3) -> Target:
    model = bm.moe(CASE[label].gate(k), k, CUSTOM.get(prior, prior))
    return Target(model.layout(d), model.prior)


def unstandardised(x: np.ndarray, y: np.ndarray) -> Data:
    return make_data(x, y, Scaling.identity(x.shape[1]))


def observations(seed: int, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=n)


def free_parameters(case: GateCase, measure: bm.MixingMeasure) -> jax.Array:
    """The paper's parameters that are not fixed, in one vector."""
    blocks = [measure.gate_slope[:-1].ravel(), measure.gate_intercept[:-1]]
    if case.temperature:
        blocks.append(measure.temperature[None])
    return jnp.concatenate([*blocks, measure.slope.ravel(), measure.intercept, measure.variance])


def log_prior(prior: Prior, case: GateCase, measure: bm.MixingMeasure) -> float:
    """Σ log p, one distribution after another."""
    tau = float(measure.temperature)
    beta0 = np.asarray(measure.gate_intercept)[:-1]
    total = 0.0
    if prior.intercept_per_temperature:
        total -= len(beta0) * np.log(tau)
        beta0 = beta0 / tau
    pairs: list[tuple[Any, Any]] = [
        (prior.gate_slope, measure.gate_slope[:-1]),
        (prior.gate_intercept, beta0),
        (prior.slope, measure.slope),
        (prior.intercept, measure.intercept),
        (prior.variance, measure.variance),
    ]
    if case.temperature:
        pairs.append((prior.temperature, tau))
    return total + sum(float(jnp.sum(law.log_prob(value))) for law, value in pairs)


@pytest.mark.parametrize(("label", "prior"), ALL)
def test_log_density_is_prior_times_likelihood_times_jacobian(label: str, prior: str) -> None:
    case, d = CASE[label], 2
    target = make_target(label, prior, d)
    x, y = observations(0, 40, d)
    data = unstandardised(x, y)
    u = np.random.default_rng(1).normal(size=target.layout.size)

    @jax.jit
    def evaluate(point: jax.Array) -> tuple[bm.MixingMeasure, jax.Array, jax.Array]:
        jacobian = jax.jacfwd(lambda v: free_parameters(case, target.measure(v)))(point)
        return target.measure(point), jacobian, target.log_density(point, data)

    measure, jacobian, density = evaluate(u)
    sign, log_det = np.linalg.slogdet(jacobian)
    assert abs(sign) == 1
    laws = target.prior if prior in CUSTOM else PRIORS[prior](target.layout.gate)
    expected = log_prior(laws, case, measure) + np.log(case.density(measure, x, y)).sum() + log_det
    np.testing.assert_allclose(density, expected, rtol=1e-11)


@pytest.mark.parametrize(
    ("label", "prior"),
    [
        pytest.param("softmax", "compact", marks=pytest.mark.slow),
        pytest.param("dense_to_sparse", "bounded"),
        pytest.param("sigmoid", "weak", marks=pytest.mark.slow),
    ],
)
def test_the_prior_integrates_to_one(label: str, prior: str) -> None:
    """With one expert, by importance sampling from a Student-t, within 5 standard errors."""
    target = make_target(label, prior, k=1)  # temperature, line and variance
    p = target.layout.size
    rng = np.random.default_rng(0)
    t = scipy.stats.t(3.0, 0.0, np.array([1.0, 6.0, 6.0, 2.0][-p:]))
    u = t.rvs((400_000, p), random_state=rng)
    log_density = jax.jit(jax.vmap(target.log_prior))(u)
    ratio = np.exp(np.asarray(log_density) - t.logpdf(u).sum(1))
    error = ratio.std() / np.sqrt(len(ratio))
    assert error < 0.02
    assert abs(ratio.mean() - 1) < 5 * error


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.3, 3.0])
def test_bounds_of_a_tempered_intercept_move_with_the_temperature(tau: float) -> None:
    """Under a prior of β0/τ on [-1, 1], β0 reaches from -τ to τ, and no mass is lost."""
    weak = bm.moe(Undivided(), 2).prior
    uniform, normal = (
        Target(
            bm.moe(Undivided(), 2).layout(1),
            dataclasses.replace(
                weak, gate_intercept=law, temperature=dist.Exponential(1.0),
                intercept_per_temperature=True,
            ),
        )
        for law in (dist.Uniform(-1.0, 1.0), dist.Normal(0.0, 1.0))
    )  # fmt: skip
    measure = CASE["undivided"].measure(0, 2, 1).replace(temperature=tau)
    u = np.asarray(uniform.unconstrain(uniform.layout.pack(measure)))
    grid = np.linspace(-60.0, 60.0, 6001) * tau
    points = np.tile(u, (len(grid), 1))
    points[:, 1] = grid
    reached = jax.vmap(uniform.measure)(points).gate_intercept[:, 0]
    np.testing.assert_allclose([reached.min(), reached.max()], [-tau, tau], rtol=1e-12)
    mass = [
        scipy.integrate.trapezoid(np.exp(jax.vmap(target.log_prior)(points)), grid)
        for target in (uniform, normal)
    ]
    np.testing.assert_allclose(mass[0], mass[1], rtol=1e-9)


@pytest.mark.parametrize(("label", "prior"), ALL)
def test_coordinates_lie_in_the_support_and_unconstrain_inverts_them(
    label: str, prior: str
) -> None:
    target = make_target(label, prior)
    laws, tempered = target.prior, CASE[label].temperature

    @jax.jit
    @jax.vmap
    def there_and_back(u: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        measure = target.measure(u)
        tau = measure.temperature
        inside = {
            "slope": laws.slope.support(measure.slope),
            "intercept": laws.intercept.support(measure.intercept),
            "variance": laws.variance.support(measure.variance),
            "gate_slope": laws.gate_slope.support(measure.gate_slope[:-1]),
            "gate_intercept": laws.gate_intercept.support(
                measure.gate_intercept[:-1] / (tau if laws.intercept_per_temperature else 1.0)
            ),
            "temperature": laws.temperature.support(tau) if tempered else jnp.asarray(True),
        }
        return target.unconstrain(target.coordinates(u)), inside

    u = np.random.default_rng(2).normal(size=(40, target.layout.size))
    back, inside = there_and_back(u)
    np.testing.assert_allclose(back, u, atol=1e-9)
    assert {name: bool(np.all(ok)) for name, ok in inside.items()} == dict.fromkeys(inside, True)


class Untempered(DenseToSparse):
    """A gate whose coordinates are β1 and β0 themselves, and whose prior may be of β0/τ."""

    slope_per_temperature = False
    intercept_per_temperature = False


@pytest.mark.slow
def test_bounds_of_an_intercept_over_the_temperature_move_with_it() -> None:
    law = dataclasses.replace(TEMPERED, gate_intercept=dist.Uniform(-1.0, 0.5))
    target = Target(Layout(Untempered(), 3, 1), law)
    u = jnp.asarray(np.random.default_rng(3).normal(size=(40, target.layout.size)))
    measures = jax.vmap(target.measure)(u)
    ratio = measures.gate_intercept[:, :-1] / measures.temperature[:, None]
    assert np.all((ratio > -1.0) & (ratio < 0.5))
    assert ratio.min() < -0.9
    assert ratio.max() > 0.4
    assert np.all(np.isfinite(jax.vmap(target.log_prior)(u)))


@pytest.mark.parametrize(
    "label", ["dense_to_sparse", *(pytest.param(g, marks=pytest.mark.slow) for g in ("sigmoid",))]
)
def test_points_on_or_beyond_the_boundary_are_moved_just_inside(label: str) -> None:
    target, case = make_target(label, "compact", k=2), CASE[label]
    beyond = bm.MixingMeasure(
        [[50.0], [0]], [-70.0, 0], 10.0, [[10.0], [-11.0]], [-10.0, 3.0], [1e-4, 20.0]
    )

    @jax.jit
    def move(theta: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        u = target.unconstrain(theta)
        return free_parameters(case, target.measure(u)), target.log_prior(u), u

    moved, log_density, u = move(target.layout.pack(beyond))
    assert np.all(np.isfinite(u))
    assert np.isfinite(log_density)
    clipped = [50.0, -50.0, 10.0, 10.0, -10.0, -10.0, 3.0, 1e-4, 10.0]
    np.testing.assert_allclose(moved, clipped, rtol=2e-5)
    again, _, _ = move(target.coordinates(u))
    np.testing.assert_allclose(again, moved, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["compact", "bounded"])
def test_far_out_the_density_falls_and_stays_differentiable(prior: str) -> None:
    target = make_target("dense_to_sparse", prior, k=2)
    p, sizes = target.layout.size, np.array([-50.0, -30.0, -15.0, 15.0, 30.0, 50.0])
    points = np.eye(p)[:, None] * sizes[:, None]  # along each axis
    both = jax.jit(jax.vmap(jax.value_and_grad(target.log_prior)))
    values, gradients = both(points.reshape(-1, p))
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(gradients))
    along = np.diagonal(np.reshape(gradients, (p, len(sizes), p)), axis1=0, axis2=2)
    assert np.all(along * sizes[:, None] < 0)
    values = np.reshape(values, (p, len(sizes)))
    assert np.all(np.diff(values[:, :3]) > 0)
    assert np.all(np.diff(values[:, 3:]) < 0)


@pytest.mark.parametrize(("label", "prior"), DERIVED)
def test_gradient_and_hessian_agree_with_finite_differences(label: str, prior: str) -> None:
    target = make_target(label, prior, k=2)
    data = unstandardised(*observations(3, 30, 1))
    density = jax.jit(jax.value_and_grad(target.log_density))
    u = 0.7 * np.random.default_rng(4).normal(size=target.layout.size)
    value, gradient = density(u, data)
    step = 1e-5
    ends = [(density(u + step * e, data), density(u - step * e, data)) for e in np.eye(len(u))]
    slopes = np.array([(up[0] - down[0]) / (2 * step) for up, down in ends])
    bends = np.array([(up[1] - down[1]) / (2 * step) for up, down in ends])
    result = jax.jit(target.evaluate)(u, data)
    scale = np.max(np.abs(bends))
    np.testing.assert_allclose(result.value, value, rtol=1e-13)
    np.testing.assert_allclose(result.gradient, gradient, atol=1e-11 * scale)
    np.testing.assert_allclose(result.gradient, slopes, atol=1e-8 * scale)
    np.testing.assert_allclose(result.hessian, bends, atol=1e-8 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("jacobian", [None, 0.0, 1.0])
@pytest.mark.parametrize("label", ["softmax", "sigmoid"])
def test_what_map_and_modes_maximise(label: str, jacobian: float | None) -> None:
    """The mean of prior times likelihood, by one density after another, and its differences."""
    case, target = CASE[label], make_target(label, "weak", k=2)
    layout, prior = target
    data = unstandardised(*observations(3, 30, 1))
    share = None if jacobian is None else jnp.asarray(jacobian)
    objective = jax.jit(lambda point: mean_objective(layout, prior, data, point, share))

    def height(point: np.ndarray) -> float:
        measure = layout.unpack(jnp.asarray(point))
        free = jax.jacfwd(lambda at: free_parameters(case, layout.unpack(at)))(jnp.asarray(point))
        volume = (jacobian or 0.0) * np.linalg.slogdet(free)[1]
        likelihood = float(log_likelihood(layout, jnp.asarray(point), data))
        return (likelihood + log_prior(prior, case, measure) + volume) / 30

    point = 0.7 * np.random.default_rng(5).normal(size=layout.size)
    found, step = objective(point), 1e-5
    ends = [(point + step * e, point - step * e) for e in np.eye(len(point))]
    np.testing.assert_allclose(found.value, height(point), rtol=1e-12)
    slopes = [(height(up) - height(down)) / (2 * step) for up, down in ends]
    np.testing.assert_allclose(found.gradient, slopes, atol=1e-8 * np.max(np.abs(slopes)))
    bends = [(objective(up).gradient - objective(down).gradient) / (2 * step) for up, down in ends]
    np.testing.assert_allclose(found.hessian, bends, atol=1e-8 * np.max(np.abs(bends)))


REFUSED = {
    "slope": (dist.Poisson(2.0), "the prior of slope has support .*interval"),
    "intercept": (dist.Delta(0.0), "the prior of intercept has support .*interval"),
    "variance": (dist.Normal(0.3, 0.3), "the prior of variance .* is positive"),
    "temperature": (dist.Uniform(-1.0, 2.0), "the prior of temperature .* is positive"),
}


@pytest.mark.parametrize("field", list(REFUSED))
def test_a_prior_without_a_usable_interval_is_refused_before_computing(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    law, message = REFUSED[field]
    prior = dataclasses.replace(BOUNDED, **{field: law})
    model = dataclasses.replace(bm.moe("dense_to_sparse", 2), prior=prior)
    monkeypatch.setattr("bayesmoe.inference.posterior.fit_map", None)  # calling it would fail
    with pytest.raises(ValueError, match=message):
        sample_chains(model, *observations(0, 40, 1))


def test_a_temperature_prior_does_not_matter_without_a_temperature() -> None:
    prior = dataclasses.replace(BOUNDED, temperature=dist.Poisson(2.0))
    check_proper(bm.moe("softmax", 2, prior))
    with pytest.raises(ValueError, match="the prior of temperature"):
        check_proper(bm.moe("dense_to_sparse", 2, prior))
