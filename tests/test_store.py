"""The store: whole cells or none, one plan, one process, no harm to what is not ours."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from fabricated import assert_arrays_equal, fabricate, make_plan, snapshot

from bayesmoe.core.gate import Rate
from bayesmoe.study import store as store_module
from bayesmoe.study.chunks import GZIP_LEVEL, decode, digest, encode
from bayesmoe.study.dataset import load_results
from bayesmoe.study.files import write_atomic, write_bytes
from bayesmoe.study.layout import CELL_AXES, RESULTS, Layout
from bayesmoe.study.plan import Plan
from bayesmoe.study.results import measure_slopes
from bayesmoe.study.store import Store, WriteError
from bayesmoe.study.stored import DamageError, Stored, StoreError

PLAN = make_plan()
CELLS = list(PLAN.cells())
N_RESULTS = len(Layout.of(PLAN).results)
# everything that can make shapes differ: two priors, nine experts (two chunks), d = 2, kept draws
WIDE = make_plan(
    scenarios=["lambda", "plane"], gates=["softmax", "dense_to_sparse"], n_experts=[2, 9],
    priors=["weak", "compact"], kept_draws=5,
)  # fmt: skip


def fill(directory: Path, plan: Plan) -> None:
    """Make a store with every cell of the plan."""
    with Store.open(directory, plan) as store:
        for cell in plan.cells():
            store.write(cell, fabricate(plan, cell))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full") / "s"
    fill(path, PLAN)
    return path


@pytest.fixture
def directory(full: Path, tmp_path: Path) -> Path:
    """A full store of one's own."""
    return shutil.copytree(full, tmp_path / "s")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide") / "s"
    fill(path, WIDE)
    return path


# --- what is written is read, by us and by others


def test_a_cell_is_read_as_written(wide: Path) -> None:
    stored = Stored(wide)
    assert stored.finished() == set(WIDE.cells())
    for cell in WIDE.cells():
        assert_arrays_equal(stored.read(cell), fabricate(WIDE, cell))


@pytest.mark.filterwarnings("error")
def test_xarray_alone_reads_every_value_under_its_coordinates(wide: Path) -> None:
    with xr.open_zarr(wide / "results.zarr", chunks=None) as results:
        for cell in WIDE.cells():
            one = results.sel(dict(zip(CELL_AXES, cell, strict=True)))
            for name, values in fabricate(WIDE, cell).items():
                found = one[name].transpose(*RESULTS[name].dims).to_numpy()
                inner = found[tuple(map(slice, values.shape))]
                np.testing.assert_array_equal(inner, values, err_msg=name)
                if values.dtype == np.float64:
                    assert np.isnan(found).sum() == (
                        np.isnan(values).sum() + found.size - values.size
                    ), "what a model lacks is NaN"


def test_the_results_are_those_that_xarray_alone_reads(wide: Path) -> None:
    results = load_results(Stored(wide), WIDE)
    with xr.open_zarr(wide / "results.zarr", chunks=None) as alone:
        xr.testing.assert_equal(results, alone.load())
        assert list(results.data_vars) == list(alone.data_vars)
        assert results.attrs == alone.attrs
        assert results["seconds"].attrs == alone["seconds"].attrs == {"units": "s"}


def test_attributes_and_theory_are_there(wide: Path) -> None:
    with xr.open_zarr(wide / "results.zarr", chunks=None) as results:
        assert Plan.model_validate(WIDE) == Stored(wide).plan
        assert results.attrs["plan"] == WIDE.to_toml()
        for name in ("package_version", "versions", "python", "platform", "created"):
            assert results.attrs[name]
        assert json.loads(results.attrs["versions"])["jax"]
        softmax = results.sel(scenario="plane", gate="softmax", n_experts=2)
        assert softmax["expected"].sel(quantity="slope") == -0.5
        assert results["gate_label"].sel(gate="dense_to_sparse").item() == "dense-to-sparse"
        assert results["ray"].to_numpy().tolist() == [False, True]
        assert (results["n_experts_true"] == 2).all()


