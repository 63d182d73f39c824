"""Information, null spaces and orders of degeneracy, against closed forms and formulas in NumPy."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from conftest import CASE, GateCase

import bayesmoe as bm
from bayesmoe.core.measure import FIELDS
from bayesmoe.models import ActivationDenseToSparse, DenseToSparse, Softmax
from bayesmoe.study.scenario import Scenario
from bayesmoe.theory._degeneracy import DISPLACEMENTS, Neighbourhood, judge
from bayesmoe.theory._fisher import Parameters
from bayesmoe.theory._fisher import expected_information as information_of
from bayesmoe.theory.identifiability import (
    Identification,
    Information,
    _block_rate,
    expected_information,
    identify,
    null_space,
    observed_information,
    split_expert,
)

X = (np.arange(64)[:, None] + 0.5) / 64


@functools.cache
def truth(label: str) -> Scenario:
    """A soft gate over two lines, for every case of conftest."""
    return bm.scenario("weak", CASE[label].gate(2))


@functools.cache
def information(label: str, k: int = 2, *, free_reference: bool = False) -> Information:
    measure = split_expert(truth(label).measure, k, 0)
    parameters = Parameters.of(truth(label).gate, measure, free_reference=free_reference)
    return information_of(parameters, X)


def words(information: Information) -> list[str]:
    return [direction.words for direction in null_space(information).directions]


def moved(case: GateCase, measure: bm.MixingMeasure, place: np.ndarray, x: Any, y: Any) -> Any:
    """The oracle's log density with all parameters, flattened, at ``place``."""
    shapes = [np.shape(getattr(measure, field)) for field in FIELDS]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    parts = [p.reshape(s) for p, s in zip(np.split(place, ends), shapes, strict=True)]
    return np.log(case.density(bm.MixingMeasure(*parts), x, y))


def flat(measure: bm.MixingMeasure) -> np.ndarray:
    return np.concatenate([np.ravel(getattr(measure, field)) for field in FIELDS])


# ---------------------------------------------------------------- information


def test_one_expert_is_linear_regression() -> None:
    measure = bm.MixingMeasure([[0.0, 0.0]], [0.0], 1.0, [[2.0, -1.0]], [0.5], [0.3])
    x = np.random.default_rng(0).random((50, 2))
    found = expected_information(bm.moe("softmax", 1), measure, x)
    assert found.names == ("slope[0, 0]", "slope[0, 1]", "intercept[0]", "variance[0]")
    design = np.column_stack([x, np.ones(50)])
    expected = np.zeros((4, 4))
    expected[:3, :3] = design.T @ design / 50 / 0.3
    expected[3, 3] = 1 / (2 * 0.3**2)
    np.testing.assert_allclose(found.matrix, expected, atol=1e-8)
    assert found.error is not None
    assert found.error < 1e-7


@pytest.mark.parametrize(
    "label",
    [
        "sigmoid",
        pytest.param("softmax", marks=pytest.mark.slow),
        pytest.param("dense_to_sparse", marks=pytest.mark.slow),
    ],
)
def test_expected_information_is_the_mean_of_score_products(label: str) -> None:
    case, measure, rng, n = CASE[label], truth(label).measure, np.random.default_rng(1), 40_000
    x = X[rng.integers(64, size=n)]
    expert = (rng.random(n)[:, None] > case.probabilities(measure, x).cumsum(1)).sum(1)
    laws = case.components(measure, x)
    rows = np.arange(n), expert
    y = rng.normal(laws.mean()[rows], laws.std()[rows])
    found = information(label)
    place, columns = flat(measure), []
    for i in found.parameters.free:  # the oracle's scores, by central differences
        step = 1e-5 * np.eye(len(place))[i]
        up, down = (moved(case, measure, place + sign * step, x, y) for sign in (1, -1))
        columns.append((up - down) / 2e-5)
    products = np.einsum("ia,ja->ija", columns, columns)
    error = products.std(axis=-1) / np.sqrt(n)
    assert np.all(np.abs(products.mean(-1) - found.matrix) < 5 * error + 1e-6)
    assert np.all(error < 0.05 * np.sqrt(np.outer(np.diag(found.matrix), np.diag(found.matrix))))


