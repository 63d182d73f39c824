"""How far a study is, and how long the rest takes: also for a hundred thousand cells."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from fabricated import fabricate, make_plan, snapshot
from typer.testing import CliRunner

from bayesmoe.cli import app
from bayesmoe.report.terminal import duration
from bayesmoe.study import progress
from bayesmoe.study.columns import Arrays
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.progress import count_cells, estimate_core_time
from bayesmoe.study.store import Store
from bayesmoe.study.stored import Stored

PLAN = make_plan(gates=["softmax", "dense_to_sparse"], priors=["weak", "compact"])
CELLS = list(PLAN.cells())


def timed(cell: Cell, rate: float) -> Arrays:
    """A cell that took ``rate`` seconds for each unit of cost: one third for each fit."""
    arrays = fabricate(PLAN, cell)
    shares = np.asarray([[1.0, 0.5, 0.5], [1.0, 0.5, 0.5]])  # prior, estimator: the MLE is one
    return arrays | {"seconds": rate * cell.cost * shares / 3.0}


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cells of softmax but one, which failed."""
    path = tmp_path_factory.mktemp("part") / "s"
    with Store.open(path, PLAN) as store:
        for cell in CELLS[:3]:
            store.write(cell, timed(cell, 0.002))
        store.write_failure(CELLS[3], "Traceback\n  deep\nValueError: too [bad]\n")
    return path


def test_cells_are_counted_by_model(part: Path) -> None:
    counts = count_cells(Stored(part)).set_index("gate")[["there", "missing", "failed"]]
    assert counts.loc["softmax"].tolist() == [3, 0, 1]
    assert counts.loc["dense_to_sparse"].tolist() == [0, 4, 0]


def test_times_of_stored_cells_are_extrapolated_by_cost(part: Path) -> None:
    estimate = estimate_core_time(PLAN, CELLS[3:], Stored(part))
    assert math.isclose(estimate.seconds, 0.002 * sum(cell.cost for cell in CELLS[3:]))
    assert estimate.basis.startswith("times of 3 stored cells")


def test_models_have_rates_of_their_own(part: Path, tmp_path: Path) -> None:
    path = shutil.copytree(part, tmp_path / "s")
    with Store.open(path, PLAN) as store:
        store.write(CELLS[4], timed(CELLS[4], 0.1))
    estimate = estimate_core_time(PLAN, CELLS[5:6], Stored(path))
    assert math.isclose(estimate.seconds, 0.1 * CELLS[5].cost)


def test_without_stored_cells_one_small_cell_of_each_model_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed: list[Cell] = []
    clock = itertools.count(0, 5)
    monkeypatch.setattr(progress, "compute_cell", lambda plan, cell: computed.append(cell))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(clock)))
    estimate = estimate_core_time(PLAN, CELLS)
    assert computed == [CELLS[0]] * 2 + [CELLS[4]] * 2, "each once to compile"
    assert math.isclose(estimate.seconds, 5.0 * sum(c.cost for c in CELLS) / CELLS[0].cost)
    assert "one small cell of each model, 2 in all" in estimate.basis
    assert "NUTS" not in estimate.basis
    mixed = PLAN.model_copy(update={"sampler": "laplace_or_nuts"})
    assert "longer where NUTS has to draw" in estimate_core_time(mixed, CELLS).basis


def test_nothing_takes_no_time(part: Path) -> None:
    assert estimate_core_time(PLAN, [], Stored(part)) == (0.0, "nothing is missing")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1.4, "about 1 seconds"), (150, "about 2.5 minutes"), (9000, "about 2.5 hours"),
     (3 * 86400, "about 3.0 days")],
)  # fmt: skip
def test_durations_are_readable(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["study", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def plan_file(directory: Path, plan: Plan) -> str:
    path = directory / "plan.toml"
    path.write_text(plan.to_toml())
    return str(path)


def test_status_and_dry_run_say_what_there_is_and_change_nothing(part: Path) -> None:
    before = snapshot(part)
    with Store.open(part, PLAN):  # another process may be at work
        said = printed("status", str(part))
        todo = printed("run", str(part / "plan.toml"), "--out", str(part), "--dry-run")
    rows = [line.split() for line in said.splitlines()]
    assert ["softmax", "2", "3", "0", "1"] in rows
    assert ["dense_to_sparse", "2", "0", "4", "0"] in rows
    assert ["all", "3", "4", "1"] in rows
    assert "lambda, softmax, k = 2, n = 1000, replicate 1: ValueError: too [bad]" in said
    assert "8 cells, 3 of them there, 5 to compute" in todo
    assert "times of 3 stored cells" in todo
    assert snapshot(part) == before


def test_a_dry_run_says_what_kept_draws_take(tmp_path: Path) -> None:
    """As many bytes as the arrays of all cells have."""
    plan = make_plan(scenarios=["lambda", "plane"], priors=["weak", "compact"], kept_draws=7)
    arrays = [fabricate(plan, cell) for cell in plan.cells()]
    sizes = [a.nbytes for cell in arrays for name, a in cell.items() if name.startswith("draw_")]
    assert progress.draw_bytes(plan, list(plan.cells())) == sum(sizes) > 0
    assert progress.draw_bytes(make_plan(), CELLS) == 0


def test_thousands_of_cells_are_counted_from_their_digests_alone(tmp_path: Path) -> None:
    """The digests of a large store are made up; few cells have results."""
    plan = make_plan(gates=["softmax", "dense_to_sparse"], replicates=1500)
    cells = list(plan.cells())
    with Store.open(tmp_path / "s", plan) as store:
        for cell in cells[:5000]:
            name = ".".join(["c", *map(str, store.layout.index(cell))])
            (store.root / "digest" / name).touch()
        for cell in cells[:4]:
            store.write(cell, fabricate(plan, cell))
        assert len(list((store.root / "status").glob("c.*"))) == 4
        assert len(store.finished()) == 5000
    said = printed("status", str(tmp_path / "s"))
    assert ["all", "5000", "1000", "0"] in [line.split() for line in said.splitlines()]


def test_a_directory_without_a_study_has_no_status(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["study", "status", str(tmp_path)])
    assert result.exit_code == 2
    assert "is not a study: it has no results.zarr" in result.stderr
