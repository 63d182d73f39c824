"""The report of a fit: what it shows and to whom, its tables, and the troubles it tells."""

from __future__ import annotations

import re
import shlex
from html.parser import HTMLParser

import arviz_stats
import numpy as np
import pandas as pd
import pytest
from fabricated_fit import (
    CENTRE,
    HOSTILE,
    PLANE,
    N,
    fitted,
    hostile,
    make_analysis,
    make_plane,
    make_request,
    passed,
    point,
    simulate,
)
from matplotlib.figure import Figure

import bayesmoe as bm
from bayesmoe.data.table import Axis
from bayesmoe.diagnostics.analysis import Analysis, mle_errors
from bayesmoe.diagnostics.stored_fit import StoredFit
from bayesmoe.diagnostics.verdict import Check, Checks, Verdict
from bayesmoe.inference.outcome import Status
from bayesmoe.inference.point import Fit
from bayesmoe.report._dependence import table_sweeps
from bayesmoe.report._findings import _CHECKS, Finding, find_optima, find_troubles
from bayesmoe.report.fit_figures import fit_figures
from bayesmoe.report.fit_html import estimate_rows, render_fit, sampler_text, sensitivity_rows


@pytest.fixture(scope="module")
def stored() -> StoredFit:
    return hostile()


@pytest.fixture(scope="module")
def sound() -> Analysis:
    """An analysis without trouble, whose MLE is a true maximum: not to be changed in place.

    It lacks the prior's density, so that pages of it take no time for its influence.
    """
    found = make_analysis(fitted())
    del found.posterior["log_prior"]
    return found


@pytest.fixture(scope="module")
def hostile_page(stored: StoredFit) -> str:
    return render_fit(stored, fit_figures(stored.analysis))


def with_mle(analysis: Analysis, mle: Fit) -> Analysis:
    return analysis._replace(mle=mle, mle_measure=mle.measure)


