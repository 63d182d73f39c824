"""How many starts find the best maximum that is known, and whether annealing finds it more often.

For each data set the best known maximum is the highest of 96 agnostic starts, 24 near the truth and
12 annealed paths. With h of the S = 96 agnostic starts within 0.01 of it, the default number m of
starts finds it with probability 1 - C(S-h, m)/C(S, m); the mean over data sets is the share wanted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from scipy.special import comb

import bayesmoe as bm
from bayesmoe.inference.problem import N_STARTS
from bayesmoe.inference.starts import near_truth
from benchmarks.timing import Entry, Figure

SCENARIOS = ("lambda", "three", "weak", "plane")
GATES = ("softmax", "activation_dense_to_sparse")
SIZES = (300, 3000)
N_REPLICATES, N_MANY, N_NEAR = 3, 96, 24
SAME = 0.01  # log-likelihoods closer than this belong to the same maximum
WANTED = 0.95


class _Search(NamedTuple):
    """One data set: the agnostic starts that reached the best, and whether annealing did."""

    hits: int
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
    return _Search(int(np.sum(found["many"] > best - SAME)), annealed, at_floor)


def _reached(fit: bm.Fit) -> np.ndarray:
    """The objective of each start that ended at a maximum; -inf of the others."""
    converged = [status.converged for status in fit.starts.status]
    return np.where(converged, fit.starts.objective, -np.inf)


def _summary(what: str, searches: list[_Search]) -> Iterator[Figure]:
    hits = np.array([search.hits for search in searches])
    shares = {m: float(np.mean(_found(hits, m))) for m in (N_STARTS, 4 * N_STARTS)}
    several = ", ".join(f"{100 * share:.0f} % by {m} starts" for m, share in shares.items())
    floor = sum(search.at_floor for search in searches)
    yield Figure(
        f"best known maximum found: {what}, {len(searches)} data sets",
        f"{several}; the best rests on the variance floor in {floor}",
        f"at least {100 * WANTED:.0f} % by {N_STARTS}",
        shares[N_STARTS] >= WANTED,
    )
    tempered = [search for search in searches if search.annealed is not None]
    plain = np.mean(_found(np.array([search.hits for search in tempered]), N_STARTS))
    annealed = np.mean([search.annealed for search in tempered])
    yield Figure(
        f"annealed beside plain starts: {what}, activation gate",
        f"{100 * annealed:.0f} % by {N_STARTS} annealed paths, {100 * plain:.0f} % by plain starts",
    )


def _found(hits: np.ndarray, m: int) -> np.ndarray:
    """The probability that m starts drawn from the N_MANY include one that reached the best."""
    return 1.0 - comb(N_MANY - hits, m) / comb(N_MANY, m)
