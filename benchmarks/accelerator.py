"""An accelerator beside the cores of its machine: likelihood, MLE, many data sets at once, NUTS.

Each figure is measured twice, in a process of its own: on the accelerator, and on the CPU of the
same machine. The code is the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bayesmoe as bm
from bayesmoe.core.device import each, on_accelerator
from bayesmoe.core.hessian import Evaluation, evaluate_log_likelihood
from bayesmoe.core.observations import Data
from bayesmoe.inference.newton import Box, maximise
from bayesmoe.inference.nuts import sample_chains
from bayesmoe.inference.problem import N_STARTS, VARIANCE_FLOOR, Problem, mean_objective, prepare
from benchmarks.timing import Entry, Figure, Skipped, row, timed

SIZES = (10**4, 10**5, 10**6)
N_ROUNDS = 3
REPLICATES = 40
NUTS_SIZE, N_WARMUP, N_DRAWS = 10**5, 100, 100
_ALIKE = 1e-9  # relative, of log-likelihoods

Measured = dict[str, dict[str, Any]]


def entries() -> Iterator[Entry]:
    """Ratios of seconds, and by how much the results differ."""
    if not on_accelerator():
        yield Skipped("accelerator", "JAX sees none here: install JAX for it, and run this again")
        return
    theirs, ours = _alone({"JAX_PLATFORMS": "cpu"}), _alone({})
    kind = jax.devices()[0].device_kind
    for what, here in ours.items():
        times = np.array(here["seconds"]), np.array(theirs[what]["seconds"])
        yield row(f"{what}, {kind}", f"{os.cpu_count()} cores", *times)
        if "value" in here:
            values = np.array(here["value"]), np.array(theirs[what]["value"])
            apart = float(np.max(np.abs(values[0] - values[1]) / (1 + np.abs(values[1]))))
            met = apart < _ALIKE
            yield Figure(f"{what}: values apart", f"{apart:.1g}", f"below {_ALIKE:g}", met)


def _alone(settings: dict[str, str]) -> Measured:
    """What this module measures in a process of its own, with these environment variables."""
    command = [sys.executable, "-m", "benchmarks.accelerator"]
    # JAX would take most of the accelerator's memory, of which this process has its part already
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", **settings}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: Measured = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure() -> Measured:
    found: Measured = {}
    for gate in ("softmax", "activation_dense_to_sparse"):
        found |= _points(gate)
    return found | _replicates() | _nuts()


def _points(gate: str) -> Measured:
    """Evaluations from all starts, and MLEs, as n grows."""
    found: Measured = {}
    for n in SIZES if gate == "softmax" else SIZES[1:2]:
        x, y = map(np.asarray, bm.scenario("three", gate=gate).simulate(1, n))
        problem = _problem(bm.moe(gate, 3), x, y)
        call = partial(_evaluate, problem.layout, problem.starts, problem.data)
        found[f"value, gradient, Hessian at {N_STARTS} starts, {gate}, k = 3, n = {n:.0e}"] = (
            _timed(call, lambda evaluation: evaluation.value)
        )
        found[f"MLE of {N_STARTS} starts, {gate}, k = 3, n = {n:.0e}"] = _timed(
            partial(bm.fit_mle, bm.moe(gate, 3), x, y), lambda fit: fit.log_likelihood
        )
    return found


def _replicates() -> Measured:
    """Data sets of a study: on the CPU one by one, as the study engine takes them."""
    n, model, truth = 1000, bm.moe("softmax", 2), bm.scenario("lambda")
    samples = [truth.simulate(seed, n) for seed in range(REPLICATES)]
    problems = [_problem(model, *map(np.asarray, sample)) for sample in samples]
    data = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one.data for one in problems))
    starts = jnp.stack([one.starts for one in problems])
    call = partial(_climb, problems[0].layout, problems[0].lower, data, starts)
    what = f"{REPLICATES} MLEs at once, softmax, k = 2, n = {n}"
    return {what: _timed(call, lambda value: jnp.nanmax(value, axis=1))}


def _nuts() -> Measured:
    x, y = map(np.asarray, bm.scenario("lambda").simulate(1, NUTS_SIZE))
    model = bm.moe("softmax", 2, prior="weak")
    call = partial(
        sample_chains, model, x, y, start=bm.fit_map(model, x, y), n_warmup=N_WARMUP,
        n_draws=N_DRAWS,
    )  # fmt: skip
    what = f"NUTS, 4 chains of {N_WARMUP + N_DRAWS}, softmax, k = 2, n = {NUTS_SIZE:.0e}"
    return {what: _timed(call)}


def _problem(model: bm.MoE, x: np.ndarray, y: np.ndarray) -> Problem:
    return prepare(
        model, x, y, key=0, n_starts=N_STARTS, starts=None, variance_floor=VARIANCE_FLOOR
    )


@partial(jax.jit, static_argnums=0)
def _evaluate(layout: Any, starts: Array, data: Data) -> Evaluation:
    return each(lambda start: evaluate_log_likelihood(layout, start, data), starts)


@partial(jax.jit, static_argnums=0)
def _climb(layout: Any, lower: Array, data: Data, starts: Array) -> Array:
    def one(item: tuple[Data, Array]) -> Array:
        evaluate = partial(mean_objective, layout, None, item[0])
        return each(lambda start: maximise(evaluate, start, Box(lower)).value, item[1])

    return jax.vmap(one)((data, starts)) if on_accelerator() else jax.lax.map(one, (data, starts))


def _timed(call: Any, value: Any = None) -> dict[str, Any]:
    """Seconds of some calls after the first, and what should agree."""
    result = jax.block_until_ready(call())
    found: dict[str, Any] = {"seconds": [timed(call)[1] for _ in range(N_ROUNDS)]}
    if value is not None:
        found["value"] = np.asarray(value(result)).tolist()
    return found


if __name__ == "__main__":
    print(json.dumps(_measure()))
