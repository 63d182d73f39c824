"""The Voronoi loss against its definition, minimised by brute force over representatives."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import xarray as xr
from conftest import CASE, CASES, QUICK, GateCase, one_by_one

import bayesmoe as bm
from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import FIELDS
from bayesmoe.theory._barrier import Constraints, feasible
from bayesmoe.theory._comparison import compare
from bayesmoe.theory._infimum import infimum
from bayesmoe.theory.voronoi import WEIGHTS, contraction_radius, voronoi, voronoi_loss

BLOCKS = {name: i for i, name in enumerate(("gate_slope", "temperature", "slope", "intercept"))}
ORDER = {1: 1.0, 2: 4.0, 3: 6.0, 4: 8.0}  # r̄, Ho & Nguyen 2016, and `polynomial_system`
TOP_1 = GateCase("top_1", "top_k_sparse", {"top_k": 1})
RAYS = [case for case in CASES if case.ray]
FLIPS = [case for case in CASES if case.flip]
BY_LABEL = {"ids": lambda value: value.label if isinstance(value, GateCase) else None}


@dataclasses.dataclass(frozen=True)
class Truth:
    """A truth that is no scenario."""

    gate: Gate
    measure: bm.MixingMeasure
    quadrature_x: Any


def make_truth(case: GateCase, measure: bm.MixingMeasure) -> Truth:
    x = np.random.default_rng(0).uniform(size=(64, measure.n_covariates))
    return Truth(case.gate(measure.n_experts), measure, x)


def arrays(measure: bm.MixingMeasure) -> dict[str, np.ndarray]:
    return {field: np.array(getattr(measure, field)) for field in FIELDS}


def stack(measures: list[bm.MixingMeasure]) -> bm.MixingMeasure:
    parts = [arrays(measure) for measure in measures]
    return bm.MixingMeasure(*(np.stack([part[field] for part in parts]) for field in FIELDS))


def split(measure: bm.MixingMeasure, atoms: list[int], shares: list[float]) -> bm.MixingMeasure:
    """Atoms repeated, their weights multiplied by shares; the last is to be the reference."""
    parts = arrays(measure)
    parts = {name: part[atoms] if name != "temperature" else part for name, part in parts.items()}
    parts["gate_intercept"] = parts["gate_intercept"] + parts["temperature"] * np.log(shares)
    return bm.MixingMeasure(**parts)


# ---------------------------------------------------------------- the definition, written out again


def exponents(case: GateCase, size: int, identified: bool, order: float = 1.0) -> tuple[float, ...]:
    """Of β1, τ, a, b and ν in a cell of ``size`` atoms; ``order`` is r of D_{1,r}."""
    if order != 1:
        return (order,) * 5
    order = ORDER[size]
    if size == 1 or (case.label == "dense_to_sparse" and not identified):
        return (1.0,) * 5
    if case.linear:
        return (order, 1.0, order / 2, order, order / 2)
    return (2.0, 2.0, 2.0, order, order / 2)


def weights_of(case: GateCase, measure: bm.MixingMeasure, truth: Truth, kind: str) -> np.ndarray:
    if kind == "probability":
        return case.probabilities(measure, truth.quadrature_x).mean(axis=0)
    return np.exp(np.asarray(measure.gate_intercept) / float(measure.temperature))


def penalty(case: GateCase, truth: Truth, kind: str) -> float:
    h = arrays(truth.measure)
    theta = np.column_stack([h[f] for f in ("gate_slope", "slope", "intercept", "variance")])
    widest = max(np.linalg.norm(u - v) for u, v in itertools.product(theta, repeat=2))
    return weights_of(case, truth.measure, truth, kind).sum() * (1 + widest)


def definition(
    case: GateCase,
    measure: bm.MixingMeasure,
    truth: Truth,
    kind: str,
    identified: bool,
    moves: tuple[Any, Any, Any],
    order: float = 1.0,
) -> np.ndarray:
    """The loss at representatives s ``(m,)``, t ``(m, d)`` and W ``(m,)``."""
    (s, t, W), g, h = moves, arrays(measure), arrays(truth.measure)
    k, n_true = len(g["intercept"]), len(h["intercept"])
    w, w_true = (weights_of(case, m, truth, kind) for m in (measure, truth.measure))
    slopes = s[:, None, None] * g["gate_slope"] + t[:, None]
    heat = np.abs(s * g["temperature"] - h["temperature"])
    parts = np.zeros((k, n_true, 4, len(s)))
    for i, j in np.ndindex(k, n_true):
        parts[i, j, 0] = np.linalg.norm(slopes[:, i] - h["gate_slope"][j], axis=1)
        parts[i, j, 1] = np.linalg.norm(g["slope"][i] - h["slope"][j])
        parts[i, j, 2] = abs(g["intercept"][i] - h["intercept"][j])
        parts[i, j, 3] = abs(g["variance"][i] - h["variance"][j])
    nearest = np.linalg.norm(parts, axis=2).argmin(axis=1)
    sizes = [(nearest == j).sum(axis=0) for j in range(n_true)]
    cells = []
    for j in range(n_true):
        cost, mass = np.zeros(len(s)), np.zeros(len(s))
        for i, size in itertools.product(range(k), range(1, k + 1)):
            here = (nearest[i] == j) & (sizes[j] == size)
            e = exponents(case, size, identified, order)
            terms = [parts[i, j, block] ** e[(0, 2, 3, 4)[block]] for block in range(4)]
            cost += here * W * w[i] * (sum(terms) + heat ** e[1])
            mass += here * W * w[i]
        cells.append(cost + np.abs(mass - w_true[j]))
    counted = min(case.options.get("top_k", n_true), n_true)
    subsets = [sum(subset) for subset in itertools.combinations(cells, counted)]
    empty = np.any(np.array(sizes) == 0, axis=0)
    return np.max(subsets, axis=0) + empty * penalty(case, truth, kind)


def brute_force(
    case: GateCase,
    measure: bm.MixingMeasure,
    truth: Truth,
    kind: str,
    identified: bool,
    order: float = 1.0,
) -> float:
    """The infimum by differential evolution and Nelder-Mead over (s, t, log W)."""
    d = measure.n_covariates
    reach = 2 * max(np.abs(m.gate_slope).max() for m in (measure, truth.measure))
    ratio = float(truth.measure.temperature / measure.temperature)
    free = (identified, case.translates, kind == "intercept")
    bounds = [(1e-12, 5 * ratio)] * free[0] + [(-reach, reach)] * (d * free[1])
    bounds += [(-30.0, 10.0)] * free[2]

    def loss(z: Any) -> Any:
        points = np.reshape(z, (len(bounds), -1))
        s = points[0] if free[0] else np.ones(points.shape[1])
        t = points[free[0] :][:d].T if free[1] else np.zeros((points.shape[1], d))
        W = np.exp(points[-1]) if free[2] else np.ones(points.shape[1])
        values = definition(case, measure, truth, kind, identified, (s, t, W), order)
        return values if np.ndim(z) == 2 else values[0]

    if not bounds:
        none = (np.ones(1), np.zeros((1, d)), np.ones(1))
        return float(definition(case, measure, truth, kind, identified, none)[0])
    found = scipy.optimize.differential_evolution(
        loss, bounds, vectorized=True, updating="deferred", polish=False, rng=0,
        popsize=30, maxiter=800, tol=0, atol=1e-13,
    )  # fmt: skip
    simplex = found.x + 1e-5 * np.vstack([np.zeros(len(bounds)), np.eye(len(bounds))])
    options = {"xatol": 1e-13, "fatol": 1e-15, "maxfev": 4000, "initial_simplex": simplex}
    polished = scipy.optimize.minimize(
        loss, found.x, method="Nelder-Mead", bounds=bounds, options=options
    )
    return float(min(found.fun, polished.fun))


def random_pair(
    case: GateCase, k: int, n_true: int, d: int, far: bool
) -> tuple[bm.MixingMeasure, Truth]:
    """A truth and a fit: anything, or what is left of the truth's atoms, shuffled and perturbed."""
    rng = np.random.default_rng([k, n_true, d, far])
    truth = make_truth(case, case.measure(int(rng.integers(1000)), n_true, d))
    if far:
        return case.measure(1000 + int(rng.integers(1000)), k, d), truth
    atoms = rng.permutation([*range(n_true), *rng.integers(n_true, size=k - n_true)])
    parts = arrays(split(truth.measure, list(atoms), [1.0] * k))
    for name, part in parts.items():
        parts[name] = part * np.exp(0.1 * rng.normal(size=part.shape))
        if name not in ("temperature", "variance"):
            parts[name] = parts[name] + 0.1 * rng.normal(size=part.shape)
    if not case.temperature:
        parts["temperature"] = np.ones(())
    return bm.MixingMeasure(**parts), truth


