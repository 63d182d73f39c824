"""Chains that stay in different modes: which, what the modes are, and what each is worth.

Pooling such chains averages modes with the weights of their starts. They are told apart by R-hat of
pairs of chains, on quantities without labels; named by their experts, which are compared by their
lines; and weighed twice: by stacking, which asks what predicts (Yao, Vehtari & Gelman,
"Stacking for non-mixing Bayesian computations", JMLR 2022), and by the mass near the modes where
the chains started, by Laplace's approximation unless chains leap between them.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import arviz_stats
import jax.numpy as jnp
import numpy as np
import scipy.sparse.csgraph
from arviz_stats.base import array_stats
from scipy.optimize import linear_sum_assignment
from xarray import DataTree

from bayesmoe.core.model import MoE
from bayesmoe.diagnostics.determination import densest_draw
from bayesmoe.diagnostics.mixing import watched
from bayesmoe.diagnostics.posterior import GROUPS, check_tree
from bayesmoe.diagnostics.recommendation import stack

#: R-hat of two chains above which they are in different modes: far above that of slow mixing
APART = 1.2

_ALIKE = 1.0  # lines within this many standard deviations everywhere belong to one expert


class ChainMode(NamedTuple):
    """A mode in which some chains stayed.

    Attributes
    ----------
    chains
        Which.
    description
        What the mode is, in words.
    log_density
        Mean over the draws of the log posterior density in the coordinates sampled, up to a
        constant that all modes share.
    stacking_weight
        Of the modes as predictive models, by leave-one-out; NaN if that cannot be computed.
    evidence_weight
        The share of the mass near the modes where these chains started, among those where any did,
        from the attribute ``mode_weights``; NaN where that is not known.
    """

    chains: tuple[int, ...]
    description: str
    log_density: float
    stacking_weight: float
    evidence_weight: float

    @property
    def text(self) -> str:
        """The mode in one phrase."""
        chains = ", ".join(map(str, self.chains))
        known = not np.isnan(self.evidence_weight)
        evidence = f"{self.evidence_weight:.2f}" if known else "unknown"
        return (
            f"{'chain' if len(self.chains) == 1 else 'chains'} {chains}: {self.description} "
            f"(mean log density {self.log_density:.1f}, stacking weight "
            f"{self.stacking_weight:.2f}, evidence weight {evidence})"
        )


def chain_modes(model: MoE, tree: DataTree) -> tuple[ChainMode, ...]:
    """The modes in which the chains of a posterior stayed, the densest first; one if they agree.

    Parameters
    ----------
    model
        The model that was sampled.
    tree
        From `sample_posterior`.

    Raises
    ------
    ValueError
        If ``tree`` does not come from `sample_posterior` with ``model``.
    """
    check_tree(model, tree)
    if "start_modes" not in tree.attrs:
        raise ValueError(
            "the tree does not tell at which modes its chains started; "
            "pass what bayesmoe.sample_posterior returned"
        )
    # of the groups that may be there, too, the prior has chains of its own
    sampled = tree.drop_nodes([name for name in tree.children if name not in GROUPS])
    parts = [sampled.isel(chain=list(chains)) for chains in together(watched(tree))]
    lp = [float(part["sample_stats"]["lp"].mean()) for part in parts]
    parts = [parts[i] for i in np.argsort(lp)[::-1]]
    experts = [_Experts.of(model, part) for part in parts]
    chains = [tuple(map(int, np.asarray(part["posterior"]["chain"]))) for part in parts]
    evidence = _evidence(tree, chains)
    return tuple(
        ChainMode(own, _describe(experts[0], here), height, weight, share)
        for own, here, height, weight, share in zip(
            chains, experts, sorted(lp, reverse=True), _stacking(parts), evidence, strict=True
        )
    )


def together(quantities: np.ndarray) -> list[np.ndarray]:
    """Chains grouped by mode, from quantities without labels ``(quantity, chain, draw)``."""
    n_chains = quantities.shape[1]
    linked = np.eye(n_chains, dtype=bool)
    for i, j in itertools.combinations(range(n_chains), 2):
        with np.errstate(invalid="ignore", divide="ignore"):  # a chain that never moved: NaN
            rhat = array_stats.rhat(quantities[:, [i, j]], chain_axis=1, draw_axis=2)
        linked[i, j] = bool(np.max(rhat) < APART)
    count, label = scipy.sparse.csgraph.connected_components(linked, directed=False)
    return [np.flatnonzero(label == group) for group in range(count)]


def _stacking(parts: Sequence[DataTree]) -> list[float]:
    """Weights of the modes; NaN where leave-one-out cannot be had.

    ArviZ raises ValueError of a chain that never moved or is short, IndexError of a shorter one.
    """
    results = {}
    for i, part in enumerate(parts):
        with warnings.catch_warnings(), contextlib.suppress(ValueError, IndexError):
            warnings.simplefilter("ignore", UserWarning)  # influential rows are a check of its own
            results[str(i)] = arviz_stats.loo(part)
    weights = stack(results)
    return [float(weights.get(str(i), np.nan)) for i in range(len(parts))]


def _evidence(tree: DataTree, groups: Iterable[tuple[int, ...]]) -> list[float]:
    """Weights of the modes where each group's chains started.

    A mode from which chains went different ways counts for each of their groups, by their number.
    """
    start, weights = (np.atleast_1d(tree.attrs[name]) for name in ("start_modes", "mode_weights"))
    each = weights[start] / np.bincount(start, minlength=len(weights))[start]
    return [float(each[list(chains)].sum() / each.sum()) for chains in groups]


class _Experts(NamedTuple):
    """The experts at a mode's densest draw, on the data."""

    means: np.ndarray  # (k, n)
    sd: np.ndarray  # (k,)
    rows: np.ndarray  # (k,) that each holds, by the gate
    least: int  # rows that a line and a variance need

    @classmethod
    def of(cls, model: MoE, part: DataTree) -> _Experts:
        measure, x = densest_draw(part), np.asarray(part["constant_data"]["x"])
        shares = np.exp(np.asarray(model.gate.log_probabilities(measure.gate, jnp.asarray(x.T))))
        return cls(
            np.asarray(measure.slope) @ x.T + np.asarray(measure.intercept)[:, None],
            np.sqrt(np.asarray(measure.variance)),
            shares.sum(axis=1),
            model.layout(x.shape[1]).n_expert_covariates + 2,
        )

    def apart(self, other: _Experts) -> np.ndarray:
        """Root mean square distances of lines, in units of the larger deviation: ``(k, k)``."""
        gaps = self.means[:, None] - other.means
        return np.sqrt(np.mean(gaps**2, axis=-1)) / np.maximum(self.sd[:, None], other.sd)


