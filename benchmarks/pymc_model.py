"""The posterior of two experts and one covariate in PyMC, for nutpie."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import nutpie
import pymc as pm
import pytensor.tensor as pt

import bayesmoe as bm


class Sampler:
    """nutpie with its low-rank metric, compiled for standardised data.

    Parameters
    ----------
    model
        Softmax or sigmoid activation gate under the weak prior.
    gate_x, x, y
        The gate's covariate, the experts' and the response, shape ``(n,)``.
    start
        Where all chains begin, by the names of the sites.
    """

    def __init__(
        self,
        model: bm.MoE,
        gate_x: np.ndarray,
        x: np.ndarray,
        y: np.ndarray,
        start: dict[str, np.ndarray],
    ) -> None:
        self._compiled = nutpie.compile_pymc_model(
            _program(model, gate_x, x, y), initial_points=start, jitter_rvs=set()
        )

    def __call__(
        self, seed: int, n_chains: int, n_warmup: int, n_draws: int
    ) -> dict[str, np.ndarray]:
        """Draws of each site, leading axes ``(chain, draw)``."""
        posterior = nutpie.sample(
            self._compiled,
            draws=n_draws,
            tune=n_warmup,
            chains=n_chains,
            cores=os.cpu_count(),
            seed=seed,
            progress_bar=False,
            low_rank_modified_mass_matrix=True,
        ).posterior
        return {str(name): np.asarray(posterior[name]) for name in posterior}


def _program(model: bm.MoE, gate_x: np.ndarray, x: np.ndarray, y: np.ndarray) -> pm.Model:
    prior = model.prior
    with pm.Model() as program:
        slope, intercept, gate_slope, gate_intercept = (
            _normal(name, base, size)
            for name, base, size in (
                ("slope", prior.slope, 2),
                ("intercept", prior.intercept, 2),
                ("gate_slope", prior.gate_slope, 1),
                ("gate_intercept", prior.gate_intercept, 1),
            )
        )
        variance = _log_normal("variance", prior.variance, 2)
        score = gate_slope * gate_x[:, None]
        if model.gate.has_temperature:  # the reference expert's score is σ(0)
            score = (pm.math.sigmoid(score) - 0.5) / _log_normal(
                "temperature", prior.temperature, 1
            )
        logits = pt.concatenate([score + gate_intercept, pt.zeros((len(y), 1))], axis=1)
        normal = pm.Normal.dist(slope * x[:, None] + intercept, pt.sqrt(variance))
        joint = pt.special.log_softmax(logits, axis=1) + pm.logp(normal, y[:, None])
        pm.Potential("log_likelihood", pt.sum(pm.math.logsumexp(joint, axis=1)))
    return program


def _normal(name: str, base: Any, size: int) -> Any:
    return pm.Normal(name, float(base.loc), float(base.scale), shape=size)


def _log_normal(name: str, base: Any, size: int) -> Any:
    return pm.LogNormal(name, float(base.loc), float(base.scale), shape=size)
