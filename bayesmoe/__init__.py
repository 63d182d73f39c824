"""Bayesian Gaussian mixtures of experts: MLE, MAP, posteriors and how fast they contract.

Importing bayesmoe turns on JAX's 64-bit mode: every estimate here is computed in float64.
"""

import jax

jax.config.update("jax_enable_x64", True)

from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.priors import Prior
from bayesmoe.data.formula import Design, design
from bayesmoe.diagnostics.alignment import align
from bayesmoe.diagnostics.chain_modes import ChainMode, chain_modes
from bayesmoe.diagnostics.checks import check_posterior
from bayesmoe.diagnostics.comparison import Comparison, compare_models
from bayesmoe.diagnostics.concentration import Concentration, concentration, coverage
from bayesmoe.diagnostics.determination import determination
from bayesmoe.diagnostics.posterior import sample_laplace, sample_posterior
from bayesmoe.diagnostics.prediction import Predictive
from bayesmoe.diagnostics.predictive import sample_predictive
from bayesmoe.diagnostics.stored_comparison import StoredComparison, load_comparison
from bayesmoe.diagnostics.stored_fit import StoredFit, load_fit
from bayesmoe.diagnostics.verdict import Checks
from bayesmoe.inference.annealing import Annealing, anneal
from bayesmoe.inference.em import EMFit, fit_em
from bayesmoe.inference.outcome import Status
from bayesmoe.inference.point import Fit, fit_map, fit_mle
from bayesmoe.inference.uncertainty import StandardErrors, standard_errors
from bayesmoe.models import GATES, moe
from bayesmoe.study.scenario import Scenario, scenario
from bayesmoe.theory.decay import compare_decay
from bayesmoe.theory.density_loss import density_losses
from bayesmoe.theory.identifiability import identify
from bayesmoe.theory.independence import independence
from bayesmoe.theory.voronoi import contraction_radius, voronoi, voronoi_loss

__all__ = [
    "GATES",
    "Annealing",
    "ChainMode",
    "Checks",
    "Comparison",
    "Concentration",
    "Design",
    "EMFit",
    "Fit",
    "MixingMeasure",
    "MoE",
    "Predictive",
    "Prior",
    "Scenario",
    "StandardErrors",
    "Status",
    "StoredComparison",
    "StoredFit",
    "align",
    "anneal",
    "chain_modes",
    "check_posterior",
    "compare_decay",
    "compare_models",
    "concentration",
    "contraction_radius",
    "coverage",
    "density_losses",
    "design",
    "determination",
    "fit_em",
    "fit_map",
    "fit_mle",
    "identify",
    "independence",
    "load_comparison",
    "load_fit",
    "moe",
    "sample_laplace",
    "sample_posterior",
    "sample_predictive",
    "scenario",
    "standard_errors",
    "voronoi",
    "voronoi_loss",
]