@pytest.mark.slow
@pytest.mark.parametrize("label", ["sigmoid", "dense_to_sparse"])
def test_observed_information_is_the_curvature(label: str) -> None:
    case, scenario = CASE[label], truth(label)
    x, y = (np.asarray(part) for part in scenario.simulate(3, 40))
    measure = scenario.measure.replace(intercept=[1.2, -0.2])  # not stationary
    found = observed_information(bm.moe(scenario.gate, 2), measure, x, y)
    place, free = flat(measure), found.parameters.free
    unit = 1e-4 * np.eye(len(place))[free]

    def mean(step: np.ndarray) -> float:
        return float(moved(case, measure, place + step, x, y).mean())

    for i, one in enumerate(unit):
        for j, other in enumerate(unit):
            corners = mean(one + other) - mean(one - other) - mean(other - one) + mean(-one - other)
            expected = -corners / 4e-8
            assert found.matrix[i, j] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_more_nodes_do_not_change_it() -> None:
    for label in ("softmax", "sigmoid"):
        error = information(label).error
        assert error is not None
        assert error < 1e-7


def test_misuse_of_information() -> None:
    model, measure = bm.moe("softmax", 2), truth("softmax").measure
    with pytest.raises(ValueError, match="the measure has 2 experts and 1 covariates, the model"):
        expected_information(bm.moe("softmax", 3), measure, X)
    with pytest.raises(ValueError, match="x 2 covariates; they must agree"):
        expected_information(model, measure, np.ones((5, 2)))
    with pytest.raises(ValueError, match="x is empty; at least one row is needed"):
        expected_information(model, measure, np.ones((0, 1)))
    batch = bm.MixingMeasure(*(np.stack([getattr(measure, f)] * 2) for f in FIELDS))
    with pytest.raises(ValueError, match="a single measure, got batch shape"):
        observed_information(model, batch, X, X[:, 0])


# ---------------------------------------------------------------- null spaces


def test_null_spaces_with_the_reference_pinned() -> None:
    ray = "scaling of gate_slope, gate_intercept and temperature together"
    assert words(information("softmax")) == []
    assert words(information("sigmoid")) == []
    assert words(information("dense_to_sparse")) == [ray]
    assert words(information("relu")) == [ray]


def test_translations_with_all_gates_free() -> None:
    slopes = "translation of all gate_slopes together"
    intercepts = "translation of all gate_intercepts together"
    assert words(information("softmax", free_reference=True)) == [slopes, intercepts]
    assert words(information("sigmoid", free_reference=True)) == [intercepts]
    assert words(information("identity", free_reference=True))[:2] == [slopes, intercepts]
    both = words(information("dense_to_sparse", free_reference=True))
    assert both[:2] == [slopes, intercepts]
    assert len(both) == 3
    names = information("softmax", free_reference=True).names
    assert names[:2] == ("gate_slope[0, 0]", "gate_slope[1, 0]")
    assert names[2:4] == ("gate_intercept[0]", "gate_intercept[1]")


SPLIT = [
    "exchange of weight between experts 0 and 1, which coincide",
    "gate_slope of experts 0 and 1 moving apart",
    "slope of experts 0 and 1 moving apart",
    "intercept of experts 0 and 1 moving apart",
    "variance of experts 0 and 1 moving apart",
]


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_a_split_expert_is_singular(weight: float) -> None:
    found = information("softmax", 3)
    intercept = np.array(found.parameters.origin.gate_intercept)
    intercept[:2] += np.log([weight / 0.5, (1 - weight) / 0.5])
    measure = found.parameters.origin.replace(gate_intercept=intercept)
    null = null_space(information_of(Parameters.of(Softmax(), measure), X))
    assert [direction.words for direction in null.directions] == SPLIT
    assert [d.parameter for d in null.directions[1:]] == [
        "gate_slope[0, 0]", "slope[0, 0]", "intercept[0]", "variance[0]",
    ]  # fmt: skip
    apart = null.directions[3].vector[[found.names.index(f"intercept[{i}]") for i in (0, 1)]]
    assert apart[0] / apart[1] == pytest.approx(-(1 - weight) / weight)
    others = {name for name, moves in zip(found.names, null.involved, strict=True) if not moves}
    assert others == {"slope[2, 0]", "intercept[2]", "variance[2]"}


