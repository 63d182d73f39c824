"""The gates: one file each. `GATES` maps a gate's name to its class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from bayesmoe.core.contract import check_behaviour, check_state
from bayesmoe.core.gate import Gate
from bayesmoe.core.model import MoE, make_model
from bayesmoe.core.priors import Prior
from bayesmoe.core.selection import Selection
from bayesmoe.models.activation_dense_to_sparse import ActivationDenseToSparse
from bayesmoe.models.dense_to_sparse import DenseToSparse
from bayesmoe.models.softmax import Softmax
from bayesmoe.models.top_k_sparse import TopKSparse

GATES: dict[str, type[Gate]] = {
    gate.name: gate for gate in (Softmax, TopKSparse, DenseToSparse, ActivationDenseToSparse)
}


def make_gate(gate: str | Gate, **options: Any) -> Gate:
    """A gate from its name and options, or a gate object as it is.

    Raises
    ------
    ValueError
        If the name is unknown, an option is not the gate's, or options come with an object.
    """
    if isinstance(gate, Gate):
        if options:
            raise ValueError(f"options {sorted(options)} go with a gate's name, not an object")
        return gate
    if isinstance(gate, type) and issubclass(gate, Gate):
        raise ValueError(f"gate must be an object, not its class; make one, {gate.__name__}()")
    if gate not in GATES:
        raise ValueError(f"unknown gate {gate!r}; choose one of {', '.join(GATES)}")
    kind = GATES[gate]
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"gate {gate!r} has no option {unknown[0]!r}; its options: {', '.join(known) or 'none'}"
        )
    return kind(**options)


def moe(
    gate: str | Gate,
    n_experts: int,
    prior: str | Prior = "weak",
    *,
    gate_covariates: Iterable[int] | None = None,
    expert_covariates: Iterable[int] | None = None,
    **gate_options: Any,
) -> MoE:
    """A Gaussian mixture of experts: gate, number of experts and prior.

    Parameters
    ----------
    gate
        A name out of `GATES`, or a `Gate` object of your own.
    n_experts
        k >= 1.
    prior
        "weak" (default), "flat", "compact", or a `Prior`.
    gate_covariates, expert_covariates
        The columns of x, numbered from 0, that the gate's logits and the experts' means depend on;
        all by default. ``gate_covariates=()`` makes the mixing weights constant (under the softmax
        gate), ``expert_covariates=()`` the experts. Slopes of other columns are zeros of the
        mixing measure, and no parameters.
    **gate_options
        Options of the named gate: ``top_k`` for "top_k_sparse", ``activation`` for
        "activation_dense_to_sparse".

    Raises
    ------
    ValueError
        If the gate, an option, ``n_experts``, the prior or a column is not valid, the gate cannot
        leave out what it is asked to, or a gate of your own is not what it declares.
    """
    selection = Selection.of(gate_covariates, expert_covariates)
    made = make_gate(gate, **gate_options)
    own = type(made) not in GATES.values()
    if own:
        check_state(made)
    model = make_model(made, n_experts, prior, selection)
    if own:
        check_behaviour(made, model.n_experts)
    return model


__all__ = [
    "GATES",
    "ActivationDenseToSparse",
    "DenseToSparse",
    "Softmax",
    "TopKSparse",
    "make_gate",
    "moe",
]
