"""Does the posterior concentrate where and as fast as theory says?

Bernstein and von Mises: where the Fisher information I at the truth is regular, the posterior is
asymptotically normal with covariance I⁻¹/n, and its credible intervals cover the truth as often as
they say. Where I is singular neither need hold: along a ray the prior decides, whatever n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
from xarray import DataTree

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.validate import check_fraction
from bayesmoe.diagnostics.alignment import align, mirrored
from bayesmoe.diagnostics.posterior import check_tree
from bayesmoe.theory.identifiability import (
    Information,
    expected_information,
    has_true_density,
)
from bayesmoe.theory.voronoi import Truth, as_measure

_NULL = 1e-9  # singular values of the root of the information, its diagonal scaled to one
_TOUCHED = 1e-6  # share of a parameter in the null space from which on nothing determines it

Floats = np.ndarray


class Concentration(NamedTuple):
    """One posterior beside the truth and the information.

    Attributes
    ----------
    parameters
        One row per free parameter, experts named as in the truth, and for gates with a ray one per
        gate parameter divided by τ, which data do determine. Columns: ``truth``; posterior ``mean``
        and ``sd``; ``low`` and ``high``, the equal-tailed credible interval; whether it ``covers``
        the truth; ``predicted_sd``, the root of the diagonal of I⁻¹/n, infinite where the
        information is silent.
    covariance_ratio
        Eigenvalues of n times the posterior covariance relative to I⁻¹, over the directions with
        information, ascending: all near one where Bernstein and von Mises hold; shape ``(r,)``.
    n
        The sample size.
    level
        Of the credible intervals.
    """

    parameters: pd.DataFrame
    covariance_ratio: np.ndarray
    n: int
    level: float


def concentration(
    model: MoE, posterior: DataTree, truth: Truth, *, level: float = 0.9
) -> Concentration:
    """Set a posterior beside the truth and beside what the Fisher information predicts.

    Parameters
    ----------
    model
        The model that was sampled, with as many experts as the truth: where two experts share a
        true one their names mean nothing (`voronoi` judges such fits).
    posterior
        From `sample_posterior` or `sample_laplace`.
    truth
        The true gate, measure and law of X; a scenario.
    level
        Of the credible intervals.

    Raises
    ------
    ValueError
        If the numbers of experts differ, the tree is not a posterior of the model, the true
        parameters mean another density under the model's gate, or ``level`` is not between 0 and 1.
    """
    level = check_fraction("level", level)
    if model.n_experts != truth.measure.n_experts:
        raise ValueError(
            f"the model has {model.n_experts} experts, the truth {truth.measure.n_experts}; "
            "parameters can be compared one by one for equal numbers only: use bayesmoe.voronoi"
        )
    check_tree(model, posterior)
    if not has_true_density(model.gate, truth.measure, truth):
        raise ValueError(
            f"the {model.gate.label} gate of the model does not have the true density at the true "
            f"parameters, which are those of the {truth.gate.label} gate; pass the truth under the "
            "model's gate"
        )
    information = expected_information(model, truth.measure, truth.quadrature_x)
    named = as_measure(align(posterior, model.gate, truth.measure))
    draws = _free(information, mirrored(named, model.gate, truth.measure))
    n = posterior["observed_data"].sizes["obs"]
    names, true, combined, jacobian = _with_ratios(model.gate, information, draws)
    tails = (1 - level) / 2
    low, high = np.quantile(combined, [tails, 1 - tails], axis=0)
    inverse = _Inverse.of(information)
    table = pd.DataFrame(
        {
            "truth": true,
            "mean": combined.mean(axis=0),
            "sd": combined.std(axis=0, ddof=1),
            "low": low,
            "high": high,
            "covers": (low <= true) & (true <= high),
            "predicted_sd": inverse.standard_deviations(jacobian) / np.sqrt(n),
        },
        index=pd.Index(names, name="parameter"),
    )
    return Concentration(table, inverse.relative(n * np.cov(draws.T)), n, level)


def coverage(concentrations: Sequence[Concentration], *, confidence: float = 0.95) -> pd.DataFrame:
    """Coverage of the credible intervals over replicates.

    Parameters
    ----------
    concentrations
        Of independent data sets of one size from one truth, under one model.
    confidence
        Of the Clopper-Pearson interval of each coverage.

    Returns
    -------
    One row per parameter; columns ``replicates``, ``covered``, ``coverage``, ``low``, ``high`` (of
    the coverage), ``bias`` (mean posterior mean less the truth), ``sd`` (root mean posterior
    variance), ``sampling_sd`` (of the posterior means over replicates) and ``predicted_sd``.

    Raises
    ------
    ValueError
        If there are fewer than two, they differ in n, level or parameters, or ``confidence`` is not
        between 0 and 1.
    """
    confidence = check_fraction("confidence", confidence)
    _check_alike(concentrations)
    tables = [one.parameters for one in concentrations]
    stacked = {name: np.stack([table[name].to_numpy() for table in tables]) for name in tables[0]}
    covered = stacked["covers"].sum(axis=0)
    tests = [scipy.stats.binomtest(int(count), len(tables)) for count in covered]
    intervals = [test.proportion_ci(confidence, method="exact") for test in tests]
    return pd.DataFrame(
        {
            "replicates": len(tables),
            "covered": covered,
            "coverage": covered / len(tables),
            "low": [interval.low for interval in intervals],
            "high": [interval.high for interval in intervals],
            "bias": np.mean(stacked["mean"] - stacked["truth"], axis=0),
            "sd": np.sqrt(np.mean(stacked["sd"] ** 2, axis=0)),
            "sampling_sd": np.std(stacked["mean"], axis=0, ddof=1),
            "predicted_sd": stacked["predicted_sd"][0],
        },
        index=tables[0].index,
    )


def _check_alike(concentrations: Sequence[Concentration]) -> None:
    if len(concentrations) < 2:
        raise ValueError(f"coverage needs at least two replicates, got {len(concentrations)}")
    first = concentrations[0]
    for number, other in enumerate(concentrations):
        same = other.parameters.index.equals(first.parameters.index) and np.array_equal(
            other.parameters["truth"], first.parameters["truth"]
        )
        if (other.n, other.level) != (first.n, first.level) or not same:
            raise ValueError(
                f"replicate {number} has n = {other.n}, level = {other.level:g} and "
                f"{len(other.parameters)} parameters, the first n = {first.n}, "
                f"level = {first.level:g} and {len(first.parameters)}; "
                "pass replicates of one truth, size and model"
            )


def _free(information: Information, measures: MixingMeasure) -> Floats:
    """Draws of the free parameters, in the information's order: ``(m, p)``."""
    batch = len(measures.batch_shape)
    columns = []
    for field in FIELDS:
        values = np.asarray(getattr(measures, field))
        columns.append(values.reshape(int(np.prod(values.shape[:batch])), -1))
    return np.concatenate(columns, axis=1)[:, information.parameters.free]


