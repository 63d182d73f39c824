"""The verdict on a posterior: what must pass, what must not, and what was not checked."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr
from xarray import DataTree

import bayesmoe as bm
from bayesmoe.diagnostics import sampler_checks, verdict
from bayesmoe.diagnostics.checks import check_posterior
from bayesmoe.diagnostics.left_out import groups_by
from bayesmoe.diagnostics.prior_checks import power_scaling
from bayesmoe.diagnostics.verdict import Check, Checks, Verdict

N, SHAPE = 300, (4, 250)


@functools.cache
def model() -> bm.MoE:
    return bm.moe("softmax", 1)


@functools.cache
def line() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=N)
    return x, 1 + 2 * x + 0.5 * rng.normal(size=N)


@functools.cache
def honest() -> DataTree:
    return bm.sample_laplace(model(), *line(), n_draws=SHAPE[1])


@functools.cache
def whole() -> DataTree:
    return bm.sample_predictive(model(), as_nuts(honest()))


def as_nuts(tree: DataTree, **stats: np.ndarray) -> DataTree:
    """Independent draws, passed off as those of chains."""
    rng = np.random.default_rng(1)
    changed = tree.copy()
    group = changed["sample_stats"].to_dataset()
    values = {"diverging": np.zeros(SHAPE, bool), "energy": rng.normal(size=SHAPE)} | stats
    changed["sample_stats"] = DataTree(
        group.assign({name: (("chain", "draw"), value) for name, value in values.items()})
    )
    changed.attrs = {**tree.attrs, "method": "nuts", "start_modes": np.zeros(SHAPE[0], int)}
    return changed


def shifted(tree: DataTree, by: np.ndarray, sd: float = 1.0) -> DataTree:
    """The tree with other draws of intercept and variance, and the densities that go with them."""
    changed = tree.copy()
    group = tree["posterior"].to_dataset()
    intercept = group["intercept"] + by[..., None]
    variance = group["variance"] * sd**2
    changed["posterior"] = DataTree(group.assign(intercept=intercept, variance=variance))
    x, y = line()
    means = group["slope"].values[..., 0, :] * x + intercept.values
    density = scipy.stats.norm(means, np.sqrt(variance.values)).logpdf(y)
    old = tree["log_likelihood"].to_dataset()
    changed["log_likelihood"] = DataTree(old.assign(y=(old["y"].dims, density)))
    return changed


def found(result: Checks, name: str) -> Check:
    return next(check for check in result.checks if check.name == name)


def test_a_good_posterior_passes_everything() -> None:
    result = check_posterior(model(), whole())
    assert {check.verdict for check in result.checks} == {Verdict.PASSED}
    assert result.verdict is Verdict.PASSED
    names = ["chains", "effective draws", "divergences", "energy", "modes", "influential rows"]
    names += ["calibration", "calibration given x", "prior sensitivity", "determined by data"]
    assert [check.name for check in result.checks] == names
    assert found(result, "chains").value < 1.01
    assert found(result, "effective draws").value > 700  # of 1000 independent draws
    assert found(result, "divergences").value == 0
    # with n = 300 the spread is some 3 % of what the prior allows
    assert found(result, "determined by data").value < 0.2


def test_divergences_of_thinned_chains_are_a_share_of_their_transitions() -> None:
    diverging = (np.arange(1000) < 3).reshape(SHAPE)
    tree = as_nuts(honest(), diverging=diverging)
    tree.attrs = {**tree.attrs, "thinning": 4, "divergences": 5}
    check = found(check_posterior(model(), tree), "divergences")
    assert check.text == "5 of 4000 transitions diverged"
    assert check.value == 5 / 4000


def test_draws_that_are_all_the_same_tell_nothing() -> None:
    tree = as_nuts(whole())
    still = tree.map_over_datasets(
        lambda group: group.isel(draw=[0] * SHAPE[1], chain=[0, 0]) if "draw" in group else group
    )
    still.attrs = tree.attrs
    result = check_posterior(model(), still)
    verdicts = {check.name: check.verdict for check in result.checks}
    assert verdicts["chains"] is Verdict.FAILED
    by_draws = set(verdicts) - {"chains", "divergences", "modes"}
    assert {verdicts[name] for name in by_draws} == {Verdict.NOT_CHECKED}


def test_it_reads_well_and_makes_a_table() -> None:
    result = check_posterior(model(), whole())
    text = str(result)
    assert text.splitlines()[-1].split() == ["passed", "in", "all"]
    assert "0 of 1000 transitions diverged" in text
    frame = result.to_frame()
    assert list(frame.columns) == ["verdict", "value", "text"]
    assert set(frame["verdict"]) == {"passed"}


def test_what_is_missing_is_not_checked() -> None:
    result = check_posterior(model(), as_nuts(honest()))
    for name, group in (("prior sensitivity", "log_prior"), ("determined by data", "prior")):
        check = found(result, name)
        assert check.verdict is Verdict.NOT_CHECKED
        assert f"no group '{group}'" in check.text
        assert "bayesmoe.sample_predictive" in check.text
    assert result.verdict is Verdict.NOT_CHECKED
    one = as_nuts(honest()).isel(chain=[0])
    assert found(check_posterior(model(), one), "chains").verdict is Verdict.NOT_CHECKED


def few(n_chains: int, n_draws: int) -> DataTree:
    """The first draws of the first chains."""
    tree = whole().copy()
    for name in ("posterior", "sample_stats", "log_likelihood", "log_prior"):
        tree[name] = tree[name].isel(chain=slice(n_chains), draw=slice(n_draws))
    tree.attrs = {**whole().attrs, "start_modes": np.zeros(n_chains, int)}
    return tree


BY_CHAIN = {"chains", "effective draws", "energy"}
BY_WEIGHTS = {"influential rows", "calibration", "calibration given x", "prior sensitivity"}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    ("n_chains", "n_draws", "missing"),
    [
        (1, 1, BY_CHAIN | BY_WEIGHTS | {"determined by data"}),
        (2, 3, BY_CHAIN | BY_WEIGHTS | {"determined by data"}),
        (2, 4, BY_WEIGHTS | {"determined by data"}),
        (2, 12, BY_WEIGHTS | {"determined by data"}),
        (1, 25, {"chains"}),
        (2, 13, set()),
    ],
)
def test_what_so_few_draws_do_not_tell_is_not_checked(
    n_chains: int, n_draws: int, missing: set[str]
) -> None:
    result = check_posterior(model(), few(n_chains, n_draws))
    by_verdict = {c.name: c.text for c in result.checks if c.verdict is Verdict.NOT_CHECKED}
    assert set(by_verdict) == missing
    for name, text in by_verdict.items():
        if name == "chains" and n_chains == 1:
            assert text == "one chain cannot be compared"
        elif name in BY_CHAIN:
            assert text == f"too few draws in each chain, {n_draws}; 4 are needed"
        else:
            total = n_chains * n_draws
            assert text == f"too few draws in all, {total}; 25 are needed"


def test_a_chain_that_never_moved_is_no_matter_of_length() -> None:
    tree, by = few(2, 4), np.zeros((2, 4))
    for name in ("posterior", "sample_stats", "log_likelihood"):
        still = tree[name].to_dataset().isel(chain=[0] * 2, draw=[0] * 4)
        tree[name] = DataTree(still.assign_coords(chain=[0, 1], draw=np.arange(4)))
    check = found(check_posterior(model(), shifted(tree, by)), "chains")
    assert check.verdict is Verdict.FAILED
    assert check.text == "a chain never moved"


def test_chains_too_short_for_stacking_are_told_apart_all_the_same() -> None:
    tree, by = few(2, 4), np.array([[0.0] * 4, [5.0] * 4])
    stats = tree["sample_stats"].to_dataset()
    tree["sample_stats"] = DataTree(stats.assign(lp=stats["lp"] - 400 * by))
    check = found(check_posterior(model(), shifted(tree, by)), "chains")
    assert check.verdict is Verdict.FAILED
    assert "stacking weight nan" in check.text


def test_importance_resampling_has_its_own_evidence() -> None:
    result = check_posterior(model(), honest())
    assert [check.name for check in result.checks[:2]] == ["importance weights", "effective draws"]
    bad = honest().copy()
    bad.attrs = {**honest().attrs, "pareto_k": 0.9, "min_ess": 20.0}
    failed = check_posterior(model(), bad)
    assert found(failed, "importance weights").verdict is Verdict.FAILED
    assert found(failed, "effective draws").verdict is Verdict.FAILED
    assert failed.verdict is Verdict.FAILED
    taken = honest()["sample_stats"]["lp"].size
    for worth, wanted in ((taken, Verdict.PASSED), (taken - 1.0, Verdict.DOUBTFUL)):
        bad.attrs = {**honest().attrs, "min_ess": worth}
        weights = found(check_posterior(model(), bad), "importance weights")
        assert weights.verdict is wanted
    assert f"worth {taken - 1} independent draws where {taken} are taken" in weights.text


@pytest.mark.parametrize(
    ("size", "verdict"), [(0.0, Verdict.PASSED), (0.012, Verdict.DOUBTFUL), (0.3, Verdict.FAILED)]
)
def test_chains_that_disagree_are_seen(size: float, verdict: Verdict) -> None:
    by = np.zeros(SHAPE)
    by[0] += size  # the intercept's standard deviation is 0.03
    tree = as_nuts(honest())
    stats = tree["sample_stats"].to_dataset()
    tree["sample_stats"] = DataTree(stats.assign(lp=stats["lp"] - 400 * by))
    result = check_posterior(model(), shifted(tree, by))
    check = found(result, "chains")
    assert check.verdict is verdict
    if verdict is Verdict.FAILED:
        assert "chains are in different modes" in check.text
        assert "chain 0: " in check.text
        assert "chains 1, 2, 3: the densest" in check.text


def test_chains_that_repeat_themselves_are_worth_little() -> None:
    slow = as_nuts(honest()).isel(draw=np.repeat(np.arange(5), 50))
    assert found(check_posterior(model(), slow), "effective draws").verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.001, Verdict.PASSED), (0.01, Verdict.DOUBTFUL), (0.1, Verdict.FAILED)]
)
def test_divergences_count(share: float, verdict: Verdict) -> None:
    diverging = (np.arange(1000) < 1000 * share).reshape(SHAPE)
    check = found(check_posterior(model(), as_nuts(honest(), diverging=diverging)), "divergences")
    assert check.verdict is verdict
    assert check.value == pytest.approx(share)


def test_energy_that_hardly_changes_is_seen() -> None:
    energy = np.cumsum(np.random.default_rng(2).normal(size=SHAPE), axis=1)
    check = found(check_posterior(model(), as_nuts(honest(), energy=energy)), "energy")
    assert check.verdict is Verdict.FAILED
    changes = np.mean(np.diff(energy, axis=1) ** 2, axis=1) / np.var(energy, axis=1, ddof=1)
    assert check.value == pytest.approx(changes.min(), rel=0.02)


def test_mass_in_other_modes_is_told() -> None:
    tree = as_nuts(honest())
    tree.attrs |= {"n_modes": 3, "mode_weight": 0.7}
    check = found(check_posterior(model(), tree), "modes")
    assert check.verdict is Verdict.DOUBTFUL
    assert "30%" in check.text
    assert "Laplace" in check.text
    tree.attrs |= {"leaps": 1, "mode_weight": 0.99}
    check = found(check_posterior(model(), tree), "modes")
    assert check.verdict is Verdict.PASSED
    assert check.text.startswith("3 modes were found, between which chains leap; 1% of the mass")
    tree.attrs["method"] = "laplace"
    assert found(check_posterior(model(), tree), "modes").verdict is Verdict.PASSED


def test_a_uniform_prior_moves_nothing() -> None:
    """More or less of it is the same prior, whose density does not vary over the draws."""
    tree = whole().copy()
    usual = power_scaling(model().gate, tree)
    constant = xr.full_like(tree["log_prior"].to_dataset(), 0.1)
    tree["log_prior"] = DataTree(constant * (1 + 1e-15 * np.arange(SHAPE[1])))
    table = power_scaling(model().gate, tree)
    assert (table["prior"] == 0).all()
    pd.testing.assert_series_equal(table["likelihood"], usual["likelihood"])
    check = found(check_posterior(model(), tree), "prior sensitivity")
    assert (check.verdict, check.value) == (Verdict.PASSED, 0.0)


def test_masses_that_are_not_known_are_not_judged() -> None:
    tree = as_nuts(honest())
    tree.attrs |= {"n_modes": 3, "mode_weight": np.nan}
    check = found(check_posterior(model(), tree), "modes")
    assert check.verdict is Verdict.NOT_CHECKED
    assert "where the density jumps" in check.text


def test_a_model_of_the_wrong_width_is_not_calibrated() -> None:
    """Residuals half as wide as the model has them: their PIT crowds the middle."""
    check = found(check_posterior(model(), shifted(honest(), np.zeros(SHAPE), 2.0)), "calibration")
    assert check.verdict is Verdict.FAILED
    x, y = line()
    residual = (y - np.polyval(np.polyfit(x, y, 1), x)) / (2 * 0.5)
    direct = scipy.stats.kstest(scipy.stats.norm.cdf(residual), "uniform")
    assert check.value < 1e-4
    assert float(check.text.split("law by ")[1].split()[0]) == pytest.approx(
        direct.statistic, abs=0.02
    )


def test_what_cancels_over_all_rows_is_seen_given_x() -> None:
    """A wave about the line: residuals of either sign take turns, in all they look normal."""
    x, _ = line()
    noise = np.random.default_rng(5).normal(size=N)
    y = 2 * x + 0.5 * np.sin(4 * x) + 0.5 * noise
    result = check_posterior(model(), bm.sample_laplace(model(), x, y, n_draws=SHAPE[1]))
    assert found(result, "calibration").verdict is Verdict.PASSED
    check = found(result, "calibration given x")
    assert check.verdict is Verdict.FAILED
    # residuals of rows left out, from the line of the others, in fifths of the rows by x
    design = np.column_stack([x, np.ones(N)])
    leverage = np.einsum("ij,jk,ik->i", design, np.linalg.inv(design.T @ design), design)
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    others = (residual @ residual - residual**2 / (1 - leverage)) / (N - 3)
    pit = scipy.stats.t(N - 3).cdf(residual / np.sqrt(others * (1 - leverage)))
    fifths = np.sort(x).reshape(5, -1)
    pvalues = [scipy.stats.kstest(pit[np.isin(x, fifth)], "uniform").pvalue for fifth in fifths]
    np.testing.assert_allclose(np.log(check.value), np.log(5 * min(pvalues)), rtol=0.05)
    worst = fifths[int(np.argmin(pvalues))]
    assert f"where covariate 0 is in [{worst[0]:.4g}, {worst[-1]:.4g}]" in check.text


@pytest.mark.slow
def test_the_groups_of_a_right_model_err_as_often_as_they_say() -> None:
    """At a level of 5 %, in 2000 tables: within three standard errors above it (1.5 %)."""
    rng = np.random.default_rng(6)
    x = rng.integers(0, 12, size=53).astype(float)  # ties, and groups of two sizes
    least = [min(g.pvalue for g in groups_by(x, rng.uniform(size=53))) for _ in range(2000)]
    assert 0.02 < np.mean(5 * np.array(least) < 0.05) < 0.065


def test_groups_are_neighbours() -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=47)
    groups = groups_by(x, rng.uniform(size=47))
    assert [len(group.rows) for group in groups] == [12, 12, 12, 11]
    assert sorted(np.concatenate([group.rows for group in groups])) == list(range(47))
    assert all(left.high < right.low for left, right in itertools.pairwise(groups))
    assert groups_by(x[:19], x[:19]) == []


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        ({0: 30, 1: 70}, [30, 70]),
        ({0: 4, 1: 96}, []),
        ({0: 50, 1: 4, 2: 46}, [50, 50]),
        ({0: 100}, []),
        (dict.fromkeys(range(5), 20), [20] * 5),
        (dict.fromkeys(range(6), 10), [10, 10, 20, 10, 10]),
    ],
)
def test_rows_of_one_value_are_in_one_group(counts: dict[int, int], sizes: list[int]) -> None:
    """Also where rows are in the order of the response: no other order could show."""
    x = np.repeat([float(value) for value in counts], list(counts.values()))
    pit = np.concatenate([(np.arange(m) + 0.5) / m for m in counts.values()])
    order = np.argsort(pit, kind="stable")
    groups = groups_by(x[order], pit[order])
    assert [len(group.rows) for group in groups] == sizes
    assert all(group.pvalue > 0.9 for group in groups)


@pytest.mark.slow
def test_every_covariate_has_its_groups() -> None:
    x, _ = line()
    rng = np.random.default_rng(8)
    y = 2 * x + 0.8 * np.sin(4 * x) + 0.5 * rng.normal(size=N)
    frame = pd.DataFrame(np.column_stack([rng.normal(size=N), x]), columns=["u", "v"])
    tree = bm.sample_laplace(model(), frame, y, n_draws=SHAPE[1])
    check = found(check_posterior(model(), tree), "calibration given x")
    assert check.verdict is Verdict.FAILED
    assert "in 10 groups of rows, worst where covariate v is in" in check.text


@pytest.mark.slow
def test_few_rows_are_not_looked_at_in_groups() -> None:
    x, y = line()
    tree = bm.sample_laplace(model(), x[:19], y[:19], n_draws=SHAPE[1])
    check = found(check_posterior(model(), tree), "calibration given x")
    assert check.verdict is Verdict.NOT_CHECKED
    assert "19 rows are too few" in check.text


@pytest.mark.slow
def test_rows_that_decide_alone_are_named() -> None:
    x, y = (part.copy() for part in line())
    y[7] += 30
    tree = bm.sample_laplace(model(), x[:40], y[:40], n_draws=SHAPE[1])
    check = found(check_posterior(model(), tree), "influential rows")
    assert check.verdict is Verdict.FAILED
    assert check.value == pytest.approx(1 / 40)
    assert "the first is row 8, counted from 1:" in check.text


@pytest.mark.slow
def test_a_prior_that_decides_is_told() -> None:
    """The ray of the dense-to-sparse gate, by both checks, and no parameter of the experts."""
    ray = bm.moe("dense_to_sparse", 2)
    x, y = bm.scenario("lambda", gate="dense_to_sparse").simulate(1, 500)
    tree = bm.sample_predictive(ray, bm.sample_laplace(ray, x, y, key=3))
    result = check_posterior(ray, tree)
    for name in ("prior sensitivity", "determined by data"):
        check = found(result, name)
        assert check.verdict is Verdict.DOUBTFUL
        assert "temperature" in check.text
        assert "gate_slope[0, 0]" in check.text
        assert "variance" not in check.text


@pytest.mark.parametrize("group", ["posterior", "sample_stats", "log_likelihood"])
def test_a_tree_without_a_group_is_refused(group: str) -> None:
    tree = honest().copy()
    del tree[group]
    with pytest.raises(ValueError, match=f"no group '{group}'"):
        check_posterior(model(), tree)


def test_another_models_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="pass the model that was sampled"):
        check_posterior(bm.moe("softmax", 2), honest())


def test_limits_judge() -> None:
    limits = verdict.RHAT
    judged = [limits.judge(value) for value in (1.0, 1.01, 1.02, 1.05, 1.06, np.nan)]
    good, fair = [Verdict.PASSED] * 2, [Verdict.DOUBTFUL] * 2
    assert judged == [*good, *fair, Verdict.FAILED, Verdict.NOT_CHECKED]


def test_a_number_beyond_a_limit_is_not_shown_as_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = honest().copy()
    bad.attrs = {**honest().attrs, "pareto_k": 0.5004, "min_ess": 399.7}
    weights, effective = check_posterior(model(), bad).checks[:2]
    assert weights.text == "Pareto k of the importance weights is 0.51 (good to 0.5)"
    assert "worth at least 399 independent ones (good from 400)" in effective.text
    for value, shown in ((1.010003, "1.011"), (1.01, "1.010"), (1.0, "1.000")):
        monkeypatch.setattr(
            sampler_checks.array_stats, "rhat", lambda *_, _value=value, **__: _value
        )
        monkeypatch.setattr(
            sampler_checks.array_stats, "bfmi", lambda _, _value=value: _value - 0.710004
        )
        chains, _, _, energy = check_posterior(model(), as_nuts(honest())).checks[:4]
        assert f"is at most {shown} (good to 1.01)" in chains.text
        assert chains.verdict is (Verdict.DOUBTFUL if shown == "1.011" else Verdict.PASSED)
    assert "is 0.28 (good from 0.3)" in energy.text
