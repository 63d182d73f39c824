"""Whether a gate of one's own is what it declares, tried at random points.

What a gate declares wrongly would not fail later, but give wrong numbers: the design is centred for
a gate that calls itself linear, a Hessian is put together for one that calls itself separable.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy.special
from jax import Array
from numpyro import handlers

from bayesmoe.core.gate import Gate
from bayesmoe.core.likelihood import log_density
from bayesmoe.core.measure import FIELDS, GateParameters, MixingMeasure
from bayesmoe.core.priors import PRIORS
from bayesmoe.core.program import Sites
from bayesmoe.core.scaling import Scaling

_POINTS = 7  # of x, in [1, 2]: a gate need not be defined at others than positive ones
_COVARIATES = (2, 1, 3, 4)  # numbers of them that are tried: a gate may need some number
_ROUNDING = 1e-8  # relative to the largest logit
_NOT_JAX = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)

_Floats = np.ndarray
_At = tuple[Any, _Floats]  # the gate's parameters, in NumPy, which compiles nothing, and x (d, n)


def check_state(gate: Gate) -> None:
    """Raise ValueError unless compiled functions can tell a gate from others."""
    kind = type(gate).__name__
    if not isinstance(getattr(gate, "name", None), str):
        raise ValueError(f'{kind} has no name; give it one, name: ClassVar[str] = "..."')
    fields = [field.name for field in dataclasses.fields(gate)]
    for name in vars(gate):
        if name not in fields and not hasattr(type(gate), name):  # as cached properties are
            raise ValueError(
                f"{kind} has {name!r}, which is no field: gates that differ in it would be taken "
                f"for the same; make {kind} a dataclass, @dataclasses.dataclass(frozen=True), and "
                f"{name!r} a field of it"
            )
    try:
        hash(gate)
    except TypeError as error:
        raise ValueError(
            f"{kind} must be hashable, so that compiled functions can take it, but {error}; "
            "freeze it, and have tuples for fields in place of lists and arrays"
        ) from None


@functools.lru_cache(maxsize=256)
def check_behaviour(gate: Gate, n_experts: int) -> None:
    """Raise ValueError unless a gate does what it declares with ``n_experts`` experts.

    A gate that has no logits for x in [1, 2]^d, d up to four, passes unchecked.
    """
    with jax.ensure_compile_time_eval():  # at once, even if the model is made while tracing
        for d in _COVARIATES:
            try:
                _logits(gate, *_point(n_experts, d))
            except _NOT_JAX as error:
                raise ValueError(
                    f"logits of the {gate.label} gate must be made by JAX alone, without NumPy, "
                    f"float() or conditions on values; they raised {error!r}"
                ) from error
            except Exception:
                continue  # the gate may need another number of covariates
            _check_logits(gate, n_experts, d)
            _check_program(gate, n_experts, d)
            return


def _check_logits(gate: Gate, n_experts: int, d: int) -> None:
    parameters, x = _point(n_experts, d)
    logits = _logits(gate, parameters, x)
    if logits.shape != (n_experts, _POINTS) or logits.dtype != float:
        raise ValueError(
            f"logits of the {gate.label} gate must be float64 of shape (k, n) for x of shape "
            f"(d, n); for k = {n_experts} and n = {_POINTS} they are {logits.dtype} of shape "
            f"{logits.shape}"
        )
    for rule, move in _claims(gate, d):
        before, after = (_probabilities(gate, *at) for at in ((parameters, x), move(parameters, x)))
        if not _same(before, after, logits):
            raise ValueError(
                f"the {gate.label} gate breaks the rule that {rule}; mend logits, or what the "
                "class declares"
            )
    for expert in range(n_experts if gate.separable else 0):
        one = np.arange(n_experts) == expert
        slope, intercept = parameters.slope + 0.3 * one[:, None], parameters.intercept + 0.2 * one
        moved = _logits(gate, GateParameters(slope, intercept, parameters.temperature), x)
        # which experts are active may change
        others = ~one[:, None] & np.isfinite(logits) & np.isfinite(moved)
        if not _same(logits[others], moved[others], logits):
            raise ValueError(
                f"the {gate.label} gate declares separable = True, but the logits of an expert "
                "change with the parameters of another; leave separable at False"
            )


def _claims(gate: Gate, d: int) -> list[tuple[str, Callable[..., _At]]]:
    """What leaves the gate's probabilities as they are, in words and as a function."""
    vector = np.linspace(0.4, 0.9, d)

    def shift(p: Any, x: _Floats) -> _At:
        return p._replace(intercept=p.intercept + 0.7), x

    def centre(p: Any, x: _Floats) -> _At:
        return p._replace(intercept=p.intercept - p.slope @ vector), x + vector[:, None]

    def translate(p: Any, x: _Floats) -> _At:
        return p._replace(slope=p.slope + vector), x

    def rescale(p: Any, x: _Floats) -> _At:
        return p._replace(slope=p.slope / (1 + vector)), x * (1 + vector[:, None])

    def scale(p: Any, x: _Floats) -> _At:
        return GateParameters(*(1.7 * part for part in p)), x

    def flip(p: Any, x: _Floats) -> _At:
        return p._replace(slope=np.where(p.slope == p.slope[0], -p.slope[-1], -p.slope[0])), x

    def mirror(p: Any, x: _Floats) -> _At:
        return p._replace(slope=p.slope * (-1.0) ** np.arange(len(p.slope))[::-1, None]), x

    rules = [(True, "one number added to all β0 changes nothing", shift)]
    rules += [(gate.linear, "(linear) x + c may have β0 - β1ᵀc in place of β0", centre)]
    rules += [(gate.translates, "(translates) one vector may be added to all β1", translate)]
    rules += [(gate.rescalable, "(rescalable) cx may have β1/c in place of β1", rescale)]
    rules += [(gate.ray, "(ray) (cβ1, cβ0, cτ) is the same gate for all c > 0", scale)]
    rules += [(gate.flip, "(flip) two slopes (u, v) may become (-v, -u)", flip)]
    rules += [(gate.even, "(even) β1 of any expert may become -β1", mirror)]
    return [(rule, move) for declared, rule, move in rules if declared]


