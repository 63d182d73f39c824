"""The engine end to end: a small study, its numbers, its independence of threads and order."""

from __future__ import annotations

import functools
import pickle
import threading
from collections import Counter
from collections.abc import Collection, Generator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import CASE
from fabricated import fabricate, make_plan
from oracles import Oracle
from test_mixing import make_draws

import bayesmoe as bm
from bayesmoe.core.measure import FIELDS
from bayesmoe.inference.laplace import Resampled
from bayesmoe.inference.nuts import Draws
from bayesmoe.report.files import write_study
from bayesmoe.study import engine, sampling
from bayesmoe.study.cell import compute_cell
from bayesmoe.study.chunks import digest
from bayesmoe.study.engine import run_study
from bayesmoe.study.executors import Attempt, Executor, Outcome, in_threads
from bayesmoe.study.layout import RESULTS
from bayesmoe.study.outputs import Outputs, write_outputs
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.results import failures, reason, settings
from bayesmoe.study.store import Store, WriteError
from bayesmoe.study.stored import Stored

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
        "kept_draws": 20,
        "seed": 5,
    }
)


def threads(count: int) -> Executor:
    return functools.partial(in_threads, n_threads=count)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "out"
    with Store.open(path, PLAN) as store:
        assert run_study(PLAN, store, execute=threads(2)) == 0
    return path


@pytest.fixture(scope="module")
def outputs(directory: Path) -> Outputs:
    return write_outputs(PLAN, Stored(directory))


def one(results: xr.Dataset, cell: Cell) -> xr.Dataset:
    return results.sel(cell._asdict()).isel(prior=0)


@pytest.mark.slow
def test_every_cell_is_there_once(directory: Path, outputs: Outputs) -> None:
    assert Stored(directory).finished() == set(PLAN.cells())
    assert not (outputs.results["status"] == "missing").any()
    assert outputs.counts["count"].sum() == outputs.results["status"].size


@pytest.mark.slow
def test_a_cell_alone_gives_the_same_numbers(directory: Path) -> None:
    cell = list(PLAN.cells())[4]
    stored = Stored(directory).read(cell)
    for name, value in compute_cell(PLAN, cell).items():
        if name != "seconds":
            np.testing.assert_array_equal(value, stored[name], err_msg=name)


@pytest.mark.slow
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
    assert (
        found["n_iterations"].item()
        in mle.starts.n_iterations[mle.starts.objective >= mle.log_likelihood - 1e-9]
    )
    assert outputs.results["n_iterations"].sel(estimator="posterior").isnull().all()
    assert (outputs.results["n_iterations"].sel(estimator="map") >= 0).all()
    assert np.isnan(found["start_objective"][4])


@pytest.mark.slow
def test_the_posterior_of_tau_is_spread_like_its_prior(outputs: Outputs) -> None:
    # the weak prior of τ is log-normal (0, 1/2): the data say nothing of the ray position
    sd = outputs.results["posterior_sd"].sel(block="temperature")
    assert sd.notnull().all()
    assert ((sd > 0.1) & (sd < 1.0)).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_results_reopen_with_xarray(directory: Path, outputs: Outputs) -> None:
    with xr.open_zarr(directory / "results.zarr", chunks=None) as reopened:
        xr.testing.assert_equal(reopened.load(), outputs.results)
        assert reopened.attrs == outputs.results.attrs


@pytest.mark.slow
def test_a_data_digest_tells_data_sets(outputs: Outputs) -> None:
    digests = outputs.results["data_digest"].to_numpy().ravel()
    assert len(set(digests)) == 6
    cell = next(PLAN.cells())
    x, y = bm.scenario("weak", gate="dense_to_sparse").simulate(PLAN.data_key(cell), cell.n)
    assert digests[0] == digest({"x": np.asarray(x), "y": np.asarray(y)})


@pytest.mark.slow
def test_each_setting_has_the_layout_of_figures(outputs: Outputs) -> None:
    (study,) = settings(outputs.results)
    assert study.attrs["scenario"] == "weak"
    assert study.attrs["prior"] == "weak"
    assert set(study["loss"].dims) == {"gate", "n_experts", "n", "replicate", "estimator"}


