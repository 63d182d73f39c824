"""Figures and the HTML report, on made-up cells in a data set as the study's store gives it."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
import warnings
import xml.etree.ElementTree as ET
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesmoe.core.gate import PARAMETER_BLOCKS as BLOCKS
from bayesmoe.diagnostics.mixing import PosteriorStatus
from bayesmoe.inference.outcome import Status
from bayesmoe.report import figures as report
from bayesmoe.report._answers import NEGLIGIBLE, headline
from bayesmoe.report._layout import spread_out
from bayesmoe.report._local_slopes import local_slopes
from bayesmoe.report._study import chunks
from bayesmoe.report._tables import at_floor, left_out, once, run_rows
from bayesmoe.report.html import _CAPTIONS, powers_html, rate_html, render_study
from bayesmoe.report.style import (
    QUANTITY_LABELS,
    STATUS_LABELS,
    estimate,
    gate_markers,
    number,
    percent,
    plain,
    rate_math,
    size_text,
    style,
)
from bayesmoe.report.terminal import print_study
from bayesmoe.study.columns import LOSSES, Arrays
from bayesmoe.study.dataset import load_results
from bayesmoe.study.early_em import used
from bayesmoe.study.layout import Layout
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.results import (
    count_statuses,
    measure_local_slopes,
    measure_samplers,
    measure_slopes,
    settings,
)
from bayesmoe.study.store import Store

pytestmark = pytest.mark.filterwarnings("error")

SOFTMAX, DENSE = "softmax", "dense_to_sparse"
TANH = "activation_dense_to_sparse(activation=tanh)"
GATES = [SOFTMAX, DENSE, {"name": "activation_dense_to_sparse", "activation": "tanh"}]
SIZES = [300, 1000, 3000, 10_000, 30_000]
ESTIMATORS = ("mle", "map", "posterior")
LEVELS = {"em": 1.5, "mle": 1.0, "map": 1.02, "posterior": 2.4}


@dataclasses.dataclass
class Study:
    """A study as its engine hands it to the report."""

    plan: Plan
    results: xr.Dataset
    slopes: pd.DataFrame
    counts: pd.DataFrame

    @property
    def one(self) -> xr.Dataset:
        """The study of a plan with one scenario and one prior."""
        (study,) = settings(self.results)
        return study


def make_plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "scenarios": ["lambda"], "gates": GATES, "n_experts": [2, 3], "sizes": SIZES,
        "replicates": 12, "seed": 1,
    }  # fmt: skip
    return Plan.model_validate(fields | changes)


def fake_cell(plan: Plan, cell: Cell) -> Arrays:
    """Plausible arrays of one cell, with the gates' expected exponents; k = 2 is the truth."""
    rng = np.random.default_rng(zlib.crc32(str(cell).encode()))
    gate, surplus = plan.gate(cell), cell.n_experts - 2
    shape = (len(plan.priors), len(plan.estimators))
    level = np.asarray([LEVELS[name] for name in plan.estimators])

    def power(exponent: float, constant: float, noise: float = 0.35) -> np.ndarray:
        value = constant * (cell.n / 300) ** exponent * rng.lognormal(0, noise)
        return value * level * rng.lognormal(0, 0.03, shape)

    def rate(quantity: str) -> float:
        return gate.expected_rate(quantity, over_specified=surplus > 0).exponent

    converged = rng.random(shape) > 0.12 * surplus
    failed = ["not_mixed" if name == "posterior" else "separated" for name in plan.estimators]
    fine = np.full(shape, "converged", dtype="<U24")
    if "mle" in plan.estimators and cell.replicate == 0:
        fine[:, plan.estimators.index("mle")] = "at_variance_floor"
    away = np.where(converged, 1.0, 20.0)  # a spurious optimum is far away
    arrays = {}
    for name in LOSSES:
        exponent = rate(name.removeprefix("normalised_"))
        arrays[name] = power(exponent, 3.0 if exponent == 0 else 0.4 * (1 + surplus)) * away
    errors = np.full((*shape, len(BLOCKS), 2), np.nan)
    for b, (block, constant) in enumerate(zip(BLOCKS, (1.5, 0.3, 0.4, 0.2, 0.05), strict=True)):
        if block != "temperature" or gate.has_temperature:
            errors[..., b, surplus] = power(rate(block), constant)
            if surplus:
                errors[..., b, 0] = power(0.0 if rate(block) == 0 else -0.5, constant / 4)
    spread = np.full((shape[0], len(BLOCKS)), np.nan)
    if gate.has_temperature and "posterior" in plan.estimators:
        spread[:, 1] = (power(0.0, 0.4, 0.12) if gate.ray else power(-0.5, 0.02, 0.12))[:, -1]
    return arrays | {
        "block_error": errors,
        "status": np.where(converged, fine, failed),
        "converged": converged,
        "seconds": rng.lognormal(0, 0.2, shape),
        "posterior_sd": spread,
        "map_mle_distance": rng.lognormal(0, 0.3, shape[0]) / cell.n,
        "divergences": np.full(shape[0], 1.0 if cell.n == 300 else 0.0),
        "min_ess": rng.uniform(400, 2000, shape[0]),
        "max_rhat": rng.uniform(1.0, 1.01, shape[0]),
    }  # fmt: skip


def make_results(plan: Plan, k_like: int | None = None) -> xr.Dataset:
    """The data set of an empty store, filled; ``k_like`` chooses another k's exponents."""
    with (
        tempfile.TemporaryDirectory() as directory,
        Store.open(Path(directory) / "study", plan) as store,
    ):
        results = load_results(store, plan)
    results["status"] = results["status"].astype("<U24")
    for cell in plan.cells():
        like = cell if k_like is None else cell._replace(n_experts=k_like)
        place = Layout.of(plan).index(cell)
        for name, values in fake_cell(plan, like).items():
            inner = tuple(slice(0, length) for length in values.shape)
            results[name].to_numpy()[place + inner] = values
    return results


def make_study(plan: Plan) -> Study:
    results = make_results(plan)
    return Study(plan, results, measure_slopes(plan, results), count_statuses(results))


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study(make_plan())


