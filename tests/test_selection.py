"""Gates and experts of some covariates: restricted models are full ones with zero columns."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import arviz_base
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from conftest import CASE, GateCase
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array
from numpyro.handlers import seed, trace
from numpyro.infer.util import log_density
from typer.testing import CliRunner

import bayesmoe as bm
from bayesmoe.cli import app
from bayesmoe.core.gate import Gate
from bayesmoe.core.hessian import evaluate_log_likelihood
from bayesmoe.core.layout import Layout
from bayesmoe.core.likelihood import log_likelihood
from bayesmoe.core.measure import FIELDS, GateParameters
from bayesmoe.core.observations import make_data
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.selection import ALL, Selection
from bayesmoe.data.table import read_table
from bayesmoe.diagnostics.analysis import analyse, estimates, mle_errors, posterior_summary
from bayesmoe.diagnostics.comparison import name_models
from bayesmoe.diagnostics.requests import FitRequest
from bayesmoe.diagnostics.stored_fit import load_fit, save_fit
from bayesmoe.inference.annealing import _sharpness
from bayesmoe.inference.starts import agnostic
from bayesmoe.inference.target import Target
from bayesmoe.inference.uncertainty import _scatter_of_scores
from bayesmoe.models import Softmax
from bayesmoe.regression import MoERegressor
from bayesmoe.report.ray_figure import temperature_density

N, D = 23, 3
RNG = np.random.default_rng(11)
X = RNG.normal([2.0, -1.0, 0.5], [0.5, 3.0, 1.0], size=(N, D))
Y = 4.0 + X @ [1.0, 0.0, 2.0] + RNG.normal(size=N)


@dataclasses.dataclass(frozen=True)
class Restricted:
    """A gate, k and the columns of gate and experts, with the formula in JAX over zero columns."""

    label: str
    k: int
    gate_columns: tuple[int, ...]
    expert_columns: tuple[int, ...]

    @property
    def case(self) -> GateCase:
        return CASE[self.label]

    @property
    def model(self) -> bm.MoE:
        columns = {"gate_covariates": self.gate_columns, "expert_covariates": self.expert_columns}
        return bm.moe(self.case.gate(self.k), self.k, **columns)

    @property
    def sizes(self) -> list[int]:
        free = self.k - 1
        temperature = int(self.case.temperature)
        slopes = free * len(self.gate_columns), self.k * len(self.expert_columns)
        return [slopes[0], free, temperature, slopes[1], self.k, self.k]

    def blocks(self, theta: Any) -> list[Any]:
        """β1 and β0 with the reference, τ, a, b, log ν from coordinates in `Layout`'s order."""
        beta1, beta0, log_tau, a, b, log_nu = jnp.split(theta, np.cumsum(self.sizes)[:-1].tolist())
        tau = jnp.exp(log_tau[0]) if self.case.temperature else 1.0
        zeros = jnp.zeros((self.k, D))
        unit = tau if self.case.linear else 1.0
        slopes = unit * beta1.reshape(self.k - 1, len(self.gate_columns))
        beta1, lines = zeros, zeros
        for j, column in enumerate(self.gate_columns):
            beta1 = beta1.at[:-1, column].set(slopes[:, j])
        for j, column in enumerate(self.expert_columns):
            lines = lines.at[:, column].set(a.reshape(self.k, len(self.expert_columns))[:, j])
        return [beta1, tau * jnp.append(beta0, 0.0), tau, lines, b, log_nu]

    def log_densities(self, theta: Any) -> Array:
        """log g(y_j|x_j), shape (n,): sums of exponentials, spelled out."""
        beta1, beta0, tau, a, b, log_nu = self.blocks(theta)
        z = self.case.logits(beta1, beta0, tau, jnp.asarray(X), jnp)
        residual = Y[:, None] - X @ a.T - b
        normal = -0.5 * (np.log(2 * np.pi) + log_nu + residual**2 * jnp.exp(-log_nu))
        weights = jnp.exp(z) / jnp.exp(z).sum(1, keepdims=True)
        return jnp.log((weights * jnp.exp(normal)).sum(1))

    def measure(self, theta: Any) -> bm.MixingMeasure:
        *others, log_nu = self.blocks(theta)
        return bm.MixingMeasure(*others, jnp.exp(log_nu))

    def in_full(self) -> np.ndarray:
        """Where these coordinates stand among those of the model of all covariates."""
        free, k = self.k - 1, self.k
        beta1 = [i * D + column for i in range(free) for column in self.gate_columns]
        at = free * D
        rest = list(range(at, at + free + int(self.case.temperature)))
        at += len(rest)
        a = [at + i * D + column for i in range(k) for column in self.expert_columns]
        return np.array([*beta1, *rest, *a, *range(at + k * D, at + k * D + 2 * k)], int)


