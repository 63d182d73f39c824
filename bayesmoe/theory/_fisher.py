"""Fisher information in the paper's parameters, expected by quadrature and observed on data.

The expected information is E[s sᵀ], s = ∂ log g_G(Y|X)/∂θ. It is kept as a square root R,
RᵀR = E[s sᵀ], from the scores themselves: singular values of R are then good to rounding, where
eigenvalues of the matrix would be good to the square root of it.

Quadrature: over x the points given; over y, at each x, Gauss and Legendre's rule between
breakpoints around the mean of every expert, at fixed multiples of its standard deviation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bayesmoe.core.gate import Gate
from bayesmoe.core.hessian import evaluate_log_likelihood
from bayesmoe.core.layout import Layout
from bayesmoe.core.likelihood import log_density
from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.core.observations import Data, make_data
from bayesmoe.core.scaling import Scaling
from bayesmoe.core.validate import check_observations

#: Gauss-Legendre nodes between two breakpoints
NODES = 8

_ROWS = 8192

# breakpoints in standard deviations; beyond the last ones is 1e-19 of the mass
_BREAKS = np.asarray([-9.0, -6.5, -4.5, -3.0, -1.5, 0.0, 1.5, 3.0, 4.5, 6.5, 9.0])


@dataclasses.dataclass(frozen=True, eq=False)
class Parameters:
    """The free ones among the paper's parameters of a model, in the order of `FIELDS`.

    Attributes
    ----------
    gate
        The gate; without a temperature, τ is not free.
    origin
        The measure that pinned parameters are taken from.
    free
        Where the p free parameters stand among all, flattened field by field, shape ``(p,)``.
    names
        Such as ``gate_slope[0, 0]``, one for each free parameter.
    blocks
        The field of each free parameter.
    """

    gate: Gate
    origin: MixingMeasure
    free: np.ndarray
    names: tuple[str, ...]
    blocks: tuple[str, ...]

    @classmethod
    def of(cls, gate: Gate, measure: MixingMeasure, *, free_reference: bool = False) -> Parameters:
        """Pin the last expert's gate, unless ``free_reference``."""
        k = measure.n_experts
        free, names, blocks, place = [], [], [], 0
        for field in FIELDS:
            values = np.asarray(getattr(measure, field))
            for index in np.ndindex(values.shape):
                pinned = field == "temperature" and not gate.has_temperature
                if field in ("gate_slope", "gate_intercept") and not free_reference:
                    pinned = index[0] == k - 1
                if not pinned:
                    free.append(place)
                    names.append(f"{field}[{', '.join(map(str, index))}]" if index else field)
                    blocks.append(field)
                place += 1
        return cls(gate, measure, np.asarray(free), tuple(names), tuple(blocks))

    @property
    def size(self) -> int:
        """p, the number of free parameters."""
        return len(self.free)

    @property
    def values(self) -> np.ndarray:
        """The origin's free parameters, shape ``(p,)``."""
        return flatten(self.origin)[self.free]

    def restrict(self, direction: MixingMeasure) -> np.ndarray | None:
        """A direction of all parameters as one of the free ones, or None if that is impossible.

        What it moves the pinned parameters by is undone by translations, where the gate has them.
        """
        fields = {field: np.asarray(getattr(direction, field)) for field in FIELDS}
        pinned = np.setdiff1d(np.arange(flatten(direction).size), self.free)
        names = ["gate_intercept", *(["gate_slope"] if self.gate.translates else [])]
        if np.any(flatten(direction)[pinned]):
            fields |= {name: fields[name] - fields[name][-1] for name in names}
        whole = flatten(MixingMeasure(**fields))
        return None if np.any(whole[pinned]) else whole[self.free]


def flatten(measure: MixingMeasure) -> np.ndarray:
    """All parameters of one measure, field by field, shape ``(all,)``."""
    return np.concatenate([np.ravel(getattr(measure, field)) for field in FIELDS])


