"""The README's Python runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_the_ten_lines_run(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    exec(code, {})
    printed = capsys.readouterr().out
    assert "a maximum" in printed


def test_the_plan_is_one() -> None:
    from bayesmoe.study.plan import parse_plan

    (plan,) = blocks("toml")
    assert parse_plan(plan, "README").replicates == 20
