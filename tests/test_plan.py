"""Plans: validation before anything runs, cells, seeds, presets."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bayesmoe.study.plan import Plan, PlanError, load_plan, parse_plan

GOOD: dict[str, Any] = {
    "scenarios": ["lambda"],
    "gates": ["softmax", "activation_dense_to_sparse"],
    "n_experts": [2, 3],
    "sizes": [100, 1000],
    "replicates": 2,
    "seed": 1,
}


def make(**changes: Any) -> Plan:
    return Plan.model_validate({**GOOD, **changes})


def toml(**changes: Any) -> str:
    entries = {**GOOD, **changes}
    lines = []
    for key, value in entries.items():
        if value is not None:
            text = repr(value).replace("True", "true").replace("False", "false")
            lines.append(f"{key} = {text}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scenarios": ["lamda"]}, ["scenarios.0", "'lamda'", "choose one of lambda"]),
        ({"scenarios": []}, ["scenarios = []"]),
        ({"gates": ["soft"]}, ["gates.0", "'soft'", "choose one of softmax"]),
        ({"gates": ["softmax", "softmax"]}, ["gates", "twice"]),
        ({"n_experts": [0]}, ["n_experts.0 = 0", "greater than or equal to 1"]),
        ({"n_experts": [2.0]}, ["n_experts.0 = 2.0", "integer"]),
        ({"sizes": [100]}, ["sizes = [100]", "at least 2"]),
        ({"sizes": [1000, 100]}, ["sizes", "[1000, 100]", "sort"]),
        ({"sizes": [10, 100]}, ["sizes = 10", "parameters", "larger sizes or fewer experts"]),
        ({"replicates": 0}, ["replicates = 0"]),
        ({"replicates": True}, ["replicates = True"]),
        (
            {"estimators": ["mle", "vb"]},
            ["estimators.1 = 'vb'", "'em', 'mle', 'map' or 'posterior'"],
        ),
        ({"priors": ["flat"]}, ["priors", "'flat'", "improper", "remove"]),
        ({"starts": "truth"}, ["starts = 'truth'", "'agnostic' or 'near_truth'"]),
        ({"starts": "near_truth", "n_experts": [1]}, ["n_experts = 1", "near_truth", "agnostic"]),
        ({"sampler": "laplace"}, ["sampler = 'laplace'", "'nuts' or 'laplace_or_nuts'"]),
        ({"kept_draws": 501}, ["kept_draws = 501", "draws = 500", "keep at most"]),
        ({"kept_draws": 1, "estimators": ["mle"]}, ["kept_draws = 1", "'posterior'", "add"]),
        ({"level": 1.5}, ["level = 1.5", "less than 1"]),
        ({"seed": -1}, ["seed = -1"]),
        ({"seed": None}, ["seed is missing; add it"]),
        ({"draw": 10}, ["draw = 10", "remove it or correct its spelling"]),
        ({"gates": ["top_k_sparse"], "n_experts": [1]}, ["top_k = 2", "n_experts = 1", "lower"]),
    ],
)
def test_a_bad_plan_is_refused_by_field_value_and_mend(
    changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan(toml(**changes), "p.toml")
    for word in words:
        assert word in str(caught.value)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan(toml(replicates=0, seed=-1), "p.toml")
    assert len(str(caught.value).splitlines()) == 2


def test_text_that_is_not_toml_is_refused() -> None:
    with pytest.raises(PlanError, match="not valid TOML"):
        parse_plan("seed = ", "p.toml")


def test_an_unknown_plan_names_the_presets() -> None:
    with pytest.raises(PlanError, match="presets: lineage, paper, quick, standard"):
        load_plan("quik")


def test_cells_are_the_product_and_have_distinct_names() -> None:
    cells = list(make().cells())
    assert len(cells) == 1 * 2 * 2 * 2 * 2
    assert len({str(cell) for cell in cells}) == len(cells)
    assert str(cells[0]) == "lambda, softmax, k = 2, n = 100, replicate 0"


def test_the_schema_takes_what_plans_take() -> None:
    schema = Plan.model_json_schema()
    gate = schema["$defs"]["GateSpec"]
    named, table = gate["anyOf"]
    assert named == {"type": "string"}
    assert table["required"] == ["name"]
    assert set(schema["properties"]) == set(Plan.model_fields)
    assert schema["properties"]["replicates"]["minimum"] == 1
    assert set(schema["required"]) == set(GOOD)


def test_gate_options_make_gates_of_their_own() -> None:
    gate = {"name": "activation_dense_to_sparse", "activation": "gelu"}
    plan = make(gates=["activation_dense_to_sparse", gate])
    ids = [spec.id for spec in plan.gates]
    assert ids == ["activation_dense_to_sparse", "activation_dense_to_sparse(activation=gelu)"]
    assert plan.gate(list(plan.cells())[-1]).label == "activation (gelu)"


@pytest.mark.parametrize(
    "plan",
    [
        make(),
        make(gates=[{"name": "top_k_sparse", "top_k": 1}], name='a "b" \\ c\nd', level=0.5),
        load_plan("quick"),
    ],
)
def test_a_plan_survives_being_written(plan: Plan) -> None:
    assert parse_plan(plan.to_toml(), "copy") == plan
    assert set(tomllib.loads(plan.to_toml())) == set(Plan.model_fields)


def key_data(key: jax.Array) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


@pytest.mark.parametrize("kept", [0, 1, 3, 50, 99, 100])
def test_kept_draws_are_spaced_evenly_and_end_with_the_last(kept: int) -> None:
    places = make(draws=100, kept_draws=kept).kept_places
    assert len(places) == kept
    assert places[-1:] == [99][:kept]
    steps = np.diff([-1, *places])
    assert np.all(steps >= 1)
    assert np.ptp(steps) <= 1 if kept else True


def test_seeds_belong_to_the_identity_of_a_cell() -> None:
    small, large = make(), make(replicates=3, sizes=[100, 1000, 3000], gates=["softmax"])
    seeds = {cell: key_data(large.fit_key(cell)) for cell in large.cells()}
    assert len(set(seeds.values())) == len(seeds)
    for cell in small.cells():
        if cell in seeds:
            assert key_data(small.fit_key(cell)) == seeds[cell]
    # one data set for all k, others for other n, replicates, gates and seeds
    data = {cell: key_data(small.data_key(cell)) for cell in small.cells()}
    assert len(set(data.values())) == len(data) / 2
    assert {key_data(make(seed=2).data_key(cell)) for cell in data}.isdisjoint(data.values())


def test_the_quick_plan_covers_what_it_must() -> None:
    plan = load_plan("quick")
    assert {"softmax", "dense_to_sparse", "activation_dense_to_sparse"} <= {
        gate.name for gate in plan.gates
    }
    assert set(plan.n_experts) == {2, 3}
    assert len(plan.sizes) >= 4
    assert plan.sizes[-1] / plan.sizes[0] >= 10**1.5
    assert plan.replicates >= 6
    assert set(plan.estimators) == {"mle", "map", "posterior"}


def test_the_lineage_plan_has_the_published_em_beside_the_mle() -> None:
    plan = load_plan("lineage")
    assert (len(plan.sizes), plan.sizes[0], plan.sizes[-1]) == (200, 10_000, 100_000)
    assert plan.replicates == 40
    assert plan.starts == "near_truth"
    assert plan.estimators == ["em", "mle"]
    assert (plan.n_experts, [gate.name for gate in plan.gates]) == ([3], ["softmax"])


def test_em_is_in_no_plan_that_does_not_name_it() -> None:
    assert make().estimators == ["mle", "map", "posterior"]


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(toml(name="my study"))
    assert load_plan(str(path)).name == "my study"
