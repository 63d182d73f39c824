"""NUTS in charts of the identifiable coordinates around modes, whitened by the curvature there.

Neither coordinates nor charts change the target: see `Target` and `Chart`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

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
from bayesmoe.inference.leaps import (
    Regions,
    blank_regions,
    run_leaping_chain,
    run_leaping_chains,
)
from bayesmoe.inference.modes import Modes, allocate
from bayesmoe.inference.outcome import row
from bayesmoe.inference.pilots import Explored, choose_pilots, explore
from bayesmoe.inference.point import Fit
from bayesmoe.inference.posterior import make_posterior
from bayesmoe.inference.starts import generator
from bayesmoe.inference.target import Target
from bayesmoe.inference.transitions import Chain, begin_chain, run_chain, run_chains

T = TypeVar("T")

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
        The share of the posterior's mass near each distinct mode that was found, shape ``(m,)``:
        by importance sampling where chains leap, by Laplace's approximation elsewhere.
    start_modes
        The mode at which each chain started, in proportion to their weights, shape ``(chain,)``.
    near
        The mode near which each draw is, where chains leap; elsewhere the one where they started.
    leaps
        Whether chains leap between modes.
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
    near: np.ndarray
    leaps: bool


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
    leap: bool = True,
) -> Draws:
    """NUTS draws from the posterior, with leaps between its modes where there are several.

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
        modes that its starts lead to, in proportion to their mass.
    n_chains, n_warmup, n_draws
        Chains, and iterations per chain for adaptation and to keep.
    n_threads
        Chains run at a time, all cores by default. Draws do not depend on it. An accelerator runs
        all at a time.
    leap
        Whether chains may leap between modes, which takes several times as long where there are.

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
    map_key, chain_key, pilot_key = jax.random.split(as_key(key), 3)

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
    run = _Run(posterior.target, n_warmup, n_draws, posterior.data, chain_key)
    explored = _explore(run, posterior.modes, n_chains, pilot_key, n_threads) if leap else None
    sample = _in_charts if explored is None else partial(_leaping, explored)
    chains, step_size, around = sample(run, posterior.modes, n_chains, n_threads)
    return Draws(
        **posterior.restore(chains.u, chains.lp)._asdict(),
        lp=chains.lp,
        energy=chains.energy,
        acceptance_rate=chains.acceptance_rate,
        n_steps=chains.n_steps,
        diverging=chains.diverging,
        step_size=step_size,
        **around._asdict(),
    )


class _Around(NamedTuple):
    """The fields of `Draws` about modes."""

    mode_weights: np.ndarray
    start_modes: np.ndarray
    near: np.ndarray
    leaps: bool


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

    def compile_leaping(self, n_chains: int) -> None:
        """Compile the program that so many leaping chains need."""
        target, n_warmup, n_draws, data, key = self
        settings = target, n_warmup, n_draws, data, blank_regions(target.layout.size), key
        if on_accelerator():
            compile_ahead(run_leaping_chains, *settings, np.zeros(n_chains, int))
        else:
            compile_ahead(run_leaping_chain, *settings, 0, 0)

    def sample(self, charts: Chart, n_threads: int) -> tuple[Chain, Array]:
        """A chain in each of the charts: in threads, on an accelerator side by side."""
        target, n_warmup, n_draws, data, key = self
        if on_accelerator():
            return run_chains(target, n_warmup, n_draws, data, charts, key)

        def one(chain: int) -> tuple[Chain, Array]:
            chart = row(charts, chain)
            state = begin_chain(target, n_warmup, data, chart, key, chain)
            return run_chain(target, n_warmup, n_draws, data, chart, state)

        return _in_threads(one, len(charts.mode), n_threads)

    def leap(
        self, regions: Regions, laws: np.ndarray, n_threads: int
    ) -> tuple[Chain, Array, Array]:
        """A leaping chain from each of the laws, likewise."""
        settings = *self[:-1], regions, self.key
        if on_accelerator():
            return run_leaping_chains(*settings, laws)

        def one(chain: int) -> tuple[Chain, Array, Array]:
            return run_leaping_chain(*settings, chain, int(laws[chain]))

        return _in_threads(one, len(laws), n_threads)


def _in_threads(one: Callable[[int], T], number: int, n_threads: int) -> T:
    """What `one` makes of each number, stacked."""
    with ThreadPoolExecutor(n_threads) as pool:
        made = list(pool.map(lambda i: jax.block_until_ready(one(i)), range(number)))
    # by NumPy: JAX would compile the stacking of each field
    stacked: T = jax.tree.map(
        lambda *leaves: jax.device_put(np.stack(leaves)), *jax.device_get(made)
    )
    return stacked


def _in_charts(
    run: _Run, modes: Modes, n_chains: int, n_threads: int
) -> tuple[Chain, Array, _Around]:
    """Chains around modes, in proportion to Laplace's weights."""
    start = np.zeros(n_chains, int) if _jumps(run.target) else allocate(modes.weights, n_chains)
    charts = make_charts(run.target, modes.u[start], modes.whitening[start])
    chains, step_size = run.sample(charts, n_threads)
    near = np.broadcast_to(start[:, None], chains.lp.shape)
    return chains, step_size, _Around(modes.weights, start, near, leaps=False)


def _leaping(
    explored: Explored, run: _Run, modes: Modes, n_chains: int, n_threads: int
) -> tuple[Chain, Array, _Around]:
    """Chains that leap between what pilots found."""
    chosen, start = explored.modes, allocate(explored.masses, n_chains)
    chains, laws, step_size = run.leap(explored.regions, start, n_threads)
    weights = modes.weights.copy()
    weights[chosen] = explored.masses * np.sum(weights[chosen])
    return chains, step_size, _Around(weights, chosen[start], chosen[laws], leaps=True)


def _explore(run: _Run, modes: Modes, n_chains: int, key: Array, n_threads: int) -> Explored | None:
    """What can be leapt between; None if nothing can."""
    chosen = choose_pilots(run.target.layout, modes, run.n_draws)
    if _jumps(run.target) or not len(chosen):
        return None
    draw_key, proposal_key = jax.random.split(key)
    charts = make_charts(run.target, modes.u[chosen], modes.whitening[chosen])
    with in_background(partial(run.compile_leaping, n_chains)):
        chains, step_size = run._replace(key=draw_key).sample(charts, n_threads)
    found = np.asarray(chains.u), np.asarray(step_size)
    return explore(run.target, run.data, chosen, charts, *found, generator(proposal_key))


def _jumps(target: Target) -> bool:
    """Whether the density jumps, so that its curvature says nothing of masses."""
    return target.layout.gate.jumps(target.layout.n_experts)
