"""The Voronoi loss of mixing measures, modulo what the gate cannot tell apart.

With w_i = exp(β0_i/τ), cells A_j of the fitted atoms nearest to true atom j in θ = (β1, a, b, ν),
and Δ the differences to that atom,

    D(G, G*) = inf  Σ_j [ Σ_{i∈A_j} w_i (‖Δβ1‖^e1 + |Δτ|^e2 + ‖Δa‖^e3 + |Δb|^e4 + |Δν|^e5)
                          + |Σ_{i∈A_j} w_i - w*_j| ],

the exponents being the gate's, by the size of the cell. A top-K gate has the maximum over K-subsets
of cells in place of the sum over cells. The infimum runs over the gate's gauge: permutations,
translations and flips; for the identified loss over its rays as well. Permutations change nothing
in the formula, translations and rays are the work of `_infimum`, a flip is a second truth or a
second estimate: the weights stay with their atoms, so that flipping both is another loss. So are
the signs of slopes that even activations do not know; those of the estimate are enough.

References: Nguyen, Nguyen & Ho, NeurIPS 2023 (arXiv 2305.03288); Nguyen, Akbarian, Yan & Ho, ICLR
2024 (arXiv 2309.13850); after Nguyen, Akbarian & Ho, ICML 2024 (arXiv 2401.13875).
"""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.theory._comparison import Comparison, Truth, compare
from bayesmoe.theory._definition import block_errors, evaluate, members_of
from bayesmoe.theory._infimum import infimum

__all__ = [
    "CELL_KINDS",
    "WEIGHTS",
    "Truth",
    "VoronoiResult",
    "contraction_radius",
    "voronoi",
    "voronoi_loss",
]

#: cells with one fitted atom, and with several
CELL_KINDS = ("single", "shared")
#: kinds of weights: w_i = exp(β0_i/τ), the definition, or w_i = E_X[π_i(X)]
WEIGHTS = ("intercept", "probability")


class VoronoiResult(NamedTuple):
    """The loss and what it is made of; ``...`` are the batch axes of the estimate.

    Attributes
    ----------
    loss
        D(G, G*), shape ``(...)``.
    block_errors
        Shape ``(..., 5, 2)``: for each of `PARAMETER_BLOCKS` and each of `CELL_KINDS`, the sum over
        the cells of that kind of the weighted mean of ‖Δ‖ in the cell, at the best representative;
        NaN where no cell is of that kind. The temperature is shared by all experts: its error |Δτ|
        is the same for both kinds.
    empty_cell
        Whether some true atom has no fitted atom at the best representative, shape ``(...)``.
    cell_sizes
        Fitted atoms in each cell, shape ``(..., k*)``.
    """

    loss: Array
    block_errors: Array
    empty_cell: Array
    cell_sizes: Array


def voronoi_loss(
    estimate: Any,
    truth: Truth,
    identified: bool = False,
    *,
    weights: str = "intercept",
    order: float = 1.0,
) -> Array:
    """The Voronoi loss D(G, G*); see `voronoi`, which also says what it is made of.

    Returns
    -------
    The losses, of the estimate's batch shape; ``(chain, draw)`` for a DataTree.
    """
    return voronoi(estimate, truth, identified=identified, weights=weights, order=order).loss


