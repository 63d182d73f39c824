"""The NumPyro program against SciPy's densities and against MAP's own ingredients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import scipy.stats
from conftest import CASE, GateCase
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


@pytest.mark.parametrize("prior", ["weak", "compact"])
def test_log_joint_is_prior_plus_likelihood(case: GateCase, prior: str) -> None:
    k = 3
    model = bm.moe(case.gate(), k, prior=prior)
    scaling = Scaling.from_data(model.gate, X, Y)
    standard = case.measure(2)
    measure = scaling.restore(standard)
    joint, _ = log_density(model.numpyro, (X, Y), {}, sites(case, measure))
    likelihood = np.log(case.density(measure, X, Y)).sum()
    assert np.isfinite(float(joint))
    np.testing.assert_allclose(
        joint, scipy_log_prior(case, prior, measure) + likelihood, rtol=1e-10, atol=1e-9
    )
    own = model.prior.log_density(model.gate, scaling.standardise(measure))
    np.testing.assert_allclose(
        joint, own - scaling.log_volume(k) + likelihood, rtol=1e-10, atol=1e-9
    )


@pytest.mark.parametrize("k", [1, 3])
def test_site_names_and_shapes(case: GateCase, k: int) -> None:
    model = bm.moe(case.gate(k), k)
    found = trace(seed(model.numpyro, 0)).get_trace(X)
    shapes = {
        "gate_slope_free": (k - 1, 2),
        "gate_intercept_free": (k - 1,),
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
    assert {name: jnp.shape(site["value"]) for name, site in found.items()} == shapes
    assert found["obs"]["type"] == "plate"
    assert [frame.name for frame in found["y"]["cond_indep_stack"]] == ["obs"]
    assert found["y"]["fn"].log_prob(found["y"]["value"]).shape == (9,)
    assert not found["gate_slope"]["value"][-1].any()
    assert not found["gate_intercept"]["value"][-1]
    assert not found["y"]["is_observed"]
    assert trace(seed(model.numpyro, 0)).get_trace(X, Y)["y"]["is_observed"]


def test_x_may_be_a_vector() -> None:
    model, measure = bm.moe("softmax", 2), CASE["softmax"].measure(0, 2, 1)
    given = sites(CASE["softmax"], measure)
    column, vector = (log_density(model.numpyro, (x, Y), {}, given)[0] for x in (X[:, :1], X[:, 0]))
    assert column == vector


TRACED = "the data's moments are taken with NumPy, which cannot read values under jax.jit"


@pytest.mark.xfail(strict=True, reason=TRACED)
def test_predictive_draws_from_the_prior() -> None:
    draws = Predictive(bm.moe("softmax", 3).numpyro, num_samples=6)(jax.random.key(0), X)
    assert draws["y"].shape == (6, 9)
    assert draws["gate_slope"].shape == (6, 3, 2)


def test_predictive_simulates_from_given_draws() -> None:
    case = CASE["sigmoid"]
    measure = case.measure(3)
    draws = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (4000, *leaf.shape)), sites(case, measure)
    )
    x = X[:2]
    predictive = Predictive(bm.moe(case.gate(), 3).numpyro, draws, parallel=True)
    y = np.asarray(predictive(jax.random.key(1), x)["y"])
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


@pytest.mark.xfail(strict=True, reason=TRACED)
def test_numpyro_mcmc_runs_the_program() -> None:
    assert nuts()["slope"].shape == (5, 2, 1)


@pytest.mark.xfail(strict=True, reason=TRACED)
def test_the_program_can_be_compiled() -> None:
    given = sites(CASE["softmax"], CASE["softmax"].measure(0, 2))
    program = bm.moe("softmax", 2).numpyro
    eager = log_density(program, (X, Y), {}, given)[0]
    compiled = jax.jit(lambda x, y: log_density(program, (x, y), {}, given)[0])(X, Y)
    np.testing.assert_allclose(compiled, eager, rtol=1e-12)


Y_HOLE = np.where(np.arange(9) == 4, np.nan, Y)
CHECKS = "the program does not check y"


@pytest.mark.parametrize("y", [Y_HOLE, Y[:1]], ids=["nan", "one value for all rows"])
@pytest.mark.filterwarnings("ignore:Out-of-support")
@pytest.mark.xfail(strict=True, reason=CHECKS)
def test_the_program_refuses_a_bad_response(y: Any) -> None:
    program = bm.moe("softmax", 2).numpyro
    given = sites(CASE["softmax"], CASE["softmax"].measure(0, 2))
    with pytest.raises(ValueError, match="y"):
        log_density(program, (X, y), {}, given)


@pytest.mark.xfail(strict=True, reason=CHECKS)
def test_the_program_reads_a_response_column_as_log_likelihood_does() -> None:
    program = bm.moe("softmax", 2).numpyro
    given = sites(CASE["softmax"], CASE["softmax"].measure(0, 2))
    flat, column = (log_density(program, (X, y), {}, given)[0] for y in (Y, Y[:, None]))
    np.testing.assert_allclose(column, flat, rtol=1e-12)


def test_the_program_is_a_program_of_numpyro_under_other_handlers() -> None:
    case, model = CASE["dense_to_sparse"], bm.moe("dense_to_sparse", 3)
    fixed = numpyro.handlers.condition(model.numpyro, {"temperature": jnp.asarray(0.5)})
    found = trace(seed(fixed, 1)).get_trace(X)
    assert found["temperature"]["is_observed"]
    assert found["temperature"]["value"] == 0.5
    assert case.temperature