RESTRICTED = [
    Restricted("softmax", 1, (), (2,)),
    Restricted("softmax", 2, (), (0, 1, 2)),
    Restricted("softmax", 3, (0, 2), (1,)),
    Restricted("dense_to_sparse", 3, (1,), ()),
    Restricted("sigmoid", 2, (0, 2), (0, 1)),
    Restricted("top_k_sparse", 3, (1, 2), (2,)),
]
EACH = pytest.mark.parametrize("one", RESTRICTED, ids=lambda one: f"{one.label}-{one.k}")


def identity_data(selection: Selection) -> Any:
    return make_data(X, Y, Scaling.identity(D), selection)


@functools.cache
def compiled(one: Restricted) -> tuple[Any, ...]:
    """Value, gradient and Hessian: the package's, the formula's, and the full model's."""
    layout, whole = one.model.layout(D), Layout(one.model.gate, one.k, D)
    data, all_data = identity_data(layout.selection), identity_data(ALL)

    def formula(theta: Array) -> tuple[Array, Array, Array]:
        def total(theta: Array) -> Array:
            return one.log_densities(theta).sum()

        return total(theta), jax.grad(total)(theta), jax.hessian(total)(theta)

    def own(theta: Array) -> Any:
        return evaluate_log_likelihood(layout, theta, data)

    def full(theta: Array) -> Any:
        return evaluate_log_likelihood(whole, whole.pack(one.measure(theta)), all_data)

    return jax.jit(own), jax.jit(formula), jax.jit(full)


SOME_SLOW = [
    pytest.param(one, marks=() if i == 0 else pytest.mark.slow, id=f"{one.label}-{one.k}")
    for i, one in enumerate(RESTRICTED)
]  # fmt: skip


@pytest.mark.parametrize("one", SOME_SLOW)
@settings(max_examples=5)
@given(number=st.integers(0, 2**32 - 1))
def test_value_and_derivatives_are_those_of_the_formula_with_zero_columns(
    one: Restricted, number: int
) -> None:
    layout = one.model.layout(D)
    assert layout.size == sum(one.sizes)
    theta = np.random.default_rng(number).uniform(-1, 1, layout.size)
    own, formula, full = (jax.device_get(function(theta)) for function in compiled(one))
    for got, want in zip(own, formula, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10 * np.abs(want).max())
    at = one.in_full()
    np.testing.assert_allclose(own.value, full.value, rtol=1e-12)
    unit = 1e-11 * np.abs(full.hessian).max()
    np.testing.assert_allclose(own.gradient, full.gradient[at], rtol=1e-10, atol=unit)
    np.testing.assert_allclose(own.hessian, full.hessian[np.ix_(at, at)], rtol=1e-10, atol=unit)


def test_scores_are_those_of_the_formula() -> None:
    one = RESTRICTED[2]
    layout = one.model.layout(D)
    theta = jnp.asarray(np.random.default_rng(9).uniform(-1, 1, layout.size))
    scores = jax.jit(jax.jacrev(one.log_densities))(theta)
    got = _scatter_of_scores(layout, identity_data(layout.selection), theta)
    np.testing.assert_allclose(got, scores.T @ scores, rtol=1e-10, atol=1e-10)


@EACH
def test_coordinates_are_those_of_the_free_parameters(one: Restricted) -> None:
    layout = one.model.layout(D)
    theta = np.random.default_rng(4).uniform(-1, 1, layout.size)
    measure, want = jax.jit(lambda theta: (layout.unpack(theta), one.measure(theta)))(theta)
    for field in FIELDS:
        np.testing.assert_allclose(getattr(measure, field), getattr(want, field), rtol=1e-14)
    np.testing.assert_allclose(layout.pack(measure), theta, rtol=1e-12, atol=1e-14)
    tempered = len(one.gate_columns) if one.case.linear else 0
    power = (1 + (one.k - 1) * (1 + tempered)) * one.case.temperature
    log_tau, log_nu = np.log(float(measure.temperature)), np.log(np.asarray(measure.variance))
    got = layout.log_jacobian(measure)
    np.testing.assert_allclose(got, power * log_tau + log_nu.sum(), rtol=1e-12)


# --- prior and program


def normal(value: Any, scale: Any, centre: Any = 0.0) -> float:
    return float(scipy.stats.norm(centre, scale).logpdf(np.asarray(value)).sum())


