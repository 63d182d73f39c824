"""A study's directory: one Zarr store that grows cell by cell, and the plan.

A cell's chunks are written beside their place and renamed, the digest of them all at last, so that
a process may be killed at any moment. They are not forced to the disk one by one, which would take
longer than many a fit: when the power fails, the last cells may be lost, and their digests tell.
What the store is, its metadata, is forced to the disk, and replaced as a whole.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bayesmoe.study.chunks import digest, encode, is_filled, is_text
from bayesmoe.study.extension import ExtensionError, check_extension
from bayesmoe.study.files import PARTIAL, synchronise, write_bytes
from bayesmoe.study.layout import RECORDS, RESULTS, Layout, Variable
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.skeleton import attributes, environment, skeleton
from bayesmoe.study.stored import RESULTS_NAME, Stored, StoreError

_LOCK, _PLAN = ".lock", "plan.toml"


class WriteError(StoreError):
    """The disk is full, or cannot be written; what was finished is kept."""


class Store(Stored):
    """The directory of one study, to add cells to; open it with `Store.open`."""

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, directory: Path, plan: Plan, earlier: Sequence[Mapping[str, Any]] = ()
    ) -> Iterator[Store]:
        """The store of ``plan`` at ``directory``, made or grown if need be, locked while in use.

        Parameters
        ----------
        directory
            A new or empty directory, or one that holds a study which ``plan`` extends.
        plan
            The plan.
        earlier
            Environments (see `environment`) in which cells to be added were computed before.

        Raises
        ------
        StoreError
            If the directory is not empty and not a study, holds another plan, is in use by another
            process, or cannot be written; nothing has changed then.
        """
        check_directory(directory, plan)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handle = open(directory / _LOCK, "ab")  # noqa: SIM115
        except OSError as error:
            raise _cannot_write(directory, error) from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"{directory} is in use by another process; wait until it has finished"
                ) from None
            stored = check_directory(directory, plan)  # it may have grown before it was locked
            try:
                _clean(directory)
                _commit(directory, plan, stored, earlier)
            except OSError as error:
                raise _cannot_write(directory, error) from None
            yield cls(directory)

    def write(self, cell: Cell, arrays: Mapping[str, np.ndarray]) -> None:
        """Add a cell.

        Raises
        ------
        ValueError
            If names, shapes or types are not those of the layout.
        WriteError
            If there is no room, or the directory cannot be written.
        """
        checked = self._checked(cell, arrays)
        with self._writing():
            self._remove("digest", cell)
            for name, variable in self.layout.results.items():
                self._put(name, variable, cell, checked[name])
            self._put("digest", RECORDS["digest"], cell, np.asarray(digest(checked)))
            self._remove("failure", cell)

    def write_failure(self, cell: Cell, text: str) -> None:
        """Record why a cell failed; it counts as missing, with the status "failed".

        Raises
        ------
        WriteError
            If there is no room, or the directory cannot be written.
        """
        variable = RESULTS["status"]
        failed = np.full(self.layout.extent(cell, variable.dims), "failed")
        with self._writing():
            self.discard(cell)
            self._put("failure", RECORDS["failure"], cell, np.asarray(text))
            self._put("status", variable, cell, failed)

    def discard(self, cell: Cell) -> None:
        """Forget a cell."""
        for name in ("digest", *self.layout.results, "failure"):
            self._remove(name, cell)

    def repair(self) -> list[Cell]:
        """Discard damaged cells, and what is left of cells that never were finished.

        Returns
        -------
        The damaged cells.
        """
        with self._writing():
            damaged = self.damaged()
            for cell in damaged:
                self.discard(cell)
            for path in self.leftovers():
                path.unlink()
        return damaged

    def _checked(self, cell: Cell, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        odd = sorted(arrays.keys() ^ self.layout.results.keys())
        if odd:
            raise ValueError(f"the cell {cell} must have the variables of the layout; see {odd}")
        for name, (dims, dtype, _) in self.layout.results.items():
            values, shape = arrays[name], self.layout.extent(cell, dims)
            found = "string" if is_text(values) else values.dtype.name
            if (found, values.shape) != (dtype, shape):
                raise ValueError(
                    f"{name} of the cell {cell} must be {dtype} of shape {shape}, got {found} of "
                    f"shape {values.shape}"
                )
        return dict(arrays)

    def _put(self, name: str, variable: Variable, cell: Cell, values: np.ndarray) -> None:
        """Write a cell's chunks; one without a file has nothing but the fill value, as in Zarr."""
        text, chunk = variable.dtype == "string", self.layout.chunk(variable.dims)
        for key, part in self.layout.blocks(cell, variable.dims):
            path, region = self.root / name / key, values[part]
            if is_filled(region, variable.fill):
                path.unlink(missing_ok=True)
                continue
            whole = np.full(chunk, variable.fill, object if text else variable.dtype)
            whole[tuple(map(slice, region.shape))] = region
            content = encode(whole.astype(np.str_) if text else whole, variable.compressed)
            self._replace(path, content)

    def _replace(self, path: Path, content: bytes) -> None:
        partial = self.directory / f"{PARTIAL}{os.getpid()}-chunk"
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def _remove(self, name: str, cell: Cell) -> None:
        for key in self._keys(name, cell):
            (self.root / name / key).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(
                f"cannot write to {self.directory}: {error.strerror}; finished cells are kept: "
                "mend this and repeat the command to go on"
            ) from None


