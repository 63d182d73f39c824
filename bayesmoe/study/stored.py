"""Reading a study's Zarr store: nothing is locked, changed or executed.

Cells are known by their digests, each a file of its own that appears last: a cell is fully there or
not at all. What is read is compared with its digest, so that what was lost or altered is never
taken for data.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bayesmoe.study.chunks import decode, digest
from bayesmoe.study.columns import Arrays
from bayesmoe.study.layout import CELL_AXES, RECORDS, Layout, Variable
from bayesmoe.study.plan import Cell, Plan, PlanError, parse_plan
from bayesmoe.study.skeleton import FORMAT, ROOT

RESULTS_NAME = "results.zarr"
_REPAIR = "run the study again with --repair to compute it anew"


class StoreError(ValueError):
    """A directory that cannot hold or give this study."""


class DamageError(StoreError):
    """Cells that are not what was written."""


class Stored:
    """The study in a directory, as it is at this moment.

    Parameters
    ----------
    directory
        The study's directory.

    Raises
    ------
    StoreError
        If there is no study, or its metadata cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / RESULTS_NAME
        path = self.root / ROOT
        try:
            self.attributes: dict[str, Any] = json.loads(path.read_bytes())["attributes"]
            found = self.attributes["format"]
            layout = Layout.from_json(self.attributes["layout"]) if found == FORMAT else None
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(f"{directory} is not a study: it has no {RESULTS_NAME}") from None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is not that of a study ({error!r})") from None
        if layout is None:
            raise StoreError(
                f"{self.root} was written by another version of bayesmoe: its format is {found!r}, "
                f"that of this version {FORMAT!r}; go on with that version, or choose a new "
                "directory"
            )
        self.layout = layout

    @functools.cached_property
    def plan(self) -> Plan:
        """The plan that is stored."""
        try:
            return parse_plan(self.attributes["plan"], str(self.root))
        except (PlanError, KeyError, TypeError) as error:
            raise StoreError(
                f"the plan stored in {self.directory} cannot be read: {error}"
            ) from None

    def finished(self) -> set[Cell]:
        """The cells that are there."""
        return self._listed("digest")

    def failed(self) -> set[Cell]:
        """The cells whose last computation failed."""
        broken = self._listed("failure")
        return broken - self.finished() if broken else broken

    def _listed(self, name: str) -> set[Cell]:
        """The cells that have a chunk of a variable of one value."""
        values = (self.layout.coordinates[axis] for axis in CELL_AXES)
        tables = [{str(i): value for i, value in enumerate(axis)} for axis in values]
        places = (chunk.split(".")[1:] for chunk in self._chunks(name))
        cells = (Cell._make(map(dict.get, tables, place)) for place in places)
        return {cell for cell in cells if None not in cell}  # the store may just be growing

    def _chunks(self, name: str) -> list[str]:
        """The names of all chunks of a variable."""
        return [entry for entry in os.listdir(self.root / name) if entry.startswith("c.")]

    def _keys(self, name: str, cell: Cell) -> list[str]:
        dims = (self.layout.results | RECORDS)[name].dims
        return [key for key, _ in self.layout.blocks(cell, dims)]

    def leftovers(self) -> list[Path]:
        """Chunks of cells that never were finished: of a process killed while it wrote them."""
        finished, failed, found = self.finished(), self.failed(), []
        for name in self.layout.results:
            kept = finished | failed if name == "status" else finished
            known = {key for cell in kept for key in self._keys(name, cell)}
            found += [self.root / name / key for key in self._chunks(name) if key not in known]
        return found

    def read(self, cell: Cell) -> Arrays:
        """A cell's arrays.

        Raises
        ------
        DamageError
            If the cell is not as it was written.
        """
        variables = self.layout.results
        arrays = {name: self._read(name, variable, cell) for name, variable in variables.items()}
        if digest(arrays) != self.digest(cell):
            raise self._damage(cell, "its digest is wrong")
        return arrays

    def digest(self, cell: Cell) -> int:
        """The digest that was written of a cell."""
        return int(self._read("digest", RECORDS["digest"], cell))

    def failure(self, cell: Cell) -> str:
        """Why a cell failed."""
        return str(self._read("failure", RECORDS["failure"], cell))

    def _read(self, name: str, variable: Variable, cell: Cell) -> np.ndarray:
        """A cell's own part of a variable, put together from its chunks."""
        text = variable.dtype == "string"
        shape, chunk = self.layout.extent(cell, variable.dims), self.layout.chunk(variable.dims)
        whole = np.full(shape, variable.fill, object if text else variable.dtype)
        for key, part in self.layout.blocks(cell, variable.dims):
            try:
                with open(f"{self.root}/{name}/{key}", "rb") as file:
                    content = file.read()
                values = decode(content, variable.dtype, chunk, variable.compressed)
            except FileNotFoundError:
                continue  # nothing but the fill value was there; if not, the digest tells
            except OSError as error:
                raise self._damage(cell, f"{name}: {error.strerror}") from None
            except ValueError as error:
                raise self._damage(cell, f"{name}: {error}") from None
            whole[part] = values[tuple(slice(p.stop - p.start) for p in part)]
        return whole.astype(np.str_) if text else whole

    def _damage(self, cell: Cell, why: str) -> DamageError:
        return DamageError(f"{self.root}: the cell {cell} is damaged ({why}); {_REPAIR}")

    def damaged(self) -> list[Cell]:
        """The cells that are there, or failed, and cannot be read as they were written."""
        return [
            *(cell for cell in sorted(self.finished()) if not _whole(self.read, cell)),
            *(cell for cell in sorted(self.failed()) if not _whole(self.failure, cell)),
        ]


def _whole(read: Callable[[Cell], object], cell: Cell) -> bool:
    try:
        read(cell)
    except DamageError:
        return False
    return True
