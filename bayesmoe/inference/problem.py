"""What every point estimator starts from: data, Θ, starting points; and what it maximises."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.hessian import Evaluation, evaluate_log_likelihood
from bayesmoe.core.layout import Layout
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.observations import CHUNK, Data, make_data
from bayesmoe.core.priors import Prior
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.validate import (
    as_key,
    check_estimable,
    check_estimable_with_prior,
    check_fraction,
    check_observations,
    check_whole,
)
from bayesmoe.inference.domain import check_support
from bayesmoe.inference.starts import generator, starting_points

#: variances are kept above this multiple of Var(y)
VARIANCE_FLOOR = 1e-4
N_STARTS = 12

#: with more observations than this, starts approach their maximum on a sample of `SAMPLE` of them
MANY = 2**17
SAMPLE = 2**14


class Problem(NamedTuple):
    """An objective's data and domain, in identifiable coordinates of standardised data.

    Attributes
    ----------
    layout, scaling, data
        The coordinates, and the data that they are coordinates for; more than `MANY` observations
        are in random order.
    starts
        Starting points, shape ``(S, p)``: those given, then ``n_agnostic`` others.
    lower
        Lower bounds of the coordinates, whatever the prior (-inf for none), shape ``(p,)``.
    """

    layout: Layout
    scaling: Scaling
    data: Data
    starts: Array
    lower: Array
    n_agnostic: int

    @property
    def sample(self) -> Data | None:
        """`SAMPLE` of the observations if there are `MANY`, in a storage of the same shape."""
        if int(self.data.n_observations) <= MANY:
            return None
        counts = jnp.asarray(SAMPLE), jnp.asarray(SAMPLE // CHUNK)
        return self.data._replace(n_observations=counts[0], n_chunks=counts[1])

    @property
    def log_unit(self) -> float:
        """The log-likelihood of standardised data less that of the data as given."""
        return int(self.data.n_observations) * float(np.log(self.scaling.y_scale))


def prepare(
    model: MoE,
    x: ArrayLike,
    y: ArrayLike,
    *,
    key: Array | int,
    n_starts: int,
    starts: MixingMeasure | None,
    variance_floor: float,
    prior: Prior | None = None,
) -> Problem:
    """Check the arguments of an estimator and find its starting points; see `fit_mle`.

    A proper ``prior`` that takes part settles what the data do not.

    Raises
    ------
    ValueError
        If the data or an argument cannot be used; nothing is computed then.
    """
    covariates, response = check_observations(x, y)
    layout = model.layout(covariates.shape[1])
    if prior is not None and prior.proper:
        check_estimable_with_prior(covariates, response, model.n_experts)
    else:
        check_estimable(covariates, response, layout.size)
    n_starts = check_whole("n_starts", n_starts, least=0 if starts is not None else 1)
    variance_floor = check_fraction("variance_floor, a multiple of Var(y),", variance_floor)
    if prior is not None:
        check_support(model.gate, prior, variance_floor)
    scaling = Scaling.from_data(model.gate, covariates, response)
    begin = starting_points(as_key(key), layout, scaling, covariates, response, n_starts, starts)
    lower = np.full(layout.size, -np.inf)
    lower[-model.n_experts :] = np.log(variance_floor)
    rows = np.asarray(covariates), np.asarray(response)
    if len(response) > MANY:
        order = generator(jax.random.fold_in(as_key(key), 1)).permutation(len(response))
        rows = rows[0][order], rows[1][order]
    data = make_data(*rows, scaling, layout.selection)
    return Problem(layout, scaling, data, begin, jax.device_put(lower), n_starts)


def begin_also_at(problem: Problem, x: Array, y: Array, given: MixingMeasure) -> Problem:
    """The problem of the data x ``(n, d)``, y ``(n,)`` with further starts, tried first.

    Raises
    ------
    ValueError
        If the measures given are none of the model.
    """
    no_key = jax.random.key(0)  # nothing is drawn
    first = starting_points(no_key, problem.layout, problem.scaling, x, y, 0, given)
    return problem._replace(starts=jnp.concatenate([first, problem.starts]))


def mean_objective(
    layout: Layout,
    prior: Prior | None,
    data: Data,
    coordinates: Array,
    jacobian: Array | None = None,
) -> Evaluation:
    """(log likelihood + log prior)/n with derivatives in identifiable coordinates.

    The prior is the density of the paper's parameters for a ``jacobian`` of zero, or none, and that
    of the coordinates for one: as data, so that one program finds the modes of both.
    """
    terms = evaluate_log_likelihood(layout, coordinates, data)
    if prior is not None:

        def log_prior(point: Array) -> Array:
            measure = layout.unpack(point)
            density = prior.log_density(layout.gate, measure, layout.selection)
            return (
                density if jacobian is None else density + jacobian * layout.log_jacobian(measure)
            )

        # traced once, with all derivatives: it takes as long to trace as the likelihood
        (value, gradient), along = jax.linearize(jax.value_and_grad(log_prior), coordinates)
        _, hessian = jax.vmap(along)(jnp.eye(len(coordinates)))
        terms = Evaluation(terms.value + value, terms.gradient + gradient, terms.hessian + hessian)
    return Evaluation(*(term / data.n_observations for term in terms))
