"""Posteriors as ArviZ users expect them: a DataTree with named dimensions."""

from __future__ import annotations

import functools
import json
from importlib.metadata import version
from typing import Any

import arviz_base
import jax
import numpy as np
from arviz_stats.base import array_stats
from jax import Array
from jax.typing import ArrayLike
from xarray import DataTree

from bayesmoe.core.device import each
from bayesmoe.core.gate import Gate
from bayesmoe.core.likelihood import log_density
from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.selection import Columns, Selection
from bayesmoe.core.validate import as_key, check_observations
from bayesmoe.data.frames import Frame, column_names
from bayesmoe.diagnostics.mixing import importance, mixing
from bayesmoe.inference.laplace import Resampled, resample_laplace
from bayesmoe.inference.nuts import N_CHAINS, N_DRAWS, N_WARMUP, Draws, sample_chains
from bayesmoe.inference.point import Fit

LIBRARIES = ("jax", "jaxlib", "numpyro", "arviz-base", "arviz-stats", "numpy", "xarray")

#: what every tree has
GROUPS = ("posterior", "sample_stats", "log_likelihood", "observed_data", "constant_data")

#: the dimensions of parameters and data, by name, after chain and draw
DIMS = {
    "gate_slope": ["expert", "covariate"],
    "gate_intercept": ["expert"],
    "slope": ["expert", "covariate"],
    "intercept": ["expert"],
    "variance": ["expert"],
    "x": ["obs", "covariate"],
    "y": ["obs"],
}


_SELECTIONS = ("gate_covariates", "expert_covariates")  # attributes, where any are left out


def library_versions() -> dict[str, str]:
    """The versions of the libraries that numbers depend on."""
    return {name: version(name) for name in LIBRARIES}


def sample_posterior(
    model: MoE,
    x: ArrayLike | Frame,
    y: ArrayLike,
    *,
    key: Array | int = 0,
    start: Fit | None = None,
    n_chains: int = N_CHAINS,
    n_warmup: int = N_WARMUP,
    n_draws: int = N_DRAWS,
) -> DataTree:
    """Draws from the posterior by NUTS, as an ArviZ DataTree.

    Parameters
    ----------
    model
        From `bayesmoe.moe`, with a proper prior.
    x, y
        Covariates ``(n, d)`` or ``(n,)`` and response ``(n,)``; a data frame's columns name the
        covariates.
    key
        A JAX key or a non-negative int.
    start
        A MAP fit of the same model and data to start from; computed if not given.
    n_chains, n_warmup, n_draws
        Chains, and iterations per chain for adaptation and to keep. Where draws turn out to be
        worth less than a fifth of their number, or chains disagree, those that leap begin anew
        with what the draws teach about where to leap. Where draws are worth little still, chains go
        on and keep every second transition, or every fourth (``thinning``): as many draws, which
        take two or four times as long.

    Returns
    -------
    Groups ``posterior`` (the fields of `MixingMeasure`, the paper's parameters on the scale of the
    data, reference expert included), ``sample_stats``, ``log_likelihood`` (one value per
    observation, experts summed out), ``observed_data`` and ``constant_data``, with coordinates
    ``expert``, ``covariate`` and ``obs``. Experts can swap names between draws: judge
    convergence by the attributes ``status``, ``max_rhat`` and ``min_ess``, which do not depend on
    names, or align the draws first (`bayesmoe.align`). The chains start around the modes that the
    MAP's starts lead to, in proportion to their mass (``mode_weights``; ``start_modes`` has each
    chain's). Where they can they leap between modes (``leaps``), and ``mode`` of ``sample_stats``
    has the one near which each draw is; elsewhere masses are Laplace's approximation, and
    `bayesmoe.chain_modes` names the modes in which chains stayed. The share ``mode_weight`` of the
    mass lies near modes where a chain was. Where the density jumps (top-K with K < k) masses are
    NaN, and chains start spread out over modes that are about as dense.

    Raises
    ------
    ValueError
        If the prior is improper, or the data or an argument cannot be used; nothing is computed
        then.
    """
    key, (covariates, response) = as_key(key), check_observations(x, y)
    draws = sample_chains(
        model,
        covariates,
        response,
        key=key,
        start=start,
        n_chains=n_chains,
        n_warmup=n_warmup,
        n_draws=n_draws,
    )
    evidence = mixing(draws)
    attributes = {
        "method": "nuts",
        "key": np.asarray(jax.random.key_data(key)),
        "n_warmup": n_warmup,
        "thinning": draws.thinning,
        "status": evidence.status.name.lower(),
        "max_rhat": evidence.max_rhat,
        "min_ess": evidence.min_ess,
        "divergences": evidence.divergences,
    }
    if draws.thinning > 1:  # the energy's changes are those of transitions, not of draws
        attributes["bfmi"] = float(np.min(array_stats.bfmi(draws.unthinned_energy)))
    return _tree(model, x, y, draws, _sample_stats(draws), attributes)


