"""r̄(m) from the systems of polynomial equations themselves, proved and searched for."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from bayesmoe.core.gate import polynomial_order
from bayesmoe.theory.polynomial_system import (
    gauss_hermite,
    location_scale_residuals,
    softmax_equations,
    softmax_residuals,
)

SIZES = [2, 3]


# ---------------------------------------------------------------- the systems as stated


def taylor(p: Any, a: Any, b: Any, order: int) -> np.ndarray:
    """Coefficients 1..order of Σ p² exp(a t + b t²), by multiplying power series."""
    total = np.zeros(order + 1)
    for weight, first, second in zip(np.square(p), a, b, strict=True):
        series, exponent = np.eye(order + 1)[0], np.eye(order + 1)[0]
        for n in range(1, order + 1):
            step = first * np.append(0, exponent)[: order + 1]
            step += second * np.append([0, 0], exponent)[: order + 1]
            exponent = step / n
            series = series + exponent
        total += weight * series
    return total[1:]


def test_location_scale_residuals_are_coefficients_of_the_generating_function() -> None:
    rng = np.random.default_rng(0)
    p, a, b = rng.normal(size=(3, 5, 4))
    found = location_scale_residuals(p, a, b, 7)
    assert found.shape == (5, 7)
    for i in range(5):
        np.testing.assert_allclose(found[i], taylor(p[i], a[i], b[i], 7), rtol=1e-12)


def test_softmax_residuals_are_coefficients_of_the_gates_and_experts_expansion() -> None:
    """Σ p² exp(q1·u + q2·u s + q3 s + q4 s²): the coefficient of u^l1 s^l2."""
    rng = np.random.default_rng(1)
    m, d, order = 3, 2, 4
    p, q3, q4 = rng.normal(size=(3, m))
    q1, q2 = rng.normal(size=(2, m, d))
    found = softmax_residuals(p, q1, q2, q3, q4, order)
    # coefficients by Cauchy's formula on a torus
    n = 24
    unit = 0.7 * np.exp(2j * np.pi * np.arange(n) / n)
    u, v, s = np.meshgrid(unit, unit, unit, indexing="ij")
    value = sum(
        p[j] ** 2
        * np.exp(
            u * (q1[j, 0] + q2[j, 0] * s) + v * (q1[j, 1] + q2[j, 1] * s) + q3[j] * s + q4[j] * s**2
        )
        for j in range(m)
    )
    coefficients = np.fft.fftn(value).real / n**3
    equations = softmax_equations(d, order)
    assert len(equations) == math.comb(order + d + 1, d + 1) - 1
    for (l1, l2), residual in zip(equations, found, strict=True):
        expected = coefficients[(*l1, l2)] / 0.7 ** (sum(l1) + l2)
        assert residual == pytest.approx(expected, rel=1e-8, abs=1e-9)


# ---------------------------------------------------------------- r̄ >= 2m: solutions


@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_gauss_hermite_solves_both_systems_up_to_order_2m_minus_1(m: int) -> None:
    p, a, b = gauss_hermite(m)
    assert np.all(np.abs(p) > 1e-3)
    assert np.any(np.abs(a) > 0.5)
    residuals = location_scale_residuals(p, a, b, 2 * m)
    assert np.max(np.abs(residuals[:-1])) < 1e-12
    # and not beyond: the error of the rule for x^2m is m!
    assert residuals[-1] == pytest.approx(-math.factorial(m) / math.factorial(2 * m), rel=1e-9)
    zero = np.zeros((m, 2))
    assert np.max(np.abs(softmax_residuals(p, zero, zero, a, b, 2 * m - 1))) < 1e-12


def test_the_constants_of_the_losses_are_the_first_orders_without_a_solution() -> None:
    for m in SIZES:
        assert float(polynomial_order(np.array(m))) == 2 * m


# ---------------------------------------------------------------- r̄ <= 2m


def test_two_atoms_have_no_solution_at_order_four() -> None:
    """Exact: equations 1 to 3 leave one parameter v = w1 w2, and the fourth is -v (1 - v)/36.

    By homogeneity a1 - a2 = 1 (equal a's are both zero). Both sides are polynomials of degree at
    most six in w1: if they agree at nine points they are the same, and v lies in (0, 1/4].
    """
    for numerator in range(1, 10):
        w1 = Fraction(numerator, 10)
        w2 = 1 - w1
        v = w1 * w2
        a = (w2, -w1)
        apart, mean = -(w2 - w1) / 6, -v / 2
        b = (mean + w2 * apart, mean - w1 * apart)
        orders = [
            sum(
                w
                * x ** (total - 2 * n)
                * y**n
                / (math.factorial(total - 2 * n) * math.factorial(n))
                for w, x, y in zip((w1, w2), a, b, strict=True)
                for n in range(total // 2 + 1)
            )
            for total in range(1, 5)
        ]
        assert orders == [0, 0, 0, -v * (1 - v) / 36]
        assert orders[3] != 0


@pytest.mark.parametrize("n_densities", [2, 3, 4])
def test_combinations_of_normals_change_sign_at_most_twice_less_two(n_densities: int) -> None:
    """The lemma behind r̄(m) <= 2m, in random cases, and that its bound is attained."""
    rng, most = np.random.default_rng(3), 0
    y = np.linspace(-60, 60, 6001)
    for _ in range(100):
        means, sd = rng.normal(size=n_densities), np.exp(0.7 * rng.normal(size=n_densities))
        weights = rng.normal(size=n_densities)
        logs = -0.5 * ((y[:, None] - means) / sd) ** 2 - np.log(sd)
        values = np.sum(weights * np.exp(logs - logs.max(axis=1, keepdims=True)), axis=1)
        changes = np.sum(np.diff(np.sign(values[np.abs(values) > 1e-9])) != 0)
        most = max(most, int(changes))
        assert changes <= 2 * (n_densities - 1)
    if n_densities == 2:
        assert most == 2


def least_residual(m: int, order: int, starts: int, softmax: bool) -> float:
    """The least norm of residuals found over a compact set, from many random starts.

    The system is homogeneous in p and, with a of degree one and b of degree two, in (a, b): the
    set Σ p² = 1, p² >= 0.05, max(|a|, |b|^½) = 1 leaves out no solution with p² that large. In the
    softmax system q1 and q2 are free: |l1| = 2 and 4 alone keep them small.
    """
    rng, best = np.random.default_rng(m), np.inf

    def residuals(z: np.ndarray) -> np.ndarray:
        parts = z.reshape(-1, m)
        weights = 0.05 + (1 - 0.05 * m) * scipy.special.softmax(parts[0])
        a, b = parts[1], parts[2]
        scale = max(np.max(np.abs(a)), np.sqrt(np.max(np.abs(b))), 1e-12)
        p, a, b = np.sqrt(weights), a / scale, b / scale**2
        if not softmax:
            return location_scale_residuals(p, a, b, order)
        q1, q2 = (
            part[:, None] / scale**power for part, power in zip(parts[3:], (1, 2), strict=True)
        )
        return softmax_residuals(p, q1, q2, a, b, order)

    for _ in range(starts):
        start = rng.normal(size=(5 if softmax else 3) * m)
        found = scipy.optimize.least_squares(residuals, start, xtol=1e-14, max_nfev=60)
        best = min(best, float(np.linalg.norm(found.fun)))
        if best < 1e-10:
            break
    return best


@pytest.mark.slow
@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("softmax", [False, True], ids=["location-scale", "softmax"])
def test_a_search_finds_solutions_below_the_threshold_and_none_at_it(m: int, softmax: bool) -> None:
    """Numerical, beside the proof: from many starts, on a compact set."""
    order = int(polynomial_order(np.array(m)))
    starts = 5 if softmax else 30
    assert least_residual(m, order - 1, starts, softmax) < 1e-7
    assert least_residual(m, order, starts, softmax) > 1e-5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: location_scale_residuals([1.0], [1.0, 2.0], [1.0], 2), r"one shape \(\.\.\., m\)"),
        (lambda: location_scale_residuals([1.0], [1.0], [1.0], 0), "order must be a whole number"),
        (lambda: softmax_residuals([1.0], [1.0], [1.0], [1.0], [1.0], 2), r"q1, q2 \(m, d\), got"),
        (
            lambda: softmax_residuals([1.0], [[1.0]], [[1.0, 2.0]], [1.0], [1.0], 2),
            r"q1 and q2 must have one shape \(m, d\), got \(1, 1\) and \(1, 2\)",
        ),
        (lambda: softmax_equations(0, 2), "d must be a whole number of at least 1, got 0"),
        (lambda: gauss_hermite(1), "m must be a whole number of at least 2, got 1"),
    ],
)
def test_errors_name_the_value_and_the_rule(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
