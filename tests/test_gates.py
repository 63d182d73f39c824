"""What gates declare about themselves, checked on densities."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from conftest import CASE, CASES, GateCase

import bayesmoe as bm
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import GateParameters
from bayesmoe.models import make_gate

RNG = np.random.default_rng(8)
X, Y = RNG.normal(size=(30, 2)), RNG.normal(size=30)


def density(case: GateCase, measure: bm.MixingMeasure) -> np.ndarray:
    """The package's log density at fixed points."""
    return np.asarray(bm.moe(case.gate(), measure.n_experts).log_likelihood(measure, X, Y))


def assert_equal_densities(case: GateCase, *measures: bm.MixingMeasure) -> None:
    first, *others = (density(case, measure) for measure in measures)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-12, atol=1e-12)


def permuted(measure: bm.MixingMeasure, order: list[int]) -> bm.MixingMeasure:
    blocks = jax.tree.leaves(measure)
    index = np.asarray(order)
    return bm.MixingMeasure(*(block[index] if block.ndim else block for block in blocks))


def test_a_gate_with_translations_does_not_know_its_reference(case: GateCase) -> None:
    layout, measure = Layout(case.gate(), 3, 2), case.measure(4)
    assert layout.other_references_matter == case.translates
    assert not Layout(case.gate(), 2, 2).other_references_matter  # they mirror each other
    if case.translates:
        turned = [layout.unpack(point) for point in layout.other_references(measure)]
        assert_equal_densities(case, measure, *turned)
        last = [float(jnp.squeeze(one.intercept[-1])) for one in turned]
        assert set(last) == set(np.asarray(measure.intercept[:-1]).tolist())


def test_the_cases_cover_every_gate() -> None:
    assert {case.name for case in CASES} == set(bm.GATES)
    for case in CASES:
        assert case.gate().has_temperature == case.temperature
        assert case.gate().linear == case.linear
        assert case.gate().translates == case.translates


def test_gate_probabilities_are_those_of_the_formula(case: GateCase) -> None:
    measure = case.measure(4)
    got = jnp.exp(case.gate().log_probabilities(measure.gate, jnp.asarray(X.T))).T
    np.testing.assert_allclose(got, case.probabilities(measure, X), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-12)


def test_logits_depend_on_their_own_expert_where_declared(case: GateCase) -> None:
    gate, measure = case.gate(), case.measure(4)
    assert gate.separable

    def logits(parameters: GateParameters) -> jax.Array:
        return gate.logits(parameters, jnp.asarray(X.T))

    slopes = jax.jit(jax.jacfwd(logits))(measure.gate)  # (k, n) by (k, d) and by (k,)
    others = ~np.eye(3, dtype=bool)
    np.testing.assert_array_equal(np.moveaxis(slopes.slope, 2, 1)[others], 0)
    np.testing.assert_array_equal(np.moveaxis(slopes.intercept, 2, 1)[others], 0)


def test_second_derivatives_vanish_where_logits_are_linear(case: GateCase) -> None:
    gate = case.gate()
    theta = gate.to_coordinates(case.measure(4).gate)

    def logits(coordinates: jax.Array) -> jax.Array:
        z = gate.logits(gate.from_coordinates(coordinates, 3, 2), jnp.asarray(X.T))
        return jnp.where(jnp.isfinite(z), z, 0.0)

    bend = jax.jit(jax.jacfwd(jax.jacfwd(logits)))(theta)
    assert gate.linear_in_coordinates == bool(np.abs(bend).max() < 1e-12)


def test_permutations_keep_the_density(case: GateCase) -> None:
    measure = case.measure(1)
    assert_equal_densities(
        case, measure, permuted(measure, [2, 0, 1]), permuted(measure, [1, 0, 2])
    )


def test_translations_keep_the_density_where_declared(case: GateCase) -> None:
    measure = case.measure(2)
    assert_equal_densities(
        case, measure, measure.replace(gate_intercept=measure.gate_intercept - 1.3)
    )
    moved = measure.replace(gate_slope=measure.gate_slope + np.asarray([0.8, -2.0]))
    if case.translates:
        assert_equal_densities(case, measure, moved)
    else:
        assert np.abs(density(case, moved) - density(case, measure)).max() > 1e-3


def test_a_gate_with_translations_moves_its_reference_to_zero(case: GateCase) -> None:
    gate, measure = case.gate(), case.measure(3)
    shifted = measure.replace(gate_intercept=measure.gate_intercept + 0.4)
    if case.translates:
        shifted = permuted(shifted.replace(gate_slope=shifted.gate_slope - 1.1), [1, 2, 0])
    back = gate.from_coordinates(gate.to_coordinates(shifted.gate), 3, 2)
    assert not back.slope[-1].any()
    assert back.intercept[-1] == 0
    pinned = shifted.replace(
        gate_slope=back.slope, gate_intercept=back.intercept, temperature=back.temperature
    )
    assert_equal_densities(case, shifted, pinned)


