"""Predictive densities: against loops over draws, their integrals, rows beside them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from conftest import CASE
from fabricated_fit import HOSTILE, make_analysis, make_plane
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from test_dependence_figure import scattered
from test_fit_figure import make_analysis as make_any
from test_fit_figure import texts

from bayesmoe.core.measure import MixingMeasure
from bayesmoe.data.table import Axis
from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.report._along import held_text
from bayesmoe.report._curves import thinned
from bayesmoe.report._panels import posterior_draws
from bayesmoe.report.density_figure import (
    MOST,
    Laws,
    densities,
    density_figure,
    density_grid,
    find_laws,
    find_places,
    is_uneven,
    mean_density,
    nearest_rows,
)
from bayesmoe.report.style import EXPERT_COLOURS

Law = Callable[..., np.ndarray]
pytestmark = pytest.mark.filterwarnings("error")


def normal(y: np.ndarray, mean: float, sd: float) -> np.ndarray:
    return np.exp(-((y - mean) ** 2) / (2 * sd**2)) / np.sqrt(2 * np.pi * sd**2)


def written_out(
    draws: MixingMeasure, x: np.ndarray, y: np.ndarray, top_k: int, law: Law = normal
) -> np.ndarray:
    """p(y|x) of each draw, chain by chain, for x of shape (d,): gates and experts in loops."""
    found = []
    for one in itertools.product(*map(range, draws.batch_shape)):
        beta1, beta0, a, b, nu = (
            np.asarray(getattr(draws, name))[one]
            for name in ("gate_slope", "gate_intercept", "slope", "intercept", "variance")
        )
        logits = [beta1[i] @ x + beta0[i] for i in range(len(b))]
        kept = sorted(logits)[-top_k:]
        powers = [np.exp(z - max(logits)) * (z in kept) for z in logits]
        total = np.zeros(len(y))
        for i, power in enumerate(powers):
            total += power / sum(powers) * law(y, a[i] @ x + b[i], np.sqrt(nu[i]))
        found.append(total)
    return np.array(found)


# --- numbers


@pytest.mark.parametrize(("name", "top_k"), [("softmax", 3), ("top_k_sparse", 2)])
def test_densities_are_those_of_a_loop_over_draws(name: str, top_k: int) -> None:
    case = CASE[name]
    draws = scattered(case.measure(2, 3, 2), (2, 7))
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(4, 2)), np.linspace(-8, 8, 57)
    laws = find_laws(case.gate(3), thinned(draws), x)
    every = [written_out(draws, point, y, top_k) for point in x]
    for i, expected in enumerate(every):
        found = densities(laws.at(i), y)
        np.testing.assert_allclose(found.centre, expected.mean(0), rtol=1e-12, atol=1e-300)
        np.testing.assert_allclose(found.low, np.quantile(expected, 0.05, axis=0), rtol=1e-11)
        np.testing.assert_allclose(found.high, np.quantile(expected, 0.95, axis=0), rtol=1e-11)
    averaged = mean_density(laws.at(slice(1, 4)), y)
    np.testing.assert_allclose(averaged, np.mean(every[1:], axis=(0, 1)), rtol=1e-12)


def test_draws_are_thinned_evenly() -> None:
    draws = scattered(CASE["softmax"].measure(2, 3, 2), (2, 30))
    kept = np.asarray(thinned(draws, 4).variance)
    every = np.asarray(draws.variance).reshape(60, 3)
    np.testing.assert_array_equal(kept, every[[0, 20, 39, 59]])


def test_a_density_integrates_to_one_however_narrow_an_expert_is() -> None:
    """The narrow one has a 100 000th of the range; its mean differs from draw to draw."""
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(300, 3))
    law = Laws(
        np.tile([0.2, 0.3, 0.5], (300, 1)),
        np.array([-3.0, 1.0, 2.0]) + np.array([0.1, 2e-4, 0.0]) * noise,
        np.array([1.0, 2e-4, 1e-2]) * np.exp(0.1 * noise),
    )
    grid = density_grid(law, -10.0, 10.0)
    assert np.all(np.diff(grid) > 0)
    assert (grid[0], grid[-1]) == (-10, 10)
    assert len(grid) < 1100, "few, whatever the draws"
    found = densities(law, grid)
    assert np.trapezoid(found.centre, grid) == pytest.approx(1, abs=3e-4)
    sharp = (grid > 0.99) & (grid < 1.01)
    assert np.trapezoid(found.centre[sharp], grid[sharp]) == pytest.approx(0.3, abs=1e-3)


# --- where


def test_values_are_quantiles_that_occur() -> None:
    analysis = make_plane(names=("u", "v"))
    places, x = find_places(analysis), analysis.table.x
    ranks = [np.sum(x["u"] <= point) for point in places.points]
    np.testing.assert_allclose((np.array(ranks) - 1) / 59, [0.1, 0.3, 0.5, 0.7, 0.9], atol=0.5 / 59)
    assert set(places.points) <= set(x["u"])
    np.testing.assert_array_equal(places.at[:, 0], places.points)
    np.testing.assert_array_equal(places.at[:, 1], np.median(x["v"]))


def test_few_values_have_a_panel_each() -> None:
    """However rare they are."""
    analysis = make_analysis()
    rare = pd.DataFrame({"u": np.r_[np.zeros(57), np.ones(2), 3.0]})
    places = find_places(analysis._replace(table=analysis.table._replace(x=rare)))
    np.testing.assert_array_equal(places.points, [0.0, 1.0, 3.0])


def test_columns_of_formulas_have_the_nearest_points_that_were_kept() -> None:
    """Their covariates cannot be computed anew; equal points are drawn once."""
    analysis = make_analysis()
    values = np.r_[np.linspace(1, 2, 59), 100.0]
    points = np.array([1.0, 1.45, 60.0, 100.0])
    axis = Axis("raw", values, points, np.log(points)[:, None], {"w": 1.5})
    places = find_places(analysis._replace(axis=axis))
    np.testing.assert_array_equal(places.points, [1.0, 1.45])
    np.testing.assert_array_equal(places.at, np.log([[1.0], [1.45]]))


@pytest.mark.parametrize(("n", "number"), [(3, 1), (28, 6), (60, 12), (250, 50), (20_000, 50)])
def test_rows_are_the_nearest(n: int, number: int) -> None:
    values = np.random.default_rng(3).normal(size=n)
    near = nearest_rows(values, 0.3)
    assert len(near.rows) == number <= MOST
    others = np.setdiff1d(np.arange(n), near.rows)
    assert np.abs(values[near.rows] - 0.3).max() < np.abs(values[others] - 0.3).min()
    assert (near.low, near.high) == (values[near.rows].min(), values[near.rows].max())


def test_of_rows_equally_near_not_the_first_are_taken() -> None:
    """A table may be sorted by y within the levels of x."""
    values = np.repeat([0.0, 1.0], 500)
    rows = nearest_rows(values, 1.0).rows
    assert len(rows) == 50
    assert rows.min() >= 500
    assert 650 < rows.mean() < 850
    np.testing.assert_array_equal(rows, nearest_rows(values, 1.0).rows)


# --- the figure


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return make_analysis()


@pytest.fixture(scope="module")
def figure(analysis: Analysis) -> Figure:
    return density_figure(analysis)


def line(ax: Axes, label: str) -> np.ndarray:
    (found,) = [artist for artist in ax.get_lines() if artist.get_label() == label]
    return np.asarray(found.get_xydata())


def test_lines_and_bands_are_the_densities(analysis: Analysis, figure: Figure) -> None:
    draws, x = posterior_draws(analysis), analysis.table.x["u"].to_numpy()
    points = find_places(analysis).points
    assert len(figure.axes) == len(points) == 5
    limits = figure.axes[0].get_xlim()
    for ax, point in zip(figure.axes, points, strict=True):
        assert ax.get_xlim() == limits
        y, density = line(ax, "mean").T
        assert (y[0], y[-1]) == limits
        each = written_out(draws, np.array([point]), y, 2)
        np.testing.assert_allclose(density, each.mean(0), atol=1e-12)
        (band,) = [part for part in ax.collections if isinstance(part, PolyCollection)]
        outline = band.get_paths()[0].vertices
        for quantile in (0.05, 0.95):
            at = int(density.argmax())
            level = np.quantile(each[:, at], quantile)
            assert np.abs(outline[outline[:, 0] == y[at], 1] - level).min() < 1e-12
        rows = nearest_rows(x, point).rows
        own = [written_out(draws, x[[row]], y, 2).mean(0) for row in rows]
        np.testing.assert_allclose(line(ax, "mean of rows")[:, 1], np.mean(own, 0), atol=1e-12)


def test_lines_hold_what_lies_between_their_ends(analysis: Analysis, figure: Figure) -> None:
    """By the experts' distribution functions: nearly all."""
    draws = posterior_draws(analysis)
    for ax, point in zip(figure.axes, find_places(analysis).points, strict=True):
        y, density = line(ax, "mean").T
        ends = written_out(draws, np.array([point]), y[[0, -1]], 2, scipy.stats.norm.cdf)
        held = np.diff(ends.mean(0))[0]
        assert np.trapezoid(density, y) == pytest.approx(held, abs=2e-4)
        assert 0.98 < held <= 1


