"""A comparison in its directory: opened again bit for bit, reported anew, damaged."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from fabricated_fit import HOSTILE, make_comparison
from test_stored_fit import same
from typer.testing import CliRunner

from bayesmoe.cli import app
from bayesmoe.diagnostics.stored_comparison import (
    MODELS,
    StoredComparison,
    load_comparison,
    save_comparison,
)
from bayesmoe.report.compare_figure import compare_figure
from bayesmoe.report.compare_html import model_rows, render_comparison
from bayesmoe.report.files import write_comparison
from bayesmoe.report.machine import comparison_json


@pytest.fixture(scope="module")
def stored() -> StoredComparison:
    return make_comparison()


@pytest.fixture(scope="module")
def written(stored: StoredComparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a comparison leaves; to be copied before it is changed."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    write_comparison(out, stored)
    return out


def test_a_comparison_is_opened_again_bit_for_bit(stored: StoredComparison, written: Path) -> None:
    request, after = load_comparison(written)
    before = stored.comparison
    assert request == stored.request
    assert after.recommendation == before.recommendation
    pd.testing.assert_frame_equal(after.to_frame(), before.to_frame(), check_exact=True)
    pd.testing.assert_frame_equal(after.table.x, before.table.x)
    for one, other in zip(before.assessments, after.assessments, strict=True):
        assert (one.name, one.model, one.bad_rows) == (other.name, other.model, other.bad_rows)
        assert same(one.mle, other.mle)
        assert same(one.map, other.map)
        assert str(one.checks) == str(other.checks)
        assert str(one.loo) == str(other.loo)
        np.testing.assert_array_equal(one.loo.elpd_i, other.loo.elpd_i)
        np.testing.assert_array_equal(one.loo.pareto_k, other.loo.pareto_k)
        assert other.posterior.parent is None
        for node in one.posterior.subtree:
            xr.testing.assert_identical(node.to_dataset(), other.posterior[node.path].to_dataset())


def test_the_report_is_written_anew_as_it_was(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(written, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {
        "comparison.csv", "comparison.png", "comparison.svg", "recommendation.txt", "report.html",
        MODELS,
    }  # fmt: skip
    for name in set(before) - {MODELS}:
        (out / name).unlink()
    result = CliRunner().invoke(app, ["report", str(out)])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"report: {out / 'report.html'}\n"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_command_asks_the_same_again(stored: StoredComparison) -> None:
    assert stored.request.command("again") == (
        "bayesmoe compare 'my data.csv' --response v --covariate u --drop-missing --gates "
        "softmax,dense_to_sparse,activation_dense_to_sparse --experts 2 --activation tanh --seed 3 "
        "--out again"
    )


class _Text(HTMLParser):
    """Texts and tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def test_the_page_says_what_was_found_and_escapes_it() -> None:
    stored = make_comparison(names=("u", HOSTILE))
    page = render_comparison(stored, compare_figure(stored.comparison))
    seen = _Text(page)
    text = " ".join(" ".join(seen.texts).split())
    assert f"Models of {HOSTILE} given u" in text
    assert f"Beware of {HOSTILE}." in text
    assert "60; 4 that lack a value were left out" in text
    assert "dense-to-sparse, k = 2 has <b>doubts</b>" in text
    assert seen.tags.count("script") == 1
    assert "b" not in seen.tags
    frame = stored.comparison.to_frame()
    for row, (name, expected) in zip(model_rows(stored), frame.iterrows(), strict=True):
        values = [number.value for number in row["numbers"]]
        columns = ["n_parameters", "log_likelihood", "aic", "bic", "icl", "elpd", "elpd_se",
                   "elpd_diff", "weight", "effective_experts", "bad_rows"]  # fmt: skip
        np.testing.assert_array_equal(np.array(values, float), expected[columns].astype(float))
        assert row["name"] == name
    unreliable = model_rows(stored)[-1]
    assert [unreliable["numbers"][i].text for i in (7, 8, 10)] == [
        "unreliable",
        "–",
        "2, 1 refitted",
    ]


def test_json_has_request_and_data(stored: StoredComparison, written: Path) -> None:
    text = comparison_json(stored, written)
    assert '"n_dropped": 4' in text
    assert '"rows": 60' in text


def spoil(directory: Path, how: str) -> None:
    path = directory / MODELS
    if how == "cut":
        path.write_bytes(path.read_bytes()[:2000])
        return
    if how == "none":
        path.unlink()
        return
    with h5py.File(path, "r+") as file:
        if how == "other data":
            file["0/posterior/observed_data/y"][3] += 1e-9
        elif how == "a model less":
            del file["2"]
        elif how == "other format":
            file.attrs["format"] = "bayesmoe comparison 0"
        elif how == "damaged":
            del file["1/loo"].attrs["elpd"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", r"models.nc cannot be read \(.*\); compare again"),
        ("none", "nor a comparison \\(it has no models.nc\\)"),
        pytest.param("other data", "holds other data than were compared", marks=pytest.mark.slow),
        ("a model less", "holds 2 of 3 models"),
        ("other format", "was not written by this version"),
        pytest.param("damaged", "is damaged \\(KeyError\\('elpd'\\)\\)", marks=pytest.mark.slow),
    ],
)
def test_what_is_damaged_is_refused_and_left(
    written: Path, tmp_path: Path, how: str, words: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(written, out)
    spoil(out, how)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    result = CliRunner().invoke(app, ["report", str(out)])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert re.search(words, result.stderr), result.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.slow
def test_models_of_one_expert_have_no_gate(tmp_path: Path) -> None:
    """They are stored once, whatever the number of gates."""
    stored = make_comparison()
    request = stored.request._replace(experts=(1,))
    alone = stored.comparison.assessments[0]._replace(name="one expert")
    single = stored.comparison._replace(assessments=(alone,))
    save_comparison(tmp_path, request, single)
    opened = load_comparison(tmp_path).comparison.assessments
    assert [(one.name, one.model.n_experts) for one in opened] == [("one expert", 1)]
