r"""Several models on one data set: information criteria, leave-one-out, and which to prefer.

With ℓ the log-likelihood of the MLE, p the number of identifiable parameters and r_ij the
probability that expert i made observation j (at the MLE):

=====  ==================================================================================
AIC    -2ℓ + 2p
BIC    -2ℓ + p log n
ICL    BIC - 2 Σ_j Σ_i r_ij log r_ij: BIC and twice the entropy of the responsibilities
elpd   Σ_j log p(y_j | x_j, all other rows), posterior averaged over, by PSIS or a refit
=====  ==================================================================================

Of AIC, BIC and ICL less is better; of the elpd, more. p counts what the likelihood depends on: with
one expert no gate parameter, and one fewer than the free parameters where the gate has a ray
(c·β1, c·β0, c·τ) or is a step (top-1), whose scale does nothing. A covariate that is a linear
combination of others and a constant, as one of all levels of a factor is, counts neither in the
experts nor in the gate; inside an activation there is no constant, unless it is a line.

AIC and BIC have their meaning for a likelihood with a regular maximum: not where experts are to
spare, or the MLE's status is not "converged". The elpd needs neither.

The effective number of experts is exp(-Σ_i w_i log w_i), w_i the mean of r_ij over the rows, of
every posterior draw, then averaged: k if all experts make as many observations, one if a single one
makes all.

References: Biernacki, Celeux & Govaert, IEEE PAMI 2000 (ICL; with the entropy in place of their
assignments, as in McLachlan & Peel, Finite Mixture Models, 2000, section 6.10); Vehtari, Gelman &
Gabry, Stat. Comput. 2017 (PSIS-LOO); Yao, Vehtari, Simpson & Gelman, Bayesian Analysis 2018
(stacking).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import arviz_stats
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.special
from arviz_stats.utils import ELPDData
from jax import Array
from jax.typing import ArrayLike
from xarray import DataTree

from bayesmoe.core.compilation import jit_quickly
from bayesmoe.core.density import conditional_density
from bayesmoe.core.gate import Gate
from bayesmoe.core.measure import MixingMeasure
from bayesmoe.core.model import MoE, make_model
from bayesmoe.core.selection import take
from bayesmoe.core.validate import as_key, check_estimable, check_observations
from bayesmoe.data.frames import Frame, column_names
from bayesmoe.data.table import Table
from bayesmoe.diagnostics.checks import check_posterior
from bayesmoe.diagnostics.posterior import sample_posterior
from bayesmoe.diagnostics.recommendation import (
    LEAST_MASS,
    Recommendation,
    differences,
    recommend,
)
from bayesmoe.diagnostics.verdict import Checks
from bayesmoe.inference.point import Fit, fit_map, fit_mle
from bayesmoe.inference.posterior import check_proper
from bayesmoe.models import Softmax
from bayesmoe.theory.voronoi import as_measure

#: rows of one model whose Pareto k is bad are refitted up to this number; beyond it none is
MAX_REFITS = 10

# judged apart: rows by refits, and the prior's influence is no part of a comparison
_NOT_JUDGED = ("influential rows", "prior sensitivity", "determined by data")


class Assessment(NamedTuple):
    """One model's fits and what they are worth.

    Attributes
    ----------
    name, model
        The model, and how it is named.
    mle, map, posterior
        Its fits, as `bayesmoe.fit_mle`, `bayesmoe.fit_map` and `bayesmoe.sample_posterior` return.
    checks
        The checks of the sampler, and of calibration.
    n_parameters, n_undetermined
        Identifiable parameters, and free ones beyond them on which the likelihood does not depend.
    aic, bic, icl, effective_experts
        See the module.
    loo
        ArviZ's result, with the rows that were refitted in place of those of PSIS.
    bad_rows, refitted_rows
        Rows with a Pareto k above ``loo.good_k``; and those of them whose value is from a refit.
    """

    name: str
    model: MoE
    mle: Fit
    map: Fit
    posterior: DataTree
    checks: Checks
    n_parameters: int
    n_undetermined: int
    aic: float
    bic: float
    icl: float
    effective_experts: float
    loo: ELPDData
    bad_rows: tuple[int, ...]
    refitted_rows: tuple[int, ...]

    @property
    def reliable(self) -> bool:
        """Whether the elpd is the model's.

        It is if chains agree, their modes have most of the mass as far as that is known, and no row
        with a bad Pareto k is left as it was.
        """
        attributes = self.posterior.attrs
        mixed = attributes["status"] == "converged"
        astray = attributes["mode_weight"] < LEAST_MASS  # NaN is not
        return mixed and not astray and self.bad_rows == self.refitted_rows


class Comparison(NamedTuple):
    """Models beside each other.

    Attributes
    ----------
    table
        The data.
    assessments
        One for each model, in the order given.
    recommendation
        Which model to take, and why.
    """

    table: Table
    assessments: tuple[Assessment, ...]
    recommendation: Recommendation

    def to_frame(self) -> pd.DataFrame:
        """One row per model, the largest reliable elpd first.

        ``elpd_diff`` is the difference to that model and ``noise`` whether it may be due to chance;
        these and ``weight``, the model's in a stack of all, are NaN and False where the elpd is not
        ``reliable``. ``mode_weight`` is the share of the posterior near modes where
        a chain started; NaN where the density jumps.
        """
        frame = _frame(self.assessments)
        frame["recommended"] = frame.index == self.recommendation.model
        return frame

    def __str__(self) -> str:
        return self.recommendation.text


def compare_models(
    models: Sequence[MoE],
    data: Table | tuple[ArrayLike | Frame, ArrayLike],
    *,
    key: Array | int = 0,
    observe: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Fit every model, estimate how well it predicts, and recommend one.

    The recommended model has the fewest parameters among those whose elpd differs from the best
    by noise alone: by less than 4, or less than two standard errors (`recommendation.SMALL` and
    `recommendation.N_ERRORS`, which give the source).

    Rows with a bad Pareto k are left out in turn and the model sampled again, up to `MAX_REFITS`
    for each model; a refit standardises the rows that are left, by which its prior moves a little.
    A model with more such rows, or whose chains disagree or started at modes that have less than
    half of the mass (`recommendation.LEAST_MASS`), has no reliable elpd: it takes no part in
    differences, weights and recommendation, which names it.

    Parameters
    ----------
    models
        From `bayesmoe.moe`, with proper priors. With one expert there is nothing to gate: such
        models are taken to have a softmax gate of all covariates. Equal models are fitted once.
    data
        A table from `bayesmoe.data.table.read_table`, or ``(x, y)``: covariates ``(n, d)`` or
        ``(n,)``, an array or a data frame, and response ``(n,)``.
    key
        A JAX key or a non-negative int. What becomes of a model depends on it and the model alone.
    observe
        Called with a line of text before every lengthy step.

    Raises
    ------
    ValueError
        If there is no model, two have the same name, a prior is improper, or the data cannot be
        used or cannot determine a model; nothing is computed then.
    """
    key, table = as_key(key), data if isinstance(data, Table) else _as_table(*data)
    named = name_models(models, [str(name) for name in table.x.columns])
    for model in named.values():
        check_proper(model)
        x, y = check_observations(table.x, table.y)
        check_estimable(x, y, model.layout(x.shape[1]).size)
    assessments = []
    for i, (name, model) in enumerate(named.items(), start=1):
        observe(f"{name} (model {i} of {len(named)})")
        assessments.append(_assess(name, model, table, key, observe))
    return Comparison(table, tuple(assessments), recommend(_frame(assessments), len(table.y)))