def check_against_brute_force(case: GateCase, k: int, n_true: int, d: int, far: bool) -> None:
    measure, truth = random_pair(case, k, n_true, d, far)
    for kind, identified in itertools.product(WEIGHTS, {False, case.ray}):
        found = voronoi(measure, truth, identified=identified, weights=kind)
        loss = float(found.loss)
        where = (kind, identified, loss)
        # no representative that brute force finds is better, and there is one that is as good
        assert loss <= brute_force(case, measure, truth, kind, identified) * (1 + 1e-6), where
        batch = bm.MixingMeasure(**{name: part[None] for name, part in arrays(measure).items()})
        options = {"identified": identified, "probability": kind == "probability"}
        c = compare(batch, truth, **options)
        s, t, _ = infimum(c)
        first = s * c.slopes[0] + t  # of a measure moved beforehand: the same slope without that
        s = s * c.temperatures / float(measure.temperature)
        t = first.T - s * np.asarray(measure.gate_slope)[0]
        centre, width = (-10.0, 20.0) if kind == "intercept" else (0.0, 0.0)
        for _ in range(4):
            logs = np.linspace(centre - width, centre + width, 2001)
            moves = (np.repeat(s, 2001), np.repeat(t, 2001, axis=0), np.exp(logs))
            values = definition(case, measure, truth, kind, identified, moves)
            centre, width = logs[values.argmin()], width / 500
        assert loss == pytest.approx(values.min(), rel=1e-6), where


@pytest.mark.parametrize(
    "case",
    one_by_one(
        [CASE["softmax"], TOP_1, CASE["dense_to_sparse"], CASE["gelu"], CASE["relu"]],
        (CASE["softmax"], TOP_1, CASE["relu"]),
    ),
)
def test_the_loss_is_the_infimum_of_the_definition(case: GateCase) -> None:
    check_against_brute_force(case, 3, 2, 1, far=False)


@pytest.mark.slow
@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize(
    ("k", "n_true", "d"),
    [(2, 2, 1), (3, 2, 1), (3, 3, 1), (2, 2, 2), (3, 2, 2)],
)
@pytest.mark.parametrize(
    "case",
    [CASE[c] for c in ("softmax", "top_k_sparse", "dense_to_sparse", "gelu", "relu")] + [TOP_1],
    **BY_LABEL,
)
def test_the_loss_is_the_infimum_for_all_sizes(
    case: GateCase, k: int, n_true: int, d: int, far: bool
) -> None:
    check_against_brute_force(case, k, n_true, d, far)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "k", "n_true"),
    [(CASE["dense_to_sparse"], 1, 2), (CASE["relu"], 1, 2), (CASE["softmax"], 2, 3)],
    **BY_LABEL,
)
def test_fewer_experts_than_true_ones_are_compared(case: GateCase, k: int, n_true: int) -> None:
    """Some cell is empty at every representative."""
    check_against_brute_force(case, k, n_true, 1, far=True)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("case", [CASE["softmax"], TOP_1, CASE["dense_to_sparse"]], **BY_LABEL)
