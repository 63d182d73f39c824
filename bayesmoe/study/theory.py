"""What theory says of a study: expected rates, and what figures must know of gates and truths."""

from __future__ import annotations

import itertools

import numpy as np

from bayesmoe.study.expected import QUANTITIES, expected_rate
from bayesmoe.study.layout import Layout
from bayesmoe.study.plan import Plan
from bayesmoe.study.scenario import scenario


def theory(plan: Plan, layout: Layout) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """The variables of a study's data set that follow from its plan, with their dimensions."""
    specs = {spec.id: spec for spec in plan.gates}
    gates = [specs[name].make() for name in layout.coordinates["gate"]]
    truths = np.asarray(
        [
            [scenario(name, gate).measure.n_experts for gate in gates]
            for name in layout.coordinates["scenario"]
        ]
    )
    dims = ("scenario", "gate", "n_experts", "quantity")
    fitted, shape = layout.coordinates["n_experts"], layout.sizes(dims)
    exponent, text = np.full(shape, np.nan), np.full(shape, "", dtype="<U16")
    for s, g, k, q in itertools.product(*map(range, shape)):
        rate = expected_rate(gates[g], QUANTITIES[q], fitted[k] - int(truths[s, g]))
        exponent[s, g, k, q], text[s, g, k, q] = rate
    return {
        "expected": (dims, exponent),
        "expected_text": (dims, text),
        "gate_label": (("gate",), np.asarray([gate.label for gate in gates])),
        "has_temperature": (("gate",), np.asarray([gate.has_temperature for gate in gates])),
        "ray": (("gate",), np.asarray([gate.ray for gate in gates])),
        "n_experts_true": (("scenario", "gate"), truths),
    }
