"""Not a test: a study that is killed again and again, for `test_kill`.

Real are the store, the engine with its threads, growth of the plan, processes, and SIGKILL; made up
is what `compute_cell` gives. A process is forked for every run before JAX has started any thread,
which takes a fraction of the time that a new interpreter would need.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fabricated import fabricate, make_plan

from bayesmoe.study import engine, store
from bayesmoe.study.columns import Arrays
from bayesmoe.study.engine import in_threads, run_study
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.store import Store

STAGES = 5
KILLS = 5  # in each stage
MOST_WRITES = 100  # before a kill: four cells, or all of a new store's metadata
SLOWNESS = 0.005  # seconds for each cell


def stage(number: int) -> Plan:
    """Each stage extends the one before; the last is the whole study."""
    return make_plan(
        gates=["softmax", "dense_to_sparse"][: 1 + number // 2],
        sizes=[100, 1000] if number == 0 else [100, 300, 1000],
        n_experts=[2, 9][: 1 + number // 3],
        replicates=12 + number // 2,
    )


def _compute(plan: Plan, cell: Cell) -> Arrays:
    time.sleep(SLOWNESS)
    if cell.n == 300 and cell.replicate == 1:
        raise ArithmeticError("this cell always fails")
    return fabricate(plan, cell)


def _die_while_writing(writes: int, delay: float) -> None:
    """Have this process killed some time after it has begun to write so often."""
    count = itertools.count(1)

    def counted(write: Callable[..., None]) -> Callable[..., None]:
        def counting(*arguments: Any) -> None:
            if next(count) == writes:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            write(*arguments)

        return counting

    Store._put = counted(Store._put)
    store.write_bytes = counted(store.write_bytes)


def _forked(directory: Path, plan: Plan, *death: Any) -> bool:
    """Run the study in a child, which may have to die; whether it did."""
    child = os.fork()
    if not child:
        engine.compute_cell = _compute
        if death:
            _die_while_writing(*death)
        try:
            with Store.open(directory, plan) as opened:
                run_study(plan, opened, execute=functools.partial(in_threads, n_threads=2))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a run ended with an error")
    return os.WIFSIGNALED(status)


def main(whole: Path, broken: Path) -> None:
    """Run the whole study undisturbed, and another one with all stages and kills."""
    _forked(whole, stage(STAGES - 1))
    rng, killed = random.Random(20260101), []
    for number, _ in itertools.product(range(STAGES), range(KILLS)):
        death = rng.randint(1, MOST_WRITES), rng.uniform(0.0, 0.002)
        killed.append(_forked(broken, stage(number), *death))
    _forked(broken, stage(STAGES - 1))
    print(json.dumps(killed))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
