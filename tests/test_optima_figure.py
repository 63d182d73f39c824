"""The figure of optima: every start at its height, optima told apart and counted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fabricated_fit import make_analysis, make_request, point
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from test_fit_report import Seen
from test_report import assert_texts_are_apart

from bayesmoe.diagnostics.stored_fit import StoredFit
from bayesmoe.inference.outcome import Status
from bayesmoe.inference.point import Fit
from bayesmoe.report._findings import find_optima
from bayesmoe.report.fit_html import render_fit
from bayesmoe.report.optima_figure import optima_figure
from bayesmoe.report.style import ESTIMATOR_COLOURS, STATUS_LABELS

pytestmark = pytest.mark.filterwarnings("error")

C, LOST = Status.CONVERGED, float("nan")
HEIGHTS = [-5.0, -5.3, -5.0009, -45.0, -5.3005, -5.5, LOST, -45.0, -5.9]
STATUSES = [C, C, C, Status.AT_VARIANCE_FLOOR, C, Status.MAX_ITERATIONS, Status.NON_FINITE, C, C]
LABELS = ["2 starts at the best", "2 starts, 0.3 below", "1 start, 0.9 below", "2 starts, 40 below"]


@pytest.fixture(scope="module")
def mle() -> Fit:
    return point(HEIGHTS, STATUSES, map_=False)


@pytest.fixture(scope="module")
def figure(mle: Fit) -> Figure:
    map_ = dataclasses.replace(point([-7.0] * 3, [C] * 3, map_=True), log_likelihood=-2.0)
    return optima_figure(mle, map_)


def drawn(ax: Axes) -> list[tuple[int, float, str, str]]:
    """Rank, height, status and colour of every start."""
    return [
        (
            int(line.get_xdata()[0]),
            float(line.get_ydata()[0]),
            str(line.get_label()),
            str(line.get_color()),
        )
        for line in ax.get_lines()
        if str(line.get_label()) in Status.__members__
    ]


def labels(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_every_start_stands_at_its_height_below_the_best(figure: Figure) -> None:
    starts = drawn(figure.axes[0])
    assert [rank for rank, *_ in starts] == list(range(1, len(HEIGHTS) + 1))
    order = sorted(range(len(HEIGHTS)), key=lambda i: np.nan_to_num(-HEIGHTS[i], nan=np.inf))
    assert [status for _, _, status, _ in starts] == [STATUSES[i].name for i in order]
    gaps = [-5.0 - HEIGHTS[i] for i in order]
    for (_, height, _, _), gap in zip(starts[2:-1], gaps[2:-1], strict=True):
        assert height == pytest.approx(gap)
    best = [height for _, height, _, _ in starts[:2]]
    assert best[0] == best[1], "starts within 0.001 of the best stand together"
    bottom, top = figure.axes[0].get_ylim()
    lost = starts[-1][1]
    assert top < best[0] < 1e-3
    assert max(gaps[2:-1]) < lost < bottom
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0] == "within 0.001"
    assert names[-1] == "not finite"
    assert figure.axes[0].get_yscale() == "log"


def test_optima_are_counted_as_in_the_report(figure: Figure, mle: Fit) -> None:
    ax = figure.axes[0]
    assert labels(ax) == LABELS
    found = find_optima(mle)
    assert (
        ax.get_title(loc="left") == f"MLE: {found.reached} of {found.total} starts found the best"
    )
    near = [float(text.split(", ")[1].split()[0]) for text in LABELS[1:]]
    assert [gap for gap in near if gap <= 1] == pytest.approx(found.below)
    assert labels(figure.axes[1]) == ["3 starts at the best"]
    assert figure.axes[1].get_title(loc="left") == "MAP: 3 of 3 starts found the best"
    assert_texts_are_apart(figure)


def test_colours_tell_the_best_from_other_optima_and_from_none(figure: Figure) -> None:
    colours = [colour for *_, colour in drawn(figure.axes[0])]
    best, other, none = colours[0], colours[2], colours[4]
    assert best == colours[1] == ESTIMATOR_COLOURS["mle"]
    assert len({best, other, none}) == 3
    assert {colour for *_, colour in drawn(figure.axes[1])} == {ESTIMATOR_COLOURS["map"]}
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    occurring = {STATUS_LABELS[status.name.lower()] for status in STATUSES}
    assert set(names) == occurring | {"one unit below"}


def test_a_best_start_that_is_no_optimum_is_said_to_be_none() -> None:
    statuses = [Status.STALLED] + [C] * 15 + [Status.SEPARATED]
    figure = optima_figure(point([-5.0 - 1.4**i for i in range(17)], statuses, map_=True))
    (ax,) = figure.axes
    assert ax.get_title(loc="left") == "MAP: the highest is no optimum"
    assert labels(ax)[0] == "1 start, 0.4 below"
    assert labels(ax)[-1] == "and 5 lower optima"
    assert len(labels(ax)) == 12
    assert_texts_are_apart(figure)


def test_the_best_has_no_neighbours() -> None:
    """As in the report: what is within 0.001 of the best is the best, and nothing else."""
    fit = point([-5.0, -5.0009, -5.0018, -5.0025], [C] * 4, map_=False)
    (ax,) = optima_figure(fit).axes
    assert labels(ax) == ["2 starts at the best", "2 starts, 0.0018 below"]
    assert find_optima(fit).below == pytest.approx([0.0018])


def test_no_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one fit"):
        optima_figure()


def test_the_report_says_in_words_what_the_figure_shows() -> None:
    separated = point([-5.0, -5.0], [Status.SEPARATED] * 2, map_=False)  # has no standard errors
    analysis = make_analysis(separated, point(HEIGHTS, STATUSES, map_=True))
    page = render_fit(StoredFit(make_request(), analysis), {"optima": Figure()})
    assert "MLE: 2 of 2 starts found the best; MAP: 2 of 9 starts found the best." in page
    seen = Seen(page)
    assert seen.tags.count("img") == 1
    assert "each further height is another optimum" in seen.text
