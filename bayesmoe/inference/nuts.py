"""NUTS in charts of the identifiable coordinates around modes, whitened by the curvature there.

Neither coordinates nor charts change the target: see `Target` and `Chart`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.compilation import in_background
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.observations import Data
from bayesmoe.core.validate import as_key, check_whole
from bayesmoe.inference.chart import make_charts
from bayesmoe.inference.cover import Cover
from bayesmoe.inference.kernel import Chain, Length
from bayesmoe.inference.modes import Modes, allocate, spread_out
from bayesmoe.inference.patience import Sample, sample_patiently
from bayesmoe.inference.pilots import candidates_for_pilots, send_pilots
from bayesmoe.inference.point import Fit
from bayesmoe.inference.population import cover
from bayesmoe.inference.posterior import Sampled, make_posterior
from bayesmoe.inference.runs import InCharts, Leaping, Run
from bayesmoe.inference.starts import generator
from bayesmoe.inference.target import Target

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
    energy, acceptance_rate, n_steps, most_steps, n_diverging
        The sampler's: Hamiltonian, mean acceptance, leapfrog steps in all and in one transition,
        divergent transitions.
    thinning
        Transitions for each draw.
    unthinned_energy
        The Hamiltonian of as many transitions that follow each other: of chains that are not
        thinned the same as ``energy``.
    step_size
        Of each chain after warm-up, shape ``(chain,)``.
    mode_weights
        The share of the posterior's mass near each distinct mode that was found, shape ``(m,)``:
        by importance sampling or earlier draws where chains leap, by Laplace's approximation
        elsewhere. NaN where the density jumps.
    start_modes
        The mode at which each chain started, in proportion to their weights, shape ``(chain,)``;
        where the density jumps they are spread out over modes that are about as dense.
    near
        Where chains leap, the mode at which the law that each draw is near began; elsewhere the one
        where they started. Shape ``(chain, draw)``.
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
    most_steps: Array
    n_diverging: Array
    thinning: int
    unthinned_energy: np.ndarray
    step_size: Array
    mode_weights: np.ndarray
    start_modes: np.ndarray
    near: np.ndarray
    leaps: bool

    @property
    def divergent(self) -> float:
        """Divergent transitions, as a share of all that lead to draws."""
        return float(np.mean(np.asarray(self.n_diverging))) / self.thinning


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
        modes that its starts lead to, in proportion to their mass where that can be known.
    n_chains, n_warmup, n_draws
        Chains, and iterations per chain for adaptation and to keep. Where draws turn out to be
        worth less than a fifth of their number, or chains disagree, those that leap begin anew
        with what the draws teach about where to leap. Where draws are worth little still, chains go
        on and keep every second transition, or every fourth: as many draws, which take two or four
        times as long.
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
    map_key, chain_key, cover_key = jax.random.split(as_key(key), 3)

    length = Length(n_warmup, n_draws)

    def prepare(target: Target, data: Data) -> None:
        Run(target, length, data, chain_key).compile(n_chains)

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
    run = Run(posterior.target, length, posterior.data, chain_key)
    covered = _cover(run, posterior.modes, n_chains, cover_key, n_threads) if leap else None
    sample_from = _in_charts if covered is None else partial(_leaping, covered)

    def restore(draws: Chain) -> Sampled:
        return posterior.restore(draws.u, draws.lp)

    sample, around = sample_from(run, posterior.modes, n_chains, n_threads, restore)
    evidence = sample.stretch.chains._asdict()
    del evidence["u"]
    return Draws(
        **sample.restored._asdict(),
        **evidence,
        step_size=sample.stretch.step_size,
        thinning=sample.thinning,
        unthinned_energy=sample.energy,
        **around._asdict(),
    )


class _Around(NamedTuple):
    """The fields of `Draws` about modes."""

    mode_weights: np.ndarray
    start_modes: np.ndarray
    near: np.ndarray
    leaps: bool


def _in_charts(
    run: Run, modes: Modes, n_chains: int, n_threads: int, restore: Callable[[Chain], Sampled]
) -> tuple[Sample, _Around]:
    """Chains around modes, in proportion to Laplace's weights; spread out where it has none."""
    if _jumps(run.target):
        start = spread_out(run.target.layout, modes, n_chains)
        weights = np.full(len(modes.u), np.nan)
    else:
        start, weights = allocate(modes.weights, n_chains), modes.weights
    charts = make_charts(run.target, modes.u[start], modes.whitening[start])
    _, sample = sample_patiently(InCharts(run, charts, n_threads), run.length.n_warmup, restore)
    near = np.broadcast_to(start[:, None], sample.stretch.chains.lp.shape)
    return sample, _Around(weights, start, near, leaps=False)


def _leaping(
    covered: Cover,
    run: Run,
    modes: Modes,
    n_chains: int,
    n_threads: int,
    restore: Callable[[Chain], Sampled],
) -> tuple[Sample, _Around]:
    """Chains that leap between laws, which pilots around modes have begun."""
    first = Leaping(run, modes, covered, n_chains, n_threads)
    chains, sample = sample_patiently(first, run.length.n_warmup, restore)
    _, masses, nearest = chains.cover
    weights = np.bincount(nearest, masses, minlength=len(modes.weights))
    near = nearest[sample.stretch.laws]
    return sample, _Around(weights, nearest[chains.start], near, leaps=True)


def _cover(run: Run, modes: Modes, n_chains: int, key: Array, n_threads: int) -> Cover | None:
    """What can be leapt between; None if nothing can."""
    candidates = candidates_for_pilots(run.target.layout, modes)
    if _jumps(run.target) or not len(candidates):
        return None
    pilot_key, proposal_key = jax.random.split(key)
    with in_background(partial(run.compile_leaping, n_chains)):
        pilots = send_pilots(run, modes, candidates, pilot_key, n_threads)
        return cover(run.target, run.data, modes, pilots, generator(proposal_key))


def _jumps(target: Target) -> bool:
    """Whether the density jumps, so that its curvature says nothing of masses."""
    return target.layout.gate.jumps(target.layout.n_experts)
