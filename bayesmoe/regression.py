"""A mixture of experts as a scikit-learn regressor; needs the extra ``bayesmoe[sklearn]``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import pandas as pd
from numpy.typing import ArrayLike
from xarray import DataTree

try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as error:
    raise ImportError(
        f'bayesmoe.regression needs scikit-learn, but {error}; run pip install "bayesmoe[sklearn]"'
    ) from error

from bayesmoe.core.gate import Gate
from bayesmoe.core.model import MoE
from bayesmoe.core.priors import Prior
from bayesmoe.core.selection import find_columns
from bayesmoe.core.validate import as_key, check_whole
from bayesmoe.diagnostics.alignment import align
from bayesmoe.diagnostics.mixing import PosteriorStatus
from bayesmoe.diagnostics.posterior import sample_posterior
from bayesmoe.diagnostics.prediction import LEVEL, Predictive
from bayesmoe.inference.nuts import N_CHAINS, N_DRAWS, N_WARMUP
from bayesmoe.inference.outcome import Status
from bayesmoe.inference.point import Fit, fit_map, fit_mle
from bayesmoe.inference.posterior import check_proper
from bayesmoe.inference.problem import N_STARTS
from bayesmoe.models import moe

__all__ = ["METHODS", "MoERegressor"]

Floats = npt.NDArray[np.float64]

METHODS = ("mle", "map", "posterior")

_MENDS: dict[Status | PosteriorStatus, str] = {
    Status.SEPARATED: "a proper prior has a maximum: use method='map' with prior='weak'",
    Status.TEMPERATURE_TO_ZERO: "use gate='softmax', or method='map' with prior='weak'",
    Status.EMPTY_EXPERT: "lower n_experts",
    PosteriorStatus.NOT_MIXED: "raise n_warmup and n_draws, or lower n_experts",
    PosteriorStatus.DIVERGENT: "raise n_warmup, or lower n_experts",
}
_OTHER_MEND = "raise n_starts, lower n_experts, or use prior='weak'"


class MoERegressor(RegressorMixin, BaseEstimator):
    """Gaussian mixture of experts.

    Parameters
    ----------
    gate
        A name out of `bayesmoe.GATES`, or a `Gate` object of your own.
    n_experts
        k >= 1.
    method
        "mle", "map" (default), or "posterior": predictions then are those of the posterior
        predictive distribution, averaged over all draws.
    prior
        "weak" (default), "flat", "compact", or a `bayesmoe.Prior`; of no use to "mle".
    gate_covariates, expert_covariates
        The columns of X, by name or number, that the gate's logits and the experts' means depend
        on; all by default. ``gate_covariates=()`` makes the mixing weights constant.
    n_starts
        Starts of the search for the maximum, from which the posterior's chains start as well.
    activation, top_k
        Options of the gates "activation_dense_to_sparse" and "top_k_sparse"; None for their
        defaults.
    n_chains, n_warmup, n_draws
        Of "posterior": chains, and iterations of each for adaptation and to keep.
    random_state
        None, an int or a NumPy RandomState, as everywhere in scikit-learn: an int makes fits
        repeatable.

    Attributes
    ----------
    model_
        The `bayesmoe.MoE` that was fitted.
    fit_
        The `bayesmoe.Fit`: of "posterior", the MAP that the chains start from.
    measure_
        The `bayesmoe.MixingMeasure` of ``fit_``.
    posterior_
        Of "posterior" alone: an ArviZ DataTree, experts named as in ``measure_``.
    status_, converged_
        How estimation ended, and whether the estimate may be used.
    log_likelihood_
        Σ log p(y_j|x_j) of the training data, p being the density that predictions come from.
    n_features_in_, feature_names_in_
        The covariates' number, and their names if X has any.

    Notes
    -----
    `fit` raises ValueError for data that no estimate exists for, as `bayesmoe.fit_mle`,
    `bayesmoe.fit_map` and `bayesmoe.sample_posterior` do, and warns (ConvergenceWarning) of an
    estimate that did not converge. Under a proper prior columns of X may be constant or
    collinear, and may outnumber the rows.

    The log density of y given X is `predict_log_density`: what scikit-learn calls
    ``score_samples`` is a density of X.
    """

    def __init__(
        self,
        gate: str | Gate = "softmax",
        n_experts: int = 2,
        *,
        method: str = "map",
        prior: str | Prior = "weak",
        gate_covariates: Iterable[int | str] | None = None,
        expert_covariates: Iterable[int | str] | None = None,
        n_starts: int = N_STARTS,
        activation: Any = None,
        top_k: int | None = None,
        n_chains: int = N_CHAINS,
        n_warmup: int = N_WARMUP,
        n_draws: int = N_DRAWS,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.gate = gate
        self.n_experts = n_experts
        self.method = method
        self.prior = prior
        self.gate_covariates = gate_covariates
        self.expert_covariates = expert_covariates
        self.n_starts = n_starts
        self.activation = activation
        self.top_k = top_k
        self.n_chains = n_chains
        self.n_warmup = n_warmup
        self.n_draws = n_draws
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> MoERegressor:
        """Estimate from X ``(n, d)`` and y ``(n,)``."""
        X, y = self._validated(X, y, y_numeric=True, ensure_min_samples=2)
        model = self._model()
        fit, tree = self._estimate(model, X, y)
        status = fit.status if tree is None else PosteriorStatus[tree.attrs["status"].upper()]
        self.model_, self.fit_, self.measure_ = model, fit, fit.measure
        self.__dict__.pop("posterior_", None)  # of an earlier fit by another method
        if tree is not None:
            self.posterior_ = tree
        self.status_, self.converged_ = status.name.lower(), status.converged
        self.log_likelihood_ = float(np.sum(self.predictive_.log_density(X, y)))
        if not status.converged:
            warnings.warn(
                f"the {self.method} estimate did not converge ({self.status_}): {status.value}; "
                f"{_MENDS.get(status, _OTHER_MEND)}",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    @property
    def predictive_(self) -> Predictive:
        """The `bayesmoe.Predictive` that predictions come from; it has cdf and more."""
        check_is_fitted(self)
        return Predictive(self.model_, getattr(self, "posterior_", self.measure_))

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """E[Y|x], shape ``(n,)``; with ``return_std`` also Y's standard deviation given x."""
        predictive, X = self._covariates(X)
        mean = predictive.mean(X)
        return (mean, predictive.standard_deviation(X)) if return_std else mean

    def predict_quantiles(self, X: Any, quantiles: ArrayLike) -> Floats:
        """Quantiles of Y given x at q levels between 0 and 1, shape ``(n, q)``."""
        predictive, X = self._covariates(X)
        return predictive.quantiles(X, quantiles)

    def predict_interval(self, X: Any, level: float = LEVEL) -> Floats:
        """The equal-tailed prediction interval of probability ``level``, shape ``(n, 2)``."""
        predictive, X = self._covariates(X)
        return predictive.interval(X, level)

    def predict_density(self, X: Any, y: Any) -> Floats:
        """The density of Y at y_j given x_j, shape ``(n,)``."""
        return np.exp(self.predict_log_density(X, y))

    def predict_log_density(self, X: Any, y: Any) -> Floats:
        """The log density of Y at y_j given x_j, shape ``(n,)``."""
        predictive, X, y = self._observations(X, y)
        return predictive.log_density(X, y)

    def sample(
        self,
        X: Any,
        n_samples: int = 1,
        random_state: int | np.random.RandomState | None = None,
    ) -> Floats:
        """Responses at X, shape ``(n, n_samples)``; each column is a data set of one draw."""
        predictive, X = self._covariates(X)
        return predictive.sample(X, n_samples, key=_seed(random_state))

    def gate_probabilities(self, X: Any) -> Floats:
        """The probability of each expert at x, before y is seen, shape ``(n, k)``."""
        predictive, X = self._covariates(X)
        return predictive.gate_probabilities(X)

    def responsibilities(self, X: Any, y: Any) -> Floats:
        """The probability that each expert makes a response y_j at x_j, shape ``(n, k)``."""
        predictive, X, y = self._observations(X, y)
        return predictive.responsibilities(X, y)

    def _model(self) -> MoE:
        """Check all parameters of the estimator; the names of X's columns are known."""
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; choose one of {', '.join(METHODS)}")
        options = {"activation": self.activation, "top_k": self.top_k}
        given = {name: value for name, value in options.items() if value is not None}
        names = getattr(self, "feature_names_in_", None)
        gate_columns, expert_columns = (
            find_columns(name, getattr(self, name), None if names is None else list(names))
            for name in ("gate_covariates", "expert_covariates")
        )
        model = moe(
            self.gate,
            self.n_experts,
            self.prior,
            gate_covariates=gate_columns,
            expert_covariates=expert_columns,
            **given,
        )
        model.layout(self.n_features_in_)  # are there such columns?
        if self.method == "posterior":
            check_proper(model)
            for name in ("n_chains", "n_warmup", "n_draws"):
                check_whole(name, getattr(self, name), least=1)
        return model

    def _estimate(self, model: MoE, x: Floats, y: Floats) -> tuple[Fit, DataTree | None]:
        fit_key, sample_key = jax.random.split(as_key(_seed(self.random_state)))
        estimate = fit_mle if self.method == "mle" else fit_map
        fit = estimate(model, x, y, key=fit_key, n_starts=self.n_starts)
        if self.method != "posterior":
            return fit, None
        names = getattr(self, "feature_names_in_", None)
        tree = sample_posterior(
            model,
            x if names is None else pd.DataFrame(x, columns=names),
            y,
            key=sample_key,
            start=fit,
            n_chains=self.n_chains,
            n_warmup=self.n_warmup,
            n_draws=self.n_draws,
        )
        return fit, align(tree, model.gate, fit.measure)

    def _covariates(self, X: Any) -> tuple[Predictive, Floats]:
        predictive = self.predictive_
        return predictive, self._validated(X, reset=False)

    def _observations(self, X: Any, y: Any) -> tuple[Predictive, Floats, Floats]:
        predictive = self.predictive_
        return predictive, *self._validated(X, y, y_numeric=True, reset=False)

    def _validated(self, *data: Any, **rules: Any) -> Any:
        """X, or X and y, checked as everywhere in scikit-learn, in float64."""
        for name, values in zip(("X", "y"), data, strict=False):
            if np.ma.is_masked(values):  # scikit-learn would use what is behind the mask
                raise ValueError(f"{name} has masked values; remove or impute them first")
        try:
            return validate_data(self, *data, dtype=np.float64, **rules)
        except OverflowError as error:  # of whole numbers beyond float64
            raise ValueError(f"X and y must be float64 numbers: {error}") from None
        except TypeError as error:
            if "NA is ambiguous" in str(error):  # scikit-learn compares an object with itself
                raise ValueError(
                    "y contains pandas' NA; remove or impute rows without a value first"
                ) from None
            raise


def _seed(random_state: int | np.random.RandomState | None) -> int:
    return int(check_random_state(random_state).randint(2**31 - 1))