def test_theory_is_today_s_not_that_of_the_day_the_study_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as then:
        gate = type(PLAN.gates[0].make())
        then.setattr(gate, "expected_rate", lambda *_, **__: Rate(-9.0, "n^-9"))
        fill(tmp_path / "s", PLAN)
    with xr.open_zarr(tmp_path / "s" / "results.zarr", chunks=None) as alone:
        assert (alone["expected"] == -9.0).all()
    results = load_results(Stored(tmp_path / "s"), PLAN)
    loss = results.sel(quantity="loss").isel(gate=0)
    assert loss["expected"].values.tolist() == [[-0.5]]
    assert loss["expected_text"].values.tolist() == [["n^-1/2"]]


@pytest.mark.parametrize(("top_k", "expected"), [(1, "none (ray)"), (2, "n^-1")])
def test_the_map_of_a_top_1_gate_need_not_approach_the_mle(
    tmp_path: Path, top_k: int, expected: str
) -> None:
    plan = make_plan(gates=[{"name": "top_k_sparse", "top_k": top_k}])
    fill(tmp_path / "s", plan)
    slopes = measure_slopes(plan, load_results(Stored(tmp_path / "s"), plan))
    distance = slopes[slopes["quantity"] == "map_mle_distance"]
    assert set(distance["expected_text"]) == {expected}


def test_every_chunk_has_a_checksum_and_lies_flat(wide: Path) -> None:
    root = zarr.open_group(wide / "results.zarr", mode="r")
    for name, array in root.arrays():
        assert array.metadata.codecs[-1].to_dict()["name"] == "crc32c", name
    for path in (wide / "results.zarr").rglob("*"):
        assert len(path.relative_to(wide / "results.zarr").parts) <= 2


@pytest.mark.parametrize(
    "values",
    [
        np.asarray([[1.5, np.nan], [-0.0, np.inf]]),
        np.asarray([True, False]),
        np.asarray(-(2**62)),
        np.asarray([["a", "", "τ"]]),
    ],
)
def test_chunks_are_those_that_zarr_writes(tmp_path: Path, values: np.ndarray) -> None:
    text = values.dtype.kind == "U"
    array = zarr.create_array(
        tmp_path / "a", shape=values.shape, chunks=values.shape, fill_value="" if text else 0,
        dtype="string" if text else values.dtype, compressors=[zarr.codecs.Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
    )  # fmt: skip
    array[...] = values.astype(object) if text else values
    (chunk,) = (tmp_path / "a").glob("c*")
    assert chunk.read_bytes() == encode(values)
    dtype = "string" if text else values.dtype.name
    np.testing.assert_array_equal(decode(encode(values), dtype, values.shape), values)


def test_compressed_chunks_are_those_that_zarr_writes(tmp_path: Path) -> None:
    values = np.where(np.arange(4000) % 10 < 2, np.random.default_rng(1).normal(size=4000), np.nan)
    array = zarr.create_array(
        tmp_path / "a", shape=values.shape, chunks=values.shape, fill_value=0, dtype="float64",
        compressors=[zarr.codecs.GzipCodec(level=GZIP_LEVEL), zarr.codecs.Crc32cCodec()],
    )  # fmt: skip
    array[...] = values
    (chunk,) = (path for path in (tmp_path / "a" / "c").iterdir())
    ours = encode(values, compressed=True)
    assert len(ours) < 0.4 * values.nbytes
    for content in (ours, chunk.read_bytes()):
        found = decode(content, "float64", values.shape, compressed=True)
        np.testing.assert_array_equal(found, values)
    chunk.write_bytes(ours)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a")[...], values)


def test_what_has_nothing_but_its_fill_value_has_no_file(directory: Path) -> None:
    """As in Zarr; a file that was there before goes."""
    bare = fabricate(PLAN, CELLS[0])
    bare |= {
        "loss": np.full_like(bare["loss"], np.nan),
        "converged": np.zeros_like(bare["converged"]),
        "sampler": np.full_like(bare["sampler"], ""),
    }
    with Store.open(directory, PLAN) as store:
        store.write(CELLS[0], bare)
        for name in ("loss", "converged", "sampler"):
            assert not list((store.root / name).glob("c.0.0.0.0.0*")), name
        assert list((store.root / "status").glob("c.0.0.0.0.0*"))
        assert_arrays_equal(store.read(CELLS[0]), bare)
    results = load_results(Stored(directory), PLAN)
    with xr.open_zarr(directory / "results.zarr", chunks=None) as alone:
        xr.testing.assert_equal(results, alone.load())


@pytest.mark.parametrize("content", [b"", b"1234", encode(np.zeros(3))[1:], encode(np.ones(2))])
def test_a_chunk_that_is_no_whole_chunk_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"checksum|reshape"):
        decode(content, "float64", (3,))


