"""How a mixing measure is flattened into the coordinates that estimators move in."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import GateParameters, MixingMeasure
from bayesmoe.core.selection import ALL, Selection, spread, take


class Layout(NamedTuple):
    """How a mixing measure of one gate is flattened into identifiable coordinates.

    The order is: gate coordinates, slopes a, intercepts b, log variances log ν. Covariates that are
    not selected have no coordinates: gate and experts see designs without them (`Data`), and their
    slopes are zeros of the mixing measure.
    """

    gate: Gate
    n_experts: int
    n_covariates: int
    selection: Selection = ALL  # resolved: None where nothing is left out

    @property
    def n_gate_covariates(self) -> int:
        columns = self.selection.gate
        return self.n_covariates if columns is None else len(columns)

    @property
    def n_expert_covariates(self) -> int:
        columns = self.selection.experts
        return self.n_covariates if columns is None else len(columns)

    @property
    def n_gate(self) -> int:
        return self.gate.n_coordinates(self.n_experts, self.n_gate_covariates)

    @property
    def size(self) -> int:
        """The number of free parameters."""
        return self.n_gate + self.n_experts * (self.n_expert_covariates + 2)

    def split(self, coordinates: Array) -> tuple[Array, Array, Array, Array]:
        """Gate coordinates, slope ``(k, d)``, intercept ``(k,)`` and log variance ``(k,)``.

        The slopes, and the d here, are those of the experts' covariates.
        """
        k, d = self.n_experts, self.n_expert_covariates
        gate, slope, intercept, log_variance = jnp.split(
            coordinates, np.cumsum([self.n_gate, k * d, k]).tolist()
        )
        return gate, slope.reshape(k, d), intercept, log_variance

    def gate_parameters(self, gate: Array) -> GateParameters:
        """The gate's parameters at its coordinates, over the covariates of `Data.gate_x`."""
        return self.gate.from_coordinates(gate, self.n_experts, self.n_gate_covariates)

    def measure(self, gate: GateParameters, *experts: Array) -> MixingMeasure:
        """The mixing measure of parameters over selected covariates: zeros for the others."""
        slope, d = gate.slope, self.n_covariates
        gate = gate._replace(slope=spread(slope, self.selection.gate, d))
        return MixingMeasure(*gate, spread(experts[0], self.selection.experts, d), *experts[1:])

    def unpack(self, coordinates: Array) -> MixingMeasure:
        """The mixing measure (of standardised data) at ``coordinates`` of shape ``(p,)``."""
        gate, slope, intercept, log_variance = self.split(coordinates)
        return self.measure(self.gate_parameters(gate), slope, intercept, jnp.exp(log_variance))

    def pack(self, measure: MixingMeasure) -> Array:
        """The inverse of `unpack`; slopes of covariates left out do not count."""
        return jnp.concatenate(
            [
                self.gate.to_coordinates(self._selected(measure.gate)),
                take(measure.slope, self.selection.experts).ravel(),
                measure.intercept,
                jnp.log(measure.variance),
            ]
        )

    @property
    def other_references_matter(self) -> bool:
        """Whether a likelihood does not know which expert is the reference, and a prior does.

        That is so of gates with translations, but of two experts the other reference mirrors the
        gate, which a prior that is symmetric about zero does not tell either.
        """
        return self.gate.translates and self.n_experts > 2

    def other_references(self, measure: MixingMeasure) -> Array:
        """Coordinates with each of the k - 1 other experts as the reference, ``(k - 1, p)``.

        Under a gate with translations that leaves the density of y unchanged.
        """
        k = self.n_experts
        orders = [(np.arange(k) + turn) % k for turn in range(1, k)]

        def under(order: np.ndarray) -> Array:  # packing moves the last expert's gate to zero
            return self.pack(jax.tree.map(lambda leaf: leaf[order] if leaf.ndim else leaf, measure))

        return jnp.stack([under(order) for order in orders])

    def log_jacobian(self, measure: MixingMeasure) -> Array:
        """log |∂(paper's parameters)/∂coordinates|."""
        gate = self._selected(measure.gate)
        return self.gate.log_jacobian(gate) + jnp.sum(jnp.log(measure.variance))

    def _selected(self, gate: GateParameters) -> GateParameters:
        return gate._replace(slope=take(gate.slope, self.selection.gate))

    def check(self, name: str, measure: MixingMeasure) -> None:
        """Raise ValueError if a slope that the layout has no coordinate for is not zero.

        Traced values pass unchecked.
        """
        if self.selection.is_all or isinstance(measure.slope, jax.core.Tracer):
            return
        relative = measure.gate_slope
        if self.gate.translates:  # a translation of all slopes leaves the gate unchanged
            relative = relative - relative[..., -1:, :]
        blocks = (
            ("gate_slope", relative, self.selection.gate),
            ("slope", measure.slope, self.selection.experts),
        )
        for field, values, columns in blocks:
            for column in range(self.n_covariates):
                left_out = columns is not None and column not in columns
                if left_out and np.any(np.asarray(values[..., column]) != 0):
                    raise ValueError(
                        f"{name} has a {field} of covariate {column}, which the model leaves out: "
                        "it must be zero; pass what was fitted with this model"
                    )

    def expert_order(self) -> np.ndarray:
        """Where each coordinate of the experts stands in `_Terms`: ``(k (d+2),)``.

        There one expert follows the other: slopes, intercept and log variance.
        """
        k, d = self.n_experts, self.n_expert_covariates
        place = np.arange(k * (d + 2)).reshape(k, d + 2)
        return np.concatenate([place[:, :-2].ravel(), place[:, -2], place[:, -1]])

    def gate_seeds(self) -> np.ndarray:
        """Directions ``(c, n_gate)`` that together show every derivative of the logits.

        If each logit depends on its own expert's coordinates alone, one direction moves the same
        coordinate of all experts.
        """
        if not self.gate.separable:
            return np.eye(self.n_gate)
        return np.minimum(self.gate_rows().sum(axis=0), 1.0)

    def gate_rows(self) -> np.ndarray:
        """Which coordinate of each expert a seed moves: ``(k, c, n_gate)``, zeros and ones."""
        k, d, g = self.n_experts, self.n_gate_covariates, self.n_gate
        if not self.gate.separable:
            return np.tile(np.eye(g), (k, 1, 1))
        rows = np.zeros((k, d + 1 + int(self.gate.has_temperature), g))
        for expert in range(k - 1):  # the reference has no coordinates but τ's
            rows[expert, np.arange(d), expert * d + np.arange(d)] = 1.0
            rows[expert, d, (k - 1) * d + expert] = 1.0
        if self.gate.has_temperature:
            rows[:, -1, -1] = 1.0
        return rows

    def gate_scores(self, weighted: Array) -> Array:
        """Rows ``(h, m)`` of Σ_i w_i ∂z_i/∂coordinate; `gate_score_rows` tells which are whose.

        From w_i times the derivatives along the seeds, ``(c, k, m)``.
        """
        if self.gate.separable:  # each expert's stay apart
            return weighted.reshape(-1, weighted.shape[-1])
        return jnp.sum(weighted, axis=1)

    def gate_score_rows(self) -> np.ndarray:
        """Which coordinate each row of `gate_scores` adds to: ``(h, n_gate)``, zeros and ones."""
        if not self.gate.separable:
            return np.eye(self.n_gate)
        own = self.gate_rows()
        return own.transpose(1, 0, 2).reshape(own.shape[0] * own.shape[1], self.n_gate)

    def gate_hessian(self, products: Array) -> Array:
        """A Hessian ``(n_gate, n_gate)`` of Σ_i f_i(z_i) from its products with the seeds.

        These are of shape ``(c, n_gate)``. A product has, for a coordinate of one expert, the entry
        with that expert's own; that of the temperature sums over experts, and is not looked at but
        for the temperature itself.
        """
        own = self.gate_rows()
        seed_of = np.argmax(own.max(axis=0), axis=0)
        together = np.einsum("iap,ibq->pq", own, own) > 0
        n_experts_of = own.max(axis=1).sum(axis=0)
        told = together & (n_experts_of[:, None] <= n_experts_of)
        entries = jnp.where(told, products[seed_of].T, 0.0)
        return jnp.where(told, entries, entries.T)