def _check_program(gate: Gate, n_experts: int, d: int) -> None:
    """Raise ValueError unless the program's y has the density of the logits at its own sites."""
    parameters, x = _point(n_experts, d)
    sites = Sites(PRIORS["weak"](gate), Scaling.identity(d), n_experts, d)
    rows, k = np.arange(_POINTS) / _POINTS, n_experts
    values = {
        "temperature": parameters.temperature,
        "gate_slope_free": parameters.slope[:-1],
        "gate_intercept_free": parameters.intercept[:-1],
        "slope": np.sin(np.arange(k * d)).reshape(k, d),
        "intercept": np.cos(np.arange(k)),
        "variance": 1 + np.arange(k) / k,
    }
    known = {name: jax.device_put(value) for name, value in values.items()}
    # what is known is not drawn, which would compile many programs
    with handlers.trace() as trace, handlers.seed(rng_seed=0), handlers.substitute(data=known):
        gate.program(jax.device_put(x.T), jax.device_put(rows), sites)
    if ("temperature" in trace) != gate.has_temperature:
        mend = "sites.gate(sites.temperature())" if gate.has_temperature else "sites.gate()"
        raise ValueError(
            f"the {gate.label} gate declares has_temperature = {gate.has_temperature}, and its "
            f"program {'lacks' if gate.has_temperature else 'has'} a temperature; use {mend} there"
        )
    if not {*FIELDS, "y"} - {"temperature"} <= trace.keys():
        raise ValueError(
            f"the program of the {gate.label} gate must end in observe(self, MixingMeasure(...), "
            f"x, y) with what sites.gate and sites.experts return; it has the sites "
            f"{', '.join(trace)}"
        )
    fields = {name: trace[name]["value"] for name in FIELDS if name in trace}
    measure = MixingMeasure(**{"temperature": 1.0, **fields})
    theirs = np.asarray(trace["y"]["fn"].log_prob(rows))
    ours = np.asarray(_compiled_density(gate, measure, x.T, rows))
    if not _same(theirs, ours, theirs):
        raise ValueError(
            f"the program of the {gate.label} gate gives y another density than its logits; it is "
            "to be observe(self, MixingMeasure(*sites.gate(), *sites.experts()), x, y)"
        )


@functools.cache
def _point(n_experts: int, d: int) -> _At:
    """Parameters, of two distinct slopes for a flip, and x ``(d, n)``."""
    rng = np.random.default_rng(0)
    first, last = rng.normal(size=(2, d))
    slope: Any = np.where(np.arange(n_experts)[:, None] < n_experts - 1, first, last)
    intercept: Any = rng.normal(size=n_experts)
    temperature: Any = np.asarray(rng.uniform(0.5, 1.0))
    return GateParameters(slope, intercept, temperature), rng.uniform(1, 2, (d, _POINTS))


def _logits(gate: Gate, parameters: Any, x: _Floats) -> _Floats:
    parameters = GateParameters(*(jax.device_put(np.asarray(part, float)) for part in parameters))
    return np.asarray(_compiled_logits(gate, parameters, jax.device_put(x)))


@functools.partial(jax.jit, static_argnums=0)
def _compiled_logits(gate: Gate, parameters: GateParameters, x: Array) -> Array:
    return gate.logits(parameters, x)


_compiled_density = jax.jit(log_density, static_argnums=0)


def _probabilities(gate: Gate, parameters: Any, x: _Floats) -> _Floats:
    with np.errstate(invalid="ignore"):
        return scipy.special.log_softmax(_logits(gate, parameters, x), axis=0)


def _same(one: np.ndarray, other: np.ndarray, logits: np.ndarray) -> bool:
    """Whether two arrays agree, but where either is not a number."""
    known = ~(np.isnan(one) | np.isnan(other))
    size = np.max(np.abs(logits), initial=1.0, where=np.isfinite(logits))
    return np.allclose(one[known], other[known], rtol=_ROUNDING, atol=_ROUNDING * size)
