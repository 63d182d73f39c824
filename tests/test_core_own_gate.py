"""A gate of one's own: a Gaussian gate in one class, checked against its formula by SciPy."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax import Array
from numpyro.infer.util import log_density

import bayesmoe as bm
from bayesmoe.core.gate import BlockExponents, Gate, Rate, polynomial_order, power_rate
from bayesmoe.core.hessian import evaluate_log_likelihood
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import GateParameters, MixingMeasure
from bayesmoe.core.observations import make_data
from bayesmoe.core.program import Sites, observe
from bayesmoe.core.scaling import Scaling
from bayesmoe.study.scenario import Scenario


@dataclasses.dataclass(frozen=True)
class GaussianGate(Gate):
    """π_i(x) ∝ exp(β0_i) N(x | β1_i, width² I): the slopes are centres."""

    name: ClassVar[str] = "gaussian"
    rescalable: ClassVar[bool] = False  # distances change with the units of x

    width: float = 1.0

    def logits(self, parameters: GateParameters, x: Array) -> Array:
        distance = jnp.sum((x[None] - parameters.slope[:, :, None]) ** 2, axis=1)
        return parameters.intercept[:, None] - distance / (2 * self.width**2)

    def program(self, x: Array, y: Array | None, sites: Sites) -> None:
        observe(self, MixingMeasure(*sites.gate(), *sites.experts()), x, y)

    def voronoi_exponents(self, cell_size: Array, *, identified: bool) -> BlockExponents:
        order = polynomial_order(cell_size)
        half = jnp.maximum(order / 2, 1.0)
        return BlockExponents(order, jnp.ones_like(order), half, order, half)

    def expected_rate(self, quantity: str, over_specified: bool) -> Rate:
        return power_rate(1, 8) if over_specified else power_rate(1, 2)


GATE = GaussianGate(width=0.8)
RNG = np.random.default_rng(3)
X, Y = RNG.normal([2.0, -1.0], [0.5, 3.0], size=(30, 2)), RNG.normal(10.0, 4.0, size=30)
MEASURE = bm.MixingMeasure(
    [[2.0, -3.0], [1.5, 2.0], [0.0, 0.0]],
    [0.4, -0.3, 0.0],
    1.0,
    RNG.normal(size=(3, 2)),
    10 + RNG.normal(size=3),
    [4.0, 9.0, 20.0],
)


def explicit(measure: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """log g_G(y|x), shape (n,), by SciPy's normal laws."""
    centre, beta0, _, a, b, nu = (np.asarray(leaf) for leaf in jax.tree.leaves(measure))
    gate = np.stack(
        [scipy.stats.multivariate_normal(c, GATE.width**2).logpdf(x) for c in centre], 1
    )
    log_pi = scipy.special.log_softmax(beta0 + gate, axis=1)
    expert = scipy.stats.norm(x @ a.T + b, np.sqrt(nu)).logpdf(y[:, None])
    return scipy.special.logsumexp(log_pi + expert, axis=1)


def test_its_likelihood_is_its_formula() -> None:
    got = bm.moe(GATE, 3).log_likelihood(MEASURE, X, Y)
    np.testing.assert_allclose(got, explicit(MEASURE, X, Y), rtol=1e-12)


def test_a_gaussian_gate_is_a_softmax_gate_in_other_parameters() -> None:
    scale = GATE.width**2
    shift = (np.asarray(MEASURE.gate_slope) ** 2).sum(1) / (2 * scale)
    linear = MEASURE.replace(
        gate_slope=MEASURE.gate_slope / scale, gate_intercept=MEASURE.gate_intercept - shift
    )
    one = bm.moe(GATE, 3).log_likelihood(MEASURE, X, Y)
    other = bm.moe("softmax", 3).log_likelihood(linear, X, Y)
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_its_program_is_prior_plus_likelihood() -> None:
    """The gate's prior is on x as it is, the experts' on standardised data."""
    names = {"gate_slope_free": MEASURE.gate_slope[:-1], "slope": MEASURE.slope}
    names |= {"gate_intercept_free": MEASURE.gate_intercept[:-1], "intercept": MEASURE.intercept}
    names |= {"variance": MEASURE.variance}
    program = bm.moe(GATE, 3).numpyro
    joint = jax.jit(lambda given: log_density(program, (X, Y), {}, given)[0])(names)
    centre, beta0, _, a, b, nu = (np.asarray(leaf) for leaf in jax.tree.leaves(MEASURE))
    normal, unit = scipy.stats.norm, Y.std()
    want = normal(0, 3).logpdf(centre[:-1]).sum() + normal(0, 3).logpdf(beta0[:-1]).sum()
    want += normal(0, 2 * unit / X.std(0)).logpdf(a).sum()
    want += normal(Y.mean() - a @ X.mean(0), 2 * unit).logpdf(b).sum()
    want += scipy.stats.lognorm(1.5, scale=0.1 * unit**2).logpdf(nu).sum()
    np.testing.assert_allclose(joint, want + explicit(MEASURE, X, Y).sum(), rtol=1e-12)


