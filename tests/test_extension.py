"""Extension and merging: what is stored stays bit for bit, whatever was added when."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from fabricated import assert_arrays_equal, fabricate, make_plan, snapshot

from bayesmoe.study import store as store_module
from bayesmoe.study.dataset import load_results
from bayesmoe.study.extension import ExtensionError, check_extension, union
from bayesmoe.study.layout import CELL_AXES, RESULTS
from bayesmoe.study.merge import merge
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.store import Store
from bayesmoe.study.stored import Stored, StoreError

PLAN = make_plan()
# grows along every axis, with values before, between and after the old ones
LARGE = make_plan(
    scenarios=["plane", "lambda"], gates=["dense_to_sparse", "softmax"], n_experts=[9, 2],
    sizes=[100, 300, 1000], replicates=3,
)  # fmt: skip


def add(directory: Path, plan: Plan, cells: list[Cell] | None = None) -> None:
    """Store the plan's missing cells, or those of ``cells``."""
    with Store.open(directory, plan) as store:
        finished = store.finished()
        for cell in cells or plan.cells():
            if cell not in finished:
                store.write(cell, fabricate(plan, cell))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "s"
    add(path, PLAN)
    return path


@pytest.fixture
def directory(small: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small, tmp_path / "s")


def chunks(directory: Path) -> dict[str, bytes | None]:
    """The files of cells."""
    found = snapshot(directory / "results.zarr")
    return {key: found[key] for key in found if key.startswith(tuple(f"{n}/c" for n in RESULTS))}


def assert_results_equal(one: xr.Dataset, other: xr.Dataset) -> None:
    xr.testing.assert_identical(one.drop_attrs(), other.drop_attrs())


@pytest.mark.filterwarnings("error")
def test_a_grown_store_keeps_every_byte_and_equals_one_made_at_once(
    directory: Path, tmp_path: Path
) -> None:
    before = chunks(directory)
    some = [*list(LARGE.cells())[::7], *PLAN.cells()]
    with Store.open(directory, LARGE) as store:
        assert store.finished() == set(PLAN.cells())
    add(directory, LARGE, some)
    after = chunks(directory)
    assert {key: after[key] for key in before} == before
    add(tmp_path / "at_once", LARGE, some)
    grown, at_once = (
        load_results(Stored(path), LARGE) for path in (directory, tmp_path / "at_once")
    )
    assert_results_equal(grown, at_once)
    assert grown["n"].to_numpy().tolist() == LARGE.sizes, "the plan's order"
    with xr.open_zarr(directory / "results.zarr", chunks=None) as plain:
        assert plain["n"].to_numpy().tolist() == [100, 1000, 300], "the order of arrival"
        assert plain.attrs["plan"] == LARGE.to_toml()
        for cell in some:
            one = plain["loss"].sel(dict(zip(CELL_AXES, cell, strict=True)))
            np.testing.assert_array_equal(one, fabricate(LARGE, cell)["loss"])


