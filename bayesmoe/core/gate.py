"""The gate contract: what a gate declares so that every other room can work with it."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bayesmoe.core.measure import GateParameters

if TYPE_CHECKING:
    from bayesmoe.core.program import Sites

PARAMETER_BLOCKS = ("gate_slope", "temperature", "slope", "intercept", "variance")


class BlockExponents(NamedTuple):
    """Exponents of the five parameter blocks of a Voronoi loss, each of shape ``(...)``."""

    gate_slope: Array
    temperature: Array
    slope: Array
    intercept: Array
    variance: Array


class Rate(NamedTuple):
    """A theoretical rate n^exponent, up to logarithms, and how to print it.

    An exponent of zero means that no power of n is reached.
    """

    exponent: float
    text: str


def power_rate(numerator: int, denominator: int) -> Rate:
    """The rate n^(-numerator/denominator)."""
    return Rate(-numerator / denominator, f"n^-{numerator}/{denominator}")


NO_RATE = Rate(0.0, "none (ray)")


def polynomial_order(cell_size: Array) -> Array:
    """r̄(m): 1 for m = 1 fitted atom in a cell, 2m for more.

    The smallest order at which the system of polynomial equations of Ho & Nguyen (Ann. Statist.
    2016) has no non-trivial solution; they give 4 and 6 for m = 2 and 3, and at least 7 beyond;
    `bayesmoe.theory.polynomial_system` has a proof for all m. Empty cells count as one atom.
    """
    return jnp.where(cell_size <= 1, 1.0, 2.0 * cell_size)


@dataclasses.dataclass(frozen=True)
class Gate(abc.ABC):
    """A gate: its logits, its identifiable coordinates, its invariances and its theory.

    A gate of one's own is one frozen dataclass (hence hashable, so that compiled functions can
    take it as a static argument; its fields are its options) that subclasses this, sets `name`
    and the class attributes that differ from the defaults below, and defines

    - `logits`, in JAX, from the parameters β1 ``(k, d)``, β0 ``(k,)`` and τ ``()``. Adding one
      number to every β0 must leave the gate unchanged: that is what pins the reference expert,
      the last, at β1 = 0 and β0 = 0;
    - `program`, one statement: ``observe(self, MixingMeasure(*sites.gate(), *sites.experts()), x,
      y)``, or ``sites.gate(sites.temperature())`` for a gate that has a temperature; see
      `bayesmoe.core.program`;
    - `voronoi_exponents` and `expected_rate`, the theory that its losses are taken from.

    It is used as an object, ``bayesmoe.moe(MyGate(), n_experts=3)``, everywhere a name is.
    Invariances that are not declared (`ray`, `flip`, `even`, `translates`) are taken not to exist.
    What is declared `bayesmoe.moe` tries at random points, and refuses what does not hold.

    Coordinates. Sampling and optimisation use identifiable coordinates of the gate, one flat
    vector: the free gate slopes (divided by τ if `slope_per_temperature`), the free intercepts
    (divided by τ if `intercept_per_temperature`), then log τ if `has_temperature`.

    Covariates. A model may leave covariates out of its gate. Coordinates and logits are then asked
    for as if x had none but the others; elsewhere, programs included, x is whole and the slopes of
    those left out are zero. Both must be the same gate, which `bayesmoe.moe` checks.
    """

    name: ClassVar[str]
    #: whether τ is a free parameter (otherwise it is one)
    has_temperature: ClassVar[bool] = False
    #: whether β1/τ, rather than β1, is the identifiable coordinate
    slope_per_temperature: ClassVar[bool] = False
    #: whether β0/τ, rather than β0, is the identifiable coordinate
    intercept_per_temperature: ClassVar[bool] = False
    #: whether logits are linear in x: then slopes may be translated (gauge), and the design centred
    linear: ClassVar[bool] = False
    #: whether x in other units and β1 in their inverses give the same logits, as any function of
    #: β1ᵀx does; if not, the gate sees x as it is, never standardised
    rescalable: ClassVar[bool] = True

    #: whether z_i depends on expert i's β1, β0 and on τ alone, but for which experts are active:
    #: its derivatives then cost no more for many experts
    separable: ClassVar[bool] = False

    @property
    def linear_in_coordinates(self) -> bool:
        """Whether logits are linear in the coordinates."""
        per_temperature = self.slope_per_temperature and self.intercept_per_temperature
        return self.linear and (per_temperature or not self.has_temperature)

    @property
    def translates(self) -> bool:
        """Whether one vector may be added to all β1 (gauge), so that the reference may change."""
        return self.linear

    @property
    def ray(self) -> bool:
        """Whether (cβ1, cβ0, cτ), c > 0, all give the same density."""
        return False

    @property
    def flip(self) -> bool:
        """Whether two slopes (u, v) and (-v, -u) give the same gate (odd activations)."""
        return False

    @property
    def even(self) -> bool:
        """Whether β1_i and -β1_i give the same gate, for each expert (even activations)."""
        return False

    @property
    def subset_size(self) -> int | None:
        """K of a top-K gate; None if all experts are active everywhere."""
        return None

    def jumps(self, n_experts: int) -> bool:
        """Whether the density jumps as the gate's parameters move, and no gradient tells."""
        return self.subset_size is not None and self.subset_size < n_experts

    @property
    def label(self) -> str:
        """How figures and tables name the gate, options included."""
        return self.name.replace("_", " ").replace("dense to sparse", "dense-to-sparse")

    def check(self, n_experts: int) -> None:  # noqa: B027 - most gates serve any number
        """Raise ValueError if the gate cannot serve ``n_experts`` experts."""

    @abc.abstractmethod
    def logits(self, parameters: GateParameters, x: Array) -> Array:
        """Logits z_i(x), shape ``(k, n)`` for x of shape ``(d, n)``; -inf excludes an expert."""

    @abc.abstractmethod
    def program(self, x: Array, y: Array | None, sites: Sites) -> None:
        """The NumPyro program; x of shape ``(n, d)``, y of shape ``(n,)`` or None to simulate."""

    @abc.abstractmethod
    def voronoi_exponents(self, cell_size: Array, *, identified: bool) -> BlockExponents:
        """Exponents of the loss for cells with ``cell_size`` fitted atoms, elementwise.

        ``identified`` asks for the loss taken modulo the rays, too.
        """

    @abc.abstractmethod
    def expected_rate(self, quantity: str, over_specified: bool) -> Rate:
        """Theoretical rate of "loss", "identified_loss" or one of `PARAMETER_BLOCKS`.

        ``over_specified`` means cells of at most two fitted atoms (k = k* + 1).
        """

    @property
    def spread(self) -> float:
        """Standard deviation of the un-tempered logit under the weak prior: sets τ's scale."""
        return 1.0

    def log_probabilities(self, parameters: GateParameters, x: Array) -> Array:
        """log π_i(x), shape ``(k, n)`` for x of shape ``(d, n)``."""
        return jax.nn.log_softmax(self.logits(parameters, x), axis=0)

    def n_coordinates(self, n_experts: int, n_covariates: int) -> int:
        """The number of free gate parameters."""
        return (n_experts - 1) * (n_covariates + 1) + int(self.has_temperature)

    def from_coordinates(
        self, coordinates: Array, n_experts: int, n_covariates: int
    ) -> GateParameters:
        """The paper's parameters at identifiable coordinates of shape ``(n_coordinates,)``."""
        free = n_experts - 1
        temperature = jnp.exp(coordinates[-1]) if self.has_temperature else jnp.ones(())
        slope = coordinates[: free * n_covariates].reshape(free, n_covariates)
        intercept = coordinates[free * n_covariates : free * (n_covariates + 1)]
        if self.slope_per_temperature:
            slope = slope * temperature
        if self.intercept_per_temperature:
            intercept = intercept * temperature
        return GateParameters(
            jnp.concatenate([slope, jnp.zeros((1, n_covariates))]),
            jnp.concatenate([intercept, jnp.zeros(1)]),
            temperature,
        )

    def to_coordinates(self, parameters: GateParameters) -> Array:
        """The inverse of `from_coordinates`; any reference is moved to zero where allowed."""
        slope, intercept, temperature = parameters
        if self.translates:
            slope = slope - slope[-1:]
        slope, intercept = slope[:-1], (intercept - intercept[-1])[:-1]
        if self.slope_per_temperature:
            slope = slope / temperature
        if self.intercept_per_temperature:
            intercept = intercept / temperature
        blocks = [slope.ravel(), intercept]
        if self.has_temperature:
            blocks.append(jnp.log(temperature)[None])
        return jnp.concatenate(blocks)

    def log_jacobian(self, parameters: GateParameters) -> Array:
        """``log |∂(β1, β0, τ)/∂coordinates|``, a scalar."""
        if not self.has_temperature:
            return jnp.zeros(())
        k, d = parameters.slope.shape
        power = 1 + (k - 1) * (d * self.slope_per_temperature + self.intercept_per_temperature)
        return power * jnp.log(parameters.temperature)
