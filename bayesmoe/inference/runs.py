"""How chains are run: in threads, or on an accelerator side by side in one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import jax
import numpy as np
from jax import Array

from bayesmoe.core.compilation import compile_ahead, in_background
from bayesmoe.core.device import on_accelerator
from bayesmoe.core.observations import Data
from bayesmoe.inference.chart import Chart, blank_charts
from bayesmoe.inference.cover import Cover
from bayesmoe.inference.kernel import Chain, Length, Pace, State
from bayesmoe.inference.leaps import (
    begin_leaping_chain,
    begin_leaping_chains,
    blank_mixture,
    run_leaping_chain,
    run_leaping_chains,
)
from bayesmoe.inference.learning import learn
from bayesmoe.inference.mixture import MAX_LAWS
from bayesmoe.inference.modes import Modes, allocate
from bayesmoe.inference.outcome import row
from bayesmoe.inference.target import Target
from bayesmoe.inference.transitions import begin_chain, begin_chains, run_chain, run_chains

T = TypeVar("T")

_ANEW = 2**32 - 1  # the key of chains that begin anew: the number of no chain
#: of the shape of any other
_PACE = Pace(0, 1)

States = Any  # a list of each chain's, or on an accelerator one with a leading axis


class Stretch(NamedTuple):
    """A stretch of all chains.

    Attributes
    ----------
    chains
        The draws, leading axes ``(chain, draw)``.
    laws
        The law in whose chart each draw is, ``(chain, draw)``; None where chains do not leap.
    ends
        The states in which the chains end, from which they can go on.
    """

    chains: Chain
    laws: Array | None
    ends: States

    @property
    def step_size(self) -> Array:
        """Of each chain, ``(chain,)``."""
        if isinstance(self.ends, State):
            return self.ends.step_size
        return jax.device_put(np.array([float(end.step_size) for end in self.ends]))


class Chains(Protocol):
    """Chains of one posterior that are begun and run, stretch by stretch."""

    def begin(self) -> States:
        """The states in which they begin."""

    def advance(self, states: States, pace: Pace) -> Stretch:
        """A stretch from there."""

    def taught(self, stretch: Stretch) -> Self | None:
        """Chains of the same posterior to begin anew, by what draws teach; None for nothing."""


class Run(NamedTuple):
    """What all chains share."""

    target: Target
    length: Length
    data: Data
    key: Array

    def compile(self, n_chains: int) -> None:
        """Compile the programs that so many chains need."""
        p, settings = self.target.layout.size, self[:-1]
        if on_accelerator():
            charts = blank_charts(n_chains, p)
            _compile(begin_chains, (*settings, charts, self.key), run_chains, (*settings, charts))
        else:
            chart = row(blank_charts(1, p), 0)
            _compile(begin_chain, (*settings, chart, self.key, 0), run_chain, (*settings, chart))

    def compile_leaping(self, n_chains: int) -> None:
        """Compile the programs that so many leaping chains need."""
        settings = *self[:-1], blank_mixture(MAX_LAWS, self.target.layout.size)
        if on_accelerator():
            laws = np.zeros(n_chains, int)
            start = *settings, self.key, laws
            _compile(begin_leaping_chains, start, run_leaping_chains, settings)
        else:
            _compile(begin_leaping_chain, (*settings, self.key, 0, 0), run_leaping_chain, settings)


def _compile(begin: Any, start: Sequence[Any], run: Any, settings: Sequence[Any]) -> None:
    """Compile the program that begins chains, beside the one that runs them from a state."""
    states = begin.eval_shape(*start)
    with in_background(partial(compile_ahead, begin, *start)):
        compile_ahead(run, *settings, states, _PACE)


class InCharts(NamedTuple):
    """A chain in each of the charts."""

    run: Run
    charts: Chart
    n_threads: int

    def begin(self) -> States:
        target, length, data, key = self.run
        if on_accelerator():
            return begin_chains(target, length, data, self.charts, key)
        return [
            begin_chain(target, length, data, row(self.charts, chain), key, chain)
            for chain in range(len(self.charts.mode))
        ]

    def advance(self, states: States, pace: Pace) -> Stretch:
        target, length, data, _ = self.run
        if on_accelerator():
            chains, ends = run_chains(target, length, data, self.charts, states, pace)
            return Stretch(chains, None, ends)

        def one(chain: int) -> tuple[Chain, State]:
            chart = row(self.charts, chain)
            return run_chain(target, length, data, chart, states[chain], pace)

        parts = _in_threads(one, len(states), self.n_threads)
        return Stretch(_stacked([draws for draws, _ in parts]), None, [end for _, end in parts])

    def taught(self, stretch: Stretch) -> None:
        return None


class Leaping(NamedTuple):
    """Chains which leap between the laws of a cover, where they begin in proportion to masses.

    Attributes
    ----------
    run
        What they share.
    modes
        The posterior's.
    cover
        What they leap between.
    n_chains, n_threads
        How many there are, and how many run at a time.
    """

    run: Run
    modes: Modes
    cover: Cover
    n_chains: int
    n_threads: int

    @property
    def start(self) -> np.ndarray:
        """The law at which each begins, ``(c,)``."""
        return allocate(self.cover.masses, self.n_chains)

    def begin(self) -> States:
        settings = *self.run[:-1], self.cover.mixture, self.run.key
        if on_accelerator():
            return begin_leaping_chains(*settings, self.start)
        return [
            begin_leaping_chain(*settings, chain, int(law)) for chain, law in enumerate(self.start)
        ]

    def advance(self, states: States, pace: Pace) -> Stretch:
        settings = *self.run[:-1], self.cover.mixture
        if on_accelerator():
            return Stretch(*run_leaping_chains(*settings, states, pace))

        def one(chain: int) -> tuple[Chain, Array, State]:
            return run_leaping_chain(*settings, states[chain], pace)

        parts = _in_threads(one, len(states), self.n_threads)
        draws, laws = _stacked([part[:2] for part in parts])
        return Stretch(draws, laws, [part[2] for part in parts])

    def taught(self, stretch: Stretch) -> Leaping:
        u, lp = np.asarray(stretch.chains.u), np.asarray(stretch.chains.lp)
        layout, key = self.run.target.layout, jax.random.fold_in(self.run.key, _ANEW)
        cover = learn(layout, self.modes, self.cover, u.reshape(-1, u.shape[-1]), lp.ravel())
        return self._replace(run=self.run._replace(key=key), cover=cover)


def _in_threads(one: Callable[[int], T], number: int, n_threads: int) -> list[T]:
    """What `one` makes of each number."""
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(lambda i: jax.block_until_ready(one(i)), range(number)))


def _stacked(parts: Sequence[T]) -> T:
    """Chains side by side, by NumPy: JAX would compile the stacking of each field."""
    stacked: T = jax.tree.map(
        lambda *leaves: jax.device_put(np.stack(leaves)), *jax.device_get(list(parts))
    )
    return stacked
