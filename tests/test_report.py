"""Figures and the HTML report, on a synthetic study."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

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

from bayesmoe.report import figures as report
from bayesmoe.report.html import NEGLIGIBLE, headline, powers_html, rate_html, render_study
from bayesmoe.report.style import estimate, gate_markers, number, rate_math, size_text

GATES = ("softmax", "top_k_sparse", "dense_to_sparse", "activation_dense_to_sparse")
LABELS = ("softmax", "top-2 sparse", "dense-to-sparse", "activation (sigmoid)")
SIZES = (300, 1000, 3000, 10_000, 30_000)
ESTIMATORS = ("mle", "map", "posterior")
BLOCKS = ("gate_slope", "temperature", "slope", "intercept", "variance")
QUANTITIES = ("loss", "identified_loss", *BLOCKS)
LOSSES = ("loss", "identified_loss", "normalised_loss", "normalised_identified_loss")


def expected_rate(gate: str, k: int, quantity: str) -> tuple[float, str]:
    """The theory of the design, for the synthetic study."""
    if gate == "dense_to_sparse" and quantity in ("loss", "gate_slope", "temperature"):
        return 0.0, "none (ray)"
    if k == 2 or "loss" in quantity:
        return -0.5, "n^-1/2"
    eighth = {"intercept"} if gate.startswith("activation") else {"intercept", "gate_slope"}
    return (-0.125, "n^-1/8") if quantity in eighth else (-0.25, "n^-1/4")


def make_results(gates: int = 4, replicates: int = 12, seed: int = 0) -> xr.Dataset:
    """A plausible study with known exponents."""
    rng = np.random.default_rng(seed)
    names, n = GATES[:gates], np.asarray(SIZES, float)
    shape = (len(names), 2, len(SIZES), replicates, 3)
    level = np.asarray([1.0, 1.02, 2.4])

    def power(exponent: float, constant: float, noise: float = 0.35) -> np.ndarray:
        curve = constant * (n / 300) ** exponent
        spread = rng.lognormal(0, noise, (len(SIZES), replicates, 1))
        return (
            curve[:, None, None] * spread * rng.lognormal(0, 0.03, (*spread.shape[:2], 3)) * level
        )

    data = {name: np.zeros(shape) for name in LOSSES}
    block_error = np.full((*shape, 5, 2), np.nan)
    sd = np.full((*shape[:-1], 5), np.nan)
    expected = np.zeros((len(names), 2, len(QUANTITIES)))
    text = np.full(expected.shape, "", dtype=object)
    for i, gate in enumerate(names):
        temperature = "dense" in gate
        for j, k in enumerate((2, 3)):
            for q, quantity in enumerate(QUANTITIES):
                expected[i, j, q], text[i, j, q] = expected_rate(gate, k, quantity)
            for name in LOSSES:
                rate = expected_rate(gate, k, name.removeprefix("normalised_"))[0]
                data[name][i, j] = power(rate, 3.0 if rate == 0 else 0.4 * (1 + j))
            for b, block in enumerate(BLOCKS):
                if block == "temperature" and not temperature:
                    continue
                rate = expected_rate(gate, k, block)[0]
                constant = (1.5, 0.3, 0.4, 0.2, 0.05)[b]
                block_error[i, j, ..., b, j] = power(rate, constant)
                if j:
                    single = 0.0 if rate == 0 else -0.5
                    block_error[i, j, ..., b, 0] = power(single, constant / 4)
            if temperature:
                flat = gate == "dense_to_sparse"
                sd[i, j, ..., 1] = power(0.0 if flat else -0.5, 0.4 if flat else 0.02, 0.12)[..., 0]
    converged = rng.random(shape) > np.asarray([0.0, 0.12])[None, :, None, None, None]
    status = np.where(converged, "converged", "at_variance_floor").astype(object)
    status[..., 2] = np.where(converged[..., 2], "converged", "not_mixed")
    for values in data.values():
        values[~converged] *= 20.0  # a spurious optimum is far away
    full = ("gate", "n_experts", "n", "replicate", "estimator")
    variables: dict[str, object] = {name: (full, values) for name, values in data.items()}
    variables |= {
        "block_error": ((*full, "block", "cell"), block_error),
        "posterior_sd": ((*full[:-1], "block"), sd),
        "status": (full, status),
        "converged": (full, converged),
        "map_mle_distance": (full[:-1], rng.random(shape[:-1]) / n[:, None]),
        "seconds": (full, rng.lognormal(0, 0.2, shape)),
        "divergences": (full[:-1], rng.poisson(0.05, shape[:-1])),
        "min_ess": (full[:-1], rng.uniform(400, 2000, shape[:-1])),
        "max_rhat": (full[:-1], rng.uniform(1.0, 1.01, shape[:-1])),
        "expected": (("gate", "n_experts", "quantity"), expected),
        "expected_text": (("gate", "n_experts", "quantity"), text),
        "gate_label": ("gate", np.asarray(LABELS[:gates], dtype=object)),
        "n_experts_true": ("gate", np.full(gates, 2)),
        "has_temperature": ("gate", np.asarray(["dense" in g for g in names])),
    }
    coordinates = {
        "gate": list(names), "n_experts": [2, 3], "n": list(SIZES),
        "replicate": range(replicates), "estimator": list(ESTIMATORS), "block": list(BLOCKS),
        "cell": ["single", "shared"], "quantity": list(QUANTITIES),
    }  # fmt: skip
    attributes = {
        "plan": 'scenario = "lambda"\nsizes = [300, 1000]  # <small>\n', "scenario": "lambda",
        "starts": "agnostic", "prior": "weak", "created": "2026-01-02T03:04:05+00:00",
        "versions": json.dumps({"jax": "0.10.0", "numpyro": "0.22.0"}),
        "package_version": "0.1.0", "level": "0.9",
    }  # fmt: skip
    return xr.Dataset(variables, coordinates, attributes)


def make_slopes(results: xr.Dataset) -> pd.DataFrame:
    """Least-squares slopes of log medians, with made-up intervals."""
    rows = []
    logs = np.log(results["n"].to_numpy().astype(float))
    used = results["converged"]
    for gate in results["gate"].to_numpy():
        for k in results["n_experts"].to_numpy():
            cell = results.sel(gate=gate, n_experts=k)
            for estimator in ESTIMATORS:
                values = {name: cell[name].sel(estimator=estimator) for name in LOSSES}
                kind = "single" if k == 2 else "shared"
                for block in BLOCKS:
                    values[block] = cell["block_error"].sel(
                        estimator=estimator, block=block, cell=kind
                    )
                if estimator == "posterior":
                    values["temperature_sd"] = cell["posterior_sd"].sel(block="temperature")
                keep = used.sel(gate=gate, n_experts=k, estimator=estimator)
                for quantity, value in values.items():
                    if not np.isfinite(value).any():
                        continue
                    median = np.log(value.where(keep).median("replicate").to_numpy())
                    slope = float(np.polyfit(logs, median, 1)[0])
                    base = quantity.removeprefix("normalised_").removesuffix("_sd")
                    rate, text = expected_rate(str(gate), int(k), base)
                    near = abs(slope - rate) < 0.05
                    rows.append(
                        {
                            "gate": str(gate), "n_experts": int(k), "estimator": estimator,
                            "quantity": quantity, "slope": slope, "low": slope - 0.05,
                            "high": slope + 0.05, "expected": rate, "expected_text": text,
                            "verdict": "consistent" if near else
                            "faster" if slope < rate else "slower",
                            "n_used": int(keep.sum()), "n_total": int(keep.size),
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def make_counts(results: xr.Dataset) -> pd.DataFrame:
    """How often each status occurs."""
    frame = results["status"].to_dataframe().reset_index()
    keys = ["gate", "n_experts", "estimator", "status"]
    return frame.groupby(keys).size().rename("count").reset_index()


@pytest.fixture(scope="module")
def results() -> xr.Dataset:
    return make_results(3)


@pytest.fixture(scope="module")
def slopes(results: xr.Dataset) -> pd.DataFrame:
    return make_slopes(results)


@pytest.fixture(scope="module")
def figures(results: xr.Dataset, slopes: pd.DataFrame) -> dict[str, Figure]:
    return {
        "contraction": report.contraction(results, slopes),
        "blocks": report.blocks(results, slopes, n_experts=[2]),
        "temperature_sd": report.temperature_sd(results, slopes),
    }


@pytest.fixture(scope="module")
def page(results: xr.Dataset, slopes: pd.DataFrame, figures: dict[str, Figure]) -> str:
    return render_study(results, slopes, make_counts(results), figures)


def line(ax: Axes, label: str) -> Line2D:
    """The one line of a panel with this label."""
    (found,) = [artist for artist in ax.get_lines() if artist.get_label() == label]
    return found


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


# --- figures


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
    results: xr.Dataset, figures: dict[str, Figure], estimator: str
) -> None:
    cell = results.sel(gate="top_k_sparse", n_experts=3, estimator=estimator)
    ax = figures["contraction"].axes[4]
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
    results: xr.Dataset, figures: dict[str, Figure]
) -> None:
    hollow = sum(
        np.asarray(artist.get_xdata()).size
        for artist in figures["contraction"].axes[4].get_lines()
        if artist.get_label() == "_hollow"
    )
    converged = results["converged"].sel(gate="top_k_sparse", n_experts=3)
    assert hollow == int((~converged.all("replicate")).sum()) > 0


def test_reference_lines_have_the_expected_slope_and_the_centre_of_the_medians(
    figures: dict[str, Figure],
) -> None:
    for ax, exponents in zip(
        figures["contraction"].axes, 2 * ([-0.5], [-0.5], [0.0, -0.5]), strict=True
    ):
        found = [a for a in ax.get_lines() if a.get_label() == "_reference"]
        for artist, exponent in zip(found, exponents, strict=True):
            u, v = np.log(artist.get_xdata()), np.log(artist.get_ydata())
            assert (v[1] - v[0]) / (u[1] - u[0]) == pytest.approx(exponent, abs=1e-9)
    ax = figures["contraction"].axes[0]
    medians = np.asarray(
        [np.asarray(line(ax, f"{e} normalised_loss").get_ydata()) for e in ESTIMATORS]
    )
    (reference,) = [a for a in ax.get_lines() if a.get_label() == "_reference"]
    middle = np.mean(np.log(SIZES))
    at = np.interp(middle, np.log(reference.get_xdata()), np.log(reference.get_ydata()))
    assert at == pytest.approx(np.log(medians).mean())


def test_the_loss_modulo_the_ray_is_drawn_where_there_is_a_ray(figures: dict[str, Figure]) -> None:
    labels = [{a.get_label() for a in ax.get_lines()} for ax in figures["contraction"].axes]
    with_ray = ["mle normalised_identified_loss" in found for found in labels]
    assert with_ray == [False, False, True, False, False, True]
    assert any(text.startswith("modulo the ray") for text in texts(figures["contraction"]))


def test_panels_print_the_slopes_they_were_given(
    slopes: pd.DataFrame, figures: dict[str, Figure]
) -> None:
    shown = set(texts(figures["contraction"]))
    for _, row in slopes[slopes["quantity"] == "normalised_loss"].iterrows():
        name = {"mle": "MLE", "map": "MAP", "posterior": "post."}[row["estimator"]]
        assert f"{name} {estimate(row['slope'], row['low'], row['high'])}" in shown


def test_a_row_of_panels_spans_equal_decades_and_hides_nothing(figures: dict[str, Figure]) -> None:
    axes = figures["contraction"].axes
    for row in (axes[:3], axes[3:]):
        spans = [np.diff(np.log10(ax.get_ylim()))[0] for ax in row]
        np.testing.assert_allclose(spans, spans[0])
    for ax in axes:
        low, high = ax.get_ylim()
        for artist in ax.get_lines():
            assert np.all(np.asarray(artist.get_ydata()) > low)
            assert np.all(np.asarray(artist.get_ydata()) < high)


def test_notes_do_not_cover_points_and_texts_do_not_overlap(figures: dict[str, Figure]) -> None:
    for figure in figures.values():
        renderer = FigureCanvasAgg(figure).get_renderer()
        everything = []
        for ax in figure.axes:
            boxes = [t.get_window_extent(renderer) for t in ax.texts]
            boxes += [t.get_window_extent(renderer) for t in (ax.title, ax._left_title)  # type: ignore[attr-defined]
                      if t.get_text()]  # fmt: skip
            everything += boxes
            for artist in ax.get_lines():
                points = ax.transData.transform(artist.get_xydata())
                assert not any(b.contains(*p) for b in boxes for p in points)
        everything += [t.get_window_extent(renderer) for t in figure.texts]
        for i, box in enumerate(everything):
            assert figure.bbox.x0 <= box.x0
            assert box.x1 <= figure.bbox.x1 + 1
            smaller = box.padded(-1.5)
            assert not any(smaller.overlaps(o.padded(-1.5)) for o in everything[:i])


def test_text_is_at_least_eight_points(figures: dict[str, Figure]) -> None:
    for figure in figures.values():
        sizes = [
            float(t.get_fontsize()) for t in figure.findobj(matplotlib.text.Text) if t.get_text()
        ]
        assert min(sizes) >= 8.0


def test_blocks_show_errors_and_the_posterior_spread_of_the_temperature(
    results: xr.Dataset, figures: dict[str, Figure]
) -> None:
    figure = figures["blocks"]
    assert len(figure.axes) == 15
    dense = figure.axes[11]
    cell = results.sel(gate="dense_to_sparse", n_experts=2)
    used = cell["converged"].sel(estimator="posterior")
    np.testing.assert_allclose(
        np.asarray(line(dense, "temperature_sd").get_ydata()),
        converged_medians(cell["posterior_sd"].sel(block="temperature"), used),
    )
    error = cell["block_error"].sel(estimator="map", block="variance", cell="single")
    np.testing.assert_allclose(
        np.asarray(line(figure.axes[14], "map single").get_ydata()),
        converged_medians(error, cell["converged"].sel(estimator="map")),
    )
    assert [t.get_text() for t in figure.axes[1].texts] == ["no temperature"]


def test_over_specified_blocks_draw_shared_and_single_cells(
    results: xr.Dataset, slopes: pd.DataFrame
) -> None:
    figure = report.blocks(results.isel(gate=[0]), slopes, n_experts=[3])
    labels = {a.get_label() for a in figure.axes[0].get_lines()}
    assert {"mle shared", "mle single", "posterior shared", "posterior single"} <= labels


def test_temperature_sd_names_gates_with_slopes(results: xr.Dataset, slopes: pd.DataFrame) -> None:
    full = make_results(4)
    figure = report.temperature_sd(full, make_slopes(full))
    assert len(figure.axes) == 2
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    shown = texts(figure)
    assert shown.count("dense-to-sparse") == shown.count("activation (sigmoid)") == 2
    assert "softmax" not in shown
    cell = full.sel(gate="activation_dense_to_sparse", n_experts=3)
    np.testing.assert_allclose(
        np.asarray(line(figure.axes[1], "activation_dense_to_sparse").get_ydata()),
        converged_medians(
            cell["posterior_sd"].sel(block="temperature"),
            cell["converged"].sel(estimator="posterior"),
        ),
    )
    rows = slopes[slopes["quantity"] == "temperature_sd"]
    for _, row in rows.iterrows():
        assert estimate(row["slope"], row["low"], row["high"]) in shown


def damaged(kind: str) -> xr.Dataset:
    """A study in which something is missing."""
    results = make_results(3, replicates=4).isel(gate=[0, 2]).copy(deep=True)
    gate = {"gate": "dense_to_sparse", "n_experts": 3}
    if kind == "nothing converged":
        results["converged"].loc[gate] = False
    elif kind == "not run":
        for name in (*LOSSES, "block_error", "posterior_sd"):
            results[name].loc[gate] = np.nan
        results["converged"].loc[gate] = False
    elif kind == "all missing":
        results["converged"][:] = False
    elif kind == "a sample size missing":
        results["converged"].loc[{"n": 3000}] = False
    elif kind == "zeros":
        results["normalised_loss"].loc[{"n": 300}] = 0.0
    elif kind == "one sample size":
        results = results.isel(n=[0])
    elif kind == "no theory":
        results["expected"][:] = np.nan
    elif kind == "no temperature":
        results = results.isel(gate=[0])
    return results


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "kind",
    ["nothing converged", "not run", "all missing", "a sample size missing", "zeros",
     "one sample size", "no theory", "no temperature"],
)  # fmt: skip
def test_incomplete_studies_are_drawn(kind: str, slopes: pd.DataFrame) -> None:
    results = damaged(kind)
    kept = slopes[slopes["gate"].isin(results["gate"].to_numpy())].copy()
    kept.loc[kept["quantity"] == "normalised_loss", ["slope", "low", "high"]] = np.nan
    drawn = {
        "contraction": report.contraction(results, kept),
        "temperature_sd": report.temperature_sd(results, kept),
    }
    drawn["blocks"] = report.blocks(results, kept.iloc[:0], n_experts=[3])
    page = render_study(results, kept, make_counts(results), drawn)
    assert page.count("<figure>") == 3
    if kind in ("not run", "nothing converged"):
        assert "no converged fit" in texts(drawn["contraction"])


def test_dollars_in_a_label_are_shown(slopes: pd.DataFrame, tmp_path: Path) -> None:
    results = make_results(1).assign(gate_label=("gate", np.asarray(["$\\frac{$"], dtype=object)))
    report.save(report.contraction(results, slopes), tmp_path / "figure")


def test_save_is_deterministic_and_leaves_no_scraps(
    results: xr.Dataset, slopes: pd.DataFrame, tmp_path: Path
) -> None:
    first = report.save(report.temperature_sd(results, slopes), tmp_path / "a" / "one.two")
    second = report.save(report.temperature_sd(results, slopes), tmp_path / "b" / "one.two")
    assert [p.name for p in first] == ["one.two.png", "one.two.svg"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["one.two.png", "one.two.svg"]
    assert "<dc:date>" not in first[1].read_text()


def test_figures_leave_pyplot_and_the_users_settings_alone(
    results: xr.Dataset, slopes: pd.DataFrame
) -> None:
    with matplotlib.rc_context({"font.size": 31.0, "lines.linewidth": 9.0}):
        before = dict(matplotlib.rcParams)
        figure = report.temperature_sd(results, slopes)
        assert dict(matplotlib.rcParams) == before
    assert figure.axes[0].get_lines()[0].get_linewidth() < 9
    assert plt.get_fignums() == []


# --- printed numbers


def test_numbers_and_rates() -> None:
    assert number(-0.494) == "−0.49"
    assert number(-0.001) == "0.00"
    assert number(float("nan")) == "–"
    assert estimate(-0.5, -0.55, -0.449) == "−0.50 [−0.55, −0.45]"
    assert estimate(float("nan"), 0.0, 1.0) == "no slope"
    assert size_text(30_000) == "30\u2009000"
    assert rate_math(-0.125, "n^-1/8") == "$n^{-1/8}$"
    assert rate_math(0.0, "none (ray)") == "no rate (ray)"
    assert rate_html("n^-1/4") == "n<sup>−1/4</sup>"
    assert rate_html("<b>") == "&lt;b&gt;"
    assert powers_html("<i> n^−0.49.") == "&lt;i&gt; n<sup>−0.49</sup>."
    assert len(set(gate_markers([*GATES, "x", "y"]).values())) == 6


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
    assert len(images) == 3
    for image in images:
        assert len(image["alt"] or "") > 40
        assert (image["src"] or "").startswith("data:image/svg+xml;base64,")
    loaded = [a.get("src") or a.get("href") for _, a in outline.tags if "src" in a or "href" in a]
    assert all(str(address).startswith("data:") for address in loaded)
    identifiers = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    assert "http://" not in re.sub(r"base64,[^\"]*", "", page)
    assert len(outline.named("button")) == 8


def test_headline_numbers_come_from_the_slopes(results: xr.Dataset, slopes: pd.DataFrame) -> None:
    full = make_results(4)
    changed = make_slopes(full)
    for gate, values in {
        "dense_to_sparse": (0.0123, -0.03, 0.05),
        "activation_dense_to_sparse": (-0.4321, -0.47, -0.39),
    }.items():
        rows = (changed["gate"] == gate) & (changed["quantity"] == "temperature_sd")
        changed.loc[rows & (changed["n_experts"] == 2), ["slope", "low", "high"]] = values
        changed.loc[rows & (changed["n_experts"] == 3), ["slope", "low", "high"]] = (
            -0.2,
            -0.5,
            0.1,
        )
    answers = headline(full, changed)
    assert answers[0] == (
        "Dense-to-sparse, exact, k = 2: the posterior standard deviation of τ does not contract: "
        "slope 0.01 [−0.03, 0.05]."
    )
    assert answers[2] == (
        "Activation (sigmoid), exact, k = 2: the posterior standard deviation of τ contracts, at "
        "n^−0.43 [−0.47, −0.39]."
    )
    assert all("cannot tell" in answers[i] for i in (1, 3))
    page = render_study(full, changed, make_counts(full), {})
    assert "n<sup>−0.43</sup> [−0.47, −0.39]" in page


def test_headline_without_temperatures_is_about_losses(slopes: pd.DataFrame) -> None:
    results = make_results(1)
    answers = headline(results, slopes[slopes["gate"] == "softmax"])
    assert len(answers) == 6
    assert all("normalised Voronoi loss" in answer for answer in answers)
    assert 0 < NEGLIGIBLE < 0.125, "the slowest polynomial rate must not count as flat"


def test_names_are_shown_and_never_run(results: xr.Dataset, slopes: pd.DataFrame) -> None:
    bad = "<script>alert(1)</script>"
    hostile = results.assign(gate_label=("gate", np.asarray([bad] * 3, dtype=object)))
    hostile.attrs |= {k: f"{bad}{k}" for k in ("plan", "scenario", "prior", "starts", "created")}
    hostile.attrs["versions"] = json.dumps({bad: bad})
    spoiled = slopes.assign(expected_text=bad, verdict=f'x" onclick="{bad}')
    counts = make_counts(results).assign(status=bad)
    figure = report.temperature_sd(hostile, spoiled)
    page = render_study(hostile, spoiled, counts, {f'{bad}"onload="': figure})
    outline = Outline(page)
    assert len(outline.named("script")) == 1
    assert not any(name.startswith("on") for _, a in outline.tags for name in a)
    assert "alert(1)" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_page_names_fits_that_did_not_converge(results: xr.Dataset, page: str) -> None:
    left = int((~results["converged"]).sum())
    floor = int((results["status"] == "at_variance_floor").sum())
    assert f"{left} of {size_text(results['converged'].size)} fits did not converge" in page
    assert f"{floor} at the variance floor" in page


def test_page_has_settings_plan_and_a_row_per_slope(slopes: pd.DataFrame, page: str) -> None:
    assert "sizes = [300, 1000]  # &lt;small&gt;" in page
    assert "<dt>numpyro</dt><dd>0.22.0</dd>" in page
    assert page.count('<td data-value="') == 2 * len(slopes)
    for _, row in slopes.iterrows():
        assert f">{estimate(row['slope'], row['low'], row['high'])}</td>" in page