class Seen(HTMLParser):
    """Elements, references and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [str(v) for name, v in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


# --- the page


def test_what_comes_from_the_user_is_shown_and_not_run(
    stored: StoredFit, hostile_page: str
) -> None:
    page = hostile_page
    seen = Seen(page)
    assert seen.tags.count("script") == 1, "the page's own"
    assert seen.tags.count("img") == 6, "the figures"
    assert "<script>alert" not in page
    assert f"slope[0, {HOSTILE}]" in seen.text
    assert "{{ 7 * 7 }}<img src=x onerror=alert(2)>" in seen.text
    command = re.search(r"bayesmoe fit .*", seen.text)
    assert command is not None
    words = shlex.split(command[0])
    assert words[:5] == ["bayesmoe", "fit", "my data.csv", "--response", stored.request.response]
    assert words[words.index("--covariate") + 1] == HOSTILE


def test_the_page_needs_nothing_else(hostile_page: str) -> None:
    seen = Seen(hostile_page)
    assert len(seen.references) == 6, "the figures"
    assert all(reference.startswith("data:image/svg+xml;base64,") for reference in seen.references)


def test_the_table_has_the_estimates(stored: StoredFit, hostile_page: str) -> None:
    page = Seen(hostile_page).text
    x, y = simulate()
    mle = stored.analysis.mle
    errors = bm.standard_errors(stored.analysis.model, mle, x, y)
    draws = stored.analysis.posterior["posterior"]["intercept"].values[..., 1]
    low, high = np.quantile(draws, [0.05, 0.95])
    row = page.split("intercept[1]", 1)[1].split()[:6]
    values = [float(text.strip("[,]").replace("−", "-")) for text in row]
    expected = [mle.measure.intercept[1], errors.measure.intercept[1], 2.0, draws.mean(), low, high]
    np.testing.assert_allclose(values, expected, rtol=0.06)


def test_tables_sort_by_the_numbers_that_they_show(sound: Analysis) -> None:
    """Of numbers too far from 1 to be shown in full, of none, and of verdicts by their gravity."""
    heights = [-123456.789125, -np.inf, np.nan, -123456.789124]
    fit = point(heights, [Status.CONVERGED] * 4, map_=True)
    checks = passed(energy=(Verdict.FAILED, 0.1, "poor"), modes=(Verdict.DOUBTFUL, 0.1, "two"))
    analysis = sound._replace(map=fit, checks=checks)
    page = render_fit(StoredFit(make_request(), analysis), {})
    estimates, verdicts, starts = re.findall(r"<table data-sortable>.*?</table>", page, re.DOTALL)
    cell = re.compile(r'<td[^>]* data-value="([^"]*)">([^<]*)</td>')
    found = cell.findall(estimates)
    assert len(found) == 7 * estimates.count('<th scope="row">')
    for value, shown in found:
        number = float(shown.strip("[").split(",")[0].replace("−", "-").replace("–", "nan"))
        np.testing.assert_allclose(float(value or "nan"), number, rtol=0.05, atol=5e-4)
    worst_last = [shown for _, shown in sorted(cell.findall(verdicts))]
    assert worst_last == sorted(worst_last, key=["passed", "doubtful", "failed"].index)
    assert worst_last[-3:] == ["passed", "doubtful", "failed"]
    objectives = [value for value, _ in cell.findall(starts)[-8::2]]
    assert objectives == ["-123456.789124", "-123456.789125", "-Infinity", ""]


def test_errors_follow_the_names_of_the_experts(sound: Analysis) -> None:
    analysis = sound
    swapped = bm.align(
        analysis.mle.measure,
        analysis.model.gate,
        CENTRE.replace(slope=CENTRE.slope[::-1], intercept=CENTRE.intercept[::-1],
                       variance=CENTRE.variance[::-1]),
    )  # fmt: skip
    errors = mle_errors(analysis)
    other = mle_errors(analysis._replace(mle_measure=swapped))
    np.testing.assert_allclose(other["slope[0, u]"], errors["slope[1, u]"], rtol=1e-6)
    np.testing.assert_allclose(other["gate_slope[0, u]"], errors["gate_slope[0, u]"], rtol=1e-6)
    assert errors["slope[0, u]"] != pytest.approx(errors["slope[1, u]"], rel=1e-3)


def test_a_separated_mle_has_no_errors_and_says_why(sound: Analysis) -> None:
    mle = point([-5.0, -5.0], [Status.SEPARATED] * 2, map_=False)
    analysis = with_mle(sound, mle)
    assert mle_errors(analysis).isna().all()
    page = Seen(render_fit(StoredFit(make_request(), analysis), {})).text
    assert "The MLE has no standard errors (separated: no finite maximum)" in page
    assert "MLE did not converge: a gate parameter runs away" in page
    assert "2 of 2 starts reached this height; no other optima within 1 unit" in page
    assert "Separated gate (MLE)" in page


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (Verdict.PASSED, "The posterior may be used: every check passed."),
        (Verdict.NOT_CHECKED, "The posterior may be used as far as it was checked"),
        (Verdict.DOUBTFUL, "The posterior may be used, with the reservations below."),
        (Verdict.FAILED, "The posterior must not be used as it is"),
    ],
)
def test_the_verdict_comes_first(sound: Analysis, verdict: Verdict, words: str) -> None:
    analysis = sound._replace(checks=passed(energy=(verdict, 0.1, "poor")))
    page = Seen(render_fit(StoredFit(make_request(), analysis), {})).text
    assert words in page
    assert ("No trouble was found." in page) == (verdict is Verdict.PASSED)
    assert page.index(words) < page.index("Estimates")


def test_the_influence_of_the_prior_is_told_by_parameter(
    sound: Analysis, stored: StoredFit, hostile_page: str
) -> None:
    missing = Seen(render_fit(StoredFit(make_request(), sound), {})).text
    assert "Not checked: the posterior was stored without its prior density" in missing
    rows = sensitivity_rows(stored.analysis)
    assert [row["name"] for row in rows] == [row["name"] for row in estimate_rows(stored.analysis)]
    tree = stored.analysis.posterior.copy()  # of whose groups ArviZ takes all
    table = arviz_stats.psense_summary(tree, var_names=["intercept"], round_to=6)
    found = {row["name"]: [number.value for number in row["numbers"]] for row in rows}
    for name in ("intercept[0]", "intercept[1]"):
        np.testing.assert_allclose(found[name], table.loc[name, ["prior", "likelihood"]].tolist())
    section = hostile_page[hostile_page.index('<h2 id="sensitivity">') :].split("</section>")[0]
    shown = Seen(section).text
    assert all(row["name"] in shown and row["text"] in shown for row in rows)


def test_diagnoses_are_put_in_words_and_sort_by_gravity(
    stored: StoredFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The three that ArviZ has, by its threshold of 0.05."""
    diagnoses = {
        "a": (0.01, 0.3, "✓"),
        "b": (0.1, 0.3, "potential prior-data conflict"),
        "c": (0.1, 0.01, "potential strong prior / weak likelihood"),
    }
    columns = ["prior", "likelihood", "diagnosis"]
    table = pd.DataFrame.from_dict(diagnoses, orient="index", columns=columns)
    monkeypatch.setattr("bayesmoe.report.fit_html.power_scaling", lambda *_: table)
    rows = sensitivity_rows(stored.analysis)
    assert [(row["order"], row["text"]) for row in rows] == [
        (0, "the prior hardly moves it"),
        (1, "prior and data both move it: they may disagree"),
        (2, "the prior moves it, the data hardly do"),
    ]


