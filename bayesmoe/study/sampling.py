"""The posterior of a cell, by the sampler that its plan names.

Importance resampling of Laplace's approximation takes a fraction of the time of NUTS where the
posterior looks like its approximation, and its Pareto k says where that is not so. A plan may have
it tried first; NUTS then draws what it does not serve, exactly as it would have from the beginning.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax import Array

from bayesmoe.core.model import MoE
from bayesmoe.diagnostics.mixing import PosteriorStatus, importance, mixing
from bayesmoe.inference.laplace import Resampled, resample_laplace
from bayesmoe.inference.nuts import Draws, sample_chains
from bayesmoe.inference.point import Fit
from bayesmoe.study.plan import Plan

#: what draws can come from, as stores name it
LAPLACE, NUTS = "laplace", "nuts"


class Evidence(NamedTuple):
    """What a store keeps of how a posterior was drawn; NaN is what has no meaning.

    Attributes
    ----------
    sampler
        "nuts" or "laplace"; empty without a posterior.
    pareto_k
        Of the importance weights of Laplace's approximation, whether its draws were kept or not;
        NaN where it was not tried.
    divergences, max_rhat
        Of NUTS: see `Mixing`.
    min_ess
        Of NUTS: see `Mixing`. Of the approximation: how many independent draws its weighted
        proposals are worth.
    """

    sampler: str = ""
    pareto_k: float = float("nan")
    divergences: float = float("nan")
    min_ess: float = float("nan")
    max_rhat: float = float("nan")


class Sample(NamedTuple):
    """Draws of a posterior, the verdict on them and the evidence."""

    draws: Draws | Resampled
    status: PosteriorStatus
    evidence: Evidence


def draw_posterior(
    plan: Plan, model: MoE, x: Array, y: Array, *, key: Array, start: Fit | None
) -> Sample:
    """The posterior of a model under a plan, from the modes that the MAP fit ``start`` leads to.

    Both samplers get the same key and start, so that draws by NUTS do not depend on whether the
    approximation was tried before.
    """
    pareto_k = np.nan
    # where the density jumps, its curvature approximates nothing
    if plan.sampler == "laplace_or_nuts" and not model.gate.jumps(model.n_experts):
        resampled = resample_laplace(
            model, x, y, key=key, start=start, n_chains=plan.chains, n_draws=plan.draws
        )
        pareto_k = resampled.pareto_k
        status = importance(resampled)
        if status.converged:
            evidence = Evidence(LAPLACE, pareto_k, min_ess=resampled.effective_size)
            return Sample(resampled, status, evidence)
    draws = sample_chains(
        model,
        x,
        y,
        key=key,
        start=start,
        n_chains=plan.chains,
        n_warmup=plan.warmup,
        n_draws=plan.draws,
        n_threads=1,
    )
    found = mixing(draws)
    divergences = float(found.divergences)
    evidence = Evidence(NUTS, pareto_k, divergences, found.min_ess, found.max_rhat)
    return Sample(draws, found.status, evidence)
