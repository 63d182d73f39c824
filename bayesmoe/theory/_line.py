"""The convex problems of measures whose atoms are assigned to cells, with one covariate.

On a line the cell of a true atom is an interval. So each fitted atom has a slope sβ1_i + t that
must lie in its interval, and costs that grow with the distance from the true slope in it. The B
problems are on the last axis of every array.
"""

from __future__ import annotations

import jax
import numpy as np

from bayesmoe.theory._comparison import Comparison
from bayesmoe.theory._cuts import Ellipsoid, minimise
from bayesmoe.theory._definition import fixed_costs, kinks, members_of, own_sizes, penalties
from bayesmoe.theory._rows import Largest, Rows, Summed

_INSIDE = 1e-12  # how far from its end a slope counts as in an interval, slopes being about 1


def minima(
    c: Comparison, cell: np.ndarray, loss: np.ndarray, attained: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best of what is free of (s, t), ``(p, B)``, and whether it betters the losses known.

    For B measures with their atoms in cells ``(k, B)``; see `Value` for the two losses.
    """
    with np.errstate(all="ignore"):
        rows = _rows(c, cell)
        point, possible = _point(c, rows)
        some = np.flatnonzero(possible)
        x, found = np.zeros((len(point), len(possible))), possible.copy()
        x[:, some], found[some] = _possible_minima(
            c.take(some),
            cell[:, some],
            rows.take(some),
            point[:, some],
            (loss[some], attained[some]),
        )
    return x, found


def _possible_minima(
    c: Comparison,
    cell: np.ndarray,
    rows: Rows,
    point: np.ndarray,
    known: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """`minima` where there is a ``point``, ``(p, B)``, at which the cells are as given."""
    penalty = penalties(c, members_of(cell, c.n_true))
    loss, attained = (value - penalty for value in known)
    unit = np.broadcast_to(np.sum(c.true_weights), loss.shape)
    if c.n_counted == c.n_true:
        return _summed_minima(c, cell, rows, point, (loss, attained), unit)
    problem = _largest(c, cell, rows.cheap)
    x, found = minimise(problem, _start_of_largest(c, rows, loss), loss, unit)
    return x[:-1] / x[-1] if c.free_weight else x, found


def _summed_minima(
    c: Comparison,
    cell: np.ndarray,
    rows: Rows,
    point: np.ndarray,
    known: tuple[np.ndarray, np.ndarray],
    unit: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """`minima` where the costs of all cells count, and so W does not matter to u."""
    (loss, attained), problem = known, Summed(rows.cheap)
    if not c.free_weight:
        level = _level(c, cell, loss)
        return minimise(problem, _start(c, rows, level), level, unit)
    limit = np.sum(c.true_weights)
    level = _level(c, cell, np.minimum(loss, limit))
    x, found = minimise(problem, _start(c, rows, level), level, unit)
    # where W -> 0 is best, the best W > 0 ranks what is as good; if that is new, any will do
    any_point = np.where(limit < loss, 2 * _sums(rows, point), 0.0)
    level = np.maximum(_level(c, cell, attained), any_point)
    rest = np.flatnonzero(~found & ((loss < attained) | (limit < loss)))
    if len(rest):
        start = _start(c, rows, level)
        again = jax.tree_util.tree_map(lambda leaf: leaf[..., rest], (problem, start, level, unit))
        x[:, rest], found[rest] = minimise(*again)
    return x, found


def _rows(c: Comparison, cell: np.ndarray) -> Rows:
    slopes, true = c.slopes[:, 0], c.true_slopes[:, 0]
    moves = [slopes] * c.free_scale + [np.ones_like(slopes)] * c.free_shift
    offset = -true[cell] if c.free_scale else slopes - true[cell]
    exponents = c.exponents[own_sizes(cell)]
    low, high = _intervals(c, cell)
    rows = Rows(np.stack(moves, axis=1), offset, exponents[..., 0], c.weights, low, high)
    return _with_temperatures(c, rows, exponents[..., 1]) if c.free_scale else rows


def _with_temperatures(c: Comparison, rows: Rows, exponents: np.ndarray) -> Rows:
    """With rows sτ - τ*, one if all atoms count with the same exponent, else k; and with s >= 0."""
    weights = c.weights
    if c.n_counted == c.n_true and len(set(c.exponents[1:, 1])) == 1:
        weights, exponents = np.sum(weights, axis=0, keepdims=True), exponents[:1]
    offset = np.full_like(weights, -c.true_temperature)
    temperatures = _scale_rows(rows, c.temperatures, weights, low=-np.inf)
    temperatures = temperatures._replace(offset=offset, exponents=exponents)
    positive = _scale_rows(rows, 1.0, np.zeros_like(weights[:1]), low=0.0)
    parts = zip(rows, temperatures, positive, strict=True)
    return Rows(*(np.concatenate(part) for part in parts))


def _scale_rows(like: Rows, factor: np.ndarray | float, weights: np.ndarray, *, low: float) -> Rows:
    """Rows of residuals ``factor`` times s, which must not be below ``low``."""
    basis = np.zeros((len(weights), *like.basis.shape[1:]))
    basis[:, 0] = factor
    zeros, ones = np.zeros_like(weights), np.ones_like(weights)
    return Rows(basis, zeros, ones, weights, zeros + low, np.inf * ones)


def _intervals(c: Comparison, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each atom's slope is no nearer to any other true one than to its own, as residuals.

    With gap = β1*_l - β1*_j: 2 gap·residual <= gap² + distance²_l - distance²_j, by ‖Δ‖².
    """
    true = c.true_slopes[:, 0]
    low, high = np.full(cell.shape, -np.inf), np.full(cell.shape, np.inf)
    own = np.take_along_axis(c.distances, cell[:, None], axis=1)[:, 0]
    for j in range(c.n_true):
        gap, farther = true[j] - true[cell], c.distances[:, j] - own
        end = (gap + farther / gap) / 2
        low = np.maximum(low, np.where(gap < 0, end, -np.inf))
        high = np.minimum(high, np.where(gap > 0, end, np.inf))
        high = np.where((gap == 0) & (farther < 0), -np.inf, high)  # no slope would help
    largest = np.max(np.abs(c.slopes), axis=(0, 1)) + np.max(np.abs(true))
    return low + _margin(low, largest), high - _margin(high, largest)


def _margin(end: np.ndarray, largest: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(end), _INSIDE * (largest + np.abs(end)), 0.0)


def _level(c: Comparison, cell: np.ndarray, attained: np.ndarray) -> np.ndarray:
    """The sum of rows at which the loss at the best W > 0 is ``attained``.

    At each kink W the loss is W (sum + fixed) + Σ_j |W mass_j - target_j|, and least at one.
    """
    fixed, masses, targets = _cells(c, cell)
    level = -np.inf
    for factor in kinks(c, fixed, masses) if c.free_weight else [1.0]:
        apart = np.sum(np.abs(factor * masses - targets), axis=0)
        level = np.maximum(level, (attained - apart) / factor)
    return level - np.sum(fixed, axis=0)


def _sums(rows: Rows, u: np.ndarray) -> np.ndarray:
    """The sums of all rows at u, ``(B,)``."""
    residual = np.abs(np.sum(rows.basis * u, axis=1) + rows.offset)
    return np.sum(rows.weights * residual**rows.exponents, axis=0)


def _point(c: Comparison, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Points u with all slopes in their intervals, near no move, and whether there are any."""
    k, slopes = len(c.slopes), c.slopes[:, 0]
    low, high = rows.low[:k] - rows.offset[:k], rows.high[:k] - rows.offset[:k]
    possible, parts = np.ones(slopes.shape[1], dtype=bool), []
    if c.free_scale:
        if c.free_shift:  # for an s there is a t if no two intervals exclude each other
            i, other = np.indices((k, k)).reshape(2, -1)
            bounds = slopes[i] - slopes[other], low[i] - high[other], high[i] - low[other]
        else:
            bounds = slopes, low, high
        scale, possible = _clipped(*bounds)
        parts.append(scale)
        low, high = low - scale * slopes, high - scale * slopes
    if c.free_shift:
        lowest, highest = np.max(low, axis=0), np.min(high, axis=0)
        parts.append(np.clip(0.0, lowest, highest))
        possible = possible & ((lowest <= highest) | c.free_scale)
    return np.stack(parts), possible


def _clipped(
    slopes: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The s > 0 next to one with low <= slopes s <= high, and whether there is any."""
    ends, flat = (low / slopes, high / slopes), slopes == 0
    least = np.max(np.where(flat, 0.0, np.minimum(*ends)), axis=0)
    most = np.min(np.where(flat, np.inf, np.maximum(*ends)), axis=0)
    possible = (least <= most) & (most > 0) & np.all(~flat | ((low <= 0) & (high >= 0)), axis=0)
    return np.clip(1.0, np.maximum(least, _INSIDE), most), possible


def _cells(c: Comparison, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fixed costs and weights of the cells at W = 1, and the true weights, ``(k*, B)``."""
    members = members_of(cell, c.n_true)
    fixed = np.sum(np.where(members, c.weights * fixed_costs(c, cell), 0.0), axis=1)
    masses = np.sum(np.where(members, c.weights, 0.0), axis=1)
    return fixed, masses, np.broadcast_to(c.true_weights[:, None], masses.shape)


def _start(c: Comparison, rows: Rows, level: np.ndarray) -> Ellipsoid:
    """Holds all u at which no row costs more than ``level``."""
    if rows.basis.shape[1] == 1:
        return _interval(rows, level)
    one = _heaviest(c, rows)
    return _box(one, -one.offset, (level / one.weights) ** (1 / one.exponents))


def _heaviest(c: Comparison, rows: Rows) -> Rows:
    """As many rows as there are variables: of the heaviest atom, and of its temperature."""
    k, atom, which = len(c.slopes), np.argmax(c.weights, axis=0), []
    if c.free_scale:
        which.append(k + atom % (len(rows.offset) - k - 1))
    if c.free_shift:
        which.append(atom)
    index, at = np.stack(which), np.arange(len(atom))
    basis = np.stack([rows.basis[row, :, at].T for row in which])
    return Rows(basis, *(part[index, at] for part in rows[1:]))


def _box(rows: Rows, centre: np.ndarray, reach: np.ndarray) -> Ellipsoid:
    """Holds all u with |basis u - centre| <= reach, as many rows as variables."""
    inverse = np.moveaxis(np.linalg.inv(np.moveaxis(rows.basis, -1, 0)), 0, -1)
    axes = np.sqrt(len(reach)) * inverse * reach
    return Ellipsoid(np.sum(inverse * centre, axis=1), axes)


def _interval(rows: Rows, level: np.ndarray) -> Ellipsoid:
    """Where one variable may lie: where no row costs more than ``level``, nor is out of its own."""
    reach, basis = (level / rows.weights) ** (1 / rows.exponents), rows.basis[:, 0]
    ends = (np.maximum(rows.low, -reach), np.minimum(rows.high, reach))
    ends = tuple((end - rows.offset) / basis for end in ends)
    low = np.max(np.where(basis == 0, -np.inf, np.minimum(*ends)), axis=0)
    high = np.min(np.where(basis == 0, np.inf, np.maximum(*ends)), axis=0)
    return Ellipsoid(((low + high) / 2)[None], ((high - low) / 2)[None, None])


def _largest(c: Comparison, cell: np.ndarray, rows: Rows) -> Largest:
    members = members_of(cell, c.n_true)
    if c.free_scale:
        members = np.concatenate([members, members, np.zeros_like(members[:, :1])], axis=1)
    return Largest(rows, members, *_cells(c, cell), c.n_counted, c.free_weight)


def _start_of_largest(c: Comparison, rows: Rows, level: np.ndarray) -> Ellipsoid:
    """Holds all (Wu, W), or u, at which the sum is at most ``level``.

    The K costliest of k* cells cost at least K/k* of all, and all at least |Σ weights - Σ targets|.
    """
    if not c.free_weight:
        return _start(c, rows, level)
    most = np.sum(c.true_weights) + level * c.n_true / c.n_counted
    most = most / np.sum(c.weights, axis=0)  # of W
    one = _heaviest(c, rows)
    # |Wu·basis + W offset| = W |residual|, at a cost of W weight |residual|^exponent
    reach = most ** (1 - 1 / one.exponents) * (level / one.weights) ** (1 / one.exponents)
    p = len(reach)
    inner = _box(one, -one.offset, reach)
    half = most / 2
    axes = np.zeros((p + 1, p + 1, len(level)))
    axes[:p, :p], axes[:p, p], axes[p, p] = inner.axes, half * inner.centre, half
    axes *= np.sqrt((p + 1) / np.append(np.full(p, p), 1.0))[:, None]
    return Ellipsoid(np.concatenate([half * inner.centre, [half]]), axes)
