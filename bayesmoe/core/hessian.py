"""The exact Hessian of the conditional log-likelihood, with value and gradient in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.layout import Layout
from bayesmoe.core.likelihood import chunk_of, shares
from bayesmoe.core.observations import Data, sum_over_chunks


class Evaluation(NamedTuple):
    """Value ``()``, gradient ``(p,)`` and Hessian ``(p, p)`` of a function of coordinates."""

    value: Array
    gradient: Array
    hessian: Array


def evaluate_log_likelihood(layout: Layout, coordinates: Array, data: Data) -> Evaluation:
    """Value, gradient and exact Hessian of the log-likelihood in one pass."""

    def terms(index: Array) -> _Terms:
        return _evaluate_chunk(layout, coordinates, chunk_of(data, index))

    return _assemble(layout, coordinates, sum_over_chunks(data, terms))


class _Terms(NamedTuple):
    """What one chunk adds to value, gradient and Hessian, before it is put into coordinates.

    Experts come one after the other, q = d + 2 rows each: slopes and intercept, divided by the
    scale, and log scale. The gate has the h rows of `Layout.gate_scores`, or its c seeds.
    """

    value: Array
    score: Array  # (k q,) Σ r_i ∇log N_i
    outer: Array  # (k q, k q) of r_i ∇log N_i with themselves
    line: Array  # (k, monomials) r_i (∇² log N_i + ∇log N_i ∇log N_iᵀ), in the line's coefficients
    line_scale: Array  # (k, d + 1) the same, of these with log scale
    scale: Array  # (k,) the same, of log scale with itself
    gate_score: Array  # (h,) Σ (r_i - π_i) ∇z_i
    gate_outer: Array  # (h, h) of r_i ∇z_i with themselves, less that of π_i ∇z_i
    across: Array  # (h, k q) of r_i ∇z_i with r_i ∇log N_i
    gate: Array  # (c, c, k) Σ (r_i - π_i) ∇z_i ∇z_iᵀ
    gate_expert: Array  # (k q, c k) of r_i ∇log N_i with ∇z_i
    gate_bend: Array  # (c, g) Σ (r_i - π_i) ∇²z_i times the seeds


def _evaluate_chunk(layout: Layout, coordinates: Array, chunk: tuple[Array, ...]) -> _Terms:
    """The closed form in responsibilities r and gate probabilities π.

    With A_i = z_i + log N_i, log g = LSE(A) - LSE(z), so
    ∇² log g = Σ r_i (∇²A_i + ∇A_i ∇A_iᵀ) - (Σ r_i ∇A_i)(Σ r_i ∇A_i)ᵀ - the same in (π, z).
    """
    gate_x, expert_x, y, mask = chunk
    gate, slope, intercept, log_variance = layout.split(coordinates)
    z, dz, bend = _logits(layout, gate, gate_x)
    residual = y - (slope @ expert_x + intercept[:, None])
    residual = residual / jnp.exp(0.5 * log_variance)[:, None]
    value, r, prior = shares(z - 0.5 * (log_variance[:, None] + residual**2), z, mask)

    # finite, so that an expert without responsibility adds zero and not 0 * inf
    residual = jnp.clip(residual, -1e75, 1e75)
    square = residual**2
    line, spread = r * residual, r * (square - 1.0)
    design = jnp.concatenate([expert_x, jnp.ones_like(y)[None]])
    # no concatenation of what is computed: it would be computed again, and by the element
    last = jnp.arange(len(design) + 1)[:, None] == len(design)
    partners = jnp.where(last, residual[:, None], jnp.pad(design, ((0, 1), (0, 0))))
    rows = (line[:, None] * partners - last * r[:, None]).reshape(-1, len(y))
    first, second = np.triu_indices(len(design))
    gate_rows, gate_means = layout.gate_scores(r * dz), layout.gate_scores(prior * dz)
    seeds = dz.reshape(-1, len(y))
    return _Terms(
        value,
        jnp.sum(rows, axis=1),
        rows @ rows.T,
        spread @ (design[first] * design[second]).T,
        (line * (square - 3.0)) @ design.T,
        jnp.sum(r * ((square - 4.0) * square + 1.0), axis=1),
        jnp.sum(gate_rows - gate_means, axis=1),
        gate_rows @ gate_rows.T - gate_means @ gate_means.T,
        gate_rows @ rows.T,
        jnp.sum((r - prior) * dz * dz[:, None], axis=-1),
        rows @ seeds.T,
        bend(r - prior),
    )


def _logits(layout: Layout, gate: Array, x: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
    """Logits ``(k, m)``, their derivatives along the seeds ``(c, k, m)``, and a function.

    The function gives, for weights ``(k, m)``, the weighted sum of the logits' second derivatives
    times each seed, ``(c, g)``.
    """
    seeds = jnp.asarray(layout.gate_seeds())

    def logits(free: Array) -> Array:
        return layout.gate.logits(layout.gate_parameters(free), x)

    def bend(weights: Array) -> Array:
        if layout.gate.linear_in_coordinates:
            return jnp.zeros(seeds.shape)

        def gradient(free: Array) -> Array:
            return jax.vjp(logits, free)[1](weights)[0]

        return jax.vmap(lambda seed: jax.jvp(gradient, (gate,), (seed,))[1])(seeds)

    z, along = jax.linearize(logits, gate)
    return z, jax.vmap(along)(seeds), bend


def _symmetric(triangle: Array, size: int) -> Array:
    """Symmetric matrices from their upper triangles, row by row: ``(..., s(s+1)/2)``."""
    place = np.zeros((size, size), int)
    place[np.triu_indices(size)] = np.arange(triangle.shape[-1])
    return triangle[..., np.maximum(place, place.T)]


def _assemble(layout: Layout, coordinates: Array, terms: _Terms) -> Evaluation:
    """Put the sums over chunks into the order and the units of the coordinates."""
    k, d, g = layout.n_experts, layout.n_expert_covariates, layout.n_gate
    own = layout.gate_rows()
    c = own.shape[1]
    to_gate = layout.gate_score_rows()
    line, cross = _symmetric(terms.line, d + 1), terms.line_scale
    experts = jnp.block([[line, cross[:, :, None]], [cross[:, None], terms.scale[:, None, None]]])
    experts = jax.scipy.linalg.block_diag(*experts) - terms.outer

    gate = jnp.einsum("ica,cdi,idb->ab", own, terms.gate, own)
    gate += layout.gate_hessian(terms.gate_bend) - to_gate.T @ terms.gate_outer @ to_gate
    across = jnp.einsum("ica,iqci->aiq", own, terms.gate_expert.reshape(k, d + 2, c, k))
    across = across.reshape(g, k * (d + 2)) - to_gate.T @ terms.across

    per_scale = jnp.minimum(jnp.exp(-0.5 * layout.split(coordinates)[3]), 1e100)
    units = jnp.repeat(per_scale, d + 2).reshape(k, d + 2).at[:, -1].set(0.5)  # of log variance
    units = jnp.concatenate([jnp.ones(g), units.ravel()])
    order = np.concatenate([np.arange(g), g + layout.expert_order()])
    gradient = jnp.concatenate([to_gate.T @ terms.gate_score, terms.score]) * units
    hessian = jnp.block([[gate, across], [across.T, experts]]) * units * units[:, None]
    return Evaluation(terms.value, gradient[order], hessian[np.ix_(order, order)])
