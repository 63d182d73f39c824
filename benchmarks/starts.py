"""How often the default starts find the best maximum that is known, and annealing beside them.

For each data set the best known maximum is the highest of 96 agnostic starts, 24 near the truth and
12 annealed paths. The 96 are put in random orders, and taken as `fit_mle` and `fit_map` take theirs
by default: twelve at a time until five agree, fewer the more observations there are. The share of
orders in which they find the best, averaged over data sets, is what is wanted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

import bayesmoe as bm
from bayesmoe.inference.point import agree, most_starts
from bayesmoe.inference.problem import N_STARTS
from bayesmoe.inference.starts import near_truth
from benchmarks.timing import Entry, Figure

SCENARIOS = ("lambda", "three", "weak", "plane")
GATES = ("softmax", "activation_dense_to_sparse")
SIZES = (300, 3000)
N_REPLICATES, N_MANY, N_NEAR, N_ORDERS = 3, 96, 24, 200
SAME = 0.01  # log-likelihoods closer than this belong to the same maximum
WANTED = 0.95


class _Search(NamedTuple):
    """One data set: shares of orders that find the best, and whether annealing did."""

    found: float  # by the default number of starts
    by_twelve: float  # by the first batch alone
    n_used: float  # starts by default, on average
    annealed: bool | None  # None without a temperature
    at_floor: bool


def entries() -> Iterator[Entry]:
    """For MLE and MAP, exact and over-specified: the share of data sets where the best is found."""
    for surplus, estimator in itertools.product((0, 1), ("mle", "map")):
        searches = [
            _search(name, gate, surplus, n, replicate, estimator)
            for name, gate, n in itertools.product(SCENARIOS, GATES, SIZES)
            for replicate in range(N_REPLICATES)
        ]
        yield from _summary(f"{estimator.upper()}, k = k* + {surplus}", searches)


def _search(name: str, gate: str, surplus: int, n: int, replicate: int, estimator: str) -> _Search:
    truth = bm.scenario(name, gate=gate)
    k = truth.measure.n_experts + surplus
    model, (x, y) = bm.moe(gate, k), truth.simulate(1000 + replicate, n)
    fit = partial({"mle": bm.fit_mle, "map": bm.fit_map}[estimator], model, x, y)
    many = fit(key=replicate, n_starts=N_MANY)
    near = near_truth(jax.random.key(replicate), truth.measure, k, n, N_NEAR)
    found = {"many": _reached(many), "near": _reached(fit(n_starts=0, starts=near))}
    if model.gate.has_temperature:
        paths = bm.anneal(model, x, y, key=replicate)
        found["annealed"] = _reached(fit(n_starts=0, starts=paths.ends))
    best = max(float(np.max(reached)) for reached in found.values())
    annealed = np.max(found["annealed"]) > best - SAME if "annealed" in found else None
    at_floor = many.status is bm.Status.AT_VARIANCE_FLOOR
    heights = found["many"][:N_MANY]  # MAP's last ones go on from the best
    return _Search(*_by_default(heights, best, most_starts(n)), annealed, at_floor)


def _reached(fit: bm.Fit) -> np.ndarray:
    """The objective of each start that ended at a maximum; -inf of the others."""
    converged = [status.converged for status in fit.starts.status]
    return np.where(converged, fit.starts.objective, -np.inf)


def _by_default(heights: np.ndarray, best: float, most: int) -> tuple[float, float, float]:
    """Over random orders of the heights: how often the best is among those that are taken.

    By the default rule, by the first twelve, and how many the rule takes on average.
    """
    rng = np.random.default_rng(0)
    tried = []
    for _ in range(N_ORDERS):
        order, n = rng.permutation(heights), N_STARTS
        while n < most and not agree(order[:n]):
            n += N_STARTS
        tried.append((np.max(order[:n]) > best - SAME, np.max(order[:N_STARTS]) > best - SAME, n))
    found, by_twelve, n_used = np.mean(tried, axis=0)
    return float(found), float(by_twelve), float(n_used)


def _summary(what: str, searches: list[_Search]) -> Iterator[Figure]:
    found, by_twelve, n_used = (
        float(np.mean(values)) for values in zip(*(search[:3] for search in searches), strict=True)
    )
    floor = sum(search.at_floor for search in searches)
    yield Figure(
        f"best known maximum found: {what}, {len(searches)} data sets",
        f"{100 * found:.0f} % by {n_used:.0f} starts, as many as are taken by default on average; "
        f"{100 * by_twelve:.0f} % by {N_STARTS}; the best rests on the variance floor in {floor}",
        f"at least {100 * WANTED:.0f} % by default",
        found >= WANTED,
    )
    tempered = [search for search in searches if search.annealed is not None]
    plain = np.mean([search.by_twelve for search in tempered])
    annealed = np.mean([search.annealed for search in tempered])
    yield Figure(
        f"annealed beside plain starts: {what}, activation gate",
        f"{100 * annealed:.0f} % by {N_STARTS} annealed paths, {100 * plain:.0f} % by plain starts",
    )
