"""What `bayesmoe identify` prints."""

from __future__ import annotations

import math

import numpy as np
from rich.console import Console
from rich.table import Table

from bayesmoe.models import ActivationDenseToSparse
from bayesmoe.report.style import specification
from bayesmoe.study.scenario import Scenario
from bayesmoe.theory.identifiability import Direction, Identification, Order
from bayesmoe.theory.independence import general_slopes, independence, opposite_slopes

_JUMPS = (
    "The density jumps as the gate moves: the information is that of the smooth part, and of what "
    "it does not determine nothing is said here."
)


def print_identification(found: Identification, truth: Scenario) -> None:
    """Model, information, null space and rates; for an activation gate its independence."""
    console = Console(highlight=False)
    k = found.measure.n_experts
    console.print(
        f"{found.gate.label} gate, {specification(k, found.n_true)}, at the truth {truth.name!r}",
        style="bold",
    )
    if found.over_specified:
        shares = " and ".join(str(i) for i in found.shared)
        console.print(
            f"fitted experts {shares} share one true expert, in equal parts; --split names another",
            soft_wrap=True,
        )
    _print_information(console, found)
    _print_null_space(console, found)
    console.print(
        "\nRates by block: the slowest parameter's, the others compensating", style="bold"
    )
    console.print(_rate_table(found))
    if found.jumps:
        console.print(_JUMPS)
    if isinstance(found.gate, ActivationDenseToSparse):
        console.print("\nLinear independence of the activation", style="bold")
        console.print(_independence_table(found.gate, np.asarray(truth.quadrature_x)))


def _print_information(console: Console, found: Identification) -> None:
    spectrum = found.null_space.spectrum
    n_null = len(found.null_space.directions)
    console.print(
        f"\nInformation per observation, {len(spectrum)} parameters, diagonal scaled to one",
        style="bold",
    )
    zeros = [f"{n_null} zero"] if n_null else []
    console.print("eigenvalues: " + ", ".join([*zeros, *(f"{v:.3g}" for v in spectrum[n_null:])]))
    console.print(f"error of the quadrature: {found.information.error:.0e}")


def _print_null_space(console: Console, found: Identification) -> None:
    console.print("\nNull space", style="bold")
    if not found.null_space.directions:
        console.print("none: the model is regular here")
    for direction, order in zip(found.null_space.directions, found.orders, strict=True):
        console.print(f"- {direction.words}: {_growth(direction, order)}", soft_wrap=True)
    for direction in found.null_space.weak:
        console.print(
            f"weak, information {direction.information:.1e}: {direction.words}", soft_wrap=True
        )


def _growth(direction: Direction, order: Order) -> str:
    if math.isinf(order.order):
        return "the density stays the same"
    where = "at best" if direction.kind == "split" else "on a line"
    return f"{_power(order)} {where}"


def _power(order: Order) -> str:
    """The power of t, or the local exponents that do not settle."""
    if not math.isnan(order.order):
        return f"divergence like t^{order.order:.0f}"
    exponents = order.exponents[np.isfinite(order.exponents)]
    if not len(exponents):
        return "order not clear"
    return f"order not clear (local exponents {', '.join(f'{e:.1f}' for e in exponents)})"


def _rate_table(found: Identification) -> Table:
    table = _table("block", "slowest", "divergence", "predicted", "theory")
    for rate in found.rates:
        power = "zero" if math.isinf(rate.order) else f"t^{rate.order:.0f}"
        theory = "-" if rate.theory is None else rate.theory.text
        power = "-" if math.isnan(rate.order) else power
        table.add_row(rate.block, rate.parameter, power, rate.text, theory)
    return table


def _independence_table(gate: ActivationDenseToSparse, x: np.ndarray) -> Table:
    table = _table("order", "two slopes", "smallest singular value", "verdict")
    choices = {"in general position": general_slopes, "opposite": opposite_slopes}
    for words, choose in choices.items():
        for order, name in ((1, "first"), (2, "second")):
            found = independence(gate.function, order, slopes=choose(x.shape[1]), x=x)
            table.add_row(name, words, f"{found.smallest:.1e}", found.verdict)
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table
