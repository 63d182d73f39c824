"""Partial dependence: against loops over rows and draws, levels, formulas, what is drawn."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.special
from conftest import CASE, GateCase
from fabricated_fit import make_analysis, make_plane
from matplotlib.collections import LineCollection, PolyCollection

import bayesmoe as bm
from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.diagnostics.requests import FitRequest
from bayesmoe.report._columns import formula_sweeps, load_sweeps, save_sweeps
from bayesmoe.report._dependence import (
    DRAWS,
    MOST,
    ROWS,
    Sweep,
    gate_dependence,
    partial_dependence,
    table_sweeps,
)
from bayesmoe.report._panels import posterior_draws
from bayesmoe.report.dependence_figure import averaged_text, dependence_figure
from bayesmoe.report.files import rewrite_report, write_analysis

pytestmark = pytest.mark.filterwarnings("error")


def scattered(centre: MixingMeasure, shape: tuple[int, int], seed: int = 0) -> MixingMeasure:
    """Draws around a measure, the reference expert's gate at zero."""
    rng = np.random.default_rng(seed)
    fields = {}
    for name in FIELDS:
        value = np.asarray(getattr(centre, name))
        fields[name] = value * np.exp(0.1 * rng.normal(size=(*shape, *value.shape)))
    return MixingMeasure(**fields)


# --- numbers


def test_averages_are_those_of_a_loop_over_draws_and_rows() -> None:
    """E[Y|x] and softmax written out, at each point, draw and row alone."""
    rng = np.random.default_rng(1)
    x = pd.DataFrame(rng.normal(size=(23, 3)), columns=["u", "v", "w"])
    case = CASE["softmax"]
    draws = scattered(case.measure(2, 3, 3), (2, 7))
    sweep = table_sweeps(x)[1]
    found = partial_dependence(case.gate(3), draws, sweep)
    assert sweep.name == "v"
    assert (sweep.points[0], sweep.points[-1]) == (x["v"].min(), x["v"].max())
    for m in (0, 17, 40):
        means, gates = [], []
        for chain, draw in itertools.product(range(2), range(7)):
            beta1, beta0, _, a, b, _ = (
                np.asarray(getattr(draws, name))[chain, draw] for name in FIELDS
            )
            total, shares = 0.0, np.zeros(3)
            for row in x.to_numpy():
                moved = np.array([row[0], sweep.points[m], row[2]])
                powers = np.exp([beta1[i] @ moved + beta0[i] for i in range(3)])
                total += sum(powers[i] / powers.sum() * (a[i] @ moved + b[i]) for i in range(3))
                shares += powers / powers.sum()
            means.append(total / 23)
            gates.append(shares / 23)
        expected = [np.mean(means), *np.quantile(means, [0.05, 0.95])]
        np.testing.assert_allclose([part[m] for part in found.mean], expected, rtol=1e-10)
        expected_gates = [np.mean(gates, 0), *np.quantile(gates, [0.05, 0.95], axis=0)]
        np.testing.assert_allclose(
            [part[:, m] for part in found.probability], expected_gates, rtol=1e-10
        )


@pytest.mark.parametrize("label", ["top_k_sparse", "dense_to_sparse", "sigmoid"])
def test_every_gate_has_its_averages(label: str) -> None:
    case: GateCase = CASE[label]
    x = pd.DataFrame(np.random.default_rng(1).normal(size=(23, 3)), columns=["u", "v", "w"])
    centre = case.measure(2, 3, 3)
    sweep = table_sweeps(x)[2]
    found = partial_dependence(case.gate(3), centre.replace(), sweep._replace(at=sweep.at[:2]))
    for m in range(2):
        moved = x.assign(w=sweep.points[m]).to_numpy()
        shares = case.probabilities(centre, moved)
        lines = moved @ np.asarray(centre.slope).T + np.asarray(centre.intercept)
        np.testing.assert_allclose(found.mean.centre[m], (shares * lines).sum(1).mean())
        np.testing.assert_allclose(found.probability.centre[:, m], shares.mean(0), atol=1e-12)


