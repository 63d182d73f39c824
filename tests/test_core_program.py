"""The NumPyro program against SciPy's densities and against MAP's own ingredients."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import scipy.stats
from conftest import CASE, ONE_PER_GATE, GateCase
from numpyro.handlers import seed, trace
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density

import bayesmoe as bm
from bayesmoe.core.scaling import Scaling

RNG = np.random.default_rng(12)
X, Y = RNG.normal([2.0, -1.0], [0.5, 3.0], size=(9, 2)), RNG.normal(10.0, 4.0, size=9)


def sites(case: GateCase, measure: bm.MixingMeasure) -> dict[str, jax.Array]:
    found = {
        "gate_slope_free": measure.gate_slope[:-1],
        "gate_intercept_free": measure.gate_intercept[:-1],
        "slope": measure.slope,
        "intercept": measure.intercept,
        "variance": measure.variance,
    }
    return {**found, "temperature": measure.temperature} if case.temperature else found


def scipy_log_prior(case: GateCase, prior: str, measure: bm.MixingMeasure) -> float:
    """The prior of the original scale, from the data's moments and documented constants."""
    beta1, beta0, tau, a, b, nu = (np.asarray(leaf) for leaf in jax.tree.leaves(measure))
    x_shift, x_scale, y_shift, y_scale = X.mean(0), X.std(0), Y.mean(), Y.std()
    if case.linear:
        gate_shift, gate_scale = x_shift, x_scale
    else:
        gate_shift, gate_scale = np.zeros(2), np.sqrt((X**2).mean(0))
    tempered = tau if prior == "weak" and not case.linear else 1.0

    def real(width: float, box: float, centre: Any, unit: Any) -> Any:
        if prior == "weak":
            return scipy.stats.norm(centre, width * unit)
        return scipy.stats.uniform(centre - box * unit, 2 * box * unit)

    if prior == "weak":
        centre, spread = (1.0, 0.5) if case.linear else (case.gate().spread / 3, 1.0)
        law_tau = scipy.stats.lognorm(spread, scale=centre)
        law_nu = scipy.stats.lognorm(1.5, scale=0.1 * y_scale**2)
    else:
        law_tau = scipy.stats.uniform(0.01, 9.99)
        law_nu = scipy.stats.uniform(1e-4 * y_scale**2, (10 - 1e-4) * y_scale**2)
    total = real(3, 50, 0.0, 1 / gate_scale).logpdf(beta1[:-1]).sum()
    total += real(3, 50, -beta1[:-1] @ gate_shift, tempered).logpdf(beta0[:-1]).sum()
    total += real(2, 10, 0.0, y_scale / x_scale).logpdf(a).sum()
    total += real(2, 10, y_shift - a @ x_shift, y_scale).logpdf(b).sum()
    total += law_nu.logpdf(nu).sum()
    return total + (law_tau.logpdf(tau) if case.temperature else 0.0)


PAIRS = [(case.label, "weak") for case in ONE_PER_GATE]
PAIRS += [("dense_to_sparse", "compact"), ("sigmoid", "compact")]


