"""A model: a gate, a number of experts and a prior."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from bayesmoe.core.gate import Gate
from bayesmoe.core.layout import Layout
from bayesmoe.core.likelihood import log_density
from bayesmoe.core.measure import GateParameters, MixingMeasure
from bayesmoe.core.priors import PRIORS, Prior, check_positive
from bayesmoe.core.program import Sites
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.selection import ALL, Selection, take
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
    selection
        The covariates that gate and experts depend on.
    """

    gate: Gate
    n_experts: int
    prior: Prior
    prior_name: str
    selection: Selection = ALL

    @property
    def numpyro(self) -> Callable[..., None]:
        """The NumPyro program ``program(x, y=None)`` in the paper's parameters.

        x has shape ``(n, d)`` or ``(n,)``, y ``(n,)`` or None to simulate. The prior is scaled by
        the data passed (by unit scale in the absence of y), so that it is the prior
        `sample_posterior` and `fit_map` use.
        """
        return partial(_program, self)

    def layout(self, n_covariates: int) -> Layout:
        """The flattening into identifiable coordinates for d covariates.

        Raises
        ------
        ValueError
            If the model names a covariate beyond these.
        """
        selection = self.selection.resolve(n_covariates)
        return Layout(self.gate, self.n_experts, n_covariates, selection)

    def check_all_covariates(self, task: str, n_covariates: int) -> None:
        """Raise ValueError if the model leaves covariates out, with which ``task`` cannot deal."""
        if not self.layout(n_covariates).selection.is_all:
            raise ValueError(
                f"{task} treats every slope as a parameter, but this model leaves out covariates; "
                "use a model without gate_covariates and expert_covariates"
            )

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
            measure has another number of experts than the model, or slopes of covariates that the
            model leaves out.
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
        self.layout(measure.n_covariates).check("the measure", measure)
        pointwise = partial(log_density, self.gate)
        for _ in measure.batch_shape:
            pointwise = jax.vmap(pointwise, in_axes=(0, None, None))
        return pointwise(measure, covariates, response)


def make_model(
    gate: Gate, n_experts: int, prior: str | Prior = "weak", selection: Selection = ALL
) -> MoE:
    """A model from a gate object; see `bayesmoe.moe` for the arguments and errors."""
    n_experts = check_whole("n_experts", n_experts, least=1)
    gate.check(n_experts)
    _check_gate_covariates(gate, n_experts, selection)
    if isinstance(prior, Prior):
        check_positive(gate, prior)
        return MoE(gate, n_experts, prior, "custom", selection)
    if prior not in PRIORS:
        raise ValueError(
            f"unknown prior {prior!r}; choose one of {', '.join(PRIORS)} or pass a Prior"
        )
    return MoE(gate, n_experts, PRIORS[prior](gate), prior, selection)


def _check_gate_covariates(gate: Gate, n_experts: int, selection: Selection) -> None:
    """Raise ValueError if the gate cannot leave out covariates, or not all of them."""
    columns = selection.gate
    if columns is None:
        return
    if not columns and (gate.has_temperature or gate.subset_size is not None):
        why = (
            "its temperature would be undetermined"
            if gate.has_temperature
            else "the same experts would be left out everywhere"
        )
        raise ValueError(
            f"gate_covariates = () makes gate probabilities constant, but under the {gate.label} "
            f"gate {why}; use the softmax gate"
        )
    if not _may_leave_out(gate, n_experts, columns):
        raise ValueError(
            f"the {gate.label} gate depends on covariates whose slopes are zero, so it cannot "
            "leave any out; omit gate_covariates"
        )


@functools.lru_cache(maxsize=256)
def _may_leave_out(gate: Gate, n_experts: int, columns: tuple[int, ...]) -> bool:
    """Whether a gate with zero slopes is the gate of the other covariates, at a random point."""
    rng = np.random.default_rng(0)
    d = max(columns, default=-1) + 2
    slope, free = np.zeros((n_experts, d)), slice(0, n_experts - 1)
    slope[free, columns] = rng.standard_normal((n_experts - 1, len(columns)))
    intercept, x = np.append(rng.standard_normal(n_experts - 1), 0.0), rng.standard_normal((5, d))

    def gates(slope: np.ndarray, x: np.ndarray) -> np.ndarray:
        parameters = GateParameters(*map(jnp.asarray, (slope, intercept, 1.0)))
        return np.asarray(gate.log_probabilities(parameters, jnp.asarray(x.T)))

    with jax.ensure_compile_time_eval():  # at once, even if the model is made while tracing
        whole, part = gates(slope, x), gates(take(slope, columns), take(x, columns))
    return np.allclose(whole, part, rtol=1e-9, atol=1e-9)


def _program(model: MoE, x: Any, y: Any = None) -> None:
    covariates, response = (check_covariates(x), None) if y is None else check_observations(x, y)
    scaling = Scaling.from_data(model.gate, covariates, response)
    d = covariates.shape[1]
    sites = Sites(model.prior, scaling, model.n_experts, d, model.layout(d).selection)
    model.gate.program(covariates, response, sites)
