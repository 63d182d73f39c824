"""Slopes of a study's data set: what enters them, and the rates that they are set beside."""

from __future__ import annotations

import numpy as np
import pytest

from bayesmoe.study.expected import expected_rate
from bayesmoe.study.scenario import scenario

ACTIVATION = "activation_dense_to_sparse"


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