def test_no_representative_on_a_grid_is_better(case: GateCase, kind: str) -> None:
    """Of measures far from the truth, whose best representatives lie at ends of intervals."""
    measures = [case.measure(seed, 3, 1) for seed in range(100, 120)]
    t, logs = np.linspace(-6, 6, 121), np.linspace(-12, 2, 8) if kind == "intercept" else [0.0]
    scales = np.linspace(0.05, 3, 20) if case.ray else [1.0]
    s, t, logs = (np.ravel(part) for part in np.meshgrid(scales, t, logs, indexing="ij"))
    for seed in (3, 19):
        truth = make_truth(case, case.measure(seed, 2, 1))
        losses = voronoi_loss(stack(measures), truth, case.ray, weights=kind)
        for measure, loss in zip(measures, np.asarray(losses), strict=True):
            moves = (s, t[:, None], np.exp(logs))
            grid = definition(case, measure, truth, kind, case.ray, moves)
            assert loss <= np.min(grid) * (1 + 1e-9)


# ---------------------------------------------------------------- by hand


def pair(case: GateCase, d: int = 1, **changes: Any) -> tuple[bm.MixingMeasure, Truth]:
    """The true atoms (far apart), weights 2 and 1, and the same with some blocks changed."""
    tau = 0.5 if case.temperature else 1.0
    true = bm.MixingMeasure(
        [[3.0], [0.0]], [tau * np.log(2.0), 0.0], tau, [[9.0], [-9.0]], [-5.0, 7.0], [1.0, 2.0]
    )
    fitted = arrays(true)
    for name, change in changes.items():
        fitted[name] = fitted[name] + np.asarray(change)
    return bm.MixingMeasure(**fitted), make_truth(case, true)


@pytest.mark.parametrize(("label", "k"), [("softmax", 2), ("softmax", 3), ("dense_to_sparse", 2)])
def test_one_true_atom_bounds_no_translation(label: str, k: int) -> None:
    """All atoms share its cell wherever they are moved to; true slopes have no spread."""
    case = CASE[label]
    measure, truth = random_pair(case, k, 1, 1, far=False)
    loss = float(voronoi_loss(measure, truth, case.ray))
    assert loss == pytest.approx(brute_force(case, measure, truth, "intercept", case.ray), rel=1e-6)


def far_off(case: GateCase, k: int, n_true: int, size: int) -> tuple[bm.MixingMeasure, Truth]:
    """Atoms of the truth, moved by hundreds; temperatures from 1e-12 to 1e12."""
    rng = np.random.default_rng([k, n_true])
    truth = make_truth(case, case.measure(3, n_true, 1))
    which = rng.integers(n_true, size=(size, k))
    blocks = arrays(truth.measure)
    temperature = blocks.pop("temperature") * np.exp(9 * rng.normal(size=size))
    moved = {field: block[which] for field, block in blocks.items()}
    moved |= {f: b + 90 * rng.normal(size=b.shape) for f, b in moved.items() if f != "variance"}
    return bm.MixingMeasure(**moved, temperature=temperature), truth


def promising_slopes(measure: bm.MixingMeasure, truth: Truth) -> np.ndarray:
    """Of each atom: the true slopes, and beside those at which it changes its cell, ``(k, m)``."""
    g, h = arrays(measure), arrays(truth.measure)
    experts = [np.column_stack([m[f] for f in ("slope", "intercept", "variance")]) for m in (g, h)]
    squares = np.sum((experts[0][:, None] - experts[1]) ** 2, axis=2)
    true = h["gate_slope"][:, 0]
    slopes = [np.tile(true, (len(squares), 1))]
    for j, other in itertools.combinations(range(len(true)), 2):
        gap = squares[:, j] - squares[:, other] + true[j] ** 2 - true[other] ** 2
        end = gap[:, None] / (2 * (true[j] - true[other]))
        slopes.append(end + 1e-9 * (1 + np.abs(end)) * [-1, 1])
    return np.concatenate(slopes, axis=1)


def least_on_a_grid(case: GateCase, measure: bm.MixingMeasure, truth: Truth) -> float:
    """The least loss where it has kinks: at all s, or at all t, on a grid along the ray."""
    slopes, wanted = np.asarray(measure.gate_slope), promising_slopes(measure, truth)
    scales = np.ones(1)
    if case.ray:
        widest, true_widest = np.ptp(slopes), np.ptp(truth.measure.gate_slope)
        heat = float(truth.measure.temperature / measure.temperature)
        low, high = np.log(sorted([heat, true_widest / widest]))
        scales = np.exp(np.linspace(low - 3.0, high + 3.0, 120))
    if case.translates:
        shifts = np.reshape(wanted - scales[:, None, None] * slopes, (len(scales), -1))
    else:
        scales = (wanted / slopes)[wanted / slopes > 0]
        shifts = np.zeros((len(scales), 1))
    moves = (np.repeat(scales, shifts.shape[1]), shifts.reshape(-1, 1), np.ones(shifts.size))
    return float(np.min(definition(case, measure, truth, "probability", case.ray, moves)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "k", "n_true"),
    [("dense_to_sparse", k, n_true) for k, n_true in [(2, 2), (3, 2), (3, 3)]] + [("relu", 4, 3)],
)
def test_no_representative_of_a_measure_that_is_far_off_is_better(
    label: str, k: int, n_true: int
) -> None:
    case = CASE[label]
    measures, truth = far_off(case, k, n_true, 60)
    losses = np.asarray(voronoi_loss(measures, truth, True, weights="probability"))
    for measure, loss in zip((measures[i] for i in range(60)), losses, strict=True):
        assert loss <= least_on_a_grid(case, measure, truth) * (1 + 1e-6)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_identified_loss_is_the_same_along_the_ray_far_from_the_truth(kind: str) -> None:
    measure, truth = far_off(CASE["dense_to_sparse"], 3, 2, 60)
    factor = truth.measure.temperature / measure.temperature
    same = measure.replace(
        gate_slope=factor[:, None, None] * measure.gate_slope,
        gate_intercept=factor[:, None] * measure.gate_intercept,
        temperature=factor * measure.temperature,
    )
    one, other = (voronoi_loss(m, truth, True, weights=kind) for m in (measure, same))
    np.testing.assert_allclose(one, other, rtol=1e-9)


