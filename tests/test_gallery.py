"""The gallery: every figure, whole or not at all, beside the code that makes it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabricated_fit import make_analysis, make_plane, point
from markupsafe import escape
from matplotlib.figure import Figure
from test_ray_figure import tree
from test_report import Outline, make_plan, make_study
from typer.testing import CliRunner

import bayesmoe as bm
from bayesmoe import cli, cli_gallery
from bayesmoe.cli import app
from bayesmoe.inference.annealing import Annealing
from bayesmoe.inference.outcome import Status
from bayesmoe.report import files, gallery
from bayesmoe.report.files import check_new, write_gallery
from bayesmoe.report.gallery import Models, Picture, draw, render_gallery
from bayesmoe.report.ray_figure import Series
from bayesmoe.study.outputs import Outputs

STUDY = ["contraction", "rates", "replicates", "blocks_k2", "blocks_k3", "local_slopes"]
STUDY += ["temperature_sd"]
OTHERS = ["fit", "densities", "calibration", "residuals", "influence", "optima"]
OTHERS += ["dependence", "pairs", "comparison", "annealing", "ray"]


def compared() -> Any:
    """Two models beside each other, as `compare_figure` reads them."""
    frame = pd.DataFrame(
        {
            "elpd_diff": [0.0, -6.0], "elpd_diff_se": [0.0, 2.5], "weight": [1.0, 0.0],
            "reliable": [True, True], "recommended": [True, False],
        },
        index=["wide", "narrow"],
    )  # fmt: skip
    table = SimpleNamespace(y=pd.Series(np.zeros(28), name="co2"))
    return SimpleNamespace(to_frame=lambda: frame, table=table)


def annealed() -> Annealing:
    """A path of two steps that nothing computed."""
    steps = np.array([[-9.0, -8.0]])
    fit = point([-8.0], [Status.CONVERGED], map_=True)
    taus = np.array([3.0, 1.0])
    return Annealing(
        bm.moe("dense_to_sparse", 2), taus, steps, steps, steps + 10, steps + 10, steps < 0,
        fit.starts.measures, fit,
    )  # fmt: skip


@pytest.fixture(scope="module")
def models() -> Models:
    truth = bm.scenario("lambda", "dense_to_sparse")
    series = Series(bm.moe("dense_to_sparse", 2), truth, {300: tree("dense_to_sparse")})
    return Models(make_analysis(), make_plane(), compared(), [annealed()], [series])


@pytest.fixture(scope="module")
def outputs() -> Outputs:
    made = make_study(make_plan(gates=["dense_to_sparse"], sizes=[300, 1000, 3000], replicates=3))
    return Outputs(made.results, made.slopes, made.counts)


@pytest.fixture(scope="module")
def pictures(outputs: Outputs, models: Models) -> list[Picture]:
    return draw(outputs.results, outputs.slopes, models)


@pytest.fixture(scope="module")
def names(pictures: list[Picture]) -> list[str]:
    return [picture.name for picture in pictures]


@pytest.fixture(scope="module")
def small(pictures: list[Picture]) -> list[Picture]:
    """The pictures with figures that take no time to write, all different."""
    found = []
    for picture in pictures:
        figure = Figure(figsize=(1, 1))
        figure.text(0, 0.5, picture.name)
        found.append(picture._replace(figure=figure))
    return found


@pytest.fixture(scope="module")
def page(small: list[Picture]) -> str:
    return render_gallery(small)


# --- pictures and page


def test_every_figure_of_the_package_is_there(pictures: list[Picture], names: list[str]) -> None:
    assert names == STUDY + OTHERS
    modules = {path.stem for path in Path(gallery.__file__).parent.glob("*_figure.py")}
    drawn = {"fit", "pit", "residual", "influence", "optima", "dependence", "pairs", "compare"}
    drawn |= {"annealing", "ray", "density"}
    assert modules == {f"{name}_figure" for name in drawn}, "a new figure belongs into the gallery"
    for picture in pictures:
        assert isinstance(picture.figure, Figure)
        assert len(picture.caption) < 120, "a caption is one line"


def test_the_page_shows_each_with_its_name_its_caption_and_what_makes_it(
    page: str, pictures: list[Picture], names: list[str]
) -> None:
    outline = Outline(page)
    assert outline.open == []
    images = outline.named("img")
    assert len(images) == len(names)
    loaded = [str(image["src"]) for image in images]
    assert len(set(loaded)) == len(names)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in loaded)
    assert [a["href"] for a in outline.named("a")] == [f"#{name}" for name in names]
    assert [h["id"] for h in outline.named("h2")] == names
    for picture in pictures:
        section = page[page.index(f'<h2 id="{picture.name}">') :].split("</section>")[0]
        assert f"{escape(picture.caption)} <code>{picture.name}.png</code>" in section
        assert escape(picture.recipe) in section


def test_the_page_needs_nothing_else_and_fits_light_dark_and_phones(page: str) -> None:
    words = re.sub(r"base64,[^\"]*", "", page)
    assert "http://" not in words
    assert "https://" not in words
    assert "prefers-color-scheme: dark" in words
    assert 'name="viewport" content="width=device-width' in words


def test_what_is_shown_is_escaped(small: list[Picture]) -> None:
    hostile = small[0]._replace(caption="<script>alert(1)</script>", recipe="a && b < c")
    page = render_gallery([hostile])
    assert len(Outline(page).named("script")) == 1, "the page's own"
    assert "a &amp;&amp; b &lt; c" in page


# --- what makes them: the code that is shown is the code that was run


def recorder(calls: list[Any], result: Callable[..., Any]) -> Callable[..., Any]:
    def record(*arguments: Any, **options: Any) -> Any:
        calls.append([np.asarray(a) if not isinstance(a, bm.MoE) else a for a in arguments])
        calls.append(options)
        return result(*arguments)

    return record


def assert_same(one: Any, other: Any) -> None:
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        if isinstance(a, list):
            assert_same(a, b)
        elif isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


@pytest.mark.parametrize(
    ("function", "name", "drawn"),
    [("anneal", "annealing", "annealing_figure"), ("sample_posterior", "ray", "ray_figure")],
)
def test_the_python_that_is_shown_computes_what_was_drawn(
    pictures: list[Picture], monkeypatch: pytest.MonkeyPatch, function: str, name: str, drawn: str
) -> None:
    ran: list[Any] = []
    shown: list[Any] = []
    figures: list[Any] = []
    monkeypatch.setattr(gallery, function, recorder(ran, lambda *_: "result"))
    monkeypatch.setattr(bm, function, recorder(shown, lambda *_: "result"))
    monkeypatch.setattr(f"bayesmoe.report.{drawn}.{drawn}", figures.append)
    monkeypatch.setattr(bm.Scenario, "simulate", lambda truth, key, n: ([key, n], [n, key]))
    computed = {"annealing": gallery._anneal, "ray": gallery._sample}[name]()
    (recipe,) = [picture.recipe for picture in pictures if picture.name == name]
    exec(compile(recipe, name, "exec"), {})
    assert_same(ran, shown)
    (given,) = figures
    assert len(given) == len(computed) == 2
    if name == "ray":
        assert [sorted(one.posteriors) for one in given] == [[300, 3000]] * 2
        assert [one.model for one in given] == [one.model for one in computed]


@pytest.mark.parametrize("name", ["dependence", "pairs"])
def test_the_fit_by_two_covariates_that_is_shown_is_the_one_drawn(
    pictures: list[Picture], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    calls: list[Any] = []
    for module in ("bayesmoe.report.gallery", "bayesmoe.diagnostics.analysis"):
        monkeypatch.setattr(f"{module}.analyse", lambda *given: calls.append(given) or "result")
    figures: list[Any] = []
    monkeypatch.setattr(f"bayesmoe.report.{name}_figure.{name}_figure", figures.append)
    assert gallery._fit_plane() == "result"
    (recipe,) = [picture.recipe for picture in pictures if picture.name == name]
    exec(compile(recipe, name, "exec"), {})
    (ours, table), (theirs, their_table) = calls
    assert ours == theirs
    pd.testing.assert_frame_equal(table.x, their_table.x)
    pd.testing.assert_series_equal(table.y, their_table.y)
    assert figures == ["result"]


def test_the_commands_that_are_shown_compute_what_was_drawn(
    pictures: list[Picture], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class EnoughError(Exception):
        pass

    calls: list[tuple[str, Any, Any, Any]] = []

    def record(function: str) -> Callable[..., Any]:
        def stop(models: Any, table: Any, *, key: Any, **_: Any) -> Any:
            calls.append((function, models, pd.concat([table.x, table.y], axis=1), key))
            raise EnoughError

        return stop

    monkeypatch.chdir(tmp_path)
    for function, name, computed in (
        ("analyse", "optima", gallery._fit),
        ("compare_models", "comparison", lambda: gallery._compare(print)),
    ):
        monkeypatch.setattr(gallery, function, record(function))
        monkeypatch.setattr(cli, function, record(function))
        with pytest.raises(EnoughError):
            computed()
        (recipe,) = [picture.recipe for picture in pictures if picture.name == name]
        words = shlex.split(recipe, comments=True)
        assert words[0] == "bayesmoe"
        assert isinstance(CliRunner().invoke(app, words[1:]).exception, EnoughError)
        (_, ours, table, key), (_, theirs, their_table, their_key) = calls[-2:]
        assert ours == theirs
        pd.testing.assert_frame_equal(table, their_table)
        assert key == their_key


# --- the command


@pytest.fixture
def quick(
    monkeypatch: pytest.MonkeyPatch, outputs: Outputs, models: Models, small: list[Picture]
) -> None:
    """The command without its computations."""

    def drawn(*given: object) -> list[Picture]:
        expected = (outputs.results, outputs.slopes, models)
        assert all(one is other for one, other in zip(given, expected, strict=True))
        return small

    monkeypatch.setattr(cli_gallery, "_run_study", lambda: outputs)
    monkeypatch.setattr(cli_gallery, "compute", lambda observe: observe("fits") or models)
    monkeypatch.setattr(cli_gallery, "draw", drawn)


@pytest.mark.usefixtures("quick")
def test_the_command_writes_every_figure_and_the_page(tmp_path: Path, names: list[str]) -> None:
    out = tmp_path / "gallery"
    result = CliRunner().invoke(app, ["gallery", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"gallery: {out / 'index.html'}\n"
    assert result.stderr == "fits\nfigures\n"
    assert {path.name for path in out.iterdir()} == {
        "index.html", *(f"{name}.{kind}" for name in names for kind in ("png", "svg")),
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"], "nothing else is left"
    assert len(Outline((out / "index.html").read_text("utf-8")).named("img")) == len(names)


@pytest.mark.usefixtures("quick")
def test_the_gallery_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> str:
        raise RuntimeError("the last step")

    monkeypatch.setattr(files, "render_gallery", fail)
    result = CliRunner().invoke(app, ["gallery", "--out", str(tmp_path / "gallery")])
    assert isinstance(result.exception, RuntimeError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_directory_that_is_not_empty_is_refused_before_anything_is_computed(
    tmp_path: Path,
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    result = CliRunner().invoke(app, ["gallery", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "is not an empty directory; choose another --out" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_study_is_run_and_its_store_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plan = make_plan(gates=["softmax"], n_experts=[2], sizes=[300, 1000], replicates=1)
    monkeypatch.setattr(cli_gallery, "load_plan", {gallery.PLAN: plan}.__getitem__)

    def failing(plan: Any, store: Any, observe: Any) -> int:
        for cell in plan.cells():
            store.write_failure(cell, "Traceback\nValueError: no")
            observe(cell)
        return 0

    monkeypatch.setattr(cli_gallery, "run_study", failing)
    found = cli_gallery._run_study()
    assert (found.results["status"].to_numpy() == "failed").all()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["new", "empty", "link", "."])
def test_a_directory_that_is_there_is_filled(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty" if out == "." else tmp_path)
    directory = Path(out)
    check_new(directory)
    before = sorted(tmp_path.iterdir())
    assert write_gallery(directory, ()).is_file()
    assert [path.name for path in directory.resolve().iterdir()] == ["index.html"]
    assert sorted(tmp_path.iterdir()) == sorted({*before, tmp_path / out} - {tmp_path / "."})
    with pytest.raises(ValueError, match="is not an empty directory"):
        check_new(directory)


@pytest.mark.parametrize("there", [True, False])
def test_what_cannot_take_its_place_is_kept(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process with the same --out was faster."""
    out = tmp_path / "out"
    if there:
        out.mkdir()

    def meanwhile(_: object) -> str:
        out.mkdir(exist_ok=True)
        (out / "other").touch()
        return "page"

    monkeypatch.setattr(files, "render_gallery", meanwhile)
    with pytest.raises(OSError, match="Directory not empty; the results are complete in") as error:
        write_gallery(out, ())
    kept = Path(str(error.value).partition(" complete in ")[2].partition(":")[0])
    assert (kept / "index.html").read_text() == "page"
    assert {path.name for path in out.iterdir()} - {kept.name} == {"other"}
