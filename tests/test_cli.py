"""The command line end to end: misuse, a study killed at any moment, a fit of real data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import xarray as xr
from conftest import FASTER
from fabricated import fabricate
from typer.testing import CliRunner, Result

from bayesmoe.cli import app
from bayesmoe.diagnostics.checks import check_posterior
from bayesmoe.diagnostics.stored_fit import load_fit
from bayesmoe.study import engine
from bayesmoe.study.columns import Arrays
from bayesmoe.study.plan import Cell, Plan, parse_plan
from bayesmoe.study.store import Store

PLAN = """
scenarios = ["weak"]
gates = ["dense_to_sparse"]
n_experts = [2]
sizes = [200, 300]
replicates = 3
n_starts = 4
warmup = 100
draws = 100
seed = 5
"""
CACHE = Path(__file__).resolve().parents[1] / ".cache" / "jax"


def snapshot(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def refused(arguments: list[str], directory: Path) -> str:
    """What the command says on stderr; it must exit with 2 and change nothing."""
    before = snapshot(directory)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert snapshot(directory) == before
    return result.stderr


def fit_arguments(data: str, **options: object) -> list[str]:
    given = {"response": "y", "gate": "softmax", "experts": 2} | options
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return ["fit", data, *flags]


@pytest.fixture
def table(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    path = tmp_path / "table.csv"
    pd.DataFrame(rng.normal(size=(40, 2)), columns=["x", "y"]).to_csv(path, index=False)
    return str(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gate": "soft"}, "unknown gate 'soft'; choose one of softmax"),
        ({"experts": 0}, "n_experts must be a whole number of at least 1, got 0"),
        ({"experts": 10}, "40 rows cannot determine 48 parameters; use fewer experts"),
        ({"gate": "top_k_sparse", "top-k": 3}, "top_k = 3 exceeds n_experts = 2"),
        ({"top-k": 1}, "gate 'softmax' has no option 'top_k'"),
        (
            {"gate": "activation_dense_to_sparse", "activation": "sine"},
            "unknown activation 'sine'; choose one of sigmoid",
        ),
        ({"prior": "flat"}, "the prior 'flat' is improper"),
        ({"prior": "strong"}, "unknown prior 'strong'; choose one of weak"),
        ({"response": "z"}, "no column 'z'; name one of its columns: 'x', 'y'"),
        ({"covariate": "z"}, "no column 'z'"),
    ],
)
def test_a_fit_misused_says_so_in_one_line(
    table: str, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    out = str(tmp_path / "out")
    said = refused([*fit_arguments(table, **options), "--out", out], tmp_path)
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert words in said


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("1,2\n2,\n3,4\n", "'y' has a value that is missing or infinite, in row 2"),
        ("1,2\ninf,3\n3,4\n", "'x' has a value that is missing or infinite"),
        ("1,2\nblue,3\n3,4\n", "'x' is not numeric: row 2 is 'blue'"),
        ("1,2\n1,3\n1,4\n", "'x' has the one distinct value 1"),
        ("1,2\n2,2\n3,2\n", "'y' has the one distinct value 2"),
        ("1,2\n2,5\n3,1\n", "3 rows cannot determine 8 parameters"),
    ],
)
def test_bad_data_are_refused(tmp_path: Path, rows: str, words: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text("x,y\n" + rows)
    said = refused([*fit_arguments(str(path)), "--out", str(tmp_path / "out")], tmp_path)
    assert words in said
    assert len(said.splitlines()) == 1


def test_rows_left_out_are_counted_on_stderr(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("x,y\n1,2\n2,\n,4\n3,1\n")
    arguments = [*fit_arguments(str(path)), "--drop-missing", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "2 of 4 rows lack a value and are left out",
        "error: " + result.stderr.splitlines()[1].removeprefix("error: "),
    ]
    assert "2 rows cannot determine 8 parameters" in result.stderr


def test_a_fit_does_not_overwrite(table: str, tmp_path: Path) -> None:
    said = refused([*fit_arguments(table), "--out", str(tmp_path)], tmp_path)
    assert "is not an empty directory; choose another --out" in said


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("a" * 300, "cannot be made or written: File name too long"),
        (f"new/{'a' * 300}/b", "cannot be made or written: File name too long"),
        ("/proc/out", "cannot be made or written: No such file or directory"),
        ("table.csv/out", "cannot be made or written: Not a directory"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_first(
    table: str, tmp_path: Path, out: str, words: str
) -> None:
    said = refused([*fit_arguments(table), "--out", str(tmp_path / out)], tmp_path)
    assert words in said
    assert said.endswith("; choose another --out\n")
    assert len(said.splitlines()) == 1


def test_a_disk_that_fills_up_is_one_line_and_exit_1(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "Can't synchronously write data\n, filename = 'fits.nc'")

    monkeypatch.setattr("bayesmoe.cli.analyse", lambda *_, **__: None)
    monkeypatch.setattr("bayesmoe.report.files.estimates", full)
    out = tmp_path / ("a" * 250)
    result = CliRunner().invoke(app, [*fit_arguments(table), "--out", str(out)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == (
        f"error: cannot write to {out}: No space left on device; choose another --out"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv"]


@pytest.mark.parametrize("where", ["analyse", "write_analysis"])
def test_a_fit_that_is_interrupted_says_so_in_one_line(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bayesmoe.cli.analyse", lambda *_, **__: None)
    monkeypatch.setattr(f"bayesmoe.cli.{where}", interrupted)
    result = CliRunner().invoke(app, [*fit_arguments(table), "--out", str(tmp_path / "out")])
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.splitlines()[-1] == "interrupted; nothing was written"
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("nonsense", "no plan 'nonsense'"),
        ("seed = 1", "scenarios is missing"),
        (PLAN.replace("200, 300", "300, 200"), "sizes = [300, 200] must increase"),
        (PLAN + "color = 1\n", "color = 1"),
    ],
)
def test_a_bad_plan_is_refused(tmp_path: Path, plan: str, words: str) -> None:
    path = plan
    if "=" in plan:
        path = str(tmp_path / "plan.toml")
        Path(path).write_text(plan)
    said = refused(["study", "run", path, "--out", str(tmp_path / "out")], tmp_path)
    assert words in said
    assert all(line.startswith("error: ") for line in said.splitlines())


def test_a_directory_that_is_no_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    said = refused(["study", "run", "quick", "--out", str(tmp_path)], tmp_path)
    assert "is not empty and not a study; choose a new or empty directory" in said


def test_another_plan_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Store.open(out, parse_plan(PLAN, "plan")):
        pass
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.replace("seed = 5", "seed = 6"))
    for more in ([], ["--dry-run"]):
        said = refused(["study", "run", str(path), "--out", str(out), *more], tmp_path)
        assert "holds another plan: seed is 5 there and 6 here" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", "2", "--scheduler", "tcp://a:1"], "give one of them"),
        (["--scheduler", "tcp://127.0.0.1:1"], "no Dask scheduler answers at 'tcp://127.0.0.1:1'"),
    ],
)
def test_workers_that_cannot_be_had_are_refused_before_anything_is_written(
    tmp_path: Path, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bayesmoe.study.cluster._TIMEOUT", 0.3)
    said = refused(["study", "run", "quick", "--out", str(tmp_path / "out"), *options], tmp_path)
    assert words in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("preset", "cells"), [("quick", 192), ("standard", 800), ("paper", 2240), ("lineage", 8000)]
)
def test_presets_can_be_planned(
    tmp_path: Path, preset: str, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their times are made up: those of real cells take minutes to compile."""
    monkeypatch.setattr("bayesmoe.study.progress.compute_cell", lambda plan, cell: {})
    said = study(["run", preset, "--out", str(tmp_path / "out"), "--dry-run"]).stdout
    assert f"{cells} cells, 0 of them there, {cells} to compute" in said
    assert "core time: about" in said
    assert not list(tmp_path.iterdir())


