"""Priors: what they put on data, their supports, their constants."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
from conftest import CASE, GateCase

import bayesmoe as bm


def weak_draws(case: GateCase, k: int, m: int = 400) -> list[np.ndarray]:
    """β1, β0, τ, a, b, ν of the weak prior, each (m, ...), as the program draws them."""
    prior = bm.moe(case.gate(k), k).prior
    keys = iter(jax.random.split(jax.random.key(0), 6))

    def draw(law: dist.Distribution, *shape: int) -> np.ndarray:
        return np.array(law.sample(next(keys), (m, *shape)))

    # always of three experts, and cut to k: one compilation serves all
    tau = draw(prior.temperature) if case.temperature else np.ones(m)
    beta1, beta0 = draw(prior.gate_slope, 3, 2), draw(prior.gate_intercept, 3)
    beta0 *= tau[:, None] if prior.intercept_per_temperature else 1.0
    beta1[:, k - 1 :], beta0[:, k - 1 :] = 0.0, 0.0
    experts = [draw(prior.slope, 3, 2), draw(prior.intercept, 3), draw(prior.variance, 3)]
    return [beta1[:, :k], beta0[:, :k], tau, *(block[:, :k] for block in experts)]


@pytest.mark.parametrize("k", [2, 3])
def test_the_weak_prior_predicts_plausible_data_and_gates(case: GateCase, k: int) -> None:
    """Measured over all gates: 98.8 % within ±10, sd 2.7-2.8, 31-51 % extreme, 5-8 % even."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 2))
    beta1, beta0, tau, a, b, nu = weak_draws(case, k)
    logits = np.stack([case.logits(*gate, x) for gate in zip(beta1, beta0, tau, strict=True)])
    share = scipy.special.softmax(logits, axis=2)
    label = (rng.uniform(size=(400, 50, 1)) > share.cumsum(2)[..., :-1]).sum(2)[..., None]
    components = rng.normal(a @ x.T + b[:, :, None], np.sqrt(nu)[:, :, None]).swapaxes(1, 2)
    y = np.take_along_axis(components, label, 2)[..., 0]
    assert np.mean(np.abs(y) < 10) >= 0.95
    assert 0.5 < np.median(y.std(1)) < 6
    assert 0.1 < np.mean((share < 0.01) | (share > 0.99)) < 0.6
    assert np.mean(np.abs(share - 1 / k) < 0.1) < 0.6
    # no expert is forgotten: each has at least a fifth of an even share
    assert share.mean((0, 1)).min() > 0.2 / k


def test_the_weak_prior_of_the_documentation(case: GateCase) -> None:
    """SciPy's formulas on standardised data, unnormalised by any coordinates."""
    measure = case.measure(1)
    beta1, beta0, tau, a, b, nu = (np.asarray(leaf) for leaf in jax.tree.leaves(measure))
    total = scipy.stats.norm(0, 3).logpdf(beta1[:-1]).sum()
    total += scipy.stats.norm(0, 3 if case.linear else 3 * tau).logpdf(beta0[:-1]).sum()
    total += scipy.stats.norm(0, 2).logpdf(a).sum() + scipy.stats.norm(0, 2).logpdf(b).sum()
    total += scipy.stats.lognorm(1.5, scale=0.1).logpdf(nu).sum()
    if case.temperature:
        centre, spread = (1.0, 0.5) if case.linear else (case.gate().spread / 3, 1.0)
        total += scipy.stats.lognorm(spread, scale=centre).logpdf(tau)
    model = bm.moe(case.gate(), 3)
    assert model.prior_name == "weak"
    assert model.prior.proper
    np.testing.assert_allclose(model.prior.log_density(model.gate, measure), total, rtol=1e-12)


OUTSIDE: dict[str, Any] = {
    "gate_slope": [[50.1, 0], [0, 0], [0, 0]],
    "gate_intercept": [-50.1, 0, 0],
    "temperature": 10.1,
    "slope": [[0, 0], [0, 10.1], [0, 0]],
    "intercept": [0, 0, -10.1],
    "variance": [1, 9e-5, 1],
}


