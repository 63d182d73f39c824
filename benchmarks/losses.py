"""Voronoi losses of 4000 draws, beside a loop over them.

Draws are copies of a truth with k* = 3 atoms, all parameters moved at random; with one expert more,
cells have two atoms, and exponents above one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import bayesmoe as bm
from bayesmoe.core.measure import FIELDS, MixingMeasure
from benchmarks.timing import Entry, Figure, compare, seconds

N_DRAWS = 4000
LOOP = 40  # draws of the loop
N_ROUNDS = 5
WANTED = 0.2  # seconds
CASES: tuple[
    tuple[str, dict[str, Any], dict[str, Any]], ...
] = (  # gate, its and the loss's options
    ("softmax", {}, {}),
    ("softmax", {}, {"weights": "probability"}),
    ("top_k_sparse", {"top_k": 2}, {}),
    ("top_k_sparse", {"top_k": 2}, {"weights": "probability"}),
    ("dense_to_sparse", {}, {}),
    ("dense_to_sparse", {}, {"identified": True}),
    ("dense_to_sparse", {}, {"identified": True, "weights": "probability"}),
    ("activation_dense_to_sparse", {}, {}),
    ("activation_dense_to_sparse", {}, {"weights": "probability"}),
)


def entries() -> Iterator[Entry]:
    """Times for k = 3 and 4, and for k = 3 the ratio to a loop."""
    for name, options, how in CASES:
        truth = bm.scenario("three", gate=name, **options)
        what = truth.gate.label + (" modulo its ray" if "identified" in how else "")
        what += ", mean probabilities" if "weights" in how else ""
        loss = partial(bm.voronoi_loss, truth=truth, **how)
        draws = {k: _draws(truth.measure, k) for k in (3, 4)}
        for k, some in draws.items():
            loss(some)  # compiles
            time = float(np.median([seconds(partial(loss, some)) for _ in range(N_ROUNDS)]))
            wanted = (f"{WANTED} s", time <= WANTED) if k == 3 else ("", None)
            yield Figure(f"{what}, k = {k}, {N_DRAWS} draws", f"{time:.2f} s", *wanted)
        few = draws[3][:LOOP]
        each = [few[i] for i in range(LOOP)]
        ours, theirs = partial(loss, few), partial(_loop, loss, each)
        of = f"{what}, k = 3, {LOOP} draws"
        yield compare(of, "one draw at a time", ours, theirs, rounds=N_ROUNDS)


def _draws(truth: MixingMeasure, k: int) -> MixingMeasure:
    """Copies of the truth, for k = 4 of one atom two, each number moved by a tenth or so."""
    rng, atoms = np.random.default_rng(k), np.arange(k) % truth.n_experts
    parts = {}
    for name in FIELDS:
        part = np.asarray(getattr(truth, name))
        part = part if name == "temperature" else part[atoms]
        parts[name] = part * np.exp(0.1 * rng.normal(size=(N_DRAWS, *part.shape)))
    return MixingMeasure(**parts)


def _loop(loss: Callable[[MixingMeasure], Any], draws: list[MixingMeasure]) -> list[Any]:
    return [loss(draw) for draw in draws]