def sample_laplace(
    model: MoE,
    x: ArrayLike | Frame,
    y: ArrayLike,
    *,
    key: Array | int = 0,
    start: Fit | None = None,
    n_chains: int = N_CHAINS,
    n_draws: int = N_DRAWS,
) -> DataTree:
    """Draws from Laplace's approximation, resampled by importance: faster than NUTS, if it holds.

    Proposals come from Student-t laws at all modes that the MAP's starts lead to, and are resampled
    with Pareto-smoothed importance weights. The attribute ``pareto_k`` says whether to trust the
    draws: above 0.7, or if the proposals are worth fewer independent draws (``min_ess``) than are
    taken from them, ``status`` is "unreliable", and `sample_posterior` is called for.

    Parameters
    ----------
    model, x, y, key, start
        As for `sample_posterior`.
    n_chains, n_draws
        The shape of the draws, all of which are independent.

    Returns
    -------
    The groups of `sample_posterior`; of the sampler's statistics, those that exist.

    Raises
    ------
    ValueError
        If the prior is improper, the density jumps (top-K with K < k), or the data or an argument
        cannot be used; nothing is computed then.
    """
    key, (covariates, response) = as_key(key), check_observations(x, y)
    draws = resample_laplace(
        model, covariates, response, key=key, start=start, n_chains=n_chains, n_draws=n_draws
    )
    attributes = {
        "method": "laplace",
        "key": np.asarray(jax.random.key_data(key)),
        "status": importance(draws).name.lower(),
        "pareto_k": draws.pareto_k,
        "min_ess": draws.effective_size,
    }
    stats = {"lp": np.asarray(draws.lp), "log_likelihood": np.asarray(draws.log_likelihood)}
    return _tree(model, x, y, draws, stats, attributes)


def _tree(
    model: MoE,
    x: ArrayLike | Frame,
    y: ArrayLike,
    draws: Draws | Resampled,
    stats: dict[str, np.ndarray],
    attributes: dict[str, Any],
) -> DataTree:
    covariates, response = check_observations(x, y)
    names = column_names(x)
    pointwise = _pointwise(model.gate, draws.measures, covariates, response)
    # draws by importance come from all modes
    reached = np.unique(draws.near) if isinstance(draws, Draws) else slice(None)
    modes = {
        "n_modes": len(draws.mode_weights),
        "mode_weights": draws.mode_weights,
        "mode_weight": float(np.sum(draws.mode_weights[reached])),
    }
    if isinstance(draws, Draws):
        modes |= {"start_modes": draws.start_modes, "leaps": int(draws.leaps)}
    return arviz_base.from_dict(
        {
            "posterior": {field: np.asarray(getattr(draws.measures, field)) for field in FIELDS},
            "sample_stats": stats,
            "log_likelihood": {"y": np.asarray(pointwise)},
            "observed_data": {"y": np.asarray(response)},
            "constant_data": {"x": np.asarray(covariates)},
        },
        dims=DIMS,
        coords={
            "expert": np.arange(model.n_experts),
            "covariate": names or np.arange(covariates.shape[1]),
            "obs": np.arange(len(response)),
        },
        attrs={"/": {**_settings(model, covariates.shape[1]), **attributes, **modes}},
    )


