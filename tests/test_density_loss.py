"""Density losses against closed forms, SciPy's adaptive quadrature, Monte Carlo and each other."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
import xarray as xr
from conftest import CASE, GateCase

import bayesmoe as bm
from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import FIELDS
from bayesmoe.theory import density_loss
from bayesmoe.theory.density_loss import DensityLosses, density_losses

SOFTMAX = CASE["softmax"]


@dataclasses.dataclass(frozen=True)
class Truth:
    gate: Gate
    measure: bm.MixingMeasure
    quadrature_x: Any


def truth_of(case: GateCase, measure: bm.MixingMeasure) -> Truth:
    x = np.random.default_rng(0).uniform(size=(64, measure.n_covariates))
    return Truth(case.gate(measure.n_experts), measure, x)


def losses(case: GateCase, estimate: Any, true: bm.MixingMeasure, **options: Any) -> DensityLosses:
    return density_losses(estimate, truth_of(case, true), **options)


def values(found: DensityLosses) -> np.ndarray:
    return np.array([part.value for part in found])


def errors(found: DensityLosses) -> np.ndarray:
    return np.array([part.error for part in found])


def one_expert(slope: float, intercept: float, variance: float) -> bm.MixingMeasure:
    """One expert, written as two that are equal: so that one compiled program serves most tests."""
    gate, both = ([[3.0], [0.0]], [-1.0, 0.0], 1.0), [1.0, 1.0]
    return bm.MixingMeasure(
        *gate, np.outer(both, slope), np.multiply(both, intercept), np.multiply(both, variance)
    )


def random_measure(
    rng: np.random.Generator, case: GateCase = SOFTMAX, k: int = 3, steepness: float = 5.0
) -> bm.MixingMeasure:
    """Narrow and wide experts; gates that switch inside the unit interval."""
    beta1 = steepness * rng.normal(size=(k, 1))
    beta0 = -beta1[:, 0] * rng.uniform(size=k)
    if not case.linear:
        beta0 = 0.3 * rng.normal(size=k)
    beta1[-1], beta0[-1] = 0.0, 0.0
    tau = rng.choice([0.05, 0.3]) if case.temperature else 1.0
    a, b = rng.choice([1.0, 10.0]) * rng.normal(size=(k, 1)), 3 * rng.normal(size=k)
    return bm.MixingMeasure(beta1, beta0, tau, a, b, 10 ** rng.uniform(-3, 1, size=k))


def perturbed(rng: np.random.Generator, measure: bm.MixingMeasure, by: float) -> bm.MixingMeasure:
    return jax.tree.map(lambda leaf: leaf * (1 + by * rng.normal(size=leaf.shape)), measure)


# ---------------------------------------------------------------- one expert: closed forms


def closed_forms(p: bm.MixingMeasure, q: bm.MixingMeasure) -> np.ndarray:
    """Hellinger, total variation if variances are equal, and KL(p ‖ q), averaged over [0, 1]."""
    v, w = p.variance[0], q.variance[0]

    def apart(x: float) -> float:
        return float((p.slope - q.slope)[0, 0] * x + (p.intercept - q.intercept)[0])

    def hellinger(x: float) -> float:
        affinity = 2 * np.sqrt(v * w) / (v + w)
        return np.sqrt(1 - np.sqrt(affinity) * np.exp(-(apart(x) ** 2) / (4 * (v + w))))

    def total_variation(x: float) -> float:
        return 2 * scipy.stats.norm.cdf(abs(apart(x)) / (2 * np.sqrt(v))) - 1

    def divergence(x: float) -> float:
        return 0.5 * (v / w - 1 - np.log(v / w) + apart(x) ** 2 / w)

    root = float((q.intercept - p.intercept)[0] / (p.slope - q.slope)[0, 0])
    points = [root] if 0 < root < 1 else None
    laws = (hellinger, total_variation, divergence)
    return np.array(
        [scipy.integrate.quad(f, 0, 1, points=points, epsabs=1e-13, limit=200)[0] for f in laws]
    )


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (one_expert(2.0, -1.0, 0.3), one_expert(1.5, 0.2, 0.3)),
        (one_expert(20.0, -1.0, 0.001), one_expert(1.0, 20.0, 10.0)),
        (one_expert(2.0, -1.0, 0.3), one_expert(2.001, -0.9995, 0.3)),
        (one_expert(3.0, -1.0, 0.05), one_expert(-2.0, 1.0, 0.05)),  # the lines cross
    ],
    ids=["near", "narrow and wide", "very close", "crossing"],
)
def test_one_expert_has_closed_forms(p: bm.MixingMeasure, q: bm.MixingMeasure) -> None:
    found, expected = losses(SOFTMAX, q, p), closed_forms(p, q)
    same_variance = float(p.variance[0]) == float(q.variance[0])
    checked = np.array([True, same_variance, True])
    error = np.abs(values(found) - expected)[checked]
    assert np.all(error <= errors(found)[checked] + 1e-12)
    assert np.all(error <= 1e-4 * expected[checked])


# ---------------------------------------------------------------- y: adaptive quadrature


def mixture(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    weights = np.exp(2 * rng.normal(size=3))
    sd = np.sqrt(10 ** rng.uniform(-3, 1, size=3))
    return np.log(weights / weights.sum()), 3 * rng.normal(size=3), sd


def log_density(law: Any, y: Any) -> np.ndarray:
    log_weights, means, sd = law
    constant = log_weights - np.log(sd) - 0.5 * np.log(2 * np.pi)
    terms = constant - 0.5 * ((np.asarray(y)[..., None] - means) / sd) ** 2
    return np.logaddexp.reduce(terms, axis=-1)


def by_scipy(p: Any, q: Any) -> np.ndarray:
    """H², TV and KL(p ‖ q) by adaptive quadrature between break points and all roots of p - q."""
    spread = np.linspace(-14, 14, 15)
    ends = [(means[:, None] + sd[:, None] * spread).ravel() for _, means, sd in (p, q)]
    ends = np.sort(np.concatenate(ends))
    fine = np.unique(np.linspace(ends[:-1], ends[1:], 200))

    def gap(y: Any) -> Any:
        return log_density(p, y) - log_density(q, y)

    crossings = np.flatnonzero(np.diff(np.sign(gap(fine))))
    roots = [scipy.optimize.brentq(gap, fine[i], fine[i + 1], xtol=1e-14) for i in crossings]
    ends = np.sort(np.concatenate([ends, roots]))

    def integrands(y: float) -> np.ndarray:
        lp, lq = log_density(p, y), log_density(q, y)
        p_y, q_y = np.exp(lp), np.exp(lq)
        squared = (np.exp(lp / 2) - np.exp(lq / 2)) ** 2
        return np.array([squared / 2, abs(p_y - q_y) / 2, p_y * (lp - lq) - p_y + q_y])

    pieces = itertools.pairwise(ends)
    return sum(
        scipy.integrate.quad_vec(integrands, a, b, epsabs=1e-12, epsrel=1e-9)[0] for a, b in pieces
    )


@jax.jit
def distances(p: density_loss._Mixtures, q: density_loss._Mixtures) -> jax.Array:
    return density_loss._distances(p, q, density_loss._ends(p, q), density_loss._NODES_Y)


def check_against_scipy(seed: int, by: float | None) -> None:
    """Another mixture, or the same perturbed, has the distances that SciPy finds."""
    rng = np.random.default_rng(seed)
    p, q = mixture(rng), mixture(rng)
    if by is not None:
        logs, means, sd = (block + by * rng.normal(size=3) for block in (p[0], p[1], np.log(p[2])))
        q = logs - np.logaddexp.reduce(logs), means, np.exp(sd)
    rows = (
        density_loss._Mixtures(jnp.asarray(law[0])[None], jnp.asarray(law[1])[None], law[2])
        for law in (p, q)
    )
    found = np.array(distances(*rows))[:, 0]
    found[0] **= 2
    expected = by_scipy(p, q)
    np.testing.assert_allclose(found[[0, 2]], expected[[0, 2]], rtol=1e-8)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


def test_the_quadrature_over_y_agrees_with_scipy() -> None:
    for seed, by in ((1, None), (2, 0.3), (3, 0.02)):
        check_against_scipy(seed, by)


@pytest.mark.slow
@pytest.mark.parametrize("by", [None, 0.3, 0.02])
def test_the_quadrature_over_y_agrees_with_scipy_in_random_cases(by: float | None) -> None:
    for seed in range(100, 120):
        check_against_scipy(seed, by)


@pytest.mark.slow
def test_far_and_degenerate_mixtures_are_finite() -> None:
    """Tails in log space: a component of weight zero, one far off, and a very narrow one."""
    p = density_loss._Mixtures(
        jnp.asarray([[0.0, -jnp.inf, -jnp.inf]]), jnp.asarray([[0.0, 0.0, 1e6]]), jnp.ones(3)
    )
    q = density_loss._Mixtures(
        jnp.asarray([[0.0, -jnp.inf, -jnp.inf]]),
        jnp.asarray([[1000.0, 0.0, 0.0]]),
        jnp.asarray([1e-3, 1.0, 1.0]),
    )
    found = np.asarray(distances(p, q))[:, 0]
    divergence = 0.5 * (1e6 - 1 - np.log(1e6) + 1e12)
    np.testing.assert_allclose(found[[0, 2]], [1.0, divergence], rtol=1e-8)
    assert found[1] == pytest.approx(1.0, rel=1e-6)


# ---------------------------------------------------------------- x: honest errors


def dense(case: GateCase, estimate: bm.MixingMeasure, true: bm.MixingMeasure) -> np.ndarray:
    """The midpoint rule, for top-K gates with 1000 points between any two jumps."""
    ends = [0.0, 1.0]
    if "top_k" in case.options:
        for m in (estimate, true):
            slope, intercept = np.asarray(m.gate_slope)[:, 0], np.asarray(m.gate_intercept)
            i, j = np.triu_indices(len(slope), 1)
            ends.extend((intercept[j] - intercept[i]) / (slope[i] - slope[j]))
    ends = np.unique(np.clip(ends, 0, 1))
    truth, total = truth_of(case, true), np.zeros(3)
    for low, high in itertools.pairwise(ends):
        n = 4000 if len(ends) == 2 else 1000
        x = low + (high - low) * (np.arange(n) + 0.5) / n
        total += (high - low) * values(density_losses(estimate, truth, x=x))
    return total


STEEPNESS = {
    "softmax": [5.0, 25.0, 100.0, 500.0],
    "top_k_sparse": [10.0],
    "relu": [3.0],
}


@pytest.mark.slow
@pytest.mark.parametrize("label", STEEPNESS)
def test_the_error_estimate_is_honest(label: str) -> None:
    """Steep gates, kinks and jumps: true errors are below three estimates nearly always."""
    case, rng = CASE[label], np.random.default_rng(7)
    ratios = []
    for i in range(8):
        true = random_measure(rng, case, steepness=STEEPNESS[label][i % len(STEEPNESS[label])])
        estimate = perturbed(rng, true, 10.0 ** -(i % 3 + 1))
        if i % 2:
            estimate = random_measure(rng, case, steepness=10.0)
        found = losses(case, estimate, true)
        error = np.abs(values(found) - dense(case, estimate, true))
        # the midpoint rule's own error is about 1e-7 of the value
        ratios.append(np.maximum(error - 1e-6 * values(found), 0) / errors(found))
        assert np.all(error <= 0.02 * values(found))
    assert np.mean(np.array(ratios) <= 1) >= 0.95
    assert np.max(ratios) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("label", ["softmax", "top_k_sparse"])
def test_the_error_estimate_is_honest_in_two_dimensions(label: str) -> None:
    case, rng, covered = CASE[label], np.random.default_rng(9), []
    for i in range(6):
        true = case.measure(i, k=3, d=2)
        estimate = perturbed(rng, true, 10.0 ** -(i % 3)).replace(
            temperature=true.temperature, variance=true.variance * rng.uniform(0.5, 2.0, size=3)
        )
        rough, fine = (losses(case, estimate, true, n_x=n) for n in (128, 4096))
        assert np.all(errors(fine) < 0.5 * errors(rough))
        covered.append(np.abs(values(rough) - values(fine)) <= errors(rough))
    assert np.mean(covered) >= 0.95


@pytest.mark.slow
def test_jumps_next_to_each_other_are_found() -> None:
    """Between two jumps the wrong expert is active: exactly |x1 - x2| of total variation."""

    def top_1(x: float) -> bm.MixingMeasure:
        return bm.MixingMeasure(
            [[10.0], [0.0]], [-10.0 * x, 0.0], 1.0, [[0.0], [0.0]], [0.0, 50.0], [1.0, 1.0]
        )

    case = GateCase("top_1", "top_k_sparse", {"top_k": 1})
    found = losses(case, top_1(0.3001), top_1(0.3002))
    np.testing.assert_allclose(values(found), [1e-4, 1e-4, 1e-4 * 50**2 / 2], rtol=1e-6)


@pytest.mark.slow
def test_more_points_of_x_are_more_accurate() -> None:
    sc = bm.scenario("lambda")
    estimate = perturbed(np.random.default_rng(0), sc.measure, 0.02)
    rough, fine = (density_losses(estimate, sc, n_x=n) for n in (21, 64))
    assert np.all(errors(fine) < 0.15 * errors(rough))
    assert np.all(np.abs(values(fine) - values(rough)) <= errors(rough))


# ---------------------------------------------------------------- laws of the distances


@pytest.mark.slow
def test_the_gauge_does_not_matter(gate_case: GateCase) -> None:
    """Permuted and translated copies are at distance zero; along a ray, too."""
    rng = np.random.default_rng(11)
    true = gate_case.measure(3, k=3, d=1)
    order = rng.permutation(3)
    copy = jax.tree.map(lambda leaf: leaf[order] if leaf.ndim else leaf, true)
    shift = 1.7 if gate_case.linear else 0.0
    copy = copy.replace(
        gate_slope=copy.gate_slope + shift, gate_intercept=copy.gate_intercept - 0.4
    )
    if gate_case.ray:
        copy = copy.replace(
            gate_slope=3 * copy.gate_slope,
            gate_intercept=3 * copy.gate_intercept,
            temperature=3 * copy.temperature,
        )
    found = losses(gate_case, copy, true)
    assert np.all(np.abs(values(found)) < 1e-14)
    assert np.all(errors(found) < 1e-14)
    assert np.all(values(losses(gate_case, perturbed(rng, true, 0.01), true)) > 1e-6)


def test_a_translated_and_permuted_copy_is_at_distance_zero() -> None:
    true = random_measure(np.random.default_rng(2), k=2)
    copy = jax.tree.map(lambda leaf: leaf[::-1] if leaf.ndim else leaf, true)
    copy = copy.replace(gate_slope=copy.gate_slope + 3.0, gate_intercept=copy.gate_intercept - 2.0)
    assert np.all(np.abs(values(losses(SOFTMAX, copy, true))) < 1e-13)
    moved = copy.replace(gate_slope=1.01 * copy.gate_slope)
    assert np.all(values(losses(SOFTMAX, moved, true)) > 1e-8)


def test_order_and_symmetry() -> None:
    rng = np.random.default_rng(5)
    for by in (1.0, 0.1, 0.001):
        true = random_measure(rng, k=2)
        other = perturbed(rng, true, by).replace(
            variance=true.variance * np.exp(by * rng.normal(size=2)), temperature=1.0
        )
        there, back = losses(SOFTMAX, other, true), losses(SOFTMAX, true, other)
        np.testing.assert_allclose(values(there)[:2], values(back)[:2], rtol=1e-4)
        assert values(there)[2] != pytest.approx(values(back)[2], rel=1e-6)
        hellinger, variation, divergence = values(there)
        assert hellinger**2 <= variation <= np.sqrt(2) * hellinger
        assert 2 * hellinger**2 <= divergence
        assert 2 * variation**2 <= divergence  # Pinsker and Jensen


@pytest.mark.slow
def test_monte_carlo_agrees_in_one_and_two_dimensions() -> None:
    """E_X[H] itself is nested; E_X[TV] and E_X[KL] are means over pairs from the true law."""
    for name in ("weak", "plane"):
        sc = bm.scenario(name)
        estimate = perturbed(np.random.default_rng(1), sc.measure, 0.3).replace(temperature=1.0)
        found = density_losses(estimate, sc, n_x=512)
        x, y = sc.simulate(2, 200_000)
        p, q = (SOFTMAX.density(m, x, y) for m in (sc.measure, estimate))
        for part, sample in (
            (found.total_variation, np.maximum(1 - q / p, 0)),
            (found.kullback_leibler, np.log(p / q)),
        ):
            spread = np.std(sample) / np.sqrt(len(sample))
            assert abs(part.value - np.mean(sample)) <= 4 * spread + part.error
            assert part.error < 0.05 * part.value
        x = np.asarray(x[:300])
        affinity = [nested(sc.measure, estimate, row) for row in x]
        distances = np.sqrt(1 - np.array(affinity))
        exact = density_losses(estimate, sc, x=x).hellinger
        assert abs(exact.value - np.mean(distances)) < 1e-8
        spread = np.std(distances) / np.sqrt(len(x))
        assert abs(found.hellinger.value - np.mean(distances)) <= 4 * spread


def nested(p: bm.MixingMeasure, q: bm.MixingMeasure, x: np.ndarray) -> float:
    """∫ √(pq) at one x, by a long trapezoidal sum."""
    y = np.linspace(-25, 25, 6001)
    rows = np.broadcast_to(x, (len(y), len(x)))
    return float(np.sum(np.sqrt(SOFTMAX.density(p, rows, y) * SOFTMAX.density(q, rows, y))) / 120)


# ---------------------------------------------------------------- shapes and errors


def batch_of(measure: bm.MixingMeasure, shape: tuple[int, ...]) -> bm.MixingMeasure:
    rng = np.random.default_rng(0)
    size = int(np.prod(shape))
    copies = [perturbed(rng, measure, 0.05) for _ in range(size)]
    return jax.tree.map(lambda *leaves: np.stack(leaves).reshape(*shape, *leaves[0].shape), *copies)


def test_batches_and_posteriors_equal_the_loop() -> None:
    sc = bm.scenario("lambda")
    measures = batch_of(sc.measure, (2, 3))
    found = density_losses(measures, sc)
    assert all(part.value.shape == part.error.shape == (2, 3) for part in found)
    one = density_losses(jax.tree.map(lambda leaf: jnp.asarray(leaf[1, 2]), measures), sc)
    assert np.array_equal(values(found)[:, 1, 2], values(one))
    assert one.hellinger.value.shape == ()
    dims = ("chain", "draw", "expert", "covariate")
    arrays = {
        field: (dims[: np.ndim(getattr(measures, field))], getattr(measures, field))
        for field in FIELDS
    }
    tree = xr.DataTree.from_dict({"posterior": xr.Dataset(arrays)})
    assert np.array_equal(values(density_losses(tree, sc)), values(found))


def test_an_estimate_that_is_not_finite_has_nan() -> None:
    sc = bm.scenario("lambda")
    measures = batch_of(sc.measure, (2,))
    spoiled = np.array(measures.variance)
    spoiled[0, 0] = np.nan
    found = density_losses(measures.replace(variance=spoiled), sc)
    assert np.all(np.isnan(values(found)[:, 0]) & np.isnan(errors(found)[:, 0]))
    assert np.all(np.isfinite(values(found)[:, 1]))


def test_errors_name_the_value_and_the_mend() -> None:
    sc, plane = bm.scenario("lambda"), bm.scenario("plane")
    outside = Truth(sc.gate, sc.measure, np.array([[0.5], [1.5]]))
    with pytest.raises(ValueError, match=r"X lies in \[0\.5, 1\.5\].* give equally weighted"):
        density_losses(sc.measure, outside)
    with pytest.raises(ValueError, match="n_x must be a whole number of at least 16, got 4"):
        density_losses(sc.measure, sc, n_x=4)
    with pytest.raises(ValueError, match="x has 2 covariates but the truth has 1"):
        density_losses(sc.measure, sc, x=np.ones((3, 2)))
    with pytest.raises(ValueError, match="x is empty; at least one row is needed"):
        density_losses(sc.measure, sc, x=np.ones((0, 1)))
    with pytest.raises(ValueError, match="estimate has d = 2 covariates"):
        density_losses(plane.measure, sc)
    with pytest.raises(ValueError, match="truth must be a single measure"):
        density_losses(sc.measure, Truth(sc.gate, batch_of(sc.measure, (2,)), sc.quadrature_x))