# --- study commands on cells that are made up


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> set[Cell]:
    """Cells are not computed but made up, and not drawn; those in this set fail."""
    failing: set[Cell] = set()

    def compute(plan: Plan, cell: Cell) -> Arrays:
        if cell in failing:
            raise ValueError("out of luck")
        return fabricate(plan, cell)

    monkeypatch.setattr(engine, "compute_cell", compute)
    monkeypatch.setattr("bayesmoe.report.files.study_figures", lambda *_: {})
    return failing


def study(arguments: list[str], exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["study", *arguments])
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return str(path)


def test_a_study_with_failed_cells_says_so_and_ends_with_1(
    plan: str, tmp_path: Path, made_up: set[Cell]
) -> None:
    out = str(tmp_path / "out")
    bad = list(parse_plan(PLAN, "plan").cells())[2]
    made_up.add(bad)
    said = study(["run", plan, "--out", out], exit_code=1).stdout
    assert "1 cell failed; repeating the command tries again" in said
    assert f"{bad}: ValueError: out of luck" in said
    assert "report.html" in said
    assert "out of luck" in (tmp_path / "out" / "report.html").read_text()
    assert f"{bad}: ValueError: out of luck" in study(["status", out]).stdout
    made_up.clear()
    assert "cell failed" not in study(["run", plan, "--out", out]).stdout