@pytest.mark.parametrize(("label", "prior"), PAIRS)
def test_log_joint_is_prior_plus_likelihood(label: str, prior: str) -> None:
    case, k = CASE[label], 3
    model = bm.moe(case.gate(), k, prior=prior)
    scaling = Scaling.from_data(model.gate, X, Y)

    @jax.jit
    def evaluate(standard: bm.MixingMeasure) -> Any:
        measure = scaling.restore(standard)
        joint, _ = log_density(model.numpyro, (X, Y), {}, sites(case, measure))
        own = model.prior.log_density(model.gate, scaling.standardise(measure))
        return measure, joint, own - scaling.log_volume(k)

    measure, joint, own = evaluate(case.measure(2))
    likelihood = np.log(case.density(measure, X, Y)).sum()
    assert np.isfinite(float(joint))
    np.testing.assert_allclose(
        joint, scipy_log_prior(case, prior, measure) + likelihood, rtol=1e-10, atol=1e-9
    )
    np.testing.assert_allclose(joint, own + likelihood, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("improper", [("slope",), ("gate_slope", "intercept"), ("variance",)])
def test_improper_blocks_are_constant_on_any_scale(improper: tuple[str, ...]) -> None:
    weak, flat = (bm.moe("softmax", 3, name).prior for name in ("weak", "flat"))
    blocks = {name: getattr(flat, name) for name in improper}
    model = bm.moe("softmax", 3, dataclasses.replace(weak, **blocks, proper=False))
    case, scaling = CASE["softmax"], Scaling.from_data(model.gate, X, Y)
    measure = case.measure(2)
    joint = jax.jit(lambda given: log_density(model.numpyro, (X, Y), {}, given)[0])
    own = model.prior.log_density(model.gate, scaling.standardise(measure))
    own += np.log(case.density(measure, X, Y)).sum() - model.prior.log_volume(scaling, 3)
    np.testing.assert_allclose(joint(sites(case, measure)), own, rtol=1e-10)


def abstract_trace(program: Any, *data: np.ndarray) -> dict[str, Any]:
    """The sites of one run of the program, values known by their shapes alone."""
    sites: dict[str, Any] = {}

    def run(key: jax.Array) -> None:
        sites.update(trace(seed(program, key)).get_trace(*data))

    jax.eval_shape(run, jax.random.key(0))
    return sites


@pytest.mark.parametrize("k", [1, 3])
def test_site_names_and_shapes(gate_case: GateCase, k: int) -> None:
    case, model = gate_case, bm.moe(gate_case.gate(k), k)
    found = abstract_trace(model.numpyro, X)
    shapes = {
        "gate_slope": (k, 2),
        "gate_intercept": (k,),
        "slope": (k, 2),
        "intercept": (k,),
        "variance": (k,),
        "y": (9,),
        "obs": (9,),
    }
    if case.temperature:
        shapes["temperature"] = ()
    if k > 1:  # a single expert is the reference
        shapes |= {"gate_slope_free": (k - 1, 2), "gate_intercept_free": (k - 1,)}
    assert {name: jnp.shape(site["value"]) for name, site in found.items()} == shapes
    assert found["obs"]["type"] == "plate"
    assert [frame.name for frame in found["y"]["cond_indep_stack"]] == ["obs"]
    assert found["y"]["fn"].batch_shape == (9,)
    assert not found["y"]["is_observed"]
    assert abstract_trace(model.numpyro, X, Y)["y"]["is_observed"]


def test_x_may_be_a_vector() -> None:
    model, measure = bm.moe("softmax", 2), CASE["softmax"].measure(0, 2, 1)
    given = sites(CASE["softmax"], measure)
    joint = jax.jit(lambda x: log_density(model.numpyro, (x, Y), {}, given)[0])
    assert joint(X[:, :1]) == joint(X[:, 0])


def test_predictive_draws_from_the_prior() -> None:
    """Each site follows its documented law; each test errs with probability 1e-4."""
    case, m = CASE["sigmoid"], 2000
    predictive = Predictive(bm.moe(case.gate(), 3).numpyro, num_samples=m)
    draws = jax.tree.map(np.asarray, predictive(jax.random.key(0), X))
    assert draws["y"].shape == (m, 9)
    assert not draws["gate_slope"][:, -1].any()
    assert not draws["gate_intercept"][:, -1].any()
    tau, beta1, beta0 = (draws[name] for name in ("temperature", "gate_slope", "gate_intercept"))
    slope, intercept = draws["slope"], draws["intercept"]
    normal, log_normal = scipy.stats.norm, scipy.stats.lognorm
    for values, law in (
        (tau, log_normal(1.0, scale=case.gate().spread / 3)),
        (beta1[:, :-1] * np.sqrt((X**2).mean(0)), normal(0, 3)),
        (beta0[:, :-1] / tau[:, None], normal(0, 3)),
        (slope * X.std(0), normal(0, 2)),
        (intercept + slope @ X.mean(0), normal(0, 2)),
        (draws["variance"], log_normal(1.5, scale=0.1)),
    ):
        for column in values.reshape(m, -1).T:
            assert scipy.stats.kstest(column, law.cdf).pvalue > 1e-4


@pytest.mark.slow
def test_predictive_simulates_from_given_draws() -> None:
    case = CASE["sigmoid"]
    measure = case.measure(3)
    draws = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (4000, *leaf.shape)), sites(case, measure)
    )
    x = X[:2]
    predictive = Predictive(bm.moe(case.gate(), 3).numpyro, draws, parallel=True)
    y = np.asarray(jax.jit(predictive)(jax.random.key(1), x)["y"])
    assert y.shape == (4000, 2)
    for j in range(2):  # each errs with probability 1e-4
        pit = case.cdf(measure, x[[j]], y[:, j])
        assert scipy.stats.kstest(pit, "uniform").pvalue > 1e-4


def nuts(**options: Any) -> dict[str, jax.Array]:
    sampler = MCMC(
        NUTS(bm.moe("softmax", 2).numpyro),
        num_warmup=5,
        num_samples=5,
        progress_bar=False,
        **options,
    )
    sampler.run(jax.random.key(0), X[:, :1], Y)
    return sampler.get_samples()


@pytest.mark.slow
def test_numpyro_mcmc_runs_the_program() -> None:
    assert nuts()["slope"].shape == (5, 2, 1)


@pytest.mark.parametrize("label", ["softmax", "sigmoid"])
def test_the_program_can_be_compiled_with_data_as_arguments(label: str) -> None:
    case = CASE[label]
    measure = case.measure(0)
    program = bm.moe(case.gate(), 3).numpyro
    joint = jax.jit(lambda x, y: log_density(program, (x, y), {}, sites(case, measure))[0])
    likelihood = np.log(case.density(measure, X, Y)).sum()
    want = scipy_log_prior(case, "weak", measure) + likelihood
    np.testing.assert_allclose(joint(X, Y), want, rtol=1e-12)


Y_HOLE = np.where(np.arange(9) == 4, np.nan, Y)


@pytest.mark.parametrize("y", [Y_HOLE, Y[:1]], ids=["nan", "one value for all rows"])
@pytest.mark.filterwarnings("ignore:Out-of-support")
def test_the_program_refuses_a_bad_response(y: Any) -> None:
    program = bm.moe("softmax", 3).numpyro
    given = sites(CASE["softmax"], CASE["softmax"].measure(0))
    with pytest.raises(ValueError, match="y"):
        log_density(program, (X, y), {}, given)


def test_the_program_reads_a_response_column_as_log_likelihood_does() -> None:
    program = bm.moe("softmax", 3).numpyro
    given = sites(CASE["softmax"], CASE["softmax"].measure(0))
    joint = jax.jit(lambda y: log_density(program, (X, y), {}, given)[0])
    assert joint(Y[:, None]) == joint(Y)


def test_the_program_is_a_program_of_numpyro_under_other_handlers() -> None:
    case, model = CASE["dense_to_sparse"], bm.moe("dense_to_sparse", 3)
    fixed = numpyro.handlers.condition(model.numpyro, {"temperature": jnp.asarray(0.5)})
    found = abstract_trace(fixed, X)
    assert found["temperature"]["is_observed"]
    assert found["temperature"]["value"] == 0.5
    assert case.temperature