@pytest.mark.slow
def test_slopes_name_what_they_measure(outputs: Outputs) -> None:
    slopes = outputs.slopes
    posterior = slopes[slopes["estimator"] == "posterior"].set_index("quantity")
    assert posterior.loc["temperature_sd", "expected_text"] == "none (ray)"
    assert posterior.loc["identified_loss", "expected"] == -0.5
    assert set(slopes["n_total"]) == {6}
    distance = slopes[slopes["quantity"] == "map_mle_distance"]
    assert list(distance["estimator"]) == ["map"]
    assert list(distance["expected"]) == [-1.0]


# --- posteriors by Laplace's approximation where it can be trusted

LAPLACE_FIRST = PLAN.model_copy(update={"sampler": "laplace_or_nuts"})


@pytest.fixture(scope="module")
def worth() -> dict[float, float]:
    """The draws that each approximation of the study was worth, by its Pareto k."""
    return {}


@pytest.fixture(scope="module")
def mixed_directory(tmp_path_factory: pytest.TempPathFactory, worth: dict[float, float]) -> Path:
    """The same study, NUTS only where the approximation fails."""

    def noted(*arguments: Any, **options: Any) -> Resampled:
        found = resample(*arguments, **options)
        worth[found.pareto_k] = found.effective_size
        return found

    path, resample = tmp_path_factory.mktemp("mixed") / "out", sampling.resample_laplace
    with Store.open(path, LAPLACE_FIRST) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "resample_laplace", noted)
        assert run_study(LAPLACE_FIRST, store, execute=threads(2)) == 0
    return path


@pytest.fixture(scope="module")
def mixed(mixed_directory: Path) -> xr.Dataset:
    return write_outputs(LAPLACE_FIRST, Stored(mixed_directory)).results


@pytest.mark.slow
def test_every_posterior_says_which_sampler_it_comes_from(
    mixed: xr.Dataset, outputs: Outputs, worth: dict[float, float]
) -> None:
    laplace = mixed["sampler"] == "laplace"
    assert 1 <= laplace.sum() <= 5, "both samplers must occur"
    assert (laplace | (mixed["sampler"] == "nuts")).all()
    enough = xr.apply_ufunc(lambda k: worth[float(k)] >= 200.0, mixed["pareto_k"], vectorize=True)
    trusted = (mixed["pareto_k"] <= 0.7) & enough
    assert (trusted == laplace).all(), "as many independent draws as are kept, and a good k"
    for name in ("divergences", "max_rhat"):
        assert (mixed[name].isnull() == laplace).all()
    assert (mixed["min_ess"].where(laplace, 200.0) >= 200.0).all(), "as many as draws"
    assert mixed["converged"].sel(estimator="posterior").where(laplace, True).all()
    assert (outputs.results["sampler"] == "nuts").all()
    assert outputs.results["pareto_k"].isnull().all()


@pytest.mark.slow
def test_samplers_are_a_table_where_the_plan_leaves_them_open(
    mixed_directory: Path, mixed: xr.Dataset, directory: Path, outputs: Outputs
) -> None:
    table = pd.read_csv(mixed_directory / "samplers.csv")
    drawn = mixed["sampler"].squeeze()
    assert table["n"].tolist() == PLAN.sizes
    for name in ("laplace", "nuts"):
        assert table[name].tolist() == (drawn == name).sum("replicate").to_numpy().tolist()
    assert not (directory / "samplers.csv").exists()


@pytest.mark.slow
def test_what_nuts_draws_does_not_depend_on_the_attempt_before(
    mixed: xr.Dataset, outputs: Outputs
) -> None:
    """Bit for bit; and no point estimate depends on the sampler at all."""
    points, by_nuts = ["mle", "map"], mixed["sampler"].isel(prior=0) == "nuts"
    for name in RESULTS.keys() - {"sampler", "pareto_k", "seconds"}:
        for cell in PLAN.cells():
            same, other = (one(study, cell)[name] for study in (mixed, outputs.results))
            if not by_nuts.sel(cell._asdict()):
                if "estimator" not in same.dims:
                    continue
                same, other = same.sel(estimator=points), other.sel(estimator=points)
            np.testing.assert_array_equal(same, other, err_msg=f"{name} of {cell}")


