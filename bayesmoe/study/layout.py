"""What a study's data set looks like: its variables, their dimensions, and where each cell lies.

A layout only ever grows at its ends, so that what is stored keeps its place. Dimensions of a cell
(`CELL_AXES`) come first; the others hold what is computed in one cell.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from bayesmoe.core.gate import PARAMETER_BLOCKS
from bayesmoe.study.columns import LOSSES
from bayesmoe.study.expected import QUANTITIES
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.scenario import scenario
from bayesmoe.theory.voronoi import CELL_KINDS

CELL_AXES = Cell._fields

#: chunks along dimensions that can grow; all others are whole in every chunk
CHUNKS = {"expert": 8, "covariate": 4}


class Variable(NamedTuple):
    """Dimensions after the `CELL_AXES`, data type, and the value where nothing is stored."""

    dims: tuple[str, ...]
    dtype: str = "float64"
    fill: Any = float("nan")

    @property
    def compressed(self) -> bool:
        """Whether chunks are compressed: those of many values, of which few may be a model's."""
        return "draw" in self.dims


_BOTH, _DRAWS = ("prior", "estimator"), ("prior", "chain", "draw")

#: what every computed cell has, draws only where the plan keeps some; the last two are written last
RESULTS: dict[str, Variable] = {
    **dict.fromkeys(LOSSES, Variable(_BOTH)),
    "block_error": Variable((*_BOTH, "block", "cell")),
    "seconds": Variable(_BOTH),
    "log_likelihood": Variable(_BOTH),
    "n_iterations": Variable(_BOTH),
    "gradient_norm": Variable(_BOTH),
    "least_curvature": Variable(_BOTH),
    "start_objective": Variable((*_BOTH, "start")),
    "posterior_sd": Variable(("prior", "block")),
    **dict.fromkeys(
        ("map_mle_distance", "pareto_k", "divergences", "min_ess", "max_rhat"),
        Variable(("prior",)),
    ),
    "sampler": Variable(("prior",), "string", ""),
    "estimate_gate_slope": Variable((*_BOTH, "expert", "covariate")),
    "estimate_gate_intercept": Variable((*_BOTH, "expert")),
    "estimate_temperature": Variable(_BOTH),
    "estimate_slope": Variable((*_BOTH, "expert", "covariate")),
    "estimate_intercept": Variable((*_BOTH, "expert")),
    "estimate_variance": Variable((*_BOTH, "expert")),
    "draw_log_likelihood": Variable(_DRAWS),
    "draw_gate_slope": Variable((*_DRAWS, "expert", "covariate")),
    "draw_gate_intercept": Variable((*_DRAWS, "expert")),
    "draw_temperature": Variable(_DRAWS),
    "draw_slope": Variable((*_DRAWS, "expert", "covariate")),
    "draw_intercept": Variable((*_DRAWS, "expert")),
    "draw_variance": Variable((*_DRAWS, "expert")),
    "data_digest": Variable((), "int64", 0),
    "converged": Variable(_BOTH, "bool", False),
    "status": Variable(_BOTH, "string", "missing"),
}