def unflatten(values: Array, n_experts: int, n_covariates: int) -> MixingMeasure:
    """The inverse of `flatten`."""
    k, d = n_experts, n_covariates
    shapes = ((k, d), (k,), (), (k, d), (k,), (k,))
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1].tolist()
    parts = jnp.split(values, ends)
    return MixingMeasure(*(p.reshape(s) for p, s in zip(parts, shapes, strict=True)))


class Rule(NamedTuple):
    """Quadrature for the joint law of (X, Y): N points.

    Attributes
    ----------
    x, y
        Shapes ``(N, d)`` and ``(N,)``.
    weight
        Of each point under the law, with sum one but for the error, shape ``(N,)``.
    """

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray


def joint_rule(gate: Gate, measure: MixingMeasure, x: ArrayLike, nodes: int = NODES) -> Rule:
    """Quadrature for X uniform on the points x ``(m, d)`` and Y|X from the measure."""
    covariates = np.asarray(x, dtype=float)
    mean, deviation = np.asarray(measure.slope), np.sqrt(np.asarray(measure.variance))
    mean = covariates @ mean.T + np.asarray(measure.intercept)
    breaks = mean[..., None] + deviation[:, None] * _BREAKS
    breaks = np.sort(breaks.reshape(len(covariates), -1), axis=1)
    point, mass = np.polynomial.legendre.leggauss(nodes)
    width = np.diff(breaks, axis=1)[..., None] / 2
    y = (breaks[:, :-1, None] + width * (1 + point)).reshape(len(covariates), -1)
    area = (width * mass).reshape(len(covariates), -1) / len(covariates)
    rows = np.repeat(covariates, y.shape[1], axis=0)
    density = np.exp(pointwise_log_density(gate, measure, rows, y.ravel()))
    weight = density * area.ravel()
    return Rule(rows, y.ravel(), weight)


def pointwise_log_density(
    gate: Gate, measure: MixingMeasure, x: ArrayLike, y: ArrayLike
) -> np.ndarray:
    """log g_G(y_j|x_j), shape ``(n,)``."""
    return _in_chunks(partial(_log_density, gate, measure), x, y)