@pytest.mark.slow
def test_a_posterior_by_laplace_is_that_of_the_public_function_and_agrees_with_nuts(
    mixed: xr.Dataset, outputs: Outputs
) -> None:
    cell = next(PLAN.cells())
    truth = bm.scenario("weak", gate="dense_to_sparse")
    x, y = truth.simulate(PLAN.data_key(cell), cell.n)
    model, key = bm.moe("dense_to_sparse", 2), PLAN.fit_key(cell)
    mle = bm.fit_mle(model, x, y, key=key, n_starts=4)
    map_ = bm.fit_map(model, x, y, key=key, n_starts=4, starts=mle.measure)
    tree = bm.sample_laplace(model, x, y, key=key, start=map_, n_chains=2, n_draws=100)
    losses = bm.voronoi_loss(tree, truth, identified=True)
    found, nuts = (one(each, cell).sel(estimator="posterior") for each in (mixed, outputs.results))
    assert found["sampler"] == "laplace"
    assert found["identified_loss"] == bm.contraction_radius(losses)
    assert found["pareto_k"] == tree.attrs["pareto_k"]
    kept = tree["posterior"].ds.isel(draw=slice(4, None, 5))
    for name in ("gate_slope", "gate_intercept", "temperature", "slope", "intercept", "variance"):
        np.testing.assert_array_equal(found[f"draw_{name}"], kept[name], err_msg=name)
    heights = tree["sample_stats"]["log_likelihood"]
    np.testing.assert_array_equal(found["draw_log_likelihood"], heights[:, 4::5])
    assert found["draw"].values.tolist() == list(range(4, 100, 5))
    assert found["min_ess"] == tree.attrs["min_ess"]
    np.testing.assert_allclose(found["log_likelihood"], heights.mean(), rtol=1e-12)
    # to four standard errors of both: of 200 draws, out of proposals worth min_ess, and of NUTS;
    # heights summed over all cells by Laplace, for power
    error = np.sqrt(1 / 200 + 1 / found["min_ess"] + 1 / nuts["min_ess"])
    share = np.mean(losses <= nuts["identified_loss"].item())
    assert abs(share - PLAN.level) < 4 * np.sqrt(PLAN.level * (1 - PLAN.level)) * error
    kept = mixed["sampler"] == "laplace"
    ours, theirs = (
        study[["log_likelihood", "min_ess"]].sel(estimator="posterior").where(kept)
        for study in (mixed, outputs.results)
    )
    gap = float((ours["log_likelihood"] - theirs["log_likelihood"]).sum())
    errors = np.sqrt(1 / 200 + 1 / ours["min_ess"] + 1 / theirs["min_ess"])
    assert abs(gap) < 4 * heights.values.std() * float(np.sqrt((errors**2).sum()))


@pytest.mark.slow
def test_kept_draws_have_the_log_likelihoods_beside_them(mixed: xr.Dataset) -> None:
    """By the oracle, of draws by both samplers, also with their experts named as in the truth."""
    truth = bm.scenario("weak", gate="dense_to_sparse")
    oracle = Oracle(CASE["dense_to_sparse"], 2, 1)
    for cell in PLAN.cells():
        x, y = truth.simulate(PLAN.data_key(cell), cell.n)
        kept = one(mixed, cell)
        draws = bm.MixingMeasure(*(kept[f"draw_{field}"].to_numpy() for field in FIELDS))
        for measures in (draws, bm.align(draws, truth.gate, truth.measure)):
            last = jax.tree.map(lambda leaf: np.asarray(leaf)[1, -1], measures)
            expected = oracle.log_likelihood(oracle.theta(last), np.asarray(x), np.asarray(y))
            np.testing.assert_allclose(kept["draw_log_likelihood"][1, -1], expected, rtol=1e-10)


def test_where_the_density_jumps_nuts_draws_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("there is no curvature to approximate")

    drawn = make_draws()
    monkeypatch.setattr(sampling, "resample_laplace", refuse)
    monkeypatch.setattr(sampling, "sample_chains", lambda *_, **__: drawn)
    plan, model = make_plan(sampler="laplace_or_nuts"), bm.moe("top_k_sparse", 2, top_k=1)
    x = y = jnp.arange(9.0)
    sample = sampling.draw_posterior(plan, model, x, y, key=jax.random.key(0), start=None)
    assert sample.draws is drawn
    assert sample.evidence.sampler == "nuts"
    assert np.isnan(sample.evidence.pareto_k)


