"""Several stores of one study, or of parts of it, become one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bayesmoe.study.chunks import digest
from bayesmoe.study.columns import Arrays
from bayesmoe.study.extension import ExtensionError, union
from bayesmoe.study.plan import Cell
from bayesmoe.study.store import Store
from bayesmoe.study.stored import RESULTS_NAME, Stored, StoreError

_TIMINGS = ("seconds",)  # what differs each time that a cell is computed


class Merged(NamedTuple):
    """The number of cells that are there, failed, and in the plan."""

    finished: int
    failed: int
    total: int


def merge(sources: Sequence[Path], out: Path) -> Merged:
    """Write the cells of all ``sources`` to ``out``, whose plan is the union of theirs.

    A merge that was interrupted can be repeated.

    Parameters
    ----------
    sources
        Directories of studies whose plans differ at most by what an extension allows. The first
        one's order of scenarios, gates and experts leads.
    out
        A new or empty directory, or one of a study that the union extends.

    Raises
    ------
    StoreError
        If the plans do not fit together, a cell is in several sources with different results, or
        ``out`` is a source or cannot be written. What is to be merged is compared before anything
        is written.
    """
    for source in sources:
        if out.absolute() == source.absolute() or (out.exists() and out.samefile(source)):
            raise StoreError(f"--out {out} is one of the studies to merge; choose a new directory")
    parts = [Stored(source) for source in sources]
    try:
        plan = union((str(part.directory), part.plan) for part in parts)
    except ExtensionError as error:
        raise StoreError(str(error)) from None
    owners = _owners([*parts, *_existing(out)])
    earlier = [one for part in parts for one in json.loads(part.attributes["environments"])]
    with Store.open(out, plan, earlier) as store:
        finished = store.finished()
        for cell, owner in owners.items():
            if cell not in finished:
                store.write(cell, owner.read(cell))
        failed = {cell: part for part in parts for cell in part.failed() if cell not in owners}
        for cell, part in failed.items():
            store.write_failure(cell, part.failure(cell))
        return Merged(len(store.finished()), len(store.failed()), sum(1 for _ in plan.cells()))


def _existing(out: Path) -> list[Stored]:
    return [Stored(out)] if (out / RESULTS_NAME).exists() else []


def _owners(parts: Sequence[Stored]) -> dict[Cell, Stored]:
    """The first store that has each cell; those that have it too must agree."""
    owners: dict[Cell, Stored] = {}
    for part in parts:
        for cell in sorted(part.finished()):
            owner = owners.setdefault(cell, part)
            if owner is not part and _content(owner.read(cell)) != _content(part.read(cell)):
                raise StoreError(
                    f"the cell {cell} is not the same in {owner.directory} and {part.directory}; "
                    "find out which of them is right, and leave the other out"
                )
    return owners


def _content(arrays: Arrays) -> int:
    """The digest of what the plan determines."""
    return digest({name: values for name, values in arrays.items() if name not in _TIMINGS})