def test_a_time_limit_leaves_cells_for_the_same_command(
    plan: str, tmp_path: Path, made_up: set[Cell]
) -> None:
    out = str(tmp_path / "out")
    said = study(["run", plan, "--out", out, "--max-time", "0"]).stdout
    assert said in {
        f"left to compute: {n} cells; go on with the same command\n" for n in range(1, 7)
    }
    assert not (tmp_path / "out" / "report.html").exists()
    assert "report.html" in study(["run", plan, "--out", out, "--max-time", "10"]).stdout


@pytest.mark.slow
def test_damaged_cells_are_named_and_repaired(
    plan: str, tmp_path: Path, made_up: set[Cell]
) -> None:
    out = tmp_path / "out"
    study(["run", plan, "--out", str(out)])
    before = (out / "slopes.csv").read_bytes()
    next((out / "results.zarr" / "loss").glob("c.0.0.0.1.2*")).unlink()
    said = study(["run", plan, "--out", str(out)], exit_code=1).stderr
    cell = "weak, dense_to_sparse, k = 2, n = 300, replicate 2"
    assert f"has damaged cells: {cell}; run the study again with --repair" in said
    said = study(["run", plan, "--out", str(out), "--repair"]).stderr
    assert "damaged cells found: 1" in said
    assert (out / "slopes.csv").read_bytes() == before


