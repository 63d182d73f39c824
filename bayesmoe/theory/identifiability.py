"""What data can tell of a model's parameters, how fast, and why not.

`identify` looks at a model at a truth: the expected Fisher information of the paper's parameters,
its null space in words, and, where it is singular, the order q with which the Kullback-Leibler
divergence grows along the best curve. A divergence like t^q means a rate of n^(-1/q): n^-1/2 in
regular models, n^-1/4 or n^-1/8 where two fitted experts share a true one, none on a ray.

This is local and computed; the theory's rates, upper bounds over all fits, stand beside it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from bayesmoe.core.gate import PARAMETER_BLOCKS, Gate, Rate
from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.core.model import MoE
from bayesmoe.core.validate import check_covariates, check_points, check_whole
from bayesmoe.theory import _fisher
from bayesmoe.theory._comparison import Truth
from bayesmoe.theory._degeneracy import DISPLACEMENTS, Neighbourhood, Order
from bayesmoe.theory._fisher import Information, Parameters, joint_rule, pointwise_log_density
from bayesmoe.theory._nullspace import Direction, NullSpace, coinciding, null_space

__all__ = [
    "BlockRate",
    "Direction",
    "Identification",
    "Information",
    "NullSpace",
    "Order",
    "expected_information",
    "identify",
    "null_space",
    "observed_information",
    "split_expert",
]

_SAME = 1e-9  # how far log densities of the same density may differ

_UNCLEAR = np.full(len(DISPLACEMENTS), np.nan)
_NOT_COMPUTED = Order(np.nan, DISPLACEMENTS, _UNCLEAR, _UNCLEAR[1:])


class BlockRate(NamedTuple):
    """How fast a block of parameters can be learned.

    Attributes
    ----------
    block
        One of `PARAMETER_BLOCKS`.
    order
        q of its slowest parameter: 2 if regular; infinite if the divergence is zero; NaN if not
        clear.
    parameter
        The name of that parameter.
    theory
        The gate's expected rate; None for k > k* + 1, of which it does not speak.
    """

    block: str
    order: float
    parameter: str
    theory: Rate | None

    @property
    def text(self) -> str:
        """The rate that the order predicts, in words."""
        if math.isnan(self.order):
            return "not clear"
        return "none (flat)" if math.isinf(self.order) else f"n^-1/{self.order:.0f}"


@dataclasses.dataclass(frozen=True, eq=False)
class Identification:
    """What `identify` finds.

    Attributes
    ----------
    gate
        The model's gate.
    measure
        Where the model was looked at: the truth, or the truth with an expert split.
    n_true
        k*, the true number of experts.
    information
        Expected information per observation.
    null_space
        Its null space, named.
    orders
        The order along each direction of the null space.
    profiles
        For parameters that the null space moves, by name: the order with the others compensating.
    rates
        For each block that the model has.
    """

    gate: Gate
    measure: MixingMeasure
    n_true: int
    information: Information
    null_space: NullSpace
    orders: tuple[Order, ...]
    profiles: dict[str, Order]
    rates: tuple[BlockRate, ...]

    @property
    def over_specified(self) -> bool:
        """Whether k > k*."""
        return self.measure.n_experts > self.n_true

    @property
    def shared(self) -> tuple[int, ...]:
        """The fitted experts that coincide with another."""
        return tuple(sorted({i for pair in coinciding(self.measure) for i in pair}))

    @property
    def jumps(self) -> bool:
        """Whether the density jumps as the gate moves, which the information does not see."""
        return self.gate.jumps(self.measure.n_experts)


def identify(
    model: MoE, truth: Truth, *, split: int | None = None, free_reference: bool = False
) -> Identification:
    """Identifiability of a model at a truth.

    Parameters
    ----------
    model
        Gate and k >= k*; the prior is not used.
    truth
        The true gate, measure and law of X; a scenario.
    split
        For k > k*: the true expert, of index 0 to k* - 1, that k - k* + 1 fitted experts of equal
        weight share; the last one by default, which is the reference.
    free_reference
        Leave the gates of all experts free: then the gate's translations are in the null space.

    Notes
    -----
    Of a gate whose density jumps (top-K with K < k), the information is that of the smooth part:
    parameters that it determines are learned at its rate or faster, of others nothing is said.

    Raises
    ------
    ValueError
        If the model has fewer experts than the truth or leaves out covariates, ``split`` is no true
        expert, or the model cannot express the truth with that expert split.
    """
    model.check_all_covariates("identify", truth.measure.n_covariates)
    measure = split_expert(truth.measure, model.n_experts, split)
    _check_same_density(model.gate, measure, truth)
    parameters = Parameters.of(model.gate, measure, free_reference=free_reference)
    x = np.asarray(truth.quadrature_x)
    information = _fisher.expected_information(parameters, x)
    null = null_space(information)
    near = Neighbourhood.of(information, x)
    jumps = model.gate.jumps(model.n_experts)
    profiles = {
        parameters.names[i]: _NOT_COMPUTED if jumps else near.profile(i)
        for i in _to_profile(parameters, null.involved)
    }
    orders = tuple(_along(near, direction, profiles, jumps) for direction in null.directions)
    n_true = truth.measure.n_experts
    rates = tuple(
        _block_rate(parameters, block, profiles, model.n_experts - n_true)
        for block in PARAMETER_BLOCKS
        if block in parameters.blocks
    )
    return Identification(model.gate, measure, n_true, information, null, orders, profiles, rates)


def expected_information(
    model: MoE, measure: MixingMeasure, x: ArrayLike, *, free_reference: bool = False
) -> Information:
    """Expected Fisher information per observation, in the paper's parameters.

    Parameters
    ----------
    model
        Its gate is used.
    measure
        Where: both the law of Y given x and the point of differentiation.
    x
        Equally weighted points of the law of X, ``(m, d)`` or ``(m,)``; a scenario's
        ``quadrature_x``.
    free_reference
        Leave the gates of all experts free.

    Raises
    ------
    ValueError
        If x is empty or not finite, the numbers of covariates or experts do not agree, or the model
        leaves out covariates.
    """
    covariates = check_points(x)
    _check_shapes(model, measure, covariates.shape[1])
    parameters = Parameters.of(model.gate, measure, free_reference=free_reference)
    return _fisher.expected_information(parameters, covariates)


def observed_information(
    model: MoE, measure: MixingMeasure, x: ArrayLike, y: ArrayLike
) -> Information:
    """Observed information per observation, the reference expert's gate pinned.

    Parameters
    ----------
    model
        Its gate is used.
    measure
        Where; the null space is that of the model only where the score is zero, at an estimate.
    x, y
        The data: covariates ``(n, d)`` or ``(n,)`` and response ``(n,)``.

    Raises
    ------
    ValueError
        If the data are not valid, the numbers of covariates or experts do not agree, or the model
        leaves out covariates.
    """
    _check_shapes(model, measure, check_covariates(x).shape[1])
    return _fisher.observed_information(model.gate, measure, x, y)


def split_expert(measure: MixingMeasure, n_experts: int, split: int | None = None) -> MixingMeasure:
    """The same mixture with ``n_experts`` experts, one being split in parts of equal weight.

    Parameters
    ----------
    measure
        One measure of at most ``n_experts`` experts.
    n_experts
        How many experts it is to have.
    split
        Which expert is split, the last one by default.

    Raises
    ------
    ValueError
        If there are fewer experts than the measure has, or ``split`` is none of them.
    """
    k = measure.n_experts
    if n_experts < k:
        raise ValueError(
            f"the model has {n_experts} experts, the truth {k}; it must have at least as many"
        )
    split = check_whole("split", k - 1 if split is None else split, least=0)
    if split >= k:
        raise ValueError(f"split must be one of the true experts 0 to {k - 1}, got {split!r}")
    parts = np.ones(k, dtype=int)
    parts[split] += n_experts - k
    fields = {field: np.asarray(getattr(measure, field)) for field in FIELDS}
    fields["gate_intercept"] = fields["gate_intercept"] - fields["temperature"] * np.log(parts)
    fields |= {
        field: np.repeat(values, parts, axis=0)
        for field, values in fields.items()
        if field != "temperature"
    }
    fields["gate_intercept"] = fields["gate_intercept"] - fields["gate_intercept"][-1]
    return MixingMeasure(**fields)


def _check_shapes(model: MoE, measure: MixingMeasure, n_covariates: int) -> None:
    model.check_all_covariates("the information", n_covariates)
    if measure.batch_shape:
        raise ValueError(
            f"information is that of a single measure, got batch shape {measure.batch_shape}; "
            "index it first"
        )
    if (measure.n_experts, measure.n_covariates) != (model.n_experts, n_covariates):
        raise ValueError(
            f"the measure has {measure.n_experts} experts and {measure.n_covariates} covariates, "
            f"the model {model.n_experts} experts and x {n_covariates} covariates; they must agree"
        )


def has_true_density(gate: Gate, measure: MixingMeasure, truth: Truth) -> bool:
    """Whether the gate has the true density at a measure."""
    rule = joint_rule(truth.gate, truth.measure, truth.quadrature_x, 2)
    ours = pointwise_log_density(gate, measure, rule.x, rule.y)
    theirs = pointwise_log_density(truth.gate, truth.measure, rule.x, rule.y)
    return bool(np.max(np.abs(ours - theirs)) <= _SAME)


def _check_same_density(gate: Gate, measure: MixingMeasure, truth: Truth) -> None:
    """Raise ValueError unless the model has the true density there."""
    if not has_true_density(gate, measure, truth):
        mend = "; raise top_k by the number of experts added" if gate.subset_size else ""
        raise ValueError(
            f"the {gate.label} gate with {measure.n_experts} experts does not have the true "
            f"density when a true expert is split{mend}"
        )


def _to_profile(parameters: Parameters, involved: np.ndarray) -> list[int]:
    """Parameters of the blocks with rates that the null space moves.

    Of experts that coincide the first: their labels mean nothing.
    """
    partners = {second for _, second in coinciding(parameters.origin)}
    chosen = []
    for i, (name, block) in enumerate(zip(parameters.names, parameters.blocks, strict=True)):
        expert = int(name[len(block) + 1 :].rstrip("]").split(",")[0]) if "[" in name else -1
        if involved[i] and block in PARAMETER_BLOCKS and expert not in partners:
            chosen.append(i)
    return chosen


def _along(
    near: Neighbourhood, direction: Direction, profiles: dict[str, Order], jumps: bool
) -> Order:
    if jumps:
        return _NOT_COMPUTED
    profile = profiles.get(direction.parameter)
    # a parameter that is flat may be so for moving with its partner, along a ray
    return near.along(direction) if profile is None or math.isinf(profile.order) else profile


def _block_rate(
    parameters: Parameters, block: str, profiles: dict[str, Order], n_surplus: int
) -> BlockRate:
    """The slowest parameter's; one of unclear order makes the block's unclear, short of flat."""
    names = [
        name for name, of in zip(parameters.names, parameters.blocks, strict=True) if of == block
    ]
    orders = {name: profiles[name].order if name in profiles else 2.0 for name in names}
    # parameters of experts that coincide with others were not profiled, nor are they slower
    slowest = max(orders, key=lambda name: (_rank(orders[name]), orders[name]))
    theory = parameters.gate.expected_rate(block, n_surplus > 0) if n_surplus < 2 else None
    return BlockRate(block, orders[slowest], slowest, theory)


def _rank(order: float) -> int:
    return 2 if math.isinf(order) else int(math.isnan(order))
