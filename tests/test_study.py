"""The engine end to end: a small study, its numbers, its independence of threads and order."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import bayesmoe as bm
from bayesmoe.study import engine
from bayesmoe.study.cell import compute_cell
from bayesmoe.study.engine import CellError, run_study
from bayesmoe.study.outputs import Outputs, write_outputs
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.results import settings
from bayesmoe.study.store import Store

PLAN = Plan.model_validate(
    {
        "scenarios": ["weak"],
        "gates": ["dense_to_sparse"],
        "n_experts": [2],
        "sizes": [150, 300],
        "replicates": 3,
        "n_starts": 4,
        "warmup": 100,
        "draws": 100,
        "seed": 5,
    }
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "out"
    with Store.open(path, PLAN) as store:
        run_study(PLAN, store, n_threads=2)
    return path


@pytest.fixture(scope="module")
def outputs(directory: Path) -> Outputs:
    with Store.open(directory, PLAN) as store:
        return write_outputs(PLAN, store)


def one(results: xr.Dataset, cell: Cell) -> xr.Dataset:
    return results.sel(cell._asdict()).isel(prior=0)


def test_every_cell_is_there_once(directory: Path, outputs: Outputs) -> None:
    assert {path.stem for path in (directory / "cells").iterdir()} == {
        cell.name for cell in PLAN.cells()
    }
    assert not (outputs.results["status"] == "missing").any()
    assert outputs.counts["count"].sum() == outputs.results["status"].size


def test_a_cell_alone_gives_the_same_numbers(directory: Path) -> None:
    cell = list(PLAN.cells())[4]
    with Store.open(directory, PLAN) as store:
        stored = store.read(cell.name)
    for name, value in compute_cell(PLAN, cell).items():
        if name != "seconds":
            np.testing.assert_array_equal(value, stored[name], err_msg=name)


def test_point_estimates_are_those_of_the_public_functions(outputs: Outputs) -> None:
    cell = list(PLAN.cells())[1]
    truth = bm.scenario("weak", gate="dense_to_sparse")
    x, y = truth.simulate(PLAN.data_key(cell), cell.n)
    model = bm.moe("dense_to_sparse", 2)
    mle = bm.fit_mle(model, x, y, key=PLAN.fit_key(cell), n_starts=4)
    found = one(outputs.results, cell).sel(estimator="mle")
    np.testing.assert_allclose(found["log_likelihood"], mle.log_likelihood, rtol=1e-12)
    np.testing.assert_allclose(found["estimate_slope"], mle.measure.slope, rtol=1e-9)
    np.testing.assert_allclose(found["loss"], bm.voronoi_loss(mle.measure, truth), rtol=1e-9)
    np.testing.assert_allclose(
        found["identified_loss"], bm.voronoi_loss(mle.measure, truth, identified=True), rtol=1e-9
    )
    assert found["status"] == mle.status.name.lower()
    np.testing.assert_array_equal(found["start_objective"][:4], mle.starts.objective)
    assert np.isnan(found["start_objective"][4])


def test_the_posterior_of_tau_is_spread_like_its_prior(outputs: Outputs) -> None:
    # the weak prior of τ is log-normal (0, 1/2): the data say nothing of the ray position
    sd = outputs.results["posterior_sd"].sel(block="temperature")
    assert sd.notnull().all()
    assert ((sd > 0.1) & (sd < 1.0)).all()


def test_results_reopen_with_xarray(directory: Path, outputs: Outputs) -> None:
    with xr.open_dataset(directory / "results.nc") as reopened:
        xr.testing.assert_identical(reopened.load(), outputs.results)


def test_each_setting_has_the_layout_of_figures(outputs: Outputs) -> None:
    (study,) = settings(outputs.results)
    assert study.attrs["scenario"] == "weak"
    assert study.attrs["prior"] == "weak"
    assert set(study["loss"].dims) == {"gate", "n_experts", "n", "replicate", "estimator"}


def test_slopes_name_what_they_measure(outputs: Outputs) -> None:
    slopes = outputs.slopes
    posterior = slopes[slopes["estimator"] == "posterior"].set_index("quantity")
    assert posterior.loc["temperature_sd", "expected_text"] == "none (ray)"
    assert posterior.loc["identified_loss", "expected"] == -0.5
    assert set(slopes["n_total"]) == {6}
    distance = slopes[slopes["quantity"] == "map_mle_distance"]
    assert list(distance["estimator"]) == ["map"]
    assert list(distance["expected"]) == [-1.0]


def test_a_finished_study_computes_nothing_more(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(plan: Plan, cell: Cell) -> None:
        raise AssertionError(cell)

    monkeypatch.setattr(engine, "compute_cell", refuse)
    with Store.open(directory, PLAN) as store:
        run_study(PLAN, store)


def test_a_failing_cell_is_named_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = list(PLAN.cells())[2]

    def compute(plan: Plan, cell: Cell) -> dict[str, np.ndarray]:
        if cell == bad:
            raise FloatingPointError("underflow")
        return {"x": np.zeros(1)}

    monkeypatch.setattr(engine, "compute_cell", compute)
    with Store.open(tmp_path / "out", PLAN) as store:
        with pytest.raises(CellError, match=r"n=150, replicate=2.* failed: underflow"):
            run_study(PLAN, store, n_threads=1)
        assert bad.name not in store.finished()
        assert store.finished() == {cell.name for cell in list(PLAN.cells())[3:]}


@pytest.mark.parametrize("n_threads", [1, 2, 7])
def test_threads_share_the_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_threads: int
) -> None:
    plan = PLAN.model_copy(update={"n_experts": [1, 2, 3], "replicates": 5})
    seen: Counter[Cell] = Counter()
    lock = threading.Lock()

    def compute(plan: Plan, cell: Cell) -> dict[str, np.ndarray]:
        with lock:
            seen[cell] += 1
        return {"x": np.zeros(1)}

    observed: list[Cell] = []
    monkeypatch.setattr(engine, "compute_cell", compute)
    with Store.open(tmp_path / "out", plan) as store:
        run_study(plan, store, n_threads=n_threads, observe=observed.append)
    assert set(seen) == set(plan.cells())
    assert set(seen.values()) == {1}
    assert Counter(observed) == seen


def test_near_truth_starts_know_the_truth_alone() -> None:
    plan = PLAN.model_copy(update={"starts": "near_truth"})
    arrays = compute_cell(plan, next(plan.cells()))
    estimators = list(plan.estimators)
    mle = arrays["start_objective"][0, estimators.index("mle")]
    # every start is near the truth, so all reach one optimum
    assert np.ptp(mle[:4]) < 1e-6
    tau = arrays["estimate_temperature"][0, estimators.index("mle")]
    assert abs(tau - 2.0) < 0.2  # where the starts put it, not where the data do
