"""Plans: everything that determines the numbers of a study, validated before anything runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from bayesmoe.core.gate import Gate
from bayesmoe.core.model import MoE, make_model
from bayesmoe.models import make_gate
from bayesmoe.study.scenario import SCENARIOS, Scenario, scenario

Estimator = Literal["em", "mle", "map", "posterior"]
#: what a plan has that names none
ESTIMATORS: tuple[Estimator, ...] = ("mle", "map", "posterior")
#: estimators that no prior enters: computed once, and given under each prior
WITHOUT_PRIOR: tuple[Estimator, ...] = ("em", "mle")

_MENDS = {
    "missing": "add it",
    "extra_forbidden": "remove it or correct its spelling",
}


class Cell(NamedTuple):
    """One data set and all that is estimated from it: the unit of work, of seeds and of storage."""

    scenario: str
    gate: str
    n_experts: int
    n: int
    replicate: int

    def __str__(self) -> str:
        return (
            f"{self.scenario}, {self.gate}, k = {self.n_experts}, n = {self.n}, "
            f"replicate {self.replicate}"
        )

    @property
    def cost(self) -> float:
        """Relative cost, for the time left."""
        return (300.0 + self.n) * self.n_experts**2


class GateSpec(BaseModel):
    """A gate by name, with its options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @model_validator(mode="before")
    @classmethod
    def _name_is_gate(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, handler.resolve_ref_schema(handler(schema))]}

    @model_validator(mode="after")
    def _known(self) -> GateSpec:
        self.make()
        return self

    def make(self) -> Gate:
        """The gate."""
        return make_gate(self.name, **(self.model_extra or {}))

    @property
    def id(self) -> str:
        """The name, with the options where there are any."""
        extra = sorted((self.model_extra or {}).items())
        options = ", ".join(f"{key}={value}" for key, value in extra)
        return f"{self.name}({options})" if options else self.name


def _distinct(values: list[Any]) -> list[Any]:
    repeated = [value for i, value in enumerate(values) if value in values[:i]]
    if repeated:
        raise ValueError(f"{repeated[0]!r} occurs twice; name each once")
    return values


def _scenario_name(name: str) -> str:
    if name not in SCENARIOS:
        raise ValueError(f"unknown scenario {name!r}; choose one of {', '.join(SCENARIOS)}")
    return name


Whole = Annotated[int, Field(strict=True)]
Distinct = AfterValidator(_distinct)
NonEmpty = Field(min_length=1)