def test_a_split_reference_moves_the_other_gates_instead() -> None:
    measure = split_expert(truth("softmax").measure, 3)
    null = null_space(information_of(Parameters.of(Softmax(), measure), X))
    assert [d.words for d in null.directions] == [w.replace("0 and 1", "1 and 2") for w in SPLIT]
    slope = dict(zip(information("softmax", 3).names, null.directions[1].vector, strict=True))
    # (0, 1, -1) and the translation by one
    assert slope["gate_slope[0, 0]"] == pytest.approx(slope["gate_slope[1, 0]"] / 2)


def test_names_are_only_given_to_what_is_there() -> None:
    class Boaster(ActivationDenseToSparse):
        ray = True

    class Denier(DenseToSparse):
        ray = False

    sigmoid = information("sigmoid")
    boast = dataclasses.replace(sigmoid.parameters, gate=Boaster())
    assert words(dataclasses.replace(sigmoid, parameters=boast)) == []
    dense = information("dense_to_sparse")
    denial = dataclasses.replace(dense.parameters, gate=Denier())
    (told,) = null_space(dataclasses.replace(dense, parameters=denial)).directions
    assert told.kind == "unnamed"
    for name in ("gate_slope[0, 0]", "gate_intercept[0]", "temperature"):
        assert name in told.words
    gate = truth("dense_to_sparse").measure.gate
    expected = np.array([gate.slope[0, 0], gate.intercept[0], gate.temperature])
    ratio = told.vector[:3] / expected
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    np.testing.assert_allclose(told.vector[3:], 0, atol=1e-9)


def test_a_parameter_without_any_effect() -> None:
    found = information("softmax")
    root = np.array(found.root)
    root[:, 3] = 0
    matrix = root.T @ root
    null = null_space(dataclasses.replace(found, root=root, matrix=matrix))
    assert [d.words for d in null.directions] == ["slope[1, 0] alone"]
    observed = dataclasses.replace(found, root=None, matrix=matrix)
    assert words(observed) == ["slope[1, 0] alone"]


def test_a_weak_direction_is_not_null() -> None:
    found = information("softmax")
    root = np.array(found.root)
    root[:, 5] = root[:, 4] + 1e-4 * root[:, 5]  # two intercepts, all but exchangeable
    null = null_space(dataclasses.replace(found, root=root, matrix=root.T @ root))
    assert null.directions == ()
    (weak,) = null.weak
    assert weak.words in (
        "+1 intercept[0], -1 intercept[1]",
        "+1 intercept[1], -1 intercept[0]",
    )


# ---------------------------------------------------------------- splitting and orders


def test_splitting_keeps_the_density() -> None:
    for label in ("softmax", "sigmoid", "dense_to_sparse"):
        case, measure = CASE[label], truth(label).measure
        x, y = np.linspace(0, 1, 7)[:, None], np.linspace(-1, 2, 7)
        for k, split in ((3, 0), (3, 1), (5, None)):
            whole = split_expert(measure, k, split)
            assert whole.n_experts == k
            assert whole.gate_intercept[-1] == 0
            np.testing.assert_allclose(
                case.density(whole, x, y), case.density(measure, x, y), rtol=1e-12
            )


def test_misuse_of_splitting() -> None:
    measure, half = truth("softmax").measure, 0.5
    with pytest.raises(ValueError, match="has 1 experts, the truth 2; it must have at least as"):
        split_expert(measure, 1)
    with pytest.raises(ValueError, match="split must be one of the true experts 0 to 1, got 2"):
        split_expert(measure, 3, 2)
    with pytest.raises(ValueError, match=r"split must be a whole number of at least 0, got 0\.5"):
        split_expert(measure, 3, half)
    top_one = bm.moe("top_k_sparse", 3, top_k=2)
    with pytest.raises(ValueError, match="when a true expert is split; raise top_k by"):
        identify(top_one, bm.scenario("lambda", "top_k_sparse"))


