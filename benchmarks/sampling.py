"""Effective draws per second of the posterior's sampler beside two NUTS of general purpose.

All sample the same posterior of standardised data; the peers start at the MAP estimate, which is
given to them, while ours has to find it, in its time. Chains share the cores. Effective draws are
the least over what has no labels: the log-likelihood and the log density at fixed rows. Compilation
included is a first run: JAX's programs are forgotten before, and nutpie's cache on the disk is
empty before the first problem; later ones find parts of it there.
"""

from __future__ import annotations

import importlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from arviz_stats.base import array_stats
from jax import Array
from numpyro.infer import MCMC, NUTS, init_to_value

import bayesmoe as bm
from bayesmoe.core.gate import Gate
from bayesmoe.core.likelihood import log_density
from bayesmoe.core.measure import GateParameters, MixingMeasure
from bayesmoe.core.scaling import Scaling
from bayesmoe.inference.nuts import sample_chains
from benchmarks.timing import Entry, Figure, Row, Skipped, row, timed

GATES = ("softmax", "activation_dense_to_sparse")
OURS, NUMPYRO, NUTPIE = "bayesmoe", "NumPyro's NUTS, MixtureSameFamily", "nutpie, low-rank metric"

#: what is wanted of the ratio, compilation excluded; with it, three everywhere
WANTED = {(NUTPIE, 1_000): 2.0, (NUTPIE, 10_000): 5.0, (NUMPYRO, 10_000): 20.0}

_AXES = {"chain_axis": 1, "draw_axis": 2}
_Sites = dict[str, np.ndarray]
_Sampler = Callable[[int], MixingMeasure]  # from a seed to draws, leading axes (chain, draw)


class _Size(NamedTuple):
    """How many observations, how long the runs are, and how many follow the first."""

    n: int
    n_chains: int
    n_warmup: int
    n_draws: int
    n_rounds: int


# the usual run where that can be waited for
SIZES = (_Size(1_000, 4, 500, 1000, 3), _Size(10_000, 2, 300, 300, 2))


class _Problem(NamedTuple):
    model: bm.MoE
    x: Array
    y: Array
    size: _Size
    scaling: Scaling
    start: _Sites

    @property
    def standardised(self) -> tuple[Array, Array, Array]:
        """The gate's covariate, the experts' and the response, shape ``(n,)``."""
        s = self.scaling
        gate_x, x = (self.x - s.gate_shift) / s.gate_scale, (self.x - s.x_shift) / s.x_scale
        return gate_x[:, 0], x[:, 0], (self.y - s.y_shift) / s.y_scale


class _Run(NamedTuple):
    """All chains: their time, and what was watched, shape ``(quantity, chain, draw)``."""

    seconds: float
    watched: np.ndarray

    @property
    def ess(self) -> float:
        """The least bulk effective sample size."""
        return float(np.min(array_stats.ess(self.watched, method="bulk", **_AXES)))

    @property
    def rate(self) -> float:
        return self.ess / self.seconds


def entries() -> Iterator[Entry]:
    """For each gate and sample size: rates without and with compilation, and the evidence."""
    engines: dict[str, Callable[[_Problem], _Sampler]] = {OURS: _ours, NUMPYRO: _numpyro}
    with tempfile.TemporaryDirectory(prefix="pytensor-") as cache:
        # read at import: what an earlier process left on the disk must not take part
        os.environ["PYTENSOR_FLAGS"] = f"base_compiledir={cache}"
        try:
            peer = importlib.import_module("benchmarks.pymc_model")
            engines[NUTPIE] = partial(_nutpie, peer)
        except ImportError as error:
            yield Skipped(NUTPIE, f"{error}; `make bench` installs nutpie and pymc")
        for gate, size in itertools.product(GATES, SIZES):
            yield from _entries(_problem(gate, size), engines, f"{gate}, n = {size.n}")


def _entries(
    problem: _Problem, engines: dict[str, Callable[[_Problem], _Sampler]], where: str
) -> Iterator[Row | Figure]:
    jax.clear_caches()
    samplers, first = {}, {}
    for name, make in engines.items():
        samplers[name], making = timed(partial(make, problem))
        run = _run(problem, samplers[name], 0)
        first[name] = run._replace(seconds=run.seconds + making)
    rounds = [
        {name: _run(problem, sampler, seed) for name, sampler in samplers.items()}
        for seed in range(1, problem.size.n_rounds + 1)
    ]
    rates = {name: np.array([runs[name].rate for runs in rounds]) for name in engines}
    for name in list(engines)[1:]:
        what, least = f"bulk ESS per second, {where}", WANTED.get((name, problem.size.n))
        yield row(what, name, rates[OURS], rates[name], unit="/s", least=least)
        cold = (np.array([first[one].rate]) for one in (OURS, name))
        what = f"the same, compilation included, one run: {where}"
        yield row(what, name, *cold, unit="/s", least=3.0)
    for name in engines:
        yield Figure(f"{name}: {where}", _evidence(problem.size, first[name], rounds, name))


def _evidence(size: _Size, first: _Run, rounds: list[dict[str, _Run]], name: str) -> str:
    runs = [of_round[name] for of_round in rounds]
    rhat = max(float(np.max(array_stats.rhat(run.watched, **_AXES))) for run in runs)
    times = ", ".join(f"{run.seconds:.3g}" for run in runs)
    sizes = ", ".join(f"{run.ess:.0f}" for run in runs)
    return (
        f"{times} s (the first, with compilation, {first.seconds:.3g} s), "
        f"ESS {sizes} of {size.n_chains} x {size.n_draws}, R-hat at most {rhat:.3f}"
    )


