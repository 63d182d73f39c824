"""The forest plot of rates: which slopes it shows, where, and what it says of those it has not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from test_report import (
    DENSE,
    GATES,
    SIZES,
    SOFTMAX,
    Study,
    assert_texts_are_apart,
    make_plan,
    make_study,
)

from bayesmoe.report._forest import rates
from bayesmoe.report.style import ESTIMATOR_COLOURS
from bayesmoe.study.results import settings

pytestmark = pytest.mark.filterwarnings("error")

BLOCKS = ("gate_slope", "slope", "intercept", "variance")
ROWS = {
    SOFTMAX: ("normalised_loss", *BLOCKS),
    DENSE: (
        "normalised_loss", "normalised_identified_loss", "gate_slope", "temperature", *BLOCKS[1:],
    ),
}  # fmt: skip
ESTIMATORS = ("mle", "map")
COLUMNS = ((2, "single"), (3, "shared"), (3, "single"))


@pytest.fixture(scope="module")
def study() -> Study:
    plan = make_plan(gates=GATES[:2], sizes=SIZES[:3], replicates=9, estimators=list(ESTIMATORS))
    return make_study(plan)


@pytest.fixture(scope="module")
def figure(study: Study) -> Figure:
    return rates(study.one, study.slopes)


def panel(figure: Figure, gate: str, column: int) -> Axes:
    return figure.axes[len(COLUMNS) * list(ROWS).index(gate) + column]


def points(ax: Axes, estimator: str) -> dict[int, tuple[float, bool]]:
    """An estimator's slopes by row, and whether each point is filled."""
    return {
        round(float(line.get_ydata()[0])): (
            float(line.get_xdata()[0]),
            line.get_markerfacecolor() != "white",
        )
        for line in ax.get_lines()
        if line.get_label() == estimator
    }


def bars(ax: Axes, estimator: str) -> dict[int, list[float]]:
    """An estimator's intervals as drawn, by row."""
    found = {}
    for lines in ax.collections:
        if isinstance(lines, LineCollection) and lines.get_label() == estimator:
            ((left, y), (right, _)) = lines.get_segments()[0]
            found[round(float(y))] = [float(left), float(right)]
    return found


def ticks(ax: Axes) -> dict[int, float]:
    """The expected exponents by row."""
    lines = [line for line in ax.get_lines() if line.get_label() == "_expected"]
    return {round(float(np.mean(line.get_ydata()))): float(line.get_xdata()[0]) for line in lines}


def outside(figure: Figure, label: str) -> list[Line2D]:
    """Marks beside the panels: crosses and arrows."""
    lines = [artist for artist in figure.artists if isinstance(artist, Line2D)]
    return [line for line in lines if line.get_label() == label]