def voronoi(
    estimate: Any,
    truth: Truth,
    *,
    identified: bool = False,
    weights: str = "intercept",
    order: float = 1.0,
) -> VoronoiResult:
    """The Voronoi loss with its errors by block and its cells.

    Parameters
    ----------
    estimate
        A `MixingMeasure` with any batch axes, or a DataTree whose group "posterior" holds its
        fields, with dimensions ``(chain, draw, ...)``.
    truth
        The true gate, measure and law of X; a scenario.
    identified
        Take the infimum along the gate's rays, too: what is left is what data can determine. The
        same as the plain loss for gates without rays. Modulo its ray the dense-to-sparse gate is
        the softmax gate, whose powers of the norms it takes in shared cells: there the loss of a
        far-off estimate may exceed the plain one, whose powers are all ``order``.
    weights
        "intercept" for the definition, w_i = exp(β0_i/τ); it depends on which expert is the
        reference, and the loss is at most Σ w*_j if no cell is empty, since the translation of all
        β0_i may send all w_i to zero. "probability" for w_i = E_X[π_i(X)], which is the same for
        all representatives.
    order
        r >= 1 of the losses D_{1,r} of the dense-to-sparse gate, whose norms all enter to the power
        r: after Nguyen, Akbarian & Ho (ICML 2024) none of them converges at a power of n. Other
        gates, and the identified loss, have no such family.

    Notes
    -----
    A representative with an empty cell has the penalty Σ_j w*_j (1 + max_{j,l} ‖θ*_j - θ*_l‖) added
    to its loss: if there is no better one, as for k < k*, the loss is large, finite and flagged. An
    estimate with a NaN or an infinity has the loss NaN, no atom in any cell, and the flag.

    Raises
    ------
    ValueError
        If ``weights`` is unknown, ``order`` is below one, or not one where there is no family, the
        truth is a batch, a field is missing from the posterior, the
        numbers of covariates differ, or there are more than 100 000 assignments of atoms to cells.
    """
    measure = as_measure(estimate)
    check_comparable(measure, truth)
    if weights not in WEIGHTS:
        raise ValueError(f"unknown weights {weights!r}; choose one of {', '.join(WEIGHTS)}")
    _check_order(order, truth.gate, identified)
    flat, finite = flatten(measure)
    known = jax.tree_util.tree_map(lambda leaf: leaf[finite], flat)
    with np.errstate(over="ignore", invalid="ignore"):  # the loss of far-off estimates is infinite
        c = compare(
            known, truth, identified=identified, probability=weights == "probability", order=order
        )
        found = _least(truth.gate, c)
    fields, unknowns = [], (np.nan, np.nan, True, 0)
    for part, unknown in zip(found, unknowns, strict=True):
        whole = np.full((len(finite), *part.shape[1:]), unknown)
        whole[finite] = part
        fields.append(jnp.asarray(whole.reshape((*measure.batch_shape, *part.shape[1:]))))
    return VoronoiResult(*fields)


def contraction_radius(losses: ArrayLike, level: float = 0.9) -> Array:
    """The radius ε with posterior probability ``level`` that D(G, G*) <= ε.

    Parameters
    ----------
    losses
        Losses of draws, shape ``(..., chain, draw)``.
    level
        Between 0 and 1.

    Returns
    -------
    The quantiles over the last two axes, shape ``(...)``; NaN if any loss there is NaN.

    Raises
    ------
    ValueError
        If ``level`` is not between 0 and 1, or ``losses`` lacks the axes or has no draws.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level!r}; use 0.9 for 90 %")
    values = np.asarray(losses)
    if values.ndim < 2:
        raise ValueError(
            f"losses must have shape (..., chain, draw), got {values.shape}; "
            "add an axis for the one chain"
        )
    if 0 in values.shape[-2:]:
        raise ValueError(f"losses of shape {values.shape} have no draws; one at least is needed")
    quantile = partial(np.quantile, values, level, axis=(-2, -1))
    below, above = quantile(method="lower"), quantile(method="higher")
    with np.errstate(invalid="ignore"):  # infinite losses, between which it would interpolate
        between = quantile()
    return jnp.asarray(np.where((below == above) | np.isinf(above), above, between))


# ---------------------------------------------------------------- input


def as_measure(estimate: Any) -> MixingMeasure:
    """The measures of an estimate: itself, or the draws of a DataTree."""
    if isinstance(estimate, MixingMeasure):
        return estimate
    try:
        posterior = estimate["posterior"]
    except (KeyError, TypeError, IndexError):
        raise ValueError(
            f"estimate must be a MixingMeasure or a DataTree with a group 'posterior', got "
            f"{type(estimate).__name__}"
        ) from None
    missing = [field for field in FIELDS if field not in posterior]
    if missing:
        raise ValueError(
            f"the posterior lacks {', '.join(missing)}; it must hold all of {', '.join(FIELDS)}"
        )
    arrays = (posterior[field].transpose("chain", "draw", ...).values for field in FIELDS)
    return MixingMeasure(*arrays)


def check_comparable(measure: MixingMeasure, truth: Truth) -> None:
    """Raise ValueError unless the truth is single and has the measure's covariates."""
    if truth.measure.batch_shape:
        raise ValueError(
            f"the truth must be a single measure, got batch shape {truth.measure.batch_shape}; "
            "index it first"
        )
    d, d_true = measure.n_covariates, truth.measure.n_covariates
    if d != d_true:
        raise ValueError(
            f"the estimate has d = {d} covariates but the truth has {d_true}; they must agree: "
            "compare fits to data simulated from this truth"
        )


