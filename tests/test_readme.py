"""The README's Python runs as printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_the_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    mpl.use("Agg")
    names: dict[str, Any] = {}
    for code in blocks("python"):  # one session: later blocks use the names of earlier ones
        exec(code, names)
    plt.close("all")
    printed = capsys.readouterr().out
    assert "a maximum" in printed
    assert "elpd_loo" in printed


def test_the_plan_is_one() -> None:
    from bayesmoe.study.plan import parse_plan

    (plan,) = blocks("toml")
    assert parse_plan(plan, "README").replicates == 20