@pytest.mark.parametrize(
    "changes",
    [
        {"replicates": 3},
        {"sizes": [100, 300, 1000]},
        {"gates": ["dense_to_sparse", "softmax"]},
        {"scenarios": ["lambda", "weak"]},
        {"n_experts": [3, 2]},
    ],
)
def test_each_axis_may_grow_alone(directory: Path, changes: dict[str, Any]) -> None:
    plan = make_plan(**changes)
    with Store.open(directory, plan) as store:
        results = load_results(store, plan)
        for cell in PLAN.cells():
            assert_arrays_equal(store.read(cell), fabricate(PLAN, cell))
        assert (results["digest"] != 0).sum() == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 2}, "holds another plan: seed is 1 there and 2 here"),
        ({"n_starts": 3}, "n_starts is 12 there and 3 here"),
        ({"draws": 60, "replicates": 3}, "draws is 500 there and 60 here"),
        (
            {"sampler": "laplace_or_nuts"},
            "sampler is 'nuts' there and 'laplace_or_nuts' here; .* or the stored sampler",
        ),
        ({"priors": ["weak", "compact"]}, "priors is"),
        ({"estimators": ["mle"]}, "estimators is"),
        (
            {"replicates": 1},
            r"has more than this plan: replicates = 1 lacks 1, and a study only grows",
        ),
        ({"sizes": [100, 300]}, r"sizes = \[100, 300\] lacks 1000, and"),
        ({"gates": ["dense_to_sparse"]}, r"gates = \['dense_to_sparse'\] lacks 'softmax', and"),
        ({"scenarios": ["weak"]}, "scenarios"),
        ({"n_experts": [3]}, "n_experts"),
    ],
)
def test_any_other_plan_is_refused_and_nothing_changes(
    directory: Path, changes: dict[str, Any], words: str
) -> None:
    before = snapshot(directory)
    with pytest.raises(StoreError, match=words), Store.open(directory, make_plan(**changes)):
        raise AssertionError
    assert snapshot(directory) == before


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["early", "at the root"])
@pytest.mark.parametrize("then", [PLAN, LARGE, make_plan(sizes=[100, 400, 1000])])
def test_growth_cut_short_is_done_again_or_given_up(
    small: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, cut: str, then: Plan
) -> None:
    """The process ends before the metadata are there; the next has the same plan, or another."""
    root, done = directory / "results.zarr" / "zarr.json", []

    def update(path: Path, content: bytes, scratch: Path) -> None:
        if path == root if cut == "at the root" else len(done) == 3:
            raise KeyboardInterrupt
        done.append(path)
        original(path, content, scratch)

    original = store_module._update
    monkeypatch.setattr(store_module, "_update", update)
    with pytest.raises(KeyboardInterrupt), Store.open(directory, LARGE):
        raise AssertionError
    monkeypatch.undo()
    with xr.open_zarr(directory / "results.zarr", chunks=None) as plain:
        assert plain["n"].to_numpy().tolist() == PLAN.sizes, "the old study until all is there"
        assert_results_equal(
            load_results(Stored(directory), PLAN), load_results(Stored(small), PLAN)
        )
    cells, fresh = [*PLAN.cells(), *list(then.cells())[::13]], directory.with_name("fresh")
    add(directory, then, cells)
    add(fresh, then, cells)
    assert_results_equal(load_results(Stored(directory), then), load_results(Stored(fresh), then))


