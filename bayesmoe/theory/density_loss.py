"""Expected distances between conditional densities, by quadrature with an error estimate.

For a measure G and the truth G*, both under the true gate,

    E_X[H(g_G(·|X), g_G*(·|X))],   H² = ½ ∫ (√g - √g*)²,
    E_X[TV],                       TV = ½ ∫ |g - g*|,
    E_X[KL(g* ‖ g)],               KL = ∫ g* log(g*/g) = ∫ (g* log(g*/g) - g* + g).

The distance of Hellinger is averaged, as the theory has it, and not its square: √E_X[H²] is
another, larger distance. With this H, H² <= TV <= √2 H at each x, and 2 H² <= KL. All integrands
are non-negative, so that small losses keep their relative accuracy.

Over y: Gauss-Legendre on panels with ends at multiples of the standard deviation about every
component of both mixtures, and about the points at which one component of a mixture overtakes
another; |g - g*| is integrated between the roots of its interpolant. With six nodes on each,
relative errors were below 2e-9 for Hellinger's square and Kullback-Leibler, and 5e-6 for total
variation, with variances between 0.001 and 10. Over x in one dimension: Gauss-Kronrod on panels
that follow the gates' switches and the crossings of experts; in more dimensions: scrambled Sobol
points.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.validate import check_points, check_whole
from bayesmoe.theory.voronoi import Truth, as_measure, check_comparable, flatten

# ends of panels over y: about means, in standard deviations; about switches, in units of log odds
_ABOUT_MEANS = np.array([0, 1, 2, 3, 4.5, 6.5, 11, -1, -2, -3, -4.5, -6.5, -11])
_ABOUT_SWITCHES = np.array([0.0, 3.0, 12.0, -3.0, -12.0])
_NODES_Y = 6
_SERIES = 1 / scipy.special.factorial(np.arange(10.0, 1.0, -1.0))  # of (e^u - 1 - u)/u²
_SAFETY_Y = 3.0  # on the error over y, which is seen at one x in seven only
# Gauss and Kronrod's rules with 3 and 7 nodes on [-1, 1]; weights from the ends to the centre
_KRONROD_NODES = np.array([0.9604912687080202, 0.7745966692414834, 0.4342437493468026, 0.0])
_KRONROD_WEIGHTS = [0.1046562260264673, 0.2684880898683334, 0.4013974147759622, 0.4509165386584741]
_GAUSS_WEIGHTS = [0.0, 5 / 9, 0.0, 8 / 9]
_CELLS_X = 1024  # of the grid on which switches are found
_SCRAMBLES = 8  # independent sets of Sobol points


class Quadrature(NamedTuple):
    """Expectations ``value`` with estimates ``error`` of their absolute error, ``(...)``."""

    value: Array
    error: Array


class DensityLosses(NamedTuple):
    """Expected distances to the true density; each has the estimate's batch shape."""

    hellinger: Quadrature
    total_variation: Quadrature
    kullback_leibler: Quadrature


def density_losses(
    estimate: Any, truth: Truth, *, x: ArrayLike | None = None, n_x: int = 64
) -> DensityLosses:
    """Expected Hellinger, total variation and Kullback-Leibler of estimates from the truth.

    Parameters
    ----------
    estimate
        A `MixingMeasure` with any batch axes, or a DataTree whose group "posterior" holds its
        fields, with dimensions ``(chain, draw, ...)``; under the true gate.
    truth
        The true gate and measure; a scenario.
    x
        Equally weighted points of the law of X, ``(m, d)``. If none are given, X is uniform on the
        unit cube, as in all scenarios.
    n_x
        About how many points of the unit cube to use for each measure, at least 16; the cost is
        proportional. Enough for d = 1, where top-K gates get more for their jumps; for d > 1 the
        error falls like 1/n_x at best, and 1024 suit a single estimate. Of no use beside ``x``.

    Returns
    -------
    Values and error estimates, of the estimate's batch shape, ``(chain, draw)`` for a DataTree. An
    estimate with a NaN or an infinity has NaN.

    Notes
    -----
    Errors are estimates, not bounds. For d = 1 they add up local differences between Kronrod's rule
    and the Gauss rule in it, those of smooth panels raised to the power 3/2 as in QUADPACK; for
    d > 1 they are 3.5 standard errors over eight scramblings (99 % for normal errors); for given x
    there is none but that of y, which is part of all of them: three times the change when panels
    have two nodes more, at one x in seven.

    Raises
    ------
    ValueError
        If the truth is a batch, a field is missing from the posterior, the numbers of covariates
        differ, ``x`` is empty, ``n_x`` is too small, or the truth's points of X lie outside the
        unit cube and no ``x`` is given.
    """
    measure = as_measure(estimate)
    check_comparable(measure, truth)
    points = _points_of(truth, x, n_x)
    flat, finite = flatten(measure)
    results = np.full((len(finite), 2, 3), np.nan)
    for i in np.flatnonzero(finite):  # one compiled call each: any number, in bounded memory
        one = jax.tree_util.tree_map(lambda leaf, i=i: leaf[i], flat)
        if isinstance(points, int):
            results[i] = _on_interval(truth.gate, one, truth.measure, points)
        else:
            results[i] = _on_points(truth.gate, one, truth.measure, points)
    shaped = jnp.asarray(results.reshape(*measure.batch_shape, 2, 3))
    return DensityLosses(*(Quadrature(shaped[..., 0, i], shaped[..., 1, i]) for i in range(3)))