def _problem(gate: str, size: _Size) -> _Problem:
    model = bm.moe(gate, 2)
    x, y = bm.scenario("lambda", gate=gate).simulate(0, size.n)
    scaling = Scaling.from_data(model.gate, x, y)
    mode = scaling.standardise(bm.fit_map(model, x, y).measure)
    temperature = float(mode.temperature)
    start = {
        "gate_slope": np.asarray(mode.gate_slope[:-1, 0]),
        "gate_intercept": np.asarray(mode.gate_intercept[:-1]) / temperature,
        "slope": np.asarray(mode.slope[:, 0]),
        "intercept": np.asarray(mode.intercept),
        "variance": np.asarray(mode.variance),
    }
    if model.gate.has_temperature:
        start["temperature"] = np.array([temperature])
    return _Problem(model, x, y, size, scaling, start)


def _ours(problem: _Problem) -> _Sampler:
    _, n_chains, n_warmup, n_draws, _ = problem.size

    def sample(seed: int) -> MixingMeasure:
        return sample_chains(
            problem.model, problem.x, problem.y, key=seed,
            n_chains=n_chains, n_warmup=n_warmup, n_draws=n_draws,
        ).measures  # fmt: skip

    return sample


def _numpyro(problem: _Problem) -> _Sampler:
    _, n_chains, n_warmup, n_draws, _ = problem.size
    start = init_to_value(values=problem.start)
    kernel = NUTS(partial(_program, problem.model), init_strategy=start)

    @jax.jit  # of itself, MCMC.run compiles its loop in every run
    def chain(key: Array, *arrays: Array) -> dict[str, Array]:
        engine = MCMC(kernel, num_warmup=n_warmup, num_samples=n_draws, progress_bar=False)
        engine.run(key, *arrays)
        return engine.get_samples()

    def one(key: Array) -> dict[str, Array]:
        return jax.block_until_ready(chain(key, *problem.standardised))

    def sample(seed: int) -> MixingMeasure:
        # of itself, NumPyro runs chains one after the other where JAX sees one CPU
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            chains = list(pool.map(one, jax.random.split(jax.random.key(seed), n_chains)))
        return _restore(problem, jax.tree.map(lambda *parts: np.stack(parts), *chains))

    return sample


def _nutpie(peer: Any, problem: _Problem) -> _Sampler:
    _, n_chains, n_warmup, n_draws, _ = problem.size
    arrays = (np.asarray(values) for values in problem.standardised)
    sampler = peer.Sampler(problem.model, *arrays, problem.start)
    return lambda seed: _restore(problem, sampler(seed, n_chains, n_warmup, n_draws))


def _program(model: bm.MoE, gate_x: Array, x: Array, y: Array) -> None:
    """The posterior as a user of NumPyro writes it, two experts and one covariate."""
    prior = model.prior
    temperature = jnp.ones(1)
    if model.gate.has_temperature:
        temperature = numpyro.sample("temperature", prior.temperature.expand([1]).to_event(1))
    blocks = {
        name: numpyro.sample(name, getattr(prior, name).expand([size]).to_event(1))
        for name, size in (
            ("gate_slope", 1),
            ("gate_intercept", 1),
            ("slope", 2),
            ("intercept", 2),
            ("variance", 2),
        )
    }
    gate = _gate(blocks["gate_slope"], blocks["gate_intercept"], temperature)
    logits = model.gate.logits(gate, gate_x[None]).T
    means = blocks["slope"] * x[:, None] + blocks["intercept"]
    mixture = dist.MixtureSameFamily(
        dist.Categorical(logits=logits), dist.Normal(means, jnp.sqrt(blocks["variance"]))
    )
    numpyro.sample("y", mixture, obs=y)


def _gate(slope: Array, level: Array, temperature: Array) -> GateParameters:
    """From β1 ``(1,)``, β0/τ ``(1,)`` and τ ``(1,)``, reference expert added."""
    return GateParameters(
        jnp.stack([slope, jnp.zeros(1)]),
        jnp.concatenate([level * temperature, jnp.zeros(1)]),
        temperature[0],
    )


def _restore(problem: _Problem, sites: dict[str, Any]) -> MixingMeasure:
    """Measures on the scale of the data from the peers' sites."""
    batch = np.shape(sites["slope"])[:-1]
    temperature = sites.get("temperature", np.ones((*batch, 1)))
    return _restored(problem.scaling, dict(sites) | {"temperature": temperature})


@jax.jit
def _restored(scaling: Scaling, sites: dict[str, Array]) -> MixingMeasure:
    def one(draw: dict[str, Array]) -> MixingMeasure:
        gate = _gate(draw["gate_slope"], draw["gate_intercept"], draw["temperature"])
        experts = draw["slope"][:, None], draw["intercept"], draw["variance"]
        return scaling.restore(MixingMeasure(*gate, *experts))

    return jax.vmap(jax.vmap(one))(sites)


def _run(problem: _Problem, sampler: _Sampler, seed: int) -> _Run:
    measures, elapsed = timed(partial(sampler, seed))
    watched = _watched(problem.model.gate, measures, problem.x, problem.y)
    return _Run(elapsed, np.moveaxis(np.asarray(watched), -1, 0))


@partial(jax.jit, static_argnums=0)
def _watched(gate: Gate, measures: MixingMeasure, x: Array, y: Array) -> Array:
    """Log-likelihood and log density at eight rows, shape ``(chain, draw, 9)``."""
    rows = np.linspace(0, len(y) - 1, 8).astype(int)

    def one(measure: MixingMeasure) -> Array:
        density = log_density(gate, measure, x, y)
        return jnp.concatenate([jnp.sum(density)[None], density[rows]])

    return jax.lax.map(lambda chain: jax.lax.map(one, chain), measures)