def test_two_kinds_of_response_have_two_summits() -> None:
    """Experts at u and 2 - u, of standard deviations 0.2 and 0.3, of equal weight at -1/8."""
    analysis = make_analysis()
    u = np.r_[np.full(30, -0.125), np.full(30, -2.0)]
    table = analysis.table._replace(x=pd.DataFrame({"u": u}))
    for ax, expected in zip(
        density_figure(analysis._replace(table=table)).axes, ([3.975], [-0.025, 2.1]), strict=True
    ):
        y, density = line(ax, "mean").T
        inner = density[1:-1]
        summit = (inner > density[:-2]) & (inner >= density[2:]) & (inner > 0.1 * density.max())
        np.testing.assert_allclose(y[1:-1][summit], expected, atol=0.06)


def test_rows_are_at_their_y_in_the_colours_of_their_experts(
    analysis: Analysis, figure: Figure
) -> None:
    x, y = (part.to_numpy() for part in (analysis.table.x["u"], analysis.table.y))
    case, measure = CASE["softmax"], analysis.map.measure
    joint = case.probabilities(measure, x[:, None])
    joint = joint * case.components(measure, x[:, None]).pdf(y[:, None])
    shares = joint / joint.sum(1, keepdims=True)
    colours = shares @ np.array([to_rgb(c) for c in EXPERT_COLOURS[:2]])
    for ax, point in zip(figure.axes, find_places(analysis).points, strict=True):
        rows = np.argsort(np.abs(x - point))[:12]
        (rug,) = [part for part in ax.collections if isinstance(part, LineCollection)]
        at = [segment[0, 0] for segment in rug.get_segments()]
        order = np.argsort(at)
        np.testing.assert_allclose(np.sort(at), np.sort(y[rows]))
        np.testing.assert_allclose(
            rug.get_colors()[order, :3], colours[rows][np.argsort(y[rows])], atol=1e-9
        )
        said = [text.get_text().replace("−", "-") for text in ax.texts]
        assert said == [
            f"at {point:.4g}",
            "the 12 nearest rows, at",
            f"{x[rows].min():.4g} to {x[rows].max():.4g}",
        ]
        low, high = ax.get_xlim()
        assert low < min(at) < max(at) < high


