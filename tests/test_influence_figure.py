"""The figure of influence: its numbers against ArviZ, its limit, and the rows it names."""

from __future__ import annotations

import itertools

import arviz_stats
import numpy as np
import pytest
from fabricated_fit import make_analysis
from matplotlib.axes import Axes

from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.diagnostics.left_out import LeftOut, left_out
from bayesmoe.report.influence_figure import MOST_LABELLED, influence_figure, worst_rows


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return make_analysis()


def drawn(ax: Axes) -> dict[int, float]:
    """Height of the point of each row."""
    dots = [line for line in ax.lines if line.get_linestyle() == "None"]
    found = np.concatenate([np.asarray(line.get_xydata(), float) for line in dots])
    return {int(row): height for row, height in found}


def named(ax: Axes) -> list[str]:
    texts = [text.get_text() for text in ax.texts]
    return [text for text in texts if text.replace("\u2009", "").isdigit()]


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_numbers_are_those_of_arviz_by_row_from_one(analysis: Analysis) -> None:
    rows = left_out(analysis.model.gate, analysis.posterior)
    (ax,) = influence_figure(analysis, rows).axes
    k = arviz_stats.loo(analysis.posterior, var_name="y", pointwise=True).pareto_k.values
    found = drawn(ax)
    assert sorted(found) == list(range(1, 61))
    np.testing.assert_allclose([found[row] for row in range(1, 61)], k, rtol=1e-9)


def test_the_limit_falls_with_few_draws(analysis: Analysis) -> None:
    (ax,) = influence_figure(analysis, LeftOut(np.zeros(60), np.zeros(60))).axes
    (limit,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert limit.get_ydata()[0] == pytest.approx(0.5)  # 1 - 1/log10(100)


def test_rows_above_the_limit_are_named(analysis: Analysis) -> None:
    k = np.linspace(0.0, 0.4, 60)
    k[[7, 41]] = 0.6, 1.7
    (ax,) = influence_figure(analysis, LeftOut(np.zeros(60), k)).axes
    assert named(ax) == ["42", "8"]
    assert ax.get_ylim()[1] > 1.7
    k[[7, 41]] = 0.2
    (ax,) = influence_figure(analysis, LeftOut(np.zeros(60), k)).axes
    assert named(ax) == ["60", "59", "58"], "the largest, where none is above"


def test_numbers_that_are_not_finite_are_worst_and_in_the_panel(analysis: Analysis) -> None:
    k = np.full(60, 0.1)
    k[[4, 9]] = np.inf, np.nan
    (ax,) = influence_figure(analysis, LeftOut(np.zeros(60), k)).axes
    assert named(ax) == ["5", "10"]
    found = drawn(ax)
    assert len(found) == 60
    low, high = ax.get_ylim()
    assert all(low <= height <= high for height in found.values())


def test_of_many_rows_the_worst_are_named_apart(analysis: Analysis) -> None:
    k = np.random.default_rng(0).uniform(0.8, 1.0, 3000)
    rows = worst_rows(k, 0.7)
    assert len(rows) == MOST_LABELLED
    assert set(rows) == set(np.argsort(k)[-MOST_LABELLED:])
    figure = influence_figure(analysis, LeftOut(np.zeros(3000), k))
    figure.canvas.draw()
    (ax,) = figure.axes
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text() in named(ax)]
    assert len(boxes) == MOST_LABELLED
    boxes.sort(key=lambda box: box.x0)
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