def four_atoms(*blocks: list[float], temperature: float) -> bm.MixingMeasure:
    slope, intercept, expert_slope, *others = (np.array(block) for block in blocks)
    return bm.MixingMeasure(slope[:, None], intercept, temperature, expert_slope[:, None], *others)


@pytest.mark.slow
def test_a_minimum_near_one_is_precise_where_no_better_loss_is_known_than_1e13() -> None:
    """At the best W > 0; the infimum known before is that of W -> 0."""
    case = CASE["dense_to_sparse"]
    measure = four_atoms(
        [3.05, 0.0698, 3.35, -4.68], [-16.0, -277.0, -440.0, 0.0], [1.68, 0.614, 0.8, 0.689],
        [0.549, 1.61, 1.43, 1.54], [0.764, 0.299, 0.299, 0.299], temperature=0.000245,
    )  # fmt: skip
    true = four_atoms(
        [0.638, 1.08, 0.0], [0.9, -0.212, 0.0], [1.36, -0.777, 0.59],
        [0.944, -0.564, 1.53], [0.764, 1.43, 0.299], temperature=0.7,
    )  # fmt: skip
    truth = make_truth(case, true)
    loss = float(voronoi_loss(measure, truth, True))
    assert loss == pytest.approx(brute_force(case, measure, truth, "intercept", True), rel=1e-6)


def test_an_atom_on_the_border_of_its_cell_counts_there() -> None:
    """At the minimum it is as near to another true atom, up to rounding, and hundreds off."""
    case = CASE["softmax"]
    measure = four_atoms(
        [174.0, 84.1, 37.6, 45.3], [-21.4, -155.0, 122.0, 166.0], [-21.4, 92.9, -204.0, -22.1],
        [-17.3, 39.5, -4.61, 55.8], [1.03, 0.76, 0.76, 0.443], temperature=1.0,
    )  # fmt: skip
    true = four_atoms(
        [-0.0393, -0.982, 0.0], [-0.197, -0.438, 0.0], [1.41, 0.604, 2.38],
        [1.54, 0.473, -2.09], [0.76, 0.443, 1.03], temperature=1.0,
    )  # fmt: skip
    truth = make_truth(case, true)
    loss = float(voronoi_loss(measure, truth, weights="probability"))
    assert loss == pytest.approx(least_on_a_grid(case, measure, truth), rel=1e-6)


def test_weights_may_vanish_where_a_translation_fills_every_cell() -> None:
    """Two atoms are near one true atom; only far off, at t = -10, each cell has an atom of its own.

    All costs are in proportion to W: the infimum is that of W -> 0, the two largest true weights.
    """
    truth = bm.scenario("three", CASE["top_k_sparse"].gate(3))
    estimate = bm.MixingMeasure(
        [[20.08], [20.01], [12.0]],
        [-11.9, -12.03, -3.94],
        1.0,
        [[3.99], [3.96], [-5.97]],
        [-3.11, -3.02, 3.99],
        [0.098, 0.099, 0.159],
    )
    found = voronoi(estimate, truth)
    largest = np.sort(np.exp(np.asarray(truth.measure.gate_intercept)))[-2:]
    np.testing.assert_allclose(found.loss, largest.sum(), rtol=1e-12)
    np.testing.assert_array_equal(found.cell_sizes, [1, 1, 1])
    assert not found.empty_cell


