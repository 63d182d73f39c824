"""The figure of every replicate's loss: its points, their places and the medians."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from test_report import Study, make_plan, make_study

from bayesmoe.report._replicates import replicates


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study(make_plan(gates=["softmax"], sizes=[300, 1000, 3000], replicates=7))


@pytest.fixture(scope="module")
def figure(study: Study) -> Figure:
    return replicates(study.one)


def points(ax: Axes, label: str) -> np.ndarray:
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return np.column_stack(line.get_data())


@pytest.mark.parametrize("estimator", ["mle", "map", "posterior"])
def test_every_replicate_is_a_point_and_hollow_if_it_did_not_converge(
    study: Study, figure: Figure, estimator: str
) -> None:
    seen_hollow = 0
    for ax, k in zip(figure.axes, [2, 3], strict=True):
        cell = study.one.sel(gate="softmax", n_experts=k, estimator=estimator)
        for label, mask in (("kept", cell["converged"]), ("left out", ~cell["converged"])):
            drawn = points(ax, f"{estimator} {label}")
            expected = cell["normalised_loss"].where(mask).to_numpy().ravel()
            expected = np.sort(expected[np.isfinite(expected)])
            np.testing.assert_array_equal(np.sort(drawn[:, 1]), expected)
            seen_hollow += len(drawn) * (label == "left out")
    assert seen_hollow > 0


def test_points_stand_at_their_sample_size_and_inside_the_axes(
    study: Study, figure: Figure
) -> None:
    sizes = study.one["n"].to_numpy()
    for ax in figure.axes:
        for name in ("mle", "map", "posterior"):
            x, y = points(ax, f"{name} kept").T
            near = sizes[np.argmin(np.abs(np.log(x[:, None] / sizes)), axis=1)]
            cell = study.one.sel(gate="softmax", n_experts=2 if ax is figure.axes[0] else 3)
            for n, value in zip(near, y, strict=True):
                assert value in cell["normalised_loss"].sel(estimator=name, n=n).to_numpy()
            assert ax.get_xlim()[0] < x.min() < x.max() < ax.get_xlim()[1]
            assert ax.get_ylim()[0] < y.min() < y.max() < ax.get_ylim()[1]


def test_medians_are_those_of_converged_fits(study: Study, figure: Figure) -> None:
    for ax, k in zip(figure.axes, [2, 3], strict=True):
        cell = study.one.sel(gate="softmax", n_experts=k)
        for lines, name in zip(ax.collections, ("mle", "map", "posterior"), strict=True):
            one = cell.sel(estimator=name)
            expected = one["normalised_loss"].where(one["converged"]).median("replicate")
            heights = [segment[0, 1] for segment in lines.get_segments()]
            np.testing.assert_allclose(heights, expected.to_numpy(), rtol=1e-12)
