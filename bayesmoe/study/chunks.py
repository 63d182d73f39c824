"""Single chunks of a Zarr array, as bytes, and digests of all arrays of a cell.

A chunk is what Zarr's codecs ``bytes`` (little-endian) or ``vlen-utf8`` make of it, then ``gzip``
if there are many values, then ``crc32c``, after the Zarr version 3 core specification. Zarr's own
writer takes a millisecond for each of them, which is more than many a fit.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.vlen import VLenUTF8  # type: ignore[import-untyped]

#: fast: what is padded shrinks at any level, and draws hardly do
GZIP_LEVEL = 1

_TEXT = VLenUTF8()


def is_text(values: np.ndarray) -> bool:
    """Whether an array holds strings."""
    return values.dtype.kind in "UT"


def is_filled(values: np.ndarray, fill: Any) -> bool:
    """Whether there is nothing but the fill value."""
    return bool(np.all(np.isnan(values) if fill != fill else values == fill))


def encode(values: np.ndarray, compressed: bool = False) -> bytes:
    """A whole chunk of numbers or strings as its file has it."""
    if is_text(values):
        body = bytes(_TEXT.encode(values.astype(object)))
    else:
        body = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    if compressed:
        body = gzip.compress(body, GZIP_LEVEL, mtime=0)
    return body + _checksum(body)


def decode(
    content: bytes, dtype: str, shape: tuple[int, ...], compressed: bool = False
) -> np.ndarray:
    """The chunk in a file's content.

    Raises
    ------
    ValueError
        If the content is not what was written.
    """
    body = content[:-4]
    if content[-4:] != _checksum(body):
        raise ValueError("its checksum is wrong")
    if compressed:
        body = gzip.decompress(body)
    if dtype == "string":
        return np.asarray(_TEXT.decode(body), dtype=np.str_).reshape(shape)
    return np.frombuffer(body, np.dtype(dtype).newbyteorder("<")).reshape(shape)


def _checksum(body: bytes) -> bytes:
    return google_crc32c.value(body).to_bytes(4, "little")


def digest(arrays: Mapping[str, np.ndarray]) -> int:
    """64 bits that tell arrays from all others: their names, types, shapes and values; never 0."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        values = arrays[name]
        little = values.dtype.newbyteorder("<")
        kind = "string" if is_text(values) else little.str
        text = values.tolist() if is_text(values) else None
        state.update(json.dumps([name, kind, list(values.shape), text]).encode())
        if text is None:
            state.update(values.astype(little, copy=False).tobytes())
    return int.from_bytes(state.digest()[:8], "little", signed=True) or 1
