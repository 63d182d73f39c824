"""How chains are run: in threads, or on an accelerator side by side in one program."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax import Array

from bayesmoe.core.compilation import compile_ahead, in_background
from bayesmoe.core.device import on_accelerator
from bayesmoe.core.observations import Data
from bayesmoe.inference.chart import Chart, blank_charts
from bayesmoe.inference.kernel import Chain, Length
from bayesmoe.inference.leaps import blank_mixture, run_leaping_chain, run_leaping_chains
from bayesmoe.inference.mixture import MAX_LAWS, Mixture
from bayesmoe.inference.outcome import row
from bayesmoe.inference.target import Target
from bayesmoe.inference.transitions import begin_chain, run_chain, run_chains

T = TypeVar("T")


class Run(NamedTuple):
    """What all chains share."""

    target: Target
    length: Length
    data: Data
    key: Array

    def compile(self, n_chains: int) -> None:
        """Compile the programs that so many chains need."""
        target, length, data, key = self
        p = target.layout.size
        if on_accelerator():
            charts = blank_charts(n_chains, p)
            compile_ahead(run_chains, target, length, data, charts, key)
            return
        chart = row(blank_charts(1, p), 0)
        begin = target, length, data, chart, key, 0
        run = target, length, data, chart, begin_chain.eval_shape(*begin)
        with in_background(partial(compile_ahead, begin_chain, *begin)):
            compile_ahead(run_chain, *run)

    def compile_leaping(self, n_chains: int) -> None:
        """Compile the program that so many leaping chains need."""
        settings = *self[:-1], blank_mixture(MAX_LAWS, self.target.layout.size), self.key
        if on_accelerator():
            compile_ahead(run_leaping_chains, *settings, np.zeros(n_chains, int))
        else:
            compile_ahead(run_leaping_chain, *settings, 0, 0)

    def sample(self, charts: Chart, n_threads: int) -> tuple[Chain, Array]:
        """A chain in each of the charts: in threads, on an accelerator side by side."""
        target, length, data, key = self
        if on_accelerator():
            return run_chains(target, length, data, charts, key)

        def one(chain: int) -> tuple[Chain, Array]:
            chart = row(charts, chain)
            state = begin_chain(target, length, data, chart, key, chain)
            return run_chain(target, length, data, chart, state)

        return _in_threads(one, len(charts.mode), n_threads)

    def leap(
        self, mixture: Mixture, laws: np.ndarray, n_threads: int
    ) -> tuple[Chain, Array, Array]:
        """A leaping chain from each of the laws, likewise."""
        settings = *self[:-1], mixture, self.key
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