@functools.partial(jax.jit, static_argnums=0)
def _pointwise(gate: Gate, measures: MixingMeasure, x: Array, y: Array) -> Array:
    """log g(y_j|x_j) of every draw, shape ``(chain, draw, n)``."""

    def one(measure: MixingMeasure) -> Array:
        return log_density(gate, measure, x, y)

    return jax.lax.map(lambda chain: each(one, chain), measures)


def describe_model(model: MoE) -> dict[str, str]:
    """What was sampled, in attributes that netCDF can hold."""
    return {
        "gate": model.gate.name,
        "gate_label": model.gate.label,
        "prior": model.prior_name,
    }


def check_tree(model: MoE, tree: DataTree) -> None:
    """Raise ValueError unless ``tree`` is whole and comes from ``model``."""
    for group in GROUPS:
        if group not in tree.children:
            raise ValueError(
                f"the tree has no group {group!r}; pass what bayesmoe.sample_posterior returned"
            )
    for name, wanted in describe_model(model).items():
        got = tree.attrs.get(name)
        if got != wanted:
            raise ValueError(
                f"the tree's {name} is {got!r}, the model's {wanted!r}; "
                "pass the model that was sampled"
            )
    k = tree["posterior"].sizes["expert"]
    if k != model.n_experts:
        raise ValueError(
            f"the tree has {k} experts, the model {model.n_experts}; "
            "pass the model that was sampled"
        )
    _check_selection(model, tree)


def _check_selection(model: MoE, tree: DataTree) -> None:
    wanted = model.selection.resolve(tree["posterior"].sizes["covariate"])
    for name, one, other in zip(_SELECTIONS, tree_selection(tree), wanted, strict=True):
        if one != other:
            raise ValueError(
                f"the tree's {name} are {_words(one)}, the model's {_words(other)}; "
                "pass the model that was sampled"
            )


def _words(columns: Columns) -> str:
    return "all" if columns is None else repr(columns)


def tree_selection(tree: DataTree) -> Selection:
    """The covariates that the gate and the experts of a posterior's model depend on."""
    found = (tree.attrs.get(name) for name in _SELECTIONS)
    return Selection(*(None if text is None else tuple(json.loads(text)) for text in found))


def _settings(model: MoE, n_covariates: int) -> dict[str, Any]:
    selection = dict(zip(_SELECTIONS, model.layout(n_covariates).selection, strict=True))
    return {
        **describe_model(model),
        **{name: json.dumps(columns) for name, columns in selection.items() if columns is not None},
        "inference_library": "numpyro",
        "bayesmoe_version": version("bayesmoe"),
        "versions": json.dumps(library_versions()),
    }


def _sample_stats(draws: Draws) -> dict[str, np.ndarray]:
    """The sampler's statistics under ArviZ's names.

    A tree of depth t has 2^t - 1 steps at most; of the transitions that lead to a draw the deepest
    counts.
    """
    depth = np.ceil(np.log2(np.asarray(draws.most_steps) + 1)).astype(int)
    return {
        "lp": np.asarray(draws.lp),
        "energy": np.asarray(draws.energy),
        "acceptance_rate": np.asarray(draws.acceptance_rate),
        "n_steps": np.asarray(draws.n_steps),
        "tree_depth": depth,
        "diverging": np.asarray(draws.n_diverging) > 0,
        "mode": draws.near,
        "step_size": np.broadcast_to(np.asarray(draws.step_size)[:, None], depth.shape),
        "log_likelihood": np.asarray(draws.log_likelihood),
    }