def _with_ratios(
    gate: Gate, information: Information, draws: Floats
) -> tuple[list[str], Floats, Floats, Floats]:
    """Names, truth, draws and derivatives of the parameters, and of the gate's over τ on a ray."""
    parameters = information.parameters
    names, values, p = list(parameters.names), parameters.values, parameters.size
    jacobian = np.eye(p)
    if not gate.ray or "temperature" not in parameters.blocks:
        return names, values, draws, jacobian
    tau = parameters.blocks.index("temperature")
    chosen = [i for i, block in enumerate(parameters.blocks) if block.startswith("gate_")]
    ratio_rows = np.zeros((len(chosen), p))
    ratio_rows[np.arange(len(chosen)), chosen] = 1 / values[tau]
    ratio_rows[:, tau] = -values[chosen] / values[tau] ** 2
    return (
        names + [f"{names[i]} / temperature" for i in chosen],
        np.concatenate([values, values[chosen] / values[tau]]),
        np.concatenate([draws, draws[:, chosen] / draws[:, [tau]]], axis=1),
        np.concatenate([jacobian, ratio_rows]),
    )


class _Inverse(NamedTuple):
    """The information's inverse where it has one; parameters in `Information.units`."""

    units: Floats  # (p,)
    root: Floats  # (r,) singular values of the information's root
    directions: Floats  # (r, p) with information
    null: Floats  # (p - r, p) without

    @classmethod
    def of(cls, information: Information) -> _Inverse:
        assert information.root is not None  # expected information has one
        _, values, rows = np.linalg.svd(information.root * information.units)
        known = values > _NULL * values[0]
        return cls(information.units, values[known], rows[known], rows[~known])

    def standard_deviations(self, jacobian: Floats) -> Floats:
        """For one observation, of functions with derivatives ``(q, p)``; infinite if silent."""
        scaled = jacobian * self.units
        size = np.linalg.norm(scaled, axis=1)
        silent = np.linalg.norm(scaled @ self.null.T, axis=1) > _TOUCHED * size
        known = np.linalg.norm(scaled @ self.directions.T / self.root, axis=1)
        return np.where(silent, np.inf, known)

    def relative(self, covariance: Floats) -> Floats:
        """Eigenvalues of a covariance relative to the inverse, over directions with information."""
        to_unit = self.root[:, None] * self.directions / self.units
        return np.linalg.eigvalsh(to_unit @ covariance @ to_unit.T)