class Plan(BaseModel):
    """A study: the product of scenarios, gates, experts, sample sizes and replicates.

    Attributes
    ----------
    name
        What the report is called.
    scenarios
        Names out of `SCENARIOS`.
    gates
        Gates of truth and model: names, or tables with a name and the gate's options.
    n_experts
        Fitted numbers of experts k.
    sizes
        Sample sizes n, increasing, at least two.
    replicates
        Independent data sets per scenario, gate and n; every k is fitted to the same ones.
    estimators
        Out of "em", "mle", "map", "posterior". "em" is EM as published with the rates of the
        softmax gate, see `bayesmoe.study.early_em`: from the starting points of the MLE, stopped
        by a rule that ends it short of the maximum.
    priors
        Out of "weak", "compact", "flat"; the flat prior has no posterior.
    starts
        "agnostic" knows the data alone; "near_truth" perturbs and splits the truth, which hides
        flat directions.
    n_starts
        Starts of each EM, MLE and MAP.
    sampler
        Of posteriors: "nuts", or "laplace_or_nuts", which first tries Laplace's approximation
        resampled by importance (`bayesmoe.sample_laplace`), keeps it where its Pareto k is at most
        0.7 and its proposals are worth as many independent draws as are taken, and has NUTS draw
        all others, among them those of gates whose density jumps. The results say which sampler
        drew what.
    chains, warmup, draws
        Of NUTS; warm-up and draws per chain. The approximation has as many draws in all.
    kept_draws
        How many draws of each chain are stored, evenly spaced; none by default.
    level
        Of the contraction radius: the posterior quantile of the loss.
    seed
        Seeds everything, together with each cell's identity.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1)] = "study"
    scenarios: Annotated[list[Annotated[str, AfterValidator(_scenario_name)]], NonEmpty, Distinct]
    gates: Annotated[list[GateSpec], NonEmpty, Distinct]
    n_experts: Annotated[list[Annotated[Whole, Field(ge=1)]], NonEmpty, Distinct]
    sizes: Annotated[list[Annotated[Whole, Field(ge=10)]], Field(min_length=2), Distinct]
    replicates: Annotated[Whole, Field(ge=1)]
    estimators: Annotated[list[Estimator], NonEmpty, Distinct] = list(ESTIMATORS)
    priors: Annotated[list[Literal["weak", "compact", "flat"]], NonEmpty, Distinct] = ["weak"]
    starts: Literal["agnostic", "near_truth"] = "agnostic"
    n_starts: Annotated[Whole, Field(ge=1)] = 12
    sampler: Literal["nuts", "laplace_or_nuts"] = "nuts"
    chains: Annotated[Whole, Field(ge=2)] = 2
    warmup: Annotated[Whole, Field(ge=50)] = 300
    draws: Annotated[Whole, Field(ge=50)] = 500
    kept_draws: Annotated[Whole, Field(ge=0)] = 0
    level: Annotated[float, Field(gt=0, lt=1)] = 0.9
    seed: Annotated[Whole, Field(ge=0)]

    @model_validator(mode="after")
    def _fits_together(self) -> Plan:
        if self.sizes != sorted(self.sizes):
            raise ValueError(f"sizes = {self.sizes} must increase; sort them")
        if "posterior" in self.estimators and "flat" in self.priors:
            raise ValueError(
                "priors = 'flat' is improper and has no posterior; remove it, or remove "
                "'posterior' from estimators"
            )
        self._check_kept_draws()
        for name, gate in itertools.product(self.scenarios, self.gates):
            self._check_models(scenario(name, gate.make()))
        return self

    def _check_kept_draws(self) -> None:
        if self.kept_draws > self.draws:
            raise ValueError(
                f"kept_draws = {self.kept_draws} exceeds the draws of a chain, "
                f"draws = {self.draws}; keep at most as many as are drawn"
            )
        if self.kept_draws and "posterior" not in self.estimators:
            raise ValueError(
                f"kept_draws = {self.kept_draws} needs a posterior to draw from; add 'posterior' "
                "to estimators, or keep no draws"
            )

    def _check_models(self, truth: Scenario) -> None:
        for k in self.n_experts:
            truth.gate.check(k)
            if self.starts == "near_truth" and k < truth.measure.n_experts:
                raise ValueError(
                    f"n_experts = {k} is below the {truth.measure.n_experts} experts of scenario "
                    f"{truth.name!r}, which starts = 'near_truth' cannot split; use 'agnostic'"
                )
            size = make_model(truth.gate, k).layout(truth.measure.n_covariates).size
            if self.sizes[0] < size:
                raise ValueError(
                    f"sizes = {self.sizes[0]} is less than the {size} parameters of "
                    f"{truth.gate.label} with {k} experts; use larger sizes or fewer experts"
                )

    @property
    def kept_places(self) -> list[int]:
        """Which draws of a chain are stored, counted from 0: evenly spaced, the last among them."""
        return [(i * self.draws) // self.kept_draws - 1 for i in range(1, self.kept_draws + 1)]

    def cells(self) -> Iterator[Cell]:
        """All cells, those of one model and law next to each other."""
        for name, gate, k in itertools.product(self.scenarios, self.gates, self.n_experts):
            for n, replicate in itertools.product(self.sizes, range(self.replicates)):
                yield Cell(name, gate.id, k, n, replicate)

    def gate(self, cell: Cell) -> Gate:
        """The gate of a cell."""
        return next(spec for spec in self.gates if spec.id == cell.gate).make()

    def models(self, gate: Gate, n_experts: int) -> dict[str, MoE]:
        """The model under each prior."""
        return {prior: make_model(gate, n_experts, prior) for prior in self.priors}

    def data_key(self, cell: Cell) -> jax.Array:
        """Seeds a cell's data: the same for every number of fitted experts."""
        return self.key("data", cell.scenario, cell.gate, cell.n, cell.replicate)

    def fit_key(self, cell: Cell) -> jax.Array:
        """Seeds a cell's starts and chains."""
        return self.key("fit", *cell)

    def key(self, *identity: object) -> jax.Array:
        """A JAX key from the seed and an identity made of strings and whole numbers."""
        digest = hashlib.sha256(json.dumps([self.seed, *identity]).encode()).digest()
        return jax.random.key(int.from_bytes(digest[:8]) >> 1)

    def to_toml(self) -> str:
        """The plan as TOML, every default written out."""
        lines = [f"{key} = {_toml(value)}" for key, value in self.model_dump().items()]
        return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        if set(value) == {"name"}:
            return _toml(value["name"])
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


class PlanError(ValueError):
    """A plan that cannot be run; the message has one line for each problem."""


def parse_plan(text: str, source: str) -> Plan:
    """A plan from TOML; ``source`` names it in errors.

    Raises
    ------
    PlanError
        If the text is not TOML or not a plan; each line names the field, the value and the mend.
    """
    try:
        return Plan.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{source} is not valid TOML: {error}") from None
    except ValidationError as error:
        lines = dict.fromkeys(_describe(problem) for problem in error.errors())
        raise PlanError("\n".join(f"{source}: {line}" for line in lines)) from None


def _describe(problem: Any) -> str:
    """One validation error in words: field, value, rule, mend."""
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{where}: {message}" if where else message
    mend = _MENDS.get(problem["type"])
    if problem["type"] == "missing":
        return f"{where} is missing; {mend}"
    got = f"{where} = {problem['input']!r}"
    return f"{got}: {message}; {mend}" if mend else f"{got}: {message}; change it accordingly"


def load_plan(name: str) -> Plan:
    """A preset by name, such as "quick", or a plan from a TOML file.

    Raises
    ------
    PlanError
        If there is neither, or the plan is not valid.
    """
    presets = {
        entry.name.removesuffix(".toml"): entry
        for entry in resources.files("bayesmoe.study").joinpath("plans").iterdir()
        if entry.name.endswith(".toml")
    }
    if name in presets:
        return parse_plan(presets[name].read_text(encoding="utf-8"), f"preset {name!r}")
    path = Path(name)
    if not path.is_file():
        raise PlanError(
            f"no plan {name!r}: there is no such file and no such preset; "
            f"presets: {', '.join(sorted(presets))}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"plan {name!r} cannot be read: {error}") from None
    return parse_plan(text, str(path))