def log_weak_prior(one: Restricted, measure: bm.MixingMeasure) -> float:
    """Over standardised parameters; of softmax and dense-to-sparse gates."""
    beta1, beta0, tau, a, b, nu = (np.asarray(getattr(measure, field)) for field in FIELDS)
    total = normal(beta1[:-1][:, one.gate_columns], 3) + normal(beta0[:-1], 3)
    total += normal(a[:, one.expert_columns], 2) + normal(b, 2)
    total += scipy.stats.lognorm(1.5, scale=0.1).logpdf(nu).sum()
    return total + (scipy.stats.lognorm(0.5).logpdf(tau) if one.case.temperature else 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("one", [RESTRICTED[i] for i in (0, 1, 2, 3)], ids=lambda o: o.label)
def test_prior_program_and_target_have_the_free_parameters_alone(one: Restricted) -> None:
    model, layout = one.model, one.model.layout(D)
    theta = np.random.default_rng(6).uniform(-1, 1, layout.size)
    scaling = Scaling.from_data(model.gate, X, Y)
    standard = one.measure(theta)  # of standardised data
    measure = scaling.restore(standard)
    want = log_weak_prior(one, standard)
    got = model.prior.log_density(model.gate, standard, layout.selection)
    np.testing.assert_allclose(got, want, rtol=1e-12)

    # the program, on the scale of the data: prior densities times the change of units
    beta1, beta0, tau, a, b, nu = (np.asarray(getattr(measure, field)) for field in FIELDS)
    sites = {"gate_intercept_free": beta0[:-1], "intercept": b, "variance": nu}
    sites |= {"gate_slope_free": beta1[:-1][:, one.gate_columns], "temperature": tau}
    all_slopes = len(one.expert_columns) == D
    sites["slope" if all_slopes else "slope_free"] = a[:, one.expert_columns]
    found = trace(seed(model.numpyro, 0)).get_trace(X, Y)
    sampled = {name for name, site in found.items() if site["type"] == "sample"} - {"y"}
    expected = {"intercept", "variance"}
    expected |= {"slope"} if all_slopes else ({"slope_free"} if one.expert_columns else set())
    expected |= {"gate_intercept_free"} if one.k > 1 else set()
    expected |= {"gate_slope_free"} if one.k > 1 and one.gate_columns else set()
    expected |= {"temperature"} if one.case.temperature else set()
    assert sampled == expected
    assert found["slope"]["value"].shape == found["gate_slope"]["value"].shape == (one.k, D)
    x_scale, y_scale = X.std(0), Y.std()
    volume = one.k * (np.log(y_scale / x_scale[list(one.expert_columns)]).sum())
    volume += 3 * one.k * np.log(y_scale)
    volume -= (one.k - 1) * np.log(x_scale[list(one.gate_columns)]).sum()
    likelihood = float(np.log(one.case.density(measure, X, Y)).sum())
    values = {name: sites[name] for name in expected}
    joint = jax.jit(lambda given: log_density(model.numpyro, (X, Y), {}, given)[0])(values)
    np.testing.assert_allclose(joint, want - volume + likelihood, rtol=1e-12)
    np.testing.assert_allclose(scaling.log_volume(one.k, layout.selection), volume, rtol=1e-12)

    # the target, in coordinates of standardised data
    data = make_data(X, Y, scaling, layout.selection)
    power = (1 + (one.k - 1) * (1 + len(one.gate_columns))) * one.case.temperature
    jacobian = power * np.log(tau) + np.log(np.asarray(standard.variance)).sum()
    target = Target(layout, model.prior)
    want = want + likelihood + N * np.log(y_scale) + jacobian
    got = jax.jit(lambda u: target.log_density(u, data))(jnp.asarray(theta))
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.slow
def test_bounded_priors_bound_the_free_parameters() -> None:
    one = RESTRICTED[3]
    model = bm.moe("dense_to_sparse", 3, "compact", gate_covariates=(1,), expert_covariates=())
    target = Target(model.layout(D), model.prior)
    u = jnp.asarray(np.random.default_rng(8).normal(0, 30, sum(one.sizes)))
    measure = target.measure(u)
    for field in FIELDS:
        bounds = model.prior.__dict__[field].support
        assert np.all(bounds(getattr(measure, field))), field
    assert np.isfinite(target.log_prior(u))


# --- published numbers


@pytest.fixture(scope="module")
def co2() -> Any:
    return read_table("co2", "co2", ["gnp"])


CONSTANT = bm.moe("softmax", 2, gate_covariates=())


@pytest.fixture(scope="module")
def constant_fit(co2: Any) -> bm.Fit:
    return bm.fit_mle(CONSTANT, co2.x, co2.y)


def assert_published(measure: bm.MixingMeasure) -> None:
    """Two lines with constant weights, as mixtools has them in another order."""
    first = int(np.argmax(measure.intercept))
    order = [first, 1 - first]
    weights = np.exp(np.asarray(measure.gate_intercept))
    weights = (weights / weights.sum())[order]
    slope, intercept, sd = (
        np.asarray(values)[order]
        for values in (measure.slope[:, 0], measure.intercept, np.sqrt(measure.variance))
    )
    np.testing.assert_allclose(weights, [0.7549, 0.2451], atol=5.1e-5)
    np.testing.assert_allclose(sd, [2.0493, 0.8094], atol=5.1e-5)
    np.testing.assert_allclose(intercept, [8.6790, 1.4151], atol=5.1e-5)
    np.testing.assert_allclose(slope, [-0.02334, 0.6766], atol=5.1e-5)
    np.testing.assert_allclose(slope[0], -0.02334, atol=5.1e-6)
    assert not np.any(measure.gate_slope)


def test_constant_weights_have_the_published_maximum(constant_fit: bm.Fit) -> None:
    assert constant_fit.converged
    assert round(constant_fit.log_likelihood, 4) == -66.9398
    assert_published(constant_fit.measure)


@pytest.mark.slow
def test_em_reaches_the_published_maximum(co2: Any, constant_fit: bm.Fit) -> None:
    fit = bm.fit_em(CONSTANT, co2.x, co2.y, tolerance=1e-15, n_starts=4)
    assert fit.gradient_norm < 1e-6  # as near as steps of EM can tell
    assert fit.log_likelihood == pytest.approx(constant_fit.log_likelihood, abs=1e-10)
    assert_published(fit.measure)


def test_standard_errors_are_those_of_the_formulas_information(
    co2: Any, constant_fit: bm.Fit
) -> None:
    x, y = co2.x["gnp"].to_numpy(), co2.y.to_numpy()
    m = constant_fit.measure

    def formula(theta: Array) -> Array:  # log odds, a, b, ν
        odds, a, b, nu = theta[0], theta[1:3], theta[3:5], theta[5:7]
        share = jnp.stack([1 / (1 + jnp.exp(-odds)), 1 / (1 + jnp.exp(odds))])
        density = jnp.exp(-0.5 * (y[:, None] - x[:, None] * a - b) ** 2 / nu)
        return jnp.log((share * density / jnp.sqrt(2 * jnp.pi * nu)).sum(1)).sum()

    theta = jnp.concatenate([m.gate_intercept[:1], m.slope[:, 0], m.intercept, m.variance])
    want = np.sqrt(np.diag(np.linalg.inv(-np.asarray(jax.jit(jax.hessian(formula))(theta)))))
    found = bm.standard_errors(CONSTANT, constant_fit, co2.x, co2.y)
    errors = found.measure
    got = [errors.gate_intercept[:1], errors.slope[:, 0], errors.intercept, errors.variance]
    np.testing.assert_allclose(np.concatenate(got), want, rtol=1e-6)
    assert not np.any(errors.gate_slope)
    assert found.covariance.shape == (7, 7)


# --- estimates


def given_units(measure: bm.MixingMeasure, c: np.ndarray, s: np.ndarray, u: float, t: float) -> Any:
    """The same density of c x + s and u y + t, by hand."""
    beta1, beta0, tau, a, b, nu = (np.asarray(getattr(measure, field)) for field in FIELDS)
    slope, gate_slope = u * a / c, beta1 / c
    return bm.MixingMeasure(
        gate_slope, beta0 - gate_slope @ s, tau, slope, u * b + t - slope @ s, u**2 * nu
    )


def two_lines() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 2))
    first = rng.uniform(size=300) < 1 / (1 + np.exp(-2 * x[:, 0]))
    return x, np.where(first, 3 + 2 * x[:, 1], -3 - x[:, 1]) + 0.5 * rng.normal(size=300)


