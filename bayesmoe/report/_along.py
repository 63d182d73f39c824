"""The covariate that figures of a fit run along, and where all others are held meanwhile."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bayesmoe.data.table import Axis
from bayesmoe.report.style import short

_POINTS = 161
_LONGEST = 64  # characters of names and values that a figure has room for


def first_axis(x: pd.DataFrame, points: np.ndarray | None = None) -> Axis:
    """The first covariate, the others at their medians; by default all along its range."""
    values, medians = x.to_numpy(), x.median()
    if points is None:
        points = np.linspace(values[:, 0].min(), values[:, 0].max(), _POINTS)
    at = np.tile(medians.to_numpy(), (len(points), 1))
    at[:, 0] = points
    held: dict[str, float | str] = {str(name): float(v) for name, v in medians.iloc[1:].items()}
    return Axis(str(x.columns[0]), values[:, 0], at[:, 0], at, held)


def held_text(values: dict[str, float | str]) -> str:
    """Where other columns are held, or their number if they are many."""
    levels = any(isinstance(value, str) for value in values.values())
    numbers = any(isinstance(value, float) for value in values.values())
    what = " and ".join(["medians"] * numbers + ["most frequent levels"] * levels)
    named = ", ".join(
        f"{short(name, 20)} = "
        f"{figure_number(value) if isinstance(value, float) else short(value, 20)}"
        for name, value in values.items()
    )
    if len(values) > 3 or len(named) > _LONGEST:
        return f"the {what} of the {len(values)} other covariates"
    return named if levels else f"the {what} of {named}"


def figure_number(value: float) -> str:
    """Four significant digits with a typographic minus sign."""
    return f"{value:.4g}".replace("-", "−")