#: what the store keeps of a cell beside its results: whether it is there, and why it is not
RECORDS: dict[str, Variable] = {
    "digest": Variable((), "int64", 0),
    "failure": Variable((), "string", ""),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The coordinates of a study's data set, in the order in which they are stored.

    Attributes
    ----------
    coordinates
        The values along each dimension.
    n_covariates
        The dimension of x under each scenario.
    """

    coordinates: dict[str, list[Any]]
    n_covariates: dict[str, int]

    @classmethod
    def of(cls, plan: Plan, stored: Layout | None = None) -> Layout:
        """The layout of a plan; what ``stored`` has keeps its place, and all else follows it."""
        n_covariates = {name: scenario(name).measure.n_covariates for name in plan.scenarios}
        wanted = _coordinates(plan, max(n_covariates.values()))
        if stored is None:
            return cls(wanted, n_covariates)
        old = stored.coordinates
        grown = {
            dim: old[dim] + [value for value in values if value not in old[dim]]
            for dim, values in wanted.items()
        }
        return cls(grown, stored.n_covariates | n_covariates)

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """A layout from `to_json`."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """The layout as text."""
        return json.dumps(dataclasses.asdict(self))

    @functools.cached_property
    def results(self) -> dict[str, Variable]:
        """Those of `RESULTS` that the study has."""
        return {
            name: variable
            for name, variable in RESULTS.items()
            if all(dim in self.coordinates for dim in variable.dims)
        }

    def models(self) -> Iterator[tuple[str, str, int]]:
        """Scenario, gate and number of experts of all cells, each once."""
        return itertools.product(*(self.coordinates[axis] for axis in CELL_AXES[:3]))

    def sizes(self, dims: tuple[str, ...]) -> tuple[int, ...]:
        """The lengths of dimensions."""
        return tuple(len(self.coordinates[dim]) for dim in dims)

    @functools.cached_property
    def _places(self) -> list[dict[Any, int]]:
        return [{v: i for i, v in enumerate(self.coordinates[axis])} for axis in CELL_AXES]

    def index(self, cell: Cell) -> tuple[int, ...]:
        """Where a cell lies along the `CELL_AXES`."""
        return tuple(places[value] for value, places in zip(cell, self._places, strict=True))

    def cell(self, index: tuple[int, ...]) -> Cell:
        """The cell that lies there."""
        pairs = zip(CELL_AXES, index, strict=True)
        return Cell(*(self.coordinates[axis][place] for axis, place in pairs))

    def extent(self, cell: Cell, dims: tuple[str, ...]) -> tuple[int, ...]:
        """The shape that a cell's own arrays have: it may have fewer experts and covariates."""
        own = {"expert": cell.n_experts, "covariate": self.n_covariates[cell.scenario]}
        return tuple(own.get(dim, len(self.coordinates[dim])) for dim in dims)

    def chunk(self, dims: tuple[str, ...]) -> tuple[int, ...]:
        """The shape of a chunk along dimensions after the `CELL_AXES`."""
        return tuple(CHUNKS.get(dim, len(self.coordinates[dim])) for dim in dims)

    def blocks(self, cell: Cell, dims: tuple[str, ...]) -> Iterator[tuple[str, tuple[slice, ...]]]:
        """The chunks of a cell: the name of each, and the part of the cell's array in it."""
        lead = ".".join(("c", *map(str, self.index(cell))))
        for place, part in _grid(self.extent(cell, dims), self.chunk(dims)):
            yield lead + place, part


@functools.lru_cache
def _grid(
    extent: tuple[int, ...], chunk: tuple[int, ...]
) -> tuple[tuple[str, tuple[slice, ...]], ...]:
    """The chunks of an array: the end of each one's name, and the part of the array in it."""
    found = []
    for start in itertools.product(*map(range, itertools.repeat(0), extent, chunk)):
        ends = map(min, map(sum, zip(start, chunk, strict=True)), extent)
        place = (s // c for s, c in zip(start, chunk, strict=True))
        found.append(("".join(f".{p}" for p in place), tuple(map(slice, start, ends))))
    return tuple(found)


def _coordinates(plan: Plan, n_covariates: int) -> dict[str, list[Any]]:
    draws = {"chain": list(range(plan.chains)), "draw": plan.kept_places}
    return {
        "scenario": list(plan.scenarios),
        "gate": [gate.id for gate in plan.gates],
        "n_experts": list(plan.n_experts),
        "n": list(plan.sizes),
        "replicate": list(range(plan.replicates)),
        "prior": list(plan.priors),
        "estimator": list(plan.estimators),
        "block": list(PARAMETER_BLOCKS),
        "cell": list(CELL_KINDS),
        "quantity": list(QUANTITIES),
        "expert": list(range(max(plan.n_experts))),
        "covariate": list(range(n_covariates)),
        "start": list(range(plan.n_starts + 1)),
        **(draws if plan.kept_draws else {}),
    }
