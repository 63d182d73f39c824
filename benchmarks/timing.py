"""Ratios measured by turns in one process, and the other entries of the table."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Row(NamedTuple):
    """How many times better ours is than a peer doing the same work.

    Attributes
    ----------
    what, peer
        What is computed, and by what else.
    ours, theirs
        Medians over the rounds, in ``unit``.
    ratio
        Median over the rounds; above one, ours is faster.
    low, high
        The middle half of the rounds' ratios.
    unit
        "s" for seconds, of which less is better; else a rate, of which more is better.
    least, most
        What the ratio is wanted to be, if anything.
    """

    what: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    unit: str = "s"
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the ratio is as wanted; None if nothing is wanted."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.ratio >= self.least) and (
            self.most is None or self.ratio <= self.most
        )


class Figure(NamedTuple):
    """A measurement that is no ratio.

    Attributes
    ----------
    what, value
        What was measured, and the result in words.
    wanted, met
        The criterion in words and whether it is met; empty and None if there is none.
    """

    what: str
    value: str
    wanted: str = ""
    met: bool | None = None


class Skipped(NamedTuple):
    """What could not be measured, and why."""

    what: str
    why: str


Entry = Row | Figure | Skipped


def seconds(call: Callable[[], Any]) -> float:
    """How long one call takes, its results computed to the end."""
    return timed(call)[1]


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """A call's result, computed to the end, and how long that took."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - start


def compare(
    what: str,
    peer: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    rounds: int = 15,
    least: float | None = None,
    most: float | None = None,
) -> Row:
    """Time two calls by turns; the first call of each, which compiles, is not counted."""

    def settled(call: Callable[[], Any]) -> float:
        seconds(call)  # the call before may have emptied the caches, and frees its memory late
        return seconds(call)

    times = np.array([(settled(ours), settled(theirs)) for _ in range(rounds)])
    return row(what, peer, times[:, 0], times[:, 1], least=least, most=most)


def row(
    what: str,
    peer: str,
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    unit: str = "s",
    least: float | None = None,
    most: float | None = None,
) -> Row:
    """The line for measurements by turns, each of shape ``(rounds,)``."""
    ratios = theirs / ours if unit == "s" else ours / theirs
    low, ratio, high = (float(q) for q in np.quantile(ratios, [0.25, 0.5, 0.75]))
    medians = float(np.median(ours)), float(np.median(theirs))
    return Row(what, peer, *medians, ratio, low, high, unit, least, most)