@pytest.mark.parametrize(
    "other",
    [
        {"b": np.zeros(2)},
        {"a": np.zeros(3)},
        {"a": np.zeros((2, 1))},
        {"a": np.zeros(2, np.float32)},
        {"a": np.zeros(2, np.int64)},
        {"a": np.asarray([0.0, 5e-324])},
        {"a": np.asarray([0.0, -0.0])},
        {"a": np.asarray(["", ""])},
        {"a": np.zeros(2), "b": np.zeros(0)},
    ],
)
def test_a_digest_tells_names_types_shapes_and_values(other: dict[str, np.ndarray]) -> None:
    assert digest(other) != digest({"a": np.zeros(2)})


def test_a_digest_knows_no_order_and_no_width_of_strings() -> None:
    a, b = np.arange(3.0), np.asarray(["x", "yy"])
    assert digest({"a": a, "b": b}) == digest({"b": b.astype("<U9"), "a": a})


# --- a cell is there or not


@pytest.mark.parametrize("writes", [0, 1, N_RESULTS - 1, N_RESULTS])
def test_a_cell_cut_short_is_not_there(
    directory: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """The process ends at a write; the cell had other results before."""
    left = itertools.count(writes, -1)

    def put(self: Store, *arguments: Any) -> None:
        if not next(left):
            raise KeyboardInterrupt
        original(self, *arguments)

    original = Store._put
    other = fabricate(make_plan(seed=2), CELLS[1])
    with Store.open(directory, PLAN) as store:
        monkeypatch.setattr(Store, "_put", put)
        with pytest.raises(KeyboardInterrupt):
            store.write(CELLS[1], other)
        monkeypatch.undo()
        assert store.finished() == set(CELLS) - {CELLS[1]}
        results = load_results(store, PLAN)
        one = results.sel(dict(zip(CELL_AXES, CELLS[1], strict=True)))
        assert (one["status"] == "missing").all()
        assert not one["converged"].any()
        assert one["loss"].isnull().all()
        store.write(CELLS[1], other)
        assert_arrays_equal(store.read(CELLS[1]), other)


def wrong(name: str, value: np.ndarray | None) -> dict[str, np.ndarray]:
    arrays = fabricate(PLAN, CELLS[0])
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    return arrays


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (wrong("loss", None), r"variables of the layout; see \['loss'\]"),
        (wrong("los", np.zeros(1)), r"variables of the layout; see \['los'\]"),
        (wrong("loss", np.zeros((1, 2))), r"loss .* must be float64 of shape \(1, 3\), got"),
        (wrong("loss", np.zeros((1, 3), np.float32)), "got float32"),
        (wrong("loss", np.full((1, 3), {}, dtype=object)), "got object"),
        (wrong("status", np.full((1, 3), "a", dtype=object)), "got object"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    directory: Path, arrays: dict[str, np.ndarray], words: str
) -> None:
    with Store.open(directory, PLAN) as store:
        before = snapshot(directory)
        with pytest.raises(ValueError, match=words):
            store.write(CELLS[0], arrays)
        assert snapshot(directory) == before


# --- damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap_with_another_cell(path: Path) -> None:
    path.write_bytes(path.with_name(path.name.replace("c.0.0.0.0.1", "c.0.0.0.1.0")).read_bytes())


DAMAGES = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "swapped": swap_with_another_cell,
}


