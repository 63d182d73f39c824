"""Which covariates gate and experts depend on; the slopes of all others are zero."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from bayesmoe.core.validate import check_whole

Columns = tuple[int, ...] | None  # ascending indices, or None for all


class Selection(NamedTuple):
    """The columns of x that gate and experts depend on: ascending indices, or None for all.

    Slopes of other columns are zero and no parameters: they have no coordinate, prior or error.

    Attributes
    ----------
    gate
        Columns in the gate's logits; none make the gate probabilities constant.
    experts
        Columns in the experts' means; none make them constant.
    """

    gate: Columns = None
    experts: Columns = None

    @classmethod
    def of(cls, gate: Iterable[int] | None, experts: Iterable[int] | None) -> Selection:
        """From columns in any order.

        Raises
        ------
        ValueError
            If columns are no collection of distinct non-negative whole numbers.
        """
        return cls(_columns("gate_covariates", gate), _columns("expert_covariates", experts))

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out, as far as can be told without the number of columns."""
        return self == ALL

    def resolve(self, n_covariates: int) -> Selection:
        """For ``n_covariates`` columns: None where nothing is left out.

        Raises
        ------
        ValueError
            If there is no such column.
        """
        return Selection(
            _resolved("gate_covariates", self.gate, n_covariates),
            _resolved("expert_covariates", self.experts, n_covariates),
        )

    def describe(self, names: Sequence[str]) -> str:
        """What is restricted, in words, by the names of the columns; empty if nothing is."""
        parts = {"gate": self.gate, "experts": self.experts}
        return "; ".join(
            f"{part} by {listed(columns, names)}"
            for part, columns in parts.items()
            if columns is not None
        )


#: nothing is left out
ALL = Selection()


def find_columns(
    argument: str, wanted: Iterable[Any] | None, names: Sequence[str] | None
) -> tuple[int, ...] | None:
    """Indices of columns that are given by name, or by index as they are.

    Raises
    ------
    ValueError
        If a column has no such name, or columns have no names at all.
    """
    if wanted is None or isinstance(wanted, str) or not isinstance(wanted, Iterable):
        return _columns(argument, wanted)
    return _columns(argument, [_index(argument, column, names) for column in wanted])


def listed(columns: Sequence[int], names: Sequence[str]) -> str:
    """The names of columns, or that there are none."""
    return ", ".join(str(names[column]) for column in columns) or "none"


def take(values: Any, columns: Columns) -> Any:
    """The columns of ``(..., d)``; ``values`` themselves for None."""
    return values if columns is None else values[..., np.array(columns, dtype=int)]


def spread(values: Array, columns: Columns, n_covariates: int) -> Array:
    """The inverse of `take`: zeros ``(..., d)`` in the columns left out."""
    if columns is None:
        return values
    zeros = jnp.zeros((*values.shape[:-1], n_covariates))
    return zeros.at[..., np.array(columns, dtype=int)].set(values)


def _columns(argument: str, given: Any) -> Columns:
    if given is None:
        return None
    rule = f"{argument} must be a tuple of columns of x, such as (0, 2), or None for all"
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(f"{rule}; got {given!r}")
    columns = sorted(check_whole(f"each column in {argument}", one, least=0) for one in given)
    for column, following in itertools.pairwise(columns):
        if column == following:
            raise ValueError(f"{argument} names column {column} twice; name each column once")
    return tuple(columns)


def _resolved(argument: str, columns: Columns, n_covariates: int) -> Columns:
    if columns and columns[-1] >= n_covariates:
        raise ValueError(
            f"{argument} names column {columns[-1]}, but x has {n_covariates}, numbered from 0; "
            f"name columns up to {n_covariates - 1}"
        )
    return None if columns == tuple(range(n_covariates)) else columns


def _index(argument: str, column: Any, names: Sequence[str] | None) -> Any:
    if not isinstance(column, str):
        return column
    if names is None:
        raise ValueError(
            f"{argument} names {column!r}, but the columns of x have no names; "
            "pass a data frame, or give columns by number"
        )
    if column not in names:
        raise ValueError(
            f"{argument} names {column!r}, but the covariates are {', '.join(names)}; "
            "name some of these"
        )
    return list(names).index(column)
