"""Bayesian Gaussian mixtures of experts: MLE, MAP, posteriors and how fast they contract.

Importing bayesmoe turns on JAX's 64-bit mode: every estimate here is computed in float64.
"""

import jax

jax.config.update("jax_enable_x64", True)

from bayesmoe.core.measure import MixingMeasure  # noqa: E402
from bayesmoe.core.model import MoE  # noqa: E402
from bayesmoe.core.priors import Prior  # noqa: E402
from bayesmoe.models import GATES, moe  # noqa: E402
from bayesmoe.study.scenario import scenario  # noqa: E402

__all__ = ["GATES", "MixingMeasure", "MoE", "Prior", "moe", "scenario"]
