"""Compiled programs are let go before the operating system ends the process."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bayesmoe.study import engine, programs
from bayesmoe.study.plan import load_plan
from bayesmoe.study.programs import bound_compiled_programs

linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="a limit of Linux")


@jax.jit
def _double(x: jax.Array) -> jax.Array:
    return 2 * x


def _size() -> int:
    return _double._cache_size()


@pytest.fixture(autouse=True)
def _compiled() -> None:
    assert _double(jnp.ones(3)).shape == (3,)
    assert _size() == 1


@pytest.mark.slow
@linux
def test_a_crowded_process_forgets_its_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_SHARE", 0.0)
    assert bound_compiled_programs()
    assert _size() == 0
    assert _double(jnp.ones(3)).tolist() == [2.0, 2.0, 2.0]


def test_one_within_the_limit_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_SHARE", 1.0)
    assert not bound_compiled_programs()
    assert _size() == 1


def test_without_a_limit_nothing_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(programs, "_SHARE", 0.0)
    monkeypatch.setattr(programs, "_MAPS", tmp_path / "none")
    assert not bound_compiled_programs()
    assert _size() == 1


def test_a_study_looks_after_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """In between, no more can be compiled than one cell needs."""
    seen: list[str] = []
    plan = load_plan("quick")
    monkeypatch.setattr(engine, "compute_cell", lambda plan, cell: seen.append("computed"))
    monkeypatch.setattr(engine, "bound_compiled_programs", lambda: seen.append("looked"))
    engine.attempt_cells(plan, [next(iter(plan.cells()))])
    assert seen == ["computed", "looked"]
