"""The log-likelihood and its derivatives beside the formula as a user of NumPyro writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

import bayesmoe as bm
from bayesmoe.core.compilation import jit_wide
from bayesmoe.core.hessian import evaluate_log_likelihood
from bayesmoe.core.layout import Layout
from bayesmoe.core.likelihood import log_likelihood
from bayesmoe.core.observations import make_data
from bayesmoe.core.scaling import Scaling
from benchmarks.timing import Row, compare

GATES = ("softmax", "dense_to_sparse", "activation_dense_to_sparse")
PLAIN = "MixtureSameFamily(Categorical, Normal)"
N, K = 100_000, 3


def plain(layout: Layout, coordinates: Array, x: Array, y: Array) -> Array:
    """The log-likelihood of x ``(n, d)`` and y ``(n,)`` by NumPyro's mixture, experts last."""
    measure = layout.unpack(coordinates)
    logits = layout.gate.logits(measure.gate, x.T).T
    means = x @ measure.slope.T + measure.intercept
    mixture = dist.MixtureSameFamily(
        dist.Categorical(logits=logits), dist.Normal(means, jnp.sqrt(measure.variance))
    )
    return jnp.sum(mixture.log_prob(y))


def entries() -> Iterator[Row]:
    """Value and gradient, and the Hessian, for each gate; the same with all of AVX-512."""
    for gate in GATES:
        yield from _rows(gate)


def _rows(gate: str) -> Iterator[Row]:
    model = bm.moe(gate, K)
    x, y = bm.scenario("lambda", gate=gate).simulate(0, N)
    scaling = Scaling.from_data(model.gate, x, y)
    data = make_data(x, y, scaling)
    design = (x - scaling.gate_shift) / scaling.gate_scale
    response = (y - scaling.y_shift) / scaling.y_scale
    layout = model.layout(1)
    at = 0.3 * jax.random.normal(jax.random.key(1), (layout.size,))
    fused: Callable[..., Array] = partial(log_likelihood, layout)
    naive: Callable[..., Array] = partial(plain, layout)
    gradient = partial(jax.jit(jax.value_and_grad(fused)), at, data)
    newton = partial(jax.jit(partial(evaluate_log_likelihood, layout)), at, data)
    naive_gradient = partial(jax.jit(jax.value_and_grad(naive)), at, design, response)
    naive_hessian = partial(jax.jit(jax.hessian(naive)), at, design, response)
    where = f"{gate}, n = {N}, k = {K}"
    yield compare(f"value, gradient: {where}", PLAIN, gradient, naive_gradient, least=2.5)
    yield compare(
        f"value, gradient, Hessian: {where}", f"jax.hessian of {PLAIN}",
        newton, naive_hessian, rounds=5,
    )  # fmt: skip
    yield compare(f"value, gradient: {where}", "our own Hessian", gradient, newton, most=6.0)
    # as the programs that run long are compiled
    wide_gradient = partial(jit_wide(())(jax.value_and_grad(fused)), at, data)
    wide_newton = partial(jit_wide(())(partial(evaluate_log_likelihood, layout)), at, data)
    yield compare(f"value, gradient, `jit_wide`: {where}", "`jax.jit`", wide_gradient, gradient)
    yield compare(f"with Hessian, `jit_wide`: {where}", "`jax.jit`", wide_newton, newton)
