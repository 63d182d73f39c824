"""What every posterior approximation starts from, and how its draws are given back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.compilation import compile_ahead, in_background, jit_unoptimised
from bayesmoe.core.layout import Layout
from bayesmoe.core.likelihood import log_density
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.observations import Data, make_data
from bayesmoe.core.priors import weak
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.support import supports
from bayesmoe.core.validate import check_estimable_with_prior, check_observations
from bayesmoe.inference.domain import why_no_map
from bayesmoe.inference.modes import Modes, find_modes
from bayesmoe.inference.point import Fit, fit_map
from bayesmoe.inference.problem import VARIANCE_FLOOR
from bayesmoe.inference.target import Target

_N_ROWS = 8  # rows whose density is watched: labels do not matter to it


class Sampled(NamedTuple):
    """Draws on the scale of the data, leading axes ``(chain, draw)``.

    Attributes
    ----------
    measures
        Batch shape ``(chain, draw)``.
    log_likelihood
        Σ log g(y_j|x_j).
    row_log_density
        log g(y_j|x_j) at `rows`, shape ``(chain, draw, r)``.
    rows
        Indices of r rows spread over the data, shape ``(r,)``.
    """

    measures: MixingMeasure
    log_likelihood: Array
    row_log_density: Array
    rows: np.ndarray

    @property
    def watched(self) -> np.ndarray:
        """See `without_labels`."""
        return without_labels(self.log_likelihood, self.row_log_density, self.measures.temperature)


class Posterior(NamedTuple):
    """A posterior to be sampled: the target, its data and its modes."""

    target: Target
    scaling: Scaling
    data: Data
    modes: Modes
    x: Array
    y: Array

    def restore(self, u: ArrayLike, lp: ArrayLike) -> Sampled:
        """Draws in the coordinates sampled, ``(chain, draw, p)``, of log density ``lp``."""
        rows = watched_rows(len(self.y))
        data = self.data.n_observations, *_taken(rows, self.x, self.y)
        measures, total, by_row = _restore(self.target, self.scaling, *data, u, lp)
        return Sampled(measures, total, by_row, rows)


def without_labels(
    log_likelihood: ArrayLike, row_log_density: ArrayLike, temperature: ArrayLike
) -> np.ndarray:
    """What is watched of draws, shape ``(quantity, chain, draw)``; rows are on the last axis.

    Labels do not matter to it: R-hat and effective sample size of single experts' parameters mean
    nothing when experts can swap names.
    """
    watched = [np.asarray(log_likelihood)[..., None], np.asarray(row_log_density)]
    tau = np.asarray(temperature)
    if np.any(tau != 1.0):  # it is one for gates without a temperature
        watched.append(np.log(tau)[..., None])
    quantities = np.moveaxis(np.concatenate(watched, axis=-1), -1, 0)
    return np.where(np.isfinite(quantities), quantities, np.nan)  # ranks would hide an infinity


def watched_rows(n: int) -> np.ndarray:
    """Indices of rows spread over n, whose density is watched."""
    return np.unique(np.linspace(0, n - 1, _N_ROWS).astype(int))


def _taken(rows: np.ndarray, *arrays: Array) -> tuple[np.ndarray, ...]:
    """Rows of arrays, by NumPy: JAX would compile the indexing for every n."""
    return tuple(np.asarray(array)[rows] for array in arrays)


def make_posterior(
    model: MoE,
    x: ArrayLike,
    y: ArrayLike,
    draws: tuple[int, int],
    *,
    key: Array,
    start: Fit | None,
    n_threads: int = 1,
    meanwhile: Callable[[Target, Data], object] = lambda target, data: None,
) -> Posterior:
    """Check model, data and start, a MAP fit that is computed if not given; find the modes.

    While they are sought, by ``n_threads``, a thread of its own calls ``meanwhile`` and compiles
    what restores ``draws``, so many chains of so many.

    Raises
    ------
    ValueError
        If the prior is improper, or the data or the start cannot be used; nothing is computed then.
    """
    check_proper(model)
    covariates, response = check_observations(x, y)
    layout = model.layout(covariates.shape[1])
    check_estimable_with_prior(covariates, response, model.n_experts)
    if start is not None:
        _check_start(layout, start)
    scaling = Scaling.from_data(model.gate, covariates, response)
    data = make_data(covariates, response, scaling, layout.selection)
    target = Target(layout, model.prior)
    rows = watched_rows(len(response))

    def compile_rest() -> None:
        meanwhile(target, data)
        watched = _taken(rows, covariates, response)
        u, lp = np.zeros((*draws, layout.size)), np.zeros(draws)
        compile_ahead(_restore, target, scaling, data.n_observations, *watched, u, lp)

    with in_background(compile_rest):
        if start is None:
            start = fit_map(_with_a_map(model), covariates, response, key=key)
        modes = find_modes(target, scaling, data, start, n_threads)
    return Posterior(target, scaling, data, modes, covariates, response)


def _with_a_map(model: MoE) -> MoE:
    """The model, or under the weak prior if its own has no MAP: its starts lead to modes as well.

    Coordinates that are sampled have modes where the density of the paper's parameters is not
    bounded.
    """
    if why_no_map(model.gate, model.prior, VARIANCE_FLOOR) is None:
        return model
    return dataclasses.replace(model, prior=weak(model.gate), prior_name="weak")


def check_proper(model: MoE) -> None:
    """Raise ValueError if the model's prior cannot be sampled under.

    It must be proper, since a posterior need not exist otherwise, and supported by intervals.
    """
    if not model.prior.proper:
        raise ValueError(
            f"the prior {model.prior_name!r} is improper, so a posterior need not exist; "
            "use a model with prior='weak' or a proper Prior"
        )
    supports(model.gate, model.prior)


def _check_start(layout: Layout, start: Fit) -> None:
    got = (start.measure.n_experts, start.measure.n_covariates)
    wanted = (layout.n_experts, layout.n_covariates)
    if got != wanted:
        raise ValueError(
            f"start must be a MAP fit of the same model and data, with (k, d) = {wanted}; "
            f"got (k, d) = {got}"
        )
    layout.check("start", start.measure)


@jit_unoptimised(static_argnums=0)
def _restore(
    target: Target, scaling: Scaling, n: Array, x: Array, y: Array, u: Array, lp: Array
) -> tuple[MixingMeasure, Array, Array]:
    """Measures and log-likelihoods on the scale of the n data, and rows' log densities."""

    def restore(one: Array, lp: Array) -> tuple[MixingMeasure, Array, Array]:
        measure = scaling.restore(target.measure(one))
        # what the sampler knows already: the likelihood need not be evaluated again
        total = lp - target.log_prior(one) - n * jnp.log(scaling.y_scale)
        return measure, total, log_density(target.layout.gate, measure, x, y)

    return jax.lax.map(lambda chain: jax.vmap(restore)(*chain), (u, lp))
