"""What a CPU does in turn an accelerator does at once: its cores idle at small work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax

T = TypeVar("T")

_AT_ONCE = 16  # starts or draws; bounds the memory
TOGETHER = 16  # small data sets in one program


def on_accelerator() -> bool:
    """Whether JAX computes on something else than the CPU."""
    return bool(jax.default_backend() != "cpu")


def each(function: Callable[[Any], T], batch: Any) -> T:
    """The function of each entry along the leading axes: in turn, or many at once."""
    return jax.lax.map(function, batch, batch_size=_AT_ONCE if on_accelerator() else None)
