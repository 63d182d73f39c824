"""Measured rates: log-log slopes over sample sizes with bootstrap intervals, beside theory.

The slope is that of least squares of the log of the median over replicates on log n; the mean would
be ruined by a single far local maximum. The interval is the percentile bootstrap with the replicate
as the unit, resampled independently at each sample size, whose data sets are independent. In
simulated studies (4 to 8 sizes; normal, skewed, heavy-tailed, contaminated and heteroscedastic log
losses) nominal 95 % covered 95 to 99 % with 6 to 20 replicates, where the basic bootstrap covered
82 to 99 %. With three replicates it covered 87 to 95 %, with two about 70 %.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.gate import Rate
from bayesmoe.core.validate import as_key, check_whole

#: used replicates that every sample size needs for an interval: fewer say too little about spread
MIN_REPLICATES = 3

#: slopes between -NEGLIGIBLE and NEGLIGIBLE count as flat
NEGLIGIBLE = 0.1

_ROUNDING = 1e-12  # of slopes: data that follow a power law exactly agree with it


class Slope(NamedTuple):
    """A measured exponent with its interval.

    Attributes
    ----------
    slope
        NaN if fewer than two sample sizes have a fit that can be used.
    low, high
        The interval's ends; NaN if the slope is, or if a sample size that has fits in use has fewer
        than `MIN_REPLICATES` of them.
    n_used, n_total
        Fits in use, and all fits.
    """

    slope: float
    low: float
    high: float
    n_used: int
    n_total: int


def fit_slope(
    n: ArrayLike,
    values: ArrayLike,
    used: ArrayLike,
    *,
    key: Array | int,
    level: float = 0.95,
    n_bootstrap: int = 2000,
) -> Slope:
    """The slope of log median against log n, with a percentile bootstrap interval.

    Parameters
    ----------
    n
        Distinct sample sizes, shape ``(s,)``.
    values
        Losses or errors of r replicates, shape ``(s, r)``. Values that have no logarithm (zero,
        negative, infinite, NaN) are counted but not used, like fits that are not in ``used``.
    used
        Which fits to use, those that converged, boolean of shape ``(s, r)``.
    key
        A JAX key or a non-negative int.
    level
        Of the interval, between 0 and 1.
    n_bootstrap
        The number of bootstrap samples.

    Raises
    ------
    ValueError
        If shapes do not agree, a sample size is not positive or occurs twice, or ``key``, ``level``
        or ``n_bootstrap`` is not valid.
    """
    sizes, values, used = check_series(n, values, used)
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level!r}; use 0.95 for 95 %")
    n_bootstrap = check_whole("n_bootstrap", n_bootstrap, least=1)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(as_key(key))))
    used = used & np.isfinite(values) & (values > 0)
    known = np.any(used, axis=1)
    # sorted, so that the order of replicates cannot matter
    samples = [np.sort(row[keep]) for row, keep in zip(values[known], used[known], strict=True)]
    low = high = slope = np.nan
    if len(samples) >= 2:
        slope = float(_slopes(sizes[known], [sample[None] for sample in samples])[0])
        if min(map(len, samples)) >= MIN_REPLICATES:
            drawn = [rng.choice(sample, (n_bootstrap, len(sample))) for sample in samples]
            ends = [(1 - level) / 2, (1 + level) / 2]
            low, high = map(float, np.quantile(_slopes(sizes[known], drawn), ends))
    return Slope(slope, low, high, int(np.sum(used)), used.size)


def local_slopes(
    n: ArrayLike,
    values: ArrayLike,
    used: ArrayLike,
    *,
    key: Array | int,
    level: float = 0.95,
    n_bootstrap: int = 2000,
) -> list[tuple[float, Slope]]:
    """Slopes between neighbouring sample sizes: do they settle, or is the power law a mixture?

    Parameters
    ----------
    n, values, used, key, level, n_bootstrap
        As for `fit_slope`. Neighbours share the replicates of the size between them, so that their
        slopes are negatively correlated.

    Returns
    -------
    For s sizes s - 1 pairs, sizes increasing: the geometric mean of two sizes, and their slope.

    Raises
    ------
    ValueError
        As `fit_slope`, and for fewer than two sizes.
    """
    sizes, losses, mask = check_series(n, values, used)
    if len(sizes) < 2:
        raise ValueError(f"local slopes need two sample sizes or more, got {sizes.tolist()}")
    order = np.argsort(sizes)
    keys = jax.random.split(as_key(key), len(sizes) - 1)
    found = []
    for pair, own in zip(itertools.pairwise(order), keys, strict=True):
        two = list(pair)
        slope = fit_slope(
            sizes[two], losses[two], mask[two], key=own, level=level, n_bootstrap=n_bootstrap
        )
        found.append((float(np.sqrt(np.prod(sizes[two]))), slope))
    return found


def verdict(slope: Slope, expected: Rate) -> str:
    """How a measured slope compares with the expected rate.

    Returns
    -------
    "consistent" if the interval contains the expected exponent, "faster" if it lies below,
    "slower" if it lies above, "unknown" if there is no interval or no expected exponent (NaN).
    Where none but the constant is expected, whatever is flat (`NEGLIGIBLE`) is consistent: on a ray
    the prior or the starts decide, and their influence may change a little with n.
    """
    if np.isnan([slope.low, slope.high, expected.exponent]).any():
        return "unknown"
    margin = _ROUNDING if expected.exponent else NEGLIGIBLE
    if slope.high < expected.exponent - margin:
        return "faster"
    if slope.low > expected.exponent + margin:
        return "slower"
    return "consistent"


def _slopes(sizes: np.ndarray, samples: list[np.ndarray]) -> np.ndarray:
    """Least-squares slopes ``(m,)`` of log medians; one sample ``(m, r_i)`` for each size."""
    medians = np.stack([np.log(np.median(sample, axis=1)) for sample in samples])
    centred = np.log(sizes) - np.mean(np.log(sizes))
    # differences to the first size, so that constants have slope zero without rounding
    return centred @ (medians - medians[0]) / np.sum(centred**2)


def check_series(
    n: ArrayLike, values: ArrayLike, used: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes ``(s,)``, values ``(s, r)`` and which to use; ValueError if they do not agree."""
    sizes, losses, mask = np.asarray(n, float), np.asarray(values, float), np.asarray(used)
    if losses.ndim != 2 or sizes.shape != losses.shape[:1]:
        raise ValueError(
            f"n must have shape (s,) and values (s, r), got {sizes.shape} and {losses.shape}; "
            "one row of values for each sample size"
        )
    if mask.shape != losses.shape or mask.dtype != bool:
        raise ValueError(
            f"used must be boolean of the shape of values, {losses.shape}; got {mask.dtype} of "
            f"shape {mask.shape}"
        )
    if not np.all(sizes > 0) or not np.all(np.isfinite(sizes)):
        raise ValueError(f"sample sizes n must be positive and finite, got {sizes.tolist()}")
    if len(np.unique(sizes)) < len(sizes):
        raise ValueError(
            f"sample sizes n must be distinct, got {sizes.tolist()}; put all replicates of one "
            "size in one row"
        )
    return sizes, losses, mask
