"""What ArviZ needs for model checks beside the posterior: predictions, the prior, its density."""

from __future__ import annotations

from functools import partial
from typing import Any

import arviz_base
import jax
import jax.numpy as jnp
from jax import Array
from numpyro.handlers import seed, substitute, trace
from xarray import DataTree

from bayesmoe.core.compilation import jit_unoptimised
from bayesmoe.core.density import conditional_density
from bayesmoe.core.device import each
from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.program import Sites
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.selection import take
from bayesmoe.core.validate import as_key, check_whole
from bayesmoe.diagnostics.alignment import as_sampled
from bayesmoe.diagnostics.posterior import DIMS, check_tree
from bayesmoe.inference.posterior import check_proper
from bayesmoe.theory.voronoi import as_measure

N_PRIOR_DRAWS = 1000


def sample_predictive(
    model: MoE, tree: DataTree, *, key: Array | int = 0, n_prior_draws: int = N_PRIOR_DRAWS
) -> DataTree:
    """A posterior with what ArviZ's model checks need beside it.

    Parameters
    ----------
    model
        The model that was sampled.
    tree
        From `sample_posterior`.
    key
        A JAX key or a non-negative int.
    n_prior_draws
        Draws from the prior.

    Returns
    -------
    A tree with the groups of ``tree`` and ``posterior_predictive``, responses drawn at the observed
    covariates, one data set for every draw (as many numbers as ``log_likelihood`` has);
    ``log_prior``, the log density of every free block of parameters, for power-scaling; ``prior``,
    draws of the fields of `MixingMeasure`; and ``prior_predictive``, their responses. The prior
    is that of the posterior, scaled by the data.

    Raises
    ------
    ValueError
        If ``tree`` does not come from ``model``, or an argument cannot be used.
    """
    posterior_key, prior_key, response_key = jax.random.split(as_key(key), 3)
    whole = sample_prior(model, tree, key=prior_key, n_prior_draws=n_prior_draws)
    x = jnp.asarray(tree["constant_data"]["x"].values)
    drawn = whole["prior"].to_dataset()
    prior = MixingMeasure(**{field: drawn[field].values for field in FIELDS})
    groups = {
        "posterior_predictive": {"y": simulate(model.gate, as_measure(tree), x, posterior_key)},
        "prior_predictive": {"y": simulate(model.gate, prior, x, response_key)},
    }
    coords = {"obs": tree["observed_data"]["obs"]}
    whole.update(arviz_base.from_dict(groups, dims=DIMS, coords=coords).children)
    return whole


def sample_prior(
    model: MoE, tree: DataTree, *, key: Array | int = 0, n_prior_draws: int = N_PRIOR_DRAWS
) -> DataTree:
    """A posterior with the groups ``prior`` and ``log_prior`` alone; see `sample_predictive`."""
    check_proper(model)
    check_tree(model, tree)
    n_prior_draws = check_whole("n_prior_draws", n_prior_draws, least=1)
    x = jnp.asarray(tree["constant_data"]["x"].values)
    y = jnp.asarray(tree["observed_data"]["y"].values)
    scaling = Scaling.from_data(model.gate, x, y)
    prior = _draw_prior(model, scaling, x, y, as_key(key), n_prior_draws)
    fields = {"prior": {field: getattr(prior, field) for field in FIELDS}}
    coords: dict[str, Any] = {name: tree["posterior"][name] for name in ("expert", "covariate")}
    density = _log_prior(model, scaling, x, y, as_sampled(tree, model.gate))
    whole = tree.copy()
    whole.update(arviz_base.from_dict(fields, dims=DIMS, coords=coords).children)
    whole.update(arviz_base.from_dict({"log_prior": density}).children)
    return whole


def _program(model: MoE, scaling: Scaling, x: Array, y: Array) -> None:
    """The gate's NumPyro program under the prior of the data that have this scaling."""
    selection = model.layout(x.shape[1]).selection
    sites = Sites(model.prior, scaling, model.n_experts, x.shape[1], selection)
    model.gate.program(x, y, sites)


@jit_unoptimised(static_argnums=(0, 5))
def _draw_prior(
    model: MoE, scaling: Scaling, x: Array, y: Array, key: Array, n: int
) -> MixingMeasure:
    """n draws of the program's parameters, with a leading axis of one chain."""

    def one(key: Array) -> MixingMeasure:
        sites = trace(seed(_program, key)).get_trace(model, scaling, x, y)
        values = {field: sites[field]["value"] for field in FIELDS if field in sites}
        return MixingMeasure(**{"temperature": jnp.ones(()), **values})

    return jax.tree.map(lambda leaf: leaf[None], jax.vmap(one)(jax.random.split(key, n)))


@partial(jax.jit, static_argnums=0)
def simulate(gate: Gate, measures: MixingMeasure, x: Array, key: Array) -> Array:
    """A response at every x for each measure of a batch ``(c, s)``: shape ``(c, s, n)``."""
    shape = measures.batch_shape
    keys = jax.random.split(key, shape)

    def one(item: tuple[MixingMeasure, Array]) -> Array:
        return conditional_density(gate, item[0], x).sample(item[1])

    return jax.lax.map(lambda chain: each(one, chain), (measures, keys))


@jit_unoptimised(static_argnums=0)
def _log_prior(
    model: MoE, scaling: Scaling, x: Array, y: Array, measures: MixingMeasure
) -> dict[str, Array]:
    """log p of the paper's parameters, one entry per site of the program: ``(c, s)`` each."""
    selection = model.layout(x.shape[1]).selection

    def one(measure: MixingMeasure) -> dict[str, Array]:
        values = {field: getattr(measure, field) for field in FIELDS}
        for field in ("gate_slope", "gate_intercept"):  # without the reference
            values[f"{field}_free"] = values.pop(field)[:-1]
        values["gate_slope_free"] = take(values["gate_slope_free"], selection.gate)
        if selection.experts is not None:
            values["slope_free"] = take(values.pop("slope"), selection.experts)
        program = substitute(seed(_program, 0), data=values)
        return {
            name.removesuffix("_free"): jnp.sum(site["fn"].log_prob(site["value"]))
            for name, site in trace(program).get_trace(model, scaling, x, y).items()
            if site["type"] == "sample" and not site["is_observed"]
        }

    return jax.vmap(jax.vmap(one))(measures)
