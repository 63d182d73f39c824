"""Where chains diverge or stay apart: few data under the activation gate, and experts to spare.

With few data the activation gate's slope and temperature are known by their ratio alone, a funnel
that charts (`bayesmoe.inference.chart`) take out; beside them, chains that move in the slope
itself. With an expert to spare, and with few data where the reference expert cannot be changed
(softplus), posteriors have narrow necks and several modes, between which chains leap where they
can; R-hat is looked at within the modes in which they stayed. Beside them, chains that do not leap.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import numpy as np
from arviz_stats.base import array_stats

import bayesmoe as bm
from bayesmoe.diagnostics.chain_modes import together
from bayesmoe.inference import chart
from bayesmoe.inference.nuts import Draws, sample_chains
from bayesmoe.inference.posterior import without_labels
from bayesmoe.models import make_gate
from benchmarks.timing import Entry, Figure, row

ACTIVATION = "activation_dense_to_sparse"
# scenario, the fitted activation, n, data sets
FEW = (("lambda", "sigmoid", 120, 24), ("lambda", "gelu", 120, 8), ("plane", "sigmoid", 200, 8))
SPARE = ("lambda", "weak")
N_SPARE, N_SETS = 1_000, 3
MOST_DIVERGENT, LARGEST_RHAT = 0.01, 1.01

_AXES = {"chain_axis": 1, "draw_axis": 2}


class _Posterior(NamedTuple):
    """What became of one posterior; R-hat within modes."""

    divergent: float
    rhat: float
    n_modes: int
    per_step: float  # bulk ESS per leapfrog step
    leaps: bool


def entries() -> Iterator[Entry]:
    """Effective draws per gradient, divergences and R-hat."""
    for few in FEW:
        yield from _few(*few)
    for scenario, gate in itertools.product(SPARE, ("softmax", ACTIVATION)):
        yield from _modes(scenario, bm.moe(gate, 3), N_SPARE, N_SETS)
    softplus = bm.moe(make_gate(ACTIVATION, activation="softplus"), 2)
    yield from _modes("lambda", softplus, 120, N_SETS)


def _modes(scenario: str, model: bm.MoE, n: int, n_sets: int) -> Iterator[Entry]:
    """Chains that leap, and chains that do not."""
    where = f"{scenario}, {model.gate.label}, k = {model.n_experts}, n = {n}, {n_sets} data sets"
    found = [_sample(scenario, model, n, seed) for seed in range(n_sets)]
    worst = max(one.divergent for one in found), max(one.rhat for one in found)
    yield Figure(
        where,
        f"divergent at most {100 * worst[0]:.2f} %, R-hat within a mode at most {worst[1]:.3f}; "
        f"chains leap in {sum(one.leaps for one in found)} and stayed in "
        f"{[one.n_modes for one in found]} modes",
        f"below {100 * MOST_DIVERGENT:.0f} % and {LARGEST_RHAT}",
        worst[0] < MOST_DIVERGENT and worst[1] < LARGEST_RHAT,
    )
    apart = [_sample(scenario, model, n, seed, leap=False) for seed in range(n_sets)]
    yield Figure(
        f"without leaps: {where}",
        f"divergent at most {100 * max(one.divergent for one in apart):.2f} %, R-hat within a mode "
        f"at most {max(one.rhat for one in apart):.3f}; chains stayed in "
        f"{[one.n_modes for one in apart]} modes",
    )


def _few(scenario: str, activation: str, n: int, n_sets: int) -> Iterator[Entry]:
    where = f"{scenario}, activation gate ({activation}), n = {n}, {n_sets} data sets"
    model = bm.moe(make_gate(ACTIVATION, activation=activation), 2)
    bent = [_sample(scenario, model, n, seed) for seed in range(n_sets)]
    with mock.patch.object(chart, "_told_by_data", return_value=0.0):
        straight = [_sample(scenario, model, n, seed) for seed in range(n_sets)]
    rates = (np.array([1000 * one.per_step for one in runs]) for runs in (bent, straight))
    yield row(f"bulk ESS per 1000 gradients: {where}", "β1 itself", *rates, unit="")
    for name, runs in (("charts", bent), ("β1 itself", straight)):
        divergent = np.array([one.divergent for one in runs])
        yield Figure(
            f"{name}: {where}",
            f"divergent {100 * divergent.mean():.2f} % of draws, above {100 * MOST_DIVERGENT:.0f} "
            f"% in {np.sum(divergent > MOST_DIVERGENT)} posteriors; R-hat at most "
            f"{max(one.rhat for one in runs):.3f}",
        )


def _sample(scenario: str, model: bm.MoE, n: int, seed: int, leap: bool = True) -> _Posterior:
    x, y = bm.scenario(scenario, gate=model.gate.name).simulate(seed, n)
    draws = sample_chains(model, x, y, key=seed, leap=leap)
    watched = without_labels(
        draws.log_likelihood, draws.row_log_density, draws.measures.temperature
    )
    modes = together(watched)
    rhat = max(float(np.max(array_stats.rhat(watched[:, chains], **_AXES))) for chains in modes)
    return _Posterior(
        draws.divergent,
        rhat,
        len(modes),
        _per_step(draws, watched),
        draws.leaps,
    )


def _per_step(draws: Draws, watched: np.ndarray) -> float:
    ess = array_stats.ess(watched, method="bulk", **_AXES)
    return float(np.min(ess) / np.sum(np.asarray(draws.n_steps)))