@pytest.mark.parametrize("case", one_by_one([*CASES, TOP_1], (*QUICK, TOP_1)))
def test_exact_cells_by_hand(case: GateCase) -> None:
    """2 (0.1 + 0.01 + 0.02) and 0.03 + 0.04; a top-1 gate has the costlier of the two cells."""
    measure, truth = pair(
        case, slope=[[0.1], [0.0]], intercept=[0.01, -0.03], variance=[0.02, 0.04]
    )
    expected = 0.26 if case is TOP_1 else 0.33
    assert float(voronoi_loss(measure, truth)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("case", one_by_one(CASES))
def test_gate_slope_by_hand(case: GateCase) -> None:
    """One slope off by 0.2: a translation or flips move the lighter atom where they can."""
    measure, truth = pair(case, gate_slope=[[0.2], [0.0]])
    expected = 0.2 if case.translates or case.flip else 0.4
    assert float(voronoi_loss(measure, truth)) == pytest.approx(expected, rel=1e-12)


def test_temperature_by_hand() -> None:
    """With weights 2 and 1 at the fitted temperature τ* + 0.1, which counts for every atom."""
    for label in ("dense_to_sparse", "gelu"):
        measure, truth = pair(CASE[label], temperature=0.1, gate_intercept=[0.1 * np.log(2.0), 0.0])
        assert float(voronoi_loss(measure, truth)) == pytest.approx(0.3, rel=1e-12)


# two halves of atom 1 with ‖Δβ1‖ = 0.4, |Δτ| = 0.1, ‖Δa‖ = 0.1, |Δb| = 0.3 and |Δν| = 0.2; atom 2,
# which has half the weight of atom 1, shares in |Δτ|
SHARED = {
    "softmax": 0.4**4 + 0.1**2 + 0.3**4 + 0.2**2,
    "top_k_sparse": 0.4**4 + 0.1**2 + 0.3**4 + 0.2**2,
    "dense_to_sparse": 0.4 + 0.1 + 0.1 + 0.3 + 0.2 + 0.1 / 2,
    "gelu": 0.4**2 + 0.1**2 + 0.1**2 + 0.3**4 + 0.2**2 + 0.1 / 2,
}


@pytest.mark.parametrize("label", SHARED)
def test_a_shared_cell_by_hand(label: str) -> None:
    """The halves lie at ±Δ: a translation would help one, and hurt the other and atom 2."""
    case = CASE[label]
    tau = 0.1 if case.temperature else 0.0
    _, truth = pair(case)
    fitted = arrays(split(truth.measure, [0, 0, 1], [0.5, 0.5, 1.0]))
    change = np.array([1.0, -1.0, 0.0])
    fitted["gate_slope"] += 0.4 * change[:, None]
    fitted["slope"] += 0.1 * change[:, None]
    fitted["intercept"] += 0.3 * change
    fitted["variance"] += 0.2 * change
    fitted["gate_intercept"] *= 1 + tau / fitted["temperature"]
    fitted["temperature"] += tau
    loss = float(voronoi_loss(bm.MixingMeasure(**fitted), truth))
    assert loss == pytest.approx(2 * SHARED[label], rel=1e-9)


def test_three_atoms_in_a_cell_by_hand() -> None:
    """r̄(3) = 6: thirds of atom 1 with Δb = 0.3, Δν = 0.4 and none."""
    _, truth = pair(CASE["softmax"])
    fitted = arrays(split(truth.measure, [0, 0, 0, 1], [1 / 3, 1 / 3, 1 / 3, 1.0]))
    fitted["intercept"][0] += 0.3
    fitted["variance"][1] += 0.4
    loss = float(voronoi_loss(bm.MixingMeasure(**fitted), truth))
    assert loss == pytest.approx(2 / 3 * (0.3**6 + 0.4**3), rel=1e-9)


def test_weights_by_hand() -> None:
    """Weights 2.2 and 1 against 2 and 1: at W = 1/1.1 only the lighter atom is off."""
    measure, truth = pair(CASE["softmax"], gate_intercept=[np.log(1.1), 0.0])
    assert float(voronoi_loss(measure, truth)) == pytest.approx(1 - 1 / 1.1, rel=1e-12)
    # no W costs more than the true weights: the fitted ones may all go to zero
    far, _ = pair(CASE["softmax"], slope=[[3.0], [-3.0]], intercept=[3.0, 3.0])
    assert float(voronoi_loss(far, truth)) == pytest.approx(3.0, rel=1e-12)
    # true probabilities 2/3 and 1/3, fitted 3/4 and 1/4, all the same at every x
    flat = {"gate_slope": np.array([[-3.0], [0.0]])}
    even, _ = pair(CASE["softmax"], **flat, gate_intercept=[np.log(1.5), 0.0])
    same = Truth(truth.gate, pair(CASE["softmax"], **flat)[0], truth.quadrature_x)
    found = voronoi_loss(even, same, weights="probability")
    assert float(found) == pytest.approx(2 * (3 / 4 - 2 / 3), rel=1e-12)


def test_the_published_comparison_stops_at_one_where_the_loss_is_near_zero() -> None:
    """With the surplus atom beside the reference expert, weights pinned to it count double."""
    truth = bm.scenario("lambda")
    fitted = arrays(split(truth.measure, [1, 0, 1], [0.5, 1.0, 0.5]))
    fitted["intercept"] += np.array([0.01, 0.02, -0.01])
    fitted["gate_intercept"] -= fitted["gate_intercept"][-1]
    measure = bm.MixingMeasure(**fitted)
    none = (np.ones(1), np.zeros((1, 1)), np.ones(1))
    pinned = definition(CASE["softmax"], measure, truth, "intercept", False, none)
    assert pinned[0] == pytest.approx(1.0, abs=1e-3)
    # the atom of weight e^-8 is off by 0.02, the two others by 0.01, to the power of four
    expected = 0.02 * np.exp(-8) + 0.01**4
    assert float(voronoi_loss(measure, truth)) == pytest.approx(expected, rel=1e-9)


# ---------------------------------------------------------------- gauge and rays


def gauge(case: GateCase, measure: bm.MixingMeasure, rng: np.random.Generator) -> bm.MixingMeasure:
    """All permutations, moved back to the reference or to anywhere else."""
    moved = []
    for order, anywhere in itertools.product(
        itertools.permutations(range(measure.n_experts)), (False, True)
    ):
        parts = arrays(split(measure, list(order), [1.0] * len(order)))
        slope, intercept = parts["gate_slope"], parts["gate_intercept"]
        if case.translates:
            slope -= rng.normal(size=slope.shape[1]) if anywhere else slope[-1]
        intercept -= rng.normal() if anywhere else intercept[-1]
        moved.append(bm.MixingMeasure(**parts))
    return stack(moved)


def line(u: Any) -> Any:
    return 1 - 2 * u


LINE = dataclasses.replace(
    CASE["identity"], options={"activation": line}, sigma=lambda xp, u: line(u)
)


@pytest.mark.parametrize("case", [CASE["identity"], LINE], ids=["identity", "user"])
def test_experts_change_places_where_an_activation_is_a_line(case: GateCase) -> None:
    true = case.measure(17, 2, 1)
    swapped = {name: part[::-1] if part.ndim else part for name, part in arrays(true).items()}
    for name in ("gate_slope", "gate_intercept"):
        swapped[name] = swapped[name] - swapped[name][-1]
    moved, truth = bm.MixingMeasure(**swapped), make_truth(case, true)
    check_same_density(case, true, stack([moved]))
    for identified in (False, True):
        assert float(voronoi_loss(moved, truth, identified=identified)) <= 1e-10


def check_same_density(case: GateCase, measure: bm.MixingMeasure, moved: bm.MixingMeasure) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.uniform(size=(20, measure.n_covariates)), rng.normal(size=20)
    for one in range(len(moved.intercept)):
        np.testing.assert_allclose(
            case.density(moved[one], x, y), case.density(measure, x, y), rtol=1e-9
        )


@pytest.mark.parametrize(("k", "d"), [(2, 1), (2, 2), (3, 1), (3, 2)])
def test_the_loss_is_zero_over_the_gauge(
    case: GateCase, rng: np.random.Generator, k: int, d: int
) -> None:
    measure = case.measure(17, k, d)
    truth, moved = make_truth(case, measure), gauge(case, measure, rng)
    check_same_density(case, measure, moved)
    for identified in {False, case.ray}:
        found = voronoi(moved, truth, identified=identified)
        assert np.max(found.loss) <= 1e-10
        np.testing.assert_allclose(found.block_errors[..., 0], 0, atol=1e-10)
        np.testing.assert_array_equal(found.cell_sizes, 1)
    if (k, d) == (3, 2):
        assert np.max(voronoi_loss(moved, truth, weights="probability")) <= 1e-10


@pytest.mark.parametrize("case", one_by_one(FLIPS))
@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 1], [0, 1, 0]])
def test_the_loss_is_zero_over_flips(
    case: GateCase, rng: np.random.Generator, labels: list[int]
) -> None:
    """Two distinct slopes u and v become -v and -u."""
    slopes = rng.normal(size=(2, 2))
    measure = case.measure(5, len(labels), 2).replace(gate_slope=slopes[labels])
    flipped = measure.replace(gate_slope=-slopes[::-1][labels])
    moved = gauge(case, flipped, rng)
    check_same_density(case, measure, moved)
    assert np.max(voronoi_loss(moved, make_truth(case, measure))) <= 1e-10
    assert np.max(voronoi_loss(measure, make_truth(case, flipped))) <= 1e-10


