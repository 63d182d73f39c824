"""All figures of a fit, by the names of their files."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.diagnostics.left_out import left_out
from bayesmoe.report._dependence import Sweep, table_sweeps
from bayesmoe.report.density_figure import density_figure
from bayesmoe.report.dependence_figure import dependence_figure
from bayesmoe.report.fit_figure import fit_figure
from bayesmoe.report.influence_figure import influence_figure
from bayesmoe.report.optima_figure import optima_figure
from bayesmoe.report.pairs_figure import pairs_figure
from bayesmoe.report.pit_figure import pit_figure
from bayesmoe.report.residual_figure import residual_figure


def fit_figures(
    analysis: Analysis, formulas: str = "", columns: Sequence[Sweep] = ()
) -> dict[str, Figure]:
    """The figures of a fit in the order of its report.

    Parameters
    ----------
    analysis
        From `analyse`.
    formulas
        That covariates were derived by, if any.
    columns
        Sweeps of the columns that they were derived from, if any.

    Returns
    -------
    dict
        ``fit``, ``densities``, ``calibration``, ``residuals``, ``influence`` and ``optima``; of two
        covariates or more also ``dependence`` and, of two experts or more, ``pairs``. Where
        formulas made the covariates, ``dependence`` is along the columns, if there are two or more
        or none is of numbers, and there are no pairs.
    """
    rows = left_out(analysis.model.gate, analysis.posterior)
    found = {
        "fit": fit_figure(analysis, formulas),
        "densities": density_figure(analysis, formulas),
    }
    sweeps = list(columns) if formulas else table_sweeps(analysis.table.x)
    # the first figure is along the first covariate, or the first column of numbers
    along_one = not formulas or analysis.axis is not None
    if len(sweeps) > along_one:
        found["dependence"] = dependence_figure(analysis, sweeps)
        if not formulas and analysis.model.n_experts > 1:
            found["pairs"] = pairs_figure(analysis)
    found["calibration"] = pit_figure(analysis, rows)
    found["residuals"] = residual_figure(analysis, rows)
    found["influence"] = influence_figure(analysis, rows)
    found["optima"] = optima_figure(analysis.mle, analysis.map)
    return found
