"""The figure of a fit: its curves against SciPy and plain NumPy, its parts, hostile names."""

from __future__ import annotations

import dataclasses
import itertools
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import xarray as xr
from conftest import CASE, GateCase
from fabricated_fit import make_analysis as make_fabricated
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure

from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.core.model import make_model
from bayesmoe.data.table import Table
from bayesmoe.diagnostics.analysis import Analysis
from bayesmoe.diagnostics.verdict import Checks
from bayesmoe.inference.outcome import Status
from bayesmoe.inference.point import Fit
from bayesmoe.report._curves import MAX_DRAWS, posterior_curves
from bayesmoe.report.figures import save
from bayesmoe.report.fit_figure import fit_figure
from bayesmoe.report.style import EXPERT_COLOURS

pytestmark = pytest.mark.filterwarnings("error")

CHAINS, DRAWS, K, N = 2, 30, 3, 80
HOSTILE = "$\\frac{$ <b>&amp;</b>\n\x00\x1b\ud800 -- ]]> " + "long " * 30


def make_draws(case: GateCase, d: int, shape: tuple[int, int] = (CHAINS, DRAWS)) -> MixingMeasure:
    """Draws that scatter around one measure, far apart enough for bimodal conditional densities."""
    rng = np.random.default_rng(5)
    centre = case.measure(3, K, d)
    fields = []
    for name in FIELDS:
        value = np.asarray(getattr(centre, name))
        noise = rng.normal(size=(*shape, *value.shape))
        if name.startswith("gate"):  # the reference expert stays at zero
            noise[:, :, -1] = 0.0
        if name in ("variance", "temperature"):
            scale = 1.0 if name == "variance" or case.temperature else 0.0
            fields.append(value * np.exp(0.2 * scale * noise))
        else:
            fields.append((3.0 if name == "intercept" else 1.0) * value + 0.3 * noise)
    return MixingMeasure(*fields)


def make_analysis(
    case: GateCase, d: int = 1, names: tuple[str, ...] = ("u", "v"), response: str = "y"
) -> Analysis:
    """A fit that no sampler made: draws and a MAP among them, and data of the MAP."""
    rng = np.random.default_rng(6)
    draws = make_draws(case, d)
    measure = draws[0, 0]
    x = rng.uniform(-2.0, 3.0, (N, d)) ** 3 / 4
    laws, shares = case.components(measure, x), case.probabilities(measure, x)
    label = (shares.cumsum(1) > rng.random((N, 1))).argmax(1)
    y = np.take_along_axis(laws.rvs(random_state=rng), label[:, None], 1)[:, 0]
    dims = ("chain", "draw", "expert", "covariate")
    values = {name: np.array(getattr(draws, name)) for name in FIELDS}
    group = xr.Dataset({name: (dims[: v.ndim], v) for name, v in values.items()})
    posterior = xr.DataTree.from_dict({"posterior": group})
    posterior.attrs["status"] = "converged"
    map_ = Fit(measure, 0.0, 0.0, Status.CONVERGED, 0.0, 1.0, cast(Any, None))
    table = Table(pd.DataFrame(x, columns=list(names[:d])), pd.Series(y, name=response))
    checks = Checks(())  # the figure shows none
    return Analysis(make_model(case.gate(K), K), table, map_, map_, measure, posterior, checks)


def grid_of(analysis: Analysis, points: int) -> np.ndarray:
    """Points along the first covariate, the others at their medians."""
    x = analysis.table.x.to_numpy()
    first = np.linspace(x[:, 0].min(), x[:, 0].max(), points)
    others = [np.full(points, np.sort(column)[[39, 40]].mean()) for column in x[:, 1:].T]
    return np.stack([first, *others], axis=1)


def each(draws: MixingMeasure) -> list[MixingMeasure]:
    """The draws one by one, chain by chain."""
    chains, length = draws.batch_shape
    return [draws[c, i] for c in range(chains) for i in range(length)]


# --- curves


@pytest.fixture(
    scope="module", params=["softmax", pytest.param("top_k_sparse", marks=pytest.mark.slow)]
)
def curve_case(request: pytest.FixtureRequest) -> GateCase:
    """A smooth gate, and one with probabilities of zero."""
    return CASE[request.param]