@pytest.mark.parametrize("case", one_by_one(FLIPS))
@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_loss_of_a_flipped_estimate_is_the_same(case: GateCase, kind: str) -> None:
    """Not zero: the error of a slope moves to another atom, whose weight is another."""
    measure, other = case.measure(5, 2, 1), case.measure(6, 2, 1)
    near = other.replace(gate_slope=measure.gate_slope + np.array([[0.3], [0.0]]))
    flipped = near.replace(gate_slope=-np.asarray(near.gate_slope)[::-1])
    truth = make_truth(case, measure)
    found = voronoi_loss(near, truth, weights=kind), voronoi_loss(flipped, truth, weights=kind)
    assert found[0] > 0.1
    np.testing.assert_allclose(*found, rtol=1e-9)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_signs_of_slopes_mean_nothing_to_even_activations(kind: str) -> None:
    """Each its own; an estimate with errors has the least loss of all signs, by brute force."""
    case = CASE["user_lambda"]
    measure = case.measure(5, 3, 2)
    truth, signs = make_truth(case, measure), np.array([[-1.0], [1.0], [1.0]])
    mirrored = measure.replace(gate_slope=signs * np.asarray(measure.gate_slope))
    check_same_density(case, measure, stack([mirrored]))
    assert float(voronoi_loss(mirrored, truth, weights=kind)) <= 1e-12
    off = case.measure(6, 3, 2)
    all_signs = [np.reshape(s, (3, 1)) for s in itertools.product([1.0, -1.0], repeat=3)]
    images = [off.replace(gate_slope=s * np.asarray(off.gate_slope)) for s in all_signs]
    least = min(brute_force(case, image, truth, kind, False) for image in images)
    found = voronoi_loss(stack(images), truth, weights=kind)
    np.testing.assert_allclose(found, least, rtol=1e-6)


@pytest.mark.parametrize("label", ["gelu", "silu", "softplus", "user_lambda"])
def test_other_activations_have_no_flip(label: str) -> None:
    measure = CASE[label].measure(5, 2, 2)
    flipped = measure.replace(gate_slope=-np.asarray(measure.gate_slope)[::-1])
    assert float(voronoi_loss(flipped, make_truth(CASE[label], measure))) > 0.1


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("case", one_by_one(RAYS))
def test_a_ray_has_a_loss_and_no_identified_loss(case: GateCase, kind: str) -> None:
    measure = case.measure(8, 3, 2)
    truth, parts = make_truth(case, measure), arrays(measure)
    for name in ("gate_slope", "gate_intercept", "temperature"):
        parts[name] = np.multiply.outer([0.3, 0.9, 1.2, 5.0], parts[name])
    shape = {name: (4, *part.shape) for name, part in arrays(measure).items()}
    moved = bm.MixingMeasure(*(np.broadcast_to(parts[f], shape[f]) for f in FIELDS))
    check_same_density(case, measure, moved)
    heat = np.abs(parts["temperature"] - float(measure.temperature))
    plain = voronoi(moved, truth, weights=kind)
    assert np.min(plain.loss) > 0.01
    np.testing.assert_allclose(plain.block_errors[:, BLOCKS["temperature"], 0], heat, rtol=1e-12)
    assert np.max(voronoi_loss(moved, truth, True, weights=kind)) <= 1e-10


def test_the_loss_along_the_ray_by_hand() -> None:
    """c = 1.1: slope and temperature are off by 0.3 and 0.05; the lighter atom is translated."""
    _, truth = pair(CASE["dense_to_sparse"])
    parts = arrays(truth.measure)
    for name in ("gate_slope", "gate_intercept", "temperature"):
        parts[name] = 1.1 * parts[name]
    loss = float(voronoi_loss(bm.MixingMeasure(**parts), truth))
    assert loss == pytest.approx(0.3 * 1 + 0.05 * 3, rel=1e-12)


