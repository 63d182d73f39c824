"""Modes of chains: grouping, names, weights and where chains start, on posteriors made by hand."""

from __future__ import annotations

from typing import Any

import arviz_base
import numpy as np
import pytest
from conftest import CASE
from hypothesis import given
from hypothesis import strategies as st
from xarray import DataTree

import bayesmoe as bm
from bayesmoe.core.measure import FIELDS
from bayesmoe.diagnostics.chain_modes import chain_modes, together
from bayesmoe.diagnostics.posterior import DIMS, describe_model
from bayesmoe.inference.modes import allocate

N, DRAWS = 120, 200
TRUTH = bm.MixingMeasure(
    [[6.0], [2.0], [0.0]], [-3.0, -1.0, 0.0], 1.0, [[4.0], [-6.0], [5.0]], [-3.0, 4.0, -1.0],
    [0.09, 0.16, 0.25],
)  # fmt: skip


def tree(modes: list[bm.MixingMeasure], heights: list[float], starts: list[int]) -> DataTree:
    """One chain near each measure, under a softmax gate with data from `TRUTH`."""
    rng, case = np.random.default_rng(0), CASE["softmax"]
    x = rng.uniform(size=(N, 1))
    shares = np.cumsum(case.probabilities(TRUTH, x), axis=1)
    label = np.argmax(rng.uniform(size=(N, 1)) < shares, axis=1)
    y = case.components(TRUTH, x).rvs(random_state=rng)[np.arange(N), label]
    draws: dict[str, list[np.ndarray]] = {field: [] for field in FIELDS}
    density = []
    for mode in modes:
        # one common factor, so that empty experts and lines that coincide stay so
        jitter = 1 + 0.01 * rng.normal(size=DRAWS)
        chain = {f: np.multiply.outer(jitter, np.asarray(getattr(mode, f))) for f in FIELDS}
        chain["temperature"] = np.ones(DRAWS)
        for field in FIELDS:
            draws[field].append(chain[field])
        each = [bm.MixingMeasure(*(chain[f][i] for f in FIELDS)) for i in range(DRAWS)]
        density.append([np.log(case.density(one, x, y)) for one in each])
    lp = np.asarray(heights)[:, None] + rng.normal(size=(len(modes), DRAWS))
    return arviz_base.from_dict(
        {
            "posterior": {field: np.stack(draws[field]) for field in FIELDS},
            "sample_stats": {"lp": lp},
            "log_likelihood": {"y": np.asarray(density)},
            "observed_data": {"y": y},
            "constant_data": {"x": x},
        },
        dims=DIMS,
        attrs={
            "/": {
                **describe_model(bm.moe("softmax", 3)),
                "start_modes": np.asarray(starts),
                "mode_weights": np.array([0.6, 0.3, 0.1]),
            }
        },
    )


def changed(**fields: Any) -> bm.MixingMeasure:
    return TRUTH.replace(**fields)


def test_modes_are_grouped_ordered_and_weighed() -> None:
    wrong = changed(intercept=[-3.0, 4.0, 1.0])
    found = chain_modes(
        bm.moe("softmax", 3),
        tree([wrong, TRUTH, wrong, TRUTH], [-90.0, -80.0, -90.0, -80.0], [0, 0, 2, 1]),
    )
    assert [mode.chains for mode in found] == [(1, 3), (0, 2)]
    assert found[0].description == "the densest"
    assert found[1].description == "not the densest's expert: 2"
    assert found[0].log_density == pytest.approx(-80, abs=0.3)
    # the data come from the densest, which alone predicts them
    assert found[0].stacking_weight > 0.99
    # mode 0, of weight 0.6, started a chain of either group; mode 1 one, mode 2 one
    assert [mode.evidence_weight for mode in found] == pytest.approx([0.6, 0.4])
    assert "chains 0, 2: not the densest's expert: 2 (mean log density -9" in found[1].text


