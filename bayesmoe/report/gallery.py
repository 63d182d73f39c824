"""Every figure that the package draws, with what it shows and what makes it.

What figures of models are drawn from is given (`Models`); `compute` makes it from shipped data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from bayesmoe.data.table import Table, read_table
from bayesmoe.diagnostics.analysis import Analysis, analyse
from bayesmoe.diagnostics.comparison import Comparison, compare_models
from bayesmoe.diagnostics.posterior import sample_posterior
from bayesmoe.diagnostics.requests import FitRequest
from bayesmoe.inference.annealing import Annealing, anneal
from bayesmoe.models import moe
from bayesmoe.report.annealing_figure import annealing_figure
from bayesmoe.report.compare_figure import compare_figure
from bayesmoe.report.dependence_figure import dependence_figure
from bayesmoe.report.figures import study_figures
from bayesmoe.report.fit_figures import fit_figures
from bayesmoe.report.html import environment, svg
from bayesmoe.report.pairs_figure import pairs_figure
from bayesmoe.report.ray_figure import Series, ray_figure
from bayesmoe.study.scenario import scenario

#: the preset whose study is drawn
PLAN = "quick"

FIT = FitRequest("motorcycle", "acceleration_g", (), "softmax", {}, 4)
_COMPARED, _RESPONSE = "ethanol", "nox"
_GATES, _EXPERTS = ("softmax", "activation_dense_to_sparse"), (1, 2, 3)
_WITH_TEMPERATURE = ("dense_to_sparse", "activation_dense_to_sparse")
_SIZES = (300, 3000)  # of the posteriors along the ray
_PLANE_SIZE = 400
_REM_PER_INCH = 6.0  # images keep their size, so that texts of all figures are as large

Observe = Callable[[str], None]


class Models(NamedTuple):
    """Fits of shipped data, for the figures that are not of a study.

    Attributes
    ----------
    fit
        From `analyse`, by one covariate.
    plane
        From `analyse`, by two.
    comparison
        From `bayesmoe.compare_models`.
    annealings
        From `bayesmoe.anneal`.
    rays
        Posteriors at growing sample sizes.
    """

    fit: Analysis
    plane: Analysis
    comparison: Comparison
    annealings: Sequence[Annealing]
    rays: Sequence[Series]


class Picture(NamedTuple):
    """A figure of the gallery.

    Attributes
    ----------
    name
        Of its files.
    title, caption
        What it is, and in one line what it shows.
    recipe
        The command, or the Python, that makes it.
    figure
        The figure.
    """

    name: str
    title: str
    caption: str
    recipe: str
    figure: Figure


# --- what is drawn


def compute(observe: Observe = lambda text: None) -> Models:
    """Fit, compare, anneal and sample the shipped data; ``observe`` is told what is begun."""
    observe(f"{FIT.data}: MLE, MAP and posterior")
    fit = _fit()
    observe("two covariates: MLE, MAP and posterior")
    plane = _fit_plane()
    comparison = _compare(lambda text: observe(f"{_COMPARED}: {text}"))
    observe(f"{FIT.data}: annealing")
    annealings = _anneal()
    observe("posteriors along a ray, and where there is none")
    return Models(fit, plane, comparison, annealings, _sample())


def _fit() -> Analysis:
    table = read_table(FIT.data, FIT.response)
    model = FIT.model([str(name) for name in table.x.columns])
    return analyse(model, table, key=FIT.seed)


def _fit_plane() -> Analysis:
    x, y = (np.asarray(part) for part in scenario("plane").simulate(0, _PLANE_SIZE))
    table = Table(pd.DataFrame(x, columns=["u", "v"]), pd.Series(y, name="y"))
    return analyse(moe("softmax", 2), table)


_PLANE = f"""\
import numpy as np
import pandas as pd

import bayesmoe as bm
from bayesmoe.data.table import Table
from bayesmoe.diagnostics.analysis import analyse
from bayesmoe.report.NAME_figure import NAME_figure

x, y = (np.asarray(part) for part in bm.scenario("plane").simulate(0, {_PLANE_SIZE}))
table = Table(pd.DataFrame(x, columns=["u", "v"]), pd.Series(y, name="y"))
NAME_figure(analyse(bm.moe("softmax", 2), table))"""


def _compare(observe: Observe) -> Comparison:
    models = [moe("softmax", 1) if k == 1 else moe(gate, k) for gate in _GATES for k in _EXPERTS]
    return compare_models(models, read_table(_COMPARED, _RESPONSE), key=0, observe=observe)


_COMPARE = (
    f"bayesmoe compare {_COMPARED} --response {_RESPONSE} --gates {','.join(_GATES)} "
    f"--experts {','.join(map(str, _EXPERTS))} --out results/models"
)


def _anneal() -> list[Annealing]:
    x, y = read_table(FIT.data, FIT.response)
    return [anneal(moe(gate, 3), x.to_numpy(), y.to_numpy()) for gate in _WITH_TEMPERATURE]


_ANNEAL = f"""\
import bayesmoe as bm
from bayesmoe.data.table import read_table
from bayesmoe.report.annealing_figure import annealing_figure

