"""Errors per parameter block against the sample size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from bayesmoe.report import _study
from bayesmoe.report._layout import (
    DOTS,
    axes_at,
    estimator_keys,
    expected_key,
    hollow_key,
    key,
    legend,
    new_figure,
    text_at,
)
from bayesmoe.report._panel import DODGE, Panel, finish_row
from bayesmoe.report.style import (
    BLOCK_TITLES,
    BLOCKS,
    ESTIMATOR_COLOURS,
    MUTED,
    SPREAD_COLOUR,
    gate_markers,
    number,
    plain,
    rate_math,
    size_axis,
    style,
)

_WIDTH, _HEIGHT, _PITCH, _LEFT, _TOP = 1.42, 1.12, 1.93, 1.02, 0.72  # inches
_POSITIONS = {"mle": (0.0, "left"), "map": (0.5, "center"), "posterior": (1.0, "right")}
_EDGE = 0.12  # half the width of a number as a share of a panel's


def blocks(
    study: xr.Dataset, slopes: pd.DataFrame, n_experts: Sequence[int] | None = None
) -> Figure:
    """Errors per parameter block against n, with the posterior standard deviation of τ.

    One row per gate and fitted k, one column per block. In over-specified fits the main lines are
    of the atoms that share a cell, thin dotted lines of those alone in theirs. Above each panel
    stand the expected rate and the measured slopes; intervals are in the table of slopes.

    Parameters
    ----------
    study, slopes
        As for `contraction`.
    n_experts
        The fitted k to show; all by default.
    """
    slopes = _study.own(slopes, study)
    fitted = _study.fitted(study) if n_experts is None else n_experts
    rows = [(gate, k) for k in fitted for gate in _study.gates(study)]
    shown = _shown(study)
    pitch = _HEIGHT + 0.56
    with style():
        width = max(5.4, _LEFT + len(shown) * _PITCH - 0.4)
        figure = new_figure(width, len(rows) * pitch + 1.3)
        for column, block in enumerate(shown):
            middle = _LEFT + column * _PITCH + _WIDTH / 2
            text_at(figure, middle, 0.2, BLOCK_TITLES[block], ha="center", size=9.5)
        for row, (gate, k) in enumerate(rows):
            top, last = row * pitch + _TOP, row == len(rows) - 1
            own = _study.rows(slopes, gate=gate, n_experts=k)
            _row(figure, top, study, gate, k, own, labels=last)
        middle = _LEFT + (len(shown) * _PITCH - _PITCH + _WIDTH) / 2
        text_at(figure, middle, len(rows) * pitch + 0.62, "sample size n", ha="center", size=9)
        _legend(figure, study, fitted)
    return figure


def _shown(study: xr.Dataset) -> list[str]:
    """The blocks that some gate has."""
    return [b for b in BLOCKS if b != "temperature" or _study.temperature_gates(study)]


def _row(
    figure: Figure,
    top: float,
    study: xr.Dataset,
    gate: str,
    k: int,
    slopes: pd.DataFrame,
    *,
    labels: bool,
) -> None:
    """The panels of one gate and one fitted k, ``top`` inches from the figure's top."""
    marker = gate_markers(_study.gates(study))[gate]
    cell = study.sel(gate=gate, n_experts=k)
    panels = []
    for column, block in enumerate(_shown(study)):
        ax = axes_at(figure, _LEFT + column * _PITCH, top, _WIDTH, _HEIGHT)
        panel = Panel(ax, _WIDTH, _HEIGHT)
        if block == "temperature" and not bool(cell["has_temperature"]):
            ax.set_axis_off()
            panel.say("no temperature")
            continue
        size_axis(ax, study["n"].to_numpy(), _WIDTH, labels=labels)
        _panel(panel, cell, slopes, block, marker)
        panels.append(panel)
    finish_row(panels)
    panels[0].ax.set_ylabel("error", labelpad=2)
    look = {"rotation": 90, "ha": "left", "va": "center"}
    middle, name = top + _HEIGHT / 2, plain(cell["gate_label"].item())
    text_at(figure, 0.12, middle, name, size=9, weight="bold", **look)
    text_at(figure, 0.32, middle, _study.setting_of(cell), **look)


def _main(cell: xr.Dataset) -> str:
    """The kind of cells that theory speaks of: shared ones if there are too many experts."""
    return "shared" if int(cell["n_experts"]) > int(cell["n_experts_true"]) else "single"


def _panel(panel: Panel, cell: xr.Dataset, slopes: pd.DataFrame, block: str, marker: str) -> None:
    errors = cell.assign(error=cell["block_error"].sel(block=block))
    main = _main(cell)
    drawn = _study.series(errors.sel(cell=main), "error")
    for estimator, series in drawn.items():
        panel.draw(
            series,
            colour=ESTIMATOR_COLOURS[estimator],
            marker=marker,
            dodge=DODGE[estimator],
            label=f"{estimator} {main}",
        )
    if main == "shared" and block != "temperature":  # τ belongs to no cell
        for estimator, series in _study.series(errors.sel(cell="single"), "error").items():
            panel.draw_thin(series, ESTIMATOR_COLOURS[estimator], f"{estimator} single")
    exponent, text = _study.expected(cell, block)
    panel.reference(list(drawn.values()), exponent)
    spread = _study.spread(cell) if block == "temperature" else None
    if spread is not None:
        panel.draw(
            spread,
            colour=SPREAD_COLOUR,
            marker=marker,
            dodge=DODGE["temperature_sd"],
            label="temperature_sd",
            dashes=DOTS,
        )
    _strip(panel, cell, slopes, block, rate_math(exponent, text))


def _strip(panel: Panel, cell: xr.Dataset, slopes: pd.DataFrame, block: str, rate: str) -> None:
    """Write the expected rate and the measured slopes above a small panel."""
    where = str(cell["gate"].item()), int(cell["n_experts"])
    for estimator in _study.estimators(cell):
        row = _study.slope(slopes, *where, estimator, block, _main(cell))
        at, align = _position(estimator, _study.estimators(cell))
        value = np.nan if row is None else float(row["slope"])
        panel.above(at, 0, number(value), ESTIMATOR_COLOURS[estimator], align)
    panel.above(0, 1, rate, MUTED, "left", 10 if "$" in rate else 8)
    row = _study.slope(slopes, *where, "posterior", "temperature_sd")
    if block == "temperature" and row is not None:
        panel.above(1, 1, f"sd {number(row['slope'])}", SPREAD_COLOUR, "right")


def _position(estimator: str, names: Sequence[str]) -> tuple[float, str]:
    """Where an estimator's slope stands above a panel: beside EM there is room for four."""
    if "em" not in names:
        return _POSITIONS[estimator]
    step = (1 - 2 * _EDGE) / max(len(names) - 1, 1)
    return _EDGE + names.index(estimator) * step, "center"


def _legend(figure: Figure, study: xr.Dataset, fitted: Sequence[int]) -> None:
    keys = estimator_keys(_study.estimators(study), "posterior radius")
    if _study.temperature_gates(study) and "posterior" in _study.estimators(study):
        keys.append(key("posterior sd of τ", SPREAD_COLOUR, marker="o", dashes=DOTS))
    keys.append(expected_key())
    if max(fitted) > int(study["n_experts_true"].min()):
        keys.append(key("over-specified: atoms alone in their cell", MUTED, ls=":", lw=1.1))
    keys.append(hollow_key())
    legend(figure, keys, 4)
