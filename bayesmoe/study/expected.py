"""The rates that theory expects of the quantities of a study."""

from __future__ import annotations

from bayesmoe.core.gate import PARAMETER_BLOCKS, Gate, Rate

#: quantities with an expected rate
QUANTITIES = ("loss", "identified_loss", *PARAMETER_BLOCKS)

_UNKNOWN = Rate(float("nan"), "not known")


def expected_rate(gate: Gate, quantity: str, surplus: int, cell: str | None = None) -> Rate:
    """The rate of a quantity with ``surplus`` experts more than the truth.

    Of a block's error ``cell`` is the kind of cells, by default that of which theory speaks: shared
    ones if there are experts to spare. The temperature is of no cell: its error is the same for
    both kinds, and so is its rate.

    Theory is silent on fewer experts, on cells that are shared though there are none to spare,
    which leave others empty, and on those that may hold more than two atoms. With experts to spare
    that of top-K gates asks for as many more active ones, while a study fits the truth's K.
    """
    own = cell if quantity in PARAMETER_BLOCKS and quantity != "temperature" else None
    slower = surplus > 0 and own != "single"
    if surplus < 0 or (surplus == 0 and own == "shared"):
        return _UNKNOWN
    if surplus > 1 and slower and quantity in PARAMETER_BLOCKS:
        return _UNKNOWN
    rate = gate.expected_rate(quantity, over_specified=slower)
    narrow = surplus > 0 and gate.subset_size is not None
    return _UNKNOWN if narrow and rate.exponent else rate
