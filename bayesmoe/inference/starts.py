"""Start protocols: `agnostic` knows the data alone, `near_truth` perturbs and splits the truth."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.priors import weak

_ROWS = 2000  # a start needs no more data than this
_ROUNDS = 8

Floats = npt.NDArray[np.float64]


def generator(key: Array) -> np.random.Generator:
    """A NumPy generator seeded by a JAX key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())


def agnostic(key: Array, gate: Gate, n_experts: int, x: Floats, y: Floats, n: int) -> MixingMeasure:
    """``n`` starts for standardised x ``(n_obs, d)`` and y ``(n_obs,)``, as a batch.

    Experts come from regression k-means, in turn from a partition of the rows along a random
    direction of x, from the rows nearest to k random rows, and from lines through k random
    subsets. Gates are draws from the weak prior; the optimiser turns them.
    """
    expert_key, gate_key = jax.random.split(key)
    rng = generator(expert_key)
    if len(y) > _ROWS:
        rows = np.sort(rng.choice(len(y), _ROWS, replace=False))
        x, y = x[rows], y[rows]
    partitions = (_by_direction, _by_neighbour, _by_lines)
    experts = [
        _regression_k_means(rng, partitions[i % 3](rng, x, y, n_experts), x, y, n_experts)
        for i in range(n)
    ]
    slope, intercept, variance = (np.stack(block) for block in zip(*experts, strict=True))
    return MixingMeasure(
        *_draw_gates(gate_key, gate, n_experts, x.shape[1], n), slope, intercept, variance
    )


def near_truth(
    key: Array, truth: MixingMeasure, n_experts: int, n_obs: int, n: int
) -> MixingMeasure:
    """``n`` perturbed, split copies of the truth: the protocol of the papers' simulations.

    Each fitted atom copies a true one, under a random surjection that keeps the reference expert
    last; the copies share their atom's weight. The jitter has a standard deviation of
    0.05 n_obs^-1/12 (experts) and 0.005 n_obs^-1/12 (gate), relative to one.

    Raises
    ------
    ValueError
        If there are fewer fitted experts than true ones.
    """
    k_true = truth.n_experts
    if n_experts < k_true:
        raise ValueError(
            f"near_truth starts need n_experts >= {k_true}, the number of true experts; "
            f"got {n_experts}"
        )
    rng = generator(key)
    scale = n_obs ** (-1 / 12)
    copies = []
    for _ in range(n):
        extra = rng.integers(k_true, size=n_experts - k_true)
        origin = np.concatenate([extra, np.arange(k_true)])
        shares = np.log(np.bincount(origin, minlength=k_true))[origin]
        copies.append(_jittered_copy(rng, truth, origin, shares, scale))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *copies)


def _jittered_copy(
    rng: np.random.Generator, truth: MixingMeasure, origin: Floats, shares: Floats, scale: float
) -> MixingMeasure:
    def jitter(values: Array, size: float) -> Floats:
        return np.asarray(values) + size * scale * rng.standard_normal(np.shape(values))

    free = (np.arange(len(origin)) < len(origin) - 1).astype(float)
    gate_slope = jitter(truth.gate_slope[origin], 0.005)
    gate_intercept = jitter(truth.gate_intercept[origin], 0.005)
    gate_intercept = gate_intercept - np.asarray(truth.temperature) * (shares - shares[-1])
    return MixingMeasure(
        gate_slope * free[:, None],
        gate_intercept * free,
        truth.temperature,
        jitter(truth.slope[origin], 0.05),
        jitter(truth.intercept[origin], 0.05),
        np.asarray(truth.variance[origin]) * np.exp(jitter(np.zeros(len(origin)), 0.05)),
    )


def _draw_gates(
    key: Array, gate: Gate, n_experts: int, n_covariates: int, n: int
) -> tuple[Array, Array, Array]:
    prior = weak(gate)
    slope_key, intercept_key, temperature_key = jax.random.split(key, 3)
    temperature = jnp.ones(n)
    if gate.has_temperature:
        temperature = prior.temperature.sample(temperature_key, (n,))
    free = n_experts - 1
    slope = prior.gate_slope.sample(slope_key, (n, free, n_covariates))
    intercept = prior.gate_intercept.sample(intercept_key, (n, free))
    if prior.intercept_per_temperature:
        intercept = intercept * temperature[:, None]
    return (
        jnp.concatenate([slope, jnp.zeros((n, 1, n_covariates))], axis=1),
        jnp.concatenate([intercept, jnp.zeros((n, 1))], axis=1),
        temperature,
    )


def _by_direction(rng: np.random.Generator, x: Floats, y: Floats, k: int) -> npt.NDArray[np.intp]:
    score = x @ rng.standard_normal(x.shape[1])
    cuts = np.sort(rng.uniform(0.1, 0.9, k - 1))
    return np.searchsorted(np.quantile(score, cuts), score)


def _by_neighbour(rng: np.random.Generator, x: Floats, y: Floats, k: int) -> npt.NDArray[np.intp]:
    points = np.column_stack([x, y])
    centres = points[rng.choice(len(y), k, replace=False)]
    return np.argmin(((points[:, None] - centres) ** 2).sum(-1), axis=1)


def _by_lines(rng: np.random.Generator, x: Floats, y: Floats, k: int) -> npt.NDArray[np.intp]:
    size = min(len(y), x.shape[1] + 2)
    residuals = []
    for _ in range(k):
        rows = rng.choice(len(y), size, replace=False)
        slope, intercept, _ = _least_squares(x[rows], y[rows])
        residuals.append(np.abs(y - x @ slope - intercept))
    return np.argmin(residuals, axis=0)


def _least_squares(x: Floats, y: Floats) -> tuple[Floats, float, float]:
    """Slope, intercept and variance, with a ridge that only matters for degenerate rows."""
    design = np.column_stack([x, np.ones(len(y))])
    gram = design.T @ design + 1e-4 * np.eye(design.shape[1])
    coefficients = np.linalg.solve(gram, design.T @ y)
    variance = float(np.mean((y - design @ coefficients) ** 2))
    return coefficients[:-1], float(coefficients[-1]), max(variance, 1e-3)


def _regression_k_means(
    rng: np.random.Generator, labels: npt.NDArray[np.intp], x: Floats, y: Floats, k: int
) -> tuple[Floats, Floats, Floats]:
    """Alternate lines for the groups and groups for the lines; starved groups restart."""
    least = x.shape[1] + 2
    for round_ in range(_ROUNDS):
        lines = []
        for i in range(k):
            rows = np.flatnonzero(labels == i)
            if len(rows) < least:
                rows = rng.choice(len(y), min(len(y), 2 * least), replace=False)
            lines.append(_least_squares(x[rows], y[rows]))
        slope, intercept, variance = (np.array(block) for block in zip(*lines, strict=True))
        if round_ < _ROUNDS - 1:
            residual = y[:, None] - x @ slope.T - intercept
            labels = np.argmin(residual**2 / variance + np.log(variance), axis=1)
    return slope, intercept, variance