SPLIT = bm.moe("softmax", 2, gate_covariates=(0,), expert_covariates=(1,))


@pytest.fixture(scope="module")
def split_fit() -> bm.Fit:
    return bm.fit_map(SPLIT, *two_lines(), n_starts=4)


def test_estimates_have_zeros_and_find_the_lines(split_fit: bm.Fit) -> None:
    assert split_fit.converged
    assert not np.any(split_fit.measure.gate_slope[:, 1])
    assert not np.any(split_fit.measure.slope[:, 0])
    order = np.argsort(np.asarray(split_fit.measure.intercept))
    np.testing.assert_allclose(split_fit.measure.slope[order, 1], [-1, 2], atol=0.2)
    np.testing.assert_allclose(split_fit.measure.intercept[order], [-3, 3], atol=0.2)


def test_estimates_follow_units(split_fit: bm.Fit) -> None:
    (x, y), c, s, u, t = two_lines(), np.array([100.0, 0.01]), np.array([7.0, -3.0]), 20.0, 5.0
    moved = bm.fit_map(SPLIT, c * x + s, u * y + t, n_starts=4)
    want = given_units(split_fit.measure, c, s, u, t)
    got = bm.align(moved.measure, SPLIT.gate, want)
    for field in FIELDS:
        np.testing.assert_allclose(getattr(got, field), getattr(want, field), rtol=1e-7, atol=1e-9)
    shift = -300 * np.log(u)
    assert moved.log_likelihood == pytest.approx(split_fit.log_likelihood + shift, abs=1e-8)
    # β1, of column 0; a, of column 1, for two experts; b, for two; ν, for two
    volume = -np.log(c[0]) + 2 * np.log(u / c[1]) + 2 * np.log(u) + 4 * np.log(u)
    assert moved.log_density == pytest.approx(split_fit.log_density + shift - volume, abs=1e-8)


@pytest.mark.slow
def test_the_order_of_columns_does_not_matter(split_fit: bm.Fit) -> None:
    x, y = two_lines()
    swapped = bm.moe("softmax", 2, gate_covariates=[1], expert_covariates=[0])
    found = bm.fit_map(swapped, x[:, ::-1], y, n_starts=4)
    back = found.measure.replace(
        slope=found.measure.slope[:, ::-1], gate_slope=found.measure.gate_slope[:, ::-1]
    )
    got = bm.align(back, SPLIT.gate, split_fit.measure)
    for field in FIELDS:
        want = getattr(split_fit.measure, field)
        np.testing.assert_allclose(getattr(got, field), want, rtol=1e-7, atol=1e-8)
    named = bm.moe("softmax", 2, gate_covariates=np.array([2, 0]))
    assert named == bm.moe("softmax", 2, gate_covariates=(0, 2))


