"""A model: a gate, a number of experts and a prior."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import Array
from numpy.typing import ArrayLike

from bayesmoe.core.gate import Gate
from bayesmoe.core.likelihood import Layout, log_density
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.priors import PRIORS, Prior
from bayesmoe.core.program import Sites
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.validate import check_covariates, check_observations, check_whole


@dataclasses.dataclass(frozen=True)
class MoE:
    """A Gaussian mixture of experts; make one with `bayesmoe.moe`.

    Attributes
    ----------
    gate
        The gate.
    n_experts
        k, the number of experts.
    prior
        The prior of standardised parameters.
    prior_name
        "weak", "flat", "compact", or "custom" for a prior object.
    """

    gate: Gate
    n_experts: int
    prior: Prior
    prior_name: str

    @property
    def numpyro(self) -> Callable[..., None]:
        """The NumPyro program ``program(x, y=None)`` in the paper's parameters.

        x has shape ``(n, d)`` or ``(n,)``, y ``(n,)`` or None to simulate. The prior is scaled by
        the data passed (by unit scale in the absence of y), so that it is the prior
        `sample_posterior` and `fit_map` use.
        """
        return partial(_program, self)

    def layout(self, n_covariates: int) -> Layout:
        """The flattening into identifiable coordinates for d covariates."""
        return Layout(self.gate, self.n_experts, n_covariates)

    def log_likelihood(self, measure: MixingMeasure, x: ArrayLike, y: ArrayLike) -> Array:
        """log g_G(y_j|x_j), shape ``(..., n)``, experts summed out.

        Parameters
        ----------
        measure
            A mixing measure, with any batch axes ``...``.
        x, y
            Covariates ``(n, d)`` or ``(n,)`` and response ``(n,)``.

        Raises
        ------
        ValueError
            If x or y is not finite, their shapes do not fit each other or the measure, or the
            measure has another number of experts than the model.
        """
        covariates, response = check_observations(x, y)
        if measure.n_experts != self.n_experts:
            raise ValueError(
                f"the measure has {measure.n_experts} experts, the model {self.n_experts}; "
                "use a model with as many experts as the measure"
            )
        if measure.n_covariates != covariates.shape[1]:
            raise ValueError(
                f"x has {covariates.shape[1]} covariates, the measure {measure.n_covariates}"
            )
        pointwise = partial(log_density, self.gate)
        for _ in measure.batch_shape:
            pointwise = jax.vmap(pointwise, in_axes=(0, None, None))
        return pointwise(measure, covariates, response)


def make_model(gate: Gate, n_experts: int, prior: str | Prior = "weak") -> MoE:
    """A model from a gate object; see `bayesmoe.moe` for the arguments and errors."""
    n_experts = check_whole("n_experts", n_experts, least=1)
    gate.check(n_experts)
    if isinstance(prior, Prior):
        return MoE(gate, n_experts, prior, "custom")
    if prior not in PRIORS:
        raise ValueError(
            f"unknown prior {prior!r}; choose one of {', '.join(PRIORS)} or pass a Prior"
        )
    return MoE(gate, n_experts, PRIORS[prior](gate), prior)


def _program(model: MoE, x: Any, y: Any = None) -> None:
    covariates, response = (check_covariates(x), None) if y is None else check_observations(x, y)
    scaling = Scaling.from_data(model.gate, covariates, response)
    sites = Sites(model.prior, scaling, model.n_experts, covariates.shape[1])
    model.gate.program(covariates, response, sites)
