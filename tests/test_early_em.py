"""EM as published, beside the MLE: its numbers by hand, what is used of it, and what is told."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import scipy.special
import xarray as xr
from fabricated import make_plan

from bayesmoe.core.measure import FIELDS, MixingMeasure
from bayesmoe.inference.point import fit_mle
from bayesmoe.inference.starts import near_truth
from bayesmoe.study.columns import Arrays
from bayesmoe.study.dataset import load_results
from bayesmoe.study.early_em import SHORT, measure_gaps, used
from bayesmoe.study.engine import run_study
from bayesmoe.study.executors import in_threads
from bayesmoe.study.layout import CELL_AXES
from bayesmoe.study.outputs import write_outputs
from bayesmoe.study.plan import Cell
from bayesmoe.study.progress import _seconds
from bayesmoe.study.scenario import scenario
from bayesmoe.study.store import Store
from bayesmoe.study.stored import Stored

pytestmark = pytest.mark.slow  # EM and MLE are compiled for it

PLAN = make_plan(
    n_experts=[3], sizes=[150, 300], replicates=3, estimators=["mle", "em"], starts="near_truth",
    n_starts=2, priors=["weak", "compact"],
)  # fmt: skip


TOLERANCE, MAX_STEPS = 1e-6, 2000  # as published


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("early") / "out"
    with Store.open(path, PLAN) as store:
        run_study(PLAN, store, execute=functools.partial(in_threads, n_threads=1))
    return path


@pytest.fixture(scope="module")
def results(directory: Path) -> xr.Dataset:
    return load_results(Stored(directory), PLAN)


# --- EM by hand, on the data as given


class Point:
    """A softmax mixture of k lines in the covariates ``u`` (x and one)."""

    def __init__(self, measure: MixingMeasure) -> None:
        gate, line = (
            np.column_stack([np.asarray(getattr(measure, name)) for name in names])
            for names in (("gate_slope", "gate_intercept"), ("slope", "intercept"))
        )
        self.gate, self.line, self.variance = gate - gate[-1], line, np.asarray(measure.variance)

    def log_joint(self, u: np.ndarray, y: np.ndarray) -> np.ndarray:
        normal = -0.5 * np.log(2 * np.pi * self.variance)[:, None]
        normal = normal - (y - self.line @ u.T) ** 2 / 2 / self.variance[:, None]
        return scipy.special.log_softmax(self.gate @ u.T, axis=0) + normal


def climb(gate: np.ndarray, r: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The maximum of Σ r log softmax(gate u) by Newton's method, steps halved while they fail."""

    def height(w: np.ndarray) -> float:
        return float(np.sum(r * scipy.special.log_softmax(w @ u.T, axis=0)))

    k, d = gate.shape
    for _ in range(200):
        share = scipy.special.softmax(gate @ u.T, axis=0)
        gradient = ((r - share) @ u)[:-1].ravel()
        bend = share[:, None] * (np.eye(k)[:, :, None] - share[None])
        hessian = np.einsum("ijm,ma,mb->iajb", bend, u, u)[:-1, :, :-1].reshape(2 * [(k - 1) * d])
        step = np.append(np.linalg.lstsq(hessian, gradient, rcond=None)[0], np.zeros(d))
        step = step.reshape(k, d)
        while height(gate + step) < height(gate) - 1e-12 and np.abs(step).max() > 1e-14:
            step = step / 2
        gate = gate + step
        if np.abs(step).max() < 1e-12 * (1 + np.abs(gate).max()):
            break
    return gate


def em_by_hand(start: MixingMeasure, x: np.ndarray, y: np.ndarray) -> tuple[Point, float, int]:
    """Where the published rule ends EM, its log-likelihood there and the number of steps."""
    u, point, before = np.column_stack([x, np.ones(len(y))]), Point(start), -np.inf
    for steps in range(MAX_STEPS + 1):  # noqa: B007
        joint = point.log_joint(u, y)
        now = float(np.sum(scipy.special.logsumexp(joint, axis=0)))
        if abs(now - before) < TOLERANCE * abs(before):
            break
        before, r = now, scipy.special.softmax(joint, axis=0)
        point.gate = climb(point.gate, r, u)
        for i, own in enumerate(r):
            root = np.sqrt(own)
            point.line[i] = np.linalg.lstsq(root[:, None] * u, root * y, rcond=None)[0]
            point.variance[i] = own @ (y - u @ point.line[i]) ** 2 / own.sum()
    return point, now, steps


