"""Predictions at new covariates: of one mixing measure, or averaged over posterior draws."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp
from numpy.typing import ArrayLike
from xarray import DataTree

from bayesmoe.core.density import GaussianMixture, predictive_density
from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure, check_positive
from bayesmoe.core.model import MoE
from bayesmoe.core.validate import (
    as_key,
    check_covariates,
    check_fraction,
    check_observations,
    check_whole,
)
from bayesmoe.diagnostics.posterior import check_tree
from bayesmoe.diagnostics.predictive import simulate
from bayesmoe.inference.starts import generator
from bayesmoe.theory.voronoi import as_measure

#: of the content of intervals
LEVEL = 0.9

_ROWS = 512  # evaluated together
_NUMBERS = 2**20  # rows times components at most: of many draws, fewer rows go together
_BLOCK = 64  # rows, and samples, that are drawn together

Quantity = Callable[[GaussianMixture, Array, int], Array]


class Predictive:
    """The law of a response at new covariates.

    Under one mixing measure it is ``g_G(·|x)``; under S draws it is the posterior predictive
    mixture, the average of their S densities, and all means, quantiles and densities are those of
    this mixture. All draws take part. Rows are evaluated in chunks, so that memory beyond data and
    result does not grow with their number.

    Parameters
    ----------
    model
        From `bayesmoe.moe`.
    estimate
        A `MixingMeasure` with any batch axes, or a DataTree from `sample_posterior` or
        `sample_laplace`.

    Raises
    ------
    ValueError
        If the estimate comes from another model, or has no draws. All methods raise it if their
        arguments cannot be used, or if a row lies so far from the data that its prediction is no
        finite number.

    Notes
    -----
    Of draws, `gate_probabilities` and `responsibilities` mean something only if experts are named
    alike in all of them (`bayesmoe.align`); nothing else depends on names.
    """

    def __init__(self, model: MoE, estimate: MixingMeasure | DataTree) -> None:
        if isinstance(estimate, DataTree):
            check_tree(model, estimate)
        measures = as_measure(estimate)
        if measures.n_experts != model.n_experts:
            raise ValueError(
                f"the estimate has {measures.n_experts} experts, the model {model.n_experts}; "
                "pass the model that was fitted"
            )
        model.layout(measures.n_covariates).check("the estimate", measures)
        check_positive("the estimate", measures)
        axes = len(measures.batch_shape)
        self.model = model
        self.measures: MixingMeasure = jax.tree.map(
            lambda leaf: jax.device_put(np.asarray(leaf).reshape(-1, *leaf.shape[axes:])), measures
        )
        if self.measures.batch_shape[0] == 0:
            raise ValueError("the estimate holds no draws; at least one is needed")

    def mean(self, x: ArrayLike) -> np.ndarray:
        """E[Y|x], shape ``(n,)``, for x of shape ``(n, d)`` or ``(n,)``."""
        return self._at(_mean, self._covariates(x))

    def standard_deviation(self, x: ArrayLike) -> np.ndarray:
        """The standard deviation of Y given x, shape ``(n,)``."""
        return self._at(_standard_deviation, self._covariates(x))

    def cdf(self, x: ArrayLike, y: ArrayLike) -> np.ndarray:
        """P(Y <= y_j|x_j), shape ``(n,)``, for y of shape ``(n,)``."""
        return self._at(_cdf, *self._observations(x, y))

    def log_density(self, x: ArrayLike, y: ArrayLike) -> np.ndarray:
        """log p(y_j|x_j), shape ``(n,)``; -inf where the logarithm itself overflows."""
        return self._at(_log_density, *self._observations(x, y), least=-np.inf)

    def density(self, x: ArrayLike, y: ArrayLike) -> np.ndarray:
        """p(y_j|x_j), shape ``(n,)``."""
        return np.exp(self.log_density(x, y))

    def quantiles(self, x: ArrayLike, levels: ArrayLike) -> np.ndarray:
        """Quantiles of Y given x, shape ``(n, q)``, for q levels between 0 and 1 in any order.

        Relative errors are a few units of rounding, and a higher level has no lower quantile.
        """
        covariates, wanted = self._covariates(x), _levels(levels)
        distinct, place = np.unique(wanted, return_inverse=True)
        found = [self._at(_quantile, covariates, np.full(len(covariates), q)) for q in distinct]
        return np.maximum.accumulate(np.stack(found, axis=1), axis=1)[:, place]

    def interval(self, x: ArrayLike, level: float = LEVEL) -> np.ndarray:
        """Ends of the equal-tailed interval with probability ``level``, shape ``(n, 2)``."""
        level = check_fraction("level", level)
        tail = (1 - level) / 2
        return self.quantiles(x, [tail, 1 - tail])

    def sample(self, x: ArrayLike, n_samples: int = 1, *, key: Array | int = 0) -> np.ndarray:
        """Responses at x, shape ``(n, n_samples)``.

        Each sample is a data set: one draw of the measure, the same for all rows, then a response
        at every row.
        """
        covariates, n_samples = self._covariates(x), check_whole("n_samples", n_samples, least=1)
        choice_key, key = jax.random.split(as_key(key))
        drawn = generator(choice_key).integers(self.measures.batch_shape[0], size=n_samples)
        parts = [part for part, _ in _chunks(covariates, np.zeros(len(covariates)), _BLOCK)]
        found = np.empty((len(parts) * _BLOCK, -(-n_samples // _BLOCK) * _BLOCK))
        for j, block in enumerate(_filled(n_samples, _BLOCK)):
            chosen = _take(self.measures, drawn[block][None])
            for i, part in enumerate(parts):
                block_key = jax.random.fold_in(jax.random.fold_in(key, i), j)
                simulated = np.asarray(simulate(self.model.gate, chosen, part, block_key))[0]
                found[i * _BLOCK :, j * _BLOCK :][:_BLOCK, :_BLOCK] = simulated.T
        return _finite(found[: len(covariates), :n_samples])

    def gate_probabilities(self, x: ArrayLike) -> np.ndarray:
        """The probability of each expert at x, before y is seen, shape ``(n, k)``."""
        return self._at(_gate_probabilities, self._covariates(x))

    def responsibilities(self, x: ArrayLike, y: ArrayLike) -> np.ndarray:
        """The probability that each expert makes a new response that is y_j, shape ``(n, k)``."""
        return self._at(_responsibilities, *self._observations(x, y))

    def _covariates(self, x: ArrayLike) -> np.ndarray:
        covariates = np.asarray(check_covariates(x))
        d = self.measures.n_covariates
        if covariates.shape[1] != d:
            raise ValueError(
                f"x has {covariates.shape[1]} covariates, but the model was fitted to {d}; "
                "pass the same columns in the same order"
            )
        if len(covariates) == 0:
            raise ValueError("x is empty; at least one row is needed")
        return covariates

    def _observations(self, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        return self._covariates(x), np.asarray(check_observations(x, y)[1])

    def _at(
        self,
        quantity: Quantity,
        x: np.ndarray,
        value: np.ndarray | None = None,
        least: float = -np.finfo(float).max,
    ) -> np.ndarray:
        """A quantity at checked covariates, chunk by chunk; ``value`` is y or a level by row."""
        value = np.zeros(len(x)) if value is None else value
        components = self.measures.batch_shape[0] * self.model.n_experts
        size = min(_ROWS, 1 << max(_NUMBERS // components, 1).bit_length() - 1)
        parts = [
            np.asarray(_evaluate(quantity, self.model.gate, self.measures, *chunk))
            for chunk in _chunks(x, value, size)
        ]
        return _finite(np.concatenate(parts)[: len(x)], least)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(
    quantity: Quantity, gate: Gate, measures: MixingMeasure, x: Array, value: Array
) -> Array:
    return quantity(predictive_density(gate, measures, x), value, measures.n_experts)


def _mean(law: GaussianMixture, _: Array, k: int) -> Array:
    return law.mean


def _standard_deviation(law: GaussianMixture, _: Array, k: int) -> Array:
    return jnp.sqrt(law.variance)


def _cdf(law: GaussianMixture, y: Array, k: int) -> Array:
    return law.cdf(y)


def _log_density(law: GaussianMixture, y: Array, k: int) -> Array:
    return law.log_prob(y)


def _quantile(law: GaussianMixture, level: Array, k: int) -> Array:
    return law.icdf(level)


def _gate_probabilities(law: GaussianMixture, _: Array, k: int) -> Array:
    return jnp.sum(jnp.exp(_by_expert(law.log_weights, k)), axis=1)


def _responsibilities(law: GaussianMixture, y: Array, k: int) -> Array:
    joint = logsumexp(_by_expert(law.component_log_prob(y), k), axis=1)
    return jax.nn.softmax(joint, axis=-1)


def _by_expert(components: Array, k: int) -> Array:
    """Values by component ``(n, S k)`` as ``(n, S, k)``."""
    return components.reshape(len(components), -1, k)


def _chunks(x: np.ndarray, value: np.ndarray, size: int) -> list[tuple[Array, Array]]:
    return [
        (jax.device_put(x[rows]), jax.device_put(value[rows])) for rows in _filled(len(x), size)
    ]


def _filled(n: int, size: int) -> list[np.ndarray]:
    """Indices 0 … n-1 in parts of one size, so that one compiled program serves any n.

    The last part is filled up with its last index.
    """
    n_parts = -(-n // size)
    return np.split(np.minimum(np.arange(n_parts * size), n - 1), n_parts)


def _take(measures: MixingMeasure, index: np.ndarray) -> MixingMeasure:
    """Measures of a batch ``(S,)`` by NumPy: JAX would compile the indexing for every shape."""
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)[index]), measures)


def _levels(levels: ArrayLike) -> np.ndarray:
    try:
        wanted = np.atleast_1d(np.asarray(levels, dtype=float))
    except (TypeError, ValueError):
        raise ValueError(f"levels must be numbers between 0 and 1, got {levels!r}") from None
    if wanted.ndim != 1 or wanted.size == 0:
        raise ValueError(f"levels must be a number or a list of numbers, got shape {wanted.shape}")
    for level in wanted.tolist():
        check_fraction("levels of quantiles", level)
    return wanted


def _finite(values: np.ndarray, least: float = -np.finfo(float).max) -> np.ndarray:
    """``values``, if they are finite numbers (-inf allowed if it is the ``least``)."""
    good = (values >= least) & (values < np.inf)
    if not np.all(good):
        row = int(np.argwhere(~good)[0, 0])
        raise ValueError(
            f"the prediction at row {row} is no finite number: x or y is too far from the data; "
            "leave the row out, or check its units"
        )
    return values
