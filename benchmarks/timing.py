"""Ratios of run times, measured by turns in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Row(NamedTuple):
    """One line of the table: how many times faster ours is than a peer doing the same work.

    Attributes
    ----------
    what, peer
        What is computed, and by what else.
    ours, theirs
        Median seconds.
    ratio
        Median over rounds of theirs/ours; above one, ours is faster.
    low, high
        The middle half of the rounds' ratios.
    """

    what: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float


def seconds(call: Callable[[], Any]) -> float:
    """How long one call takes, its results computed to the end."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def compare(
    what: str, peer: str, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int = 15
) -> Row:
    """Time two calls by turns; the first call of each, which compiles, is not counted."""
    seconds(ours), seconds(theirs)
    times = np.array([(seconds(ours), seconds(theirs)) for _ in range(rounds)])
    return row(what, peer, times[:, 0], times[:, 1])


def row(what: str, peer: str, ours: np.ndarray, theirs: np.ndarray) -> Row:
    """The line for times measured by turns, each of shape ``(rounds,)``."""
    low, ratio, high = np.quantile(theirs / ours, [0.25, 0.5, 0.75])
    return Row(what, peer, float(np.median(ours)), float(np.median(theirs)), ratio, low, high)