def test_divergences_of_one_normal_law() -> None:
    measure = bm.MixingMeasure([[0.0]], [0.0], 1.0, [[0.0]], [0.0], [0.25])
    found = information_of(Parameters.of(Softmax(), measure), X)
    near = Neighbourhood.of(found, X)
    np.testing.assert_allclose(found.units[1:], [0.5, 0.25 * np.sqrt(2)], rtol=1e-6)
    for shift, log_ratio in ((0.8, 0.0), (0.0, 0.5), (-0.3, -0.4), (1e-4, 0.0)):
        u = np.array([0.0, shift, log_ratio / np.sqrt(2)])
        values, slopes = near.residuals(u)
        # of N(0, 1) from N(shift, e^log_ratio)
        exact = (np.exp(-log_ratio) * (1 + shift**2) - 1 + log_ratio) / 2
        assert np.sum(values**2) / 2 == pytest.approx(exact, rel=1e-4)
        for i in range(3):
            step = 1e-6 * np.eye(3)[i]
            rise = (near.residuals(u + step)[0] - near.residuals(u - step)[0]) / 2e-6
            np.testing.assert_allclose(slopes[:, i], rise, atol=1e-7)


@pytest.mark.parametrize("power", [2, 4, 8])
def test_orders_of_powers(power: int) -> None:
    t = DISPLACEMENTS
    assert judge(t, 3 * t**power).order == power
    assert judge(t, 3 * t**power * (1 + t)).order == power
    # what is below rounding is not used
    truncated = np.where(t < 0.004, 0.0, t**power)
    assert judge(t, truncated).order == power
    assert judge(t, t**power).rate == -1 / power


def test_orders_that_are_not_clear() -> None:
    t = DISPLACEMENTS
    noise = np.exp(np.random.default_rng(0).normal(size=len(t)))
    for divergences in (t**3, t**4 * noise, np.full(len(t), 1e-5), -1 / np.log(t)):
        assert np.isnan(judge(t, divergences).order)
    few = np.where(t < 0.03, 0.0, t**4)  # two left
    assert np.isnan(judge(t, few).order)
    flat = judge(t, np.full(len(t), 1e-31))
    assert flat.order == np.inf
    assert flat.rate == 0


def orders(found: Identification) -> dict[str, float]:
    return {rate.block: rate.order for rate in found.rates}


@functools.cache
def identified(label: str, k: int, split: int | None = None) -> Identification:
    scenario = bm.scenario("lambda", CASE[label].gate(2))
    return identify(bm.moe(scenario.gate, k), scenario, split=split)


@pytest.mark.slow
@pytest.mark.parametrize("split", [0, 1])
def test_the_softmax_gate_over_specified(split: int) -> None:
    found = identified("softmax", 3, split)
    # the gate slope's is faster than the bound n^-1/8: no other term compensates (Δβ1)² x² f
    assert orders(found) == {"gate_slope": 4, "slope": 4, "intercept": 8, "variance": 4}
    assert [order.order for order in found.orders] == [np.inf, 4, 4, 8, 4]
    assert [r.text for r in found.rates] == ["n^-1/4", "n^-1/4", "n^-1/8", "n^-1/4"]
    assert found.shared == (split, split + 1)


@pytest.mark.slow
def test_the_activation_gate_over_specified() -> None:
    first = {"gate_slope": 4, "temperature": 2, "slope": 4, "intercept": 8, "variance": 4}
    assert orders(identified("sigmoid", 3, 0)) == first
    # the reference is pinned at β1 = 0, and so cannot make up for its partner's gate slope
    assert orders(identified("sigmoid", 3, 1)) == first | {"gate_slope": 2}


@pytest.mark.slow
def test_a_ray_has_no_rate() -> None:
    for label in ("dense_to_sparse", "relu"):
        found = identified(label, 2)
        assert orders(found) == {
            "gate_slope": np.inf, "temperature": np.inf, "slope": 2, "intercept": 2, "variance": 2,
        }  # fmt: skip
        assert [rate.text for rate in found.rates][:2] == ["none (flat)"] * 2
        assert [rate.theory.text for rate in found.rates if rate.theory][:2] == ["none (ray)"] * 2
    found = identified("dense_to_sparse", 3, 0)
    # a ray moves experts that coincide together, never apart
    assert [order.order for order in found.orders] == [np.inf, np.inf, 4, 4, 8, 4]
    over = orders(found)
    assert over["temperature"] == over["gate_slope"] == np.inf
    assert (over["slope"], over["intercept"], over["variance"]) == (4, 8, 4)