def test_constant_experts_are_a_mixture_of_normals_gated_by_x() -> None:
    """With one expert: the mean and the variance of y."""
    model = bm.moe("softmax", 1, expert_covariates=())
    fit = bm.fit_mle(model, X, Y)
    np.testing.assert_allclose(fit.measure.intercept, [Y.mean()], rtol=1e-12)
    np.testing.assert_allclose(fit.measure.variance, [Y.var()], rtol=1e-9)
    assert not np.any(fit.measure.slope)


@pytest.mark.slow
def test_all_columns_named_are_the_full_model() -> None:
    named = bm.moe("softmax", 2, gate_covariates=(1, 0), expert_covariates=range(2))
    assert named.layout(2) == bm.moe("softmax", 2).layout(2)
    x, y = two_lines()
    fits = [bm.fit_map(model, x, y, n_starts=2) for model in (named, bm.moe("softmax", 2))]
    assert fits[0].log_density == fits[1].log_density


@pytest.mark.parametrize("selection", [Selection((), ()), Selection((1,), ()), Selection((), (0,))])
def test_starts_are_finite_and_have_zeros(selection: Selection) -> None:
    x, y = two_lines()
    starts = agnostic(jax.random.key(1), Softmax(), 2, x, y, 6, None, selection)
    assert starts.batch_shape == (6,)
    assert starts.slope.shape == starts.gate_slope.shape == (6, 2, 2)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(starts))
    assert len(np.unique(np.asarray(starts.intercept), axis=0)) > 1
    Layout(Softmax(), 2, 2, selection).check("a start", starts)


# --- posterior


@pytest.fixture(scope="module")
def one_expert() -> tuple[bm.MoE, Any]:
    model = bm.moe("softmax", 1, gate_covariates=(), expert_covariates=(1,))
    return model, bm.sample_posterior(model, X, Y, key=3, n_chains=2)


@pytest.mark.slow
def test_the_posterior_of_one_expert_is_that_of_quadrature(one_expert: Any) -> None:
    """Given ν line and data are normal, and the prior of log ν is: one integral is left."""
    z = (X[:, 1] - X[:, 1].mean()) / X[:, 1].std()
    design, y = np.column_stack([z, np.ones(N)]), (Y - Y.mean()) / Y.std()
    logs = np.linspace(-3, 3, 2001)
    log_weight, means, squares = [], [], []
    for nu in np.exp(logs):
        covariance = nu * np.eye(N) + 4 * design @ design.T
        evidence = scipy.stats.multivariate_normal(np.zeros(N), covariance).logpdf(y)
        log_weight.append(evidence + scipy.stats.norm(np.log(0.1), 1.5).logpdf(np.log(nu)))
        spread = np.linalg.inv(design.T @ design / nu + np.eye(2) / 4)
        means.append(spread @ design.T @ y / nu)
        squares.append(np.diag(spread) + means[-1] ** 2)
    weight = np.exp(np.array(log_weight) - max(log_weight))
    weight /= weight.sum()
    assert weight[[0, -1]].max() < 1e-8
    want_mean = np.append(weight @ np.array(means), weight @ logs)
    want_square = np.append(weight @ np.array(squares), weight @ logs**2)
    want_sd = np.sqrt(want_square - want_mean**2)

    tree = one_expert[1]["posterior"]
    slope, nu = tree["slope"].values[..., 0, 1], tree["variance"].values[..., 0]
    a = slope * X[:, 1].std() / Y.std()
    b = (tree["intercept"].values[..., 0] + slope * X[:, 1].mean() - Y.mean()) / Y.std()
    draws = np.stack([a, b, np.log(nu / Y.var())]).reshape(3, -1)
    assert draws.shape == (3, 2000)
    np.testing.assert_allclose(draws.mean(1), want_mean, atol=0.1 * want_sd.min())
    np.testing.assert_allclose(draws.std(1), want_sd, rtol=0.1)
    assert not np.any(tree["slope"].values[..., [0, 2]])


