"""Which plans may follow each other in one store: those that only add cells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bayesmoe.study.plan import Plan

#: the fields that may grow; of all others depends what a cell is
_GROWING = ("scenarios", "gates", "n_experts", "sizes", "replicates")


class ExtensionError(ValueError):
    """Two plans that cannot share a store."""


def check_extension(old: Plan, new: Plan, where: str) -> None:
    """Raise `ExtensionError` unless ``new`` has all cells of ``old``, each computed alike.

    Parameters
    ----------
    old
        The plan that is stored.
    new
        The plan that is asked for; its lists may have another order.
    where
        Names the store in errors.
    """
    _check_same_cells(old, new, where)
    for field in _GROWING:
        lost = [value for value in _values(old, field) if value not in _values(new, field)]
        if lost:
            raise ExtensionError(
                f"{where} has more than this plan: {field} = {_plain(getattr(new, field))} lacks "
                f"{_plain(lost[:1])[1:-1]}, and a study only grows; add what is missing, or choose "
                "another directory"
            )


def union(plans: Iterable[tuple[str, Plan]]) -> Plan:
    """The least plan that extends all; each comes with a name for errors, the first one leads.

    Raises
    ------
    ExtensionError
        If the plans differ by more than an extension.
    """
    (where, first), *others = plans
    merged = first
    for _, other in others:
        _check_same_cells(first, other, where)
        merged = merged.model_copy(
            update={field: _joined(merged, other, field) for field in _GROWING}
        )
    return Plan.model_validate(merged.model_dump())


def _check_same_cells(old: Plan, new: Plan, where: str) -> None:
    for field in Plan.model_fields:
        stored, asked = getattr(old, field), getattr(new, field)
        if field not in _GROWING and stored != asked:
            raise ExtensionError(
                f"{where} holds another plan: {field} is {_plain(stored)} there and "
                f"{_plain(asked)} here; choose another directory, or the stored {field}"
            )


def _values(plan: Plan, field: str) -> list[Any]:
    value = getattr(plan, field)
    return list(range(value)) if field == "replicates" else value


def _joined(one: Plan, other: Plan, field: str) -> Any:
    if field == "replicates":
        return max(one.replicates, other.replicates)
    ours = getattr(one, field)
    joined = ours + [value for value in getattr(other, field) if value not in ours]
    return sorted(joined) if field == "sizes" else joined


def _plain(value: object) -> str:
    if isinstance(value, list):
        return str([getattr(item, "id", item) for item in value])
    return repr(value)
