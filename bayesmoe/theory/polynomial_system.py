"""The systems of polynomial equations behind r̄(m), and a proof that r̄(m) = 2m for m >= 2.

r̄(m) is the smallest order r at which a system has no non-trivial solution. Two systems are known:

Location-scale, of Ho & Nguyen (Ann. Statist. 2016), in (p_j, a_j, b_j) for j = 1..m:

    Σ_j p_j² Σ_{n1 + 2 n2 = l} a_j^n1 b_j^n2 / (n1! n2!) = 0,    l = 1..r;

softmax, of Nguyen, Nguyen & Ho (NeurIPS 2023, arXiv 2305.03288), in (p_j, q1_j, q2_j, q3_j, q4_j)
with q1, q2 in R^d, for all multi-indices l1 in N^d and l2 in N with 1 <= |l1| + l2 <= r:

    Σ_j p_j² Σ_{α1 + α2 = l1, α3 + 2 α4 = l2 - |α2|} q1_j^α1 q2_j^α2 q3_j^α3 q4_j^α4 / α! = 0.

A solution is non-trivial if no p_j is zero and some a_j (some q3_j) is not; a version with q4_j in
the place of q3_j has the same orders from r = 4 on.

What is proved, for every m >= 2:

1. The two systems have the same r̄. The equations with l1 = 0 are the location-scale system in
   (q3, q4); and a solution of that, with q1 = q2 = 0, solves all others.
2. r̄(m) >= 2m. Let w_j = p_j², with Σ w_j = 1. The location-scale system says that Σ_j w_j
   exp(a_j t + b_j t²) = 1 + O(t^(r+1)). For the nodes a_j and weights w_j of the Gauss-Hermite rule
   with m points for N(0, 1), Σ_j w_j exp(a_j t) = exp(t²/2) + O(t^2m): with b_j = -1/2 it is a
   solution of order 2m - 1. `gauss_hermite` gives it.
3. r̄(m) <= 2m. Choose s² > 2 max|b_j|. At order r, the mixture Σ_j w_j N(a_j, s² + 2 b_j) has the
   first r moments of N(0, s²): their difference f is orthogonal to all polynomials of degree r,
   and so changes sign at least r + 1 times, or is zero. A combination of k normal densities
   changes sign at most 2(k - 1) times: taking the smallest variance off all of them leaves point
   masses, each of which adds at most two changes, and fewer densities, and convolution with a
   normal density adds no changes (total positivity). Here k <= m + 1, so that r = 2m leaves f = 0
   only: all (a_j, b_j) are zero, as distinct normal densities are linearly independent and all
   w_j are positive.

So r̄(2) = 4 and r̄(3) = 6, as published, and r̄(m) = 2m beyond, where the papers give r̄ >= 7.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bayesmoe.core.validate import check_whole


class LocationScaleSolution(NamedTuple):
    """Unknowns of the location-scale system, each of shape ``(m,)``."""

    p: np.ndarray
    a: np.ndarray
    b: np.ndarray


def location_scale_residuals(p: ArrayLike, a: ArrayLike, b: ArrayLike, order: int) -> np.ndarray:
    """The left sides of the location-scale system.

    Parameters
    ----------
    p, a, b
        Unknowns of m atoms, shape ``(..., m)``.
    order
        r, at least 1.

    Returns
    -------
    Shape ``(..., r)``, for l = 1..r.

    Raises
    ------
    ValueError
        If shapes differ or ``order`` is not a positive whole number.
    """
    order = check_whole("order", order, least=1)
    p, a, b = (np.asarray(part, float) for part in (p, a, b))
    if not p.shape == a.shape == b.shape or p.ndim < 1:
        raise ValueError(
            f"p, a and b must have one shape (..., m), got {p.shape}, {a.shape} and {b.shape}"
        )
    rows = [
        sum(p**2 * _power(a, total - 2 * n) * _power(b, n) for n in range(total // 2 + 1))
        for total in range(1, order + 1)
    ]
    return np.sum(np.stack(rows), axis=-1).transpose(*range(1, p.ndim), 0)


def softmax_residuals(
    p: ArrayLike, q1: ArrayLike, q2: ArrayLike, q3: ArrayLike, q4: ArrayLike, order: int
) -> np.ndarray:
    """The left sides of the softmax system.

    Parameters
    ----------
    p, q3, q4
        Unknowns of m atoms, shape ``(m,)``.
    q1, q2
        Unknowns with d entries each, shape ``(m, d)``.
    order
        r, at least 1.

    Returns
    -------
    One for each equation of `softmax_equations`, in that order.

    Raises
    ------
    ValueError
        If shapes do not agree or ``order`` is not a positive whole number.
    """
    p, q1, q2, q3, q4 = (np.asarray(part, float) for part in (p, q1, q2, q3, q4))
    if not p.shape == q3.shape == q4.shape == q1.shape[:1] == q2.shape[:1] or q1.ndim != 2:
        raise ValueError(
            "p, q3 and q4 must have shape (m,) and q1, q2 (m, d), got "
            f"{p.shape}, {q3.shape}, {q4.shape}, {q1.shape} and {q2.shape}"
        )
    if q1.shape != q2.shape:
        raise ValueError(f"q1 and q2 must have one shape (m, d), got {q1.shape} and {q2.shape}")
    equations = softmax_equations(q1.shape[1], order)
    return np.array([_softmax_residual(p, q1, q2, q3, q4, l1, l2) for l1, l2 in equations])


def softmax_equations(d: int, order: int) -> list[tuple[tuple[int, ...], int]]:
    """The pairs (l1, l2), l1 in N^d, with 1 <= |l1| + l2 <= order.

    Raises
    ------
    ValueError
        If ``d`` or ``order`` is not a positive whole number.
    """
    d, order = check_whole("d", d, least=1), check_whole("order", order, least=1)
    tuples = itertools.product(range(order + 1), repeat=d + 1)
    return [(index[:d], index[d]) for index in tuples if 1 <= sum(index) <= order]


def gauss_hermite(m: int) -> LocationScaleSolution:
    """A non-trivial solution of the location-scale system of m atoms at order 2m - 1.

    Raises
    ------
    ValueError
        If ``m`` is not a whole number of at least 2.
    """
    m = check_whole("m", m, least=2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(m)
    return LocationScaleSolution(np.sqrt(weights / weights.sum()), nodes, np.full(m, -0.5))


def _power(base: np.ndarray, exponent: int) -> np.ndarray:
    return base**exponent / math.factorial(exponent)


def _softmax_residual(
    p: np.ndarray,
    q1: np.ndarray,
    q2: np.ndarray,
    q3: np.ndarray,
    q4: np.ndarray,
    l1: tuple[int, ...],
    l2: int,
) -> float:
    total = np.zeros(len(p))
    for alpha1, alpha2, alpha3, alpha4 in _index_set(l1, l2):
        term = p**2 * _power(q3, alpha3) * _power(q4, alpha4)
        for i, (first, second) in enumerate(zip(alpha1, alpha2, strict=True)):
            term = term * _power(q1[:, i], first) * _power(q2[:, i], second)
        total += term
    return float(np.sum(total))


def _index_set(
    l1: tuple[int, ...], l2: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int, int]]:
    """(α1, α2, α3, α4) with α1 + α2 = l1 and α3 + 2 α4 = l2 - |α2|."""
    for alpha2 in itertools.product(*(range(entry + 1) for entry in l1)):
        left = l2 - sum(alpha2)
        alpha1 = tuple(entry - taken for entry, taken in zip(l1, alpha2, strict=True))
        for alpha4 in range(left // 2 + 1):
            yield alpha1, alpha2, left - 2 * alpha4, alpha4