@pytest.mark.parametrize("field", OUTSIDE)
def test_the_compact_prior_is_uniform_on_its_box(field: str) -> None:
    model = bm.moe("dense_to_sparse", 3, prior="compact")
    log_density = jax.jit(lambda measure: model.prior.log_density(model.gate, measure))
    measure = CASE["dense_to_sparse"].measure(0)
    # 2·2 + 2 gate, 1 temperature, 6 slopes, 3 intercepts, 3 variances
    want = -6 * np.log(100) - np.log(9.99) - 9 * np.log(20) - 3 * np.log(10 - 1e-4)
    np.testing.assert_allclose(log_density(measure), want, rtol=1e-12)
    np.testing.assert_allclose(log_density(CASE["dense_to_sparse"].measure(1)), want, rtol=1e-12)
    outside = measure.replace(**{field: OUTSIDE[field]})
    assert log_density(outside) == -jnp.inf
    gradient = jax.grad(log_density)(outside)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_the_reference_expert_has_no_prior() -> None:
    model = bm.moe("softmax", 3, prior="compact")
    measure = CASE["softmax"].measure(0)
    slope, intercept = np.array(measure.gate_slope), np.array(measure.gate_intercept)
    slope[-1], intercept[-1] = 99.0, 99.0
    moved = measure.replace(gate_slope=slope, gate_intercept=intercept, temperature=77.0)
    log_density = jax.jit(lambda measure: model.prior.log_density(model.gate, measure))
    assert log_density(moved) == log_density(measure)


def test_the_flat_prior_is_constant(case: GateCase) -> None:
    model = bm.moe(case.gate(), 3, prior="flat")
    assert not model.prior.proper
    values = {float(model.prior.log_density(model.gate, case.measure(seed))) for seed in range(4)}
    assert len(values) == 1
    gradient = jax.grad(lambda m: model.prior.log_density(model.gate, m))(case.measure(0))
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_a_prior_of_ones_own_is_used_as_it_is() -> None:
    normal, positive = dist.StudentT(3.0), dist.InverseGamma(3.0, 2.0)
    prior = bm.Prior(normal, normal, positive, normal, normal, positive)
    model = bm.moe("dense_to_sparse", 2, prior=prior)
    assert model.prior is prior
    assert model.prior_name == "custom"
    measure = CASE["dense_to_sparse"].measure(0, 2)
    beta1, beta0, tau, a, b, nu = (np.asarray(leaf) for leaf in jax.tree.leaves(measure))
    student, gamma = scipy.stats.t(3), scipy.stats.invgamma(3, scale=2)
    want = sum(student.logpdf(block).sum() for block in (beta1[:-1], beta0[:-1], a, b))
    want += gamma.logpdf(tau) + gamma.logpdf(nu).sum()
    log_density = jax.jit(lambda measure: prior.log_density(model.gate, measure))
    np.testing.assert_allclose(log_density(measure), want, rtol=1e-12)
    assert log_density(measure.replace(variance=[-1.0, 1.0])) == -jnp.inf


@pytest.mark.parametrize("name", ["weak", "flat", "compact"])
def test_a_model_is_itself_when_unpickled(name: str) -> None:
    model = bm.moe("activation_dense_to_sparse", 3, prior=name)
    assert pickle.loads(pickle.dumps(model)) == model


def test_a_changed_prior_is_pickled_as_changed() -> None:
    prior = dataclasses.replace(bm.moe("softmax", 2).prior, slope=dist.Normal(0.0, 7.0))
    assert float(pickle.loads(pickle.dumps(prior)).slope.scale) == 7.0


LEAVES_THE_POSITIVE: list[dist.Distribution] = [
    dist.Normal(0.3, 0.3),
    dist.Uniform(-2.0, -1.0),
    dist.Uniform(-1.0, 2.0),
    dist.TruncatedNormal(0.3, 0.3, high=2.0),
    dist.TransformedDistribution(
        dist.LogNormal(), dist.transforms.AffineTransform(0.0, -1.0, dist.constraints.positive)
    ),
]


@pytest.mark.parametrize("law", LEAVES_THE_POSITIVE, ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("field", ["variance", "temperature"])
def test_a_prior_of_a_positive_parameter_that_reaches_below_zero_is_refused(
    field: str, law: dist.Distribution
) -> None:
    """Sampling would cut it off at zero, and the NumPyro program would not."""
    prior = dataclasses.replace(bm.moe("dense_to_sparse", 2).prior, **{field: law})
    message = rf"prior of {field} .* is positive: .*TruncatedNormal\(\.\.\., low=0\).*LogNormal"
    with pytest.raises(ValueError, match=message):
        bm.moe("dense_to_sparse", 2, prior)
    if field == "temperature":
        assert bm.moe("softmax", 2, prior).prior is prior  # it has none


def test_positive_priors_of_every_kind_are_taken() -> None:
    for law in (
        dist.HalfNormal(1.0),
        dist.TruncatedNormal(0.3, 0.3, low=0.0),
        dist.Uniform(0.0, 2.0),
        dist.ImproperUniform(dist.constraints.positive, (), ()),
        dist.Delta(0.3),
    ):
        prior = dataclasses.replace(bm.moe("softmax", 2).prior, variance=law)
        assert bm.moe("softmax", 2, prior).prior is prior
