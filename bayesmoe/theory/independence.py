"""Conditions of linear independence on an activation σ, checked numerically.

With distinct gate slopes β_1, …, β_m, and as functions of X,

first order
    X^(u) σ'(β_jᵀX), σ(β_jᵀX) and 1;
second order
    these, and X^(u) X^(v) σ''(β_jᵀX), X^(u) X^(v) σ'(β_jᵀX)², X^(u) σ(β_jᵀX) σ'(β_jᵀX) and
    σ(β_jᵀX)²

are to be linearly independent. They are what the first and second derivatives in β1 and τ of
exp(σ(β1ᵀX)/τ) are made of, for every τ. This is the project's definition, after Nguyen, Akbarian &
Ho, ICML 2024 (arXiv 2401.13875).

The measure is the smallest singular value of the matrix of the functions at points of X, each
scaled to unit length, so that it lies between 0 and 1. The verdict is about the slopes and the X
that were tried. A failure at one choice refutes the condition for all slopes; that it holds is seen
at that choice only. Slopes should be in general position. With opposite slopes, `opposite_slopes`,
sigmoid and tanh fail, σ(u) + σ(-u) being constant, and so do GELU, SiLU and softplus, for which
σ(u) - σ(-u) = u, whence β (Xσ'(βX) + Xσ'(-βX)) = βX = σ(βX) - σ(-βX). A dependence across slopes
leaves the model locally identifiable all the same: each expert's logit has its own slope.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.validate import check_covariates

#: Smallest singular values above this show independence; rounding leaves about 1e-16.
HOLDS = 1e-12
#: Those below this count as zero; between the two nothing can be told.
FAILS = 1e-14


@dataclasses.dataclass(frozen=True, eq=False)
class Independence:
    """A condition, as it was found.

    Attributes
    ----------
    order
        1 or 2.
    singular_values
        Of the matrix of functions of unit length, descending, shape ``(f,)``.
    names
        Of the functions, such as ``x[0] s'(b[1] x)``.
    slopes
        The slopes tried, shape ``(m, d)``.
    relation
        The coefficients of the functions of unit length in the combination nearest to zero,
        shape ``(f,)``.
    """

    order: int
    singular_values: np.ndarray
    names: tuple[str, ...]
    slopes: np.ndarray
    relation: np.ndarray

    @property
    def smallest(self) -> float:
        """The smallest singular value."""
        return float(self.singular_values[-1])

    @property
    def verdict(self) -> str:
        """ "holds", "fails" or "cannot tell", by `HOLDS` and `FAILS`."""
        if self.smallest > HOLDS:
            return "holds"
        return "fails" if self.smallest < FAILS else "cannot tell"


def independence(
    activation: Callable[[Array], Array],
    order: int = 1,
    *,
    slopes: ArrayLike | None = None,
    x: ArrayLike | None = None,
) -> Independence:
    """The linear-independence condition of first or second order on an activation.

    Parameters
    ----------
    activation
        σ, an elementwise function in JAX; hashable, as plain functions are.
    order
        1 or 2.
    slopes
        The distinct slopes β, shape ``(m, d)`` or ``(m,)``; by default `general_slopes`.
    x
        Points of X, ``(n, d)`` or ``(n,)``; by default 512 in [0, 1].

    Raises
    ------
    ValueError
        If ``order`` is neither 1 nor 2, slopes repeat or do not fit x, there are more functions
        than points, or a function is not finite.
    """
    covariates = check_covariates((np.arange(512) + 0.5) / 512 if x is None else x)
    d = covariates.shape[1]
    tried = np.asarray(general_slopes(d) if slopes is None else slopes, dtype=float)
    tried = tried[:, None] if tried.ndim == 1 else tried
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order!r}")
    if tried.ndim != 2 or tried.shape[1] != d:
        raise ValueError(f"slopes must have shape (m, {d}) as x has, got {tried.shape}")
    if len(np.unique(tried, axis=0)) < len(tried):
        raise ValueError("slopes must be distinct: of equal slopes the functions are the same")
    names, columns = _functions(activation, order, tried, np.asarray(covariates))
    if len(names) > len(covariates):
        raise ValueError(
            f"{len(names)} functions need as many points of X at least, got {len(covariates)}; "
            "use more points or fewer slopes"
        )
    if not np.all(np.isfinite(columns)):
        raise ValueError(
            f"{names[np.argmin(np.all(np.isfinite(columns), axis=0))]} is not finite on these "
            "points; use an activation that JAX can differentiate there"
        )
    length = np.linalg.norm(columns, axis=0)
    scaled = columns / np.where(length > 0, length, 1.0)  # a function that vanishes is dependent
    _, singular, rows = np.linalg.svd(scaled, full_matrices=False)
    return Independence(order, singular, tuple(names), tried, rows[-1])


def general_slopes(n_covariates: int) -> np.ndarray:
    """Two slopes in general position, shape ``(2, d)``, which use σ on both sides of zero."""
    one = 6.0 * np.cos(np.arange(n_covariates))
    other = -4.0 * np.cos(1.7 * np.arange(n_covariates))
    return np.stack([one, other])


def opposite_slopes(n_covariates: int) -> np.ndarray:
    """The first of `general_slopes` and its negative, shape ``(2, d)``."""
    return np.stack([general_slopes(n_covariates)[0], -general_slopes(n_covariates)[0]])


def _functions(
    activation: Callable[[Array], Array], order: int, slopes: np.ndarray, x: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Names, and values at the points, shape ``(n, f)``."""
    d = x.shape[1]
    names, columns = ["1"], [np.ones(len(x))]
    for j, scores in enumerate(np.asarray(slopes @ x.T)):
        value, first, second = map(np.asarray, _derivatives(activation, scores))
        of = f"(b[{j}] x)"
        terms = [(f"s{of}", value), *((f"x[{u}] s'{of}", x[:, u] * first) for u in range(d))]
        if order == 2:
            terms.append((f"s{of}^2", value**2))
            terms += [(f"x[{u}] s s'{of}", x[:, u] * value * first) for u in range(d)]
            pairs = [(u, v) for u in range(d) for v in range(u, d)]
            terms += [(f"x[{u}] x[{v}] s''{of}", x[:, u] * x[:, v] * second) for u, v in pairs]
            terms += [(f"x[{u}] x[{v}] s'^2{of}", x[:, u] * x[:, v] * first**2) for u, v in pairs]
        names += [name for name, _ in terms]
        columns += [values for _, values in terms]
    return names, np.stack(columns, axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _derivatives(activation: Callable[[Array], Array], scores: Array) -> tuple[Array, Array, Array]:
    """σ, σ' and σ'' at scores ``(n,)``."""
    ones = jnp.ones_like(scores)

    def first(u: Array) -> Array:
        return jax.jvp(activation, (u,), (ones,))[1]

    slope, bend = jax.jvp(first, (scores,), (ones,))
    return activation(scores), slope, bend
