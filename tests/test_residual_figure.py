"""The figure of residuals: closed forms, its points, colours and lines, levels, far rows."""

from __future__ import annotations

import itertools

import arviz_base
import numpy as np
import pytest
import scipy.special
import scipy.stats
from fabricated_fit import make_plane
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

import bayesmoe as bm
from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.diagnostics.left_out import LeftOut, left_out
from bayesmoe.diagnostics.posterior import DIMS
from bayesmoe.report.residual_figure import FAR, quantile_residuals, residual_figure
from bayesmoe.report.style import EXPERT_COLOURS

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    """By a covariate of numbers and one of 0 and 1."""
    return make_plane(binary=True)


@pytest.fixture(scope="module")
def rows(analysis: Analysis) -> LeftOut:
    return left_out(analysis.model.gate, analysis.posterior)


def points(ax: Axes) -> np.ndarray:
    return np.concatenate([np.asarray(part.get_offsets()) for part in ax.collections])


def groups(ax: Axes) -> list[tuple[float, float, float]]:
    """From where to where each black line goes, and its height."""
    lines = (np.asarray(line.get_xydata(), float) for line in ax.lines)
    return [(*xy[:, 0], xy[0, 1]) for xy in lines if not np.array_equal(xy[:, 0], [0, 1])]


def test_residuals_are_normal_quantiles_within_bounds() -> None:
    z = np.linspace(-5, 5, 41)
    np.testing.assert_allclose(quantile_residuals(scipy.stats.norm.cdf(z)), z, atol=1e-8)
    ends = quantile_residuals(np.array([0.0, 1e-300, 1 - 1e-16, 1.0]))
    np.testing.assert_array_equal(ends, [-FAR, -FAR, FAR, FAR])


def test_of_one_line_they_are_students_residuals() -> None:
    """One expert, draws of the exact posterior under a flat prior: t laws without each row.

    The law of a row left out is then Student's about the line of the others, and its residual is
    the normal quantile of the externally studentised one's probability.
    """
    rng = np.random.default_rng(4)
    n, shape = 40, (2, 2000)
    x = rng.normal(size=n)
    y = 1 + 2 * x + 0.5 * rng.normal(size=n)
    design = np.column_stack([x, np.ones(n)])
    inverse = np.linalg.inv(design.T @ design)
    best = inverse @ design.T @ y
    residual, leverage = y - design @ best, np.einsum("ij,jk,ik->i", design, inverse, design)
    variance = residual @ residual / rng.chisquare(n - 2, size=shape)
    noise = rng.normal(size=(*shape, 2)) @ np.linalg.cholesky(inverse).T
    coefficients = best + np.sqrt(variance)[..., None] * noise
    means = coefficients @ design.T
    zeros = np.zeros((*shape, 1))
    tree = arviz_base.from_dict(
        {
            "posterior": {
                "gate_slope": zeros[..., None], "gate_intercept": zeros,
                "temperature": np.ones(shape), "slope": coefficients[..., :1, None],
                "intercept": coefficients[..., 1:], "variance": variance[..., None],
            },
            "observed_data": {"y": y}, "constant_data": {"x": x[:, None]},
            "log_likelihood": {
                "y": scipy.stats.norm(means, np.sqrt(variance)[..., None]).logpdf(y)
            },
        },
        dims=DIMS,
    )  # fmt: skip
    others = (residual @ residual - residual**2 / (1 - leverage)) / (n - 3)
    student = residual / np.sqrt(others * (1 - leverage))
    expected = scipy.stats.norm.ppf(scipy.stats.t(n - 3).cdf(student))
    found = quantile_residuals(left_out(bm.moe("softmax", 1).gate, tree).pit)
    np.testing.assert_allclose(found, expected, atol=0.1)
    # rows taken in are nearer to the line
    inside = scipy.stats.norm.ppf(scipy.stats.norm(means, np.sqrt(variance)[..., None]).cdf(y)
                                  .mean((0, 1)))  # fmt: skip
    assert np.abs(found).sum() > np.abs(inside).sum() + 1.0


def test_points_have_their_places_and_colours(analysis: Analysis, rows: LeftOut) -> None:
    first, second = residual_figure(analysis, rows).axes
    x, y = analysis.table.x.to_numpy(), analysis.table.y.to_numpy()
    expected = scipy.stats.norm.ppf(rows.pit)
    np.testing.assert_allclose(points(first), np.column_stack([x[:, 0], expected]))
    np.testing.assert_allclose(points(second)[:, 1], expected)
    assert np.abs(points(second)[:, 0] - x[:, 1]).max() <= 0.3 + 1e-12
    for level in (0, 1):
        places = np.sort(points(second)[x[:, 1] == level, 0])
        assert np.diff(places).min() > 0, "no two rows in one place"
        assert np.diff(places).max() < 0.2, "spread evenly"
    centre = analysis.map.measure
    density = scipy.stats.norm(
        x @ np.asarray(centre.slope).T + np.asarray(centre.intercept), np.sqrt(centre.variance)
    ).pdf(y[:, None])
    logit = x @ np.asarray(centre.gate_slope[0]) + 0.5
    joint = density * scipy.special.expit(np.stack([logit, -logit], axis=1))
    shares = joint / joint.sum(1, keepdims=True)
    colours = shares @ [to_rgb(colour) for colour in EXPERT_COLOURS[:2]]
    np.testing.assert_allclose(first.collections[0].get_facecolors()[:, :3], colours, atol=1e-9)


def test_lines_are_means_and_deviations_of_neighbours(analysis: Analysis, rows: LeftOut) -> None:
    first, second = residual_figure(analysis, rows).axes
    x, z = analysis.table.x.to_numpy(), scipy.stats.norm.ppf(rows.pit)
    parts = [(x[part, 0].min(), x[part, 0].max(), z[part])
             for part in np.argsort(x[:, 0]).reshape(5, 12)]  # fmt: skip
    levels = [(level - 0.3, level + 0.3, z[x[:, 1] == level]) for level in (0.0, 1.0)]
    for ax, wanted in ((first, parts), (second, levels)):
        expected = [
            (low, high, part.mean() + side * part.std(ddof=1))
            for (low, high, part), side in itertools.product(wanted, (-1, 0, 1))
        ]
        np.testing.assert_allclose(groups(ax), expected)


def test_rows_far_out_are_triangles_in_the_panel(analysis: Analysis) -> None:
    pit = np.linspace(0.01, 0.99, 60)
    pit[3], pit[4] = 0.0, 1.0
    figure = residual_figure(analysis, LeftOut(pit, np.zeros(60)))
    ax = figure.axes[0]
    heights = [np.asarray(part.get_offsets())[:, 1] for part in ax.collections]
    assert [len(part) for part in heights] == [58, 1, 1]
    assert (heights[1].item(), heights[2].item()) == (FAR, -FAR)
    low, high = ax.get_ylim()
    assert low < -FAR < FAR < high
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[-1] == "6 or more off"
    pit[10] = np.nan  # not drawn, and left out of its neighbours' mean
    ax = residual_figure(analysis, LeftOut(pit, np.zeros(60))).axes[0]
    assert [len(part.get_offsets()) for part in ax.collections] == [57, 1, 1]
    assert len(groups(ax)) == 15
    assert np.isfinite([height for *_, height in groups(ax)]).all()
    usual = residual_figure(analysis, LeftOut(np.linspace(0.01, 0.99, 60), np.zeros(60)))
    assert "6 or more off" not in [text.get_text() for text in usual.legends[0].get_texts()]
