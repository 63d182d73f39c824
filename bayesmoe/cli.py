"""The command line: ``bayesmoe study``, ``fit``, ``compare``, ``report``, ``identify`` and so on.

Errors of the user are one line on stderr and exit status 2, before anything is computed or written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bayesmoe.cli_common import Out, interruptible, read_data, user_errors, write_errors
from bayesmoe.cli_gallery import gallery
from bayesmoe.cli_study import study
from bayesmoe.core.model import MoE
from bayesmoe.data.table import shipped_data_sets
from bayesmoe.diagnostics.analysis import analyse
from bayesmoe.diagnostics.comparison import compare_models
from bayesmoe.diagnostics.requests import CompareRequest, FitRequest
from bayesmoe.diagnostics.stored_comparison import StoredComparison
from bayesmoe.diagnostics.stored_fit import StoredFit
from bayesmoe.models import GATES, make_gate, moe
from bayesmoe.report.files import (
    PAGE,
    check_new,
    rewrite_report,
    write_analysis,
    write_comparison,
)
from bayesmoe.report.identify import print_identification
from bayesmoe.report.machine import comparison_json, fit_json
from bayesmoe.report.terminal import print_analysis, print_comparison
from bayesmoe.study.scenario import SCENARIOS, Scenario, scenario
from bayesmoe.theory.identifiability import identify as find_identification

app = typer.Typer(
    help="Bayesian Gaussian mixtures of experts: MLE, MAP and posteriors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(study, name="study")
app.command("gallery")(gallery)

Data = Annotated[
    str, typer.Argument(help=f"A CSV file, or one of {', '.join(shipped_data_sets())}.")
]
Formula = Annotated[
    str | None,
    typer.Option(
        "--formula",
        help="In place of the columns: response and terms, as in 'y ~ poly(x, 2) + C(group)'.",
    ),
]
GateFormula = Annotated[
    str | None,
    typer.Option(
        "--gate-formula", help="The gate's terms, as in '~ x'; those of --formula by default."
    ),
]
Response = Annotated[str | None, typer.Option("--response", help="The column to model.")]
Covariates = Annotated[
    list[str] | None,
    typer.Option("--covariate", help="A column to model by; all others by default."),
]
GateCovariates = Annotated[
    list[str] | None,
    typer.Option(
        "--gate-covariate",
        help="A covariate that the gate depends on; all by default, none for constant weights.",
    ),
]
ExpertCovariates = Annotated[
    list[str] | None,
    typer.Option(
        "--expert-covariate",
        help="A covariate that the experts depend on; all by default, none for constant experts.",
    ),
]
DropMissing = Annotated[
    bool,
    typer.Option("--drop-missing", help="Leave out rows that lack a value; else they are refused."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seeds starts and chains.")]
GateName = Annotated[str, typer.Option("--gate", help=f"One of {', '.join(GATES)}.")]
Experts = Annotated[int, typer.Option("--experts", help="The number of experts k.")]
Activation = Annotated[
    str | None, typer.Option("--activation", help="Of the gate activation_dense_to_sparse.")
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object instead of tables; null if not finite."),
]
TopK = Annotated[int | None, typer.Option("--top-k", help="Of the gate top_k_sparse.")]


@app.command()
@interruptible()
def fit(
    data: Data,
    gate: GateName,
    experts: Experts,
    out: Out,
    response: Response = None,
    covariate: Covariates = None,
    gate_covariate: GateCovariates = None,
    expert_covariate: ExpertCovariates = None,
    formula: Formula = None,
    gate_formula: GateFormula = None,
    drop_missing: DropMissing = False,
    activation: Activation = None,
    top_k: TopK = None,
    prior: Annotated[str, typer.Option(help="weak or compact.")] = "weak",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit one model to one's own data: MLE, MAP and posterior."""
    options = _given(activation=activation, top_k=top_k)
    with user_errors():
        check_new(out)
        found = read_data(
            data,
            response,
            covariate,
            gate_covariate,
            expert_covariate,
            formula,
            gate_formula,
            drop_missing,
        )
        request = FitRequest(
            data,
            found.response,
            tuple(covariate or ()),
            gate,
            options,
            experts,
            prior,
            seed,
            found.gate_covariates,
            found.expert_covariates,
            formula,
            gate_formula,
            found.n_dropped,
        )
        model = request.model(found.columns)
        analysis = analyse(model, found.table, key=seed, axis=found.axis, observe=_tell)
    _tell("report")
    with write_errors(out):
        write_analysis(out, request, analysis, found.design)
    if as_json:
        typer.echo(fit_json(StoredFit(request, analysis), out))
        return
    print_analysis(analysis)
    typer.echo(f"report: {out / PAGE}")


