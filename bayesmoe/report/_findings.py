"""What is wrong with a fit, told plainly, and what to do about it."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bayesmoe.core.measure import MixingMeasure
from bayesmoe.diagnostics.analysis import Analysis, posterior_summary
from bayesmoe.diagnostics.chain_modes import chain_modes
from bayesmoe.diagnostics.verdict import RHAT, Check, Verdict
from bayesmoe.inference.outcome import Status
from bayesmoe.inference.point import SAME, Fit
from bayesmoe.report._curves import responsibilities

#: log-likelihood units: optima within these of the best are hardly told apart by the data
CLOSE = 1.0

#: maxima, and heights that the likelihood only approaches
STATIONARY = {
    Status.CONVERGED, Status.AT_VARIANCE_FLOOR, Status.AT_PRIOR_BOUND, Status.SEPARATED,
    Status.TEMPERATURE_TO_ZERO, Status.EMPTY_EXPERT,
}  # fmt: skip


class Finding(NamedTuple):
    """A trouble: its subject, what was found, and what to do; ``grave`` if results fall with it."""

    subject: str
    text: str
    advice: str
    grave: bool


class Optima(NamedTuple):
    """Starts that reached the best optimum, all starts, and how far below it other optima are.

    ``below`` has those within `CLOSE` alone, the nearest first.
    """

    reached: int
    total: int
    below: tuple[float, ...]


def find_optima(fit: Fit) -> Optima:
    """The optima that the starts of a fit ended at, told apart by their heights."""
    objective = np.asarray(fit.starts.objective)
    stationary = np.array([status in STATIONARY for status in fit.starts.status])
    heights = np.sort(objective[stationary & np.isfinite(objective)])[::-1]
    best = fit.log_likelihood if np.isnan(fit.log_density) else fit.log_density
    distinct, last = [], best
    for height in heights[heights < best - SAME]:
        if height < last - SAME:
            distinct.append(float(best - height))
        last = height
    reached = int(np.sum(np.abs(heights - best) <= SAME))
    return Optima(reached, len(objective), tuple(gap for gap in distinct if gap <= CLOSE))


def find_troubles(analysis: Analysis) -> list[Finding]:
    """All troubles of a fit, the grave ones first."""
    found = []
    measures = {"MLE": analysis.mle_measure, "MAP": analysis.map.measure}
    for name, fit in (("MLE", analysis.mle), ("MAP", analysis.map)):
        status = _status(name, fit, measures[name])
        found += [status, _rare(name, fit), _several(name, fit)]
        found += [_poor(name, analysis, measures[name])]
    found += [_failed_check(analysis, check) for check in analysis.checks.checks]
    found.append(_names(analysis))
    kept = [finding for finding in found if finding is not None]
    return sorted(kept, key=lambda finding: not finding.grave)


def _status(name: str, fit: Fit, measure: MixingMeasure) -> Finding | None:
    if fit.status is Status.CONVERGED:
        return None
    if fit.status is Status.AT_VARIANCE_FLOOR:
        variance = np.asarray(measure.variance)
        experts = np.flatnonzero(variance <= variance.min() * (1 + 1e-9))
        text = (
            f"In the {name} the variance of {_experts(experts)} rests on its floor: without the "
            "floor the likelihood would grow without end."
        )
        return Finding("Variance at its floor", text, _FLOOR, name == "MAP")
    if fit.status is Status.AT_PRIOR_BOUND:
        return Finding(f"On the prior's edge ({name})", _EDGE_TEXT, _EDGE_ADVICE, False)
    subject, text, advice = _STATUS.get(
        fit.status, ("No maximum", f"the best start ended so: {fit.status.value}.", _AGAIN)
    )
    return Finding(f"{subject} ({name})", text[0].upper() + text[1:], advice, True)


_FLOOR = (
    "Look at the rows of this expert: often a few that lie on one line, or repeated values. "
    "Prefer the posterior, or fit fewer experts."
)
_EDGE_TEXT = (
    "Some parameters rest on the bounds of their prior: the density is highest there among the "
    "values that the prior allows, and would grow beyond."
)
_EDGE_ADVICE = (
    "Do not read these parameters as findings: the bounds are the prior's. Prefer the posterior, "
    "or a prior with wider bounds or none (--prior weak)."
)
_AGAIN = "Do not read this estimate. Fit again with another --seed, or with fewer experts."
_AGAIN_HIGHER = "Fit again with another --seed and compare the heights, or fit fewer experts."
_STATUS = {
    Status.SEPARATED: (
        "Separated gate",
        "the gate tends to a step between experts: its parameters run away and have no estimate, "
        "and there are no standard errors. The experts' lines and variances have settled.",
        "Use the MAP or the posterior, in which the prior bounds the gate. Do not read this "
        "estimate's gate parameters, nor AIC and BIC.",
    ),
    Status.TEMPERATURE_TO_ZERO: (
        "Temperature goes to zero",
        "with all else fitted anew at each temperature, the likelihood rises as far down as it can "
        "be followed: it has a limit and no maximum. Where gate slopes go to zero as well the "
        "limit is a softmax gate, else a step. The gate's parameters have no estimate, and there "
        "are no standard errors.",
        "Use the MAP or the posterior, in which the prior bounds the temperature. If --gate "
        "softmax has the same log-likelihood, take that gate.",
    ),
    Status.EMPTY_EXPERT: (
        "Empty expert",
        "an expert lost all its weight: a model with fewer experts has the same likelihood.",
        "Fit with one expert fewer; 'bayesmoe compare' sets numbers of experts beside each other.",
    ),
}


def _rare(name: str, fit: Fit) -> Finding | None:
    reached, total, _ = find_optima(fit)
    if reached < 2 < total and fit.converged:
        text = f"{reached} of {total} starts reached the {name}; a higher optimum may be left."
        return Finding(f"Hard to find ({name})", text, _AGAIN_HIGHER, False)
    return None


def _several(name: str, fit: Fit) -> Finding | None:
    below = find_optima(fit).below
    if not below:
        return None
    unit = "log-likelihood" if name == "MLE" else "log posterior density"
    several = "another optimum" if len(below) == 1 else f"{len(below)} other optima"
    gaps = ", ".join(f"{gap:.2g}" for gap in below)
    text = f"The {name} has {several} within one unit of {unit}: {gaps} below the best."
    advice = (
        "The data hardly tell these apart: do not rest on one of them. The posterior averages over "
        "those that its chains reached; fewer experts may have one optimum only."
    )
    return Finding(f"Several optima ({name})", text, advice, False)


def _poor(name: str, analysis: Analysis, measure: MixingMeasure) -> Finding | None:
    """Experts with fewer observations than a line and a variance have parameters."""
    x, y = (jnp.asarray(part.to_numpy()) for part in (analysis.table.x, analysis.table.y))
    owned = np.asarray(responsibilities(analysis.model.gate, measure, x, y)).sum(axis=0)
    least = analysis.model.layout(measure.n_covariates).n_expert_covariates + 2
    poor = np.flatnonzero(owned < least)
    if not poor.size:
        return None
    held = ", ".join(f"{owned[i]:.1f}" for i in poor)
    text = (
        f"In the {name} {_experts(poor)} own {held} observations (summed responsibilities); a line "
        f"and its variance have {least} parameters."
    ).replace(" own ", " owns " if len(poor) == 1 else " own ")
    advice = "Read this as a few rows that stand apart, not as a group, or fit fewer experts."
    return Finding(f"Expert with few observations ({name})", text, advice, False)


def _names(analysis: Analysis) -> Finding | None:
    """Experts that change names between chains, though what has no names agrees."""
    chains = next(check for check in analysis.checks.checks if check.name == "chains")
    rhat = posterior_summary(analysis.posterior, analysis.model.gate)["r_hat"]
    apart = [str(name) for name in rhat.index[rhat > RHAT.fair] if name != "log_likelihood"]
    if not apart or not chains.value <= RHAT.fair:
        return None
    text = (
        f"R-hat is above {RHAT.fair} for {len(apart)} parameters, {apart[0]} among them, and not "
        "for quantities without names: chains name the experts in different ways."
    )
    return Finding("Experts change names", text, _NAMES, False)


_NAMES = (
    "Predictions and the figure's grey bands hold. Do not read posterior means and intervals of "
    "these parameters, which mix experts; read the MAP's."
)


def _experts(indices: np.ndarray) -> str:
    named = ", ".join(map(str, indices))
    return f"expert {named}" if len(indices) == 1 else f"experts {named}"


def _failed_check(analysis: Analysis, check: Check) -> Finding | None:
    if check.verdict is Verdict.PASSED:
        return None
    subject, advice = _CHECKS[check.name]
    text = check.text[0].upper() + check.text[1:] + "."
    grave = check.verdict is Verdict.FAILED
    if check.name == "chains" and "start_modes" in analysis.posterior.attrs:
        modes = chain_modes(analysis.model, analysis.posterior)
        if len(modes) > 1:
            subject = "Chains in different modes"
            text = "; ".join(mode.text for mode in modes) + "."
            text = "Their average is no posterior. " + text[0].upper() + text[1:]
            advice = _MODES
    if check.name == "modes" and check.verdict is Verdict.NOT_CHECKED:
        subject = "Modes of unknown mass"
    return Finding(subject, text, advice, grave)


_MODES = (
    "Do not average over all draws. Look at each mode alone (bayesmoe.chain_modes), and fit fewer "
    "experts or a narrower prior."
)
_LONGER = "Sample with more warm-up and draws (bayesmoe.sample_posterior)"
_CHECKS = {
    "chains": ("Chains disagree", f"{_LONGER}, or fit fewer experts."),
    "effective draws": ("Few effective draws", f"{_LONGER}; until then intervals are rough."),
    "divergences": ("Divergent transitions", f"{_LONGER}; if they stay, fit fewer experts."),
    "energy": ("Tails hardly explored", f"{_LONGER}; if it stays, fit fewer experts."),
    "modes": (
        "Modes without a chain",
        "Sample with more chains (bayesmoe.sample_posterior): intervals may be too narrow.",
    ),
    "influential rows": (
        "Influential rows",
        "Look at these rows for errors. 'bayesmoe compare' leaves each out and samples again.",
    ),
    "calibration": (
        "Not calibrated",
        "The model misses the law of the response given the covariates: try more experts, another "
        "gate, or another scale of the response, and compare.",
    ),
    "calibration given x": (
        "Not calibrated at some covariates",
        "The model misses the law of the response where the check says so: look at the figure of "
        "calibration, and try more experts, another gate, or terms that bend.",
    ),
    "prior sensitivity": (
        "The prior matters",
        "Name the prior beside these parameters, and see how they change under --prior compact.",
    ),
    "determined by data": (
        "Left to the prior",
        "Do not read these parameters as findings: they repeat the prior. 'bayesmoe identify' says "
        "whether more data of this kind would help.",
    ),
}  # fmt: skip
