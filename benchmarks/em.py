"""Converged maximum likelihood beside EM: ours, and that of the R package flexmix.

Data sets of the scenario lambda, softmax gate, three experts where two are true. `fit_mle` and our
EM go from the same starts, others for each data set; flexmix from random partitions, as it does.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax import Array

import bayesmoe as bm
from benchmarks.peers import missing_flexmix
from benchmarks.timing import Entry, Figure, Row, Skipped, row, seconds, timed

N, K, N_DATA, N_STARTS = 10_000, 3, 6, 12
FLEXMIX = "flexmix, FLXPmultinom, tolerance 1e-8, one start"
EM_FINE, EM_PUBLISHED = "our EM to 1e-10, same start", "our EM to 1e-6 (published), same start"
EM_MANY = "our EM to 1e-6 (published), same 12 starts"
ONE, MANY = "fit_mle, one start", "fit_mle, 12 starts"
SAME = 0.01  # log-likelihoods closer than this belong to the same optimum

_SCRIPT = Path(__file__).with_name("flexmix.R")


class _Run(NamedTuple):
    """One fit: its time, the log-likelihood it reached and how it ended."""

    seconds: float
    log_likelihood: float
    ending: str


_Fit = Callable[[int, Array, Array], _Run]  # of a seed of starts and the data


def entries() -> Iterator[Entry]:
    """Times of one start and of twelve, and the log-likelihoods reached, for N_DATA data sets."""
    fits = _fits()
    yield from _first_calls(fits)
    missing = missing_flexmix()
    if missing:
        yield Skipped(FLEXMIX, missing)
    yield from _ratios([_runs(fits, seed, not missing) for seed in range(N_DATA)])


def _data(seed: int) -> tuple[Array, Array]:
    return bm.scenario("lambda").simulate(seed, N)


def _fits() -> dict[str, _Fit]:
    """Our estimators."""
    estimators: dict[str, Callable[..., bm.Fit | bm.EMFit]] = {
        ONE: partial(bm.fit_mle, n_starts=1),
        MANY: partial(bm.fit_mle, n_starts=N_STARTS),
        EM_PUBLISHED: partial(bm.fit_em, n_starts=1, tolerance=1e-6),
        EM_MANY: partial(bm.fit_em, n_starts=N_STARTS, tolerance=1e-6),
        EM_FINE: partial(bm.fit_em, n_starts=1, tolerance=1e-10),
    }
    model = bm.moe("softmax", K)

    def run(fit: Callable[..., bm.Fit | bm.EMFit], seed: int, x: Array, y: Array) -> _Run:
        found, elapsed = timed(partial(fit, model, x, y, key=seed))
        steps = int(np.sum(found.starts.n_iterations))
        ending = f"{found.status.name.lower()}, {steps} iterations in all"
        return _Run(elapsed, found.log_likelihood, ending)

    return {name: partial(run, fit) for name, fit in estimators.items()}


def _runs(fits: dict[str, _Fit], seed: int, with_flexmix: bool) -> dict[str, _Run]:
    """Every engine on one data set."""
    x, y = _data(seed)
    runs = {name: fit(seed, x, y) for name, fit in fits.items()}
    if with_flexmix:
        with tempfile.TemporaryDirectory() as folder:
            runs[FLEXMIX] = _flexmix(_write(Path(folder), x, y), seed)
    return runs


def _first_calls(fits: dict[str, _Fit]) -> Iterator[Figure]:
    x, y = _data(0)
    for name in (ONE, MANY, EM_PUBLISHED, EM_MANY):  # EM's tolerance is not compiled in
        first = seconds(partial(fits[name], 0, x, y))
        yield Figure(f"first call, which compiles: {name}", f"{first:.2f} s")


def _ratios(rounds: list[dict[str, _Run]]) -> Iterator[Row | Figure]:
    runs = {name: [of_round[name] for of_round in rounds] for name in rounds[0]}
    times = {name: np.array([run.seconds for run in each]) for name, each in runs.items()}
    peers = [name for name in (EM_FINE, FLEXMIX) if name in runs]
    for peer in peers:
        yield row(ONE, peer, times[ONE], times[peer], least=20.0)
    yield row(ONE, EM_PUBLISHED, times[ONE], times[EM_PUBLISHED])
    yield row(MANY, EM_MANY, times[MANY], times[EM_MANY])
    for peer in peers:
        yield row(MANY, peer, times[MANY], times[peer])
    for name, each in runs.items():
        reached = "; ".join(f"{run.log_likelihood:.3f} ({run.ending})" for run in each)
        yield Figure(f"log-likelihood: {name}", reached)
    for peer in peers:
        pairs = zip(runs[MANY], runs[peer], strict=True)
        gaps = [ours.log_likelihood - other.log_likelihood for ours, other in pairs]
        yield Figure(
            f"log-likelihood: {MANY}, less that of {peer}",
            ", ".join(f"{gap:.3f}" for gap in gaps),
            "each at least 4, or the same optimum",
            all(gap >= 4.0 or abs(gap) < SAME for gap in gaps),
        )


def _write(folder: Path, x: Array, y: Array) -> Path:
    path = folder / "data.csv"
    table = np.column_stack([x[:, 0], y])
    np.savetxt(path, table, delimiter=",", header="x,y", comments="", fmt="%.17g")
    return path


def _flexmix(data: Path, seed: int) -> _Run:
    """One run; its seconds are taken within R, without its start and after a short warm-up."""
    command = ["Rscript", str(_SCRIPT), str(data), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    elapsed, log_likelihood, steps, met = done.stdout.split()
    ending = "rule met" if met == "TRUE" else "rule not met"
    return _Run(float(elapsed), float(log_likelihood), f"{ending}, {steps} iterations")