@pytest.mark.slow
def test_predictive_draws_and_checks_of_a_restricted_posterior(one_expert: Any) -> None:
    model, tree = one_expert
    whole = bm.sample_predictive(model, tree, n_prior_draws=50)
    prior = whole["prior"]["slope"].values
    assert np.all(prior[..., 1])
    assert not np.any(prior[..., [0, 2]])
    assert set(whole["log_prior"].data_vars) == {"slope", "intercept", "variance"}
    assert whole["prior_predictive"]["y"].shape == (1, 50, N)
    first = tree["posterior"].to_dataset().isel(chain=0, draw=0)
    unit = 2 * Y.std() / X[:, 1].std()
    want = normal(float(first["slope"][0, 1]), unit)
    np.testing.assert_allclose(whole["log_prior"]["slope"].values[0, 0], want, rtol=1e-10)
    names = ["slope[0, 1]", "intercept[0]", "log variance[0]"]
    assert list(bm.determination(model.gate, whole).spreads.index) == names
    rows = list(posterior_summary(tree, model.gate).index)
    assert rows == ["slope[0, 1]", "intercept[0]", "variance[0]", "log_likelihood"]
    checks = bm.check_posterior(model, whole).to_frame()
    assert checks.loc["prior sensitivity", "verdict"] in ("passed", "doubtful")
    other = bm.moe("softmax", 1, gate_covariates=(), expert_covariates=(0,))
    cases = (other, "expert_covariates are (1,), the model's (0,)"), (
        bm.moe("softmax", 1), "gate_covariates are (), the model's all"
    )  # fmt: skip
    for wrong, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            bm.check_posterior(wrong, tree)


@pytest.mark.slow
def test_the_density_of_a_temperature_counts_the_gates_covariates() -> None:
    """p(τ | η) ∝ p(τ) p(β1 = τη1) p(β0 = τη0) τ^2: one covariate of three, and an intercept."""
    model = bm.moe("dense_to_sparse", 2, gate_covariates=(1,))
    draw = {"gate_slope": [[0, 1.5, 0], [0, 0, 0]], "gate_intercept": [2.0, 0], "temperature": 0.8}
    experts = {"slope": np.ones((2, D)), "intercept": np.ones(2), "variance": np.ones(2)}
    posterior = {name: np.array(value)[None, None] for name, value in (draw | experts).items()}
    tree = arviz_base.from_dict(
        {"posterior": posterior, "constant_data": {"x": X}, "observed_data": {"y": Y}}
    )
    grid = np.geomspace(0.05, 20, 400)
    slope, shift = 1.5 * X[:, 1].std() / 0.8, (2.0 + 1.5 * X[:, 1].mean()) / 0.8
    density = [
        scipy.stats.lognorm(0.5).pdf(t) * t**2
        * np.exp(normal(t * slope, 3) + normal(t * shift, 3)) for t in grid
    ]  # fmt: skip
    want = density / np.trapezoid(density, grid)
    np.testing.assert_allclose(temperature_density(model, tree, grid), want, rtol=1e-9)


def test_how_sharp_a_gate_is_depends_on_its_covariates() -> None:
    one = RESTRICTED[3]
    layout = one.model.layout(D)
    theta = jnp.asarray(np.random.default_rng(5).uniform(-1, 1, layout.size))
    share = one.case.probabilities(one.measure(theta), X)
    entropy = -(share * np.log(share)).sum(1)
    got = _sharpness(layout, identity_data(layout.selection), theta)
    np.testing.assert_allclose(got, [entropy.mean(), np.exp(entropy).mean()], rtol=1e-12)


@pytest.fixture(scope="module")
def analysis(co2: Any) -> Any:
    return analyse(CONSTANT, co2, key=1)


@pytest.mark.slow
def test_chains_of_constant_weights_agree(analysis: Any) -> None:
    assert analysis.posterior.attrs["status"] == "converged"
    assert not np.any(analysis.posterior["posterior"]["gate_slope"].values)
    assert "gate_slope" not in analysis.posterior["log_prior"].data_vars
    names = ["gate_intercept[0]", "slope[0, gnp]", "slope[1, gnp]", "intercept[0]", "intercept[1]"]
    names += ["variance[0]", "variance[1]"]
    assert list(estimates(analysis).index) == list(mle_errors(analysis).index) == names
    summary = posterior_summary(analysis.posterior, CONSTANT.gate)
    assert list(summary.index) == [*names, "log_likelihood"]
    laplace = bm.sample_laplace(CONSTANT, *analysis.table, key=4, start=analysis.map)
    assert laplace.attrs["status"] == "unreliable", "of 28 rows there are other modes, and tails"
    one, other = (t["sample_stats"]["log_likelihood"] for t in (laplace, analysis.posterior))
    assert float(one.mean()) == pytest.approx(float(other.mean()), abs=0.3 * float(other.std()))
    # the share of the first line in the posterior is about its maximum's
    share = 1 / (1 + np.exp(-analysis.posterior["posterior"]["gate_intercept"].values[..., 0]))
    low, high = np.quantile(np.maximum(share, 1 - share), [0.05, 0.95])
    assert low < 0.7549 < high


@pytest.mark.slow
def test_a_restricted_fit_is_opened_again_bit_for_bit(analysis: Any, tmp_path: Path) -> None:
    request = FitRequest("co2", "co2", ("gnp",), "softmax", {}, 2, "weak", 1, ())
    save_fit(tmp_path, request, analysis)
    opened = load_fit(tmp_path)
    assert opened.request == request
    assert opened.analysis.model == CONSTANT
    assert "--gate-covariate none" in opened.request.command("again")
    for field in FIELDS:
        for name in ("mle", "map"):
            one, other = (getattr(getattr(a, name).measure, field) for a in (analysis, opened[1]))
            np.testing.assert_array_equal(one, other)
        one, other = (a.posterior["posterior"][field].values for a in (analysis, opened[1]))
        np.testing.assert_array_equal(one, other)
    assert estimates(opened.analysis).equals(estimates(analysis))