@pytest.mark.parametrize("order", [1.5, 3.0])
@pytest.mark.parametrize(("k", "d"), [(3, 1), (2, 2)])
def test_norms_enter_to_the_power_of_the_order(order: float, k: int, d: int) -> None:
    case = CASE["dense_to_sparse"]
    measure, truth = random_pair(case, k, 2, d, far=False)
    loss = float(voronoi_loss(measure, truth, order=order))
    assert loss == pytest.approx(
        brute_force(case, measure, truth, "intercept", False, order), rel=1e-6
    )
    assert loss != pytest.approx(float(voronoi_loss(measure, truth)), rel=1e-3)


def test_without_a_ray_the_identified_loss_is_the_loss(gate_case: GateCase) -> None:
    if not gate_case.ray:
        measure, truth = random_pair(gate_case, 3, 2, 1, far=False)
        assert voronoi_loss(measure, truth, True) == voronoi_loss(measure, truth)


# ---------------------------------------------------------------- batches and bad input


def draws(case: GateCase, k: int, seed: int = 0) -> tuple[bm.MixingMeasure, Truth]:
    """Draws of shape (2, 35) around a truth of two atoms: more than one compiled chunk holds."""
    measure, truth = random_pair(case, k, 2, 1, far=False)
    rng, parts = np.random.default_rng(seed), arrays(measure)
    for name, part in parts.items():
        noise = np.exp(0.3 * rng.normal(size=(2, 35, *part.shape)))
        parts[name] = (
            part * noise if name != "temperature" or case.temperature else np.ones((2, 35))
        )
    return bm.MixingMeasure(**parts), truth


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_batch_is_its_loop(gate_case: GateCase, kind: str) -> None:
    measures, truth = draws(gate_case, 3)
    identified = gate_case.ray
    found = voronoi(measures, truth, identified=identified, weights=kind)
    assert found.loss.shape == found.empty_cell.shape == (2, 35)
    assert found.block_errors.shape == (2, 35, 5, 2)
    assert found.cell_sizes.shape == (2, 35, 2)
    for index in [(0, 0), (0, 34), (1, 0), (1, 17), (1, 34)]:
        one = voronoi(measures[index], truth, identified=identified, weights=kind)
        for part, whole in zip(one, found, strict=True):
            np.testing.assert_allclose(part, whole[index], rtol=1e-9, atol=1e-12)


def test_a_data_tree_is_its_measure() -> None:
    measures, truth = draws(CASE["dense_to_sparse"], 2)
    tails = (
        ("expert", "covariate"),
        ("expert",),
        (),
        ("expert", "covariate"),
        ("expert",),
        ("expert",),
    )
    posterior = xr.Dataset(
        {
            field: (("chain", "draw", *tail), getattr(measures, field))
            for field, tail in zip(FIELDS, tails, strict=True)
        }
    ).transpose("expert", "covariate", "draw", "chain")
    tree = xr.DataTree.from_dict({"posterior": posterior})
    for part, whole in zip(voronoi(tree, truth), voronoi(measures, truth), strict=True):
        np.testing.assert_array_equal(part, whole)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_draw_has_no_loss_and_spoils_no_other(kind: str, bad: float) -> None:
    measures, truth = draws(CASE["dense_to_sparse"], 2)
    clean = voronoi(measures, truth, weights=kind)
    for field in FIELDS:
        value = np.array(getattr(measures, field))
        value[(1, 3) + (0,) * (value.ndim - 2)] = bad
        found = voronoi(measures.replace(**{field: value}), truth, weights=kind)
        assert np.isnan(found.loss[1, 3])
        assert np.all(np.isnan(found.block_errors[1, 3]))
        assert bool(found.empty_cell[1, 3])
        np.testing.assert_array_equal(found.cell_sizes[1, 3], 0)
        others = np.delete(np.ravel(found.loss), 38)
        np.testing.assert_array_equal(others, np.delete(np.ravel(clean.loss), 38))
    alone = measures[1, 3].replace(temperature=bad)
    assert np.isnan(voronoi_loss(alone, truth, weights=kind))


def test_an_empty_batch_and_a_huge_estimate() -> None:
    measures, truth = draws(CASE["softmax"], 2)
    assert voronoi(measures[:, :0], truth, weights="probability").loss.shape == (2, 0)
    huge = measures[0, 0].replace(slope=np.full((2, 1), 1e200))
    with np.errstate(all="raise"):
        assert float(voronoi_loss(huge, truth)) >= 1
        assert float(voronoi_loss(huge, truth, weights="probability")) == np.inf


@pytest.mark.parametrize("kind", WEIGHTS)
def test_an_empty_cell_is_large_finite_and_flagged(kind: str) -> None:
    """One expert against two, in the first's place: no W helps with the weight of the other."""
    case, (_, truth) = CASE["gelu"], pair(CASE["gelu"])
    fitted = arrays(split(truth.measure, [0], [1.0]))
    found = voronoi(bm.MixingMeasure(**fitted), truth, weights=kind)
    w = weights_of(case, truth.measure, truth, kind)
    own = w[1] if kind == "intercept" else 2 * w[1]
    assert float(found.loss) == pytest.approx(own + penalty(case, truth, kind), rel=1e-9)
    assert bool(found.empty_cell)
    np.testing.assert_array_equal(found.cell_sizes, [1, 0])
    # two experts that are both nearest to the first
    both = arrays(split(truth.measure, [0, 0], [0.5, 0.5]))
    both["intercept"] += np.array([0.1, -0.1])
    found = voronoi(bm.MixingMeasure(**both), truth, weights=kind)
    assert bool(found.empty_cell)
    assert float(found.loss) == pytest.approx(own + penalty(case, truth, kind), rel=1e-3)
    np.testing.assert_array_equal(found.cell_sizes, [2, 0])


