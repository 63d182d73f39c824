"""The figure of calibration: its points against SciPy, its lines, its panels, hostile names."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
from fabricated_fit import HOSTILE, make_analysis
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesmoe.data.table import Axis
from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.diagnostics.left_out import LeftOut, left_out
from bayesmoe.report.figures import save
from bayesmoe.report.pit_figure import pit_figure

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return make_analysis()


@pytest.fixture(scope="module")
def rows(analysis: Analysis) -> LeftOut:
    return left_out(analysis.model.gate, analysis.posterior)


def points(ax: Axes) -> np.ndarray:
    (line,) = (line for line in ax.lines if line.get_marker() == "o")
    return np.asarray(line.get_xydata())


def segments(ax: Axes) -> list[np.ndarray]:
    lines = (np.asarray(line.get_xydata(), float) for line in ax.lines if line.get_marker() != "o")
    return [xy for xy in lines if not np.array_equal(xy[:, 0], [0, 1])]


def spread(figure: Figure) -> list[str]:
    return [ax.get_xlabel() for ax in figure.axes]


def test_left_out_rows_are_weighted_draws(analysis: Analysis) -> None:
    """The PIT of each row is the draws' mean of P(Y <= y|x), weighted by 1/g(y|x).

    Here no row's weights are so uneven that smoothing their largest changes much.
    """
    tree = analysis.posterior
    x, y = (np.asarray(tree[group][name]) for group, name in
            (("constant_data", "x"), ("observed_data", "y")))  # fmt: skip
    draws = {name: np.asarray(values) for name, values in tree["posterior"].items()}
    logits = draws["gate_slope"] @ x.T + draws["gate_intercept"][..., None]
    means = draws["slope"] @ x.T + draws["intercept"][..., None]
    laws = scipy.stats.norm(means, np.sqrt(draws["variance"])[..., None])
    shares = scipy.special.softmax(logits, axis=-2)
    below, density = (shares * laws.cdf(y)).sum(-2), (shares * laws.pdf(y)).sum(-2)
    expected = (below / density).sum((0, 1)) / (1 / density).sum((0, 1))
    found = left_out(analysis.model.gate, tree)
    assert found.pareto_k.shape == (len(y),)
    np.testing.assert_allclose(found.pit, expected, atol=0.01)
    assert np.abs(found.pit - below.mean((0, 1))).max() > 1e-4  # of all rows, it is another


def test_of_rows_above_all_else_the_pit_is_at_most_one(analysis: Analysis) -> None:
    tree = analysis.posterior.copy(deep=True)
    tree["observed_data"]["y"] += 1e3
    pit = left_out(analysis.model.gate, tree).pit
    assert np.all((pit > 0.999) & (pit <= 1))


def test_points_and_quartiles_are_those_of_the_rows(analysis: Analysis, rows: LeftOut) -> None:
    (ax,) = pit_figure(analysis, rows).axes
    pit, x = rows.pit, analysis.table.x.iloc[:, 0].to_numpy()
    np.testing.assert_array_equal(points(ax), np.column_stack([x, pit]))
    order = np.argsort(x).reshape(5, 12)
    expected = [
        (x[rows[0]], x[rows[-1]], np.quantile(pit[rows], level))
        for rows, level in itertools.product(order, (0.25, 0.5, 0.75))
    ]
    drawn = [(*xy[:, 0], xy[0, 1]) for xy in segments(ax)]
    np.testing.assert_allclose(drawn, expected)
    assert all(xy[0, 1] == xy[1, 1] for xy in segments(ax))


@pytest.mark.parametrize(("d", "lines"), [(1, 1), (3, 1), (4, 2)])
def test_each_covariate_has_a_panel(analysis: Analysis, rows: LeftOut, d: int, lines: int) -> None:
    names = ("u", "v", "w", "z")[:d]
    x = np.random.default_rng(0).normal(size=(60, d))
    table = analysis.table._replace(x=pd.DataFrame(x, columns=names))
    figure = pit_figure(analysis._replace(table=table), rows)
    assert spread(figure) == list(names)
    for ax, values in zip(figure.axes, x.T, strict=True):
        np.testing.assert_array_equal(points(ax)[:, 0], values)
    boxes = [ax.get_position() for ax in figure.axes]
    assert len({round(box.y0, 6) for box in boxes}) == lines
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_derived_covariates_are_shown_by_their_column(analysis: Analysis, rows: LeftOut) -> None:
    values = np.linspace(1, 2, 60)
    axis = Axis("raw", values, values[:2], np.zeros((2, 1)), {})
    figure = pit_figure(analysis._replace(axis=axis), rows)
    assert spread(figure) == ["raw"]
    np.testing.assert_array_equal(points(figure.axes[0])[:, 0], values)


def test_hostile_names_are_written_as_they_are(tmp_path: Path, rows: LeftOut) -> None:
    figure = pit_figure(make_analysis(names=(f"$x_{{ {HOSTILE}" + "long " * 30, "y")), rows)
    (label,) = spread(figure)
    assert label.startswith(r"\$x_{ <script>")
    assert label.endswith("…")
    save(figure, tmp_path / "pit")
    assert (tmp_path / "pit.png").stat().st_size > 5000
