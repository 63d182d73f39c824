"""The Python of README and guides runs as printed, and the manual can be built."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from bayesmoe.study.plan import parse_plan

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted((ROOT / "docs" / "guide").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)


def run(page: Path) -> None:
    mpl.use("Agg")
    names: dict[str, Any] = {}
    for code in blocks(page, "python"):  # one session: later blocks use the names of earlier ones
        exec(compile(code, page.name, "exec"), names)
    plt.close("all")


@pytest.mark.slow
def test_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run(ROOT / "README.md")
    printed = capsys.readouterr().out
    assert "a maximum" in printed
    assert "elpd_loo" in printed


@pytest.mark.slow
@pytest.mark.parametrize("page", [ROOT / "docs" / "index.md", *GUIDES], ids=lambda page: page.stem)
def test_a_guide_runs(page: Path) -> None:
    run(page)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "guide" / "studies.md"])
def test_plans_can_be_run(page: Path) -> None:
    (plan,) = blocks(page, "toml")
    assert parse_plan(plan, page.name).replicates == 20


def test_every_status_and_check_is_explained() -> None:
    """Tables of the guides name all that can occur."""
    from bayesmoe.inference.outcome import Status

    estimates = (ROOT / "docs" / "guide" / "estimates.md").read_text("utf-8")
    assert [status.name for status in Status if f"`{status.name}`" not in estimates] == []


def test_every_public_name_is_in_the_reference() -> None:
    import bayesmoe

    reference = (ROOT / "docs" / "api.md").read_text("utf-8")
    documented = set(re.findall(r"auto(?:function|class):: (\w+)", reference))
    assert set(bayesmoe.__all__) - {"GATES"} <= documented


@pytest.mark.slow
def test_the_manual_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    built = subprocess.run(
        [*command, str(ROOT / "docs"), str(tmp_path)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "guide" / "posteriors.html").exists()


def test_no_two_commands_write_to_one_directory() -> None:
    """Only a study's commands, on one page, go on where another stopped."""
    found = []
    for page in (ROOT / "README.md", *GUIDES):
        commands = "".join(blocks(page, "sh")).replace("\\\n", " ")
        written = re.findall(r"bayesmoe (\w+ \w+).* --out (\S+)", commands)
        found += {(page, out) if what.startswith("study") else (what, out) for what, out in written}
    outs = [out for _, out in found]
    assert len(outs) > 8
    assert len(set(outs)) == len(outs)
