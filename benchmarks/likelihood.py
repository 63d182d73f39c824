"""The log-likelihood and its derivatives beside the formula as a user of NumPyro writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

import bayesmoe as bm
from bayesmoe.core.likelihood import (
    Layout,
    evaluate_log_likelihood,
    log_likelihood,
    make_data,
)
from bayesmoe.core.scaling import Scaling
from benchmarks.timing import Row, compare

GATES = ("softmax", "dense_to_sparse", "activation_dense_to_sparse")
PLAIN = "MixtureSameFamily(Categorical, Normal)"


def plain(layout: Layout, coordinates: Array, x: Array, y: Array) -> Array:
    """The log-likelihood of x ``(n, d)`` and y ``(n,)`` by NumPyro's mixture, experts last."""
    measure = layout.unpack(coordinates)
    logits = layout.gate.logits(measure.gate, x.T).T
    means = x @ measure.slope.T + measure.intercept
    mixture = dist.MixtureSameFamily(
        dist.Categorical(logits=logits), dist.Normal(means, jnp.sqrt(measure.variance))
    )
    return jnp.sum(mixture.log_prob(y))


def rows(n: int = 100_000, k: int = 3) -> Iterator[Row]:
    """Value and gradient, and the Hessian, for each gate at n observations and k experts."""
    for name in GATES:
        scenario = bm.scenario("lambda", gate=name)
        model = bm.moe(name, k)
        x, y = scenario.simulate(0, n)
        scaling = Scaling.from_data(model.gate, x, y)
        data = make_data(x, y, scaling)
        design = (x - scaling.gate_shift) / scaling.gate_scale
        response = (y - scaling.y_shift) / scaling.y_scale
        layout = model.layout(1)
        at = 0.3 * jax.random.normal(jax.random.key(1), (layout.size,))
        fused: Callable[..., Array] = partial(log_likelihood, layout)
        naive: Callable[..., Array] = partial(plain, layout)
        gradient = jax.jit(jax.value_and_grad(fused))
        naive_gradient = jax.jit(jax.value_and_grad(naive))
        newton = jax.jit(partial(evaluate_log_likelihood, layout))
        naive_hessian = jax.jit(jax.hessian(naive))
        where = f"{name}, n = {n}, k = {k}"
        yield compare(
            f"value and gradient: {where}", PLAIN,
            partial(gradient, at, data), partial(naive_gradient, at, design, response),
        )  # fmt: skip
        yield compare(
            f"value, gradient, Hessian: {where}", f"jax.hessian of {PLAIN}",
            partial(newton, at, data), partial(naive_hessian, at, design, response), rounds=5,
        )  # fmt: skip
        yield compare(
            f"gradient beside its Hessian: {where}", "our own Hessian",
            partial(gradient, at, data), partial(newton, at, data),
        )  # fmt: skip