def test_two_covariates_have_figures_of_their_own() -> None:
    mle = point([-5.0], [Status.SEPARATED], PLANE, map_=False)
    analysis = make_plane()._replace(mle=mle)
    del analysis.posterior["log_prior"]
    request = make_request()._replace(covariates=("u", "v"), response="y")
    figures = dict.fromkeys(("fit", "dependence", "pairs", "residuals", "influence"), Figure())
    page = Seen(render_fit(StoredFit(request, analysis), figures)).text
    assert "averages over all 60 rows and all 100 draws" in page
    assert "left out" not in page.split("Pairs of covariates")[1].split("Checks")[0]


def test_a_formula_of_several_columns_says_what_is_missing(sound: Analysis) -> None:
    axis = Axis("u", np.zeros(N), np.zeros(2), np.zeros((2, 1)), {"w": 0.5})
    request = make_request()._replace(formula="v ~ u * w")
    stored = StoredFit(request, sound._replace(axis=axis))
    pairs, along = "Pairs are drawn of columns only", "There is no figure along each column"
    page = Seen(render_fit(stored, {})).text
    assert pairs in page
    assert along in page
    drawn = Seen(render_fit(stored, {"dependence": Figure()})).text
    assert pairs in drawn
    assert along not in drawn
    alone = stored._replace(analysis=sound._replace(axis=axis._replace(held={})))
    assert pairs not in Seen(render_fit(alone, {})).text


@pytest.mark.slow
def test_levels_alone_are_drawn_level_by_level(sound: Analysis) -> None:
    """The first figure has no column of numbers to run along then."""
    sweeps = table_sweeps(sound.table.x)
    assert "dependence" not in fit_figures(sound)
    found = fit_figures(sound, "v ~ C(u)", sweeps)
    assert "dependence" in found
    assert "pairs" not in found
    axis = Axis("u", np.zeros(N), np.array([0.0, 1.0]), np.array([[0.0], [1.0]]), {})
    assert "dependence" not in fit_figures(sound._replace(axis=axis), "v ~ u", sweeps)


# --- troubles


def subjects(analysis: Analysis) -> list[str]:
    return [trouble.subject for trouble in find_troubles(analysis)]


def test_a_sound_fit_has_no_trouble() -> None:
    assert find_troubles(make_analysis()) == []


@pytest.mark.parametrize(
    ("heights", "reached", "below"),
    [
        ([-5.0, -5.0 - 9e-4, -5.0], 3, ()),
        ([-5.0, -5.3, -5.3005, -5.9, -6.1], 1, (0.3, 0.9)),
        ([-5.0, -5.0, -float("inf"), float("nan")], 2, ()),
    ],
)
def test_optima_are_told_apart(
    sound: Analysis, heights: list[float], reached: int, below: tuple[float, ...]
) -> None:
    fit = point(heights, [Status.CONVERGED] * len(heights), map_=True)
    found = find_optima(fit)
    assert (found.reached, found.total) == (reached, len(heights))
    assert found.below == pytest.approx(below)
    assert ("Several optima (MAP)" in subjects(sound._replace(map=fit))) == bool(below)


def test_a_start_that_stopped_is_no_optimum() -> None:
    status = [Status.CONVERGED, Status.CONVERGED, Status.MAX_ITERATIONS]
    fit = point([-5.0, -5.0, -5.5], status, map_=False)
    assert find_optima(fit) == (2, 3, ())


def test_an_optimum_found_once_is_doubted(sound: Analysis) -> None:
    fit = point([-5.0, -15.0, -15.0], [Status.CONVERGED] * 3, map_=False)
    assert subjects(with_mle(sound, fit)) == ["Hard to find (MLE)"]


