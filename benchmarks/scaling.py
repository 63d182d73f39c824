"""How time and memory grow: with n from 10^4 to 10^7, with k and with d; and one large data set.

The sizes are measured in a process of their own, whose peak of memory is that of all of it: data,
evaluations and fits. Fits start near the truth and have as many experts as it. So is the large data
set, which is fitted as a user would fit it: agnostic starts, compilation included.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import bayesmoe as bm
from bayesmoe.core.hessian import Evaluation, evaluate_log_likelihood
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.observations import make_data
from bayesmoe.core.scaling import Scaling
from bayesmoe.inference.starts import near_truth
from bayesmoe.models import make_gate
from benchmarks.timing import Entry, Figure, seconds, timed

SIZES = (10**4, 10**5, 10**6, 10**7)
GRID = ((2, 1), (4, 1), (8, 1), (2, 2), (2, 4), (2, 8), (8, 8))  # (k, d)
GRID_SIZE = 10_000
N_ROUNDS = 3
MOST_MEMORY = 6.0  # GiB
LARGE = {"n": 10**6, "k": 4, "d": 10}
LARGE_MINUTES, LARGE_MEMORY = 3.0, 8.0  # at most; memory in GiB

_evaluate = jax.jit(evaluate_log_likelihood, static_argnums=0)


class _Case(NamedTuple):
    model: bm.MoE
    x: np.ndarray
    y: np.ndarray
    start: MixingMeasure

    def fit(self) -> bm.Fit:
        return bm.fit_mle(self.model, self.x, self.y, n_starts=0, starts=self.start)

    def evaluation(self) -> partial[Evaluation]:
        """The call that gives value, gradient and Hessian at the start."""
        scaling = Scaling.from_data(self.model.gate, self.x, self.y)
        layout = self.model.layout(self.x.shape[1])
        at = layout.pack(scaling.standardise(self.start))
        return partial(_evaluate, layout, at, make_data(self.x, self.y, scaling))


def entries() -> Iterator[Entry]:
    """Growth in n, with slopes and the peak of memory, then in k and d."""
    yield from _growth_in_n()
    yield from _large()
    times = {cell: _cell(*cell) for cell in GRID}
    for (k, d), (evaluation, fit, text) in times.items():
        what = (
            f"n = {GRID_SIZE}, k = {k}, d = {d} ({bm.moe('softmax', k).layout(d).size} parameters)"
        )
        yield Figure(what, f"evaluation {_short(evaluation)}, fit {_short(fit)} ({text})")
    for name, cells in (("k, d = 1", GRID[:3]), ("d, k = 2", (GRID[0], *GRID[3:6]))):
        sizes = [k * d for k, d in cells]
        for what, column in (("evaluation", 0), ("fit", 1)):
            slope = _slope(sizes, [times[cell][column] for cell in cells])
            yield Figure(f"slope of log {what} on log {name}", f"{slope:.2f}")


def _growth_in_n() -> Iterator[Figure]:
    measured = _alone("sizes")
    for what in ("evaluation", "fit"):
        times = np.array(measured[what])  # (round, size)
        for n, each in zip(SIZES, times.T, strict=True):
            ending = "" if what == "evaluation" else f" ({measured['ending'][str(n)]})"
            label = "value, gradient, Hessian" if what == "evaluation" else "one start, converged"
            yield Figure(f"{label}, n = {n:.0e}, k = 3, d = 1", _short(np.median(each)) + ending)
        slopes = [_slope(SIZES, round_) for round_ in times]
        low, slope, high = min(slopes), float(np.median(slopes)), max(slopes)
        yield Figure(
            f"slope of log {what} on log n, with the least and largest of the rounds",
            f"{slope:.3f} [{low:.3f}, {high:.3f}]", "1 ± 0.1", abs(slope - 1) <= 0.1,
        )  # fmt: skip
    memory = measured["memory"]
    yield Figure(
        f"peak of memory, n = {SIZES[-1]:.0e}, k = 3, d = 1, data included",
        f"{memory:.2f} GiB", f"under {MOST_MEMORY:g} GiB", memory < MOST_MEMORY,
    )  # fmt: skip


def _large() -> Iterator[Figure]:
    measured, (n, k, d) = _alone("large"), LARGE.values()
    what = f"n = {n:.0e}, k = {k}, d = {d}, as by default"
    yield Figure(
        f"MLE: {what}, first call",
        f"{measured['seconds']:.0f} s ({measured['ending']})",
        f"under {LARGE_MINUTES:g} minutes", measured["seconds"] < 60 * LARGE_MINUTES,
    )  # fmt: skip
    yield Figure(
        f"peak of memory, {what}, data included",
        f"{measured['memory']:.2f} GiB", f"under {LARGE_MEMORY:g} GiB",
        measured["memory"] < LARGE_MEMORY,
    )  # fmt: skip


def _measure_large() -> dict[str, Any]:
    """Seconds of one call of `fit_mle`, how its starts ended, and the peak in GiB."""
    x, y = map(np.asarray, _truth(LARGE["k"], LARGE["d"]).simulate(1, LARGE["n"]))
    fit, elapsed = timed(partial(bm.fit_mle, bm.moe("softmax", LARGE["k"]), x, y))
    best = np.asarray(fit.starts.objective) > fit.log_likelihood - 0.01
    ending = f"{fit.status.name.lower()}; {best.sum()} of {best.size} starts reached the best"
    return {"seconds": elapsed, "ending": ending, "memory": _peak_memory()}


def _alone(what: str) -> dict[str, Any]:
    """What this module measures in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scaling", what]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _peak_memory() -> float:
    """Of this process, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return float(peak) / (2**30 if sys.platform == "darwin" else 2**20)


def _measure_growth_in_n() -> dict[str, Any]:
    """Seconds ``(round, size)`` of evaluations and of fits, by turns, and the peak in GiB."""
    cases = [_case_of_size(n) for n in SIZES]
    endings = {case.y.size: _ending(case.fit()) for case in cases}  # compiles
    fits = [[seconds(case.fit) for case in cases] for _ in range(N_ROUNDS)]
    calls = [case.evaluation() for case in cases]
    for call in calls:
        seconds(call)
    evaluations = [[seconds(call) for call in calls] for _ in range(N_ROUNDS)]
    memory = _peak_memory()
    return {"evaluation": evaluations, "fit": fits, "ending": endings, "memory": memory}


def _case_of_size(n: int) -> _Case:
    truth = bm.scenario("three")
    piece = min(n, 10**6)  # in pieces, whose simulation takes little memory
    pieces = [truth.simulate(seed, piece) for seed in range(n // piece)]
    x, y = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    start = near_truth(jax.random.key(0), truth.measure, 3, n, 1)[0]
    return _Case(bm.moe("softmax", 3), x, y, start)


def _cell(k: int, d: int) -> tuple[float, float, str]:
    """Median seconds of an evaluation and of a fit, and how the fit ended."""
    truth = _truth(k, d)
    x, y = truth.simulate(1, GRID_SIZE)
    start = near_truth(jax.random.key(0), truth.measure, k, GRID_SIZE, 1)[0]
    case = _Case(bm.moe("softmax", k), np.asarray(x), np.asarray(y), start)
    call = case.evaluation()
    fit, first = timed(case.fit)
    seconds(call)
    evaluation, again = (
        float(np.median([seconds(one) for _ in range(N_ROUNDS)])) for one in (call, case.fit)
    )
    return evaluation, again, f"{_ending(fit)}, {first - again:.1f} s to compile"


def _truth(k: int, d: int) -> bm.Scenario:
    """Planes in all directions, each in a region of its own."""
    rng = np.random.default_rng(7)
    gate_slope, slope = rng.normal(0, 8, (k, d)), rng.normal(0, 4, (k, d))
    gate_slope -= gate_slope[-1]
    centre = 0.5 * np.ones(d)
    measure = MixingMeasure(
        gate_slope, -gate_slope @ centre, 1.0, slope, rng.normal(0, 2, k), np.full(k, 0.05)
    )
    return bm.Scenario("planes", make_gate("softmax"), measure)


def _ending(fit: bm.Fit) -> str:
    return f"{fit.status.name.lower()}, {int(fit.starts.n_iterations[0])} iterations"


def _slope(sizes: Any, times: Any) -> float:
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def _short(value: Any) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


if __name__ == "__main__":
    measure = {"sizes": _measure_growth_in_n, "large": _measure_large}[sys.argv[1]]
    print(json.dumps(measure()))