def scores(parameters: Parameters, x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """∂ log g(y_j|x_j)/∂θ at the origin, shape ``(n, p)``."""
    whole = _in_chunks(partial(_scores, parameters.gate, parameters.origin), x, y)
    return whole[:, parameters.free]


def _in_chunks(function: Callable[..., Array], x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Chunks of one size: one compilation serves every number of points."""
    covariates, response = np.asarray(x), np.asarray(y)
    n = len(response)
    padding = -n % _ROWS
    covariates = np.pad(covariates, ((0, padding), (0, 0)), mode="edge")
    response = np.pad(response, (0, padding), mode="edge")
    starts = range(0, n, _ROWS)
    parts = [function(covariates[i : i + _ROWS], response[i : i + _ROWS]) for i in starts]
    return np.concatenate(parts)[:n]


_log_density = jax.jit(log_density, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def _scores(gate: Gate, measure: MixingMeasure, x: Array, y: Array) -> Array:
    def value(whole: Array) -> Array:
        point = unflatten(whole, measure.n_experts, measure.n_covariates)
        return log_density(gate, point, x, y)

    whole = jnp.concatenate([jnp.ravel(getattr(measure, field)) for field in FIELDS])
    return jax.jacfwd(value)(whole)


@dataclasses.dataclass(frozen=True, eq=False)
class Information:
    """Information per observation on the free parameters.

    Attributes
    ----------
    parameters
        Which they are.
    matrix
        Shape ``(p, p)``.
    root
        R with RᵀR = matrix, shape ``(p, p)``; None for observed information, which need not have
        one.
    error
        The largest relative change of an entry, against the diagonal, when the nodes over y are
        doubled; None for observed information.
    """

    parameters: Parameters
    matrix: np.ndarray
    root: np.ndarray | None = None
    error: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The free parameters' names."""
        return self.parameters.names

    @property
    def units(self) -> np.ndarray:
        """One conditional standard error of each parameter for one observation, shape ``(p,)``.

        The inverse roots of the diagonal; for parameters without any information their scale in
        the model: τ for the gate, an expert's standard deviation, its variance.
        """
        diagonal = np.diag(self.matrix)
        natural = natural_units(self.parameters)
        known = diagonal * natural**2 > INERT
        return np.where(known, 1 / np.sqrt(np.where(known, diagonal, 1.0)), natural)


#: information per observation, in natural units, that is rounding alone
INERT = 1e-20


def natural_units(parameters: Parameters) -> np.ndarray:
    """τ for gate parameters, the standard deviation for means, the variance for variances."""
    origin = parameters.origin
    deviation = jnp.sqrt(origin.variance)
    tau = origin.temperature
    units = origin.replace(
        gate_slope=jnp.full_like(origin.gate_slope, tau),
        gate_intercept=jnp.full_like(origin.gate_intercept, tau),
        slope=jnp.ones_like(origin.slope) * deviation[:, None],
        intercept=deviation,
    )
    return flatten(units)[parameters.free]


def expected_information(parameters: Parameters, x: ArrayLike, nodes: int = NODES) -> Information:
    """E[s sᵀ] at the origin, X being uniform on the points x ``(m, d)``."""
    root = _root(parameters, x, nodes)
    matrix, finer = root.T @ root, _root(parameters, x, 2 * nodes)
    scale = np.sqrt(np.diag(matrix))
    scale = np.where(scale > 0, scale, 1.0)
    change = np.abs(finer.T @ finer - matrix) / np.outer(scale, scale)
    return Information(parameters, matrix, root, float(np.max(change)))


def _root(parameters: Parameters, x: ArrayLike, nodes: int) -> np.ndarray:
    rule = joint_rule(parameters.gate, parameters.origin, x, nodes)
    return weighted_root(scores(parameters, rule.x, rule.y), rule.weight)


def weighted_root(columns: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """R with RᵀR = Σ weight · row rowᵀ of the columns ``(N, p)``."""
    return np.asarray(np.linalg.qr(np.sqrt(weight)[:, None] * columns, mode="r"))


def observed_information(
    gate: Gate, measure: MixingMeasure, x: ArrayLike, y: ArrayLike
) -> Information:
    """-(1/n) ∂²/∂θ∂θᵀ of the log-likelihood at a measure, the reference expert pinned.

    Parameters
    ----------
    gate, measure
        The model and where it is looked at; any measure, not only an estimate.
    x, y
        The data: covariates ``(n, d)`` or ``(n,)`` and response ``(n,)``.

    Raises
    ------
    ValueError
        If the data are not valid.
    """
    covariates, response = check_observations(x, y)
    parameters = Parameters.of(gate, measure)
    layout = Layout(gate, measure.n_experts, measure.n_covariates)
    scaling = Scaling.identity(measure.n_covariates)
    whole = _observed(layout, measure, make_data(covariates, response, scaling))
    free = parameters.free
    matrix = -np.asarray(whole)[np.ix_(free, free)] / len(response)
    return Information(parameters, (matrix + matrix.T) / 2)


@partial(jax.jit, static_argnums=0)
def _observed(layout: Layout, measure: MixingMeasure, data: Data) -> Array:
    """The Hessian in all parameters, by the chain rule from that in the layout's coordinates."""

    def coordinates(whole: Array) -> Array:
        return layout.pack(unflatten(whole, measure.n_experts, measure.n_covariates))

    whole = jnp.concatenate([jnp.ravel(getattr(measure, field)) for field in FIELDS])
    at = evaluate_log_likelihood(layout, coordinates(whole), data)
    jacobian = jax.jacfwd(coordinates)(whole)
    bend = jnp.einsum("c,cab->ab", at.gradient, jax.jacfwd(jax.jacfwd(coordinates))(whole))
    return jacobian.T @ at.hessian @ jacobian + bend