def test_nothing_stays_of_the_theory_of_a_growth_given_up(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate with a ray would have had the place at which one without comes to lie."""

    def update(path: Path, content: bytes, scratch: Path) -> None:
        if path == directory / "results.zarr" / "zarr.json":
            raise KeyboardInterrupt
        original(path, content, scratch)

    original = store_module._update
    rays = make_plan(gates=["softmax", "dense_to_sparse"])
    monkeypatch.setattr(store_module, "_update", update)
    with pytest.raises(KeyboardInterrupt), Store.open(directory, rays):
        raise AssertionError
    monkeypatch.undo()
    plan = make_plan(gates=["softmax", "top_k_sparse"])
    with Store.open(directory, plan) as store:
        results = load_results(store, plan)
    assert results["ray"].to_numpy().tolist() == [False, False]
    assert results["has_temperature"].to_numpy().tolist() == [False, False]


def test_a_store_that_was_never_finished_being_made_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(path: Path, content: bytes, scratch: Path) -> None:
        if path.name == "zarr.json" and path.parent.name.endswith("results.zarr"):
            raise KeyboardInterrupt
        original(path, content, scratch)

    original = store_module._update
    monkeypatch.setattr(store_module, "_update", update)
    with pytest.raises(KeyboardInterrupt), Store.open(tmp_path, PLAN):
        raise AssertionError
    monkeypatch.undo()
    assert not (tmp_path / "results.zarr").exists()
    other = make_plan(seed=3)
    with Store.open(tmp_path, other) as store:
        assert store.plan == other


def test_equal_plans_extend_each_other_in_any_order() -> None:
    one = make_plan(n_experts=[2, 3], gates=["softmax", "dense_to_sparse"])
    other = make_plan(n_experts=[3, 2], gates=["dense_to_sparse", "softmax"])
    check_extension(one, other, "here")
    check_extension(other, one, "here")


def test_a_union_extends_all_its_plans() -> None:
    one = make_plan(sizes=[100, 1000], gates=["softmax"])
    other = make_plan(sizes=[50, 300], gates=["dense_to_sparse"], replicates=5)
    both = union([("one", one), ("other", other)])
    assert both.sizes == [50, 100, 300, 1000]
    assert [gate.id for gate in both.gates] == ["softmax", "dense_to_sparse"]
    assert both.replicates == 5
    check_extension(one, both, "one")
    check_extension(other, both, "other")
    with pytest.raises(ExtensionError, match="one holds another plan: seed"):
        union([("one", one), ("other", make_plan(seed=7))])


# --- merging


@pytest.fixture
def halves(tmp_path: Path) -> list[Path]:
    """Two stores that have one cell in common, with different timings."""
    cells = list(PLAN.cells())
    paths = [tmp_path / "one", tmp_path / "other"]
    add(paths[0], PLAN, cells[:3])
    add(paths[1], PLAN, cells[3:])
    with Store.open(paths[1], PLAN) as store:
        arrays = fabricate(PLAN, cells[0])
        store.write(cells[0], arrays | {"seconds": arrays["seconds"] + 1.0})
    return paths


def test_halves_make_a_whole(halves: list[Path], small: Path, tmp_path: Path) -> None:
    before = [snapshot(path) for path in halves]
    assert merge(halves, tmp_path / "out") == (4, 0, 4)
    assert [snapshot(path) for path in halves] == before
    whole = load_results(Stored(small), PLAN)
    assert_results_equal(load_results(Stored(tmp_path / "out"), PLAN), whole)
    assert merge(halves, tmp_path / "out") == (4, 0, 4), "again"


def test_plans_that_extend_each_other_are_merged(small: Path, tmp_path: Path) -> None:
    more = make_plan(gates=["dense_to_sparse"], sizes=[300, 1000])
    add(tmp_path / "more", more)
    assert merge([small, tmp_path / "more"], tmp_path / "out") == (8, 0, 2 * 3 * 2)
    stored = Stored(tmp_path / "out")
    assert stored.finished() == {*PLAN.cells(), *more.cells()}
    for cell in more.cells():
        assert_arrays_equal(stored.read(cell), fabricate(more, cell))


def test_failures_are_merged_unless_the_cell_is_there(small: Path, tmp_path: Path) -> None:
    cells, plan = list(PLAN.cells()), make_plan(replicates=3)
    new = Cell("lambda", "softmax", 2, 100, 2)
    with Store.open(tmp_path / "failed", plan) as store:
        store.write_failure(cells[0], "no luck")
        store.write_failure(new, "bad luck")
    assert merge([tmp_path / "failed", small], tmp_path / "out") == (4, 1, 6)
    assert Stored(tmp_path / "out").failure(new) == "bad luck"


@pytest.mark.parametrize("place", ["source", "out"])
def test_different_results_of_one_cell_are_refused(
    halves: list[Path], tmp_path: Path, place: str
) -> None:
    cell = next(PLAN.cells())
    arrays = fabricate(PLAN, cell)
    odd = halves[1] if place == "source" else tmp_path / "out"
    with Store.open(odd, PLAN) as store:
        store.write(cell, arrays | {"loss": np.nextafter(arrays["loss"], 9.0) + 0.0})
    before = snapshot(tmp_path)
    with pytest.raises(StoreError, match=r"n = 100, replicate 0 is not the same in .*one and"):
        merge(halves, tmp_path / "out")
    assert snapshot(tmp_path) == before


def test_a_merge_is_refused_with_words(small: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is one of the studies to merge"):
        merge([small], small)
    with pytest.raises(StoreError, match="is not a study"):
        merge([small, tmp_path], tmp_path / "out")
    add(tmp_path / "other", make_plan(seed=2))
    with pytest.raises(StoreError, match="holds another plan: seed is 1 there and 2 here"):
        merge([small, tmp_path / "other"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_source_is_named(halves: list[Path], tmp_path: Path) -> None:
    (path,) = (halves[0] / "results.zarr" / "loss").glob("c.0.0.0.0.1*")
    path.unlink()
    with pytest.raises(StoreError, match=r"one/results.zarr: the cell .*replicate 1 is damaged"):
        merge(halves, tmp_path / "out")
