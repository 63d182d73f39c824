"""The null space of an information, found numerically, then named.

The names come from what the gate declares (translations, a ray) and from experts that coincide. A
declared direction names only what it matches: it has to lie in the numerical null space. What is
left is told by its largest coefficients.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.theory._fisher import Information, Parameters

#: Singular values of the root of the information, with the diagonal scaled to one, up to this
#: count as zero; rounding leaves 1e-15. Of observed information, an eigenvalue up to 1e-10.
NULL = 1e-9
NULL_OBSERVED = 1e-10
#: directions with less than this information, the diagonal scaled to one, are weak
WEAK = 1e-4

_MATCH = 1e-6  # how far, as a sine, a declared direction may be off the null space
_SHOWN = 0.05  # coefficients below this share of the largest are not told

#: kinds of directions
KINDS = ("translation", "ray", "weight", "split", "unnamed", "weak")


class Direction(NamedTuple):
    """A direction in the free parameters, in words.

    Attributes
    ----------
    kind
        One of `KINDS`: a translation or ray of the gate, an exchange of weight between experts that
        coincide, their moving apart, none of these; or, for `weak`, not in the null space.
    words
        Such as "scaling of gate_slope, gate_intercept and temperature together".
    vector
        Its change of each parameter, of unit length in `Information.units`, shape ``(p,)``.
    information
        Along it, the diagonal scaled to one: zero to rounding in the null space.
    experts
        The two that coincide; empty for other kinds.
    parameter
        The name of the first one's parameter that moves, if they move apart; else empty.
    """

    kind: str
    words: str
    vector: np.ndarray
    information: float
    experts: tuple[int, ...] = ()
    parameter: str = ""


class NullSpace(NamedTuple):
    """What an information does not determine.

    Attributes
    ----------
    directions
        A basis of the null space, named.
    weak
        Directions outside of it with information below `WEAK`.
    spectrum
        The eigenvalues of the information, the diagonal scaled to one, ascending, ``(p,)``.
    involved
        Which parameters the null space moves, shape ``(p,)``.
    """

    directions: tuple[Direction, ...]
    weak: tuple[Direction, ...]
    spectrum: np.ndarray
    involved: np.ndarray


def null_space(information: Information) -> NullSpace:
    """Find and name the null space of expected or observed information.

    Observed information has the model's null space only where the score is zero: at an estimate.
    """
    units = information.units
    spectrum, vectors, null = _decompose(information, units)
    basis = vectors[:, null]
    named, span = [], np.zeros((len(units), 0))
    for candidate, vector in _candidates(information.parameters):
        unit = vector / units
        unit /= np.linalg.norm(unit)
        off = np.linalg.norm(unit - basis @ (basis.T @ unit))
        new = unit - span @ (span.T @ unit)
        if off <= _MATCH < np.linalg.norm(new):
            span = np.column_stack([span, new / np.linalg.norm(new)])
            known = _direction(information, candidate.kind, candidate.words, unit)
            named.append(known._replace(experts=candidate.experts, parameter=candidate.parameter))
    for unit in _sparse_basis(basis, span):
        named.append(_direction(information, "unnamed", _tell(information.names, unit), unit))
    weak = [
        _direction(information, "weak", _tell(information.names, vectors[:, i]), vectors[:, i])
        for i in np.flatnonzero(~null & (spectrum < WEAK))
    ]
    involved = np.linalg.norm(basis, axis=1) > _MATCH
    return NullSpace(tuple(named), tuple(weak), spectrum, involved)


def _decompose(
    information: Information, units: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues ascending ``(p,)``, eigenvectors in columns, and which are zero."""
    if information.root is None:
        spectrum, vectors = np.linalg.eigh(units[:, None] * information.matrix * units)
        return spectrum, vectors, np.abs(spectrum) <= NULL_OBSERVED
    _, singular, rows = np.linalg.svd(information.root * units)
    singular, vectors = singular[::-1], rows[::-1].T
    return singular**2, vectors, singular <= NULL


def _direction(information: Information, kind: str, words: str, unit: np.ndarray) -> Direction:
    vector = unit * information.units
    return Direction(kind, words, vector, float(vector @ information.matrix @ vector))