def _as_table(x: ArrayLike | Frame, y: ArrayLike) -> Table:
    covariates, response = check_observations(x, y)
    names = column_names(x)
    frame = pd.DataFrame(np.asarray(covariates), columns=names)
    if names is None:
        frame.columns = pd.Index([f"x{i}" for i in range(frame.shape[1])])
    return Table(frame, pd.Series(np.asarray(response), name=getattr(y, "name", None) or "y"))


def name_models(models: Sequence[MoE], covariates: Sequence[str]) -> dict[str, MoE]:
    """The distinct models by name, which tells covariates that are left out."""
    distinct = list(dict.fromkeys(_without_gate(model, len(covariates)) for model in models))
    if not distinct:
        raise ValueError("there is no model to compare; pass at least one from bayesmoe.moe")
    several = len({model.prior_name for model in distinct}) > 1
    named: dict[str, MoE] = {}
    for model in distinct:
        k = model.n_experts
        name = "one expert" if k == 1 else f"{model.gate.label}, k = {k}"
        restricted = model.selection.describe(covariates)
        name += f", {restricted}" if restricted else ""
        name += f", {model.prior_name} prior" if several else ""
        if name in named:
            raise ValueError(f"two different models are named {name!r}; compare one at a time")
        named[name] = model
    return named


