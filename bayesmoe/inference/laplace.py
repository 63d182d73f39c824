"""Laplace's approximation at the modes, put right by importance resampling.

Proposals come from a mixture of Student-t laws, one at each mode with the curvature there, and are
resampled with Pareto-smoothed importance weights (Vehtari, Simpson, Gelman, Yao & Gabry, JMLR
2024). The Pareto k of the weights says whether to trust the result: above `MAX_PARETO_K` the
proposals miss a part of the posterior.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from arviz_stats.base import array_stats
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.compilation import jit_wide
from bayesmoe.core.device import each
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.observations import Data
from bayesmoe.core.validate import as_key, check_whole
from bayesmoe.inference.mixture import Mixture
from bayesmoe.inference.point import Fit
from bayesmoe.inference.posterior import make_posterior
from bayesmoe.inference.starts import generator
from bayesmoe.inference.target import Target

#: of the importance weights: beyond, their variance is too large to be smoothed
MAX_PARETO_K = 0.7

_PROPOSALS = 4  # per draw that is returned
_LEAST_SEEN = 0.2  # of proposals, that have a ratio


class Resampled(NamedTuple):
    """Draws by importance resampling, leading axes ``(chain, draw)``, and how far to trust them.

    Attributes
    ----------
    measures, log_likelihood, row_log_density, rows, lp
        As in `Draws`. All draws are independent: chains are nothing but equal shares of them.
    pareto_k
        Of the importance weights.
    effective_size
        The number of independent draws that the weighted proposals are worth.
    mode_weights
        As in `Draws`; proposals come from all modes.
    """

    measures: MixingMeasure
    log_likelihood: Array
    row_log_density: Array
    rows: np.ndarray
    lp: Array
    pareto_k: float
    effective_size: float
    mode_weights: np.ndarray


def resample_laplace(
    model: MoE,
    x: ArrayLike,
    y: ArrayLike,
    *,
    key: Array | int = 0,
    start: Fit | None = None,
    n_chains: int,
    n_draws: int,
) -> Resampled:
    """Draws from the posterior's Laplace approximation, resampled by importance.

    Arguments and errors are those of `sample_chains`; a gate whose density jumps (top-K with K < k)
    has no such approximation and is refused.
    """
    if model.gate.jumps(model.n_experts):
        raise ValueError(
            f"the density under the {model.gate.label} gate jumps, so its curvature approximates "
            "nothing; use bayesmoe.sample_posterior"
        )
    for name, value in {"n_chains": n_chains, "n_draws": n_draws}.items():
        check_whole(name, value, least=1)
    map_key, proposal_key, resampling_key = jax.random.split(as_key(key), 3)
    posterior = make_posterior(model, x, y, (n_chains, n_draws), key=map_key, start=start)
    modes, size = posterior.modes, n_chains * n_draws
    target, mixture = posterior.target, Mixture.around(posterior.target, modes)
    u = mixture.draw(target.layout, generator(proposal_key), _PROPOSALS * size)
    lp, log_ratio = weigh(target, posterior.data, mixture, u)
    weights, pareto_k = smooth(log_ratio)
    chosen = _systematic(weights, generator(resampling_key), size)
    u, lp = u[chosen].reshape(n_chains, n_draws, -1), lp[chosen].reshape(n_chains, n_draws)
    return Resampled(
        **posterior.restore(u, lp)._asdict(),
        lp=jax.device_put(lp),
        pareto_k=pareto_k,
        effective_size=float(1 / np.sum(weights**2)),
        mode_weights=modes.weights,
    )


def weigh(
    target: Target, data: Data, mixture: Mixture, u: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log posterior densities of proposals ``(s, p)``, and their log importance ratios."""
    lp = np.asarray(_log_densities(target, data, u))
    log_ratio = lp - mixture.log_density(target.layout, u)
    # what the density has no value for (it underflows, say) has no weight
    return lp, np.where(np.isfinite(log_ratio), log_ratio, -np.inf)


@jit_wide(static_argnums=0)
def _log_densities(target: Target, data: Data, u: Array) -> Array:
    return each(lambda one: target.log_density(one, data), u)


def smooth(log_ratio: np.ndarray) -> tuple[np.ndarray, float]:
    """Pareto-smoothed importance weights ``(s,)``, which sum to one, and their Pareto k.

    Proposals whose ratio is not finite have no weight. Where they are more than four in five, no
    tail can be told: all weights are the same and Pareto k is infinite.
    """
    seen = np.isfinite(log_ratio)
    if np.mean(seen) < _LEAST_SEEN:
        return np.full(len(seen), 1 / len(seen)), np.inf
    ratio = np.where(seen, log_ratio, np.min(log_ratio[seen]))  # psislw wants finite ones
    log_weights, pareto_k = array_stats.psislw(-ratio)  # it takes log(1/ratio)
    weights = np.where(seen, np.exp(log_weights - np.max(log_weights)), 0.0)
    return weights / weights.sum(), float(pareto_k)


def _systematic(weights: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Indices in random order, each within one of its expected number of times."""
    edges = (rng.uniform() + np.arange(size)) / size
    chosen = np.searchsorted(np.cumsum(weights), edges * np.sum(weights))
    return rng.permutation(np.minimum(chosen, len(weights) - 1))