def test_a_full_disk_is_one_line_and_exit_1(
    plan: str, tmp_path: Path, made_up: set[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bayesmoe.study.outputs.write_bytes", full)
    said = study(["run", plan, "--out", str(tmp_path / "out")], exit_code=1).stderr
    assert said.splitlines()[-1].endswith("No space left on device; finished cells are kept")
    monkeypatch.setattr(Store, "_replace", full)
    said = study(["run", plan, "--out", str(tmp_path / "b")], exit_code=1).stderr
    assert "No space left on device; finished cells are kept: mend this and repeat" in said


@pytest.mark.slow
def test_halves_are_merged_and_finished(plan: str, tmp_path: Path, made_up: set[Cell]) -> None:
    more = tmp_path / "more.toml"
    more.write_text(PLAN.replace("dense_to_sparse", "softmax"))
    study(["run", plan, "--out", str(tmp_path / "a")])
    study(["run", str(more), "--out", str(tmp_path / "b")])
    both = tmp_path / "both"
    said = study(["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(both)]).stdout
    assert f"12 of 12 cells are in {both}, 0 failed" in said
    study(["run", str(both / "plan.toml"), "--out", str(both)])
    refused(["study", "merge", str(tmp_path / "a"), "--out", str(tmp_path / "a")], tmp_path)
    with xr.open_zarr(both / "results.zarr", chunks=None) as results:
        assert results["gate"].to_numpy().tolist() == ["dense_to_sparse", "softmax"]


def test_the_schema_of_plans_is_json() -> None:
    assert json.loads(study(["schema"]).stdout) == Plan.model_json_schema()


# --- real runs


def command(*arguments: str, flags: str = FASTER) -> subprocess.Popen[str]:
    """A process that keeps what it compiles; faster, as tests do, or as users do: no flags."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
    }
    return subprocess.Popen(
        [sys.executable, "-c", "from bayesmoe.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def run(*arguments: str, flags: str = FASTER) -> str:
    process = command(*arguments, flags=flags)
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stderr
    return stdout


@pytest.mark.slow
def test_a_study_killed_at_any_moment_goes_on_to_the_same_end(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    printed = run("study", "run", str(plan), "--out", str(whole))
    assert "dense-to-sparse" in printed
    assert "/6" in printed
    for how in (signal.SIGKILL, signal.SIGINT):
        # a new cell shows that the command is at work, however many the last one left
        before = len(list(broken.glob("results.zarr/digest/c.*")))
        process = command("study", "run", str(plan), "--out", str(broken))
        while len(list(broken.glob("results.zarr/digest/c.*"))) <= before:
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, how)
        stdout, stderr = process.communicate()
        if how == signal.SIGINT:
            assert "interrupted: cells begun are finished" in stderr
            # the cells begun, which are finished, may have been the last
            missing = len(list(broken.glob("results.zarr/digest/c.*"))) < 6
            assert process.returncode == (130 if missing else 0), stderr
            assert stdout.endswith("go on with the same command\n") == missing
    run("study", "run", str(plan), "--out", str(broken))
    with (
        xr.open_zarr(whole / "results.zarr", chunks=None) as one,
        xr.open_zarr(broken / "results.zarr", chunks=None) as other,
    ):
        timed = ["seconds", "digest"]  # the digest has the seconds in it
        xr.testing.assert_equal(one.drop_vars(timed), other.drop_vars(timed))
    names = {path.name for path in broken.iterdir()} - {".lock"}
    assert names == {
        "plan.toml", "results.zarr", "slopes.csv", "local_slopes.csv", "statuses.csv", "figures",
        "report.html",
    }  # fmt: skip
    figures = {path.name for path in (broken / "figures").iterdir()}
    assert {"contraction.png", "contraction.svg", "temperature_sd.png"} <= figures
    assert "agnostic" in (broken / "report.html").read_text()


@pytest.mark.slow
def test_processes_of_a_study_obey_its_command(tmp_path: Path) -> None:
    """Ctrl-C lets them finish their cells; when their parent is killed, they end as well."""
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.replace("seed = 5", 'seed = 5\nestimators = ["mle"]'))
    out = tmp_path / "out"
    arguments = ("study", "run", str(plan), "--out", str(out), "--workers", "2")
    process = command(*arguments)
    while not list(out.glob("results.zarr/digest/c.*")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stdout.startswith("left to compute: ")
    assert "failed" not in stdout
    process = command(*arguments)
    while len(children := psutil.Process(process.pid).children()) < 3:  # and a tracker of Python's
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=100)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    assert "report: " in run(*arguments)


@pytest.mark.slow
def test_a_fit_of_real_data_leaves_all_that_it_promises(tmp_path: Path) -> None:
    out = tmp_path / "fit"
    printed = run(
        "fit", "co2.csv", "--response", "co2", "--covariate", "gnp", "--gate", "softmax",
        "--experts", "2", "--out", str(out), flags="",
    )  # fmt: skip
    assert "R-hat" in printed
    assert printed.endswith(f"report: {out / 'report.html'}\n")
    assert {path.name for path in out.iterdir()} == {
        "estimates.csv", "starts.csv", "posterior_summary.csv", "checks.csv", "posterior.nc",
        "fits.nc", "report.html", *(
            f"{name}.{kind}" for kind in ("png", "svg")
            for name in ("fit", "densities", "calibration", "residuals", "influence", "optima")
        ),
    }  # fmt: skip
    estimates = pd.read_csv(out / "estimates.csv", index_col="parameter")
    checks = pd.read_csv(out / "checks.csv", index_col="check")
    assert set(checks["verdict"]) <= {"passed", "doubtful", "failed"}, "all were checked"
    summary = pd.read_csv(out / "posterior_summary.csv", index_col="parameter")
    assert list(estimates.columns) == ["mle", "map"]
    # a line on the data's own scale: about 10 tonnes for the one group, rising for the other
    slopes = estimates.loc[["slope[0, gnp]", "slope[1, gnp]"], "mle"]
    assert slopes.between(-0.5, 1.5).all()
    assert set(summary.index) == {*estimates.index, "log_likelihood"}
    assert summary.loc["log_likelihood", "r_hat"] < 1.05
    with xr.open_datatree(out / "posterior.nc") as posterior:
        assert set(posterior["posterior"]["covariate"].values) == {"gnp"}
        mean = float(posterior["posterior"]["slope"].sel(expert=0, covariate="gnp").mean())
    np.testing.assert_allclose(summary.loc["slope[0, gnp]", "mean"], mean, rtol=1e-9)
    opened = load_fit(out).analysis
    assert opened.mle.measure.slope[0, 0] == estimates.loc["slope[0, gnp]", "mle"]
    assert check_posterior(opened.model, opened.posterior) == opened.checks


@pytest.mark.slow
def test_a_fit_prints_one_json_object_and_nothing_else(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    out = tmp_path / "fit"
    printed = run(
        "fit", "ethanol", "--response", "nox", "--gate", "softmax", "--experts", "2", "--out",
        str(out), "--json",
    )  # fmt: skip
    found = json.loads(printed, parse_constant=refuse)
    estimates = pd.read_csv(out / "estimates.csv", index_col="parameter")
    assert {name: row["map"] for name, row in found["estimates"].items()} == dict(estimates["map"])
    assert found["mle"]["status"] == "separated"
    assert {row["mle_se"] for row in found["estimates"].values()} == {None}
    assert "Separated gate (MLE)" in (out / "report.html").read_text()


def test_a_study_is_reported_anew(plan: str, tmp_path: Path, made_up: set[Cell]) -> None:
    out = tmp_path / "out"
    study(["run", plan, "--out", str(out)])
    page = out / "report.html"
    before = page.read_bytes()
    page.unlink()
    (out / "slopes.csv").unlink()
    result = CliRunner().invoke(app, ["report", str(out)])
    assert (result.exit_code, result.stdout) == (0, f"report: {page}\n"), result.output
    assert page.read_bytes() == before
    assert (out / "slopes.csv").exists()


def test_an_unfinished_study_has_no_report(plan: str, tmp_path: Path, made_up: set[Cell]) -> None:
    out = tmp_path / "out"
    with Store.open(out, parse_plan(PLAN, "plan")):
        pass
    said = refused(["report", str(out)], tmp_path)
    assert f"the study in {out} lacks 6 cells; finish it with 'bayesmoe study run' first" in said