@pytest.mark.parametrize(
    ("pareto_k", "size", "sampler"),
    [(0.7, 2000.0, "laplace"), (0.71, 8000.0, "nuts"), (0.1, 1999.0, "nuts"),
     (np.nan, 8000.0, "nuts")],
)  # fmt: skip
def test_an_approximation_is_kept_by_its_pareto_k_and_the_draws_it_is_worth(
    monkeypatch: pytest.MonkeyPatch, pareto_k: float, size: float, sampler: str
) -> None:
    drawn = make_draws()
    shared = {name: getattr(drawn, name) for name in set(Resampled._fields) & set(Draws._fields)}
    tried = Resampled(**shared, pareto_k=pareto_k, effective_size=size)
    monkeypatch.setattr(sampling, "resample_laplace", lambda *_, **__: tried)
    monkeypatch.setattr(sampling, "sample_chains", lambda *_, **__: drawn)
    plan, x = make_plan(sampler="laplace_or_nuts"), jnp.arange(9.0)  # four chains of 500 draws
    sample = sampling.draw_posterior(
        plan, bm.moe("softmax", 2), x, x, key=jax.random.key(0), start=None
    )
    assert sample.evidence.sampler == sampler
    assert sample.draws is (tried if sampler == "laplace" else drawn)
    assert sample.status.converged
    np.testing.assert_equal(sample.evidence.pareto_k, pareto_k)


# --- the engine alone, on cells that are made up


