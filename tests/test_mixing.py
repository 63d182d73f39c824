"""The verdict on chains, on made-up draws whose quality is known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import bayesmoe as bm
from bayesmoe.diagnostics.mixing import MAX_DIVERGENT, MAX_RHAT, PosteriorStatus, mixing
from bayesmoe.inference.nuts import Draws

N_CHAINS, N_DRAWS, N_ROWS = 4, 500, 3

Floats = np.ndarray[Any, np.dtype[np.float64]]


def make_draws(**changes: Floats) -> Draws:
    """Independent standard normal draws of everything watched, but for the changes."""
    rng = np.random.default_rng(8)
    shape = (N_CHAINS, N_DRAWS)
    log_temperature = rng.normal(size=shape)
    fields: dict[str, Any] = {
        "log_likelihood": rng.normal(size=shape),
        "row_log_density": rng.normal(size=(*shape, N_ROWS)),
        "temperature": np.exp(log_temperature),
        "n_diverging": np.zeros(shape, int),
    } | changes
    shape = fields["log_likelihood"].shape
    zeros = np.zeros(shape)
    measures = bm.MixingMeasure(
        np.zeros((*shape, 1, 1)),
        np.zeros((*shape, 1)),
        fields.pop("temperature"),
        np.zeros((*shape, 1, 1)),
        np.zeros((*shape, 1)),
        np.ones((*shape, 1)),
    )
    fields = {name: jnp.asarray(value) for name, value in fields.items()}
    return Draws(
        measures=measures,
        rows=np.arange(N_ROWS),
        lp=jnp.asarray(zeros),
        energy=jnp.asarray(zeros),
        acceptance_rate=jnp.asarray(zeros),
        n_steps=jnp.asarray(zeros),
        most_steps=jnp.asarray(zeros),
        thinning=1,
        unthinned_energy=zeros,
        step_size=jnp.zeros(shape[0]),
        mode_weights=np.ones(1),
        start_modes=np.zeros(shape[0], int),
        near=np.zeros(shape, int),
        leaps=False,
        **fields,
    )


def split_rhat(draws: Floats) -> float:
    """The larger of bulk and folded R-hat (Vehtari et al., Bayesian Analysis 2021)."""
    half = draws.shape[1] // 2
    halves = np.concatenate([draws[:, :half], draws[:, -half:]])
    values = []
    for x in (halves, np.abs(halves - np.median(halves))):
        rank = scipy.stats.rankdata(x).reshape(x.shape)
        z = scipy.stats.norm.ppf((rank - 3 / 8) / (x.size + 1 / 4))
        within = z.var(axis=1, ddof=1).mean()
        between = half * z.mean(axis=1).var(ddof=1)
        values.append(np.sqrt((half - 1) / half + between / half / within))
    return max(values)


def test_independent_draws_converge_and_the_worst_quantity_is_reported() -> None:
    draws = make_draws()
    evidence = mixing(draws)
    watched = [draws.log_likelihood, *np.moveaxis(np.asarray(draws.row_log_density), -1, 0)]
    watched.append(np.log(np.asarray(draws.measures.temperature)))
    worst = max(split_rhat(np.asarray(quantity)) for quantity in watched)
    assert evidence.max_rhat == pytest.approx(worst, abs=1e-9)
    assert 0.85 * N_CHAINS * N_DRAWS < evidence.min_ess < 1.1 * N_CHAINS * N_DRAWS
    assert evidence.divergences == 0
    assert evidence.status is PosteriorStatus.CONVERGED
    assert evidence.status.converged


PLACES = np.array([0.0, 0.0, 0.0, 0.8])[:, None]  # the last chain sits elsewhere


@pytest.mark.parametrize("where", ["log_likelihood", "row_log_density", "temperature"])
def test_chains_in_different_places_are_not_mixed(where: str) -> None:
    healthy = make_draws()
    moved: dict[str, Floats] = {
        "log_likelihood": np.asarray(healthy.log_likelihood) + PLACES,
        "row_log_density": np.asarray(healthy.row_log_density).copy(),
        "temperature": np.asarray(healthy.measures.temperature) * np.exp(PLACES),
    }
    moved["row_log_density"][..., 1] += PLACES
    evidence = mixing(make_draws(**{where: moved[where]}))
    assert evidence.max_rhat > 1.05
    assert evidence.status is PosteriorStatus.NOT_MIXED
    assert not evidence.status.converged


def test_chains_of_different_width_are_not_mixed() -> None:
    width = np.array([0.2, 1.0, 1.0, 1.0])[:, None]
    healthy = np.asarray(make_draws().log_likelihood)
    assert mixing(make_draws(log_likelihood=width * healthy)).status is PosteriorStatus.NOT_MIXED


def test_the_temperature_is_no_evidence_where_the_gate_has_none() -> None:
    evidence = mixing(make_draws(temperature=np.ones((N_CHAINS, N_DRAWS))))
    assert evidence.status is PosteriorStatus.CONVERGED
    assert np.isfinite(evidence.max_rhat)


def test_chains_that_crawl_are_not_mixed() -> None:
    """AR(1) with coefficient r, in the same place: (1 - r)/(1 + r) of the draws count."""
    r, noise = 0.92, np.random.default_rng(0).normal(size=(N_CHAINS, N_DRAWS))
    crawling = np.zeros_like(noise)
    for i in range(1, N_DRAWS):
        crawling[:, i] = r * crawling[:, i - 1] + noise[:, i]
    evidence = mixing(make_draws(log_likelihood=crawling))
    assert evidence.min_ess == pytest.approx(N_CHAINS * N_DRAWS * (1 - r) / (1 + r), rel=0.25)
    assert evidence.max_rhat < MAX_RHAT
    assert evidence.status is PosteriorStatus.NOT_MIXED


@pytest.mark.parametrize("where", ["log_likelihood", "row_log_density", "temperature"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_no_pass(where: str, value: float) -> None:
    draws = make_draws()
    source = draws.measures if where == "temperature" else draws
    array = np.array(getattr(source, where))
    array[2, 30] = value
    evidence = mixing(make_draws(**{where: array}))
    assert evidence.status is PosteriorStatus.NOT_MIXED


def test_chains_that_do_not_move_and_single_chains_are_no_pass() -> None:
    stuck = mixing(make_draws(log_likelihood=np.full((N_CHAINS, N_DRAWS), -3.0)))
    assert np.isnan(stuck.max_rhat)
    assert stuck.status is PosteriorStatus.NOT_MIXED
    single = jax.tree.map(
        lambda leaf: leaf[:1], make_draws()._replace(rows=None, leaps=None, thinning=None)
    )
    evidence = mixing(single)
    assert np.isnan(evidence.max_rhat)
    assert evidence.status is PosteriorStatus.NOT_MIXED


@pytest.mark.parametrize(("surplus", "status"), [(0, "CONVERGED"), (1, "DIVERGENT")])
def test_divergences_are_counted_and_judged(surplus: int, status: str) -> None:
    allowed = round(MAX_DIVERGENT * N_CHAINS * N_DRAWS)
    diverging = np.arange(N_CHAINS * N_DRAWS).reshape(N_CHAINS, N_DRAWS) < allowed + surplus
    evidence = mixing(make_draws(n_diverging=diverging.astype(int)))
    assert evidence.divergences == allowed + surplus
    assert evidence.status.name == status


def test_chains_that_disagree_are_not_mixed_whatever_diverges() -> None:
    healthy = np.asarray(make_draws().log_likelihood)
    everything = np.ones((N_CHAINS, N_DRAWS), int)
    evidence = mixing(make_draws(log_likelihood=healthy + 3 * PLACES, n_diverging=everything))
    assert evidence.status is PosteriorStatus.NOT_MIXED
