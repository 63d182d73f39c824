"""Log-likelihood on real data: maximum likelihood beside flexmix and cgmm, the same model.

Every software gets its own starts: `fit_mle` its default number, peers twenty. All log-likelihoods
are those of one plain density (`peers.Mixture`) at the parameters found, which is checked against
what each software reports. flexmix divides its variances by the degrees of freedom, and EM stops
short of a maximum: what peers find is therefore judged as it is and again polished, as a start of
`fit_mle`. The likelihood has no bound as a variance goes to zero; solutions with a variance below
the floor of `fit_mle` are another model's, counted and not compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bayesmoe as bm
from bayesmoe.data.table import read_table
from bayesmoe.inference.problem import VARIANCE_FLOOR
from benchmarks.peers import (
    CGMM,
    MENDED,
    Mixture,
    Run,
    cgmm,
    cpu_timed,
    flexmix,
    missing,
    missing_flexmix,
    of_measure,
    worst_mismatch,
)
from benchmarks.timing import Entry, Figure, Row, Skipped, row

#: the data sets that ship with the package: response and covariates
SETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "co2": ("co2", ("gnp",)),
    "ethanol": ("nox", ()),
    "motorcycle": ("acceleration_g", ()),
    "tone": ("tuned", ()),
}
EXPERTS = (2, 3)
N_PEER_STARTS, N_MANY, N_ROUNDS = 20, 384, 3
FLEXMIX = "flexmix"
CLOSE = 1e-6  # log-likelihoods that agree
PUBLISHED = -66.9398  # Hurn, Justel & Robert (2003): two lines, constant weights, co2


class _Cell(NamedTuple):
    """A model, its data, and what everybody made of them."""

    what: str
    model: bm.MoE
    x: np.ndarray
    y: np.ndarray
    ours: bm.Fit
    runs: dict[str, list[Run]]


def read(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Covariates ``(n, d)`` and response ``(n,)`` of a shipped data set."""
    x, y = read_table(name, *SETS[name])
    return x.to_numpy(), y.to_numpy()


def entries() -> Iterator[Entry]:
    """Log-likelihoods, then times, of every data set and number of experts."""
    absent = {FLEXMIX: missing_flexmix(), CGMM: missing("cgmm")}
    absent[MENDED] = absent[CGMM]
    yield from (Skipped(peer, why) for peer, why in absent.items() if why)
    peers = [peer for peer, why in absent.items() if not why]
    cells = []
    for name in SETS:
        for k in EXPERTS:
            cells.append(_cell(name, k, peers))
            yield from _log_likelihoods(cells[-1])
    if FLEXMIX in peers:
        yield from _constant_weights()
    yield _density_of_ours(cells)
    for peer in peers:
        yield _density_of(peer, cells)
    yield from _times(cells)


def _cell(name: str, k: int, peers: list[str]) -> _Cell:
    x, y = read(name)
    model = bm.moe("softmax", k)
    runs = {peer: _runs(peer, x, y, k) for peer in peers}
    return _Cell(f"{name}, k = {k}", model, x, y, bm.fit_mle(model, x, y), runs)


def _runs(peer: str, x: np.ndarray, y: np.ndarray, k: int) -> list[Run]:
    if peer == FLEXMIX:
        ((_, runs),) = flexmix(x, y, k, n_starts=N_PEER_STARTS)
        return runs
    # no penalty on the gate: it would have another maximum
    options = {"n_starts": N_PEER_STARTS, "mended": peer == MENDED, "gating_penalty": 0.0}
    return cgmm(x, y, k, **options)


def _log_likelihoods(cell: _Cell) -> Iterator[Figure]:
    """Ours beside each peer's best that respects the floor, as it is and polished."""
    allowed = {peer: _allowed(cell, runs) for peer, runs in cell.runs.items()}
    polished = _polished(cell, allowed)
    for peer, runs in cell.runs.items():
        ours, found = cell.ours.log_likelihood, allowed[peer]
        if not found:
            yield Figure(f"{cell.what}: fit_mle less {peer}", "all of its fits failed", "", None)
            continue
        best = max(mixture.log_likelihood(cell.x, cell.y) for mixture in found)
        value = (
            f"{ours - best:.6f}, polished {ours - polished[peer]:.6f}; ours {ours:.6f} "
            f"({cell.ours.status.name.lower()}), theirs {best:.6f}, polished {polished[peer]:.6f}; "
            f"{_not_compared(cell, runs, len(found))}"
        )
        met = ours >= max(best, polished[peer]) - CLOSE
        yield Figure(f"{cell.what}: fit_mle less {peer}", value, f"both at least -{CLOSE:g}", met)
    if cell.ours.log_likelihood < max(polished.values(), default=-np.inf) - CLOSE:
        yield _more_starts(cell)


def _allowed(cell: _Cell, runs: list[Run]) -> list[Mixture]:
    """The solutions whose variances are not below the floor of `fit_mle`."""
    floor = VARIANCE_FLOOR * np.var(cell.y)
    found = [run.mixture for run in runs if run.mixture is not None]
    return [mixture for mixture in found if np.min(mixture.variance) >= floor]


