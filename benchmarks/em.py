"""Converged maximum likelihood beside EM: ours, and that of the R package flexmix.

Data of the scenario lambda, softmax gate, three experts where two are true. `fit_mle` and our EM
go from the same starts; flexmix from random partitions, as it does.
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

N, K, N_ROUNDS, N_STARTS = 10_000, 3, 3, 12
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


def entries() -> Iterator[Entry]:
    """Times of one start and of twelve, and the log-likelihoods reached, N_ROUNDS times."""
    model = bm.moe("softmax", K)
    x, y = bm.scenario("lambda").simulate(0, N)
    engines = _engines(model, x, y)
    with tempfile.TemporaryDirectory() as folder:
        missing = missing_flexmix()
        if missing:
            yield Skipped(FLEXMIX, missing)
        else:
            engines[FLEXMIX] = partial(_flexmix, _write(Path(folder), x, y))
        yield from _first_calls(engines)
        rounds = [{name: run(key) for name, run in engines.items()} for key in range(N_ROUNDS)]
    yield from _ratios({name: [runs[name] for runs in rounds] for name in engines})


def _engines(model: bm.MoE, x: Array, y: Array) -> dict[str, Callable[[int], _Run]]:
    """Our estimators, from the seed of their starts to a run."""
    fits: dict[str, Callable[..., bm.Fit | bm.EMFit]] = {
        ONE: partial(bm.fit_mle, n_starts=1),
        MANY: partial(bm.fit_mle, n_starts=N_STARTS),
        EM_PUBLISHED: partial(bm.fit_em, n_starts=1, tolerance=1e-6),
        EM_MANY: partial(bm.fit_em, n_starts=N_STARTS, tolerance=1e-6),
        EM_FINE: partial(bm.fit_em, n_starts=1, tolerance=1e-10),
    }

    def run(fit: Callable[..., bm.Fit | bm.EMFit], key: int) -> _Run:
        found, elapsed = timed(partial(fit, model, x, y, key=key))
        steps = int(np.sum(found.starts.n_iterations))
        ending = f"{found.status.name.lower()}, {steps} iterations in all"
        return _Run(elapsed, found.log_likelihood, ending)

    return {name: partial(run, fit) for name, fit in fits.items()}


def _first_calls(engines: dict[str, Callable[[int], _Run]]) -> Iterator[Figure]:
    for name in (ONE, MANY, EM_PUBLISHED, EM_MANY):  # EM's tolerance is not compiled in
        first = seconds(partial(engines[name], 0))
        yield Figure(f"first call, which compiles: {name}", f"{first:.2f} s")


def _ratios(runs: dict[str, list[_Run]]) -> Iterator[Row | Figure]:
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
    best = max(run.log_likelihood for run in runs[MANY])
    for peer in peers:
        gaps = [best - run.log_likelihood for run in runs[peer]]
        least = min(gaps)
        yield Figure(
            f"log-likelihood: best of {MANY}, less that of {peer}",
            ", ".join(f"{gap:.3f}" for gap in gaps),
            "the best at least 4 below, or the same optimum",
            least >= 4.0 or abs(least) < SAME,
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
