"""The store: whole cells or none, one plan, one process, no harm to what is not ours."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from bayesmoe.study.plan import Plan
from bayesmoe.study.store import Store, StoreError, write_atomic, write_bytes

PLAN = Plan.model_validate(
    {
        "scenarios": ["lambda"],
        "gates": ["softmax"],
        "n_experts": [2],
        "sizes": [100, 1000],
        "replicates": 2,
        "seed": 1,
    }
)


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_a_cell_is_read_as_written(tmp_path: Path) -> None:
    arrays = {"loss": np.asarray([1.5, np.nan]), "status": np.asarray(["converged"])}
    with Store.open(tmp_path / "s", PLAN) as store:
        assert store.finished() == set()
        store.write("a", arrays)
        assert store.finished() == {"a"}
        for name, value in store.read("a").items():
            np.testing.assert_array_equal(value, arrays[name])


def test_objects_are_neither_written_nor_read(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", PLAN) as store:
        with pytest.raises(ValueError, match="allow_pickle"):
            store.write("a", {"x": np.asarray([{}], dtype=object)})
        assert store.finished() == set()
        with open(store.directory / "cells" / "b.npz", "wb") as file:
            np.savez(file, x=np.asarray([{}], dtype=object))
        with pytest.raises(StoreError, match=r"b\.npz is damaged"):
            store.read("b")


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", PLAN) as store:
        store.write("a", {"x": np.arange(1000.0)})
        path = store.directory / "cells" / "a.npz"
        path.write_bytes(path.read_bytes()[:500])
        with pytest.raises(StoreError, match=r"a\.npz is damaged .* delete it and repeat"):
            store.read("a")


def test_another_plan_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", PLAN) as store:
        store.write("a", {"x": np.zeros(1)})
    before = snapshot(tmp_path)
    other = PLAN.model_copy(update={"replicates": 3})
    with (
        pytest.raises(StoreError, match="replicates is 2 there and 3 here"),
        Store.open(tmp_path / "s", other),
    ):
        raise AssertionError
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("content", ["notes.txt", "plan.toml", "cells/old"])
def test_a_directory_that_is_no_study_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / content
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(StoreError), Store.open(tmp_path, PLAN):
        raise AssertionError
    assert snapshot(tmp_path) == before


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(StoreError, match="is a file"), Store.open(path, PLAN):
        raise AssertionError


def test_a_directory_without_a_plan_yet_is_new(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / ".partial-7-plan.toml").write_text("half")
    with Store.open(tmp_path, PLAN) as store:
        assert store.finished() == set()
    assert not list(tmp_path.rglob(".partial-*"))


def _hold(directory: str, ready: str) -> None:
    with Store.open(Path(directory), PLAN):
        Path(ready).touch()
        time.sleep(60)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    context = multiprocessing.get_context("spawn")
    holder = context.Process(target=_hold, args=(str(tmp_path / "s"), str(ready)))
    holder.start()
    try:
        while not ready.exists():
            assert holder.is_alive()
            time.sleep(0.05)
        with (
            pytest.raises(StoreError, match="in use by another process"),
            Store.open(tmp_path / "s", PLAN),
        ):
            raise AssertionError
    finally:
        os.kill(holder.pid or 0, signal.SIGKILL)
        holder.join()
    with Store.open(tmp_path / "s", PLAN):  # the lock died with its process
        pass


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_bytes(path, b"old")

    def fail(file: object) -> None:
        file.write(b"ne")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomic(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
