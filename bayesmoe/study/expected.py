"""The rates that theory expects of the quantities of a study."""

from __future__ import annotations

from bayesmoe.core.gate import PARAMETER_BLOCKS, Gate, Rate

#: quantities with an expected rate
QUANTITIES = ("loss", "identified_loss", *PARAMETER_BLOCKS)

_UNKNOWN = Rate(float("nan"), "not known")


def expected_rate(gate: Gate, quantity: str, surplus: int, cell: str = "shared") -> Rate:
    """The rate of a quantity with ``surplus`` experts more than the truth.

    Theory is silent on fewer, and cells may hold more than two atoms with two or more too many.
    """
    if surplus < 0 or (surplus > 1 and quantity in PARAMETER_BLOCKS and cell == "shared"):
        return _UNKNOWN
    return gate.expected_rate(quantity, over_specified=surplus > 0 and cell == "shared")