@pytest.fixture(scope="module")
def several() -> Study:
    """Two scenarios by two priors, small."""
    return make_study(
        make_plan(
            scenarios=["lambda", "weak"], priors=["weak", "compact"], gates=GATES[2:],
            n_experts=[2], sizes=SIZES[:3], replicates=4,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def several_figures(several: Study) -> dict[str, Figure]:
    return report.study_figures(several.results, several.slopes)


@pytest.fixture(scope="module")
def early() -> Study:
    """EM beside MLE, MAP and posterior; most EM fits are no maximum."""
    plan = make_plan(
        gates=GATES[:2], estimators=["em", *ESTIMATORS], sizes=SIZES[:3], replicates=6
    )  # fmt: skip
    results = make_results(plan)
    ended = results["status"].sel(estimator="em").to_numpy()
    ended[results["converged"].sel(estimator="em").to_numpy()] = "stopped_early"
    ended[..., 1, :] = "max_iterations"
    ended[..., 2, :] = "converged"
    results["status"].loc[{"estimator": "em"}] = ended
    results["converged"].loc[{"estimator": "em"}] = ended == "converged"
    heights = np.zeros(results["log_likelihood"].shape)
    heights[..., 0] = -np.arange(1.0, 7.0)[:, None]  # the gap of replicate r is r + 1
    results["log_likelihood"][:] = heights
    results["n_iterations"].loc[{"estimator": "em"}] = 40.0
    return Study(plan, results, measure_slopes(plan, results), count_statuses(results))


@pytest.fixture(scope="module")
def figures(study: Study) -> dict[str, Figure]:
    return report.study_figures(study.results, study.slopes)


@pytest.fixture(scope="module")
def page(study: Study, figures: dict[str, Figure]) -> str:
    return render_study(study.results, study.slopes, study.counts, figures)


def line(ax: Axes, label: str) -> Line2D:
    """The one line of a panel with this label."""
    (found,) = [artist for artist in ax.get_lines() if artist.get_label() == label]
    return found


def references(ax: Axes) -> list[Line2D]:
    """The grey lines of a panel."""
    return [artist for artist in ax.get_lines() if artist.get_label() == "_reference"]


def exponent_of(artist: Line2D) -> float:
    """The slope of a line of a log-log panel between its ends."""
    u, v = (np.log(np.asarray(d)) for d in (artist.get_xdata(), artist.get_ydata()))
    return float((v[-1] - v[0]) / (u[-1] - u[0]))


def texts(figure: Figure) -> list[str]:
    """All texts of a figure that are drawn."""
    found = [t.get_text() for t in figure.texts]
    for ax in figure.axes:
        found += [t.get_text() for t in ax.texts] + [ax.get_title(), ax.get_title(loc="left")]
    return found


def converged_medians(values: xr.DataArray, used: xr.DataArray) -> np.ndarray:
    """Medians over the replicates in use, by a plain loop."""
    return np.asarray(
        [
            np.median([v for v, u in zip(row, keep, strict=True) if u])
            for row, keep in zip(values.to_numpy(), used.to_numpy(), strict=True)
        ]
    )


def assert_texts_are_apart(figure: Figure) -> None:
    """No text leaves the figure, covers a point or overlaps another."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    everything = []
    for ax in figure.axes:
        titles = [t for t in (ax.title, ax._left_title) if t.get_text()]  # type: ignore[attr-defined]
        boxes = [t.get_window_extent(renderer) for t in (*ax.texts, *titles)]
        for artist in ax.get_lines():
            points = ax.transData.transform(artist.get_xydata())
            assert not any(b.contains(*p) for b in boxes for p in points)
        everything += boxes
    everything += [t.get_window_extent(renderer) for t in figure.texts]
    everything += [legend.get_window_extent(renderer) for legend in figure.legends]
    for i, box in enumerate(everything):
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1 + 1
        smaller = box.padded(-1.5)
        assert not any(smaller.overlaps(o.padded(-1.5)) for o in everything[:i])


# --- figures


def test_a_study_has_its_figures_under_stable_names(figures: dict[str, Figure]) -> None:
    assert list(figures) == [
        "contraction",
        "rates",
        "replicates",
        "blocks_k2",
        "blocks_k3",
        "local_slopes",
        "temperature_sd",
    ]


def test_contraction_has_a_panel_per_gate_and_fitted_k(figures: dict[str, Figure]) -> None:
    figure = figures["contraction"]
    assert len(figure.axes) == 6
    shown = texts(figure)
    assert {"exact, k = 2", "over-specified, k = 3", "sample size n"} <= set(shown)
    assert sum(text == "dense-to-sparse" for text in shown) == 2
    assert figure.axes[0].get_ylabel() == "normalised Voronoi loss"
    assert {ax.get_xscale() for ax in figure.axes} == {"log"}
    assert {ax.get_yscale() for ax in figure.axes} == {"log"}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_contraction_draws_medians_and_quartiles_of_converged_fits(
    study: Study, figures: dict[str, Figure], estimator: str
) -> None:
    cell = study.one.sel(gate=SOFTMAX, n_experts=3, estimator=estimator)
    ax = figures["contraction"].axes[3]
    expected = converged_medians(cell["normalised_loss"], cell["converged"])
    drawn = np.asarray(line(ax, f"{estimator} normalised_loss").get_ydata())
    np.testing.assert_allclose(drawn, expected)
    everything = cell["normalised_loss"].median("replicate").to_numpy()
    assert not np.allclose(drawn, everything), "fits that did not converge must matter here"
    kept = cell["normalised_loss"].where(cell["converged"])
    quartiles = kept.quantile([0.25, 0.75], "replicate").transpose("n", "quantile").to_numpy()
    found = [c for c in ax.collections if isinstance(c, LineCollection)]
    bars = [np.asarray(s)[:, 1] for c in found for s in c.get_segments()]
    for pair in quartiles:
        assert any(np.allclose(bar, pair) for bar in bars)


def test_hollow_points_mark_sample_sizes_with_fits_left_out(
    study: Study, figures: dict[str, Figure]
) -> None:
    hollow = sum(
        np.asarray(artist.get_xdata()).size
        for artist in figures["contraction"].axes[3].get_lines()
        if artist.get_label() == "_hollow"
    )
    converged = study.one["converged"].sel(gate=SOFTMAX, n_experts=3)
    assert hollow == int((~converged.all("replicate")).sum()) > 0


def test_reference_lines_have_the_expected_slope_and_the_centre_of_the_medians(
    figures: dict[str, Figure],
) -> None:
    for ax, exponents in zip(
        figures["contraction"].axes, 2 * ([-0.5], [0.0, -0.5], [-0.5]), strict=True
    ):
        found = [exponent_of(artist) for artist in references(ax)]
        assert found == pytest.approx(exponents, abs=1e-9)
    ax = figures["contraction"].axes[0]
    medians = np.asarray(
        [np.asarray(line(ax, f"{e} normalised_loss").get_ydata()) for e in ESTIMATORS]
    )
    (reference,) = references(ax)
    middle = np.mean(np.log(SIZES))
    at = np.interp(middle, np.log(reference.get_xdata()), np.log(reference.get_ydata()))
    assert at == pytest.approx(np.log(medians).mean())


def test_reference_lines_follow_the_table_of_every_block(
    study: Study, figures: dict[str, Figure]
) -> None:
    shared = study.one.sel(gate=TANH, n_experts=3)
    rates = [float(shared["expected"].sel(quantity=block)) for block in BLOCKS]
    found = [exponent_of(references(ax)[0]) for ax in figures["blocks_k3"].axes[10:]]
    assert found == pytest.approx(rates)
    assert len(set(rates)) > 1
    left, right = figures["temperature_sd"].axes
    assert [exponent_of(r) for r in references(left)] == pytest.approx([0.0, -0.5], abs=1e-9)
    assert [exponent_of(r) for r in references(right)] == pytest.approx([0.0, -0.25], abs=1e-9)


def test_the_loss_modulo_the_ray_is_drawn_where_there_is_a_ray(figures: dict[str, Figure]) -> None:
    labels = [{a.get_label() for a in ax.get_lines()} for ax in figures["contraction"].axes]
    with_ray = ["mle normalised_identified_loss" in found for found in labels]
    assert with_ray == [False, True, False, False, True, False]
    assert any(text.startswith("modulo the ray") for text in texts(figures["contraction"]))


def test_panels_print_the_slopes_they_were_given(study: Study, figures: dict[str, Figure]) -> None:
    shown = set(texts(figures["contraction"]))
    names = {"mle": "MLE", "map": "MAP", "posterior": "post."}
    quantities = ["normalised_loss", "normalised_identified_loss"]
    rows = study.slopes[study.slopes["quantity"].isin(quantities)]
    assert len(rows) == 3 * 2 * (3 + 1)
    for _, row in rows.iterrows():
        value = estimate(row["slope"], row["low"], row["high"])
        assert f"{names[row['estimator']]} {value}" in shown


def test_blocks_print_the_slopes_of_the_cells_they_draw(
    study: Study, figures: dict[str, Figure]
) -> None:
    table = study.slopes[(study.slopes["gate"] == SOFTMAX) & (study.slopes["n_experts"] == 3)]
    table = table[(table["quantity"] == "variance") & (table["cell"] == "shared")]
    assert table["estimator"].tolist() == list(ESTIMATORS)
    shown = [t.get_text() for t in figures["blocks_k3"].axes[4].texts]
    assert shown[:3] == [number(float(slope)) for slope in table["slope"]]


def test_a_row_of_panels_spans_equal_decades_and_hides_nothing(figures: dict[str, Figure]) -> None:
    axes = figures["contraction"].axes
    for row in (axes[:3], axes[3:]):
        spans = [np.diff(np.log10(ax.get_ylim()))[0] for ax in row]
        np.testing.assert_allclose(spans, spans[0])
    for ax in axes:
        for artist in ax.get_lines():
            for values, (low, high) in zip(
                (artist.get_xdata(), artist.get_ydata()),
                (ax.get_xlim(), ax.get_ylim()),
                strict=True,
            ):
                assert np.all(np.asarray(values) > low)
                assert np.all(np.asarray(values) < high)


def test_notes_do_not_cover_points_and_texts_do_not_overlap(figures: dict[str, Figure]) -> None:
    for figure in figures.values():
        assert_texts_are_apart(figure)


def test_text_is_at_least_eight_points(figures: dict[str, Figure]) -> None:
    for figure in figures.values():
        sizes = [
            float(t.get_fontsize()) for t in figure.findobj(matplotlib.text.Text) if t.get_text()
        ]
        assert min(sizes) >= 8.0


def test_blocks_show_errors_and_the_posterior_spread_of_the_temperature(
    study: Study, figures: dict[str, Figure]
) -> None:
    figure = figures["blocks_k2"]
    assert len(figure.axes) == 15
    cell = study.one.sel(gate=DENSE, n_experts=2)
    used = cell["converged"].sel(estimator="posterior")
    np.testing.assert_allclose(
        np.asarray(line(figure.axes[6], "temperature_sd").get_ydata()),
        converged_medians(cell["posterior_sd"].sel(block="temperature"), used),
    )
    error = cell["block_error"].sel(estimator="map", block="variance", cell="single")
    np.testing.assert_allclose(
        np.asarray(line(figure.axes[9], "map single").get_ydata()),
        converged_medians(error, cell["converged"].sel(estimator="map")),
    )
    assert [t.get_text() for t in figure.axes[1].texts] == ["no temperature"]


def test_over_specified_blocks_draw_shared_and_single_cells(figures: dict[str, Figure]) -> None:
    labels = {a.get_label() for a in figures["blocks_k3"].axes[0].get_lines()}
    assert {"mle shared", "mle single", "posterior shared", "posterior single"} <= labels


@pytest.mark.slow
def test_a_bad_fit_with_a_shared_cell_does_not_turn_an_exact_panel(study: Study) -> None:
    results = study.results.copy(deep=True)
    results["block_error"].loc[{"n_experts": 2, "cell": "shared", "replicate": 3}] = 7.0
    (one,) = settings(results)
    figure = report.blocks(one, study.slopes, [2])
    labels = {a.get_label() for a in figure.axes[0].get_lines()}
    assert "mle single" in labels
    assert not any(str(label).endswith("shared") for label in labels)


def test_temperature_sd_names_gates_with_slopes(study: Study, figures: dict[str, Figure]) -> None:
    figure = figures["temperature_sd"]
    assert len(figure.axes) == 2
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    shown = texts(figure)
    assert shown.count("■ dense-to-sparse") == shown.count("▲ activation (tanh)") == 2
    assert not any("softmax" in text for text in shown)
    cell = study.one.sel(gate=TANH, n_experts=3)
    np.testing.assert_allclose(
        np.asarray(line(figure.axes[1], TANH).get_ydata()),
        converged_medians(
            cell["posterior_sd"].sel(block="temperature"),
            cell["converged"].sel(estimator="posterior"),
        ),
    )
    rows = study.slopes[study.slopes["quantity"] == "temperature_sd"]
    assert len(rows) == 4
    for _, row in rows.iterrows():
        assert estimate(row["slope"], row["low"], row["high"]) in shown


@pytest.mark.slow
def test_many_gates_are_drawn_in_rows_of_panels() -> None:
    names = ["sigmoid", "tanh", "gelu", "silu", "softplus", "relu"]
    gates = [{"name": "activation_dense_to_sparse", "activation": name} for name in names]
    many = make_study(make_plan(gates=gates, n_experts=[2], sizes=SIZES[:2], replicates=3))
    drawn = report.study_figures(many.results, many.slopes)
    figure = drawn["contraction"]
    assert len(figure.axes) == 6
    assert len({round(ax.get_position().y0, 6) for ax in figure.axes}) == 2
    assert sum(text == "exact, k = 2" for text in texts(figure)) == 2
    for each in drawn.values():
        assert_texts_are_apart(each)


# --- other studies


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimators", "names"),
    [
        (
            ["mle", "map"],
            ["contraction", "rates", "replicates", "blocks_k2", "blocks_k3", "local_slopes"],
        ),
        (
            ["posterior"],
            [
                "contraction",
                "rates",
                "replicates",
                "blocks_k2",
                "blocks_k3",
                "local_slopes",
                "temperature_sd",
            ],
        ),
    ],
)
def test_estimators_that_were_not_run_are_not_mentioned(
    estimators: list[str], names: list[str]
) -> None:
    part = make_study(
        make_plan(estimators=estimators, gates=GATES[1:], sizes=SIZES[:3], replicates=4)
    )
    drawn = report.study_figures(part.results, part.slopes)
    assert list(drawn) == names
    labels = {str(a.get_label()).split()[0] for a in drawn["contraction"].axes[0].get_lines()}
    assert labels - {"_hollow", "_reference"} == set(estimators)
    keys = [
        t.get_text() for f in drawn.values() for legend in f.legends for t in legend.get_texts()
    ]
    assert ("MLE" in keys, "posterior radius" in keys) == (
        "mle" in estimators,
        "posterior" in estimators,
    )
    for figure in drawn.values():
        assert_texts_are_apart(figure)
    page = render_study(part.results, part.slopes, part.counts, {})
    answers = " ".join(answer.finding for answer in headline(part.one, part.slopes))
    assert ("MLE" in answers, "posterior" in answers) == (
        "mle" in estimators,
        "posterior" in estimators,
    )
    table = page[page.index("Seconds, ") :]
    assert table.startswith("Seconds, " + ("MLE / MAP<" if "mle" in estimators else "posterior<"))


@pytest.mark.slow
def test_several_settings_have_their_own_figures_and_answers(
    several: Study, several_figures: dict[str, Figure]
) -> None:
    drawn = several_figures
    pairs = [(s, p) for s in ("lambda", "weak") for p in ("weak", "compact")]
    kinds = ["contraction", "rates", "replicates", "blocks_k2", "local_slopes", "temperature_sd"]
    assert list(drawn) == [f"{s}_{p}_{kind}" for s, p in pairs for kind in kinds]
    page = render_study(several.results, several.slopes, several.counts, drawn)
    for scenario, prior in pairs:
        assert page.count(f"<h3>scenario {scenario}, prior {prior}</h3>") == 2
    outline = Outline(page)
    assert outline.open == []
    assert len(outline.named("img")) == 24
    table = page[page.index('<h2 id="slopes">') : page.index('<h2 id="statuses">')]
    assert table.count('<button type="button">') == 2 + 10
    mle = several.slopes["estimator"] == "mle"
    rows = int((~mle).sum() + mle.sum() // 2)
    assert table.count('<td data-value="') == 2 * rows, "one MLE serves both priors"


@pytest.mark.slow
def test_figures_of_a_setting_show_its_own_slopes(
    several: Study, several_figures: dict[str, Figure]
) -> None:
    drawn = several_figures
    for study in settings(several.results):
        scenario, prior = study.attrs["scenario"], study.attrs["prior"]
        table = several.slopes
        table = table[(table["scenario"] == scenario) & (table["prior"] == prior)]
        table = table[(table["quantity"] == "normalised_loss") & (table["estimator"] == "map")]
        shown = [t for t in texts(drawn[f"{scenario}_{prior}_contraction"]) if t.startswith("MAP")]
        values = [estimate(r["slope"], r["low"], r["high"]) for _, r in table.iterrows()]
        assert shown == [f"MAP {value}" for value in values]
    assert len({tuple(texts(drawn[n])) for n in drawn if n.endswith("contraction")}) == 4


def test_the_law_of_decay_stands_beside_the_slope(study: Study, page: str) -> None:
    told = set(study.slopes["law"])
    assert told <= {"power law", "1/log n", "constant", "this range of n cannot tell", "unknown"}
    assert "power law" in told
    for law in told:
        assert f"<td>{law.removeprefix('this range of n ')}</td>" in page


def test_one_setting_is_not_named(page: str) -> None:
    assert "<h3>" not in page
    assert ">Scenario</button>" not in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("k", "title"), [(1, "under-specified, k = 1"), (4, "over-specified, k = 4")]
)
def test_rates_that_are_not_known_are_said_to_be_so(k: int, title: str) -> None:
    plan = make_plan(gates=[SOFTMAX], n_experts=[k], sizes=SIZES[:3], replicates=4)
    results = make_results(plan, k_like=2 if k == 1 else 3)
    slopes = measure_slopes(plan, results)
    drawn = report.study_figures(results, slopes)
    assert list(drawn) == ["contraction", "rates", "replicates", f"blocks_k{k}", "local_slopes"]
    assert title in texts(drawn["contraction"])
    blocks = drawn[f"blocks_k{k}"]
    assert len(blocks.axes) == 4, "no gate has a temperature"
    assert not any(references(ax) for ax in blocks.axes)
    assert texts(blocks).count("not known") == 4
    page = render_study(results, slopes, count_statuses(results), {})
    assert ">not known</td>" in page
    assert "without a verdict" in page


def test_local_slopes_are_those_of_neighbouring_sizes(
    study: Study, figures: dict[str, Figure]
) -> None:
    table = measure_local_slopes(study.plan, study.results)
    where = {"gate": DENSE, "n_experts": 3, "estimator": "map"}
    one = study.one.sel(where)
    values = one["loss"].where(one["converged"]).transpose("n", "replicate").to_numpy()
    expected = np.diff(np.log(np.nanmedian(values, axis=1))) / np.diff(np.log(SIZES))
    rows = table[(table[list(where)] == pd.Series(where)).all(axis=1)]
    found = rows[rows["quantity"] == "loss"]
    np.testing.assert_allclose(found["slope"], expected, rtol=1e-9)
    np.testing.assert_allclose(found["n"], np.sqrt(np.multiply(SIZES[1:], SIZES[:-1])))
    assert (found["low"] <= found["slope"]).all()
    panel = figures["local_slopes"].axes[len(GATES) + GATES.index(DENSE)]
    lines = [line for line in panel.get_lines() if line.get_label() == "map"]
    normalised = rows[rows["quantity"] == "normalised_loss"]
    np.testing.assert_allclose(lines[0].get_ydata(), normalised["slope"])


def test_local_slopes_of_a_loss_are_beside_the_rate_of_that_loss(study: Study) -> None:
    """Modulo its ray the dense-to-sparse gate's loss has the rate that the loss itself lacks."""
    table = measure_local_slopes(study.plan, study.results)
    for variable, expected in (("loss", 0.0), ("normalised_identified_loss", -0.5)):
        panel = local_slopes(study.one, table, variable).axes[GATES.index(DENSE)]
        (line,) = [line for line in panel.get_lines() if line.get_label() == "_expected"]
        assert set(line.get_ydata()) == {expected}


def test_divergences_are_told_as_the_sum_that_they_are(study: Study, page: str) -> None:
    (row, *_) = run_rows(study.one, dict.fromkeys(study.one["gate"].to_numpy(), ""))
    cell = study.one.isel(gate=0, n_experts=0)
    assert row["divergences"].value == cell["divergences"].sum() > cell["divergences"].max()
    assert row["ess"].value == cell["min_ess"].min()
    assert row["rhat"].value == cell["max_rhat"].max()
    assert "Divergences of all runs together, the least ESS and the largest R-hat of any;" in page


def damaged(study: xr.Dataset, kind: str) -> xr.Dataset:
    """A study in which something is missing."""
    results = study.copy(deep=True)
    gate = {"gate": DENSE, "n_experts": 3}
    if kind == "nothing converged":
        results["converged"].loc[gate] = False
    elif kind == "not finite":
        for name in (*LOSSES, "block_error", "posterior_sd"):
            results[name].loc[gate] = np.nan
    elif kind == "all missing":
        results["converged"][:] = False
    elif kind == "a sample size missing":
        results["converged"].loc[{"n": 3000}] = False
    elif kind == "one sample size left":
        results["converged"].loc[{"n": SIZES[1:]}] = False
    elif kind == "zeros":
        results["normalised_loss"].loc[{"n": 300}] = 0.0
    elif kind == "two replicates":
        results = results.isel(replicate=[0, 1])
    return results


KINDS = ["nothing converged", "not finite", "all missing", "a sample size missing"]
KINDS += ["one sample size left", "zeros", "two replicates"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_incomplete_studies_are_drawn(study: Study, kind: str) -> None:
    small = study.results.isel(gate=[0, 1], n_experts=[1], replicate=slice(0, 4))
    plan = make_plan(gates=GATES[:2], n_experts=[3])
    results = damaged(small, kind)
    slopes, counts = measure_slopes(plan, results), count_statuses(results)
    drawn = report.study_figures(results, slopes)
    for figure in drawn.values():
        assert_texts_are_apart(figure)
    page = render_study(results, slopes, counts, {})
    if kind in ("not finite", "nothing converged", "all missing"):
        assert "no usable fit" in texts(drawn["contraction"])
        assert "no slope for MLE, MAP and posterior" in page
    if kind == "two replicates":
        assert "no interval for " in page


# --- EM that stops early


@pytest.mark.slow
def test_em_stands_beside_the_others_with_the_fits_that_its_rule_ended(early: Study) -> None:
    drawn = report.study_figures(early.results, early.slopes)
    cell = early.one.sel(gate=SOFTMAX, n_experts=3, estimator="em")
    by_rule = cell["status"].isin(["stopped_early", "max_iterations", "converged"])
    assert 0 < int((~by_rule).sum()) < int(by_rule.sum())
    panel = drawn["contraction"].axes[2]
    artist = line(panel, "em normalised_loss")
    np.testing.assert_allclose(
        artist.get_ydata(), converged_medians(cell["normalised_loss"], by_rule)
    )
    colours = {line(panel, f"{e} normalised_loss").get_color() for e in ("em", *ESTIMATORS)}
    assert len(colours) == 4
    keys = [t.get_text() for t in drawn["contraction"].legends[0].get_texts()]
    assert keys[:3] == ["EM", "MLE", "MAP"]
    row = early.slopes[(early.slopes["estimator"] == "em") & (early.slopes["quantity"] == "loss")]
    assert row["n_used"].tolist() == [
        int(used(early.one.sel(gate=g, n_experts=k, estimator="em")).sum())
        for g in (SOFTMAX, DENSE) for k in (2, 3)
    ]  # fmt: skip
    for figure in drawn.values():
        assert_texts_are_apart(figure)


@pytest.mark.slow
def test_the_report_says_where_em_stopped(early: Study) -> None:
    page = render_study(early.results, early.slopes, early.counts, {})
    status = early.results["status"].sel(estimator="em").to_numpy()
    rule, limit = (int((status == end).sum()) for end in ("stopped_early", "max_iterations"))
    assert f"{rule + limit} of {status.size} fits by EM are no maximum: {rule} ended by" in page
    assert f"and {limit} by its limit of 2000 steps" in page
    others = early.results["converged"].sel(estimator=list(ESTIMATORS))
    left = int((~others).sum()) + int(np.isin(status, ["separated"]).sum())
    total = others.size + int(np.isin(status, ["separated", "converged"]).sum())
    assert f"{left} of {size_text(total)} fits did not converge: " in page
    outline = Outline(page)
    assert outline.open == []
    assert "Where EM stopped" in page
    answer = headline(early.one, early.slopes)[0]
    assert "EM n^" in answer.finding
    assert answer.finding.endswith(
        "EM: 15 of 18 fits stopped short of a maximum, after a median of 40 steps at n = 300 and "
        "40 at n = 3\u2009000; median gap in log-likelihood to the MLE of "
        "the same data 3.50 at n = 300, 3.50 at n = 3\u2009000, at most 6.00."
    )


@pytest.fixture(scope="module")
def by_laplace() -> Study:
    """Laplace's approximation under the softmax gate, but not for three of four at n = 300."""
    gates = [SOFTMAX, {"name": "top_k_sparse", "top_k": 1}]
    plan = make_plan(
        gates=gates, n_experts=[2], sizes=SIZES[:3], replicates=4, sampler="laplace_or_nuts",
        priors=["weak", "compact"], estimators=["posterior"],
    )  # fmt: skip
    results = make_results(plan)
    sampler = np.full(results["sampler"].shape, "nuts", "<U7")  # all but prior, then prior
    softmax = sampler[0, 0, 0]
    softmax[...] = "laplace"
    softmax[0, 1:] = "nuts"
    results["sampler"] = (results["sampler"].dims, sampler)
    tried = results["gate"] == SOFTMAX
    results["pareto_k"] = (0.1 + 0.8 * (results["sampler"] == "nuts")).where(tried)
    results["seconds"] = xr.where(results["sampler"] == "laplace", 0.25, 1.5) * xr.ones_like(
        results["seconds"]
    )
    results["sampler"].loc[{"gate": SOFTMAX, "n": 1000, "replicate": 0}] = ""  # it failed
    return Study(plan, results, measure_slopes(plan, results), count_statuses(results))


def test_samplers_are_counted_by_sample_size(by_laplace: Study) -> None:
    table = measure_samplers(by_laplace.results)
    keys = ["scenario", "prior", "gate", "n_experts", "n"]
    assert table.columns.tolist() == [
        *keys, "laplace", "nuts", "pareto_k", "laplace_seconds", "nuts_seconds"
    ]  # fmt: skip
    assert table["prior"].tolist() == ["weak"] * 6 + ["compact"] * 6, "one setting after another"
    softmax = table[(table["gate"] == SOFTMAX) & (table["prior"] == "compact")]
    assert softmax["n"].tolist() == SIZES[:3]
    assert softmax["laplace"].tolist() == [1, 3, 4]
    assert softmax["nuts"].tolist() == [3, 0, 0]
    np.testing.assert_allclose(softmax["pareto_k"], [0.9, 0.1, 0.1])
    np.testing.assert_array_equal(softmax["laplace_seconds"], 0.25)
    np.testing.assert_array_equal(softmax["nuts_seconds"], [1.5, np.nan, np.nan])
    jumping = table[table["gate"] != SOFTMAX]
    assert (jumping["laplace"] == 0).all()
    assert (jumping["nuts"] == 4).all()
    assert jumping["pareto_k"].isna().all()


def test_the_report_says_which_sampler_drew_the_posteriors(
    by_laplace: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {f"weak_{kind}": b"" for kind in _CAPTIONS}
    page = render_study(by_laplace.results, by_laplace.slopes, by_laplace.counts, figures)
    assert Outline(page).open == []
    rows = [
        re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row)
        for row in re.findall(r"<tr>\s*(<td>(?:weak|compact)</td>.*?)</tr>", page, re.DOTALL)
    ]
    for prior in ("weak", "compact"):
        wanted = [prior, "softmax", "2", "8", "3", "1/4 → 4/4", "0.90 → 0.10", "0.25 / 1.50"]
        assert wanted in rows
        wanted = [prior, "top-1 sparse", "2", "0", "12", "0/4 → 0/4", "– → –", "– / 1.50"]
        assert wanted in rows
    words = "16 of 46 posteriors by Laplace&#39;s approximation, 30 by NUTS"
    assert words in page[page.index("<dt>Sampler</dt>") :].partition("<dt>Gates</dt>")[0]
    assert "Pareto k of its weights is at most 0.7" in page
    captions = re.findall("<figcaption>.*?</figcaption>", page)
    assert len(captions) == len(_CAPTIONS)
    assert not any("NUTS" in caption for caption in captions)
    print_study(by_laplace.results, by_laplace.slopes, by_laplace.counts)
    printed = capsys.readouterr().out
    assert printed.count("8 of 11 posteriors by Laplace's approximation, 3 by NUTS") == 2
    assert printed.count("0 of 12 posteriors by Laplace's approximation, 12 by NUTS") == 2


def test_a_study_by_nuts_alone_has_no_table_of_samplers(
    study: Study, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure_samplers(study.results).empty
    words = re.sub(r"base64,[^\"]*", "", page)
    assert "<dt>Sampler</dt><dd>NUTS</dd>" in words
    assert "Laplace" not in words
    print_study(study.results, study.slopes, study.counts)
    assert "Laplace" not in capsys.readouterr().out


def test_a_study_without_em_does_not_speak_of_it(study: Study, page: str) -> None:
    words = re.sub(r"base64,[^\"]*", "", page)
    assert re.search(r"\bEM\b", words) is None
    assert "EM" not in " ".join(answer.finding for answer in headline(study.one, study.slopes))


# --- names and files


HOSTILE = "$\\frac{$ </title><script>alert(1)</script> \x00\x1b\n\ud800 ]]> -- & {{ 7*7 }}"


def test_labels_are_shown_as_they_are_and_never_as_mathematics(
    study: Study, tmp_path: Path
) -> None:
    results = study.results.isel(gate=[0]).assign(gate_label=("gate", [HOSTILE]))
    (one,) = settings(results)
    figure = report.contraction(one, study.slopes)
    _, svg = report.save(figure, tmp_path / "figure")
    ET.parse(svg)
    title = figure.axes[0].get_title(loc="left")
    assert title.replace("\\$", "").count("$") == 0


def test_save_is_deterministic_and_leaves_no_scraps(study: Study, tmp_path: Path) -> None:
    first = report.save(report.temperature_sd(study.one, study.slopes), tmp_path / "a" / "one.two")
    second = report.save(report.temperature_sd(study.one, study.slopes), tmp_path / "b" / "one.two")
    assert [p.name for p in first] == ["one.two.png", "one.two.svg"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["one.two.png", "one.two.svg"]
    assert "<dc:date>" not in first[1].read_text()


def test_figures_leave_pyplot_and_the_users_settings_alone(study: Study) -> None:
    with matplotlib.rc_context({"font.size": 31.0, "lines.linewidth": 9.0}):
        before = dict(matplotlib.rcParams)
        figure = report.temperature_sd(study.one, study.slopes)
        assert dict(matplotlib.rcParams) == before
    assert figure.axes[0].get_lines()[0].get_linewidth() < 9
    assert plt.get_fignums() == []


# --- printed numbers


def test_numbers_and_rates() -> None:
    assert number(-0.494) == "−0.49"
    assert number(-0.001) == "0.00"
    assert number(float("nan")) == "–"
    assert estimate(-0.5, -0.55, -0.449) == "−0.50 [−0.55, −0.45]"
    assert estimate(-0.5, float("nan"), float("nan")) == "−0.50"
    assert estimate(float("nan"), 0.0, 1.0) == "no slope"
    assert size_text(30_000) == "30\u2009000"
    assert [percent(share) for share in (0.9, 0.975, 0.07)] == ["90 %", "97.5 %", "7 %"]
    assert rate_math(-0.125, "n^-1/8") == "$n^{-1/8}$"
    assert rate_math(-1.0, "n^-1") == "$n^{-1}$"
    assert rate_math(0.0, "none (ray)") == "no rate (ray)"
    assert rate_math(float("nan"), "not known") == "not known"
    assert rate_html("n^-1/4") == "n<sup>−1/4</sup>"
    assert rate_html("n^-1") == "n<sup>−1</sup>"
    assert rate_html("<b>") == "&lt;b&gt;"
    assert powers_html("<i> n^−0.49.") == "&lt;i&gt; n<sup>−0.49</sup>."
    assert plain("a$b\n") == "a\\$b "


def test_markers_follow_the_name_in_front_of_the_options() -> None:
    markers = gate_markers([SOFTMAX, TANH, "activation_dense_to_sparse", "top_k_sparse(top_k=2)"])
    assert markers[TANH] == "^"
    assert markers["activation_dense_to_sparse"] == "v"
    assert gate_markers([SOFTMAX, "top_k_sparse(top_k=3)"])["top_k_sparse(top_k=3)"] == "D"
    assert len(set(gate_markers([SOFTMAX, DENSE, TANH, "mine(a=1)", "mine(a=2)"]).values())) == 5


def test_labels_are_spread_out_in_order() -> None:
    assert spread_out([1.0, 5.0], 1.0, 0.0, 10.0) == [1.0, 5.0]
    placed = spread_out([9.9, 0.1, 9.8, 9.7], 1.0, 0.0, 10.0)
    assert placed == pytest.approx([9.5, 0.5, 8.5, 7.5])


def test_chunks_are_as_equal_as_can_be() -> None:
    assert chunks(list("abcde"), 4) == [["a", "b", "c"], ["d", "e"]]
    assert chunks(list("abcd"), 4) == [["a", "b", "c", "d"]]


# --- the page


class Outline(HTMLParser):
    """Collects tags, attributes and whether every element is closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def named(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of all elements of one kind."""
        return [attributes for name, attributes in self.tags if name == tag]


def test_page_is_well_formed_accessible_and_self_contained(page: str) -> None:
    outline = Outline(page)
    assert outline.open == []
    assert outline.named("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in outline.named("meta"))
    images = outline.named("img")
    assert len(images) == 7
    for image in images:
        assert len(image["alt"] or "") > 40
        assert (image["src"] or "").startswith("data:image/svg+xml;base64,")
    loaded = [a.get("src") or a.get("href") for _, a in outline.tags if "src" in a or "href" in a]
    assert all(str(address).startswith("data:") for address in loaded)
    identifiers = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    assert "http://" not in re.sub(r"base64,[^\"]*", "", page)
    tables = outline.named("table")
    assert len(tables) == 3
    assert all("data-sortable" in table for table in tables)


def changed(slopes: pd.DataFrame, where: dict[str, Any], values: tuple[float, ...]) -> pd.DataFrame:
    """Slopes with other numbers in the rows that have the values given."""
    result = slopes.copy()
    rows = np.logical_and.reduce([result[name] == value for name, value in where.items()])
    assert rows.any()
    result.loc[rows, ["slope", "low", "high"]] = values
    return result


def test_headline_has_an_answer_per_gate_and_k_with_the_numbers_of_the_slopes(
    study: Study,
) -> None:
    spread = {"n_experts": 2, "quantity": "temperature_sd"}
    losses = {"gate": DENSE, "n_experts": 2, "quantity": "normalised_loss"}
    slopes = changed(study.slopes, {"gate": DENSE} | spread, (0.0123, -0.03, 0.05))
    slopes = changed(slopes, {"gate": TANH} | spread, (-0.4321, -0.47, -0.39))
    slopes = changed(slopes, losses, (0.012, -0.05, 0.06))
    slopes = changed(slopes, losses | {"estimator": "map"}, (-0.2, -0.5, 0.1))
    slopes = changed(
        slopes, losses | {"quantity": "normalised_identified_loss"}, (-0.5, -0.6, -0.4)
    )
    answers = headline(study.one, slopes)
    assert len(answers) == 6
    assert answers[2] == (
        "Dense-to-sparse, exact, k = 2",
        "Loss: stays flat for MLE 0.01 [−0.05, 0.06] and posterior 0.01 [−0.05, 0.06]; unclear for "
        "MAP −0.20 [−0.50, 0.10]. Loss modulo the ray: falls for MLE n^−0.50 [−0.60, −0.40], MAP "
        "n^−0.50 [−0.60, −0.40] and posterior n^−0.50 [−0.60, −0.40]. Sd of τ: stays flat for "
        "posterior 0.01 [−0.03, 0.05].",
    )
    assert answers[4].finding.endswith("τ: falls for posterior n^−0.43 [−0.47, −0.39].")
    assert "τ" not in answers[0].finding
    assert "ray" not in answers[0].finding + answers[4].finding
    page = render_study(study.results, slopes, study.counts, {})
    assert "n<sup>−0.43</sup> [−0.47, −0.39]" in page


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.5, 0.2, 0.8), "grows for MAP 0.50 [0.20, 0.80]."),
        ((0.5, -0.05, 1.0), "does not fall for MAP 0.50 [−0.05, 1.00]."),
        ((-0.5, np.nan, np.nan), "no interval for MAP −0.50."),
        ((np.nan, np.nan, np.nan), "no slope for MAP."),
    ],
)
def test_headline_says_when_slopes_grow_or_are_missing(
    study: Study, values: tuple[float, ...], words: str
) -> None:
    where = {"gate": SOFTMAX, "n_experts": 2, "estimator": "map", "quantity": "normalised_loss"}
    answer = headline(study.one, changed(study.slopes, where, values))[0]
    assert f"; {words}" in answer.finding
    assert 0 < NEGLIGIBLE < 0.125, "the slowest polynomial rate must not count as flat"


def test_names_are_shown_and_never_run(study: Study) -> None:
    results = study.results.assign(gate_label=("gate", [HOSTILE] * 3))
    results.attrs |= {"name": HOSTILE, "plan": HOSTILE, "created": HOSTILE}
    results.attrs["versions"] = json.dumps({HOSTILE: HOSTILE})
    spoiled = study.slopes.assign(expected_text=HOSTILE)
    (one,) = settings(results)
    figure = report.temperature_sd(one, spoiled)
    page = render_study(results, spoiled, study.counts, {"temperature_sd": figure})
    outline = Outline(page)
    assert len(outline.named("script")) == 1
    assert not any(name.startswith("on") for _, a in outline.tags for name in a)
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    assert "{{ 7*7 }}" in page


# --- counts


def test_every_status_and_quantity_has_a_name(study: Study) -> None:
    statuses = {status.name.lower() for status in (*Status, *PosteriorStatus)}
    assert statuses | {"failed"} == set(STATUS_LABELS)
    assert set(study.slopes["quantity"]) <= set(QUANTITY_LABELS)
    assert "distance between MAP and MLE" in QUANTITY_LABELS.values()


def test_page_names_fits_that_did_not_converge(study: Study, page: str) -> None:
    status = study.results["status"].to_numpy().ravel()
    failed = int((~study.results["converged"]).sum())
    assert 0 < failed == int(np.isin(status, ["separated", "not_mixed"]).sum())
    assert f"{failed} of {size_text(status.size)} fits did not converge: " in page
    assert f"{int((status == 'separated').sum())} separated" in page
    floor = int((status == "at_variance_floor").sum())
    assert f"Of the fits that converged, {floor} rest on the variance floor" in page


def test_fits_at_the_variance_floor_count_as_converged() -> None:
    counts = pd.DataFrame({"status": ["converged", "at_variance_floor"], "count": [1200, 3]})
    assert left_out(counts) == "All 1\u2009203 fits converged."
    assert at_floor(counts).startswith("Of the fits that converged, 3 rest on")
    assert at_floor(counts.iloc[:1]) == ""


def test_fits_on_the_edge_of_their_prior_count_as_converged() -> None:
    counts = pd.DataFrame({"status": ["converged", "at_prior_bound"], "count": [1200, 3]})
    assert left_out(counts) == "All 1\u2009203 fits converged."
    assert at_floor(counts) == (
        "Of the fits that converged, 3 rest on a bound of their prior: they are maxima over its "
        "support."
    )


def test_an_mle_is_counted_once_whatever_the_number_of_priors(several: Study) -> None:
    counts = once(several.counts, several.results)
    data_sets = 2 * 3 * 4  # scenarios, sizes, replicates
    assert int(counts["count"].sum()) == data_sets * (1 + 2 * 2)
    assert int(several.counts["count"].sum()) == data_sets * 3 * 2


def test_page_has_settings_plan_and_a_row_per_slope(study: Study, page: str) -> None:
    assert "sizes = [300, 1000, 3000, 10000, 30000]" in page
    assert f"<dt>jax</dt><dd>{json.loads(study.results.attrs['versions'])['jax']}</dd>" in page
    assert page.count('<td data-value="') == 2 * len(study.slopes)
    for _, row in study.slopes.iterrows():
        assert f">{estimate(row['slope'], row['low'], row['high'])}</td>" in page


def test_starts_near_the_truth_are_a_warning_beside_the_answer(study: Study, page: str) -> None:
    assert "no evidence of convergence" not in page
    near = study.results.assign_attrs(starts="near_truth")
    warned = render_study(near, study.slopes, study.counts, {})
    assert warned.index("no evidence of convergence") < warned.index('id="figures"')


def test_letters_that_the_font_lacks_come_from_others_that_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bayesmoe.report.style._FALLBACKS", ("No such font", "STIXGeneral"))
    with style():
        figure = Figure(figsize=(1, 1))
        figure.text(0, 0.5, "x \u1d81")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of glyphs that are missing
        report.save(figure, tmp_path / "drawn")
    assert not caplog.records, "of fonts that are missing"