def _without_gate(model: MoE, n_covariates: int) -> MoE:
    """A model whose covariates are those of ``n_covariates`` that it names.

    One of one expert has the softmax gate in place of its own: its density is the same.
    """
    selection = model.selection.resolve(n_covariates)
    if model.n_experts > 1:
        return dataclasses.replace(model, selection=selection)
    prior = model.prior if model.prior_name == "custom" else model.prior_name
    return make_model(Softmax(), 1, prior, selection._replace(gate=None))


# --- one model


def _assess(
    name: str, model: MoE, table: Table, key: Array, observe: Callable[[str], None]
) -> Assessment:
    x, y = table.x.to_numpy(), table.y.to_numpy()
    fit_key, sample_key = jax.random.split(key)  # as `analyse` does: the same fits
    mle = fit_mle(model, x, y, key=fit_key)
    map_ = fit_map(model, x, y, key=fit_key, starts=mle.measure)
    posterior = sample_posterior(model, table.x, y, key=sample_key, start=map_)
    checks = check_posterior(model, posterior).checks
    n_free = model.layout(x.shape[1]).size
    p = n_free - n_undetermined(model, x)
    bic = -2 * mle.log_likelihood + p * np.log(len(y))
    shares, _ = _usage(model.gate, _batch_of_one(mle.measure), x, y)
    _, effective = _usage(model.gate, as_measure(posterior), x, y)
    loo, bad, refitted = _leave_one_out(name, model, table, posterior, key, observe)
    return Assessment(
        name, model, mle, map_, posterior,
        Checks(tuple(check for check in checks if check.name not in _NOT_JUDGED)),
        p, n_free - p, 2 * p - 2 * mle.log_likelihood, bic,
        bic + 2 * float(np.sum(scipy.special.entr(shares))), float(np.mean(effective)),
        loo, bad, refitted,
    )  # fmt: skip


def n_undetermined(model: MoE, x: np.ndarray) -> int:
    """Free parameters on which the likelihood of the covariates x ``(n, d)`` does not depend."""
    gate, k = model.gate, model.n_experts
    selection = model.selection.resolve(x.shape[1])
    scale = int(k > 1 and (gate.ray or gate.subset_size == 1))
    of_gate = _gate_deficiency(gate, take(x, selection.gate))
    return scale + (k - 1) * of_gate + k * _deficiency(take(x, selection.experts), shifted=True)


def _gate_deficiency(gate: Gate, x: np.ndarray) -> int:
    """Of the slopes of an expert in the gate; β0 is an intercept where logits are linear in x."""
    return _deficiency(x, shifted=gate.translates) if gate.rescalable else 0


def _deficiency(x: np.ndarray, *, shifted: bool) -> int:
    """How many columns are combinations of others, or if ``shifted`` of others and a constant.

    They are as far as rounding tells: values far from zero, as dates are, have been rounded by
    more than what is left of them once their mean is taken off.
    """
    rounding = np.finfo(float).eps * np.max(np.abs(x), axis=0, initial=0.0)
    if shifted:
        x = x - x.mean(axis=0)
        x = x - x.mean(axis=0)  # the first mean is rounded itself
    size = np.linalg.norm(x, axis=0)
    unit = np.where(size > 0, size, 1.0)
    singular = np.linalg.svd(x / unit, compute_uv=False)
    # that of NumPy's rank, and the norm of what rounding may have changed
    least = max(x.shape) * np.finfo(float).eps * np.max(singular, initial=0.0)
    least += np.sqrt(len(x)) * np.linalg.norm(rounding / unit)
    return x.shape[1] - int(np.sum(singular > least))


def _batch_of_one(measure: MixingMeasure) -> MixingMeasure:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None, None], measure)