@pytest.mark.parametrize("c", [0.2, 3.0])
def test_rays_are_declared_exactly_where_the_density_is_constant(case: GateCase, c: float) -> None:
    assert case.gate().ray is case.ray
    if not case.temperature:
        return
    measure = case.measure(5)
    along = measure.replace(
        gate_slope=c * measure.gate_slope,
        gate_intercept=c * measure.gate_intercept,
        temperature=c * measure.temperature,
    )
    if case.ray:
        assert_equal_densities(case, measure, along)
    else:
        assert np.abs(density(case, along) - density(case, measure)).max() > 1e-3


def reference_swap(case: GateCase, measure: bm.MixingMeasure) -> bm.MixingMeasure:
    """Two experts in the other order, reference last again: β1 -> -β1, β0 -> c - 2σ(0) - β0.

    With σ(u) + σ(-u) = 2σ(0): σ(0) + 0 - σ(u) - β0 = σ(-u) + β0' - σ(0) for β0' = -β0.
    """
    return permuted(measure, [1, 0]).replace(
        gate_slope=jnp.stack([-measure.gate_slope[0], jnp.zeros(2)]),
        gate_intercept=jnp.stack([-measure.gate_intercept[0], 0.0]),
    )


def test_flips_are_declared_exactly_for_odd_activations(case: GateCase) -> None:
    assert case.gate().flip is case.flip
    if case.flip:
        u, v = np.asarray([0.7, -1.2]), np.asarray([-0.4, 2.0])
        measure = case.measure(6, 2).replace(gate_slope=[u, v])
        assert_equal_densities(case, measure, measure.replace(gate_slope=[-v, -u]))


def test_the_reference_may_change_by_a_flip(case: GateCase) -> None:
    if "top_k" in case.options:
        return
    measure = case.measure(7, 2)
    swapped = reference_swap(case, measure)
    if case.flip or case.translates:
        np.testing.assert_allclose(
            case.density(swapped, X, Y), case.density(measure, X, Y), rtol=1e-12
        )
        model = bm.moe(case.gate(2), 2)
        np.testing.assert_allclose(
            model.log_likelihood(swapped, X, Y),
            model.log_likelihood(measure, X, Y),
            rtol=1e-12,
            atol=1e-12,
        )
    else:
        change = case.density(swapped, X, Y) - case.density(measure, X, Y)
        assert np.abs(change).max() > 1e-3


@pytest.mark.parametrize("activation", [jnp.sin, jnp.arctan, lambda u: 3 - jnp.tanh(u)])
def test_a_users_odd_activation_flips(activation: Any) -> None:
    gate = make_gate("activation_dense_to_sparse", activation=activation)
    assert gate.flip
    assert not gate.ray


@pytest.mark.parametrize("activation", [jnp.cos, jnp.abs, lambda u: 2 - jnp.exp(-(u**2))])
def test_a_users_even_activation_has_no_signs(activation: Any) -> None:
    assert make_gate("activation_dense_to_sparse", activation=activation).even
    assert not make_gate("activation_dense_to_sparse", activation=jnp.tanh).even


@pytest.mark.parametrize("slope", [0.01, 0.3, -1.0])
def test_a_users_homogeneous_activation_has_the_ray(slope: float) -> None:
    """Leaky ReLU; at a slope of -1 the absolute value."""
    leaky = make_gate(
        "activation_dense_to_sparse", activation=lambda u: jnp.where(u > 0, u, slope * u)
    )
    assert leaky.ray
    assert not leaky.flip


def test_a_constant_added_to_a_homogeneous_activation_keeps_the_ray() -> None:
    gate = make_gate("activation_dense_to_sparse", activation=lambda u: jax.nn.relu(u) + 1)
    measure = CASE["relu"].measure(5)
    along = measure.replace(
        gate_slope=2 * measure.gate_slope,
        gate_intercept=2 * measure.gate_intercept,
        temperature=2 * measure.temperature,
    )
    one, other = (bm.moe(gate, 3).log_likelihood(m, X, Y) for m in (measure, along))
    np.testing.assert_allclose(one, other, rtol=1e-12)
    assert gate.ray