def test_estimators_see_its_likelihood_gradient_and_hessian() -> None:
    """In coordinates of standardised data: by SciPy's value and by finite differences."""
    layout, scaling = Layout(GATE, 3, 2), Scaling.from_data(GATE, X, Y)
    data = make_data(X, Y, scaling)
    evaluate = jax.jit(lambda theta: evaluate_log_likelihood(layout, theta, data))
    restore = jax.jit(lambda theta: scaling.restore(layout.unpack(theta)))
    theta = np.asarray(layout.pack(scaling.standardise(MEASURE)))

    def oracle(theta: np.ndarray) -> float:
        return float(explicit(restore(theta), X, Y).sum() + len(Y) * np.log(Y.std()))

    fused, step = evaluate(theta), 1e-5
    np.testing.assert_allclose(fused.value, oracle(theta), rtol=1e-12)
    for i, shift in enumerate(step * np.eye(layout.size)):
        slope = (oracle(theta + shift) - oracle(theta - shift)) / (2 * step)
        np.testing.assert_allclose(fused.gradient[i], slope, rtol=1e-6, atol=1e-6)
        above, below = (evaluate(theta + sign * shift).gradient for sign in (1, -1))
        curve = (above - below) / (2 * step)
        np.testing.assert_allclose(fused.hessian[i], curve, rtol=1e-6, atol=1e-6)


def test_a_gate_need_not_be_finite_beyond_the_data() -> None:
    """Logits in log x, which has no value at zero."""

    class Logarithmic(GaussianGate):
        def logits(self, parameters: GateParameters, x: Array) -> Array:
            return parameters.slope @ jnp.log(x) + parameters.intercept[:, None]

    layout, x = Layout(Logarithmic(), 2, 1), np.linspace(1.0, 3.0, 30)[:, None]
    data = make_data(x, Y, Scaling.from_data(layout.gate, x, Y))
    evaluation = jax.jit(lambda theta: evaluate_log_likelihood(layout, theta, data))
    for block in evaluation(jnp.full(layout.size, 0.1)):
        assert np.all(np.isfinite(block))


def test_it_simulates_from_its_density() -> None:
    truth = Scenario("mine", GATE, MEASURE.replace(gate_slope=[[0.2, 0.1], [0.9, 0.8], [0.0, 0.0]]))
    x, y = (np.asarray(part) for part in truth.simulate(1, 3000))
    centre, beta0, _, a, b, nu = (np.asarray(leaf) for leaf in jax.tree.leaves(truth.measure))
    square = ((x[:, None] - centre) ** 2).sum(2) / (2 * GATE.width**2)
    weight = scipy.special.softmax(beta0 - square, axis=1)
    pit = (weight * scipy.stats.norm(x @ a.T + b, np.sqrt(nu)).cdf(y[:, None])).sum(1)
    assert scipy.stats.kstest(pit, "uniform").pvalue > 1e-4


def test_what_it_must_define_is_named() -> None:
    @dataclasses.dataclass(frozen=True)
    class Unfinished(Gate):
        name: ClassVar[str] = "unfinished"

    with pytest.raises(TypeError, match=r"expected_rate.*logits.*program.*voronoi_exponents"):
        Unfinished()  # type: ignore[abstract]