@jit_quickly(static_argnums=0)
def _usage(gate: Gate, draws: MixingMeasure, x: Array, y: Array) -> tuple[Array, Array]:
    """Responsibilities of the last draw, ``(n, k)``; effective numbers of experts of all."""

    def one(last: Array, measure: MixingMeasure) -> tuple[Array, Array]:
        joint = conditional_density(gate, measure, x).component_log_prob(y)
        shares = jax.nn.softmax(joint, axis=-1)
        return shares, jnp.exp(jnp.sum(jax.scipy.special.entr(jnp.mean(shares, axis=0))))

    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), draws)
    return jax.lax.scan(one, jnp.zeros((len(y), draws.n_experts)), flat)


def _leave_one_out(
    name: str,
    model: MoE,
    table: Table,
    posterior: DataTree,
    key: Array,
    observe: Callable[[str], None],
) -> tuple[ELPDData, tuple[int, ...], tuple[int, ...]]:
    """ArviZ's result, bad rows refitted; the bad rows; those that were refitted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it warns of what is mended or told here
        # the effective size of parameters that swap names means nothing: reff is not left to ArviZ
        loo = arviz_stats.loo(posterior, pointwise=True, reff=1.0)
    bad = np.flatnonzero(~(np.asarray(loo.pareto_k) <= loo.good_k)).tolist()
    if not bad or len(bad) > MAX_REFITS or posterior.attrs["status"] != "converged":
        return loo, tuple(bad), ()
    observe(f"{name}: {len(bad)} rows are left out in turn")
    refit_key = jax.random.fold_in(key, 2)
    exact = {row: _refit(model, table, row, jax.random.fold_in(refit_key, row)) for row in bad}
    exact = {row: value for row, value in exact.items() if np.isfinite(value)}
    pointwise = loo.elpd_i.copy()
    pointwise[list(exact)] = list(exact.values())
    change = float(pointwise.sum()) - loo.elpd
    mended = dataclasses.replace(
        loo, elpd=loo.elpd + change, p=loo.p - change, elpd_i=pointwise,
        se=float(np.sqrt(pointwise.size * pointwise.var())), warning=len(exact) < len(bad),
    )  # fmt: skip
    return mended, tuple(bad), tuple(exact)


def _refit(model: MoE, table: Table, row: int, key: Array) -> float:
    """log p(y_row | x_row, all other rows) from a posterior of its own; NaN if there is none."""
    kept = np.arange(len(table.y)) != row
    x, y = check_observations(table.x[kept], table.y[kept])
    try:
        check_estimable(x, y, model.layout(x.shape[1]).size)
    except ValueError:  # a covariate, say, that varies in this row alone
        return float("nan")
    posterior = sample_posterior(model, x, y, key=key)
    if posterior.attrs["status"] != "converged":
        return float("nan")
    at = slice(row, row + 1)
    terms = model.log_likelihood(as_measure(posterior), table.x[at], table.y[at])
    return float(scipy.special.logsumexp(terms) - np.log(terms.size))


# --- all models


def _frame(assessments: Sequence[Assessment]) -> pd.DataFrame:
    """One row per model, the best reliable elpd first."""
    rows = {
        a.name: {
            "n_experts": a.model.n_experts,
            "n_parameters": a.n_parameters,
            "n_undetermined": a.n_undetermined,
            "log_likelihood": a.mle.log_likelihood,
            "mle_status": a.mle.status.name.lower(),
            "aic": a.aic,
            "bic": a.bic,
            "icl": a.icl,
            "elpd": a.loo.elpd,
            "elpd_se": a.loo.se,
            "reliable": a.reliable,
            "bad_rows": len(a.bad_rows),
            "refitted_rows": len(a.refitted_rows),
            "effective_experts": a.effective_experts,
            "posterior_status": a.posterior.attrs["status"],
            "checks": a.checks.verdict.label,
            "mode_weight": float(a.posterior.attrs["mode_weight"]),
        }
        for a in assessments
    }
    frame = pd.DataFrame(list(rows.values()), index=pd.Index(rows, name="model"))
    order = np.lexsort((frame.index, -frame["elpd"], ~frame["reliable"]))
    frame = frame.iloc[order].join(differences({a.name: a.loo for a in assessments if a.reliable}))
    frame["noise"] = frame["noise"].eq(True)
    return frame