@pytest.mark.slow
def test_the_prior_may_have_fewer_chains() -> None:
    model = bm.moe("softmax", 3)
    wrong = changed(intercept=[-3.0, 4.0, 1.0])
    both = tree([wrong, TRUTH], [-90.0, -80.0], [0, 1])
    found = chain_modes(model, both)
    assert len(found) == 2
    both["prior"] = both["posterior"].isel(chain=[0])
    assert chain_modes(model, both) == found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (
            changed(
                gate_slope=[[-5.0], [1.0], [0.0]], gate_intercept=[1.0, 2.0, 0.0],
                slope=[[5.0], [-6.0], [4.0]], intercept=[-1.0, 4.0, -3.0],
                variance=[0.25, 0.16, 0.09],
            ),
            "the densest's experts, with another one (0) as reference",
        ),
        (changed(gate_intercept=[-2.0, -1.5, 0.0]), "the densest's experts under another gate"),
        (
            changed(gate_intercept=[-3.0, -60.0, 0.0]),
            "the densest's experts under another gate; expert 1 holds 0.0 of 120 rows: it is empty",
        ),
        (
            changed(slope=[[4.0], [5.1], [5.0]], intercept=[-3.0, -1.0, -1.0]),
            "not the densest's expert: 1; experts 1 and 2 have nearly one line: "
            "one expert split in two",
        ),
    ],
    ids=["reference", "gate", "empty", "split"],
)  # fmt: skip
def test_modes_are_named_by_their_experts(mode: bm.MixingMeasure, words: str) -> None:
    found = chain_modes(bm.moe("softmax", 3), tree([TRUTH, mode], [-80.0, -90.0], [0, 1]))
    assert [one.description for one in found] == ["the densest", words]


def test_chains_that_agree_are_one_mode() -> None:
    found = chain_modes(bm.moe("softmax", 3), tree([TRUTH] * 3, [-80.0] * 3, [0, 1, 2]))
    assert [mode.chains for mode in found] == [(0, 1, 2)]
    assert (found[0].stacking_weight, found[0].evidence_weight) == (1.0, 1.0)


def test_grouping_is_transitive_and_leaves_a_stuck_chain_alone() -> None:
    rng = np.random.default_rng(1)
    quantities = rng.normal(size=(2, 5, 500))
    quantities[1] += 0.7 * np.arange(5)[:, None]  # neighbours overlap, ends do not
    quantities[:, 4] = 3.0  # never moved
    groups = [group.tolist() for group in together(quantities)]
    assert groups == [[0, 1, 2, 3], [4]]
    quantities[1, 3] += 9.0
    assert [group.tolist() for group in together(quantities)] == [[0, 1, 2], [3], [4]]


@pytest.mark.parametrize(
    ("weights", "n", "expected"),
    [
        ([1.0], 3, [0, 0, 0]),
        ([0.6, 0.32, 0.08], 4, [0, 0, 0, 1]),
        ([0.5, 0.5], 4, [0, 0, 1, 1]),
        ([0.9, 0.06, 0.04], 4, [0, 0, 0, 0]),
        ([0.4, 0.35, 0.25], 1, [0]),
    ],
)
def test_chains_start_in_proportion_to_mass(
    weights: list[float], n: int, expected: list[int]
) -> None:
    assert allocate(np.array(weights), n).tolist() == expected


@pytest.mark.slow
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6), st.integers(1, 9))
def test_no_mode_is_off_its_share_by_a_chain(weights: list[float], n: int) -> None:
    shares = np.array(weights) / np.sum(weights)
    counts = np.bincount(allocate(shares, n), minlength=len(shares))
    assert counts.sum() == n
    assert np.all(np.abs(counts - n * shares) < 1)


def test_a_tree_without_chains_is_refused() -> None:
    without = tree([TRUTH], [-80.0], [0])
    del without.attrs["start_modes"]
    with pytest.raises(ValueError, match="at which modes its chains started"):
        chain_modes(bm.moe("softmax", 3), without)
