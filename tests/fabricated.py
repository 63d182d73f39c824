"""Small plans, and cells whose arrays are made up instead of computed."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from bayesmoe.study.columns import Arrays
from bayesmoe.study.layout import RESULTS, Layout
from bayesmoe.study.plan import Cell, Plan

SMALL: dict[str, Any] = {
    "scenarios": ["lambda"],
    "gates": ["softmax"],
    "n_experts": [2],
    "sizes": [100, 1000],
    "replicates": 2,
    "seed": 1,
}


def make_plan(**changes: Any) -> Plan:
    """A plan of four cells, or what ``changes`` make of it."""
    return Plan.model_validate(SMALL | changes)


def fabricate(plan: Plan, cell: Cell) -> Arrays:
    """Arrays of the right shapes; numbers depend on the cell and the seed, not on the plan."""
    layout = Layout.of(plan)
    rng = np.random.default_rng(zlib.crc32(f"{cell} {plan.seed}".encode()))
    arrays = {}
    for name, (dims, dtype, _) in layout.results.items():
        shape = layout.extent(cell, dims)
        if name == "sampler":
            arrays[name] = rng.choice(["nuts", "laplace"], shape)
        elif dtype == "string":
            arrays[name] = rng.choice(["converged", "separated"], shape)
        elif dtype == "bool":
            arrays[name] = rng.random(shape) < 0.5
        elif dtype == "int64":
            arrays[name] = np.asarray(rng.integers(-(2**62), 2**62))
        else:
            arrays[name] = np.where(rng.random(shape) < 0.2, np.nan, rng.normal(size=shape))
    return arrays | {"seconds": rng.random(arrays["seconds"].shape)}


def snapshot(directory: Path) -> dict[str, bytes | None]:
    """Every file's bytes, and None for directories."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def assert_arrays_equal(one: Arrays, other: Arrays) -> None:
    """The same names, types, shapes and values, bit for bit."""
    assert one.keys() == other.keys()
    for name in one:
        text = RESULTS[name].dtype == "string"  # of any width
        np.testing.assert_array_equal(one[name], other[name], err_msg=name, strict=not text)
