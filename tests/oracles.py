"""Likelihood, weak prior and coordinates of every gate in NumPy, apart from the package."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import scipy.stats
from conftest import CASE, GateCase

import bayesmoe as bm

Floats = np.ndarray


def log_normal(value: Floats, scale: float) -> Floats:
    """The log density of N(0, scale²)."""
    return -0.5 * (value / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


def log_lognormal(value: Floats, sigma: float, median: float) -> Floats:
    """The log density of exp N(log median, sigma²)."""
    return log_normal(np.log(value / median), sigma) - np.log(value)


def log_sum_exp(logits: Floats) -> Floats:
    """Over the last axis, one expert after the other: NumPy is slow along axes this short."""
    experts = [logits[..., i] for i in range(logits.shape[-1])]
    peak = functools.reduce(np.maximum, experts)
    return peak + np.log(sum(np.exp(expert - peak) for expert in experts))


@functools.cache
def activation_spread(label: str) -> float:
    """Standard deviation of σ(3Z) for a standard normal Z."""
    sigma = CASE[label].sigma
    assert sigma is not None
    z = np.linspace(-8, 8, 20_001)
    values, weights = sigma(np, z * 3), scipy.stats.norm.pdf(z)
    mean = np.average(values, weights=weights)
    return float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))


@dataclasses.dataclass(frozen=True)
class Oracle:
    """The likelihood and the weak prior of one gate and shape, in the paper's parameters."""

    case: GateCase
    k: int
    d: int
    # the experts' priors are on standardised x; a gate with an activation sees x uncentred
    x_shift: Floats | float = 0.0
    x_scale: Floats | float = 1.0

    def blocks(self, theta: Floats) -> tuple[Floats, ...]:
        """β1 and β0 with the reference, τ, a, b, ν, with the leading axes of ``theta``."""
        k, d, batch = self.k, self.d, theta.shape[:-1]
        sizes = [(k - 1) * d, k - 1, int(self.case.temperature), k * d, k, k]
        beta1, beta0, tau, a, b, nu = np.split(theta, np.cumsum(sizes)[:-1], axis=-1)
        beta1 = beta1.reshape(*batch, k - 1, d)
        return (
            np.concatenate([beta1, np.zeros((*batch, 1, d))], axis=-2),
            np.concatenate([beta0, np.zeros((*batch, 1))], axis=-1),
            tau[..., 0] if self.case.temperature else np.ones(batch),
            a.reshape(*batch, k, d),
            b,
            nu,
        )

    def theta(self, measure: bm.MixingMeasure) -> Floats:
        beta1, beta0, tau, *experts = (np.asarray(leaf) for leaf in jax.tree.leaves(measure))
        tau = [np.ravel(tau)] if self.case.temperature else []
        return np.concatenate(
            [beta1[:-1].ravel(), beta0[:-1], *tau, *(block.ravel() for block in experts)]
        )

    def log_likelihood(self, theta: Floats, x: Floats, y: Floats) -> Floats:
        beta1, beta0, tau, a, b, nu = self.blocks(theta)
        with np.errstate(over="ignore"):
            z = self.case.logits(beta1, beta0, tau, x)
        b, nu = b[..., None, :], nu[..., None, :]
        error = y[:, None] - x @ np.swapaxes(a, -1, -2) - b
        joint = z - 0.5 * (np.log(2 * np.pi * nu) + error**2 / nu)
        return (log_sum_exp(joint) - log_sum_exp(z)).sum(-1)

    def log_weak_prior(self, theta: Floats) -> Floats:
        """For y of mean zero and standard deviation one, up to a constant."""
        beta1, beta0, tau, a, b, nu = self.blocks(theta)
        b, a = b + (a * self.x_shift).sum(-1), a * self.x_scale
        beta1, beta0 = beta1[..., :-1, :], beta0[..., :-1]
        total, location, scale = 0.0, 0.0, 0.5
        if self.case.sigma is not None:  # the prior is on β0/τ, and τ suits the activation
            total = total - beta0.shape[-1] * np.log(tau)
            beta0 = beta0 / tau[..., None]
            location, scale = np.log(activation_spread(self.case.label) / 3), 1.0
        total = total + log_normal(beta1, 3).sum((-1, -2)) + log_normal(beta0, 3).sum(-1)
        if self.case.temperature:
            total = total + log_lognormal(tau, scale, np.exp(location))
        total = total + log_normal(a, 2).sum((-1, -2)) + log_normal(b, 2).sum(-1)
        return total + log_lognormal(nu, 1.5, 0.1).sum(-1)

    def log_density(self, u: Floats, x: Floats, y: Floats) -> Floats:
        """The log posterior density of u, up to a constant."""
        theta, log_jacobian = self.from_unconstrained(u)
        return self.log_likelihood(theta, x, y) + self.log_weak_prior(theta) + log_jacobian

    def from_unconstrained(self, u: Floats) -> tuple[Floats, Floats]:
        """Paper's parameters at u = (β1 or β1/τ, β0 or β0/τ, log τ, a, b, log ν); log Jacobian."""
        k, d = self.k, self.d
        n_slopes, n_intercepts = (k - 1) * d, k - 1
        theta, n_gate = u.copy(), n_slopes + n_intercepts
        theta[..., -k:] = np.exp(u[..., -k:])
        log_jacobian = u[..., -k:].sum(-1)
        if self.case.temperature:
            log_tau = u[..., n_gate]
            theta[..., n_gate] = np.exp(log_tau)
            first = 0 if self.case.linear else n_slopes  # an activation keeps β1 as it is
            theta[..., first:n_gate] *= np.exp(log_tau)[..., None]
            log_jacobian = log_jacobian + (1 + n_gate - first) * log_tau
        return theta, log_jacobian

    def to_unconstrained(self, theta: Floats) -> Floats:
        """The inverse of `from_unconstrained`."""
        k, n_slopes = self.k, (self.k - 1) * self.d
        u, n_gate = theta.copy(), (self.k - 1) * (self.d + 1)
        u[-k:] = np.log(theta[-k:])
        if self.case.temperature:
            first = 0 if self.case.linear else n_slopes
            u[first:n_gate] /= theta[n_gate]
            u[n_gate] = np.log(theta[n_gate])
        return u