def observe(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    x, y = scenario(cell.scenario, PLAN.gate(cell)).simulate(PLAN.data_key(cell), cell.n)
    return np.asarray(x), np.asarray(y)


def starts_of(cell: Cell) -> MixingMeasure:
    truth = scenario(cell.scenario, PLAN.gate(cell)).measure
    return near_truth(PLAN.fit_key(cell), truth, cell.n_experts, cell.n, PLAN.n_starts)


def stored_of(results: xr.Dataset, cell: Cell, estimator: str) -> xr.Dataset:
    return results.sel(cell._asdict()).sel(estimator=estimator).isel(prior=0)


@pytest.mark.parametrize("replicate", range(3))
def test_the_stored_em_is_that_of_the_published_rule_by_hand(
    results: xr.Dataset, replicate: int
) -> None:
    cell = Cell("lambda", "softmax", 3, 150, replicate)
    starts = starts_of(cell)
    ends = [
        em_by_hand(jax.tree.map(lambda leaf, i=i: np.array(leaf[i]), starts), *observe(cell))
        for i in range(PLAN.n_starts)
    ]
    point, height, steps = max(ends, key=lambda end: end[1])
    assert 2 < steps < MAX_STEPS
    found = stored_of(results, cell, "em")
    assert found["n_iterations"] == steps
    assert found["log_likelihood"].item() == pytest.approx(height, rel=1e-11)
    np.testing.assert_allclose(
        found["start_objective"][: PLAN.n_starts], [end[1] for end in ends], rtol=1e-11
    )
    np.testing.assert_allclose(found["estimate_slope"][:, 0], point.line[:, 0], rtol=1e-6)
    np.testing.assert_allclose(found["estimate_intercept"], point.line[:, 1], rtol=1e-6)
    np.testing.assert_allclose(found["estimate_variance"], point.variance, rtol=1e-6)
    np.testing.assert_allclose(found["estimate_gate_slope"][:, 0], point.gate[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found["estimate_gate_intercept"], point.gate[:, 1], rtol=1e-5)
    assert found["status"] == "stopped_early"
    assert not found["converged"]
    assert found["gradient_norm"] > 1e-8


def test_em_is_never_above_the_maximum_of_its_own_hill(results: xr.Dataset) -> None:
    """From the same points Newton's method may climb another hill, and that is counted."""
    above = 0
    for cell in PLAN.cells():
        em, mle = (stored_of(results, cell, name) for name in ("em", "mle"))
        height, other = em["log_likelihood"].item(), mle["log_likelihood"].item()
        end = MixingMeasure(*(em[f"estimate_{field}"].to_numpy() for field in FIELDS))
        twice = jax.tree.map(lambda leaf: np.stack([leaf] * PLAN.n_starts), end)
        model = PLAN.models(PLAN.gate(cell), 3)["weak"]
        summit = fit_mle(model, *observe(cell), n_starts=0, starts=twice)
        assert summit.log_likelihood >= height - 1e-10 * abs(height)
        if other < height - 1e-10 * abs(height):
            assert summit.log_likelihood > other + 1e-3
            above += 1
        assert mle["converged"]
    assert above <= 1
    assert measure_gaps(results)["above"].sum() == above


def test_no_prior_enters(results: xr.Dataset) -> None:
    for name in ("loss", "log_likelihood", "n_iterations", "seconds"):
        np.testing.assert_array_equal(*results[name].sel(estimator="em").transpose("prior", ...))


def test_numbers_do_not_depend_on_the_workers(directory: Path, tmp_path: Path) -> None:
    cells = [cell for cell in PLAN.cells() if cell.n == 150]
    part = PLAN.model_copy(update={"sizes": [150, 151], "replicates": 2})
    with Store.open(tmp_path / "out", part) as store:
        run_study(part, store, execute=functools.partial(in_threads, n_threads=3))
    one, other = Stored(directory), Stored(tmp_path / "out")
    for cell in cells[:2]:
        ours, theirs = one.read(cell), other.read(cell)
        for name in ours.keys() - {"seconds"}:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_the_time_of_a_cell_counts_em_once() -> None:
    assert _seconds(PLAN, np.array([[1.0, 10.0], [1.0, 10.0]])) == 11.0


# --- what is used, and the gap to the maximum


ENDS = ["converged", "stopped_early", "max_iterations", "separated", "missing"]


def made_up(**changes: Any) -> xr.Dataset:
    """EM and MLE of five data sets at one size and five at another, that ended in all ways."""
    plan = make_plan(estimators=["em", "mle"], replicates=5)
    status = np.full((2, 5, 2), "converged", dtype="<U24")
    status[:, :, 0] = ENDS
    arrays: Arrays = {
        "status": status,
        "log_likelihood": np.stack([np.tile([-9.0, -9.5, -11.0, -50.0, -50.0], (2, 1)),
                                    np.full((2, 5), -9.0)], axis=-1),
        "n_iterations": np.stack([np.tile([4.0, 6.0, 2000.0, 7.0, np.nan], (2, 1)),
                                  np.full((2, 5), 3.0)], axis=-1),
    }  # fmt: skip
    arrays |= changes
    arrays["converged"] = np.isin(arrays["status"], ["converged"])
    coordinates = {
        "scenario": ["lambda"], "gate": ["softmax"], "n_experts": [2], "n": plan.sizes,
        "replicate": range(5), "prior": ["weak"], "estimator": ["em", "mle"],
    }  # fmt: skip
    dims = (*CELL_AXES, "prior", "estimator")
    whole = {name: (dims, values[None, None, None, :, :, None]) for name, values in arrays.items()}
    return xr.Dataset(whole, coordinates)


def test_em_is_used_where_its_rule_ended_it_and_all_others_at_a_maximum() -> None:
    assert SHORT == ("stopped_early", "max_iterations")
    study = made_up(status=np.repeat(np.tile(ENDS, (2, 1))[..., None], 2, axis=-1).astype("<U24"))
    kept = used(study).isel(n=0).squeeze(drop=True)
    assert kept.sel(estimator="em").to_numpy().tolist() == [True, True, True, False, False]
    assert kept.sel(estimator="mle").to_numpy().tolist() == [True, False, False, False, False]
    one = used(study.sel(estimator="em")).isel(n=0).squeeze(drop=True)
    assert one.to_numpy().tolist() == [True, True, True, False, False]


def test_gaps_are_those_of_pairs_that_are_used() -> None:
    study = made_up()
    study["converged"].loc[{"estimator": "mle", "n": 1000, "replicate": 2}] = False
    study["log_likelihood"].loc[{"estimator": "em", "n": 1000, "replicate": 0}] = -8.0
    first, second = measure_gaps(study).to_dict("records")
    assert first == {
        "scenario": "lambda", "gate": "softmax", "n_experts": 2, "n": 100, "fits": 3, "short": 2,
        "steps": 6.0, "pairs": 3, "gap": 0.5, "gap_90": pytest.approx(1.7), "gap_max": 2.0,
        "above": 0,
    }  # fmt: skip
    assert (second["fits"], second["pairs"], second["above"]) == (3, 2, 1)
    assert (second["gap"], second["gap_max"]) == (-0.25, 0.5)


def test_rounding_is_no_higher_hill() -> None:
    study = made_up()
    study["log_likelihood"].loc[{"estimator": "em", "replicate": 0}] = -9.0 + 1e-10
    assert measure_gaps(study)["above"].tolist() == [0, 0]


def test_without_em_there_are_no_gaps_and_without_the_mle_no_pairs() -> None:
    study = made_up()
    assert measure_gaps(study.sel(estimator=["mle"])).empty
    alone = measure_gaps(study.sel(estimator=["em"]))
    assert alone["pairs"].tolist() == [0, 0]
    assert alone["short"].tolist() == [2, 2]
    assert alone["gap"].isna().all()


def test_a_study_writes_the_gaps_and_the_slopes_of_both(directory: Path) -> None:
    stored = Stored(directory)
    outputs = write_outputs(PLAN, stored)
    lines = (directory / "em_gaps.csv").read_text().splitlines()
    assert lines[0].startswith("scenario,gate,n_experts,n,fits,short,steps,pairs,gap")
    assert len(lines) == 1 + 2
    losses = outputs.slopes[outputs.slopes["quantity"] == "loss"]
    rows = {(row["estimator"], row["prior"]): row for _, row in losses.iterrows()}
    assert set(rows) == {(e, p) for e in ("em", "mle") for p in PLAN.priors}
    for name in ("slope", "low", "high"):
        assert rows["em", "weak"][name] == rows["em", "compact"][name]
    kept = used(outputs.results).sel(estimator="em", prior="weak")
    assert rows["em", "weak"]["n_used"] == int(kept.sum())
    assert int(kept.sum()) > int(
        outputs.results["converged"].sel(estimator="em", prior="weak").sum()
    )