def test_a_band_does_not_flatten_the_line(analysis: Analysis) -> None:
    """Each draw's density is a needle somewhere else: their band is far above their mean."""
    sharp = analysis.posterior.copy(deep=True)
    sharp["posterior"]["variance"] *= 1e-3
    cut = 0
    for ax in density_figure(analysis._replace(posterior=sharp)).axes:
        (band,) = [part for part in ax.collections if isinstance(part, PolyCollection)]
        cut += band.get_paths()[0].vertices[:, 1].max() > 1.2 * ax.get_ylim()[1]
        highest = max(line(ax, label)[:, 1].max() for label in ("mean", "mean of rows"))
        assert highest < ax.get_ylim()[1] < 2.2 * highest
    assert cut >= 3


def test_a_line_above_its_band_is_whole(analysis: Analysis) -> None:
    """One draw in ten is a needle: less than one in twenty at any y."""
    sharp = analysis.posterior.copy(deep=True)
    sharp["posterior"]["variance"][:, ::10] *= 1e-4
    for ax in density_figure(analysis._replace(posterior=sharp)).axes:
        assert line(ax, "mean")[:, 1].max() < ax.get_ylim()[1]


@pytest.mark.parametrize(
    ("weights", "sds", "uneven"),
    [
        ([0.5, 0.5], [1.0, 0.11], False),
        ([0.5, 0.5], [1.0, 0.09], True),
        ([0.2, 0.8], [1.0, 0.39], True),
        ([0.95, 0.05], [1.0, 1e-6], False),
    ],
)
def test_a_narrow_expert_hides_another_if_its_part_is_ten_times_as_tall(
    weights: list[float], sds: list[float], uneven: bool
) -> None:
    """And only then if both have a tenth of the probability; at one point of two."""

    def both(even: list[float], own: list[float]) -> np.ndarray:
        return np.tile([[even], [own]], (1, 5, 1))

    law = Laws(both([0.5, 0.5], weights), both([0, 0], [0, 0]), both([1, 1], sds))
    assert is_uneven(law) == uneven