@pytest.mark.parametrize("slope", [0.5, -2.0])
def test_a_users_line_translates(slope: float) -> None:
    gate = make_gate("activation_dense_to_sparse", activation=lambda u: 1 + slope * u)
    assert gate.translates
    assert not gate.linear
    measure = CASE["identity"].measure(5)
    turned = Layout(gate, 3, 2).other_references(measure)
    want = bm.moe(gate, 3).log_likelihood(measure, X, Y)
    for point in turned:
        got = bm.moe(gate, 3).log_likelihood(Layout(gate, 3, 2).unpack(point), X, Y)
        np.testing.assert_allclose(got, want, rtol=1e-11)


def test_an_activation_that_is_nearly_a_line_does_not_translate() -> None:
    """Odd, and σ(u/2) = σ(u)/2 for all u: no more than that is looked at for the ray."""

    def ripples(u: jax.Array) -> jax.Array:
        return u * (2 + jnp.sin(2 * jnp.pi * jnp.log2(jnp.abs(u) + (u == 0))))

    assert not make_gate("activation_dense_to_sparse", activation=ripples).translates


def test_a_gate_may_be_made_while_a_function_is_traced() -> None:
    measure = CASE["tanh"].measure(5)

    def log_likelihood(measure: bm.MixingMeasure) -> jax.Array:
        gate = make_gate("activation_dense_to_sparse", activation=lambda u: jnp.tanh(u))
        assert gate.flip
        assert not gate.ray
        return bm.moe(gate, 3).log_likelihood(measure, X, Y)

    want = np.log(CASE["tanh"].density(measure, X, Y))
    np.testing.assert_allclose(jax.jit(log_likelihood)(measure), want, rtol=1e-10)


def test_top_k_keeps_exactly_k_experts_and_k_of_k_is_softmax() -> None:
    measure = CASE["softmax"].measure(9)
    for top_k in (1, 2):
        gate = make_gate("top_k_sparse", top_k=top_k)
        chosen = np.isfinite(gate.log_probabilities(measure.gate, jnp.asarray(X.T)))
        assert (chosen.sum(0) == top_k).all()
    everyone = bm.moe("top_k_sparse", 3, top_k=3).log_likelihood(measure, X, Y)
    softmax = bm.moe("softmax", 3).log_likelihood(measure, X, Y)
    np.testing.assert_allclose(everyone, softmax, rtol=1e-13)
    tied = measure.replace(gate_slope=np.zeros((3, 2)), gate_intercept=np.zeros(3))
    gate = make_gate("top_k_sparse", top_k=2)
    chosen = np.isfinite(gate.log_probabilities(tied.gate, jnp.asarray(X.T)))
    np.testing.assert_array_equal(chosen, np.asarray([[1, 1, 0]]).T.repeat(30, 1))


def test_spread_is_the_standard_deviation_under_the_weak_slope_prior(case: GateCase) -> None:
    """The sd of σ(3Z), Z standard normal, by adaptive quadrature."""
    sigma = case.sigma
    if sigma is None:
        return

    def moment(power: int) -> float:
        def integrand(z: float) -> float:
            return sigma(np, 3 * np.float64(z)) ** power * scipy.stats.norm.pdf(z)

        halves = ((-9, 0), (0, 9))
        return sum(scipy.integrate.quad(integrand, *half, limit=200)[0] for half in halves)

    want = np.sqrt(moment(2) - moment(1) ** 2)
    np.testing.assert_allclose(case.gate().spread, want, rtol=0.02)


def test_gates_are_hashable_and_equal_by_options() -> None:
    assert make_gate("top_k_sparse", top_k=2) == make_gate("top_k_sparse", top_k=2)
    assert make_gate("top_k_sparse", top_k=2) != make_gate("top_k_sparse", top_k=3)
    assert len({case.gate() for case in CASES} | {case.gate() for case in CASES}) == len(CASES)


@pytest.mark.slow
def test_with_one_active_expert_the_scale_of_the_gate_has_no_rate() -> None:
    """Multiplying β1 and β0 by c changes no density, if one expert is active, and the loss."""
    truth = bm.scenario("weak", "top_k_sparse", top_k=1)
    g = truth.measure
    moved = g.replace(gate_slope=3 * g.gate_slope, gate_intercept=3 * g.gate_intercept)
    x, y = truth.simulate(0, 50)
    for top_k, same in ((1, True), (2, False)):
        model = bm.moe("top_k_sparse", 2, top_k=top_k)
        gap = model.log_likelihood(moved, x, y) - model.log_likelihood(g, x, y)
        assert (float(abs(gap).max()) < 1e-12) == same
        assert (model.gate.expected_rate("gate_slope", False).exponent == 0) == same
        assert model.gate.expected_rate("slope", False).exponent == -0.5
    assert bm.voronoi_loss(moved, truth) > 0.1