STRINGS = [("status", "missing"), ("status", "flipped")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(["loss"], DAMAGES),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (*itertools.product(["digest"], DAMAGES), *STRINGS)
        ),
    ],
)
def test_damage_is_named_and_mended(directory: Path, name: str, kind: str) -> None:
    (path,) = (directory / "results.zarr" / name).glob("c.0.0.0.0.1*")
    arrays = fabricate(PLAN, CELLS[1])
    DAMAGES[kind](path)
    with Store.open(directory, PLAN) as store:
        if (name, kind) != ("digest", "missing"):  # then the cell is not there
            with pytest.raises(DamageError, match=r"n = 100, replicate 1 is damaged.*--repair"):
                store.read(CELLS[1])
            with pytest.raises(DamageError, match=r"n = 100, replicate 1; run .* --repair"):
                load_results(store, PLAN)
            assert store.repair() == [CELLS[1]]
        assert store.finished() == set(CELLS) - {CELLS[1]}
        store.write(CELLS[1], arrays)
        assert not store.damaged()
        assert (load_results(store, PLAN)["status"] != "missing").all()


def test_a_repair_removes_what_was_left_of_unfinished_cells(directory: Path) -> None:
    """Power failed while the second cell was being written."""
    with Store.open(directory, PLAN) as store:
        (directory / "results.zarr" / "digest" / "c.0.0.0.0.1").unlink()
        (path,) = (directory / "results.zarr" / "loss").glob("c.0.0.0.0.1*")
        path.write_bytes(b"")
        with pytest.raises(StoreError, match=r"cannot be read .*--repair"):
            load_results(store, PLAN)
        assert store.repair() == []
        assert not path.exists()
        assert (load_results(store, PLAN)["status"] == "missing").sum() == 3


def test_damaged_coordinates_are_written_anew(directory: Path) -> None:
    path = directory / "results.zarr" / "gate" / "c.0"
    before = path.read_bytes()
    path.write_bytes(before[:5])
    with pytest.raises(StoreError, match="cannot be read"):
        load_results(Stored(directory), PLAN)
    with Store.open(directory, PLAN):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"attributes": {"format": "3"}}'])
def test_a_root_that_is_not_ours_is_refused(directory: Path, content: bytes) -> None:
    (directory / "results.zarr" / "zarr.json").write_bytes(content)
    before = snapshot(directory)
    with pytest.raises(StoreError, match="is not that of a study"), Store.open(directory, PLAN):
        raise AssertionError
    assert snapshot(directory) == before


def test_a_store_of_another_format_is_refused_and_stays_as_it_is(directory: Path) -> None:
    """As one of format 2 is, which does not say which sampler drew what."""
    path = directory / "results.zarr" / "zarr.json"
    root = json.loads(path.read_bytes())
    root["attributes"]["format"] = "2"
    path.write_text(json.dumps(root))
    for name in ("sampler", "pareto_k"):
        shutil.rmtree(directory / "results.zarr" / name)
    before = snapshot(directory)
    words = r"another version of bayesmoe: its format is '2', that of this version '3'; go on with"
    with pytest.raises(StoreError, match=words):
        Stored(directory)
    with pytest.raises(StoreError, match=words), Store.open(directory, PLAN):
        raise AssertionError
    assert snapshot(directory) == before


# --- failures


def test_a_failure_is_recorded_until_the_cell_is_there(directory: Path) -> None:
    with Store.open(directory, PLAN) as store:
        store.write_failure(CELLS[2], "Traceback: ü")
        assert store.finished() == set(CELLS) - {CELLS[2]}
        assert store.failed() == {CELLS[2]}
        assert store.failure(CELLS[2]) == "Traceback: ü"
        assert store.repair() == []
        results = load_results(store, PLAN)
        assert (results["status"] == "failed").sum() == 3
        assert results["failure"].sel(n=1000, replicate=0).item() == "Traceback: ü"
        with xr.open_zarr(store.root, chunks=None) as plain:
            assert (plain["status"].sel(n=1000, replicate=0) == "failed").all()
        store.write(CELLS[2], fabricate(PLAN, CELLS[2]))
        assert store.failed() == set()
        assert (load_results(store, PLAN)["failure"] == "").all()


