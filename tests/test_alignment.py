"""Naming experts alike, against the gauge written out again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import arviz_base
import jax
import numpy as np
import pytest
import xarray as xr
from conftest import CASE, GateCase
from xarray import DataTree

import bayesmoe as bm
from bayesmoe.core.measure import FIELDS
from bayesmoe.diagnostics.alignment import align, mirrored

N_CHAINS, N_DRAWS, D = 2, 30, 2

Blocks = dict[str, np.ndarray]


def blocks_of(measure: bm.MixingMeasure) -> Blocks:
    return {field: np.asarray(getattr(measure, field)) for field in FIELDS}


def draws_around(reference: bm.MixingMeasure, rng: np.random.Generator) -> bm.MixingMeasure:
    """Draws of shape (chain, draw) near the reference, its zeros kept."""

    def spread(values: np.ndarray) -> np.ndarray:
        shape = (N_CHAINS, N_DRAWS, *values.shape)
        return values * (1 + 0.05 * rng.standard_normal(shape))

    return bm.MixingMeasure(**{name: spread(block) for name, block in blocks_of(reference).items()})


def separated(case: GateCase, k: int) -> bm.MixingMeasure:
    """Experts far apart, in an order of no meaning."""
    i = np.arange(k)
    return case.measure(k, k, D).replace(
        slope=np.stack([2.0 - 4.0 * i, 1.0 + i], axis=1),
        intercept=(-1.0) ** i * 3,
        variance=0.2 + 0.5 * i,
    )


def moved_at_random(
    case: GateCase, draws: bm.MixingMeasure, rng: np.random.Generator
) -> tuple[bm.MixingMeasure, int]:
    """Each draw under an element of the gauge that keeps the last expert at zero.

    Also the number of draws whose reference expert has become another one.
    """
    blocks, changed = blocks_of(draws), 0
    k = draws.n_experts
    result = {name: block.copy() for name, block in blocks.items()}
    for index in np.ndindex(*draws.batch_shape):
        order = rng.permutation(k)
        if not case.translates and not (case.flip and k == 2):
            order = np.append(rng.permutation(k - 1), k - 1)
        for name in set(FIELDS) - {"temperature"}:
            result[name][index] = blocks[name][index][order]
        if order[-1] != k - 1:
            changed += 1
            result["gate_intercept"][index] -= result["gate_intercept"][index][-1]
            if case.translates:
                result["gate_slope"][index] -= result["gate_slope"][index][-1]
            else:  # (0, u) and (-u, 0) differ by a constant in both logits
                result["gate_slope"][index] = [-blocks["gate_slope"][index][0], np.zeros(D)]
    return bm.MixingMeasure(**result), changed


def log_densities(case: GateCase, draws: bm.MixingMeasure) -> np.ndarray:
    """log g at 20 points for the first draws of each chain."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(20, D)), 3 * rng.normal(size=20)
    few = draws[:, :10]
    return np.log([case.density(few[i], x, y) for i in np.ndindex(*few.batch_shape)])


def assert_same(one: bm.MixingMeasure, two: bm.MixingMeasure, tolerance: float = 1e-12) -> None:
    for field in FIELDS:
        np.testing.assert_allclose(
            getattr(one, field), getattr(two, field), rtol=0, atol=tolerance, err_msg=field
        )


@pytest.mark.parametrize("k", [2, 3])
def test_names_are_restored_and_densities_kept(
    case: GateCase, k: int, rng: np.random.Generator
) -> None:
    reference = separated(case, k)
    draws = draws_around(reference, rng)
    moved, changed = moved_at_random(case, draws, rng)
    exchangeable = case.translates or (case.flip and k == 2)
    assert (changed > 10) == exchangeable
    before = log_densities(case, draws)
    np.testing.assert_allclose(log_densities(case, moved), before, rtol=1e-9, atol=1e-9)
    renamed = np.mean(np.asarray(moved.slope) != np.asarray(draws.slope))
    assert (renamed > 0.2) == (exchangeable or k > 2)
    assert_same(align(moved, case.gate(k), reference), draws)


@pytest.mark.parametrize("label", ["gelu", "softplus", "relu", "user_lambda"])
def test_without_a_flip_the_reference_expert_keeps_its_place(label: str) -> None:
    case = CASE[label]
    measure = separated(case, 2)
    swapped = {name: block[::-1] for name, block in blocks_of(measure).items() if block.ndim}
    assert_same(align(measure, case.gate(2), measure.replace(**swapped)), measure)


def test_under_an_even_activation_slopes_take_the_signs_of_the_reference() -> None:
    case = CASE["user_lambda"]
    reference, signs = separated(case, 3), np.array([[1.0], [-1.0], [1.0]])
    turned = reference.replace(gate_slope=signs * np.asarray(reference.gate_slope))
    assert_same(mirrored(turned, case.gate(), reference), reference)
    assert_same(mirrored(turned, CASE["sigmoid"].gate(), reference), turned)


