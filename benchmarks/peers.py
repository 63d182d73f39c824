"""Other software for the same mixture, and one plain density that all of it is judged by.

Peers get standardised data, on which their penalties, ridges and stopping rules are at home; what
they find is brought back to the scale of the data, where all densities are.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import logsumexp

import bayesmoe as bm

_SCRIPT = Path(__file__).with_name("flexmix_folds.R")
#: as published it keeps the gate that it draws at random, see `_mended_cholesky`
CGMM, MENDED = "cgmm", "cgmm, gate mended"


class Mixture(NamedTuple):
    """Gaussian experts under a softmax gate.

    Attributes
    ----------
    gate_intercept, gate_slope
        Of the logits, shapes ``(k,)`` and ``(k, d)``.
    intercept, slope
        Of the experts' means, shapes ``(k,)`` and ``(k, d)``.
    variance
        Shape ``(k,)``.
    """

    gate_intercept: np.ndarray
    gate_slope: np.ndarray
    intercept: np.ndarray
    slope: np.ndarray
    variance: np.ndarray

    def log_density(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """log p(y_j|x_j), shape ``(n,)``: the formula, and nothing else."""
        logits = x @ self.gate_slope.T + self.gate_intercept
        log_weights = logits - logsumexp(logits, axis=1, keepdims=True)
        residual = y[:, None] - x @ self.slope.T - self.intercept
        log_normal = -0.5 * (np.log(2 * np.pi * self.variance) + residual**2 / self.variance)
        return logsumexp(log_weights + log_normal, axis=1)

    def log_likelihood(self, x: np.ndarray, y: np.ndarray) -> float:
        return float(np.sum(self.log_density(x, y)))

    def measure(self) -> bm.MixingMeasure:
        """The last expert becomes the reference."""
        return bm.MixingMeasure(
            self.gate_slope - self.gate_slope[-1], self.gate_intercept - self.gate_intercept[-1],
            1.0, self.slope, self.intercept, self.variance,
        )  # fmt: skip


def of_measure(measure: bm.MixingMeasure) -> Mixture:
    """A measure of the softmax gate."""
    return Mixture(
        *(
            np.asarray(getattr(measure, name))
            for name in ("gate_intercept", "gate_slope", "intercept", "slope", "variance")
        )
    )


class Units(NamedTuple):
    """What standardised data are measured in."""

    x_shift: np.ndarray
    x_scale: np.ndarray
    y_shift: float
    y_scale: float

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> Units:
        return cls(x.mean(axis=0), x.std(axis=0), float(y.mean()), float(y.std()))

    def standardise(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (x - self.x_shift) / self.x_scale, (y - self.y_shift) / self.y_scale

    def restore(self, found: Mixture) -> Mixture:
        """The mixture of the data as given, from that of standardised data."""
        gate_slope, slope = found.gate_slope / self.x_scale, found.slope / self.x_scale
        return Mixture(
            found.gate_intercept - gate_slope @ self.x_shift,
            gate_slope,
            self.y_shift + self.y_scale * (found.intercept - slope @ self.x_shift),
            self.y_scale * slope,
            self.y_scale**2 * found.variance,
        )


class Run(NamedTuple):
    """One fit of a peer.

    Attributes
    ----------
    seed
        Of its start.
    mixture
        What it found, on the scale of the data; None if it failed or lost an expert.
    reported
        The training data's log-likelihood as the peer itself computes it.
    seconds
        Of CPU time; NaN if it failed.
    """

    seed: int
    mixture: Mixture | None
    reported: float
    seconds: float


def missing_flexmix() -> str:
    """Why flexmix cannot be run; empty if it can."""
    advice = "install R and flexmix, on Debian: apt-get install r-base-core r-cran-flexmix"
    if shutil.which("Rscript") is None:
        return f"there is no Rscript; {advice}"
    check = subprocess.run(["Rscript", "-e", "library(flexmix)"], capture_output=True, text=True)
    if check.returncode:
        return f"R cannot load flexmix ({check.stderr.strip().splitlines()[-1]}); {advice}"
    return ""


def missing(*modules: str) -> str:
    """Why some Python packages cannot be imported; empty if they can."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f'{", ".join(absent)} cannot be imported; pip install -e ".[bench]"' if absent else ""