def _check_order(order: float, gate: Gate, identified: bool) -> None:
    known = isinstance(order, int | float | np.integer | np.floating)
    if not (known and 1 <= order < np.inf):
        raise ValueError(f"order must be a number of at least 1, got {order!r}")
    if order != 1 and (identified or not (gate.ray and gate.linear)):
        what = "the identified loss" if identified else f"the {gate.label} gate"
        raise ValueError(
            f"order = {order:g} is of the losses D_(1,r) of the dense-to-sparse gate, and {what} "
            "has none of them; leave it out"
        )


def flatten(measure: MixingMeasure) -> tuple[MixingMeasure, np.ndarray]:
    """The measure in NumPy with one batch axis, and where all of it is finite, ``(N,)``."""
    size, n_batch = int(np.prod(measure.batch_shape, dtype=int)), len(measure.batch_shape)
    flat = jax.tree_util.tree_map(
        lambda leaf: np.asarray(leaf).reshape(size, *leaf.shape[n_batch:]), measure
    )
    leaves = jax.tree_util.tree_leaves(flat)
    finite = [np.all(np.isfinite(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in leaves]
    return flat, np.all(finite, axis=0)


def _least(gate: Gate, comparison: Comparison) -> tuple[np.ndarray, ...]:
    """The fields of a result for N measures, at the best representative."""
    values, fields = [], []
    flips = _fitted_flips(gate, comparison.slopes), _flips(gate, comparison.true_slopes)
    for slopes, true_slopes in itertools.product(*flips):
        c = dataclasses.replace(comparison, slopes=slopes, true_slopes=true_slopes)
        scale, shift, cell = infimum(c)
        value = evaluate(c, scale, shift, cell)
        errors = np.moveaxis(block_errors(c, scale, shift, cell), -1, 0)
        sizes = np.sum(members_of(value.cell, c.n_true), axis=1).T
        values.append((value.attained, value.loss))
        fields.append((value.loss, errors, value.empty, sizes))
    first = np.lexsort(np.stack(values, axis=1), axis=0)[0]
    stacked = (np.stack(parts) for parts in zip(*fields, strict=True))
    return tuple(part[first, np.arange(len(first))] for part in stacked)


def _flips(gate: Gate, slopes: np.ndarray) -> list[np.ndarray]:
    """The true gate slopes and, where the gate has the flip, the flipped ones.

    σ(u) - σ(v) = σ(-v) - σ(-u), so with exactly two distinct slopes the flip changes no
    difference of logits and needs no change of β0.
    """
    distinct, label = np.unique(slopes, axis=0, return_inverse=True)
    if gate.flip and len(distinct) == 2:
        return [slopes, -distinct[::-1][label.ravel()]]
    return [slopes]


def _fitted_flips(gate: Gate, slopes: np.ndarray) -> list[np.ndarray]:
    """`_flips` of each of N measures, ``(k, d, N)``; those without stay as they are.

    Of an even activation all choices of signs.
    """
    if gate.even:
        signs = itertools.product([1.0, -1.0], repeat=len(slopes))
        return [np.reshape(sign, (-1, 1, 1)) * slopes for sign in signs]
    if not gate.flip:
        return [slopes]
    first = slopes[:1]
    other = np.any(slopes != first, axis=1)
    second = np.take_along_axis(slopes, np.argmax(other, axis=0)[None, None], axis=0)
    two = np.any(other, axis=0) & np.all(~other | np.all(slopes == second, axis=1), axis=0)
    if not np.any(two):
        return [slopes]
    return [slopes, np.where(two, -np.where(other[:, None], first, second), slopes)]
