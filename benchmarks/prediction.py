"""Held-out prediction: log scores of ten-fold cross-validation, and the coverage of intervals.

All methods get the same folds, and mixtures the same number of experts, two and then three, under
a softmax gate. Ours are `MoERegressor(method="posterior")` and `method="map"`; flexmix is the best
of five starts by training likelihood, at its default stopping rule; cgmm has its defaults, one
start, as published and with its gate mended (`benchmarks.peers`); the linear model has the
predictive t distribution. The log density of the held-out rows is that of one plain formula for
every mixture. "Equal" means that the mean difference of the log scores of the rows is not below
zero by more than two of its standard errors; rows of one fold share their training data, which
these errors leave aside. A score of -inf or NaN is counted and told.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.stats
from scipy.special import logsumexp

import bayesmoe as bm
from bayesmoe.theory.voronoi import as_measure
from benchmarks.data import CLOSE, FLEXMIX, read
from benchmarks.data import SETS as SHIPPED
from benchmarks.peers import (
    CGMM,
    MENDED,
    cgmm,
    cpu_timed,
    flexmix,
    missing,
    missing_flexmix,
    of_measure,
    worst_mismatch,
)
from benchmarks.timing import Entry, Figure, Skipped

EXPERTS, N_FOLDS, N_FLEXMIX_STARTS = (2, 3), 10, 5
POSTERIOR, MAP, LINEAR = "posterior", "map", "linear model"
#: chains are shorter than a user's, whose default is 4 of 500 + 1000 iterations
CHAINS = {"n_chains": 2, "n_warmup": 500, "n_draws": 500}
N_ERRORS = 2.0

SCENARIOS = ("lambda", "three", "plane")
LEVEL, N_TRAIN, N_TEST, N_REPLICATES = 0.9, 500, 2000, 10
N_DEVIATIONS = 2.58

_CANCER = ("mean radius", "mean smoothness", "mean compactness", "mean concavity")


class _Scores(NamedTuple):
    """The held-out log scores of one method, ``(n,)``.

    Attributes
    ----------
    log_scores
        log p(y_j|x_j, all folds but that of row j); NaN where there was no fit.
    mismatch
        The largest difference between the plain density and the method's own, of any fold.
    seconds
        CPU seconds of all fits.
    note
        What else is to be told.
    """

    log_scores: np.ndarray
    mismatch: float
    seconds: float
    note: str = ""


def entries() -> Iterator[Entry]:
    """A line for each data set, number of experts and method of ours; then the coverage."""
    absent = {
        FLEXMIX: missing_flexmix(),
        CGMM: missing("cgmm", "sklearn"),
        "sunspots": missing("statsmodels"),
    }
    yield from (Skipped(what, why) for what, why in absent.items() if why)
    peers = [FLEXMIX] * (not absent[FLEXMIX]) + [CGMM, MENDED] * (not absent[CGMM])
    results: dict[tuple[str, int], dict[str, _Scores]] = {}
    for name in (*SHIPPED, *LARGER):
        if absent.get(name):
            continue
        x, y = read(name) if name in SHIPPED else LARGER[name]()
        folds = np.random.default_rng(0).permutation(np.arange(len(y)) % N_FOLDS) + 1
        for k in EXPERTS:
            results[name, k] = _cross_validate(x, y, k, folds, peers)
            what = f"{name} ({len(y)} rows, d = {x.shape[1]}), k = {k}"
            for ours in (POSTERIOR, MAP):
                yield _comparison(what, ours, results[name, k])
    yield from _summary(results)
    yield from _coverage()


# --- data


def _diabetes() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_diabetes

    return load_diabetes(return_X_y=True)


def _cancer() -> tuple[np.ndarray, np.ndarray]:
    """The fractal dimension of a tumour's outline, by its size and shape."""
    from sklearn.datasets import load_breast_cancer

    frame = load_breast_cancer(as_frame=True).data
    return frame[list(_CANCER)].to_numpy(), frame["mean fractal dimension"].to_numpy()


def _sunspots() -> tuple[np.ndarray, np.ndarray]:
    """The number of sunspots of a year by those of the two years before."""
    from statsmodels.datasets import sunspots

    y = sunspots.load_pandas().data["SUNACTIVITY"].to_numpy()
    return np.column_stack([y[1:-1], y[:-2]]), y[2:]


LARGER = {"diabetes": _diabetes, "breast cancer": _cancer, "sunspots": _sunspots}


# --- methods


def _cross_validate(
    x: np.ndarray, y: np.ndarray, k: int, folds: np.ndarray, peers: list[str]
) -> dict[str, _Scores]:
    scores = {ours: _of_ours(x, y, k, folds, ours) for ours in (POSTERIOR, MAP)}
    scores[LINEAR] = _of_linear(x, y, folds)
    if FLEXMIX in peers:
        scores[FLEXMIX] = _of_flexmix(x, y, k, folds)
    for peer in peers:
        if peer != FLEXMIX:
            scores[peer] = _of_cgmm(x, y, k, folds, peer == MENDED)
    return scores