# --- requests, names, the command line and the regressor


def test_a_request_names_covariates() -> None:
    request = FitRequest("d.csv", "y", (), "softmax", {}, 2, "weak", 0, ("b",), ())
    assert request.model(["a", "b"]).selection == Selection((1,), ())
    words = request.command("out").split()
    assert words[words.index("--gate-covariate") + 1] == "b"
    assert words[words.index("--expert-covariate") + 1] == "none"
    full = FitRequest("d.csv", "y", (), "softmax", {}, 2)
    assert full.model(["a", "b"]) == bm.moe("softmax", 2)
    with pytest.raises(ValueError, match="gate_covariates names 'b', but the covariates are a, c"):
        request.model(["a", "c"])


def test_compared_models_are_named_by_their_covariates() -> None:
    columns = [{}, {"gate_covariates": ()}, {"gate_covariates": (0, 1)}, {"expert_covariates": [1]}]
    models = [bm.moe("softmax", 2, **chosen) for chosen in columns]
    models += [bm.moe("softmax", 1, gate_covariates=()), bm.moe("softmax", 1)]
    named = name_models(models, ["u", "v"])
    suffixes = ["", ", gate by none", ", experts by v"]
    assert list(named) == [*(f"softmax, k = 2{end}" for end in suffixes), "one expert"]
    sizes = [model.layout(2).size for model in named.values()]
    assert sizes == [3 + 8, 1 + 8, 3 + 6, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gate-covariate", "gdp"], "gate_covariates names 'gdp', but the covariates are gnp"),
        (["--expert-covariate", "gnp", "--expert-covariate", "gnp"], "names column 0 twice"),
        (["--gate", "dense_to_sparse", "--gate-covariate", "none"], "use the softmax gate"),
    ],
)
def test_the_command_line_refuses_wrong_columns(
    options: list[str], message: str, tmp_path: Path
) -> None:
    words = ["fit", "co2", "--response", "co2", "--covariate", "gnp", "--gate", "softmax"]
    words += ["--experts", "2", "--out", str(tmp_path / "new"), *options]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_command_line_fits_and_compares_constant_weights(tmp_path: Path) -> None:
    words = ["co2", "--response", "co2", "--covariate", "gnp", "--gate-covariate", "none", "--json"]
    fit = ["fit", *words, "--gate", "softmax", "--experts", "2", "--out", str(tmp_path / "fit")]
    done = CliRunner().invoke(app, fit)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["request"]["gate_covariates"] == []
    assert round(found["mle"]["log_likelihood"], 4) == -66.9398
    assert "gate_slope[0, gnp]" not in found["estimates"]
    page = (tmp_path / "fit" / "report.html").read_text()
    assert "gate by none" in page
    assert "--gate-covariate none" in page
    compare = ["compare", *words, "--gates", "softmax", "--experts", "2"]
    done = CliRunner().invoke(app, [*compare, "--out", str(tmp_path / "comparison")])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["models"]
    assert row["model"] == "softmax, k = 2, gate by none"
    assert row["n_parameters"] == 7
    assert row["aic"] == pytest.approx(2 * 7 + 2 * 66.9398, abs=2e-4)


def test_the_regressor_takes_names_and_numbers(split_fit: bm.Fit) -> None:
    x, y = two_lines()
    frame = pd.DataFrame(x, columns=["u", "v"])
    chosen: dict[str, Any] = {"gate_covariates": ["u"], "expert_covariates": ["v"]}
    named = MoERegressor(n_starts=4, random_state=0, **chosen).fit(frame, y)
    assert named.model_ == SPLIT
    assert named.fit_.log_density == pytest.approx(split_fit.log_density, abs=1e-8)
    numbered = MoERegressor(
        n_starts=4, random_state=0, gate_covariates=[0], expert_covariates=("v",)
    ).fit(frame, y)
    np.testing.assert_array_equal(named.predict(frame), numbered.predict(frame))
    with pytest.raises(ValueError, match="names 'w', but the covariates are u, v"):
        MoERegressor(gate_covariates=["w"]).fit(frame, y)
    with pytest.raises(ValueError, match="columns of x have no names"):
        MoERegressor(gate_covariates=["u"]).fit(x, y)
    with pytest.raises(ValueError, match="names column 2, but x has 2"):
        MoERegressor(expert_covariates=[2]).fit(x, y)


