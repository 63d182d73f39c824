"""Everything of a study's Zarr store but its cells: metadata, coordinates, theory.

All of it follows from the plan and the layout, so that growing a store is writing these files
again. The root's metadata, which has a copy of all other metadata and names the layout, comes last:
readers see the old study until it is replaced, and the new one from then on.
"""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import Crc32cCodec, GzipCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from bayesmoe.diagnostics.posterior import library_versions
from bayesmoe.study.chunks import GZIP_LEVEL
from bayesmoe.study.expected import QUANTITIES
from bayesmoe.study.layout import CELL_AXES, CHUNKS, RECORDS, Layout
from bayesmoe.study.plan import Plan
from bayesmoe.study.theory import theory

ROOT = "zarr.json"
FORMAT = "3"

_COORDINATES = 1024  # values in a chunk of a coordinate that can grow
_GROWING = {*CELL_AXES, *CHUNKS}


def environment() -> dict[str, Any]:
    """What computes: package, libraries, Python, platform."""
    return {
        "package_version": version("bayesmoe"),
        "versions": json.dumps(library_versions() | {"zarr": version("zarr")}),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def attributes(plan: Plan, layout: Layout, created: str) -> dict[str, Any]:
    """The attributes of the data set that follow from the plan."""
    return {
        "plan": plan.to_toml(),
        "name": plan.name,
        "starts": plan.starts,
        "sampler": plan.sampler,
        "level": str(plan.level),
        "created": created,
        "layout": layout.to_json(),
        "format": FORMAT,
    }


def skeleton(plan: Plan, layout: Layout, attrs: Mapping[str, Any]) -> dict[str, bytes]:
    """The files by their keys in the store, the root's metadata last."""
    files: dict[str, Buffer] = {}
    root = zarr.create_group(MemoryStore(files), zarr_format=3, attributes=dict(attrs))
    for dim, values in layout.coordinates.items():
        _coordinate(root, dim, values)
    for name, (dims, known) in theory(plan, layout).items():
        parts = [1 if dim in CELL_AXES else len(QUANTITIES) for dim in dims]
        _whole(root, name, dims, known, parts)
    for name, variable in (layout.results | RECORDS).items():
        dims = (*CELL_AXES, *variable.dims)
        units = {"units": "s"} if name == "seconds" else {}
        chunks = (1,) * len(CELL_AXES) + layout.chunk(variable.dims)
        shape = layout.sizes(dims)
        codecs = (GzipCodec(level=GZIP_LEVEL),) if variable.compressed else ()
        _create(root, name, dims, shape, chunks, variable.dtype, variable.fill, units, codecs)
    with warnings.catch_warnings():  # that consolidated metadata are not part of the standard yet
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(root.store)
    last = files.pop(ROOT)
    return {key: buffer.to_bytes() for key, buffer in (files | {ROOT: last}).items()}


def _create(
    root: zarr.Group, name: str, dims: tuple[str, ...], shape: tuple[int, ...],
    chunks: tuple[int, ...], dtype: str, fill: Any, attrs: dict[str, Any] | None = None,
    codecs: tuple[BytesBytesCodec, ...] = (),
) -> zarr.Array:  # fmt: skip
    return root.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=fill,
        compressors=[*codecs, Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=dims,
        attributes=attrs,
        config={"write_empty_chunks": True},  # else those of a growth given up could stay
    )


def _coordinate(root: zarr.Group, dim: str, values: list[Any]) -> None:
    chunk = _COORDINATES if dim in _GROWING else len(values)
    _whole(root, dim, (dim,), np.asarray(values), [chunk])


def _whole(
    root: zarr.Group, name: str, dims: tuple[str, ...], values: np.ndarray, chunks: list[int]
) -> None:
    text = values.dtype.kind == "U"
    fill: Any = "" if text else np.zeros((), values.dtype).item()
    dtype = "string" if text else values.dtype.name
    array = _create(root, name, dims, values.shape, tuple(chunks), dtype, fill)
    array[...] = values.astype(object) if text else values