@pytest.mark.slow
def test_regular_models_have_order_two() -> None:
    for label in ("softmax", "sigmoid"):
        found = identified(label, 2)
        assert set(orders(found).values()) == {2}
        assert found.profiles == {}
    # and so has the divergence itself: half the information left by the others
    information = found.information
    near = Neighbourhood.of(information, X)
    index = information.names.index("temperature")
    order = near.profile(index)
    assert order.order == 2
    unit = information.units[index]
    coarse = information_of(information.parameters, X[::2])
    left = unit**2 / np.linalg.inv(coarse.matrix)[index, index]
    assert order.divergences[-1] == pytest.approx(left * order.displacements[-1] ** 2 / 2, rel=0.02)


@pytest.mark.slow
def test_order_eight_stays_below_the_known_curve() -> None:
    """N(0, 1) against equal parts N(±t, 1 - t²): moments agree up to the third, κ4 = -2t⁴."""
    measure = bm.MixingMeasure([[0.0]], [0.0], 1.0, [[0.0]], [0.0], [1.0])
    found = identify(bm.moe("softmax", 2), Scenario("one", Softmax(), measure))
    order = found.profiles["intercept[0]"]
    assert order.order == 8
    unit = found.information.units[found.information.names.index("intercept[0]")]
    assert unit == pytest.approx(2)  # half of the information of one expert of weight one half: 1/4
    for t, least in zip(DISPLACEMENTS[:3] * unit, order.divergences, strict=False):
        density = functools.partial(_pair, t)
        curve = scipy.integrate.quad(
            lambda y, density=density: _term(density(y), scipy.stats.norm.pdf(y)),
            -12, 12, epsabs=0, epsrel=1e-9, limit=400,
        )[0]  # fmt: skip
        assert curve == pytest.approx(t**8 / 12, rel=0.2)
        assert 0 < least <= curve * (1 + 1e-6)


def _pair(t: float, y: float) -> float:
    law = scipy.stats.norm(0, np.sqrt(1 - t**2))
    return float(law.pdf(y - t) + law.pdf(y + t)) / 2


def _term(q: float, p: float) -> float:
    r = q / p - 1
    return p * (r * r / 2 - r**3 / 3 + r**4 / 4 if abs(r) < 1e-4 else r - np.log1p(r))


@pytest.mark.slow
def test_jumps_are_left_open() -> None:
    found = identify(
        bm.moe("top_k_sparse", 2, top_k=1), bm.scenario("lambda", "top_k_sparse", top_k=1)
    )
    assert found.jumps
    assert np.isnan(orders(found)["gate_slope"])
    assert orders(found)["intercept"] == 2


def test_theory_says_nothing_of_two_surplus_experts() -> None:
    parameters = information("softmax", 3).parameters
    regular, over, beyond = (_block_rate(parameters, "intercept", {}, n) for n in (0, 1, 2))
    assert regular.theory is not None
    assert regular.theory.text == "n^-1/2"
    assert over.theory is not None
    assert over.theory.text == "n^-1/8"
    assert beyond.theory is None


def test_a_block_is_as_slow_as_its_slowest_parameter() -> None:
    parameters = information("softmax", 3).parameters
    t = DISPLACEMENTS
    four, flat, open_ = judge(t, t**4), judge(t, 0 * t), judge(t, t**3)
    cases = [
        ({}, "n^-1/2"),
        ({"slope[1, 0]": four}, "n^-1/4"),
        ({"slope[1, 0]": four, "slope[0, 0]": open_}, "not clear"),
        ({"slope[0, 0]": flat, "slope[1, 0]": open_}, "none (flat)"),
    ]
    for profiles, text in cases:
        rate = _block_rate(parameters, "slope", profiles, 1)
        assert rate.text == text
        assert not profiles or rate.parameter in profiles


@pytest.mark.parametrize("share", [48, 1])
def test_no_level_of_a_covariate_is_left_out(share: int) -> None:
    """Of a grid in which 0 and 1 take turns, and of a level that one point in 96 has."""
    plane, line = bm.scenario("plane"), (np.arange(96) + 0.5) / 96
    level = np.zeros(96)
    level[1 :: 96 // share] = 1.0
    x = np.column_stack([line, level])
    information = information_of(Parameters.of(plane.gate, plane.measure), x)
    near = Neighbourhood.of(information, x)
    assert set(near.rule.x[:, 1]) == {0.0, 1.0}
    assert near.profile(information.names.index("slope[0, 1]")).order == 2
