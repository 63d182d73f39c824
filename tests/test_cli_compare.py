"""``bayesmoe compare`` end to end: misuse, and the table of real data."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import bayesmoe as bm
from bayesmoe.cli import app


def arguments(out: Path, **options: str) -> list[str]:
    given = {"response": "co2", "covariate": "gnp", "gates": "softmax", "experts": "1,2"} | options
    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    return ["compare", "co2", *flags, "--out", str(out)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gates": "softmax,soft"}, "unknown gate 'soft'"),
        ({"gates": "soft", "experts": "1"}, "unknown gate 'soft'"),
        ({"experts": "1,two"}, "--experts must be whole numbers with commas between, got '1,two'"),
        ({"experts": "0"}, "n_experts must be a whole number of at least 1, got 0"),
        ({"experts": "2,9"}, "28 rows cannot determine 43 parameters"),
        ({"activation": "tanh"}, "--activation is of the gate activation_dense_to_sparse"),
        ({"top-k": "1"}, "--top-k is of the gate top_k_sparse; add it to --gates"),
        ({"response": "z"}, "no column 'z'"),
    ],
)
def test_misuse_says_so_in_one_line(tmp_path: Path, options: dict[str, str], words: str) -> None:
    result = CliRunner().invoke(app, arguments(tmp_path / "out", **options))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_real_data_leave_all_that_is_promised(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    result = CliRunner().invoke(app, arguments(out))
    assert result.exit_code == 0, result.output
    assert "one expert (model 1 of 2)" in result.stderr
    assert {path.name for path in out.iterdir()} == {
        "comparison.csv", "comparison.png", "comparison.svg", "models.nc", "recommendation.txt",
        "report.html",
    }  # fmt: skip
    assert f"report: {out / 'report.html'}" in result.stdout
    opened = bm.load_comparison(out)
    assert opened.comparison.to_frame()["recommended"]["one expert"]
    again = CliRunner().invoke(app, ["report", str(out)])
    assert again.stdout == f"report: {out / 'report.html'}\n"
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    text = (out / "recommendation.txt").read_text()
    assert text.startswith("Recommended: one expert")
    assert text.strip() in result.stdout
    table = pd.read_csv(out / "comparison.csv", index_col="model")
    assert list(table.index) == ["softmax, k = 2", "one expert"]
    # constant weights are a special case: their published log-likelihood is -66.9398
    assert table.loc["softmax, k = 2", "log_likelihood"] >= -66.9398
    assert table["reliable"].all()
    assert table["weight"].sum() == pytest.approx(1)
    assert table.loc["one expert", "recommended"]


@pytest.mark.slow
def test_one_json_object_is_all_that_is_printed(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    out = tmp_path / "out"
    result = CliRunner().invoke(app, [*arguments(out, experts="1"), "--json"])
    assert result.exit_code == 0, result.output
    assert "(model 1 of 1)" in result.stderr
    found = json.loads(result.stdout, parse_constant=refuse)
    assert found["recommended"] == "one expert"
    assert found["request"]["experts"] == [1]
    assert found["data"]["rows"] == 28
    assert found["text"] == (out / "recommendation.txt").read_text().strip()
    (row,) = found["models"]
    table = pd.read_csv(out / "comparison.csv")
    assert row["elpd"] == pytest.approx(table["elpd"][0], rel=1e-14)
    assert {check["check"] for check in row["all_checks"]["checks"]} > {"chains", "calibration"}