def test_a_reference_expert_that_is_not_zero_does_not_change_the_density() -> None:
    case = CASE["sigmoid"]
    measure = separated(case, 2).replace(gate_slope=[[1.2, -0.4], [0.7, 0.9]])
    blocks = blocks_of(measure)
    other = measure.replace(**{name: blocks[name][::-1] for name in FIELDS[3:]})
    aligned = align(measure, case.gate(2), other)
    np.testing.assert_array_equal(aligned.slope, blocks["slope"][::-1])
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(20, D)), 3 * rng.normal(size=20)
    np.testing.assert_allclose(case.density(aligned, x, y), case.density(measure, x, y), rtol=1e-12)


def test_a_coordinate_in_which_experts_agree_does_not_decide() -> None:
    """Nearly parallel lines, slopes in the other order than the reference's by a hair."""
    case = CASE["softmax"]
    gate, ones = ([[3.0], [0.0]], [0.5, 0.0], 1.0), [0.5, 0.5]
    reference = bm.MixingMeasure(*gate, [[2.05], [1.95]], [0.0, 10.0], ones)
    estimate = bm.MixingMeasure(*gate, [[2.0000], [2.0001]], [0.1, 9.9], ones)
    assert_same(align(estimate, case.gate(2), reference), estimate)


@pytest.mark.parametrize("origin", [0.0, 2000.0])
@pytest.mark.parametrize("kind", ["measure", "tree"])
def test_names_do_not_depend_on_where_covariates_are_counted_from(
    origin: float, kind: str, rng: np.random.Generator
) -> None:
    """Parallel lines, 15 standard deviations apart, over years: slopes are noise."""
    case, shape, levels = CASE["softmax"], (2, 200), np.array([0.0, 1.5])
    x = origin + np.linspace(-15, 15, 31)

    def measure(slope: np.ndarray, level: np.ndarray) -> bm.MixingMeasure:
        gate = np.zeros((*slope.shape, 1)), np.zeros(slope.shape), np.ones(slope.shape[:-1])
        variance = np.full(slope.shape, 0.09)
        return bm.MixingMeasure(*gate, slope[..., None], level - slope * origin, variance)

    noise = rng.standard_normal((2, *shape, 2))
    draws = measure(0.02 + 0.008 * noise[0], levels + 0.1 * noise[1])
    reference = measure(np.array([0.022, 0.018]), levels)
    if kind == "measure":
        assert_same(align(draws, case.gate(2), reference, x), draws)
        return
    tree = make_tree(draws, ["year"])
    tree["constant_data"] = xr.Dataset({"x": (("covariate", "obs"), x[None])})
    got = align(tree, case.gate(2), reference)["posterior"].to_dataset()
    assert_same(bm.MixingMeasure(**{name: got[name].to_numpy() for name in FIELDS}), draws)


def test_what_tells_experts_apart_is_not_outvoted(rng: np.random.Generator) -> None:
    """Parallel planes 25 standard deviations apart, in ten covariates.

    In units of overall spreads they are two units apart, and the noise of each slope is one.
    """
    case, shape, k, d = CASE["softmax"], (2, 500), 2, 10
    draws = bm.MixingMeasure(
        *(np.zeros((*shape, k, d)), np.zeros((*shape, k)), np.ones(shape)),
        1 + 0.1 * rng.standard_normal((*shape, k, d)),
        np.array([0.0, 2.5]) + 0.1 * rng.standard_normal((*shape, k)),
        np.full((*shape, k), 0.3),
    )
    swapped = rng.random(shape) < 0.5
    order = np.where(swapped[..., None], [1, 0], [0, 1])
    blocks = blocks_of(draws)
    lines = {
        "slope": np.take_along_axis(blocks["slope"], order[..., None], axis=-2),
        "intercept": np.take_along_axis(blocks["intercept"], order, axis=-1),
    }
    # a maximum is nearer to the middle than draws are
    off = 0.05 * rng.standard_normal((k, d))
    reference = draws[0, 0].replace(slope=1 + off, intercept=[0.0, 2.5])
    assert_same(align(draws.replace(**lines), case.gate(k), reference), draws)


def test_covariates_of_other_data_are_refused() -> None:
    measure = separated(CASE["softmax"], 2)
    with pytest.raises(ValueError, match="x has 1 covariates, the estimate 2"):
        align(measure, CASE["softmax"].gate(2), measure, np.arange(3.0))


def make_tree(draws: bm.MixingMeasure, covariates: Sequence[str] = ("age", "dose")) -> DataTree:
    shape = draws.batch_shape
    total = np.arange(np.prod(shape), dtype=float).reshape(shape)
    dims = {"gate_slope": ["expert", "covariate"], "gate_intercept": ["expert"]}
    dims |= {"slope": dims["gate_slope"], "intercept": ["expert"], "variance": ["expert"]}
    return arviz_base.from_dict(
        {"posterior": blocks_of(draws), "sample_stats": {"log_likelihood": total}},
        dims=dims,
        coords={"expert": np.arange(draws.n_experts), "covariate": list(covariates)},
        attrs={"/": {"status": "converged"}},
    )


