"""Not a test: cells that are made up, slow, or deadly to their workers, for `test_executors`."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from fabricated import fabricate

from bayesmoe.study.executors import Outcome
from bayesmoe.study.plan import Cell, Plan


class Deadly(NamedTuple):
    """An attempt that leaves a line in ``diary`` and kills its process as often as is said."""

    plan: Plan
    diary: Path
    kills: Mapping[Cell, int] = {}
    seconds: float = 0.0

    def __call__(self, cells: Sequence[Cell]) -> list[Outcome]:
        return [self._compute(cell) for cell in cells]

    def _compute(self, cell: Cell) -> Outcome:
        with self.diary.open("a") as diary:  # lines this short are written at once
            diary.write(f"{os.getpid()} {cell}\n")
        if sum(named == str(cell) for _, named in entries(self.diary)) <= self.kills.get(cell, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return Outcome(cell, fabricate(self.plan, cell))


def entries(diary: Path) -> list[tuple[int, str]]:
    """The processes that began cells, and the cells, in order."""
    lines = diary.read_text().splitlines() if diary.exists() else []
    return [(int(pid), cell) for pid, cell in (line.split(" ", 1) for line in lines)]


def tries(diary: Path) -> Counter[str]:
    """How often each cell was begun."""
    return Counter(cell for _, cell in entries(diary))


def count_threads(cells: Sequence[Cell]) -> list[Outcome]:
    """An attempt at a cell that fails with the number of threads of one operation of JAX."""
    jax.numpy.ones(3).block_until_ready()
    names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
    (cell,) = cells
    return [Outcome(cell, None, str(sum("XLAEigen" in name for name in names)))]