def flexmix(
    x: np.ndarray,
    y: np.ndarray,
    k: int,
    *,
    n_starts: int,
    tolerance: float = 1e-6,
    max_iterations: int = 200,
    gate: str = "softmax",
    folds: np.ndarray | None = None,
) -> Iterator[tuple[int, list[Run]]]:
    """flexmix from random partitions, seeds 1, 2, ...; its defaults but for `minprior`.

    The units are those of all data, held-out rows included: its model is indifferent to units.

    Parameters
    ----------
    x, y, k
        Covariates ``(n, d)``, response ``(n,)`` and the number of experts.
    n_starts, tolerance, max_iterations
        Of its EM.
    gate
        "softmax", or "constant" for constant weights.
    folds
        The fold of each row, from 1: each is left out in turn. None for all data at once.

    Yields
    ------
    The fold left out (0 for none) and a run for each start.
    """
    left_out = [0] if folds is None else sorted(set(folds.tolist()))
    labels = np.ones(len(y)) if folds is None else folds
    units = Units.of(x, y)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.csv"
        standard = units.standardise(x, y)
        header = ",".join(["fold", "y", *(f"x{i}" for i in range(x.shape[1]))])
        table = np.column_stack([labels, standard[1], standard[0]])
        np.savetxt(path, table, delimiter=",", header=header, comments="", fmt="%.17g")
        command = [
            "Rscript", str(_SCRIPT), str(path), str(k), str(n_starts), str(tolerance),
            str(max_iterations), gate, ",".join(map(str, left_out)),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"flexmix failed: {done.stderr.strip()}")
    lines = [line.split() for line in done.stdout.splitlines()]
    for fold in left_out:
        n = int(np.sum(labels != fold))
        yield fold, [_flexmix_run(line, k, units, n) for line in lines if int(line[0]) == fold]


def _flexmix_run(line: Sequence[str], k: int, units: Units, n: int) -> Run:
    seed = int(line[1])
    if len(line) == 2:
        return Run(seed, None, np.nan, np.nan)
    values = np.array(line[6:], float).reshape(k, -1)
    gate, experts = np.split(values[:, :-1], 2, axis=1)
    found = Mixture(gate[:, 0], gate[:, 1:], experts[:, 0], experts[:, 1:], values[:, -1] ** 2)
    return Run(
        seed, units.restore(found), float(line[3]) - n * np.log(units.y_scale), float(line[2])
    )


def cgmm(
    x: np.ndarray,
    y: np.ndarray,
    k: int,
    *,
    n_starts: int,
    mended: bool,
    first: int = 0,
    **options: Any,
) -> list[Run]:
    """cgmm's `MixtureOfExpertsRegressor`, seeds ``first`` onwards, one start for each."""
    import cgmm.moe

    published = cgmm.moe.cholesky
    if mended:
        cgmm.moe.cholesky = functools.partial(_mended_cholesky, published)
    try:
        return [_cgmm_run(x, y, k, seed, options) for seed in range(first, first + n_starts)]
    finally:
        cgmm.moe.cholesky = published


def _mended_cholesky(published: Any, matrix: np.ndarray, **options: Any) -> np.ndarray:
    """SciPy's `cholesky` without an option that it does not know.

    cgmm 0.5.1 passes ``check_isfinite`` in the Newton step of its gate. What it does instead of
    this step after the TypeError has the wrong sign, never improves the gate, and leaves it where
    it was drawn at random.
    """
    options.pop("check_isfinite", None)
    return published(matrix, **options)


def _cgmm_run(x: np.ndarray, y: np.ndarray, k: int, seed: int, options: dict[str, Any]) -> Run:
    from cgmm.moe import MixtureOfExpertsRegressor

    units = Units.of(x, y)
    standard = units.standardise(x, y)
    try:
        fit = MixtureOfExpertsRegressor(n_components=k, random_state=seed, **options).fit
        found, elapsed = cpu_timed(functools.partial(fit, *standard))
    except (ValueError, np.linalg.LinAlgError):  # a variance that is not positive
        return Run(seed, None, np.nan, np.nan)
    made = found._params
    zero = np.zeros(1)
    mixture = Mixture(
        np.concatenate([made.c, zero]),
        np.vstack([made.W, np.zeros((1, x.shape[1]))]),
        made.b[:, 0], made.A[:, 0], made.cov[:, 0, 0],
    )  # fmt: skip
    reported = float(np.sum(found.log_prob(*standard))) - len(y) * np.log(units.y_scale)
    return Run(seed, units.restore(mixture), reported, elapsed)


def cpu_timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """A call's result, computed to the end, and its CPU seconds, those of all threads.

    Peers in other processes cannot be measured by turns with ours: CPU time does not depend on
    what else the machine is doing.
    """
    start = time.process_time()
    result = jax.block_until_ready(call())
    return result, time.process_time() - start


def worst_mismatch(runs: Sequence[Run], x: np.ndarray, y: np.ndarray) -> float:
    """The largest difference of `Mixture.log_likelihood` from what the peer reports."""
    found = [(run.mixture, run.reported) for run in runs if run.mixture is not None]
    gaps = [abs(mixture.log_likelihood(x, y) - reported) for mixture, reported in found]
    return max(gaps, default=0.0)