def _not_compared(cell: _Cell, runs: list[Run], n_allowed: int) -> str:
    """How many fits failed, how many are below the floor, and by what they would lead."""
    found = [run.mixture for run in runs if run.mixture is not None]
    text = f"{len(runs) - len(found)} of {len(runs)} failed"
    if len(found) == n_allowed:
        return f"{text}, none below the floor"
    below = [m for m in found if np.min(m.variance) < VARIANCE_FLOOR * np.var(cell.y)]
    least = min(float(np.min(mixture.variance)) for mixture in below) / np.var(cell.y)
    best = max(mixture.log_likelihood(cell.x, cell.y) for mixture in below)
    return f"{text}, {len(below)} below the floor (variance {least:.1g} Var(y), up to {best:.3f})"


def _polished(cell: _Cell, allowed: dict[str, list[Mixture]]) -> dict[str, float]:
    """The best that `fit_mle` reaches from each peer's solutions, -inf without any."""
    found = [mixture for each in allowed.values() for mixture in each]
    if not found:
        return {}
    size = N_PEER_STARTS * len(allowed)  # one number for all cells: one shape to compile
    starts = [mixture.measure() for mixture in found]
    starts += starts[:1] * (size - len(starts))
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    fit = bm.fit_mle(cell.model, cell.x, cell.y, n_starts=0, starts=batch)
    reached, best, at = fit.starts.objective, {}, 0
    for peer, each in allowed.items():
        best[peer] = float(np.max(reached[at : at + len(each)], initial=-np.inf))
        at += len(each)
    return best


def _more_starts(cell: _Cell) -> Figure:
    """What more starts of ours find, where the default number missed what a peer found."""
    fit = bm.fit_mle(cell.model, cell.x, cell.y, n_starts=N_MANY)
    better = int(np.sum(fit.starts.objective > cell.ours.log_likelihood + CLOSE))
    return Figure(
        f"{cell.what}: fit_mle with {N_MANY} starts",
        f"{fit.log_likelihood:.6f} ({fit.status.name.lower()}); {better} of them are above what "
        "its default found",
    )


def _constant_weights() -> Iterator[Figure]:
    """Two lines with constant weights on co2, whose log-likelihood is published."""
    x, y = read("co2")
    fit = bm.fit_mle(bm.moe("softmax", 2, gate_covariates=()), x, y)
    ((_, runs),) = flexmix(x, y, 2, n_starts=N_PEER_STARTS, tolerance=1e-8, gate="constant")
    found = [run.mixture for run in runs if run.mixture is not None]
    best = max(mixture.log_likelihood(x, y) for mixture in found)
    yield Figure(
        "co2, k = 2, constant weights: fit_mle",
        f"{fit.log_likelihood:.4f}; published {PUBLISHED}; flexmix {best:.4f}",
        "as published, and at least that of flexmix",
        abs(fit.log_likelihood - PUBLISHED) <= 5e-5 and fit.log_likelihood >= best - CLOSE,
    )


def _density_of_ours(cells: list[_Cell]) -> Figure:
    fits = [(cell, of_measure(cell.ours.measure)) for cell in cells]
    gaps = [
        abs(mixture.log_likelihood(cell.x, cell.y) - cell.ours.log_likelihood)
        for cell, mixture in fits
    ]
    return _agreement("fit_mle", max(gaps))


def _density_of(peer: str, cells: list[_Cell]) -> Figure:
    return _agreement(peer, max(worst_mismatch(cell.runs[peer], cell.x, cell.y) for cell in cells))


def _agreement(who: str, gap: float) -> Figure:
    return Figure(
        f"plain density beside the log-likelihood that {who} reports, largest difference",
        f"{gap:.2g}", f"at most {CLOSE:g}", gap <= CLOSE,
    )  # fmt: skip


def _times(cells: list[_Cell]) -> Iterator[Row]:
    """One start beside one start, seed by seed; and all of ours beside all of theirs."""
    ours = {cell.what: _seconds_of_ours(cell) for cell in cells}
    for cell in cells:
        for peer, runs in cell.runs.items():
            theirs = np.array([run.seconds for run in runs])
            done = np.isfinite(theirs)
            if done.any():
                one = ours[cell.what][0][done]
                yield row(f"{cell.what}: CPU, one start", peer, one, theirs[done], least=1.0)
    many = np.sum([many for _, many in ours.values()], axis=0)
    for peer in cells[0].runs:
        total = np.nansum([run.seconds for cell in cells for run in cell.runs[peer]])
        what = f"CPU, all of these: our default starts, {N_PEER_STARTS} of theirs"
        yield row(what, peer, many, np.full(N_ROUNDS, total))


def _seconds_of_ours(cell: _Cell) -> tuple[np.ndarray, np.ndarray]:
    """CPU seconds of single starts, and of fits with the default number of starts."""
    fit = partial(bm.fit_mle, cell.model, cell.x, cell.y)
    fit(n_starts=1)  # compiles
    one = [cpu_timed(partial(fit, key=i, n_starts=1))[1] for i in range(N_PEER_STARTS)]
    return np.array(one), np.array([cpu_timed(partial(fit, key=i))[1] for i in range(N_ROUNDS)])