@pytest.mark.parametrize(
    ("status", "subject", "grave"),
    [
        (Status.SEPARATED, "Separated gate (MLE)", True),
        (Status.TEMPERATURE_TO_ZERO, "Temperature goes to zero (MLE)", True),
        (Status.EMPTY_EXPERT, "Empty expert (MLE)", True),
        (Status.MAX_ITERATIONS, "No maximum (MLE)", True),
        (Status.AT_VARIANCE_FLOOR, "Variance at its floor", False),
        (Status.AT_PRIOR_BOUND, "On the prior's edge (MLE)", False),
    ],
)
def test_the_status_of_a_fit_is_told(
    sound: Analysis, status: Status, subject: str, grave: bool
) -> None:
    fit = point([-5.0, -5.0], [status] * 2, map_=False)
    (trouble,) = find_troubles(with_mle(sound, fit))
    assert (trouble.subject, trouble.grave) == (subject, grave)
    if status is Status.AT_VARIANCE_FLOOR:
        assert "variance of expert 0 rests" in trouble.text


def test_an_expert_with_few_observations_is_named(sound: Analysis) -> None:
    x, y = simulate()
    far = CENTRE.replace(gate_slope=[[0.0], [0.0]], gate_intercept=[-9.0, 0.0])
    other = np.exp(-9.0 - (y - 0.1 - x[:, 0]) ** 2 / 2 / 0.04) / 0.2
    joint = np.exp(-((y - 2.0 + x[:, 0]) ** 2) / 2 / 9.0) / 3.0
    spread = far.replace(variance=[0.04, 9.0])
    fit = point([-9.0, -9.0], [Status.CONVERGED] * 2, spread, map_=True)
    found = {t.subject: t.text for t in find_troubles(sound._replace(map=fit))}
    owned = np.sum(other / (joint + other))
    assert owned < 3
    text = found["Expert with few observations (MAP)"]
    assert f"expert 0 owns {owned:.1f} observations" in text
    assert "have 3 parameters" in text


def test_every_check_has_advice_and_the_grave_come_first(sound: Analysis) -> None:
    checks = Checks(
        tuple(
            Check(name, Verdict.FAILED if i % 2 else Verdict.DOUBTFUL, 1.0, f"{name} is bad")
            for i, name in enumerate(_CHECKS)
        )
    )
    troubles = find_troubles(sound._replace(checks=checks))
    assert len(troubles) == len(_CHECKS)
    assert [t.grave for t in troubles] == sorted((t.grave for t in troubles), reverse=True)
    assert all(isinstance(t, Finding) and t.advice.endswith(".") for t in troubles)


def test_chains_in_different_modes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = [bm.ChainMode((i,), f"mode {i}", -i, 0.5, 0.5) for i in range(2)]
    monkeypatch.setattr("bayesmoe.report._findings.chain_modes", lambda *_: tuple(modes))
    analysis = make_analysis(checks=passed(chains=(Verdict.FAILED, 2.0, "far apart")))
    assert subjects(analysis) == ["Chains disagree"]
    analysis.posterior.attrs["start_modes"] = np.array([0, 1])
    (trouble,) = find_troubles(analysis)
    assert trouble.subject == "Chains in different modes"
    assert "Chain 0: mode 0" in trouble.text
    assert "chain 1: mode 1" in trouble.text


def test_experts_that_change_names_are_told() -> None:
    analysis = make_analysis()
    draws = analysis.posterior["posterior"]
    for name in ("slope", "intercept", "variance"):
        draws[name][1] = draws[name][1].isel(expert=[1, 0]).values
    assert subjects(analysis) == ["Experts change names"]
    (trouble,) = find_troubles(analysis)
    assert "for 6 parameters, slope[0, u] among them" in trouble.text
    chains = passed(chains=(Verdict.FAILED, 2.0, "apart"))
    assert subjects(analysis._replace(checks=chains)) == ["Chains disagree"]


@pytest.mark.parametrize(
    ("thinning", "words"),
    [
        ([None, 1], ""),
        ([4], ", every 4th transition where chains mix slowly"),
        ([2, 1, 4, 2], ", every 2nd or 4th transition where chains mix slowly"),
    ],
)
def test_chains_that_went_on_are_told(
    sound: Analysis, thinning: list[int | None], words: str
) -> None:
    trees = [sound.posterior.copy() for _ in thinning]
    for tree, value in zip(trees, thinning, strict=True):
        tree.attrs |= {"n_warmup": 200} | ({} if value is None else {"thinning": value})
    sizes = trees[0]["posterior"].sizes
    length = f"{sizes['chain']} chains, 200 warm-up iterations and {sizes['draw']} draws each"
    assert sampler_text(trees) == f"NUTS, {length}{words}"