def key_names(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def select(table: pd.DataFrame, **where: Any) -> pd.Series:
    """The one row with these values; no cell stands for a missing one."""
    for name, value in where.items():
        table = table[table[name].isna() if value is None else table[name] == value]
    (row,) = table.to_dict("records")
    return pd.Series(row)


# rows of atoms that share a cell under the softmax gate, by MAP: slope, low, high, and the arrows
ODD = {
    "gate_slope": (-0.3, np.nan, np.nan, ""),
    "slope": (np.nan, np.nan, np.nan, ""),
    "intercept": (-0.2, -7.0, 9.0, "<>"),
    "variance": (-5.0, -7.0, -4.0, "<"),
}


@pytest.fixture(scope="module")
def odd(study: Study) -> Figure:
    """With slopes that have no interval, that are missing, and that leave the axis."""
    table = study.slopes.copy()
    # some rows are not there at all: τ of the MLE, and all variances of one gate
    table = table[(table["estimator"] != "mle") | (table["quantity"] != "temperature")]
    table = table[(table["gate"] != DENSE) | (table["quantity"] != "variance")]
    same = (table["gate"] == SOFTMAX) & (table["estimator"] == "map") & (table["cell"] == "shared")
    for name, (*values, _) in ODD.items():
        table.loc[same & (table["quantity"] == name), ["slope", "low", "high"]] = values
    return rates(study.one, table)


@pytest.mark.parametrize("gate", ROWS)
@pytest.mark.parametrize("column", range(3))
def test_every_slope_stands_in_its_row_with_its_interval_and_the_expected_exponent(
    study: Study, figure: Figure, gate: str, column: int
) -> None:
    (k, cell), ax = COLUMNS[column], panel(figure, gate, column)
    of_no_cell = {"normalised_loss", "normalised_identified_loss", "temperature"}
    shown = {
        place: name for place, name in enumerate(ROWS[gate]) if column < 2 or name not in of_no_cell
    }
    low, high = ax.get_xlim()
    for estimator in ESTIMATORS:
        drawn, lines = points(ax, estimator), bars(ax, estimator)
        assert set(drawn) == set(lines) == set(shown)
        for place, name in shown.items():
            atoms = None if name.endswith("loss") else cell
            row = select(
                study.slopes, gate=gate, n_experts=k, estimator=estimator, quantity=name, cell=atoms
            )
            assert drawn[place] == (pytest.approx(row["slope"]), True)
            assert lines[place] == pytest.approx(np.clip([row["low"], row["high"]], low, high))
            assert ticks(ax)[place] == pytest.approx(row["expected"])
    said = sum(text.get_text() == "of no cell" for text in ax.texts)
    assert said == len(ROWS[gate]) - len(shown)


def test_columns_gates_and_rows_are_named(figure: Figure) -> None:
    shown = [text.get_text() for text in figure.texts]
    assert [text for text in shown if "k =" in text] == ["exact, k = 2", "over-specified, k = 3"]
    assert {"atoms that share a cell", "atoms alone in their cell"} <= set(shown)
    assert {"● softmax", "■ dense-to-sparse"} <= set(shown)
    names = [label.get_text() for label in panel(figure, DENSE, 0).get_yticklabels()]
    assert names[:2] == ["normalised loss", "loss modulo the ray"]
    assert len(names) == len(ROWS[DENSE])
    assert key_names(figure) == ["MLE", "MAP", "expected exponent", "0: does not contract"]
    exponents = [text.get_text() for text in panel(figure, SOFTMAX, 1).texts]
    assert exponents == [f"$n^{{-{power}}}$" for power in ("1/2", "1/8", "1/4", "1/8", "1/4")]
    assert "none (ray)" in [text.get_text() for text in panel(figure, DENSE, 0).texts]
    assert len({ax.get_xlim() for ax in figure.axes}) == 1, "slopes are compared across panels"
    assert_texts_are_apart(figure)


def test_a_slope_without_interval_is_hollow(odd: Figure) -> None:
    ax, place = panel(odd, SOFTMAX, 1), ROWS[SOFTMAX].index("gate_slope")
    assert points(ax, "map")[place] == (-0.3, False)
    assert place not in bars(ax, "map")
    assert "no interval" in key_names(odd)


def test_a_slope_that_is_missing_is_a_cross_whether_it_has_a_row_of_the_table_or_not(
    odd: Figure,
) -> None:
    assert ROWS[SOFTMAX].index("slope") not in points(panel(odd, SOFTMAX, 1), "map")
    missing = ["map", "mle", "mle", *ESTIMATORS * len(COLUMNS)]
    colours = [cross.get_color() for cross in outside(odd, "_no slope")]
    assert sorted(colours) == sorted(ESTIMATOR_COLOURS[name] for name in missing)
    assert "no slope" in key_names(odd)
    assert len(panel(odd, DENSE, 0).get_yticklabels()) == len(ROWS[DENSE])
    assert_texts_are_apart(odd)


def test_what_lies_beyond_the_axis_is_an_arrow(odd: Figure) -> None:
    found = "".join(str(arrow.get_marker()) for arrow in outside(odd, "_beyond"))
    assert found == "".join(arrows for *_, arrows in ODD.values())
    drawn = points(panel(odd, SOFTMAX, 1), "map")
    assert [name in drawn for name in map(ROWS[SOFTMAX].index, ODD)] == [True, False, True, False]
    assert "beyond the axis" in key_names(odd)
    low, high = odd.axes[0].get_xlim()
    assert -2 < low < high < 1.2, "one wild slope does not squeeze all others"


def test_a_rate_that_is_not_known_has_a_name_and_no_tick(study: Study) -> None:
    table = study.slopes.assign(expected=np.nan, expected_text="not known")
    figure = rates(study.one, table)
    assert not any(ticks(ax) for ax in figure.axes)
    assert [text.get_text() for text in figure.axes[0].texts] == ["not known"] * len(ROWS[SOFTMAX])


def test_one_gate_exactly_specified_has_one_panel(study: Study) -> None:
    (one,) = settings(study.results.isel(gate=[0], n_experts=[0]))
    figure = rates(one, study.slopes)
    (ax,) = figure.axes
    assert set(points(ax, "mle")) == set(range(len(ROWS[SOFTMAX])))
    assert_texts_are_apart(figure)


def test_many_fitted_numbers_stand_in_bands_below_each_other(study: Study) -> None:
    copies = [study.results.isel(n_experts=[i]).assign_coords(n_experts=[k])
              for i, k in ((0, 2), (1, 3), (1, 4))]  # fmt: skip
    (one,) = settings(xr.concat(copies, "n_experts", data_vars="minimal"))
    more = study.slopes[study.slopes["n_experts"] == 3].assign(n_experts=4)
    figure = rates(one, pd.concat([study.slopes, more]))
    assert len(figure.axes) == 2 * (3 + 2)
    assert len({round(ax.get_position().x0, 6) for ax in figure.axes}) == 3
    lower = figure.axes[6:]
    assert max(ax.get_position().y1 for ax in lower) < min(
        ax.get_position().y0 for ax in figure.axes[:6]
    )
    assert points(lower[0], "mle") == points(figure.axes[1], "mle")
    assert_texts_are_apart(figure)