def _of_ours(x: np.ndarray, y: np.ndarray, k: int, folds: np.ndarray, method: str) -> _Scores:
    scores, mismatch, total, poor = np.full(len(y), np.nan), 0.0, 0.0, []
    for fold in range(1, N_FOLDS + 1):
        out = folds == fold
        model, elapsed = cpu_timed(
            lambda out=out, fold=fold: _fit(x[~out], y[~out], k, method, fold)
        )
        own = model.predict_log_density(x[out], y[out])
        scores[out] = _plain(model, x[out], y[out])
        mismatch = max(mismatch, float(np.max(np.abs(own - scores[out]))))
        total += elapsed
        poor += [model.status_] * (not model.converged_)
    note = f"not converged in {len(poor)} folds ({', '.join(sorted(set(poor)))})" if poor else ""
    return _Scores(scores, mismatch, total, note)


def _fit(x: np.ndarray, y: np.ndarray, k: int, method: str, seed: int) -> Any:
    from bayesmoe.regression import MoERegressor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the statuses are told
        return MoERegressor(n_experts=k, method=method, random_state=seed, **CHAINS).fit(x, y)


def _plain(model: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The log of the average over draws, or of the one measure's density, by the formula."""
    if not hasattr(model, "posterior_"):
        return of_measure(model.measure_).log_density(x, y)
    draws = as_measure(model.posterior_)
    flat = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), draws)
    count = len(flat.intercept)
    each = [of_measure(jax.tree.map(lambda leaf, s=s: leaf[s], flat)) for s in range(count)]
    densities = np.stack([mixture.log_density(x, y) for mixture in each])
    return logsumexp(densities, axis=0) - np.log(count)


def _of_flexmix(x: np.ndarray, y: np.ndarray, k: int, folds: np.ndarray) -> _Scores:
    scores, mismatch, total, failed = np.full(len(y), np.nan), 0.0, 0.0, 0
    for fold, runs in flexmix(x, y, k, n_starts=N_FLEXMIX_STARTS, folds=folds):
        out = folds == fold
        found = [run.mixture for run in runs if run.mixture is not None]
        failed += len(runs) - len(found)
        total += float(np.nansum([run.seconds for run in runs]))
        if not found:
            continue
        mismatch = max(mismatch, worst_mismatch(runs, x[~out], y[~out]))
        best = max(found, key=lambda mixture, out=out: mixture.log_likelihood(x[~out], y[~out]))
        scores[out] = best.log_density(x[out], y[out])
    note = f"{failed} of {N_FOLDS * N_FLEXMIX_STARTS} starts failed" if failed else ""
    return _Scores(scores, mismatch, total, note)


def _of_cgmm(x: np.ndarray, y: np.ndarray, k: int, folds: np.ndarray, mended: bool) -> _Scores:
    scores, mismatch, total, failed = np.full(len(y), np.nan), 0.0, 0.0, 0
    for fold in range(1, N_FOLDS + 1):
        out = folds == fold
        runs = cgmm(x[~out], y[~out], k, n_starts=1, mended=mended, first=fold)
        total += float(np.nansum([run.seconds for run in runs]))
        if runs[0].mixture is None:
            failed += 1
            continue
        mismatch = max(mismatch, worst_mismatch(runs, x[~out], y[~out]))
        scores[out] = runs[0].mixture.log_density(x[out], y[out])
    return _Scores(scores, mismatch, total, f"{failed} folds failed" if failed else "")