def test_of_many_rows_and_draws_some_are_taken_and_told() -> None:
    x = pd.DataFrame({"u": np.arange(1000.0), "v": np.arange(1000.0) ** 2})
    first, _ = table_sweeps(x)
    rows = first.at[0, :, 1] ** 0.5
    assert len(np.unique(rows)) == ROWS < 1000
    assert abs(rows.mean() - 499.5) < 5 * 289 / ROWS**0.5
    assert np.diff(np.diff(rows)).any(), "at no regular distance, which data may have, too"
    np.testing.assert_array_equal(first.at, table_sweeps(x)[0].at)
    case = CASE["softmax"]
    draws = scattered(case.measure(2, 2, 2), (2, 500))
    found = partial_dependence(case.gate(2), draws, first._replace(at=first.at[:1] / 1000))
    at = first.at[0] / 1000
    shares = scipy.special.softmax(
        at @ np.asarray(draws.gate_slope).reshape(-1, 2, 2).transpose(0, 2, 1)
        + np.asarray(draws.gate_intercept).reshape(-1, 1, 2), axis=-1
    ).mean(1)  # fmt: skip
    kept = shares[np.linspace(0, 999, DRAWS).round().astype(int)]
    np.testing.assert_allclose(found.probability.centre[:, 0], kept.mean(0))
    analysis = make_plane()
    assert averaged_text(analysis) == "all 60 rows and all 100 draws"
    assert len(table_sweeps(pd.DataFrame(np.random.default_rng(0).normal(size=(9, 12))))) == MOST


def test_how_much_probability_changes_hands() -> None:
    """Two experts: the mean difference of a logistic function between deciles."""
    rng = np.random.default_rng(2)
    x = pd.DataFrame({"u": rng.normal(size=150), "v": rng.normal(size=150), "w": np.zeros(150)})
    x.loc[:7, "w"] = 1.0  # deciles are equal
    centre = (
        CASE["softmax"]
        .measure(2, 2, 3)
        .replace(gate_slope=[[1.5, 0.0, -2.0], [0.0, 0.0, 0.0]], gate_intercept=[0.3, 0.0])
    )
    found = gate_dependence(CASE["softmax"].gate(2), centre, x)
    low, high = np.quantile(x["u"], [0.1, 0.9])
    others = 0.3 - 2 * x["w"]
    u = scipy.special.expit(others + 1.5 * high) - scipy.special.expit(others + 1.5 * low)
    w = scipy.special.expit(0.3 + 1.5 * x["u"]) - scipy.special.expit(0.3 + 1.5 * x["u"] - 2)
    np.testing.assert_allclose(found, [u.mean(), 0.0, w.mean()], atol=1e-12)


# --- the figure


def test_curves_bands_and_levels_are_what_was_computed() -> None:
    analysis = make_plane(binary=True)
    sweeps = table_sweeps(analysis.table.x)
    assert [sweep.levels for sweep in sweeps] == [False, True]
    np.testing.assert_array_equal(sweeps[1].points, [0.0, 1.0])
    upper, lower, other, other_lower = dependence_figure(analysis, sweeps).axes
    draws, gate = posterior_draws(analysis), analysis.model.gate
    line, step = (partial_dependence(gate, draws, sweep) for sweep in sweeps)
    np.testing.assert_array_equal(upper.lines[0].get_ydata(), line.mean.centre)
    (band,) = [part for part in upper.collections if isinstance(part, PolyCollection)]
    edge = band.get_paths()[0].vertices[:, 1]
    assert {*line.mean.low, *line.mean.high} <= set(edge)
    for i in range(2):
        np.testing.assert_array_equal(lower.lines[i].get_ydata(), line.probability.centre[i])
        np.testing.assert_array_equal(other_lower.lines[i].get_ydata(), step.probability.centre[i])
    np.testing.assert_array_equal(other.lines[0].get_xydata(), np.stack([[0, 1], step.mean[0]], 1))
    bars = other.collections[0].get_segments()
    np.testing.assert_array_equal([bar[:, 1] for bar in bars], np.stack(step.mean[1:], 1))
    assert upper.get_ylim() == other.get_ylim(), "effects can be compared"
    (rug,) = [part for part in upper.collections if isinstance(part, LineCollection)]
    assert sorted(s[0, 0] for s in rug.get_segments()) == sorted(analysis.table.x["u"])


