"""Moves of a gate whose density jumps, against sums over all ways to share out the rows."""

from __future__ import annotations

import arviz_base
import arviz_stats
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from oracles import Floats

import bayesmoe as bm
from bayesmoe.core.observations import make_data
from bayesmoe.core.scaling import Scaling
from bayesmoe.inference import jumps
from bayesmoe.inference.jumps import GivenGate
from bayesmoe.inference.target import Target

N = 40
LOG_VARIANCE = np.linspace(-9, 4, 400)


def three_levels(noise: float) -> tuple[Floats, Floats]:
    """Which of its two steps one threshold takes is open."""
    x = np.linspace(-1, 1, N)
    y = np.sign(x) * (np.abs(x) > 1 / 3) + noise * np.random.default_rng(0).normal(size=N)
    return x, y


def log_marginal(x: Floats, y: Floats) -> float:
    """log p(y) of rows of one expert under the weak prior: normal given ν, summed over a grid."""
    design, density = np.stack([x, np.ones_like(x)], axis=1), []
    for variance in np.exp(LOG_VARIANCE):
        precision = design.T @ design / variance + np.eye(2) / 4
        score = design.T @ y / variance
        square = y @ y / variance - score @ np.linalg.solve(precision, score)
        log_volume = np.linalg.slogdet(4 * precision)[1] + len(y) * np.log(2 * np.pi * variance)
        density.append(-0.5 * (log_volume + square))
    prior = scipy.stats.norm(np.log(0.1), 1.5).logpdf(LOG_VARIANCE)
    step = LOG_VARIANCE[1] - LOG_VARIANCE[0]
    return float(scipy.special.logsumexp(np.array(density) + prior) + np.log(step))


def standardised(values: Floats) -> Floats:
    return (values - values.mean()) / values.std()


def splits(x: Floats, y: Floats) -> Floats:
    """log p(y | the first j rows have one expert, the others the other), for j = 0, ..., n."""
    x, y = standardised(x), standardised(y)
    return np.array([log_marginal(x[:j], y[:j]) + log_marginal(x[j:], y[j:]) for j in range(N + 1)])


def threshold_law(x: Floats, y: Floats) -> Floats:
    """The posterior of j. A ratio of two normal parameters is Cauchy: so is the threshold."""
    edges = np.concatenate([[-np.inf], standardised(x), [np.inf]])
    prior = np.diff(scipy.stats.cauchy.cdf(edges))
    shares: Floats = scipy.special.softmax(np.log(prior) + splits(x, y))
    return shares


def given_gate(x: Floats, y: Floats) -> GivenGate:
    model = bm.moe("top_k_sparse", 2, top_k=1)
    scaling = Scaling.from_data(model.gate, x[:, None], y)
    return GivenGate(Target(model.layout(1), model.prior), make_data(x[:, None], y, scaling))


def test_laws_of_the_experts_tell_what_is_known_given_a_gate() -> None:
    """Weights of their draws have the mean p(y | gate), and make them worth two fifths at least."""
    x, y = three_levels(0.1)
    space, exact = given_gate(x, y), splits(x, y)
    at, place = [13, 14, 20, 27], standardised(x)

    @jax.jit
    def weigh(gate: jax.Array, keys: jax.Array) -> jax.Array:
        law = space._held(gate).law

        def one(key: jax.Array) -> jax.Array:
            experts = law.draw(key)
            return space._log_density(gate, experts) - law.log_density(experts)

        return jax.vmap(one)(keys)

    keys, evidence = jax.random.split(jax.random.key(0), 4000), []
    for j in at:
        log_weights = np.asarray(weigh(jnp.array([1.0, -(place[j - 1] + place[j]) / 2]), keys))
        weights = np.exp(log_weights - log_weights.max())
        assert weights.sum() ** 2 / (weights**2).sum() > 0.4 * len(keys)
        evidence.append(np.log(weights.mean()) + log_weights.max())
    # the gate's prior differs between thresholds, and by that alone
    prior = [scipy.stats.norm(0, 3).logpdf((place[j - 1] + place[j]) / 2) for j in at]
    apart = np.array(evidence) - prior - exact[at]
    np.testing.assert_allclose(apart - apart[0], 0.0, atol=0.1)


@pytest.mark.slow
def test_steps_to_other_experts_keep_to_their_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under one gate they are as wide as weighted draws from the law say, which is wider itself."""
    monkeypatch.setattr(jumps, "_FAR_SIZES", (1e-9, 1e-9))
    space, gate = given_gate(*three_levels(0.1)), jnp.array([1.0, 0.5])

    @jax.jit
    def walk(keys: jax.Array) -> jax.Array:
        held = space._held(gate)
        centre = held.law.centre
        first = jumps._Place(held, centre, space._log_density(gate, centre))

        def step(place: jumps._Place, key: jax.Array) -> tuple[jumps._Place, jax.Array]:
            place = space._refit(place, key)
            return place, place.experts

        return jax.lax.scan(step, first, keys)[1]

    @jax.jit
    def weigh(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        law = space._held(gate).law
        draws = jax.vmap(law.draw)(keys)
        density = jax.vmap(lambda one: space._log_density(gate, one) - law.log_density(one))
        return draws, density(draws)

    walked = np.asarray(walk(jax.random.split(jax.random.key(0), 4000)))
    draws, log_weights = (np.asarray(v) for v in weigh(jax.random.split(jax.random.key(1), 20000)))
    weights = scipy.special.softmax(log_weights)
    mean = weights @ draws
    deviation = np.sqrt(weights @ (draws - mean) ** 2)
    np.testing.assert_allclose(walked.std(axis=0), deviation, rtol=0.1)
    np.testing.assert_allclose((walked.mean(axis=0) - mean) / deviation, 0.0, atol=0.1)


@pytest.mark.slow
def test_whitened_coordinates_of_experts_are_their_own_inverse() -> None:
    space = given_gate(*three_levels(0.1))
    u = jnp.asarray(np.random.default_rng(0).normal(size=space.target.layout.size))
    held, z = space.hold(u)
    back, log_volume = space.join(held, z)
    np.testing.assert_allclose(back, u, rtol=1e-9, atol=1e-12)
    jacobian = jax.jacobian(lambda z: space.join(held, z)[0][len(held.gate) :])(z)
    np.testing.assert_allclose(np.linalg.slogdet(jacobian)[1], log_volume, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.5, 0.25])
def test_the_threshold_has_its_posterior(noise: float) -> None:
    """On either side of the middle, to four standard errors; with less noise two steps compete."""
    x, y = three_levels(noise)
    exact = threshold_law(x, y)
    model = bm.moe("top_k_sparse", 2, top_k=1)
    tree = bm.sample_posterior(model, x, y, key=3, n_draws=2000)
    draws = tree["posterior"].isel(expert=0, covariate=0)
    threshold = -np.asarray(draws["gate_intercept"] / draws["gate_slope"])
    for middle in (N // 3, N // 2, 2 * N // 3):
        below = threshold < (x[middle - 1] + x[middle]) / 2
        named = arviz_base.convert_to_datatree({"below": below.astype(float)})
        error = float(arviz_stats.mcse(named)["below"])
        # thresholds within the gap about the middle count on either side
        low, high = exact[:middle].sum(), exact[: middle + 1].sum()
        assert low - 4 * error < below.mean() < high + 4 * error, (middle, below.mean(), low, high)
        assert error < 0.05
