"""How programs are compiled, which takes most of the time of a first fit to small data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax

from bayesmoe.core.gate import Gate

#: compiler options that take two thirds of the time for programs of many small parts
QUICKLY: dict[str, bool | str] = {"xla_cpu_use_fusion_emitters": False}


def jit_by_gate(
    gate: Callable[[Any], Gate], static_argnums: int | tuple[int, ...]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: `jax.jit`, with `QUICKLY` if the gate of the first argument is linear.

    The second derivatives of other gates' logits would be rounded otherwise, and one seed would no
    longer give the draws that it has given.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        usual = jax.jit(function, static_argnums=static_argnums)
        quick = jax.jit(function, static_argnums=static_argnums, compiler_options=QUICKLY)

        @functools.wraps(function)
        def call(first: Any, *others: Any) -> Any:
            program = quick if gate(first).linear_in_coordinates else usual
            return program(first, *others)

        return call

    return decorate


@contextmanager
def in_background(task: Callable[[], object]) -> Iterator[None]:
    """Do a task in a thread of its own while the block runs; wait for it at the block's end.

    An error of the task is raised there.
    """
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(task)
        yield
        done.result()


def compile_ahead(program: Any, *arguments: Any) -> None:
    """Compile a program of `jax.jit` as a call with arguments of these shapes would.

    A later call then finds it compiled. Static arguments must be those of the later call.
    """
    program.lower(*arguments).compile()
