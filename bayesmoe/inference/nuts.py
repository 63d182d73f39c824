"""NUTS in charts of the identifiable coordinates around modes, whitened by the curvature there.

Neither coordinates nor charts change the target: see `Target` and `Chart`.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.compilation import compile_ahead, in_background
from bayesmoe.core.device import on_accelerator
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.observations import Data
from bayesmoe.core.validate import as_key, check_whole
from bayesmoe.inference.chart import Chart, blank_charts, make_charts
from bayesmoe.inference.outcome import row
from bayesmoe.inference.point import Fit
from bayesmoe.inference.posterior import make_posterior
from bayesmoe.inference.target import Target
from bayesmoe.inference.transitions import Chain, begin_chain, run_chain, run_chains

N_CHAINS = 4
N_WARMUP = 500
N_DRAWS = 1000


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
        log posterior density in the coordinates u of `Target`, up to a constant.
    energy, acceptance_rate, n_steps, diverging
        The sampler's: Hamiltonian, mean acceptance, leapfrog steps, divergences.
    step_size
        Of each chain after warm-up, shape ``(chain,)``.
    mode_weights
        The share of the posterior's mass near each distinct mode that was found, by Laplace's
        approximation, shape ``(m,)``.
    start_modes
        The mode at which each chain started, in proportion to their weights, shape ``(chain,)``.
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
    mode_weights: np.ndarray
    start_modes: np.ndarray


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
        modes that its starts lead to, in proportion to their mass by Laplace's approximation.
    n_chains, n_warmup, n_draws
        Chains, and iterations per chain for adaptation and to keep.
    n_threads
        Chains run at a time, all cores by default. Draws do not depend on it. An accelerator runs
        all at a time.

    Raises
    ------
    ValueError
        If the prior is improper, or the data or an argument cannot be used; nothing is computed
        then.
    """
    n_threads = os.cpu_count() or 1 if n_threads is None else n_threads
    counts = {"n_chains": n_chains, "n_warmup": n_warmup, "n_draws": n_draws}
    for name, value in (counts | {"n_threads": n_threads}).items():
        check_whole(name, value, least=1)
    map_key, chain_key = jax.random.split(as_key(key))

    def prepare(target: Target, data: Data) -> None:
        _Run(target, n_warmup, n_draws, data, chain_key).compile(n_chains)

    posterior = make_posterior(
        model,
        x,
        y,
        (n_chains, n_draws),
        key=map_key,
        start=start,
        n_threads=n_threads,
        meanwhile=prepare,
    )
    target, data, modes = posterior.target, posterior.data, posterior.modes
    # where the density jumps, its curvature says nothing of masses
    jumps = model.gate.jumps(model.n_experts)
    start_modes = np.zeros(n_chains, int) if jumps else modes.allocate(n_chains)
    run = _Run(target, n_warmup, n_draws, data, chain_key)
    charts = make_charts(target, modes.u[start_modes], modes.whitening[start_modes])
    stacked, step_size = run.sample(charts, n_threads)
    return Draws(
        **posterior.restore(stacked.u, stacked.lp)._asdict(),
        lp=stacked.lp,
        energy=stacked.energy,
        acceptance_rate=stacked.acceptance_rate,
        n_steps=stacked.n_steps,
        diverging=stacked.diverging,
        step_size=step_size,
        mode_weights=modes.weights,
        start_modes=start_modes,
    )


class _Run(NamedTuple):
    """What all chains share."""

    target: Target
    n_warmup: int
    n_draws: int
    data: Data
    key: Array

    def compile(self, n_chains: int) -> None:
        """Compile the programs that so many chains need."""
        target, n_warmup, n_draws, data, key = self
        p = target.layout.size
        if on_accelerator():
            charts = blank_charts(n_chains, p)
            compile_ahead(run_chains, target, n_warmup, n_draws, data, charts, key)
            return
        chart = row(blank_charts(1, p), 0)
        begin = target, n_warmup, data, chart, key, 0
        run = target, n_warmup, n_draws, data, chart, begin_chain.eval_shape(*begin)
        with in_background(partial(compile_ahead, begin_chain, *begin)):
            compile_ahead(run_chain, *run)

    def sample(self, charts: Chart, n_threads: int) -> tuple[Chain, Array]:
        """A chain in each of the charts: in threads, on an accelerator side by side."""
        target, n_warmup, n_draws, data, key = self
        if on_accelerator():
            return run_chains(target, n_warmup, n_draws, data, charts, key)

        def one(chain: int) -> tuple[Chain, Array]:
            chart = row(charts, chain)
            state = begin_chain(target, n_warmup, data, chart, key, chain)
            run = run_chain(target, n_warmup, n_draws, data, chart, state)
            return jax.block_until_ready(run)

        with ThreadPoolExecutor(n_threads) as pool:
            chains = list(pool.map(one, range(len(charts.mode))))
        # by NumPy: JAX would compile the stacking of each field
        stacked: tuple[Chain, Array] = jax.tree.map(
            lambda *leaves: jax.device_put(np.stack(leaves)), *jax.device_get(chains)
        )
        return stacked