def test_block_errors_by_hand() -> None:
    """Cell 1 holds shares 1/4 and 3/4, off by 0.4 and 0.2 in b; cell 2 is off by 0.3 in a."""
    _, truth = pair(CASE["gelu"])
    fitted = arrays(split(truth.measure, [0, 0, 1], [0.25, 0.75, 1.0]))
    fitted["intercept"] += np.array([0.4, -0.2, 0.0])
    fitted["slope"][2] += 0.3
    fitted["gate_slope"][2] -= 0.1
    for kind in WEIGHTS:
        found = voronoi(bm.MixingMeasure(**fitted), truth, weights=kind)
        expected = [[0.1, 0], [0, 0], [0.3, 0], [0, 0.25], [0, 0]]  # β1, τ, a, b, ν
        np.testing.assert_allclose(found.block_errors, expected, atol=1e-12)
        np.testing.assert_array_equal(found.cell_sizes, [2, 1])
    only = voronoi(truth.measure, truth).block_errors
    np.testing.assert_array_equal(only[:, 0], 0)
    assert np.all(np.isnan(only[:, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "equal"}, r"unknown weights 'equal'; choose one of intercept, probability"),
        ({"estimate": 3}, r"MixingMeasure or a DataTree with a group 'posterior', got int"),
        ({"estimate": {}}, r"a DataTree with a group 'posterior', got dict"),
        (
            {"estimate": {"posterior": xr.Dataset({"slope": 1, "variance": 2})}},
            r"the posterior lacks gate_slope, gate_intercept, temperature, intercept; it must hold",
        ),
        ({"estimate": CASE["softmax"].measure(0, 2, 2)}, r"d = 2 covariates but the truth has 1"),
        ({"estimate": CASE["softmax"].measure(0, 17, 1)}, r"131072 assignments .* fewer experts"),
    ],
)
def test_errors_name_the_value_and_the_mend(change: dict[str, Any], message: str) -> None:
    measure, truth = random_pair(CASE["softmax"], 2, 2, 1, far=False)
    with pytest.raises(ValueError, match=message):
        voronoi(**{"estimate": measure, "truth": truth, **change})
    for order in (0.5, np.inf, "two"):
        with pytest.raises(ValueError, match="order must be a number of at least 1"):
            voronoi(measure, truth, order=order)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"order = 2 .* the softmax gate has none"):
        voronoi(measure, truth, order=2)
    tempered, ray = random_pair(CASE["dense_to_sparse"], 2, 2, 1, far=False)
    with pytest.raises(ValueError, match="the identified loss has none"):
        voronoi(tempered, ray, order=2, identified=True)
    many = dataclasses.replace(truth, measure=stack([truth.measure, truth.measure]))
    with pytest.raises(ValueError, match=r"single measure, got batch shape \(2,\); index it"):
        voronoi(measure, many)


# ---------------------------------------------------------------- parts


def test_the_contraction_radius_is_a_quantile() -> None:
    losses = np.random.default_rng(1).exponential(size=(3, 4, 500))
    for level in (0.5, 0.9):
        radius = np.asarray(contraction_radius(losses, level))
        assert radius.shape == (3,)
        share = (losses <= radius[:, None, None]).mean(axis=(1, 2))
        np.testing.assert_allclose(share, level, atol=1 / 2000)
    np.testing.assert_array_equal(contraction_radius(losses), contraction_radius(losses, 0.9))
    losses[1, 2, 3] = np.nan
    np.testing.assert_array_equal(np.isnan(contraction_radius(losses)), [False, True, False])


@pytest.mark.parametrize(
    ("level", "radius"), [(0.2, 1.8), (0.25, 2), (0.3, np.inf), (0.45, np.inf), (0.9, np.inf)]
)
def test_the_contraction_radius_may_be_infinite(level: float, radius: float) -> None:
    losses = [[1.0, 2.0, np.inf, np.inf, np.inf]]
    np.testing.assert_allclose(contraction_radius(losses, level), radius)


@pytest.mark.parametrize("level", [0, 1, 90, -0.1])
def test_the_level_of_the_contraction_radius_is_checked(level: float) -> None:
    with pytest.raises(ValueError, match=rf"level must lie between 0 and 1, got {level}; use 0.9"):
        contraction_radius(np.ones((1, 5)), level)


@pytest.mark.parametrize("shape", [(2, 0), (3, 0, 5)])
def test_the_contraction_radius_needs_draws(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"of shape \(.*0.*\) have no draws"):
        contraction_radius(np.ones(shape))


@pytest.mark.parametrize("kind", [np.int64, np.float32, np.float64])
def test_the_order_may_be_a_number_of_numpy(kind: type) -> None:
    case = CASE["dense_to_sparse"]
    measure, truth = case.measure(6, 2, 1), make_truth(case, case.measure(5, 2, 1))
    want = voronoi_loss(measure, truth, order=2)
    np.testing.assert_allclose(voronoi_loss(measure, truth, order=kind(2)), want)


def test_the_contraction_radius_needs_chains() -> None:
    with pytest.raises(ValueError, match=r"shape \(\.\.\., chain, draw\), got \(5,\); add an axis"):
        contraction_radius(np.ones(5))


@pytest.mark.parametrize("q", [1, 2])
def test_feasible_points_are_found_where_there_are_any(q: int, rng: np.random.Generator) -> None:
    """Random polyhedra around an origin that is far; the oracle is the largest ball inside."""
    m, n = 3 * q, 200
    normals, bounds = rng.normal(size=(m, q, n)), rng.normal(size=(m, n))
    points, found = feasible(Constraints(normals, bounds), np.full((q, n), 3.0))
    for i in range(n):
        rows = np.column_stack([normals[:, :, i], np.linalg.norm(normals[:, :, i], axis=1)])
        ball = scipy.optimize.linprog(
            [0] * q + [-1], A_ub=rows, b_ub=bounds[:, i], bounds=[(None, None)] * q + [(None, 1)]
        )
        assert found[i] == (ball.x[q] > 0), (i, ball.x[q])
        if found[i]:
            assert np.all(normals[:, :, i] @ points[:, i] < bounds[:, i])
    assert 20 < found.sum() < 180
