"""The figure of pairs: its colours and lines against logistic functions, and which pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.special
from fabricated_fit import PLANE, make_analysis, make_plane
from matplotlib.colors import to_rgb

from bayesmoe.core.measure import MixingMeasure
from bayesmoe.data.table import Axis
from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.report.pairs_figure import paired_covariates, pairs_figure
from bayesmoe.report.style import EXPERT_COLOURS

pytestmark = pytest.mark.filterwarnings("error")

COLOURS = np.array([to_rgb(colour) for colour in EXPERT_COLOURS[:2]])


def wide(slopes: list[float]) -> Analysis:
    """By as many covariates as gate slopes, of which draws do not matter."""
    analysis, d = make_plane(), len(slopes)
    x = np.random.default_rng(0).normal(size=(60, d)) + np.arange(d)
    measure = MixingMeasure([slopes, np.zeros(d)], [-1.0, 0.0], 1.0, np.ones((2, d)), [0.0, 1.0],
                            [1.0, 1.0])  # fmt: skip
    names = [f"x{j}" for j in range(d)]
    table = analysis.table._replace(x=pd.DataFrame(x, columns=names))
    return analysis._replace(table=table, map=analysis.map.__class__(
        **{**vars(analysis.map), "measure": measure}
    ))  # fmt: skip


def test_the_background_is_the_gate_of_the_map() -> None:
    (ax,) = pairs_figure(make_plane()).axes
    (image,) = ax.images
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert image.get_extent() == [left, right, bottom, top]
    shown = np.asarray(image.get_array())
    for i, j in ((0, 0), (5, 70), (79, 40)):  # up, across
        u, v = left + (j + 0.5) / 80 * (right - left), bottom + (i + 0.5) / 80 * (top - bottom)
        share = scipy.special.expit(4 * u - 2 * v + 0.5)
        expected = 1 - 0.22 * (1 - np.array([share, 1 - share]) @ COLOURS)
        np.testing.assert_allclose(shown[i, j], expected, atol=1e-6)
    line = np.concatenate([path.vertices for path in ax.collections[0].get_paths()])
    np.testing.assert_allclose(4 * line[:, 0] - 2 * line[:, 1] + 0.5, 0, atol=0.02)


def test_other_covariates_are_at_their_medians() -> None:
    analysis = wide([1.0, -2.0, 0.5])
    axes = pairs_figure(analysis).axes
    x = analysis.table.x
    for ax, (i, j) in zip(axes, itertools.combinations(range(3), 2), strict=True):
        assert (ax.get_xlabel(), ax.get_ylabel()) == (f"x{i}", f"x{j}")
        at = x.median().to_numpy().copy()
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        at[[i, j]] = left + 0.5 / 80 * (right - left), bottom + 20.5 / 80 * (top - bottom)
        share = scipy.special.expit(at @ [1.0, -2.0, 0.5] - 1.0)
        expected = 1 - 0.22 * (1 - np.array([share, 1 - share]) @ COLOURS)
        np.testing.assert_allclose(np.asarray(ax.images[0].get_array())[20, 0], expected, atol=1e-6)
        places = np.asarray(ax.collections[-1].get_offsets())
        np.testing.assert_array_equal(places, x.to_numpy()[:, [i, j]])


def test_of_many_covariates_the_gate_says_which() -> None:
    assert paired_covariates(wide([0.1, 0, 1.0, 0.0])) == [0, 1, 2, 3]
    slopes = [0.1, -1.0, 0.0, 0.4, 0.2, 0.9]
    assert paired_covariates(wide(slopes)) == [1, 3, 4, 5]
    assert paired_covariates(wide([0.0] * 6)) == [0, 1, 2, 3], "the first, where all are alike"
    assert len(pairs_figure(wide(slopes)).axes) == 6


def test_weights_that_are_constant_have_no_line() -> None:
    figure = pairs_figure(wide([0.0, 0.0]))
    (ax,) = figure.axes
    assert len(ax.collections) == 1, "the rows"
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["expert 0", "expert 1"]


def test_rows_at_levels_are_spread_both_ways() -> None:
    analysis = make_plane()
    x = pd.DataFrame(np.tile([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]], (20, 1)), columns=["u", "v"])
    (ax,) = pairs_figure(analysis._replace(table=analysis.table._replace(x=x))).axes
    places = np.asarray(ax.collections[-1].get_offsets())
    assert np.abs(places - x.to_numpy()).max() <= 0.3 + 1e-12
    corner = places[(x.to_numpy() == [0, 1]).all(1)]
    assert abs(np.corrcoef(corner.T)[0, 1]) < 0.7, "not along a diagonal"
    np.testing.assert_array_equal(ax.get_xticks(), [0, 1])


def test_what_has_no_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="needs two covariates that no formula made, got u; use"):
        pairs_figure(make_analysis())
    axis = Axis("u", np.zeros(60), np.zeros(2), np.zeros((2, 2)), {})
    with pytest.raises(ValueError, match="got u, v"):
        pairs_figure(make_plane()._replace(axis=axis))
    assert PLANE.n_covariates == 2