def test_predictive_ends_are_quantiles_of_the_average_cdf(curve_case: GateCase) -> None:
    draws = make_draws(curve_case, 1)
    x = np.linspace(-2, 3, 7)[:, None]
    curves = posterior_curves(curve_case.gate(K), draws, jnp.asarray(x))
    shares, laws = [], []
    for measure in each(draws):
        shares.append(curve_case.probabilities(measure, x))
        laws.append(curve_case.components(measure, x))
    ends = np.stack([curves.predictive_low, curves.predictive_high], axis=1)
    for i, level in itertools.product(range(len(x)), (0, 1)):
        weights = np.stack([share[i] for share in shares])
        means = np.stack([law.mean()[i] for law in laws])
        scales = np.stack([law.std()[i] for law in laws])

        def excess(value: float, w: Any = weights, m: Any = means, s: Any = scales) -> float:
            below = (w * scipy.stats.norm.cdf(value, m, s)).sum(1).mean()
            return float(below - (0.05, 0.95)[level])  # noqa: B023 - called at once

        root = scipy.optimize.brentq(excess, -60, 60, xtol=1e-11)
        assert ends[i, level] == pytest.approx(root, abs=1e-8)


def test_the_predictive_interval_of_two_far_modes_is_not_that_of_a_normal_law() -> None:
    far = MixingMeasure(
        np.zeros((1, 1, 2, 1)), np.zeros((1, 1, 2)), np.ones((1, 1)), np.zeros((1, 1, 2, 1)),
        [[[-10.0, 10.0]]], [[[1.0, 0.25]]],
    )  # fmt: skip
    curves = posterior_curves(CASE["softmax"].gate(2), far, jnp.zeros((3, 1)))
    tail = scipy.stats.norm.ppf(0.1)  # each mode holds one half
    assert curves.predictive_low == pytest.approx(np.full(3, -10 + tail))
    assert curves.predictive_high == pytest.approx(np.full(3, 10 - 0.5 * tail))


def test_means_and_gate_probabilities_are_averages_over_draws(curve_case: GateCase) -> None:
    draws = make_draws(curve_case, 1)
    x = np.linspace(-2, 3, 7)[:, None]
    curves = posterior_curves(curve_case.gate(K), draws, jnp.asarray(x))
    shares = np.stack([curve_case.probabilities(m, x) for m in each(draws)])
    lines = np.stack([curve_case.components(m, x).mean() for m in each(draws)])
    means = (shares * lines).sum(-1)
    for band, values in ((curves.mean, means), (curves.probability, np.moveaxis(shares, 2, 1))):
        np.testing.assert_allclose(band.centre, values.mean(0), atol=1e-12)
        np.testing.assert_allclose(band.low, np.quantile(values, 0.05, axis=0), atol=1e-12)
        np.testing.assert_allclose(band.high, np.quantile(values, 0.95, axis=0), atol=1e-12)
    assert np.all(curves.mean.low < curves.mean.high)


@pytest.mark.slow
def test_many_draws_are_thinned_evenly_over_all_chains() -> None:
    case = CASE["softmax"]
    draws = make_draws(case, 1, shape=(2, 400))
    x = jnp.zeros((1, 1))
    kept = [round(i * 799 / (MAX_DRAWS - 1)) for i in range(MAX_DRAWS)]
    scores = np.asarray(draws.gate_intercept).reshape(-1, K)[kept]
    expected = scipy.special.softmax(scores, axis=1).mean(0)
    found = posterior_curves(case.gate(K), draws, x).probability.centre[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-12)


# --- the figure


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return make_analysis(CASE["softmax"])


@pytest.fixture(scope="module")
def figure(analysis: Analysis) -> Figure:
    return fit_figure(analysis)


def line(ax: Axes, label: str) -> np.ndarray:
    """x and y of the one line with this label, shape (m, 2)."""
    (found,) = [artist for artist in ax.get_lines() if artist.get_label() == label]
    return np.asarray(found.get_xydata())


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for t in (*figure.texts, *(t for ax in figure.axes for t in ax.texts))]


def test_curves_run_over_the_range_of_the_data(analysis: Analysis, figure: Figure) -> None:
    upper, lower = figure.axes
    mean = line(upper, "mean")
    x = grid_of(analysis, len(mean))
    np.testing.assert_allclose(mean[:, 0], x[:, 0])
    curves = posterior_curves(analysis.model.gate, make_draws(CASE["softmax"], 1), jnp.asarray(x))
    np.testing.assert_allclose(mean[:, 1], curves.mean.centre)
    for i in range(K):
        drawn = line(lower, f"expert {i}")
        np.testing.assert_allclose(drawn[:, 1], curves.probability.centre[i])
    bands = {c.get_label(): c.get_paths()[0].vertices for c in upper.collections}
    for label, low, high in (
        ("predictive", curves.predictive_low, curves.predictive_high),
        ("credible", curves.mean.low, curves.mean.high),
    ):
        outline = np.asarray(bands[label])
        middle = outline[outline[:, 0] == x[50, 0], 1]
        assert sorted({*middle}) == pytest.approx([low[50], high[50]])
    assert upper.get_xlim() == lower.get_xlim()