x, y = read_table("{FIT.data}", "{FIT.response}")
gates = {list(_WITH_TEMPERATURE)}
annealing_figure([bm.anneal(bm.moe(gate, 3), x, y) for gate in gates])""".replace("'", '"')


def _sample() -> list[Series]:
    found = []
    for gate in _WITH_TEMPERATURE:
        truth, model = scenario("lambda", gate), moe(gate, 2)
        posteriors = {n: sample_posterior(model, *truth.simulate(n, n)) for n in _SIZES}
        found.append(Series(model, truth, posteriors))
    return found


_SAMPLE = f"""\
import bayesmoe as bm
from bayesmoe.report.pairs_figure import pairs_figure
from bayesmoe.report.ray_figure import Series, ray_figure

series = []
for gate in {list(_WITH_TEMPERATURE)}:
    truth, model = bm.scenario("lambda", gate), bm.moe(gate, 2)
    data = {{n: truth.simulate(n, n) for n in {list(_SIZES)}}}
    posteriors = {{n: bm.sample_posterior(model, x, y) for n, (x, y) in data.items()}}
    series.append(Series(model, truth, posteriors))
ray_figure(series)""".replace("'", '"')


# --- the pictures

_STUDY = {
    "contraction": (
        "Contraction",
        "Losses against the sample size: how fast every estimator approaches the truth, beside the "
        "expected rate in grey.",
    ),
    "replicates": (
        "Replicates",
        "The loss of every replicate, of which the figures of losses have medians and quartiles.",
    ),
    "rates": (
        "Rates",
        "All slopes with their intervals beside the expected exponents; at zero, nothing "
        "contracts.",
    ),
    "blocks": (
        "Parameter blocks",
        "Errors of each block of parameters, and the posterior standard deviation of τ.",
    ),
    "local_slopes": (
        "Local slopes",
        "Slopes between neighbouring sample sizes: whether a rate has settled.",
    ),
    "temperature_sd": (
        "Spread of the temperature",
        "A flat line says that more data teach nothing about τ.",
    ),
}


_FIT = {
    "fit": (
        "A fit",
        "Data, the experts' lines at the MAP, posterior bands, and gate probabilities below.",
    ),
    "densities": (
        "Predictive densities",
        "What is expected of the response at some values of the covariate, beside rows near them.",
    ),
    "calibration": (
        "Calibration",
        "Each observation among what the others predict of it: points should fill the square.",
    ),
    "residuals": (
        "Residuals",
        "How far each observation is off, as a standard normal number if the model is right.",
    ),
    "influence": (
        "Influence of rows",
        "Pareto k of each row: above the line, the posterior hangs on it.",
    ),
    "optima": (
        "Optima by start",
        "How far below the best every start ended, and how many found each optimum.",
    ),
}
_TWO = {
    "dependence": (
        "Along each covariate",
        "Partial dependence: mean response and gate probabilities, all else as observed.",
    ),
    "pairs": (
        "Pairs of covariates",
        "Which expert is at work where: rows by expert, and gate probabilities behind them.",
    ),
}


def draw(results: xr.Dataset, slopes: pd.DataFrame, models: Models) -> list[Picture]:
    """All pictures, those of the study first.

    Parameters
    ----------
    results, slopes
        As for `study_figures`: a study of one scenario and prior.
    models
        From `compute`.
    """
    found = []
    for name, figure in study_figures(results, slopes).items():
        kind, number = name.split("_k") if name.startswith("blocks_k") else (name, "")
        title, caption = _STUDY[kind]
        title = f"{title}, k = {number}" if number else title
        recipe = f"bayesmoe study run {PLAN} --out results/{PLAN}  # figures/{name}.svg"
        found.append(Picture(name, title, caption, recipe, figure))
    return [*found, *_draw_fit(models.fit), *_draw_plane(models.plane), *_draw_others(models)]


def _draw_fit(fit: Analysis) -> list[Picture]:
    command = FIT.command(f"results/{FIT.data}")
    return [
        Picture(name, *_FIT[name], f"{command}  # {name}.svg", figure)
        for name, figure in fit_figures(fit).items()
    ]


def _draw_plane(plane: Analysis) -> list[Picture]:
    figures = {"dependence": dependence_figure(plane), "pairs": pairs_figure(plane)}
    return [
        Picture(name, *_TWO[name], _PLANE.replace("NAME", name), figure)
        for name, figure in figures.items()
    ]


def _draw_others(models: Models) -> list[Picture]:
    return [
        Picture(
            "comparison", "Comparison of models",
            "How much worse than the best each model predicts rows left out, with ± 2 standard "
            "errors.",
            f"{_COMPARE}  # comparison.svg", compare_figure(models.comparison),
        ),
        Picture(
            "annealing", "Annealing",
            "What the likelihood and the number of active experts do while the temperature falls.",
            _ANNEAL, annealing_figure(models.annealings),
        ),
        Picture(
            "ray", "A ray",
            "Draws of gate slope and temperature: along a ray they stay spread however many the "
            "data.",
            _SAMPLE, ray_figure(models.rays),
        ),
    ]  # fmt: skip


def render_gallery(pictures: Sequence[Picture]) -> str:
    """One HTML page that needs nothing else, with all pictures."""
    shown = [
        {
            **picture._asdict(),
            "source": svg(picture.figure),
            "width": round(_REM_PER_INCH * picture.figure.get_figwidth(), 2),
        }
        for picture in pictures
    ]
    return environment().get_template("gallery.html").render(title="Gallery", pictures=shown)
