"""A fit in its directory: opened again bit for bit, reported anew, damaged; and as JSON."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from fabricated_fit import HOSTILE, hostile, passed, point
from typer.testing import CliRunner

from bayesmoe.cli import app
from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.diagnostics.requests import FitRequest
from bayesmoe.diagnostics.stored_fit import StoredFit, load_fit, save_fit
from bayesmoe.diagnostics.verdict import Verdict
from bayesmoe.inference.outcome import Starts, Status
from bayesmoe.inference.point import Fit
from bayesmoe.report._findings import find_troubles
from bayesmoe.report.files import rewrite_report, write_analysis
from bayesmoe.report.machine import _dumps, fit_json


@pytest.fixture(scope="module")
def stored() -> StoredFit:
    return hostile()


@pytest.fixture(scope="module")
def saved(stored: StoredFit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two files of a fit, without its report."""
    out = tmp_path_factory.mktemp("saved")
    save_fit(out, *stored)
    return out


@pytest.fixture(scope="module")
def written(stored: StoredFit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a fit leaves; to be copied before it is changed."""
    out = tmp_path_factory.mktemp("fit") / "out"
    write_analysis(out, *stored)
    return out


# --- storage


def same(one: Any, other: Any) -> bool:
    if isinstance(one, MixingMeasure):
        return all(np.array_equal(getattr(one, f), getattr(other, f)) for f in FIELDS)
    if isinstance(one, Starts | Fit):
        fields = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in fields)
    if isinstance(one, np.ndarray | float):
        return np.array_equal(one, other, equal_nan=True)
    return bool(one == other)


def test_a_fit_is_opened_again_bit_for_bit(stored: StoredFit, tmp_path: Path) -> None:
    status = [Status.AT_VARIANCE_FLOOR, Status.NON_FINITE, Status.SEPARATED]
    mle = point([-5.0, float("nan"), -float("inf")], status, map_=False)
    nan = passed(modes=(Verdict.NOT_CHECKED, float("nan"), "cannot be told"))
    before = stored.analysis._replace(mle=mle, mle_measure=mle.measure, checks=nan)
    request = FitRequest("d", stored.request.response, (), "activation_dense_to_sparse",
                         {"activation": "tanh"}, 2)  # fmt: skip
    for asked in (stored.request, request):
        save_fit(tmp_path, asked, before)
        opened = load_fit(tmp_path)
        assert opened.request == asked
        assert opened.analysis.model == asked.model(list(before.table.x.columns))
    after = opened.analysis
    assert same(before.mle, after.mle)
    assert same(before.map, after.map)
    assert str(before.checks) == str(after.checks)
    pd.testing.assert_frame_equal(before.table.x, after.table.x)
    pd.testing.assert_series_equal(before.table.y, after.table.y)
    xr.testing.assert_identical(
        before.posterior["posterior"].to_dataset(), after.posterior["posterior"].to_dataset()
    )
    assert dict(before.posterior.attrs) == dict(after.posterior.attrs)


def test_an_opened_fit_needs_its_files_no_more(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(saved, out)
    opened = load_fit(out).analysis.posterior
    shutil.rmtree(out)
    with xr.open_datatree(saved / "posterior.nc") as kept:
        for node in opened.subtree:
            xr.testing.assert_identical(node.to_dataset(), kept[node.path].to_dataset())


@pytest.mark.slow
def test_the_report_is_written_anew_as_it_was(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(written, out)
    assert [path.name for path in written.parent.iterdir()] == ["out"], "nothing else is left"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    figures = [
        f"{name}.{kind}"
        for name in ("fit", "densities", "calibration", "residuals", "influence", "optima")
        for kind in ("png", "svg")
    ]
    for name in ("report.html", *figures):
        (out / name).unlink()
    result = CliRunner().invoke(app, ["report", str(out)])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"report: {out / 'report.html'}\n"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def spoil(directory: Path, how: str) -> None:
    if how == "cut":
        path = directory / "fits.nc"
        path.write_bytes(path.read_bytes()[:2000])
    elif how == "no posterior":
        (directory / "posterior.nc").unlink()
    elif how == "other data":
        with xr.open_datatree(directory / "posterior.nc") as opened:
            tree = opened.map_over_datasets(xr.Dataset.load)
        tree["observed_data"]["y"][3] += 1e-9
        tree.to_netcdf(directory / "posterior.nc", engine="h5netcdf")
    elif how == "other format":
        with xr.open_datatree(directory / "fits.nc") as opened:
            tree = opened.load()
        tree.attrs["format"] = "bayesmoe fit 99"
        tree.to_netcdf(directory / "fits.nc", engine="h5netcdf")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", "cannot be read"),
        ("no posterior", "is not a fit: it has no posterior.nc"),
        ("other data", "fits.nc and posterior.nc are not of the same data; fit again"),
        ("other format", "was not written by this version of bayesmoe; fit again"),
    ],
)
def test_a_damaged_fit_is_one_line(saved: Path, tmp_path: Path, how: str, words: str) -> None:
    for name in ("fits.nc", "posterior.nc"):
        shutil.copy(saved / name, tmp_path)
    spoil(tmp_path, how)
    before = sorted(path.name for path in tmp_path.iterdir())
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["missing", "file", "empty"])
def test_a_directory_of_neither_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(app, ["report", str(tmp_path / name)])
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {tmp_path / name} is neither a study (it has no results.zarr), nor a fit (it has "
        "no fits.nc), nor a comparison (it has no models.nc); give the --out of 'bayesmoe study "
        "run', 'bayesmoe fit' or 'bayesmoe compare'\n"
    )


def test_a_failed_write_leaves_nothing(
    stored: StoredFit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bayesmoe.report.files.fit_figures", full)
    with pytest.raises(OSError, match="No space"):
        write_analysis(tmp_path / "out", *stored)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="neither a study"):
        rewrite_report(tmp_path)


# --- JSON


def strict(text: str) -> Any:
    """JSON without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_not_finite_is_null() -> None:
    value = {
        "a": [np.nan, np.float64(np.inf), -np.inf],
        "b": (np.array([1.5, np.nan]), np.int64(2)),
    }
    assert strict(_dumps(value)) == {"a": [None, None, None], "b": [[1.5, None], 2]}


def test_the_json_of_a_fit(stored: StoredFit, tmp_path: Path) -> None:
    mle = point([-5.0, -float("inf")], [Status.SEPARATED, Status.NON_FINITE], map_=False)
    analysis = stored.analysis._replace(mle=mle, mle_measure=mle.measure)
    found = strict(fit_json(StoredFit(stored.request, analysis), tmp_path))
    assert found["mle"]["status"] == "separated"
    assert found["mle"]["log_density"] is None
    assert found["mle"]["starts"][1] == {"objective": None, "status": "non_finite"}
    assert found["map"]["converged"] is True
    row = found["estimates"][f"slope[0, {HOSTILE}]"]
    assert (row["mle"], row["mle_se"], row["map"]) == (1.0, None, 1.0)
    assert row["posterior"]["low"] < row["posterior"]["mean"] < row["posterior"]["high"]
    assert found["posterior"] == {"status": "converged", "max_rhat": 1.0, "min_ess": None}
    assert found["checks"]["verdict"] == "passed"
    assert FitRequest(**found["request"] | {"covariates": (HOSTILE,)}) == stored.request
    assert [trouble["subject"] for trouble in found["troubles"]] == [
        trouble.subject for trouble in find_troubles(analysis)
    ]