@pytest.mark.slow
def test_a_finished_study_computes_nothing_more(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(plan: Plan, cell: Cell) -> None:
        raise AssertionError(cell)

    monkeypatch.setattr(engine, "compute_cell", refuse)
    with Store.open(directory, PLAN) as store:
        assert run_study(PLAN, store) == 0
        assert not store.failed()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    """Makes `compute_cell` fail for some cells, as often as is said."""
    return Broken(monkeypatch)


class Broken:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures: dict[Cell, int] = {}
        self.calls: Counter[Cell] = Counter()
        self.lock = threading.Lock()
        monkeypatch.setattr(engine, "compute_cell", self.compute)

    def compute(self, plan: Plan, cell: Cell) -> dict[str, np.ndarray]:
        with self.lock:
            self.calls[cell] += 1
            if self.calls[cell] <= self.failures.get(cell, 0):
                raise FloatingPointError(f"underflow {self.calls[cell]}")
        return fabricate(plan, cell)


def test_a_failing_cell_is_tried_twice_recorded_and_tried_again_next_time(
    tmp_path: Path, broken: Broken
) -> None:
    cells = list(PLAN.cells())
    broken.failures = {cells[1]: 1, cells[2]: 2}
    seen: list[Cell] = []
    with Store.open(tmp_path / "out", PLAN) as store:
        assert run_study(PLAN, store, execute=threads(2), observe=seen.append) == 0
        assert sorted(seen) == sorted(cells)
        assert store.finished() == set(cells) - {cells[2]}
        assert store.failed() == {cells[2]}
        traceback = store.failure(cells[2])
        assert traceback.startswith("Traceback (most recent call last)")
        assert reason(traceback) == "FloatingPointError: underflow 2"
        outputs = write_outputs(PLAN, store)
        assert broken.calls == Counter(cells) + Counter({cells[1]: 1, cells[2]: 1})
        assert run_study(PLAN, store) == 0
        assert store.finished() == set(cells)
        assert broken.calls[cells[2]] == 3
    assert failures(outputs.results) == {cells[2]: traceback}
    counts = outputs.counts.groupby("status")["count"].sum()
    assert counts["failed"] == 3
    assert counts.sum() == 18
    assert set(outputs.slopes["n_total"]) == {6}
    assert not failures(write_outputs(PLAN, Stored(tmp_path / "out")).results)


def test_failed_cells_are_in_no_slope(tmp_path: Path, broken: Broken) -> None:
    with Store.open(tmp_path / "a", PLAN) as store:
        run_study(PLAN, store)
        whole = write_outputs(PLAN, store)
    broken.failures = {cell: 9 for cell in PLAN.cells() if cell.n == 300}
    broken.calls.clear()
    with Store.open(tmp_path / "b", PLAN) as store:
        run_study(PLAN, store)
        half = write_outputs(PLAN, store)
    assert set(half.slopes["n_total"]) == {6}
    used = whole.results["converged"].sel(n=150, estimator="mle").sum().item()
    mle = half.slopes[(half.slopes["estimator"] == "mle") & (half.slopes["quantity"] == "loss")]
    assert mle["n_used"].item() <= used < 6
    assert np.isnan(mle["slope"].item())


def test_the_report_names_failed_cells(tmp_path: Path, broken: Broken) -> None:
    bad = list(PLAN.cells())[3]
    broken.failures = {bad: 2}
    with Store.open(tmp_path / "out", PLAN) as store:
        run_study(PLAN, store)
        results, slopes, counts = write_outputs(PLAN, store)
    page = write_study(tmp_path / "out", results, slopes, counts).read_text()
    assert f"<summary>{bad}: FloatingPointError: underflow 2</summary>" in page
    assert "The computation of 1 cell raised an error twice" in page
    assert "3 computation failed" in page


@pytest.mark.parametrize("n_threads", [1, 2, 7])
def test_threads_share_the_cells(tmp_path: Path, broken: Broken, n_threads: int) -> None:
    plan = PLAN.model_copy(update={"n_experts": [1, 2, 3]})
    observed: list[Cell] = []
    with Store.open(tmp_path / "out", plan) as store:
        run_study(plan, store, execute=threads(n_threads), observe=observed.append)
    assert set(broken.calls) == set(plan.cells())
    assert set(broken.calls.values()) == {1}
    assert Counter(observed) == broken.calls


def test_once_stopped_no_cell_is_begun_and_those_begun_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(plan: Plan, cell: Cell) -> dict[str, np.ndarray]:
        stop.set()
        return fabricate(plan, cell)

    stop = threading.Event()
    monkeypatch.setattr(engine, "compute_cell", compute)
    with Store.open(tmp_path / "out", PLAN) as store:
        assert run_study(PLAN, store, execute=threads(1), stop=stop) == 5
        assert len(store.finished()) == 1
        assert run_study(PLAN, store, stop=stop) == 5
        assert run_study(PLAN, store) == 0
        assert store.finished() == set(PLAN.cells())


def test_a_store_that_cannot_be_written_ends_the_study(
    tmp_path: Path, broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Store, cell: Cell, arrays: object) -> None:
        raise WriteError("no room")

    with Store.open(tmp_path / "out", PLAN) as store:
        monkeypatch.setattr(Store, "write", full)
        with pytest.raises(WriteError, match="no room"):
            run_study(PLAN, store, execute=threads(1))
        assert not store.failed(), "it is not the cell that failed"


def test_any_executor_will_do(tmp_path: Path) -> None:
    """What a pool of processes would do: pickle the attempt, give outcomes out of order."""

    def backwards(
        attempt: Attempt, cells: Collection[Cell], stop: threading.Event
    ) -> Generator[Outcome, None, None]:
        assert pickle.loads(pickle.dumps(attempt)).args == (plan,)
        for cell in reversed(list(cells)):
            yield Outcome(cell, fabricate(plan, cell))

    plan = make_plan()
    with Store.open(tmp_path / "out", plan) as store:
        assert run_study(plan, store, execute=backwards) == 0
        assert store.finished() == set(plan.cells())


@pytest.mark.slow
def test_near_truth_starts_know_the_truth_alone() -> None:
    plan = PLAN.model_copy(
        update={"starts": "near_truth", "estimators": ["mle", "map"], "kept_draws": 0}
    )
    arrays = compute_cell(plan, next(plan.cells()))
    estimators = list(plan.estimators)
    mle = arrays["start_objective"][0, estimators.index("mle")]
    # every start is near the truth, so all reach one optimum
    assert np.ptp(mle[:4]) < 1e-6
    tau = arrays["estimate_temperature"][0, estimators.index("mle")]
    assert abs(tau - 2.0) < 0.2  # where the starts put it, not where the data do
