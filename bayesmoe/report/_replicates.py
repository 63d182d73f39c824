"""The loss of every replicate against the sample size, gate by gate."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesmoe.report import _study
from bayesmoe.report._grid import grid
from bayesmoe.report._layout import estimator_keys, key
from bayesmoe.report._panel import Panel
from bayesmoe.report.style import ESTIMATOR_COLOURS, INK, MUTED, QUANTITY_LABELS, percent
from bayesmoe.study.early_em import used

_SHARE = 0.7  # of the distance between sample sizes that their points take up


def replicates(study: xr.Dataset, variable: str = "normalised_loss") -> Figure:
    """The distribution of the loss over replicates: a point for each of them, log-log.

    Panels as in `contraction`. The points of a replicate have the same place among those of each
    estimator; those of fits that did not converge are hollow and take no part in the medians.

    Parameters
    ----------
    study, variable
        As for `contraction`.
    """

    names, n = _study.estimators(study), study["n"].to_numpy().astype(float)
    places = _places(n, study.sizes["replicate"], len(names))

    def draw(panel: Panel, cell: xr.Dataset, marker: str) -> None:
        low, high = panel.ax.get_xlim()
        panel.ax.set_xlim(min(low, places.min() / 1.05), max(high, places.max() * 1.05))
        for name, own in zip(names, places, strict=True):
            _points(panel, cell.sel(estimator=name), variable, marker, own)

    return grid(study, draw, lines=0, keys=_keys(study), label=QUANTITY_LABELS[variable])


def _places(n: np.ndarray, n_replicates: int, n_estimators: int) -> np.ndarray:
    """Where the points are on the axis of n, ``(estimator, n, replicate)``, side by side."""
    logs = np.log10(n)
    width = _SHARE * np.min(np.diff(logs)) / n_estimators if len(n) > 1 else 0.1
    lane = np.arange(n_estimators) - (n_estimators - 1) / 2
    inside = 0.85 * ((np.arange(n_replicates) + 0.5) / n_replicates - 0.5)
    return 10 ** (logs[:, None] + width * (lane[:, None, None] + inside))


def _points(panel: Panel, one: xr.Dataset, variable: str, marker: str, places: np.ndarray) -> None:
    """The points of one estimator, and a line at the median of each sample size."""
    values, kept = (
        array.transpose("n", "replicate").to_numpy() for array in (one[variable], used(one))
    )
    colour = ESTIMATOR_COLOURS[str(one["estimator"].item())]
    seen = np.isfinite(values) & (values > 0)
    for mask, face in ((seen & kept, colour), (seen & ~kept, "white")):
        panel.ax.plot(
            places[mask], values[mask], marker, ms=2.3, mfc=face, mec=colour, mew=0.5, alpha=0.75,
            label=f"{one['estimator'].item()} {'kept' if face == colour else 'left out'}",
        )  # fmt: skip
    if seen.any():
        panel.ink.append(np.log10(np.stack([places[seen], values[seen]])))
    medians = _study.summarise(one[variable], used(one))
    ok = medians.drawable
    ends = places[ok][:, [0, -1]]
    panel.ax.hlines(medians.median[ok], *ends.T, color=INK, lw=1.6, zorder=4, label="medians")


def _keys(study: xr.Dataset) -> list[Line2D]:
    level = percent(float(study.attrs["level"]))
    look = {"marker": "o", "mfc": "white", "mec": MUTED, "ls": "none", "ms": 3.8}
    keys = estimator_keys(_study.estimators(study), f"posterior {level} radius")
    for entry in keys:
        entry.set_linestyle("none")
    return [*keys, key("median", INK, lw=1.6), key("did not converge", MUTED, **look)]