# --- errors


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("gnp", "must be a tuple of columns of x, .*; got 'gnp'"),
        (0, "must be a tuple of columns of x, .*; got 0"),
        ((0, 0), "names column 0 twice; name each column once"),
        ((-1,), "each column in gate_covariates must be a whole number of at least 0, got -1"),
        ((0.5,), "must be a whole number of at least 0, got 0.5"),
        ((True,), "must be a whole number of at least 0, got True"),
        (("gnp",), "must be a whole number of at least 0, got 'gnp'"),
    ],
)
def test_wrong_columns_are_refused(columns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bm.moe("softmax", 2, gate_covariates=columns)
    with pytest.raises(ValueError, match=message.replace("gate_cov", "expert_cov")):
        bm.moe("softmax", 2, expert_covariates=columns)


def test_columns_that_x_has_not_are_refused() -> None:
    model = bm.moe("softmax", 2, gate_covariates=(3,))
    message = "gate_covariates names column 3, but x has 3, numbered from 0"
    for use in (bm.fit_map, bm.fit_mle, bm.fit_em, bm.sample_posterior, model.layout):
        with pytest.raises(ValueError, match=message):
            use(D) if use == model.layout else use(model, X, Y)
    with pytest.raises(ValueError, match=message):
        trace(seed(model.numpyro, 0)).get_trace(X, Y)


@pytest.mark.parametrize(
    ("gate", "options", "why"),
    [
        ("dense_to_sparse", {}, "temperature would be undetermined; use the softmax gate"),
        ("activation_dense_to_sparse", {}, "temperature would be undetermined"),
        (
            "top_k_sparse",
            {"top_k": 1},
            "experts would be left out everywhere; use the softmax",
        ),
    ],
)
def test_constant_weights_want_the_softmax_gate(
    gate: str, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        bm.moe(gate, 2, gate_covariates=(), **options)


@dataclasses.dataclass(frozen=True)
class Norm(Softmax):
    """A gate that sees every column of x, whatever the slopes."""

    name: ClassVar[str] = "norm"

    def logits(self, parameters: GateParameters, x: Array) -> Array:
        grows = parameters.intercept[:, None] * jnp.sum(x**2, axis=0)
        return super().logits(parameters, x) + grows


@dataclasses.dataclass(frozen=True)
class Centres(Softmax):
    """A gate by distances, whose zero slopes cancel."""

    name: ClassVar[str] = "centres"
    linear: ClassVar[bool] = False
    rescalable: ClassVar[bool] = False

    def logits(self, parameters: GateParameters, x: Array) -> Array:
        distance = jnp.sum((x[None] - parameters.slope[:, :, None]) ** 2, axis=1)
        return parameters.intercept[:, None] - distance / 2


@pytest.mark.slow
def test_gates_of_ones_own_leave_out_what_they_can() -> None:
    with pytest.raises(ValueError, match="norm gate depends on covariates whose slopes are zero"):
        bm.moe(Norm(), 2, gate_covariates=(0,))
    gate: Gate = Centres()
    model = bm.moe(gate, 2, gate_covariates=(1,), expert_covariates=(0,))
    layout = model.layout(D)
    theta = jnp.asarray(np.random.default_rng(3).uniform(-1, 1, layout.size))
    data = identity_data(layout.selection)
    want = model.log_likelihood(layout.unpack(theta), X, Y).sum()
    got = jax.jit(lambda theta: log_likelihood(layout, theta, data))(theta)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert trace(seed(model.numpyro, 0)).get_trace(X, Y)["gate_slope_free"]["value"].shape == (1, 1)


def test_a_measure_with_other_slopes_is_refused(split_fit: bm.Fit) -> None:
    x, y = two_lines()
    measure = split_fit.measure
    wrong = measure.replace(slope=measure.slope + 1.0)
    message = "has a slope of covariate 0, which the model leaves out"
    with pytest.raises(ValueError, match=f"the measure {message}"):
        SPLIT.log_likelihood(wrong, x, y)
    with pytest.raises(ValueError, match=f"a start {message}"):
        bm.fit_map(SPLIT, x, y, starts=wrong)
    with pytest.raises(ValueError, match=f"the estimate {message}"):
        bm.Predictive(SPLIT, wrong)
    fit = dataclasses.replace(split_fit, measure=wrong)
    with pytest.raises(ValueError, match=f"the fit {message}"):
        bm.standard_errors(SPLIT, fit, x, y)
    with pytest.raises(ValueError, match=f"start {message}"):
        bm.sample_posterior(SPLIT, x, y, start=fit)
    # a translation of all gate slopes is no slope
    moved = measure.replace(gate_slope=measure.gate_slope + 1.0)
    np.testing.assert_allclose(
        SPLIT.log_likelihood(moved, x, y), SPLIT.log_likelihood(measure, x, y), rtol=1e-10
    )
    with pytest.raises(ValueError, match="has a gate_slope of covariate 1"):
        SPLIT.log_likelihood(measure.replace(gate_slope=measure.gate_slope.at[0].add(1.0)), x, y)


def test_theory_refuses_models_that_leave_out_covariates(split_fit: bm.Fit) -> None:
    truth = bm.scenario("lambda", "softmax")
    model = bm.moe("softmax", truth.measure.n_experts, gate_covariates=())
    with pytest.raises(ValueError, match="identify treats every slope as a parameter"):
        bm.identify(model, truth)
