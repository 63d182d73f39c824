"""Shared oracles: every gate's formula written out again in NumPy, apart from the package."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.special
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import settings

import bayesmoe as bm
from bayesmoe.core.gate import Gate
from bayesmoe.models import make_gate
from bayesmoe.study.programs import bound_compiled_programs

FASTER = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if importlib.util.find_spec("jax_plugins"):
    FASTER = ""


def _compile_in_half_the_time() -> None:
    """By XLA's older code generation, whose programs run a tenth slower, in one piece.

    Of this process alone: others, as command lines are, get what users get unless given ``FASTER``.
    Notebooks have the same flags by their kernel, ``jupyter/kernels/quick``. Not beside an
    accelerator, whose compiler ends the process at flags that it does not know.
    """
    if not FASTER:
        return
    flags = " ".join([os.environ.get("XLA_FLAGS", ""), FASTER])
    with pytest.MonkeyPatch.context() as only_here:
        only_here.setenv("XLA_FLAGS", flags)
        jax.devices()  # reads the flags


_compile_in_half_the_time()
jax.config.update(
    "jax_compilation_cache_dir", str(Path(__file__).resolve().parents[1] / ".cache" / "jax")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=20)
settings.load_profile("repeatable")

Sigma = Callable[[Any, Any], Any]


def _erf(xp: Any, u: Any) -> Any:
    return (scipy.special if xp is np else jax.scipy.special).erf(u)


# σ(u) as textbook formulas; the first argument is numpy or jax.numpy
SIGMAS: dict[str, Sigma] = {
    "sigmoid": lambda xp, u: 1 / (1 + xp.exp(-u)),
    "tanh": lambda xp, u: (xp.exp(u) - xp.exp(-u)) / (xp.exp(u) + xp.exp(-u)),
    "gelu": lambda xp, u: u * (1 + _erf(xp, u / np.sqrt(2))) / 2,
    "silu": lambda xp, u: u / (1 + xp.exp(-u)),
    "softplus": lambda xp, u: xp.log(1 + xp.exp(u)),
    "relu": lambda xp, u: xp.where(u > 0, u, 0.0),
    "identity": lambda xp, u: u,
}


def softsign(u: Any) -> Any:
    """A user's activation: odd, bounded, not homogeneous."""
    return u / (1 + jnp.abs(u))


