"""Standard errors of point estimates, from the curvature of what the estimate maximises.

The observed information I is the negative Hessian, at the estimate, of the log-likelihood (MLE)
or of log prior + log-likelihood in the paper's parameters (MAP), in identifiable coordinates of
standardised data. The delta method takes its inverse, or the sandwich I⁻¹ (Σ s_j s_jᵀ) I⁻¹ of the
scores s_j of the observations, to the paper's parameters on the scale of the data.

========  ==========================================================================
finite    the data (and a MAP's prior) determine the parameter
infinite  they do not: some direction that moves the parameter leaves the objective
          as it is, to second order and to rounding
NaN       the parameter rests on the variance floor, or on a bound of its prior: it is held
          there, not estimated; the errors of the others are conditional on it
zero      the parameter is fixed by convention: the reference expert's gate, the
          temperature of a gate that has none, and slopes of covariates that the
          model leaves out
========  ==========================================================================

The standardisation counts as given, and so, under a gate whose density jumps, do the sets of
active experts.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from bayesmoe.core.compilation import jit_by_size
from bayesmoe.core.density import GaussianMixture
from bayesmoe.core.hessian import Evaluation
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.observations import Data, make_data, sum_over_chunks
from bayesmoe.core.priors import Prior
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.validate import check_observations
from bayesmoe.inference.domain import domain
from bayesmoe.inference.newton import GRADIENT_TOLERANCE
from bayesmoe.inference.outcome import Status
from bayesmoe.inference.point import Fit
from bayesmoe.inference.problem import mean_objective

#: Eigenvalues up to this of the information scaled to unit diagonal (the largest lies between 1
#: and p) count as zero. An entry is a sum of n terms: rounding leaves about 2e-16 √n of it, 7e-13
#: at n = 10^7, and a hundred times that where what is observed nearly cancels what is missing.
UNDETERMINED = 1e-10

_INERT = 1e-14  # information per observation on a coordinate that is rounding alone
_LARGEST_BLUR = 1e-3  # however close the eigenvalues, more than this of a gradient is not error
_OFF = 1e-3  # a score this many of its standard deviations from zero is not rounding


@dataclasses.dataclass(frozen=True, eq=False)
class StandardErrors:
    """Standard errors of a point estimate; p identifiable coordinates.

    Attributes
    ----------
    measure
        The standard error of each of the paper's parameters in its place, on the scale of the
        data: infinite where the parameter is not determined, NaN where it rests on the variance
        floor or on a bound of its prior, zero where it is fixed by convention, or belongs to a
        covariate left out.
    covariance
        Of the identifiable coordinates of standardised data (`Layout`), shape ``(p, p)``: the
        pseudo-inverse of the information, or the sandwich made with it, zero along
        `undetermined`; NaN in the rows and columns of coordinates on the floor or a bound.
    undetermined
        An orthonormal basis of the directions, in these coordinates, along which the objective
        is flat, shape ``(q, p)``.
    sandwich
        Whether the errors allow for a model that is wrong.
    """

    measure: MixingMeasure
    covariance: np.ndarray
    undetermined: np.ndarray
    sandwich: bool


def standard_errors(
    model: MoE, fit: Fit, x: ArrayLike, y: ArrayLike, *, sandwich: bool = False
) -> StandardErrors:
    """Standard errors of a maximum likelihood or maximum a posteriori estimate.

    Parameters
    ----------
    model
        The model that was fitted.
    fit
        From `fit_mle` or `fit_map`. The information of a MAP includes its prior's.
    x, y
        The data it was fitted to: covariates ``(n, d)`` or ``(n,)`` and response ``(n,)``.
    sandwich
        Use the scores of the observations, too (Huber 1967; White 1980): the spread of the
        estimate over data sets even where the model is wrong. What a MAP owes to its prior alone
        hardly varies with the data, so that its error is then small, however wide the prior.

    Raises
    ------
    ValueError
        If the fit is not a maximum, if its numbers of experts or covariates are not those of the
        model and the data, if its gradient is not zero on these data, or if a gate parameter rests
        on a bound that moves with the temperature.
    """
    covariates, response = check_observations(x, y)
    _check_fit(model, fit, covariates.shape[1])
    layout, n = model.layout(covariates.shape[1]), len(response)
    layout.check("the fit", fit.measure)
    prior = None if np.isnan(fit.log_density) else model.prior
    scaling = Scaling.from_data(model.gate, covariates, response)
    data = make_data(covariates, response, scaling, layout.selection)
    local = jax.device_get(_local(layout, prior, data, scaling, fit.measure))
    held = _held(layout, prior, fit, local)
    _check_stationary(local.mean, held, n)
    held = held != 0
    information = -n * local.mean.hessian[~held][:, ~held]
    inverse = _pseudo_inverse(information, n, _tolerance(local, held))
    if sandwich:
        scatter = np.asarray(_scatter_of_scores(layout, data, local.coordinates))
        between = inverse.matrix @ scatter[~held][:, ~held] @ inverse.matrix
        inverse = inverse._replace(matrix=between)
    errors = _delta_method(local.to_paper[:, ~held], inverse)
    fixed, free = (np.any(local.to_paper[:, some] != 0, axis=1) for some in (held, ~held))
    errors[fixed & ~free] = np.nan
    covariance = np.full((layout.size, layout.size), np.nan)
    covariance[np.ix_(~held, ~held)] = inverse.matrix
    undetermined = np.zeros((inverse.null.shape[1], layout.size))
    undetermined[:, ~held] = inverse.null.T
    _, unravel = ravel_pytree(fit.measure)
    return StandardErrors(unravel(jnp.asarray(errors)), covariance, undetermined, sandwich)


def _check_fit(model: MoE, fit: Fit, n_covariates: int) -> None:
    if not fit.converged:
        raise ValueError(
            f"standard errors need a maximum, but this fit ended as {fit.status.name} "
            f"({fit.status.value}); fit again with more starts or fewer experts, or use fit_map "
            "under a proper prior"
        )
    if fit.measure.n_experts != model.n_experts:
        raise ValueError(
            f"the fit has {fit.measure.n_experts} experts, the model {model.n_experts}; "
            "pass the model that was fitted"
        )
    if fit.measure.n_covariates != n_covariates:
        raise ValueError(
            f"x has {n_covariates} covariates, the fit {fit.measure.n_covariates}; "
            "pass the data that were fitted"
        )


class _Local(NamedTuple):
    """The objective around the estimate, in identifiable coordinates of standardised data."""

    coordinates: Array
    mean: Evaluation  # of the mean objective
    to_paper: Array  # ∂(paper's parameters on the scale of the data)/∂coordinates, (all, p)


@jit_by_size(static_argnums=(0, 1), data=2)
def _local(
    layout: Layout,
    prior: Prior | None,
    data: Data,
    scaling: Scaling,
    measure: MixingMeasure,
) -> _Local:
    unbounded = np.full(layout.size, -np.inf)
    point = domain(layout, prior, unbounded).nearest(layout.pack(scaling.standardise(measure)))

    def paper(coordinates: Array) -> Array:
        return ravel_pytree(scaling.restore(layout.unpack(coordinates)))[0]

    return _Local(point, mean_objective(layout, prior, data, point), jax.jacfwd(paper)(point))


def _held(layout: Layout, prior: Prior | None, fit: Fit, local: _Local) -> np.ndarray:
    """How coordinates are held: -1 on a lower bound, 1 on an upper one, else 0; shape ``(p,)``.

    The variance floor is common to all variances, and where one rests on it none is smaller.
    """
    held = np.zeros(layout.size, dtype=int)
    variance, last = np.asarray(fit.measure.variance), slice(-layout.n_experts, None)
    lowest = variance <= np.min(variance) * (1 + 1e-9)
    if fit.status is Status.AT_VARIANCE_FLOOR:
        held[last] = -lowest.astype(int)
    if fit.status is Status.AT_PRIOR_BOUND:
        # where variances rest on the floor beside a bound, the gradient tells
        sinking = lowest & (local.mean.gradient[last] < -2 * GRADIENT_TOLERANCE)
        held[last] = -sinking.astype(int)
        where = domain(layout, prior, np.full(layout.size, -np.inf))
        below, above = where.on_bounds(local.coordinates)
        if np.any((below | above) & (where.powers != 0)):
            raise ValueError(
                "a gate parameter of this MAP rests on a bound of its prior that moves with the "
                "temperature in the coordinates of the errors, which have none there; sample the "
                "posterior"
            )
        held = np.where(below, -1, np.where(above, 1, held))
    return held


def _check_stationary(mean: Evaluation, held: np.ndarray, n: int) -> None:
    """Raise ValueError unless the score is zero, or points out of a bound that holds."""
    gradient = np.where(held * mean.gradient > 0, 0.0, mean.gradient)
    deviation = np.sqrt(np.maximum(np.abs(np.diag(mean.hessian)), _INERT) / n)
    off = (np.abs(gradient) > 2 * GRADIENT_TOLERANCE) & (np.abs(gradient) > _OFF * deviation)
    if not np.all(np.isfinite(gradient)) or np.any(off):
        raise ValueError(
            "the fit is not the optimum on these data: the gradient of its mean objective is "
            f"{np.max(np.abs(gradient)):.2g}, not zero; pass the model and the data of the fit"
        )


def _tolerance(local: _Local, held: np.ndarray) -> float:
    """What is left of an eigenvalue of zero by rounding, and by the distance from the optimum.

    That distance, relative to each coordinate, is how far off the information may be, relatively.
    """
    gradient, curvature = np.abs(local.mean.gradient), -np.diag(local.mean.hessian)
    known = ~held & (curvature > _INERT)
    step = np.where(known, gradient, 0.0) / np.where(known, curvature, 1.0)
    return UNDETERMINED + float(np.max(step / np.maximum(1.0, np.abs(local.coordinates))))


class _Inverse(NamedTuple):
    """A Moore-Penrose inverse and the null space that was found."""

    matrix: np.ndarray  # (p, p)
    null: np.ndarray  # an orthonormal basis, (p, q)
    unit: np.ndarray  # the conditional standard error of each coordinate, (p,)
    blur: float  # how far, as an angle in these units, the null space may be off


def _pseudo_inverse(information: np.ndarray, n: int, tolerance: float) -> _Inverse:
    """The inverse over the directions whose eigenvalue exceeds ``tolerance``.

    Eigenvalues are taken in units of each coordinate's conditional standard error, where the
    information has a unit diagonal: rounding is then comparable between coordinates.
    """
    diagonal = np.diag(information)
    inert = diagonal <= _INERT * n
    unit = 1 / np.sqrt(np.where(inert, 1.0, diagonal))
    scaled = np.where(inert[:, None] | inert, 0.0, unit[:, None] * information * unit)
    eigenvalues, vectors = np.linalg.eigh(scaled)
    flat = eigenvalues <= tolerance
    kept = unit[:, None] * vectors[:, ~flat]
    null, _ = np.linalg.qr(unit[:, None] * vectors[:, flat])
    # of all generalised inverses the one that is zero along the null space
    kept = kept - null @ (null.T @ kept)
    # an error in the matrix turns eigenvectors by its ratio to the gap (Davis & Kahan, 1970)
    blur = min(_LARGEST_BLUR, tolerance / np.min(eigenvalues[~flat], initial=1.0))
    return _Inverse((kept / eigenvalues[~flat]) @ kept.T, null, unit, blur)


def _delta_method(to_paper: np.ndarray, inverse: _Inverse) -> np.ndarray:
    """Standard errors of the paper's parameters, infinite where one moves along the null space."""
    size = np.max(np.abs(to_paper), axis=1, initial=0.0)  # whose square need not be a number
    rows = to_paper / np.where(size > 0, size, 1.0)[:, None]
    variance = np.einsum("ij,jk,ik->i", rows, inverse.matrix, rows)
    directions, _ = np.linalg.qr(inverse.null / inverse.unit[:, None])
    gradient = rows * inverse.unit
    component = np.linalg.norm(gradient @ directions, axis=1)
    moved = component > inverse.blur * np.linalg.norm(gradient, axis=1)
    return np.where(moved, np.inf, size * np.sqrt(np.maximum(variance, 0.0)))


@jit_by_size(static_argnums=0, data=1)
def _scatter_of_scores(layout: Layout, data: Data, coordinates: Array) -> Array:
    """Σ s_j s_jᵀ, chunk by chunk, for s_j the gradient of log g(y_j|x_j)."""

    def terms(index: Array) -> Array:
        def log_density(point: Array) -> Array:
            gate, slope, intercept, log_variance = layout.split(point)
            parameters = layout.gate_parameters(gate)
            log_share = layout.gate.log_probabilities(parameters, data.gate_x[index])
            means = slope @ data.expert_x[index] + intercept[:, None]
            mixture = GaussianMixture(log_share.T, means.T, jnp.sqrt(jnp.exp(log_variance)))
            return mixture.log_prob(data.y[index])

        scores = jax.jacfwd(log_density)(coordinates)
        scores = jnp.where(data.mask[index][:, None] > 0, scores, 0.0)
        return scores.T @ scores

    return sum_over_chunks(data, terms)