def _of_linear(x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> _Scores:
    """The predictive t distribution of least squares under the flat prior."""
    scores = np.full(len(y), np.nan)
    design = np.column_stack([np.ones(len(y)), x])

    def fill() -> None:
        for fold in range(1, N_FOLDS + 1):
            out = folds == fold
            line, *_ = np.linalg.lstsq(design[~out], y[~out], rcond=None)
            freedom = int(np.sum(~out)) - design.shape[1]
            variance = np.sum((y[~out] - design[~out] @ line) ** 2) / freedom
            whitened = np.linalg.solve(np.linalg.qr(design[~out], "r").T, design[out].T)
            scale = np.sqrt(variance * (1 + np.sum(whitened**2, axis=0)))
            scores[out] = scipy.stats.t.logpdf(y[out], freedom, design[out] @ line, scale)

    _, elapsed = cpu_timed(fill)
    return _Scores(scores, 0.0, elapsed)


# --- comparison


def _comparison(what: str, ours: str, scores: dict[str, _Scores]) -> Figure:
    mine = scores[ours]
    parts, met = [], bool(np.all(np.isfinite(mine.log_scores)))
    for other in scores:
        if other in (POSTERIOR, MAP):
            continue
        text, equal = _difference(mine.log_scores, scores[other].log_scores)
        parts.append(f"less {other} {text}{_aside(scores[other])}")
        met = met and equal
    value = f"{np.mean(mine.log_scores):.4f}{_aside(mine)}; " + "; ".join(parts)
    return Figure(f"{what}: {ours}", value, f"no difference below -{N_ERRORS:g} errors", met)


def _difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[str, bool]:
    """The mean difference with its standard error, and whether ours are at least equal."""
    both = np.isfinite(ours) & np.isfinite(theirs)
    gaps = ours[both] - theirs[both]
    mean, error = float(np.mean(gaps)), float(np.std(gaps, ddof=1) / np.sqrt(len(gaps)))
    text, lost = f"{mean:+.4f} ± {error:.4f}", int(np.sum(~np.isfinite(theirs)))
    if lost:
        text += f" (on the other rows; theirs is -inf or NaN in {lost})"
    return text, mean >= -N_ERRORS * error


def _aside(scores: _Scores) -> str:
    bad = int(np.sum(~np.isfinite(scores.log_scores)))
    facts = [f"{bad} rows -inf or NaN"] if bad else []
    facts += [scores.note] if scores.note else []
    return f" ({', '.join(facts)})" if facts else ""


def _summary(results: dict[tuple[str, int], dict[str, _Scores]]) -> Iterator[Figure]:
    names = list(dict.fromkeys(name for scores in results.values() for name in scores))
    for ours in (POSTERIOR, MAP):
        for other in names:
            if other not in (ours, POSTERIOR):
                yield _of_all(results, ours, other)
    for name in names:
        yield Figure(
            f"CPU seconds of all fits, compilation included: {name}",
            f"{sum(s[name].seconds for s in results.values()):.1f}",
        )
        if name != LINEAR:
            gap = max(scores[name].mismatch for scores in results.values())
            yield Figure(
                f"plain density beside that of {name}, largest difference",
                f"{gap:.2g}", f"at most {CLOSE:g}", gap <= CLOSE,
            )  # fmt: skip


def _of_all(results: dict[tuple[str, int], dict[str, _Scores]], ours: str, other: str) -> Figure:
    """In how many cells ours is better or worse by more than two errors."""
    better = worse = 0
    means = []
    for scores in results.values():
        mine, theirs = scores[ours].log_scores, scores[other].log_scores
        better += not _difference(theirs, mine)[1]
        worse += not _difference(mine, theirs)[1]
        means.append(np.mean((mine - theirs)[np.isfinite(mine) & np.isfinite(theirs)]))
    wanted = "" if other in (POSTERIOR, MAP) else "never worse"
    return Figure(
        f"{ours} beside {other}, {len(results)} cells",
        f"better by more than {N_ERRORS:g} errors in {better}, worse in {worse}; differences "
        f"{min(means):+.3f} to {max(means):+.3f}, median {np.median(means):+.3f}",
        wanted, worse == 0 if wanted else None,
    )  # fmt: skip


# --- coverage


def _coverage() -> Iterator[Figure]:
    """Of intervals at new x, the true number of experts being known.

    Rows of one replicate share an estimate: the error is that of the mean of replicates, which
    has the binomial error of the test rows as well as that of estimation.
    """
    for name in SCENARIOS:
        truth = bm.scenario(name)
        for method in (POSTERIOR, MAP):
            found = np.array([_covered(truth, method, seed) for seed in range(N_REPLICATES)])
            mean, error = float(found.mean()), float(found.std(ddof=1) / np.sqrt(N_REPLICATES))
            binomial = np.sqrt(LEVEL * (1 - LEVEL) / (N_REPLICATES * N_TEST))
            error = max(error, float(binomial))
            yield Figure(
                f"coverage of the {LEVEL:.0%} interval: {name}, n = {N_TRAIN}, {method}",
                f"{mean:.4f} ± {error:.4f} ({N_REPLICATES} replicates of {N_TEST} new rows, "
                f"{found.min():.3f} to {found.max():.3f}; binomial error {binomial:.4f})",
                f"{LEVEL:g} ± {N_DEVIATIONS:g} errors",
                abs(mean - LEVEL) <= N_DEVIATIONS * error,
            )


def _covered(truth: bm.Scenario, method: str, seed: int) -> float:
    x, y = (np.asarray(part) for part in truth.simulate(seed, N_TRAIN + N_TEST))
    model = _fit(x[:N_TRAIN], y[:N_TRAIN], truth.measure.n_experts, method, seed)
    low, high = model.predict_interval(x[N_TRAIN:], LEVEL).T
    return float(np.mean((low <= y[N_TRAIN:]) & (y[N_TRAIN:] <= high)))
