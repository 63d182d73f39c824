"""Compiled programs held by the process, within what the operating system allows."""

from __future__ import annotations

import gc
from pathlib import Path

import jax

_MAPS, _LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
_SHARE = 1 / 3  # of the limit; what is compiled between two looks must fit into the rest


def bound_compiled_programs() -> bool:
    """Forget all compiled programs if they crowd the process; whether it was so.

    Linux kills a process that has too many memory maps, of which every compiled program takes
    several: a long run over many models would end there. What is needed again is compiled again.
    """
    if not _MAPS.exists():  # no Linux, no limit
        return False
    with _MAPS.open("rb") as maps:
        crowded = sum(1 for _ in maps) > _SHARE * int(_LIMIT.read_text())
    if crowded:
        jax.clear_caches()
        gc.collect()
    return crowded
