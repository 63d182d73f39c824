"""How programs are compiled, which takes most of the time of a first fit to small data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax

from bayesmoe.core.observations import SMALLEST_CAPACITY

Options = dict[str, bool | int | str]

#: compiler options that take two thirds of the time for programs of many small parts
QUICKLY: Options = {"xla_cpu_use_fusion_emitters": False}
#: and these as little time as can be, for programs that run once and have little to do
UNOPTIMISED: Options = QUICKLY | {"xla_backend_optimization_level": 0}
#: for programs that run long: XLA leaves half of a CPU's AVX-512 unused, if it has that, which
#: makes the likelihood's gradient a fifth slower and its Hessian a twentieth
WIDE: Options = {"xla_cpu_prefer_vector_width": 512}

Function = Callable[..., Any]


def jit_quickly(static_argnums: int | tuple[int, ...]) -> Callable[[Function], Program]:
    """A decorator: `jax.jit` for programs that run seldom, compiled `QUICKLY` where that can be."""
    return functools.partial(Program, static_argnums, QUICKLY)


def jit_unoptimised(static_argnums: int | tuple[int, ...]) -> Callable[[Function], Program]:
    """A decorator: `jax.jit` for programs that take far longer to compile than to run, anywhere.

    They are compiled `UNOPTIMISED` where that can be.
    """
    return functools.partial(Program, static_argnums, UNOPTIMISED)


def jit_wide(static_argnums: int | tuple[int, ...]) -> Callable[[Function], Program]:
    """A decorator: `jax.jit` for programs that run long, compiled `WIDE` where that can be."""
    return functools.partial(Program, static_argnums, WIDE)


class Program:
    """What `jax.jit` makes of a function, with options where the compiler knows them.

    Attributes
    ----------
    function
        The function itself, for use within another program, whose options hold there.
    """

    def __init__(
        self, static_argnums: int | tuple[int, ...], options: Options, function: Function
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self._make = functools.partial(jax.jit, function, static_argnums=static_argnums)
        self._options = options

    @functools.cached_property
    def _program(self) -> Any:
        # not before the first call: to ask the compiler starts JAX's devices
        return self._make(compiler_options=self._options if _knows_options() else None)

    def __call__(self, *arguments: Any) -> Any:
        return self._program(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """As `jax.jit` does, to be compiled ahead."""
        return self._program.lower(*arguments)

    def eval_shape(self, *arguments: Any) -> Any:
        """As `jax.jit` does: the results' shapes."""
        return self._program.eval_shape(*arguments)


@functools.cache
def _knows_options() -> bool:
    """Whether the compiler knows options of CPUs, as those of accelerators do not."""
    try:
        jax.jit(lambda: 0.0, compiler_options=UNOPTIMISED | WIDE).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def jit_by_size(static_argnums: int | tuple[int, ...], data: int) -> Callable[[Function], Function]:
    """A decorator: `jit_quickly` for few observations, where compilation takes longer than the run.

    ``data`` is the position of the observations. Those beyond the smallest storage get `jit_wide`,
    whose programs take a quarter of the time less.
    """

    def decorate(function: Function) -> Function:
        usual = jit_wide(static_argnums)(function)
        quick = jit_quickly(static_argnums)(function)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            few = arguments[data].y.shape[-2] <= SMALLEST_CAPACITY
            return (quick if few else usual)(*arguments)

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
    """Compile a program of `jax.jit`, or of the above, as a call with these arguments would.

    Of arguments that are not static the shapes alone matter. A later call finds it compiled.
    """
    program.lower(*arguments).compile()
