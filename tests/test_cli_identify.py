"""`bayesmoe identify`: misuse in one line, and what it says of each gate."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from bayesmoe.cli import app

ACTIVATION = ["--gate", "activation_dense_to_sparse", "--activation"]


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["identify", *arguments], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    return result.stdout


def row(text: str, block: str) -> list[str]:
    """The cells of a row of the table of rates."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"{block}  "))
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def verdicts(text: str) -> list[str]:
    """Of the table of independence, first and second order, general and opposite slopes."""
    return [line.split()[-1] for line in text.splitlines() if line.startswith(("first", "second"))]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gate", "soft", "--experts", "2"], "unknown gate 'soft'"),
        (["--gate", "softmax", "--experts", "0"], "n_experts must be a whole number"),
        (["--gate", "softmax", "--experts", "1"], "has 1 experts, the truth 2"),
        (["--gate", "softmax", "--experts", "2", "--top-k", "2"], "has no option 'top_k'"),
        (["--gate", "softmax", "--experts", "2", "--scenario", "mu"], "unknown scenario 'mu'"),
        (["--gate", "softmax", "--experts", "3", "--split", "2"], "true experts 0 to 1, got 2"),
        ([*ACTIVATION, "sine", "--experts", "2"], "unknown activation 'sine'"),
        (["--gate", "top_k_sparse", "--experts", "3"], "raise top_k"),
    ],
)
def test_misuse_is_one_line(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["identify", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr


@pytest.mark.slow
def test_dense_to_sparse_has_one_ray() -> None:
    text = printed("--gate", "dense_to_sparse", "--experts", "2")
    assert "dense-to-sparse gate, exact, k = 2, at the truth 'lambda'" in text
    assert "eigenvalues: 1 zero, " in text
    ray = "scaling of gate_slope, gate_intercept and temperature together"
    assert f"- {ray}: the density stays the same" in text
    assert row(text, "temperature") == [
        "temperature", "temperature", "zero", "none (flat)", "none (ray)",
    ]  # fmt: skip
    assert row(text, "slope")[2:] == ["t^2", "n^-1/2", "n^-1/2"]
    assert "independence" not in text


@pytest.mark.slow
def test_softmax_over_specified() -> None:
    text = printed("--gate", "softmax", "--experts", "3", "--split", "0")
    assert "fitted experts 0 and 1 share one true expert" in text
    assert "- intercept of experts 0 and 1 moving apart: divergence like t^8 at best" in text
    assert row(text, "intercept") == ["intercept", "intercept[0]", "t^8", "n^-1/8", "n^-1/8"]
    assert row(text, "gate_slope")[2:] == ["t^4", "n^-1/4", "n^-1/8"]


@pytest.mark.slow
def test_softmax_with_all_gates_free() -> None:
    text = printed("--gate", "softmax", "--experts", "2", "--free-reference")
    assert "- translation of all gate_slopes together" in text
    assert "- translation of all gate_intercepts together" in text


@pytest.mark.slow
def test_an_activation_gate_shows_its_independence() -> None:
    text = printed(*ACTIVATION, "sigmoid", "--experts", "2")
    assert "none: the model is regular here" in text
    verdicts = [
        line.split()[-1] for line in text.splitlines() if line.startswith(("first", "second"))
    ]
    assert verdicts == ["holds", "holds", "fails", "fails"]
    text = printed(*ACTIVATION, "relu", "--experts", "2")
    assert "scaling of gate_slope, gate_intercept and temperature together" in text
    verdicts = [
        line.split()[-1] for line in text.splitlines() if line.startswith(("first", "second"))
    ]
    assert verdicts == ["fails"] * 4


@pytest.mark.slow
def test_a_top_k_gate_jumps() -> None:
    text = printed("--gate", "top_k_sparse", "--experts", "2", "--top-k", "1")
    assert "The density jumps as the gate moves" in text
    assert row(text, "gate_slope")[2:] == ["-", "not clear", "none (ray)"]