@app.command()
@interruptible()
def compare(
    data: Data,
    gates: Annotated[str, typer.Option(help=f"Some of {', '.join(GATES)}, commas between.")],
    experts: Annotated[str, typer.Option(help="Numbers of experts, as in 1,2,3.")],
    out: Out,
    response: Response = None,
    covariate: Covariates = None,
    gate_covariate: GateCovariates = None,
    expert_covariate: ExpertCovariates = None,
    formula: Formula = None,
    gate_formula: GateFormula = None,
    drop_missing: DropMissing = False,
    activation: Activation = None,
    top_k: TopK = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Compare models on one's own data, and recommend one."""
    with user_errors():
        check_new(out)
        found = read_data(
            data,
            response,
            covariate,
            gate_covariate,
            expert_covariate,
            formula,
            gate_formula,
            drop_missing,
        )
        request = CompareRequest(
            data,
            found.response,
            tuple(covariate or ()),
            tuple(part.strip() for part in gates.split(",")),
            _whole_numbers(experts),
            _given(activation=activation, top_k=top_k),
            seed,
            found.gate_covariates,
            found.expert_covariates,
            formula,
            gate_formula,
            found.n_dropped,
        )
        comparison = compare_models(
            request.models(found.columns),
            found.table,
            key=seed,
            observe=_tell,
        )
    stored = StoredComparison(request, comparison)
    with write_errors(out):
        write_comparison(out, stored)
    if as_json:
        typer.echo(comparison_json(stored, out))
        return
    print_comparison(comparison)
    typer.echo(f"report: {out / PAGE}")


@app.command()
def report(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --out of a study, a fit or a comparison.")
    ],
) -> None:
    """Write the report of a study, a fit or a comparison anew from what is stored."""
    with user_errors(), write_errors(directory, "mend this and repeat the command"):
        page = rewrite_report(directory)
    typer.echo(f"report: {page}")


@app.command()
@interruptible()
def identify(
    gate: GateName,
    experts: Experts,
    activation: Activation = None,
    top_k: TopK = None,
    truth: Annotated[
        str, typer.Option("--scenario", help=f"The truth: one of {', '.join(SCENARIOS)}.")
    ] = "lambda",
    split: Annotated[
        int | None,
        typer.Option(help="For k > k*: the true expert, from 0, that fitted experts share."),
    ] = None,
    free_reference: Annotated[
        bool, typer.Option("--free-reference", help="Leave the gates of all experts free.")
    ] = False,
) -> None:
    """What data can tell of a model's parameters, how fast, and why not."""
    with user_errors():
        options = _given(activation=activation, top_k=top_k)
        model: MoE = moe(gate, experts, **options)
        known = _truth(truth, gate, options)
        found = find_identification(model, known, split=split, free_reference=free_reference)
    print_identification(found, known)


def _tell(text: str) -> None:
    """Progress goes to stderr, so that stdout has results alone."""
    typer.echo(text, err=True)


def _whole_numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--experts must be whole numbers with commas between, got {text!r}")
    return tuple(map(int, parts))


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _truth(name: str, gate: str, options: dict[str, Any]) -> Scenario:
    """The scenario under the gate; of a top-K gate at most all its experts are active."""
    if "top_k" in options and name in SCENARIOS:
        n_true = SCENARIOS[name](make_gate(gate)).n_experts
        options = {"top_k": min(options["top_k"], n_true)}
    return scenario(name, gate, **options)


def main() -> None:
    """The entry point."""
    app()
