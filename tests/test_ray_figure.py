"""The figure of a ray, and the density of τ on it, against SciPy and NUTS."""

from __future__ import annotations

import arviz_base
import numpy as np
import pytest
import scipy.stats
from conftest import CASE
from xarray import DataTree

import bayesmoe as bm
from bayesmoe.core.measure import FIELDS
from bayesmoe.diagnostics.posterior import DIMS
from bayesmoe.report.ray_figure import Series, ray_figure, temperature_density

GRID = np.linspace(0.01, 8.0, 2000)


def tree(label: str, seed: int = 0, spread: float = 0.1) -> DataTree:
    """Draws around the truth of the scenario "lambda", on standardised data; not a posterior."""
    rng = np.random.default_rng(seed)
    truth = bm.scenario("lambda", CASE[label].gate(2)).measure
    x = rng.normal(size=(50, 1))
    x, y = (x - x.mean()) / x.std(), rng.normal(size=50)
    draws = {}
    for field in FIELDS:
        value = np.asarray(getattr(truth, field))
        factor = np.exp(spread * rng.normal(size=(2, 60, *value.shape)))
        draws[field] = value * factor
    return arviz_base.from_dict(
        {
            "posterior": draws,
            "observed_data": {"y": (y - y.mean()) / y.std()},
            "constant_data": {"x": x},
        },
        dims=DIMS,
    )


def test_the_density_on_the_ray_is_that_of_the_prior() -> None:
    """Averaged over draws: p(τ) p(τη1) p(τη0) τ², by the prior written out in NumPy."""
    posterior, model = tree("dense_to_sparse"), bm.moe("dense_to_sparse", 2)
    found = temperature_density(model, posterior, GRID)
    group = posterior["posterior"].to_dataset().stack(draw_=("chain", "draw"))
    expected = np.zeros_like(GRID)
    for i in range(group.sizes["draw_"]):
        one = group.isel(draw_=i)
        eta1 = float(one["gate_slope"][0, 0] / one["temperature"])
        eta0 = float(one["gate_intercept"][0] / one["temperature"])
        density = (
            scipy.stats.lognorm(0.5).pdf(GRID)
            * scipy.stats.norm(0, 3).pdf(GRID * eta1)
            * scipy.stats.norm(0, 3).pdf(GRID * eta0)
            * GRID**2
        )
        expected += density / np.trapezoid(density, GRID)
    np.testing.assert_allclose(found, expected / group.sizes["draw_"], rtol=1e-9, atol=1e-12)
    assert np.trapezoid(found, GRID) == pytest.approx(1)


def test_it_does_not_depend_on_where_on_the_ray_a_draw_is() -> None:
    posterior, model = tree("dense_to_sparse"), bm.moe("dense_to_sparse", 2)
    moved = posterior.copy()
    group = posterior["posterior"].to_dataset()
    scaled = {name: 3.0 * group[name] for name in ("gate_slope", "gate_intercept", "temperature")}
    moved["posterior"] = DataTree(group.assign(scaled))
    found = [temperature_density(model, one, GRID) for one in (posterior, moved)]
    np.testing.assert_allclose(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_nuts_agrees_with_it() -> None:
    """A Kolmogorov-Smirnov test on thinned draws that errs once in a thousand."""
    x, y = bm.scenario("lambda", gate="dense_to_sparse").simulate(1, 400)
    model = bm.moe("dense_to_sparse", 2)
    posterior = bm.sample_posterior(model, x, y, key=2)
    cumulative = np.cumsum(temperature_density(model, posterior, GRID)) * (GRID[1] - GRID[0])
    draws = posterior["posterior"]["temperature"].values[:, ::10].ravel()
    result = scipy.stats.kstest(draws, lambda t: np.interp(t, GRID, cumulative))
    assert result.pvalue > 1e-3


def test_a_gate_with_a_ray_stands_beside_one_without() -> None:
    series = [
        Series(
            bm.moe(CASE[label].gate(2), 2),
            bm.scenario("lambda", CASE[label].gate(2)),
            {300: tree(label, 0, 0.2), 3000: tree(label, 1, 0.02)},
        )
        for label in ("dense_to_sparse", "sigmoid")
    ]
    figure = ray_figure(series)
    assert len(figure.axes) == 4
    titles = [axes.get_title("left") for axes in figure.axes[::2]]
    assert titles == ["dense-to-sparse: a ray", "activation (sigmoid): no ray"]
    for axes, one in zip(figure.axes[::2], series, strict=True):
        assert axes.get_ylim()[0] == 0
        low, high = axes.get_ylim()
        assert low < float(one.truth.measure.temperature) < high
        (draws, _) = axes.collections
        expected = one.posteriors[300]["posterior"]["temperature"].values.ravel()
        np.testing.assert_allclose(np.asarray(draws.get_offsets())[:, 1], expected)
    dashed = [[line for line in axes.lines if line.get_linestyle() == "--"] for axes in figure.axes]
    assert [len(lines) for lines in dashed] == [0, 1, 0, 0]
    alone = ray_figure(series[1:])
    assert len(alone.axes) == 2
    labels = [text.get_text() for text in alone.legends[0].get_texts()]
    assert "prior alone along the ray" not in labels


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="series is empty"):
        ray_figure([])
    truth = bm.scenario("lambda")
    with pytest.raises(ValueError, match="the softmax gate has no temperature"):
        ray_figure([Series(bm.moe("softmax", 2), truth, {300: tree("softmax")})])
    model = bm.moe("dense_to_sparse", 2)
    with pytest.raises(ValueError, match="has no posterior"):
        ray_figure([Series(model, bm.scenario("lambda", gate="dense_to_sparse"), {})])
    with pytest.raises(ValueError, match="has no ray"):
        temperature_density(bm.moe("activation_dense_to_sparse", 2), tree("sigmoid"), GRID)