# --- the directory


@pytest.mark.parametrize("content", ["notes.txt", "plan.toml", "results.zarr/old", "results.zarr"])
def test_a_directory_that_is_no_study_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / content
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(StoreError, match="not a study"), Store.open(tmp_path, PLAN):
        raise AssertionError
    assert snapshot(tmp_path) == before


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(StoreError, match="is a file"), Store.open(path, PLAN):
        raise AssertionError


def test_a_directory_left_before_its_store_was_made_is_new(tmp_path: Path) -> None:
    (tmp_path / ".partial-results.zarr" / "loss").mkdir(parents=True)
    (tmp_path / ".lock").touch()
    (tmp_path / ".partial-7-zarr.json").write_text("half")
    with Store.open(tmp_path, PLAN) as store:
        assert store.finished() == set()
    assert not list(tmp_path.rglob(".partial-*"))


def test_opening_again_changes_nothing(directory: Path) -> None:
    before = snapshot(directory)
    with Store.open(directory, PLAN):
        pass
    assert snapshot(directory) == before


def test_environments_that_computed_are_kept(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = store_module.environment()
    monkeypatch.setattr(store_module, "environment", lambda: here | {"python": "4.0"})
    with Store.open(directory, PLAN) as store:
        assert store.attributes["python"] == "4.0"
        environments = json.loads(store.attributes["environments"])
    assert [one["python"] for one in environments] == [here["python"], "4.0"]


def _hold(directory: str, ready: str) -> None:
    with Store.open(Path(directory), PLAN):
        Path(ready).touch()
        time.sleep(60)


@pytest.mark.slow
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
        assert Stored(tmp_path / "s").finished() == set(), "reading takes no lock"
    finally:
        os.kill(holder.pid or 0, signal.SIGKILL)
        holder.join()
    with Store.open(tmp_path / "s", PLAN):  # the lock died with its process
        pass


# --- writing files


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


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write more into a file, as on a full disk, in the midst of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_what_is_complete(directory: Path) -> None:
    with Store.open(directory, PLAN) as store:
        store.discard(CELLS[1])
        with (
            pytest.raises(WriteError, match=r"File too large; finished cells are kept: mend this"),
            largest_file(200),
        ):
            store.write(CELLS[1], fabricate(PLAN, CELLS[1]))
        assert list((store.root / "loss").glob("c.0.0.0.0.1*")), "the writing had begun"
        assert store.finished() == set(CELLS) - {CELLS[1]}
        assert not store.damaged()
        assert not list(directory.rglob(".partial-*"))
        store.write(CELLS[1], fabricate(PLAN, CELLS[1]))
        assert not store.damaged()


def test_growth_on_a_full_disk_leaves_the_old_study(directory: Path) -> None:
    with (
        pytest.raises(StoreError, match=r"cannot write to .*: File too large"),
        largest_file(2000),
        Store.open(directory, make_plan(replicates=3)),
    ):
        raise AssertionError
    assert Stored(directory).plan == PLAN
    assert (load_results(Stored(directory), PLAN)["status"] != "missing").all()


@pytest.fixture
def without_rights() -> Iterator[None]:
    """Root may write everywhere, so that for a while we are somebody else."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.fixture
def read_only(full: Path) -> Iterator[Path]:
    """A full store that cannot be changed, in a directory that everybody can read."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(shutil.copytree(full, Path(name) / "s"))
        paths = [Path(name), place, *place.rglob("*")]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield place
        for path in paths:
            path.chmod(0o755)


def test_a_read_only_directory_is_read_but_not_opened(
    read_only: Path, without_rights: None
) -> None:
    with (
        pytest.raises(StoreError, match=r"cannot write to .*: Permission denied; choose another"),
        Store.open(read_only, PLAN),
    ):
        raise AssertionError
    assert Stored(read_only).finished() == set(CELLS)
    assert (load_results(Stored(read_only), PLAN)["status"] != "missing").all()