def check_directory(directory: Path, plan: Plan) -> Stored | None:
    """The study in ``directory``, or None if that is new or empty.

    Raises
    ------
    StoreError
        If the directory is not a study, or one that ``plan`` does not extend.
    """
    try:
        names = {name for name in os.listdir(directory) if not name.startswith(PARTIAL)}
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise StoreError(f"{directory} is a file; choose a directory for --out") from None
    except OSError as error:
        raise StoreError(f"cannot read {directory}: {error.strerror}; choose another") from None
    if not names - {_LOCK}:
        return None  # new, or left by a process that was killed before it had made its store
    if RESULTS_NAME not in names:
        raise StoreError(
            f"{directory} is not empty and not a study; choose a new or empty directory for --out"
        )
    stored = Stored(directory)
    try:
        check_extension(stored.plan, plan, str(directory))
    except ExtensionError as error:
        raise StoreError(str(error)) from None
    return stored


def _clean(directory: Path) -> None:
    """Remove what processes that were killed have left unfinished."""
    for place in (directory, directory / "figures"):
        for left_over in place.glob(f"{PARTIAL}*"):
            if left_over.is_dir():
                shutil.rmtree(left_over)
            else:
                left_over.unlink()


def _commit(
    directory: Path, plan: Plan, stored: Stored | None, earlier: Sequence[Mapping[str, Any]]
) -> None:
    """Make the store, or let it grow; done again after an interruption, it ends the same."""
    old = {} if stored is None else stored.attributes
    layout = Layout.of(plan, None if stored is None else stored.layout)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    environments: list[Mapping[str, Any]] = []
    for one in (*json.loads(old.get("environments", "[]")), *earlier, environment()):
        if one not in environments:
            environments.append(one)
    attrs = attributes(plan, layout, old.get("created", now))
    attrs |= environment() | {"environments": json.dumps(environments)}
    files = skeleton(plan, layout, attrs)
    root = directory / RESULTS_NAME
    if stored is None:
        root = directory / f"{PARTIAL}{RESULTS_NAME}"
    for key, content in files.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        _update(root / key, content, directory)
    if stored is None:
        root.rename(directory / RESULTS_NAME)
        synchronise(directory)
    _update(directory / _PLAN, plan.to_toml().encode(), directory)


def _update(path: Path, content: bytes, scratch: Path) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_bytes(path, content, scratch)


def _cannot_write(directory: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot write to {directory}: {error.strerror}; choose another --out")
