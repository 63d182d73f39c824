"""What the command line was asked for: a fit, a comparison; and the command that asks it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from bayesmoe.core.model import MoE
from bayesmoe.core.selection import find_columns
from bayesmoe.models import make_gate, moe

#: on the command line: that a gate or experts depend on no covariate
NO_COVARIATE = "none"

_SELECTED = ("gate_covariates", "expert_covariates")


class FitRequest(NamedTuple):
    """What a fit was asked for: everything that determines its numbers but the data.

    Attributes
    ----------
    data
        The CSV file or shipped data set, as `bayesmoe.data.table.read_table` takes it.
    response, covariates
        Columns; no covariates stand for all other columns.
    gate, options, n_experts, prior
        The arguments of `bayesmoe.moe`.
    seed
        Seeds starts and chains.
    gate_covariates, expert_covariates
        Covariates that the gate and the experts depend on, by name; None for all.
    formula, gate_formula
        What `bayesmoe.design` made the covariates by, which then are columns of its ``x``, as the
        response is named by its ``y``; None where they are columns of the data.
    n_dropped
        How many rows were left out since a value is missing; None where none may be missing.
    """

    data: str
    response: str
    covariates: tuple[str, ...]
    gate: str
    options: dict[str, Any]
    n_experts: int
    prior: str = "weak"
    seed: int = 0
    gate_covariates: tuple[str, ...] | None = None
    expert_covariates: tuple[str, ...] | None = None
    formula: str | None = None
    gate_formula: str | None = None
    n_dropped: int | None = None

    @property
    def formulas(self) -> str:
        """Both formulas in one line; empty where there are none."""
        return _formulas(self)

    def model(self, covariates: Sequence[str]) -> MoE:
        """The model of a table's covariates, given by name.

        Raises
        ------
        ValueError
            As `bayesmoe.moe` does, or if a name is none of these.
        """
        selected = _selection(self, covariates)
        return moe(self.gate, self.n_experts, self.prior, **selected, **self.options)

    def command(self, out: str) -> str:
        """The command line that fits this again, into the directory ``out``."""
        words = ["bayesmoe", "fit", *_data_words(self)]
        words += ["--gate", self.gate, "--experts", str(self.n_experts)]
        words += [*_option_words(self.options), "--prior", self.prior, "--seed", str(self.seed)]
        return shlex.join([*words, "--out", out])


class CompareRequest(NamedTuple):
    """What a comparison was asked for: everything that determines its numbers but the data.

    Attributes
    ----------
    data, response, covariates, gate_covariates, expert_covariates, formula, gate_formula
        As in `FitRequest`; so are ``seed`` and ``n_dropped``.
    gates, experts
        The names of the gates, each with every number of experts.
    options
        Of the gate that has one: ``activation``, ``top_k``.
    """

    data: str
    response: str
    covariates: tuple[str, ...]
    gates: tuple[str, ...]
    experts: tuple[int, ...]
    options: dict[str, Any]
    seed: int = 0
    gate_covariates: tuple[str, ...] | None = None
    expert_covariates: tuple[str, ...] | None = None
    formula: str | None = None
    gate_formula: str | None = None
    n_dropped: int | None = None

    @property
    def formulas(self) -> str:
        """Both formulas in one line; empty where there are none."""
        return _formulas(self)

    def models(self, covariates: Sequence[str]) -> list[MoE]:
        """Every gate with every number of experts; with one expert there is nothing to gate.

        Raises
        ------
        ValueError
            If a gate is unknown or lacks an option given, or as `bayesmoe.moe` does.
        """
        options = {name: self._options_of(name) for name in self.gates}
        for option, gate in _GATE_OF.items():
            if option in self.options and gate not in self.gates:
                flag = option.replace("_", "-")
                raise ValueError(f"--{flag} is of the gate {gate}; add it to --gates")
        for name in self.gates:
            make_gate(name, **options[name])
        selected = _selection(self, covariates)
        alone = moe("softmax", 1, expert_covariates=selected["expert_covariates"])
        return [
            alone if k == 1 else moe(name, k, **selected, **options[name])
            for name in self.gates
            for k in self.experts
        ]

    def _options_of(self, gate: str) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if _GATE_OF[name] == gate}

    def command(self, out: str) -> str:
        """The command line that compares these again, into the directory ``out``."""
        words = ["bayesmoe", "compare", *_data_words(self), "--gates", ",".join(self.gates)]
        words += ["--experts", ",".join(map(str, self.experts)), *_option_words(self.options)]
        return shlex.join([*words, "--seed", str(self.seed), "--out", out])


_GATE_OF = {"activation": "activation_dense_to_sparse", "top_k": "top_k_sparse"}

Request = FitRequest | CompareRequest


def as_stored(request: Request) -> dict[str, Any]:
    """The fields that say something, for JSON: earlier versions had fewer."""
    return {name: value for name, value in request._asdict().items() if value is not None}


def from_stored(kind: type[Any], stored: dict[str, Any]) -> Any:
    """A request of a kind from what `as_stored` gave."""
    listed = {name: tuple(value) for name, value in stored.items() if isinstance(value, list)}
    return kind(**{**stored, **listed})


def _formulas(request: Request) -> str:
    gate = "" if request.gate_formula is None else f", gate {request.gate_formula}"
    return "" if request.formula is None else f"{request.formula}{gate}"


def _selection(request: Request, covariates: Sequence[str]) -> dict[str, Any]:
    return {name: find_columns(name, getattr(request, name), covariates) for name in _SELECTED}


def _option_words(options: dict[str, Any]) -> list[str]:
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in options.items())
    return [word for pair in pairs for word in pair]


def _data_words(request: Request) -> list[str]:
    """What is modelled by what."""
    words = [request.data]
    if request.formula is not None:
        words += ["--formula", request.formula]
        words += [] if request.gate_formula is None else ["--gate-formula", request.gate_formula]
    else:
        words += ["--response", request.response]
        words += [word for name in request.covariates for word in ("--covariate", name)]
        words += [word for name in _SELECTED for word in _selected_words(request, name)]
    return words if request.n_dropped is None else [*words, "--drop-missing"]


def _selected_words(request: Request, field: str) -> list[str]:
    names: tuple[str, ...] | None = getattr(request, field)
    option = f"--{field.removesuffix('s').replace('_', '-')}"
    chosen = () if names is None else names or (NO_COVARIATE,)
    return [word for name in chosen for word in (option, name)]