def _sparse_basis(basis: np.ndarray, span: np.ndarray) -> list[np.ndarray]:
    """What is left of the null space, by unit vectors with as many zeros as pivoting finds."""
    left = basis.shape[1] - span.shape[1]
    if not left:
        return []
    rest = basis - span @ (span.T @ basis)
    rest = np.linalg.svd(rest, full_matrices=False)[0][:, :left]
    _, _, order = scipy.linalg.qr(rest.T, pivoting=True, mode="economic")
    reduced = rest @ np.linalg.inv(rest[order[:left]])
    return [column / np.linalg.norm(column) for column in reduced.T]


def _tell(names: tuple[str, ...], unit: np.ndarray) -> str:
    """The largest coefficients, those of conditional standard errors."""
    share = unit / unit[np.argmax(np.abs(unit))]
    order = [i for i in np.argsort(-np.abs(share), kind="stable") if abs(share[i]) >= _SHOWN]
    if len(order) == 1:
        return f"{names[order[0]]} alone"
    return ", ".join(f"{share[i]:+.2g} {names[i]}" for i in order)


class _Candidate(NamedTuple):
    kind: str
    words: str
    direction: MixingMeasure
    experts: tuple[int, ...] = ()
    parameter: str = ""


def _candidates(parameters: Parameters) -> Iterator[tuple[_Candidate, np.ndarray]]:
    """Everything that might be in the null space, and as a direction of the free parameters."""
    gate, origin = parameters.gate, parameters.origin
    for candidate in (*_declared(gate, origin), *_of_splits(origin)):
        vector = parameters.restrict(candidate.direction)
        if vector is not None and np.any(vector):
            yield candidate, vector


def _declared(gate: Gate, origin: MixingMeasure) -> Iterator[_Candidate]:
    zero = jax.tree_util.tree_map(jnp.zeros_like, origin)
    for c in range(origin.n_covariates if gate.translates else 0):
        where = f" of covariate {c}" if origin.n_covariates > 1 else ""
        moved = zero.replace(gate_slope=zero.gate_slope.at[:, c].set(1.0))
        yield _Candidate("translation", f"translation of all gate_slopes{where} together", moved)
    moved = zero.replace(gate_intercept=jnp.ones_like(origin.gate_intercept))
    yield _Candidate("translation", "translation of all gate_intercepts together", moved)
    if gate.ray:
        words = "scaling of gate_slope, gate_intercept and temperature together"
        slope, intercept, temperature = origin.gate
        yield _Candidate(
            "ray", words, MixingMeasure(slope, intercept, temperature, *_experts(zero))
        )


def _experts(measure: MixingMeasure) -> tuple[Array, Array, Array]:
    return measure.slope, measure.intercept, measure.variance


def _of_splits(origin: MixingMeasure) -> Iterator[_Candidate]:
    """Directions in which experts that coincide differ, their weighted mean being kept."""
    zero = jax.tree_util.tree_map(jnp.zeros_like, origin)
    for i, j in coinciding(origin):
        weight = np.asarray(origin.gate_intercept)[[i, j]] / float(origin.temperature)
        weight = np.exp(weight - weight.max())
        apart = np.zeros(origin.n_experts)
        apart[[i, j]] = [1 / weight[0], -1 / weight[1]]
        words = f"exchange of weight between experts {i} and {j}, which coincide"
        yield _Candidate("weight", words, zero.replace(gate_intercept=apart), (i, j))
        for field in ("gate_slope", "slope", "intercept", "variance"):
            shape = np.shape(getattr(origin, field))[1:]
            for index in np.ndindex(shape):
                moved = np.zeros((origin.n_experts, *shape))
                moved[(slice(None), *index)] = apart
                where = f" in covariate {index[0]}" if shape and shape[0] > 1 else ""
                words = f"{field} of experts {i} and {j} moving apart{where}"
                name = f"{field}[{', '.join(map(str, (i, *index)))}]"
                yield _Candidate("split", words, zero.replace(**{field: moved}), (i, j), name)


def coinciding(origin: MixingMeasure) -> list[tuple[int, int]]:
    """Pairs of experts with the same (β1, a, b, ν): each with the first one it equals."""
    blocks = (origin.gate_slope, origin.slope, origin.intercept, origin.variance)
    atoms = np.column_stack([np.asarray(block) for block in blocks])
    pairs: dict[int, int] = {}
    for i, j in itertools.combinations(range(origin.n_experts), 2):
        if np.array_equal(atoms[i], atoms[j]):
            pairs.setdefault(j, i)
    return [(i, j) for j, i in pairs.items()]