def test_points_have_the_colour_of_the_experts_responsible(
    analysis: Analysis, figure: Figure
) -> None:
    case, measure, (x, y) = CASE["softmax"], analysis.map.measure, analysis.table
    densities = case.components(measure, x).pdf(y.to_numpy()[:, None])
    joint = case.probabilities(measure, x) * densities
    shares = joint / joint.sum(1, keepdims=True)
    colours = shares @ np.array([to_rgb(c) for c in EXPERT_COLOURS[:K]])
    (points,) = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    np.testing.assert_allclose(np.asarray(points.get_offsets()), np.column_stack([x, y]))
    np.testing.assert_allclose(np.asarray(points.get_facecolors())[:, :3], colours, atol=1e-9)
    assert np.max(shares, axis=1).min() < 0.9, "some point must be shared"


def test_experts_are_drawn_where_the_gate_gives_them_weight(
    analysis: Analysis, figure: Figure
) -> None:
    case, measure = CASE["softmax"], analysis.map.measure
    drawn = [a for a in figure.axes[0].get_lines() if a.get_label() == "_expert"]
    colours = [to_rgba(c) for c in EXPERT_COLOURS[:K]]
    seen = np.zeros(K)
    for artist in drawn:
        i = colours.index(to_rgba(artist.get_color()))
        at = np.asarray(artist.get_xydata())
        share = case.probabilities(measure, at[:, :1])[:, i]
        line_ = case.components(measure, at[:, :1]).mean()[:, i]
        np.testing.assert_allclose(at[:, 1], line_)
        middle = (share[:-1] + share[1:]) / 2
        assert np.all(np.abs(artist.get_alpha() - middle) <= 0.0250001)
        seen[i] += np.ptp(at[:, 0])
    x = grid_of(analysis, 161)
    share = case.probabilities(measure, x)
    width = np.diff(x[:2, 0])[0]
    for i in range(K):
        covered = np.sum((share[:-1, i] + share[1:, i]) / 2 > 0.025) * width
        assert seen[i] == pytest.approx(covered)
    assert seen.min() < np.ptp(x[:, 0]), "some expert must be negligible somewhere"


def test_experts_have_bands_that_fade_with_the_gate_and_with_their_width(
    analysis: Analysis, figure: Figure
) -> None:
    """Of a_i x + b_i over the draws; opacity 0.28 at probability one, up to a quarter's width."""
    case, upper = CASE["softmax"], figure.axes[0]
    x = grid_of(analysis, 161)
    lines = np.stack([case.components(m, x).mean() for m in each(make_draws(case, 1))])
    low, high = np.quantile(lines, [0.05, 0.95], axis=0)
    share = case.probabilities(analysis.map.measure, x)
    room = 0.25 * np.ptp(upper.get_ylim())
    shapes = [image for image in upper.get_images() if image.get_label() == "_expert band"]
    assert len(shapes) == K
    wide = np.zeros(0, bool)
    for i, shape in enumerate(shapes):
        pixels = shape.get_clip_path().get_fully_transformed_path().vertices
        outline = upper.transData.inverted().transform(pixels)
        np.testing.assert_allclose(outline[:161], np.column_stack([x, low[:, i]]), atol=1e-9)
        np.testing.assert_allclose(outline[:160:-1], np.column_stack([x, high[:, i]]), atol=1e-9)
        colour, alpha = np.split(shape.get_array()[0], [3], axis=1)
        np.testing.assert_allclose(colour, np.tile(to_rgb(EXPERT_COLOURS[i]), (len(alpha), 1)))
        width = high[:, i] - low[:, i]
        expected = 0.28 * share[:, i] * np.where(width > room, room / width, 1.0)
        np.testing.assert_allclose(alpha[::2, 0], expected, atol=1e-12)
        left, right, *_ = shape.get_extent()
        centres = left + (np.arange(len(alpha)) + 0.5) * (right - left) / len(alpha)
        np.testing.assert_allclose(centres[::2], x[:, 0])
        wide = np.append(wide, width > room)
    assert 0 < wide.sum() < len(wide), "some band must be wide somewhere"
    words = "experts at the MAP with 90 % bands, faded by their gate probability"
    assert any(words in text for text in texts(figure))