def _describe(densest: _Experts, here: _Experts) -> str:
    """What a mode is, beside the densest one."""
    empty = np.flatnonzero(here.rows < here.least)
    n, near = here.means.shape[1], here.apart(here) < _ALIKE
    held = [f"expert {i} holds {here.rows[i]:.1f} of {n} rows: it is empty" for i in empty]
    split = [
        f"experts {i} and {j} have nearly one line: one expert split in two"
        for i, j in itertools.combinations(range(len(here.sd)), 2)
        if near[i, j] and i not in empty and j not in empty
    ]
    beside = "the densest" if here is densest else _compare(densest, here)
    return "; ".join([beside, *split, *held])


def _compare(densest: _Experts, here: _Experts) -> str:
    apart, last = densest.apart(here), len(here.sd) - 1
    # how far strangers are apart must not decide which of the others match
    theirs, ours = linear_sum_assignment(np.minimum(apart, _ALIKE))
    other = ours[apart[theirs, ours] >= _ALIKE]
    if other.size:
        names = ", ".join(map(str, sorted(other)))
        return f"not the densest's {'experts' if other.size > 1 else 'expert'}: {names}"
    if ours[last] != last:
        return f"the densest's experts, with another one ({theirs[ours == last][0]}) as reference"
    return "the densest's experts under another gate"