def test_one_expert_has_no_gate_to_draw() -> None:
    analysis = make_plane()
    tree = analysis.posterior.isel(expert=[0])
    alone = analysis._replace(model=bm.moe("softmax", 1), posterior=tree)
    assert len(dependence_figure(alone, table_sweeps(alone.table.x)).axes) == 2


# --- formulas


@pytest.fixture(scope="module")
def derived(tmp_path_factory: pytest.TempPathFactory) -> tuple[FitRequest, bm.Design]:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(
        {"y": rng.normal(size=50), "a": rng.normal(size=50), "g": rng.choice([1, 2, 10], 50),
         "km/h": rng.uniform(0.5, 2, 50), "s": rng.choice(["lo", "hi"], 50)}
    )  # fmt: skip
    path = tmp_path_factory.mktemp("data") / "own.csv"
    frame.to_csv(path, index=False)
    formula = "y ~ poly(a, 2) * s + C(g) + log(`km/h`)"
    request = FitRequest(str(path), "y", (), "softmax", {}, 2, formula=formula)
    return request, bm.design(formula, pd.read_csv(path))


def test_columns_of_a_formula_are_varied_and_not_its_terms(
    derived: tuple[FitRequest, bm.Design], tmp_path: Path
) -> None:
    request, design = derived
    frame = pd.read_csv(request.data)
    sweeps = formula_sweeps(design)
    assert {sweep.name: (sweep.levels, sweep.labels) for sweep in sweeps} == {
        "a": (False, ()), "s": (True, ("hi", "lo")), "g": (True, ("1", "2", "10")),
        "km/h": (False, ()),
    }  # fmt: skip
    for sweep in sweeps:
        settings = {"s": ["hi", "lo"], "g": [1, 2, 10]}.get(sweep.name, sweep.points)
        assert len(settings) == len(sweep.points)
        for m in (0, len(settings) - 1):
            expected = design.at(frame.assign(**{sweep.name: settings[m]})).to_numpy()
            np.testing.assert_allclose(sweep.at[m], expected, rtol=1e-12, atol=1e-14)
    codes = [sorted(frame["s"].unique()).index(level) for level in frame["s"]]
    np.testing.assert_array_equal(sweeps[1].values, codes)
    save_sweeps(tmp_path, sweeps)
    for one, other in zip(load_sweeps(tmp_path), sweeps, strict=True):
        assert one._replace(values=0, points=0, at=0) == other._replace(values=0, points=0, at=0)
        for field in ("values", "points", "at"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    assert load_sweeps(tmp_path / "elsewhere") == []


def test_a_fit_by_a_formula_keeps_its_columns(
    derived: tuple[FitRequest, bm.Design], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in the report that is written anew, for which no data are read."""
    frame = pd.read_csv(derived[0].data)
    frame = pd.concat([frame, frame[:10]])
    request = derived[0]._replace(data="gone.csv", formula="y ~ log(`km/h`)")
    design = bm.design("y ~ log(`km/h`)", frame.reset_index(drop=True))
    table = design.table
    analysis = make_analysis(names=(str(table.x.columns[0]), "y"))._replace(table=table)
    analysis.posterior["constant_data"]["x"].values[:] = table.x
    analysis.posterior["observed_data"]["y"].values[:] = table.y
    seen: list[list[Sweep]] = []
    monkeypatch.setattr(
        "bayesmoe.report.files.fit_figures", lambda *given: seen.append(given[2]) or {}
    )
    monkeypatch.setattr("bayesmoe.report.files.render_fit", lambda *_: "page")
    write_analysis(tmp_path / "fit", request, analysis, design)
    rewrite_report(tmp_path / "fit")
    (before,), (after,) = seen
    assert before.name == after.name == "km/h"
    np.testing.assert_array_equal(before.at, after.at)
    np.testing.assert_allclose(before.at[:, 0, 0], np.log(before.points))


def test_a_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "columns.nc").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"columns\.nc cannot be read"):
        load_sweeps(tmp_path)
