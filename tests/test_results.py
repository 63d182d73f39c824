"""Slopes of a study's data set: what enters them, and the rates that they are set beside."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from fabricated import fabricate, make_plan

import bayesmoe as bm
from bayesmoe.report._tables import run_rows
from bayesmoe.study.columns import Arrays
from bayesmoe.study.dataset import load_results
from bayesmoe.study.expected import expected_rate
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.results import measure_slopes, settings
from bayesmoe.study.scenario import scenario
from bayesmoe.study.store import Store
from bayesmoe.study.stored import Stored

ACTIVATION = "activation_dense_to_sparse"


def stored(path: Path, plan: Plan, change: Callable[[Cell, Arrays], None]) -> xr.Dataset:
    """The results of a study whose made-up cells ``change`` has altered."""
    with Store.open(path, plan) as store:
        for cell in plan.cells():
            arrays = fabricate(plan, cell)
            change(cell, arrays)
            store.write(cell, arrays)
    return load_results(Stored(path), plan)


# --- what enters


def test_the_map_is_compared_with_mles_that_converged(tmp_path: Path) -> None:
    """Where there is no MLE the optimiser stopped somewhere, and MAP's distance is from there."""
    plan = make_plan(estimators=["mle", "map"], sizes=[100, 1000, 10_000], replicates=6)

    def change(cell: Cell, arrays: Arrays) -> None:
        # at the smallest n, four of six MLEs of separated data
        found = cell.n > 100 or cell.replicate < 2
        arrays["converged"][...] = [[found, True]]
        arrays["map_mle_distance"][...] = 5 / cell.n if found else 1e3

    results = stored(tmp_path / "s", plan, change)
    slopes = measure_slopes(plan, results).set_index("quantity").loc["map_mle_distance"]
    assert slopes["slope"] == pytest.approx(-1.0)
    assert slopes["n_used"] == 14
    assert slopes["n_total"] == 18
    (study,) = settings(results)
    (row,) = run_rows(study, {"softmax": "softmax"})
    assert row["distance"] == "0.05 → 0.0005"


def test_a_loss_that_grows_follows_no_law(tmp_path: Path) -> None:
    plan = make_plan(estimators=["mle"], sizes=[100, 1000, 10_000], replicates=8)

    def change(cell: Cell, arrays: Arrays) -> None:
        arrays["converged"][...] = True
        wobble = 1 + 0.01 * cell.replicate
        arrays["loss"][...], arrays["normalised_loss"][...] = wobble * cell.n, wobble

    slopes = measure_slopes(plan, stored(tmp_path / "s", plan, change)).set_index("quantity")
    assert slopes.loc["loss", "law"] == "none of these"
    assert slopes.loc["normalised_loss", "law"] == "constant"


# --- expected rates


@pytest.mark.parametrize("surplus", [0, 1])
def test_the_temperature_has_one_rate_as_it_is_of_no_cell(surplus: int) -> None:
    gate = scenario("lambda", ACTIVATION).gate
    kinds = {expected_rate(gate, "temperature", surplus, cell) for cell in ("single", "shared")}
    assert kinds == {gate.expected_rate("temperature", over_specified=surplus > 0)}


def test_theory_speaks_of_shared_cells_only_where_there_are_experts_to_spare() -> None:
    gate = scenario("lambda").gate
    for block in ("gate_slope", "slope", "intercept", "variance"):
        assert np.isnan(expected_rate(gate, block, 0, "shared").exponent)
        assert expected_rate(gate, block, 0) == expected_rate(gate, block, 0, "single")
        assert expected_rate(gate, block, 1) == expected_rate(gate, block, 1, "shared")
        assert expected_rate(gate, block, 1, "single").exponent == -0.5
        assert np.isnan(expected_rate(gate, block, 2).exponent)


@pytest.mark.parametrize("top_k", [1, 2])
def test_theory_of_a_top_k_gate_with_experts_to_spare_asks_for_a_larger_k(top_k: int) -> None:
    """Nguyen et al. (ICLR 2024): at least K plus the number of experts added."""
    truth = scenario("lambda", "top_k_sparse", top_k=top_k)
    with pytest.raises(ValueError, match="raise top_k by the number of experts added"):
        bm.identify(bm.moe(truth.gate, 3), truth)
    assert expected_rate(truth.gate, "slope", 0).exponent == -0.5
    for block, cell in itertools.product(("slope", "intercept"), ("single", "shared")):
        assert np.isnan(expected_rate(truth.gate, block, 1, cell).exponent)
    loss = expected_rate(truth.gate, "loss", 1).exponent
    assert loss == 0 if top_k == 1 else np.isnan(loss)  # the ray of K = 1 is there all the same
