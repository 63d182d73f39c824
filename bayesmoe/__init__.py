"""Bayesian Gaussian mixtures of experts: MLE, MAP, posteriors and how fast they contract.

Importing bayesmoe turns on JAX's 64-bit mode: every estimate here is computed in float64.
"""

import jax

jax.config.update("jax_enable_x64", True)

from bayesmoe.core.measure import MixingMeasure  # noqa: E402
from bayesmoe.core.model import MoE  # noqa: E402
from bayesmoe.core.priors import Prior  # noqa: E402
from bayesmoe.diagnostics.alignment import align  # noqa: E402
from bayesmoe.diagnostics.checks import Checks, check_posterior  # noqa: E402
from bayesmoe.diagnostics.comparison import Comparison, compare_models  # noqa: E402
from bayesmoe.diagnostics.determination import determination  # noqa: E402
from bayesmoe.diagnostics.posterior import sample_laplace, sample_posterior  # noqa: E402
from bayesmoe.diagnostics.predictive import sample_predictive  # noqa: E402
from bayesmoe.inference.em import EMFit, fit_em  # noqa: E402
from bayesmoe.inference.outcome import Status  # noqa: E402
from bayesmoe.inference.point import Fit, fit_map, fit_mle  # noqa: E402
from bayesmoe.inference.uncertainty import StandardErrors, standard_errors  # noqa: E402
from bayesmoe.models import GATES, moe  # noqa: E402
from bayesmoe.study.scenario import Scenario, scenario  # noqa: E402
from bayesmoe.theory.decay import compare_decay  # noqa: E402
from bayesmoe.theory.density_loss import density_losses  # noqa: E402
from bayesmoe.theory.identifiability import identify  # noqa: E402
from bayesmoe.theory.independence import independence  # noqa: E402
from bayesmoe.theory.voronoi import contraction_radius, voronoi, voronoi_loss  # noqa: E402

__all__ = [
    "GATES",
    "Checks",
    "Comparison",
    "EMFit",
    "Fit",
    "MixingMeasure",
    "MoE",
    "Prior",
    "Scenario",
    "StandardErrors",
    "Status",
    "align",
    "check_posterior",
    "compare_decay",
    "compare_models",
    "contraction_radius",
    "density_losses",
    "determination",
    "fit_em",
    "fit_map",
    "fit_mle",
    "identify",
    "independence",
    "moe",
    "sample_laplace",
    "sample_posterior",
    "sample_predictive",
    "scenario",
    "standard_errors",
    "voronoi",
    "voronoi_loss",
]