def test_heights_are_square_roots_where_a_narrow_expert_would_hide_another(
    analysis: Analysis, figure: Figure
) -> None:
    assert "density p(y | x)" in texts(figure)
    narrow = analysis.posterior.copy(deep=True)
    narrow["posterior"]["variance"][..., 0] *= 1e-3
    rooted = density_figure(analysis._replace(posterior=narrow))
    assert "density p(y | x), square-root scale" in texts(rooted)
    for ax, share in [(figure.axes[0], 0.5), (rooted.axes[0], 0.25)]:
        low, high = ax.get_ylim()
        foot, half, top = ax.transData.transform([(0, 0), (0, share * high), (0, high)])[:, 1]
        assert half == pytest.approx((foot + top) / 2)
        assert ax.transAxes.inverted().transform((0, foot))[1] == pytest.approx(0.17)
        assert low < 0


@pytest.mark.parametrize("d", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_texts_fit_and_do_not_overlap(d: int) -> None:
    names = tuple(f"{'covariate ' * 6}{HOSTILE} $x_{j}$" for j in range(d))
    case = CASE["top_k_sparse" if d == 8 else "softmax"]
    analysis = make_any(case, d, names, response=HOSTILE * 3)
    tiny = analysis.table._replace(x=-1.2345e-6 * analysis.table.x)  # numbers take the most room
    analysis = analysis._replace(table=tiny)
    analysis.posterior.attrs["status"] = "not_mixed"
    figure = density_figure(analysis)
    assert "the posterior is not to be trusted: chains not mixed" in texts(figure)
    assert any("medians" in text for text in texts(figure))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    named = [t for ax in figure.axes for t in (*ax.texts, ax.xaxis.label)]
    boxes = [t.get_window_extent(renderer) for t in (*figure.texts, *named) if t.get_text()]
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.padded(-1.5).overlaps(other.padded(-1.5)) for other in boxes[:i])


def test_many_or_long_names_of_others_are_counted() -> None:
    assert held_text({"v": 0.5}) == "the medians of v = 0.5"
    assert held_text(dict.fromkeys("abcd", 0.5)) == "the medians of the 4 other covariates"
    long = {"v" * 30: -1.2345e-5, "w" * 30: -1.2345e-5, "s": "high"}
    assert held_text(long) == "the medians and most frequent levels of the 3 other covariates"


def test_formulas_are_told(analysis: Analysis) -> None:
    assert "v ~ exp(u)" in texts(density_figure(analysis, "v ~ exp(u)"))
