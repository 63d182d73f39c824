"""What the data determined, on draws made up so that the answer is known."""

from __future__ import annotations

import arviz_base
import numpy as np
import pytest
from xarray import DataTree

import bayesmoe as bm
from bayesmoe.diagnostics.determination import LEFT_TO_THE_PRIOR, determination
from bayesmoe.diagnostics.posterior import DIMS
from bayesmoe.models import make_gate

Floats = np.ndarray
GATE = make_gate("dense_to_sparse")
SHAPE = (4, 1000)


def fields(rng: np.random.Generator, gate: tuple[Floats, ...], sd: float) -> dict[str, Floats]:
    """Experts apart, whose parameters have the standard deviation ``sd`` (of ν, of its log)."""
    beta1, beta0, tau = gate
    zero = np.zeros(SHAPE)
    return {
        "gate_slope": np.stack([beta1, zero], axis=-1)[..., None],
        "gate_intercept": np.stack([beta0, zero], axis=-1),
        "temperature": tau,
        "slope": np.array([[-30.0], [30.0]]) + sd * rng.normal(size=(*SHAPE, 2, 1)),
        "intercept": np.array([5.0, -5.0]) + sd * rng.normal(size=(*SHAPE, 2)),
        "variance": 0.3 * np.exp(sd * rng.normal(size=(*SHAPE, 2))),
    }


def on_a_ray(spread: float) -> DataTree:
    """A prior of unit spreads, and a posterior that has ``spread`` along (cβ1, cβ0, cτ)."""
    rng = np.random.default_rng(0)
    prior = rng.normal(size=SHAPE), rng.normal(size=SHAPE), np.exp(rng.normal(size=SHAPE))
    tau = np.exp(spread * rng.normal(size=SHAPE))
    beta1, beta0 = ((eta + 0.02 * rng.normal(size=SHAPE)) * tau for eta in (2.0, -1.0))
    return arviz_base.from_dict(
        {
            "posterior": fields(rng, (beta1, beta0, tau), 0.1),
            "prior": fields(rng, prior, 1.0),
            "sample_stats": {"lp": rng.normal(size=SHAPE)},
            "constant_data": {"x": np.linspace(-1, 1, 11)[:, None]},
        },
        dims=DIMS,
    )


def counted_from(tree: DataTree, origin: float) -> DataTree:
    """The same lines and logits of covariates that are larger by ``origin``."""
    moved = tree.copy()
    for group in ("posterior", "prior"):
        draws = tree[group].to_dataset()
        names = {"intercept": "slope", "gate_intercept": "gate_slope"}
        changed = {name: draws[name] - origin * draws[slope].isel(covariate=0)
                   for name, slope in names.items()}  # fmt: skip
        moved[group] = DataTree(draws.assign(changed))
    moved["constant_data"] = tree["constant_data"].to_dataset() + origin
    return moved


def off_the_ray(slope: float, intercept: float) -> DataTree:
    """A gate whose slope and intercept keep these shares of their priors' spreads."""
    rng = np.random.default_rng(1)
    shares = (slope, intercept), (1.0, 1.0)
    parts = [
        fields(rng, (*(share * rng.normal(size=SHAPE) for share in own), np.ones(SHAPE)), sd)
        for own, sd in zip(shares, (0.1, 1.0), strict=True)
    ]
    groups = dict(zip(("posterior", "prior"), parts, strict=True))
    groups["sample_stats"] = {"lp": rng.normal(size=SHAPE)}
    groups["constant_data"] = {"x": np.linspace(-1, 1, 11)[:, None]}
    return arviz_base.from_dict(groups, dims=DIMS)


def test_spreads_are_ratios_of_standard_deviations_and_of_those_of_logarithms() -> None:
    table = determination(GATE, on_a_ray(0.2)).spreads
    assert list(table.index[-3:]) == ["log temperature", "log variance[0]", "log variance[1]"]
    assert "gate_slope[1, 0]" not in table.index, "the reference is not free"
    expected = {"log temperature": 0.2, "log variance[0]": 0.1, "slope[1, 0]": 0.1}
    for name, ratio in expected.items():
        assert table.loc[name, "ratio"] == pytest.approx(ratio, rel=0.08), name
        assert table.loc[name, "prior"] == pytest.approx(1.0, rel=0.06), name


def test_a_ray_is_one_direction_of_all_that_moves_along_it() -> None:
    """Its width: the root of the sum of squares of three standard deviations."""
    (direction,) = determination(GATE, on_a_ray(0.3)).left_to_the_prior
    assert set(direction.parameters) == {"gate_slope[0, 0]", "gate_intercept[0]", "log temperature"}
    assert direction.parameters[0] == "gate_slope[0, 0]", "the one that moves most"
    assert direction.ratio == pytest.approx(0.3 * np.sqrt(4 + 1 + 1), rel=0.1)


def test_what_is_narrower_than_the_threshold_is_determined() -> None:
    narrow = determination(GATE, on_a_ray(0.15))
    assert narrow.left_to_the_prior == ()
    assert 0.15 * np.sqrt(6) < LEFT_TO_THE_PRIOR < 0.3 * np.sqrt(6)


@pytest.mark.parametrize("origin", [0.0, 2000.0])
def test_what_is_determined_does_not_depend_on_where_covariates_are_counted_from(
    origin: float,
) -> None:
    """At year zero slope and intercept are one direction, and the prior's is as wide in it."""
    softmax = make_gate("softmax")
    determined = counted_from(off_the_ray(0.4, 0.1), origin)
    assert determination(softmax, determined).left_to_the_prior == ()
    (direction,) = determination(
        softmax, counted_from(off_the_ray(0.1, 0.9), origin)
    ).left_to_the_prior
    assert direction.parameters == ("gate_intercept[0]",)
    assert direction.ratio == pytest.approx(0.9, rel=0.05)


def test_a_tree_without_a_prior_is_refused() -> None:
    tree = on_a_ray(0.3)
    del tree["prior"]
    with pytest.raises(ValueError, match=r"no group 'prior'; add it with bayesmoe.sample_pred"):
        bm.determination(GATE, tree)
