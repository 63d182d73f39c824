"""The guide to the data sets shows what `bayesmoe compare` writes today."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bayesmoe as bm
from bayesmoe.data.table import read_table, shipped_data_sets
from bayesmoe.diagnostics.comparison import Comparison
from bayesmoe.diagnostics.recommendation import Recommendation

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "guide" / "data_sets.md").read_text("utf-8")
NAMES = sorted(shipped_data_sets())


def load_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_tables", DOCS / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = load_tables()


def stored(name: str) -> pd.DataFrame:
    return pd.read_csv(DOCS / "tables" / f"{name}.csv", keep_default_na=False, dtype=str)


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_has_its_command_table_figure_and_recommendation(name: str) -> None:
    commands = [shlex.split(block.replace("\\\n", "")) for block in re.findall(
        r"```sh\n(bayesmoe .*?)```", PAGE, flags=re.DOTALL)]  # fmt: skip
    assert TABLES.command(name, Path("results")) in commands
    assert f":file: ../tables/{name}.csv\n" in PAGE
    assert f"```{{include}} ../tables/{name}.txt\n" in PAGE
    assert f"(../figures/compare_{name}.png)" in PAGE
    assert (DOCS / "figures" / f"compare_{name}.png").stat().st_size > 10_000
    (chosen,) = stored(name).query("recommended == 'yes'")["model"]
    assert f"Recommended: {chosen} (" in (DOCS / "tables" / f"{name}.txt").read_text("utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_the_tables_have_every_model_and_its_number_of_parameters(name: str) -> None:
    """Three of an expert, two of a logit that is not the reference, and τ if data determine it."""
    labels = {"softmax": 0, "dense-to-sparse": 0, "activation (sigmoid)": 1}
    expected = {f"{label}, k = {k}": 2 * (k - 1) + 3 * k + tau
                for label, tau in labels.items() for k in (2, 3)}  # fmt: skip
    table = stored(name).set_index("model")
    assert table["p"].astype(int).to_dict() == {"one expert": 3} | expected


def test_the_tables_have_the_columns_that_a_comparison_has() -> None:
    """Of the made-up assessment of one model, through CSV as the command writes it."""
    loo = SimpleNamespace(elpd=-1.0, se=0.1, elpd_i=np.full(3, -1 / 3))
    posterior = SimpleNamespace(attrs={"status": "converged", "mode_weight": 1.0})
    assessment: Any = SimpleNamespace(
        name="one", model=bm.moe("softmax", 1), mle=SimpleNamespace(
            log_likelihood=-0.004, status=bm.Status.AT_VARIANCE_FLOOR),
        n_parameters=3, n_undetermined=0, aic=1.0, bic=2.0, icl=3.0, loo=loo, reliable=True,
        bad_rows=(), refitted_rows=(), effective_experts=1.0, posterior=posterior,
        checks=SimpleNamespace(verdict=SimpleNamespace(label="passed")),
    )  # fmt: skip
    nothing: Any = None
    frame = Comparison(nothing, (assessment,), Recommendation("one", "")).to_frame()
    shown = TABLES.shown(frame.reset_index())
    assert shown.loc[0].tolist() == [
        "one", "3", "0.00", "2.0", "−1.0", "best", "at variance floor", "yes",
    ]  # fmt: skip
    for name in NAMES:
        assert list(stored(name).columns) == list(shown.columns)


@pytest.mark.slow
def test_a_row_agrees_with_a_fit_made_now() -> None:
    fit = bm.fit_mle(bm.moe("softmax", 2), *read_table("co2", "co2", ["gnp"]))
    row = stored("co2").set_index("model").loc["softmax, k = 2"]
    assert fit.converged
    assert row["log-likelihood"] == f"{fit.log_likelihood:.2f}".replace("-", "−")
    assert row["BIC"] == f"{8 * np.log(28) - 2 * fit.log_likelihood:.1f}"