def _points_of(truth: Truth, x: ArrayLike | None, n_x: int) -> Array | int:
    """Points ``(sets, m, d)`` for averages, or the number of panels of the unit interval."""
    d = truth.measure.n_covariates
    if x is not None:
        points = check_points(x)
        if points.shape[1] != d:
            raise ValueError(f"x has {points.shape[1]} covariates but the truth has {d}")
        return points[None]
    n_x = check_whole("n_x", n_x, least=16)
    law = np.asarray(truth.quadrature_x)
    if np.any((law < 0) | (law > 1)):
        raise ValueError(
            f"the truth's X lies in [{law.min():g}, {law.max():g}], not in the unit cube; "
            "give equally weighted points of its law as x"
        )
    if d == 1:
        return -(-n_x // 7)
    exponent = int(np.ceil(np.log2(n_x / _SCRAMBLES)))
    sets = [
        scipy.stats.qmc.Sobol(d, seed=seed).random_base2(exponent) for seed in range(_SCRAMBLES)
    ]
    return jnp.asarray(np.stack(sets))


# ---------------------------------------------------------------- over x


@functools.partial(jax.jit, static_argnums=0)
def _on_points(gate: Gate, measure: MixingMeasure, truth: MixingMeasure, x: Array) -> Array:
    """Values and errors ``(2, 3)`` of the means over sets of points ``(sets, m, d)``."""
    n_sets, m, d = x.shape
    rows = x.reshape(-1, d)
    local, change = _checked_distances(*_mixtures(gate, truth, measure, rows), 0)
    error = _SAFETY_Y * jnp.mean(change, axis=1)
    means = jnp.mean(local.reshape(3, n_sets, m), axis=2)
    if n_sets > 1:
        error += 3.5 * jnp.std(means, axis=1, ddof=1) / np.sqrt(n_sets)
    return jnp.stack([jnp.mean(means, axis=1), error])


@functools.partial(jax.jit, static_argnums=(0, 3))
def _on_interval(gate: Gate, measure: MixingMeasure, truth: MixingMeasure, n_panels: int) -> Array:
    """Values and errors ``(2, 3)`` of the integrals over x in [0, 1]."""
    ends = _panels(gate, measure, truth, n_panels)
    half, middle = jnp.diff(ends) / 2, (ends[1:] + ends[:-1]) / 2
    nodes = np.concatenate([-_KRONROD_NODES, _KRONROD_NODES[-2::-1]])
    kronrod, gauss = (np.array([*w, *w[-2::-1]]) for w in (_KRONROD_WEIGHTS, _GAUSS_WEIGHTS))
    x = (middle[:, None] + half[:, None] * nodes).reshape(-1, 1)
    local, change = _checked_distances(*_mixtures(gate, truth, measure, x), 3)
    local, error = local.reshape(3, -1, 7), _SAFETY_Y * 2 * half * change
    values = half * (local @ kronrod)
    means = (local @ kronrod) / 2
    spread = half * (jnp.abs(local - means[..., None]) @ kronrod)
    rough = jnp.abs(values - half * (local @ gauss)) / jnp.where(spread > 0, spread, 1.0)
    error += spread * jnp.minimum(1.0, (10 * rough) ** 1.5)
    return jnp.sum(jnp.stack([values, error]), axis=-1)


def _panels(gate: Gate, measure: MixingMeasure, truth: MixingMeasure, n_panels: int) -> Array:
    """Ends of panels of [0, 1] in ascending order, closest where the densities change most.

    What changes: log probabilities above -10, and the distances of experts, in standard deviations
    up to 6, weighted by their probabilities. The changes on a fine grid are shared out equally.
    Where the gates jump, there are ends of panels besides.
    """
    grid = jnp.linspace(0.0, 1.0, _CELLS_X + 1)
    p, q = _mixtures(gate, truth, measure, grid[:, None])
    change = jnp.full(_CELLS_X, 1.0 / _CELLS_X)
    for mixture in (p, q):
        logs = jnp.maximum(mixture.log_weights, -10.0)
        change += jnp.sum(jnp.abs(jnp.diff(logs, axis=0)), axis=1) / 10
    sd = jnp.sqrt(p.sd[:, None] ** 2 + q.sd**2)
    apart = jnp.clip((p.means[:, :, None] - q.means[:, None]) / sd, -6.0, 6.0)
    both = jnp.exp(p.log_weights[:, :, None] + q.log_weights[:, None])
    moved = jnp.abs(jnp.diff(apart, axis=0)) * jnp.maximum(both[1:], both[:-1])
    change += jnp.sum(moved, axis=(1, 2)) / 6
    total = jnp.concatenate([jnp.zeros(1), jnp.cumsum(change)])
    shared = jnp.interp(jnp.linspace(0.0, 1.0, n_panels + 1) * total[-1], total, grid)
    jumps = jnp.concatenate([_jumps(gate, measure), _jumps(gate, truth)])
    return jnp.sort(jnp.concatenate([shared, jumps])) if jumps.size else shared


def _jumps(gate: Gate, measure: MixingMeasure) -> Array:
    """The points of [0, 1] at which a gate that jumps may do so: where linear logits cross."""
    k = measure.n_experts
    if not (gate.linear and gate.jumps(k)):
        return jnp.zeros(0)
    i, j = np.triu_indices(k, 1)
    slope, intercept = measure.gate_slope[:, 0], measure.gate_intercept
    crossings = (intercept[j] - intercept[i]) / (slope[i] - slope[j])
    return jnp.where((crossings > 0) & (crossings < 1), crossings, 0.0)


# ---------------------------------------------------------------- over y


class _Mixtures(NamedTuple):
    """Normal mixtures at m points: weights and means ``(m, k)``, standard deviations ``(k,)``."""

    log_weights: Array
    means: Array
    sd: Array


def _mixtures(
    gate: Gate, truth: MixingMeasure, measure: MixingMeasure, x: Array
) -> tuple[_Mixtures, _Mixtures]:
    """The conditional laws at x ``(m, d)``: the true and the estimated ones."""
    true, estimated = (
        _Mixtures(
            gate.log_probabilities(m.gate, x.T).T,
            x @ m.slope.T + m.intercept,
            jnp.sqrt(m.variance),
        )
        for m in (truth, measure)
    )
    return true, estimated


def _checked_distances(p: _Mixtures, q: _Mixtures, first: int) -> tuple[Array, Array]:
    """`_distances`, and how two more nodes change it at every seventh point from ``first`` on."""
    ends = _ends(p, q)
    local = _distances(p, q, ends, _NODES_Y)
    some = slice(first, None, 7)
    p, q = (m._replace(log_weights=m.log_weights[some], means=m.means[some]) for m in (p, q))
    return local, jnp.abs(_distances(p, q, ends[some], _NODES_Y + 2) - local[:, some])


def _distances(p: _Mixtures, q: _Mixtures, ends: Array, n_y: int) -> Array:
    """Hellinger, total variation and KL(p ‖ q) at m points, shape ``(3, m)``."""
    half = jnp.diff(ends, axis=1)[..., None] / 2
    nodes, weights = np.polynomial.legendre.leggauss(n_y)
    y = (ends[:, 1:] + ends[:, :-1])[..., None] / 2 + half * nodes
    # the barriers: computed once, and not again for each integral
    once = jax.lax.optimization_barrier
    (peak_p, sum_p), (peak_q, sum_q) = once((_scaled_density(p, y), _scaled_density(q, y)))
    u = peak_q - peak_p + jnp.log(sum_q / sum_p)
    roots = jnp.exp(peak_p / 2) * jnp.sqrt(sum_p), jnp.exp(peak_q / 2) * jnp.sqrt(sum_q)
    u, (root_p, root_q) = once((u, roots))
    density_p, density_q = root_p**2, root_q**2
    # p (e^u - 1 - u): the series avoids cancellation where p is close to q
    far = density_q - density_p - density_p * u
    excess = jnp.where(jnp.abs(u) < 0.1, density_p * u**2 * jnp.polyval(_SERIES, u), far)
    squared = jnp.sum(half * weights * (root_p - root_q) ** 2, axis=(1, 2)) / 2
    apart = jnp.sum(half[..., 0] * _absolute(once(density_p - density_q), nodes), axis=1) / 2
    return jnp.stack([jnp.sqrt(squared), apart, jnp.sum(half * weights * excess, axis=(1, 2))])


def _scaled_density(mixtures: _Mixtures, y: Array) -> tuple[Array, Array]:
    """The density at y ``(m, panels, nodes)`` as e^a b: a and b, of the same shape."""
    log_weights, means, sd = mixtures
    constant = log_weights - jnp.log(sd) - 0.5 * np.log(2 * np.pi)
    scale = jnp.sqrt(0.5) / sd  # products are faster than quotients
    terms = [
        constant[:, i, None, None] - ((y - means[:, i, None, None]) * scale[i]) ** 2
        for i in range(len(sd))
    ]
    largest = functools.reduce(jnp.maximum, terms)
    return largest, functools.reduce(jnp.add, (jnp.exp(term - largest) for term in terms))


def _ends(p: _Mixtures, q: _Mixtures) -> Array:
    """The ends of panels over y in ascending order, ``(m, panels + 1)``."""
    spans = [means[..., None] + sd[:, None] * _ABOUT_MEANS for _, means, sd in (p, q)]
    blocks = [span.reshape(len(span), -1) for span in spans]
    reach = jnp.concatenate(blocks, axis=1)
    low, high = jnp.min(reach, axis=1, keepdims=True), jnp.max(reach, axis=1, keepdims=True)
    switches = [_switches(*mixture) for mixture in (p, q)]
    ends = jnp.concatenate([reach, *switches], axis=1)
    return jnp.sort(jnp.clip(ends, low, high), axis=1)


def _switches(log_weights: Array, means: Array, sd: Array) -> Array:
    """Ends of panels about the points where two components of a mixture are equal, ``(m, ...)``.

    There the mixture's logarithm turns as log(1 + e^u) does, however far in the tails.
    """
    blocks = [jnp.zeros((len(means), 0))]
    for i, j in itertools.combinations(range(len(sd)), 2):
        # log odds of i over j at means_i + t: a t² + b t + c
        distance = means[:, j] - means[:, i]
        a, b = 0.5 / sd[j] ** 2 - 0.5 / sd[i] ** 2, -distance / sd[j] ** 2
        c = (log_weights[:, i] - jnp.log(sd[i])) - (log_weights[:, j] - jnp.log(sd[j]))
        c += 0.5 * (distance / sd[j]) ** 2
        stable = -0.5 * (b + jnp.copysign(jnp.sqrt(b**2 - 4 * a * c), b))
        for t in (stable / a, c / stable):
            offset = t[:, None] + _ABOUT_SWITCHES / jnp.abs(2 * a * t + b)[:, None]
            # no root, or one at infinity: a panel of no width
            blocks.append(means[:, i, None] + jnp.where(jnp.isfinite(offset), offset, 0.0))
    return jnp.concatenate(blocks, axis=1)


def _absolute(values: Array, nodes: np.ndarray) -> Array:
    """∫ |f| over [-1, 1] for the polynomial f with values ``(..., n)`` at the nodes.

    Its antiderivative is known at the ends of equal cells and, in cells where the sign changes,
    at the root by cubic interpolation.
    """
    n, cells = len(nodes), np.linspace(-1.0, 1.0, 9)
    legendre = np.polynomial.legendre
    coefficients = np.linalg.inv(legendre.legvander(nodes, n - 1))
    antiderivatives = legendre.legint(np.eye(n), lbnd=-1)
    f = values @ (legendre.legvander(cells, n - 1) @ coefficients).T
    whole = values @ (legendre.legval(cells, antiderivatives).T @ coefficients).T
    left, right, step = f[..., :-1], f[..., 1:], cells[1] - cells[0]
    crossed = left * right < 0
    s = left / jnp.where(crossed, left - right, 1.0)
    part = jnp.diff(whole, axis=-1)
    mean = part / step
    slope = left * (1 - 4 * s + 3 * s**2) + right * (3 * s**2 - 2 * s) + 6 * mean * s * (1 - s)
    bend = left * (6 * s - 4) + right * (6 * s - 2) + 6 * mean * (1 - 2 * s)
    s = jnp.clip(s - slope / jnp.where(crossed, bend, 1.0), 0.0, 1.0)
    to_root = part * s**2 * (3 - 2 * s) + step * s * (1 - s) * (left * (1 - s) - right * s)
    split = jnp.abs(to_root) + jnp.abs(part - to_root)
    return jnp.sum(jnp.where(crossed, split, jnp.abs(part)), axis=-1)