@dataclasses.dataclass(frozen=True)
class GateCase:
    """A gate of the package beside its formula, its invariances and its options."""

    label: str
    name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    sigma: Sigma | None = None
    temperature: bool = False
    ray: bool = False
    flip: bool = False

    @property
    def linear(self) -> bool:
        return self.sigma is None

    @property
    def translates(self) -> bool:
        return self.linear or self.label == "identity"

    def gate(self, k: int = 3) -> Gate:
        """The package's gate for k experts."""
        options = self.options
        if "top_k" in options:
            options = {"top_k": min(options["top_k"], k)}
        return make_gate(self.name, **options)

    def logits(self, slope: Any, intercept: Any, tau: Any, x: Any, xp: Any = np) -> Any:
        """z of shape (..., n, k) for x of shape (n, d): design.md's table, written out."""
        score = x @ xp.swapaxes(slope, -1, -2)
        if self.sigma is not None:
            score = self.sigma(xp, score)
        z = (score + intercept[..., None, :]) / xp.asarray(tau)[..., None, None]
        k = z.shape[-1]
        if "top_k" in self.options and self.options["top_k"] < k:
            # halfway between the last that is kept and the first that is not: compared with itself
            # a logit may differ in the last digit, where it was computed twice
            first = k - self.options["top_k"]
            cut = xp.sort(z, axis=-1)[..., first - 1 : first + 1].mean(-1)
            z = xp.where(z >= cut[..., None], z, -np.inf)
        return z

    def probabilities(self, measure: bm.MixingMeasure, x: Any) -> np.ndarray:
        """π of shape (n, k)."""
        slope, intercept, tau = (np.asarray(block) for block in measure.gate)
        z = self.logits(slope, intercept, tau, np.asarray(x))
        return scipy.special.softmax(z, axis=1)

    def components(self, measure: bm.MixingMeasure, x: Any) -> Any:
        """The experts' normal laws, frozen, of shape (n, k)."""
        means = np.asarray(x) @ np.asarray(measure.slope).T + np.asarray(measure.intercept)
        return scipy.stats.norm(means, np.sqrt(np.asarray(measure.variance)))

    def density(self, measure: bm.MixingMeasure, x: Any, y: Any) -> np.ndarray:
        """g_G(y|x) of shape (n,)."""
        laws = self.components(measure, x).pdf(np.asarray(y)[:, None])
        return (self.probabilities(measure, x) * laws).sum(1)

    def cdf(self, measure: bm.MixingMeasure, x: Any, y: Any) -> np.ndarray:
        """P(Y <= y|x) of shape (n,)."""
        laws = self.components(measure, x).cdf(np.asarray(y)[:, None])
        return (self.probabilities(measure, x) * laws).sum(1)

    def measure(self, seed: int, k: int = 3, d: int = 2) -> bm.MixingMeasure:
        """A random mixing measure with its reference expert at zero."""
        rng = np.random.default_rng(seed)
        beta1, beta0 = 1.5 * rng.normal(size=(k, d)), rng.normal(size=k)
        beta1[-1], beta0[-1] = 0.0, 0.0
        return bm.MixingMeasure(
            beta1,
            beta0,
            0.7 if self.temperature else 1.0,
            rng.normal(size=(k, d)),
            rng.normal(size=k),
            rng.uniform(0.2, 2.0, size=k),
        )


def _activation(label: str, activation: Any, sigma: Sigma, **invariances: bool) -> GateCase:
    name, options = "activation_dense_to_sparse", {"activation": activation}
    return GateCase(label, name, options, sigma, temperature=True, **invariances)


CASES = [
    GateCase("softmax", "softmax"),
    GateCase("top_k_sparse", "top_k_sparse", {"top_k": 2}),
    GateCase("dense_to_sparse", "dense_to_sparse", temperature=True, ray=True),
    *(
        _activation(
            name,
            name,
            SIGMAS[name],
            ray=name in ("relu", "identity"),
            flip=name in ("sigmoid", "tanh"),
        )
        for name in SIGMAS
    ),
    _activation("user_def", softsign, lambda xp, u: u / (1 + xp.abs(u)), flip=True),
    _activation("user_lambda", lambda u: jnp.cos(u), lambda xp, u: xp.cos(u)),
]
CASE = {case.label: case for case in CASES}
ONE_PER_GATE = [CASE[label] for label in ("softmax", "top_k_sparse", "dense_to_sparse", "sigmoid")]


# other activations share the code of these, but each compiles programs of its own
QUICK = (*ONE_PER_GATE, CASE["relu"])


def one_by_one(cases: list[GateCase], quick: Collection[GateCase] = QUICK) -> list[Any]:
    """As parameters named by their labels, those that are not quick marked slow."""
    return [
        pytest.param(case, id=case.label, marks=() if case in quick else pytest.mark.slow)
        for case in cases
    ]


@pytest.fixture(params=one_by_one(CASES))
def case(request: pytest.FixtureRequest) -> GateCase:
    """Every gate of `bayesmoe.GATES`, with options."""
    return request.param


@pytest.fixture(params=ONE_PER_GATE, ids=lambda case: case.label)
def gate_case(request: pytest.FixtureRequest) -> GateCase:
    """Every gate of `bayesmoe.GATES` once, for what no activation changes."""
    return request.param


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_are_bounded() -> Iterator[None]:
    """All tests compile more programs than one process may hold."""
    yield
    bound_compiled_programs()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)