@pytest.mark.parametrize("label", ["dense_to_sparse", "sigmoid"])
def test_data_trees_and_measures_are_aligned_alike(label: str, rng: np.random.Generator) -> None:
    case = CASE[label]
    reference = separated(case, 2)
    moved, _ = moved_at_random(case, draws_around(reference, rng), rng)
    tree = make_tree(moved)
    untouched = tree.copy(deep=True)
    aligned = align(tree, case.gate(2), reference)
    group = aligned["posterior"].to_dataset()
    assert_same(
        bm.MixingMeasure(**{field: group[field].to_numpy() for field in FIELDS}),
        align(moved, case.gate(2), reference),
        0.0,
    )
    assert tree.identical(untouched)
    restored = aligned.copy()
    restored["posterior"] = untouched["posterior"]
    kept = aligned["sample_stats"].to_dataset().drop_vars("reference")
    restored["sample_stats"] = DataTree(kept)
    assert restored.identical(untouched)  # coordinates, attributes and other groups are kept
    assert group["slope"].dims == ("chain", "draw", "expert", "covariate")
    np.testing.assert_array_equal(group["covariate"], ["age", "dose"])
    assert group.attrs == untouched["posterior"].attrs


def test_the_order_of_a_data_trees_dimensions_does_not_matter(rng: np.random.Generator) -> None:
    case = CASE["softmax"]
    reference = separated(case, 3)
    moved, _ = moved_at_random(case, draws_around(reference, rng), rng)
    tree = make_tree(moved)
    turned = tree.copy()
    turned["posterior"] = DataTree(tree["posterior"].to_dataset().transpose("draw", ..., "chain"))
    first, second = (align(one, case.gate(3), reference) for one in (tree, turned))
    assert first["posterior"].to_dataset().equals(second["posterior"].to_dataset())


def test_single_measures_are_aligned_like_draws(case: GateCase, rng: np.random.Generator) -> None:
    reference = separated(case, 3)
    moved, _ = moved_at_random(case, draws_around(reference, rng), rng)
    together = align(moved, case.gate(3), reference)
    for index in [(0, 0), (1, 7), (1, 29)]:
        assert_same(align(moved[index], case.gate(3), reference), together[index], 0.0)


def test_one_expert_is_left_alone(case: GateCase) -> None:
    measure = case.measure(0, k=1)
    assert_same(align(measure, case.gate(1), measure.replace(intercept=[9.0])), measure)


def test_the_best_names_of_all_permutations_are_chosen(rng: np.random.Generator) -> None:
    """By the criterion of the documentation: for equal units plain least squares."""
    k, gate = 4, CASE["softmax"].gate(4)
    reference = CASE["softmax"].measure(1, k, 1)
    draws = bm.MixingMeasure(
        *(np.zeros((50, k, 1)), np.zeros((50, k)), np.ones(50)),
        *(rng.normal(size=(50, k, 1)), rng.normal(size=(50, k)), rng.lognormal(size=(50, k))),
    )

    def atoms(measure: bm.MixingMeasure) -> np.ndarray:
        parts = (measure.slope[..., 0], measure.intercept, np.log(measure.variance))
        return np.stack([np.asarray(part) for part in parts], axis=-1)

    ours, target = atoms(draws), atoms(reference)
    unit = np.concatenate([ours.reshape(-1, 3), target]).std(axis=0)
    permutations = list(itertools.permutations(range(k)))
    cost = [(((ours[:, p] - target) / unit) ** 2).sum((1, 2)) for p in permutations]
    best = np.array(permutations)[np.argmin(cost, axis=0)]
    expected = np.take_along_axis(ours, best[..., None], axis=1)
    np.testing.assert_allclose(atoms(align(draws, gate, reference)), expected, rtol=1e-12)


def test_measures_of_another_model_are_refused() -> None:
    case = CASE["softmax"]
    estimate, gate = separated(case, 3), case.gate(3)
    with pytest.raises(ValueError, match=r"\(k, d\) = \(3, 2\), the reference \(2, 2\)"):
        align(estimate, gate, separated(case, 2))
    with pytest.raises(ValueError, match=r"\(k, d\) = \(3, 2\), the reference \(3, 1\)"):
        align(estimate, gate, case.measure(0, 3, 1))
    batch = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), estimate)
    with pytest.raises(ValueError, match="use a single measure"):
        align(estimate, gate, batch)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_experts_that_are_not_finite_are_refused(value: float) -> None:
    case = CASE["softmax"]
    good = separated(case, 2)
    bad = good.replace(intercept=[0.0, value])
    for estimate, reference in ((bad, good), (good, bad)):
        with pytest.raises(ValueError, match="not finite, so it cannot be named"):
            align(estimate, case.gate(2), reference)
