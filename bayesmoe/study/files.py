"""Writing files whole or not at all, even if the process is killed or the power fails."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

PARTIAL = ".partial-"  # names that start so are left over from a process that was killed


def write_atomic(
    path: Path, write: Callable[[io.BufferedWriter], object], scratch: Path | None = None
) -> None:
    """Write a file so that at every moment ``path`` is the old file, or the whole new one.

    Parameters
    ----------
    path
        The file.
    write
        Writes the content to an open file.
    scratch
        A directory of the same file system for the unfinished file; that of ``path`` by default.

    Raises
    ------
    OSError
        If the file cannot be written; the old one is kept.
    """
    partial = (scratch or path.parent) / f"{PARTIAL}{os.getpid()}-{path.name}"
    try:
        with open(partial, "wb") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    synchronise(path.parent)


def write_bytes(path: Path, content: bytes, scratch: Path | None = None) -> None:
    """`write_atomic` for content at hand."""
    write_atomic(path, lambda file: file.write(content), scratch)


def synchronise(directory: Path) -> None:
    """Have the disk know the names in a directory."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
