"""A study's directory: a cell is fully there or not at all, even if the process is killed.

``plan.toml`` holds the plan, ``cells/`` one file for each finished cell; every file is written
beside its place, synchronised and renamed. Nothing in it is executed when it is read.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from bayesmoe.study.plan import Plan, PlanError, parse_plan

_PARTIAL = ".partial-"


class StoreError(ValueError):
    """A directory that cannot hold this study."""


def write_atomic(path: Path, write: Callable[[io.BufferedWriter], object]) -> None:
    """Write a file so that at every moment ``path`` is the old file, or the whole new one."""
    partial = path.with_name(f"{_PARTIAL}{os.getpid()}-{path.name}")
    try:
        with open(partial, "wb") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_bytes(path: Path, content: bytes) -> None:
    """`write_atomic` for content at hand."""
    write_atomic(path, lambda file: file.write(content))


class Store:
    """The directory of one study; open it with `Store.open`."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.directory = directory
        self.plan = plan

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: Path, plan: Plan) -> Iterator[Store]:
        """The store of ``plan`` at ``directory``, made if need be, locked while in use.

        Raises
        ------
        StoreError
            If the directory is not empty and not a study, holds another plan, is in use by another
            process, or cannot be written; nothing has changed then.
        """
        check_directory(directory, plan)
        try:
            (directory / "cells").mkdir(parents=True, exist_ok=True)
            handle = open(directory / ".lock", "ab")  # noqa: SIM115
        except OSError as error:
            raise StoreError(
                f"cannot write to {directory}: {error.strerror}; choose another --out"
            ) from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"{directory} is in use by another process; wait until it has finished"
                ) from None
            for left_over in directory.rglob(f"{_PARTIAL}*"):
                left_over.unlink()
            write_bytes(directory / "plan.toml", plan.to_toml().encode())
            yield cls(directory, plan)

    def _path(self, cell_name: str) -> Path:
        return self.directory / "cells" / f"{cell_name}.npz"

    def finished(self) -> set[str]:
        """The names of the cells that are there."""
        return {path.stem for path in (self.directory / "cells").glob("*.npz")}

    def write(self, cell_name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Add a cell."""
        write_atomic(
            self._path(cell_name), lambda file: np.savez(file, allow_pickle=False, **arrays)
        )

    def read(self, cell_name: str) -> dict[str, np.ndarray]:
        """A cell's arrays.

        Raises
        ------
        StoreError
            If the file is damaged.
        """
        path = self._path(cell_name)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise StoreError(
                f"{path} is damaged ({error}); delete it and repeat the command to compute it anew"
            ) from None


def check_directory(directory: Path, plan: Plan) -> None:
    """Raise `StoreError` unless ``directory`` is new, empty, or a study of the same plan."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise StoreError(f"{directory} is a file; choose a directory for --out")
    names = {entry.name for entry in directory.iterdir() if not entry.name.startswith(_PARTIAL)}
    cells = directory / "cells"
    if not names - {".lock", "cells"} and not (cells.is_dir() and any(cells.iterdir())):
        return  # new, or left by a process that was killed before it had stored its plan
    path = directory / "plan.toml"
    if not path.is_file() or "cells" not in names:
        raise StoreError(
            f"{directory} is not empty and not a study; choose a new or empty directory for --out"
        )
    try:
        old = parse_plan(path.read_text(encoding="utf-8"), str(path))
    except (PlanError, UnicodeDecodeError) as error:
        raise StoreError(f"the plan stored in {directory} cannot be read: {error}") from None
    for field in Plan.model_fields:
        stored, asked = getattr(old, field), getattr(plan, field)
        if stored != asked:
            raise StoreError(
                f"{directory} holds another plan: {field} is {_plain(stored)} there and "
                f"{_plain(asked)} here; choose another directory, or repeat the stored plan "
                f"with {path}"
            )


def _plain(value: object) -> str:
    if isinstance(value, list):
        return str([getattr(item, "id", item) for item in value])
    return repr(value)