@pytest.mark.slow
def test_the_band_of_one_expert_is_the_credible_band() -> None:
    analysis = make_fabricated()
    tree = analysis.posterior.isel(expert=[0])
    one = analysis.map.measure
    alone = MixingMeasure(
        one.gate_slope[-1:], one.gate_intercept[-1:], one.temperature, one.slope[:1],
        one.intercept[:1], one.variance[:1],
    )  # fmt: skip
    gate = analysis.model.gate
    only = analysis._replace(
        model=make_model(gate, 1),
        posterior=tree,
        map=dataclasses.replace(analysis.map, measure=alone),
    )
    figure = fit_figure(only)
    assert not figure.axes[0].get_images()
    assert any(text.endswith("straight line: the expert at the MAP") for text in texts(figure))


def test_all_that_is_drawn_is_named_and_no_texts_overlap(figure: Figure) -> None:
    shown = texts(figure)
    assert {"expert 0", "expert 1", "expert 2", "90 % predictive interval"} <= set(shown)
    assert "softmax, 3 experts, n = 80" in shown
    assert (figure.axes[0].get_ylabel(), figure.axes[1].get_xlabel()) == ("y", "u")
    assert not any("not to be trusted" in text for text in shown)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # places the labels of axes
    renderer = canvas.get_renderer()
    named = [t for ax in figure.axes for t in (*ax.texts, ax.xaxis.label, ax.yaxis.label)]
    boxes = [t.get_window_extent(renderer) for t in (*figure.texts, *named) if t.get_text()]
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
        assert not any(box.padded(-1.5).overlaps(o.padded(-1.5)) for o in boxes[:i])


def test_far_predictions_do_not_squeeze_the_data(analysis: Analysis) -> None:
    wide = analysis.posterior.copy(deep=True)
    wide["posterior"]["intercept"][:, ::2] *= 1e6
    axes = fit_figure(analysis._replace(posterior=wide)).axes
    y = analysis.table.y
    low, high = axes[0].get_ylim()
    assert low < y.min() < y.max() < high
    assert high - low < 3.5 * np.ptp(y)


@pytest.mark.slow
def test_other_covariates_are_at_their_medians_and_said_to_be() -> None:
    analysis = make_analysis(CASE["softmax"], d=2)
    figure = fit_figure(analysis)
    median = float(np.median(analysis.table.x["v"]))
    (said,) = [text for text in texts(figure) if "median" in text]
    assert said.startswith(f"all curves are at the medians of v = {median:.4g}".replace("-", "−"))
    mean = line(figure.axes[0], "mean")
    x = grid_of(analysis, len(mean))
    draws = make_draws(CASE["softmax"], 2)
    curves = posterior_curves(analysis.model.gate, draws, jnp.asarray(x))
    np.testing.assert_allclose(mean[:, 1], curves.mean.centre)


def test_a_posterior_that_did_not_converge_is_named_on_the_figure(analysis: Analysis) -> None:
    bad = analysis.posterior.copy()
    bad.attrs["status"] = "not_mixed"
    shown = texts(fit_figure(analysis._replace(posterior=bad)))
    assert "the posterior is not to be trusted: chains not mixed" in shown


def test_names_are_shown_as_they_are_and_never_as_mathematics(tmp_path: Path) -> None:
    analysis = make_analysis(CASE["softmax"], d=2, names=("$a$", HOSTILE), response=HOSTILE)
    figure = fit_figure(analysis)
    _, svg = save(figure, tmp_path / "figure")
    ET.parse(svg)
    assert figure.axes[1].get_xlabel() == r"\$a\$"
    assert len(figure.axes[0].get_ylabel()) < 60
    renderer = FigureCanvasAgg(figure).get_renderer()
    assert all(t.get_window_extent(renderer).x1 <= figure.bbox.x1 for t in figure.texts)


def test_the_figure_is_the_same_each_time_and_leaves_pyplot_alone(
    analysis: Analysis, figure: Figure, tmp_path: Path
) -> None:
    first = save(figure, tmp_path / "first")
    second = save(fit_figure(analysis), tmp_path / "second")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert plt.get_fignums() == []
