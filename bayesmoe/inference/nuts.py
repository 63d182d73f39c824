"""NUTS in identifiable coordinates, whitened by the curvature at a mode.

Neither coordinates nor whitening change the target: see `Target`.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.likelihood import Data, Layout, log_density, log_likelihood, make_data
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.validate import as_key, check_estimable, check_observations, check_whole
from bayesmoe.inference.point import Fit, fit_map
from bayesmoe.inference.target import Target, supports
from bayesmoe.inference.transitions import Chain, run_chain

N_CHAINS = 4
N_WARMUP = 500
N_DRAWS = 1000

# no direction is taken to be wider than this curvature allows: priors are on standardised data
_LEAST_CURVATURE = 0.1
_N_ROWS = 8  # rows whose density is watched: labels do not matter to it


class Draws(NamedTuple):
    """Posterior draws and the sampler's evidence; arrays have leading axes ``(chain, draw)``.

    Attributes
    ----------
    measures
        On the scale of the data, batch shape ``(chain, draw)``.
    log_likelihood
        Σ log g(y_j|x_j).
    row_log_density
        log g(y_j|x_j) at `rows`, shape ``(chain, draw, r)``.
    rows
        Indices of r rows spread over the data, shape ``(r,)``.
    lp
        log posterior density in the coordinates sampled, up to a constant.
    energy, acceptance_rate, n_steps, diverging
        The sampler's: Hamiltonian, mean acceptance, leapfrog steps, divergences.
    step_size
        Of each chain after warm-up, shape ``(chain,)``.
    """

    measures: MixingMeasure
    log_likelihood: Array
    row_log_density: Array
    rows: np.ndarray
    lp: Array
    energy: Array
    acceptance_rate: Array
    n_steps: Array
    diverging: Array
    step_size: Array


def sample_chains(
    model: MoE,
    x: ArrayLike,
    y: ArrayLike,
    *,
    key: Array | int = 0,
    start: Fit | None = None,
    n_chains: int = N_CHAINS,
    n_warmup: int = N_WARMUP,
    n_draws: int = N_DRAWS,
    n_threads: int | None = None,
) -> Draws:
    """NUTS draws from the posterior.

    Parameters
    ----------
    model
        From `bayesmoe.moe`, with a proper prior, each parameter's on an interval.
    x, y
        Covariates ``(n, d)`` or ``(n,)`` and response ``(n,)``.
    key
        A JAX key or a non-negative int.
    start
        A MAP fit of the same model and data; computed if not given. The chains start around the
        optimum, among those of its starts, with the largest Laplace approximation of the evidence.
    n_chains, n_warmup, n_draws
        Chains, and iterations per chain for adaptation and to keep.
    n_threads
        Chains run at a time, all cores by default. Draws do not depend on it.

    Raises
    ------
    ValueError
        If the prior is improper, or the data or an argument cannot be used; nothing is computed
        then.
    """
    check_proper(model)
    covariates, response = check_observations(x, y)
    layout = model.layout(covariates.shape[1])
    check_estimable(covariates, response, layout.size)
    n_threads = os.cpu_count() or 1 if n_threads is None else n_threads
    counts = {"n_chains": n_chains, "n_warmup": n_warmup, "n_draws": n_draws}
    for name, value in (counts | {"n_threads": n_threads}).items():
        check_whole(name, value, least=1)
    if start is not None:
        _check_start(layout, start)
    map_key, chain_key = jax.random.split(as_key(key))
    if start is None:
        start = fit_map(model, covariates, response, key=map_key)
    scaling = Scaling.from_data(model.gate, covariates, response)
    data = make_data(covariates, response, scaling)
    target = Target(layout, model.prior)
    mode, whitening = _best_mode(target, scaling, data, start)

    def run(chain: int) -> tuple[Chain, Array]:
        seed = jax.random.fold_in(chain_key, chain)
        return jax.block_until_ready(
            run_chain(target, n_warmup, n_draws, data, mode, whitening, seed)
        )

    with ThreadPoolExecutor(n_threads) as pool:
        chains = list(pool.map(run, range(n_chains)))
    stacked, step_size = jax.tree.map(lambda *leaves: jnp.stack(leaves), *chains)
    return _describe(target, scaling, data, covariates, response, stacked, step_size)


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


def _best_mode(target: Target, scaling: Scaling, data: Data, start: Fit) -> tuple[Array, Array]:
    """The mode with the largest Laplace evidence, and the inverse root of its curvature."""
    points = jax.vmap(target.layout.pack)(jax.vmap(scaling.standardise)(start.starts.measures))
    modes, whitenings, evidence = _laplace(target, data, points)
    converged = np.asarray([status.converged for status in start.starts.status])
    usable = converged if converged.any() else np.ones_like(converged)
    ranked = np.where(usable & np.isfinite(evidence), evidence, -np.inf)
    best = int(np.argmax(ranked))
    return modes[best], whitenings[best]


@functools.partial(jax.jit, static_argnums=0)
def _laplace(target: Target, data: Data, points: Array) -> tuple[Array, Array, Array]:
    """Modes, whitenings and log evidences from points ``(s, p)`` near modes."""

    def approximate(point: Array) -> tuple[Array, Array, Array]:
        u = target.unconstrain(point)
        local = target.evaluate(u, data)
        curvature, directions = jnp.linalg.eigh(-local.hessian)
        curvature = jnp.maximum(jnp.abs(curvature), _LEAST_CURVATURE)
        slope = directions.T @ local.gradient
        # MAP is not the mode in these coordinates: a Newton step, at most one sd a direction
        shift = jnp.clip(slope / jnp.sqrt(curvature), -1.0, 1.0) / jnp.sqrt(curvature)
        gain = slope @ shift - 0.5 * shift @ (curvature * shift)
        evidence = local.value + gain - 0.5 * jnp.sum(jnp.log(curvature))
        return u + directions @ shift, directions / jnp.sqrt(curvature), evidence

    return jax.lax.map(approximate, points)


def _describe(
    target: Target,
    scaling: Scaling,
    data: Data,
    x: Array,
    y: Array,
    chains: Chain,
    step_size: Array,
) -> Draws:
    rows = np.unique(np.linspace(0, len(y) - 1, _N_ROWS).astype(int))
    # indexed by NumPy: JAX would compile the indexing for every n
    watched = np.asarray(x)[rows], np.asarray(y)[rows]
    measures, total, row_log_density = _restore(target, scaling, data, *watched, chains.u)
    return Draws(
        measures=measures,
        log_likelihood=total - len(y) * jnp.log(scaling.y_scale),
        row_log_density=row_log_density,
        rows=rows,
        lp=chains.lp,
        energy=chains.energy,
        acceptance_rate=chains.acceptance_rate,
        n_steps=chains.n_steps,
        diverging=chains.diverging,
        step_size=step_size,
    )


@functools.partial(jax.jit, static_argnums=0)
def _restore(
    target: Target, scaling: Scaling, data: Data, x: Array, y: Array, u: Array
) -> tuple[MixingMeasure, Array, Array]:
    """Measures on the scale of the data, log-likelihoods of the standardised data, and rows'."""

    def restore(one: Array) -> tuple[MixingMeasure, Array, Array]:
        measure = scaling.restore(target.measure(one))
        total = log_likelihood(target.layout, target.coordinates(one), data)
        return measure, total, log_density(target.layout.gate, measure, x, y)

    return jax.lax.map(lambda chain: jax.lax.map(restore, chain), u)
