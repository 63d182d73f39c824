"""What the command line prints: progress and tables."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Any

import pandas as pd
import xarray as xr
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from bayesmoe.diagnostics.analysis import Analysis, estimates, posterior_summary
from bayesmoe.diagnostics.comparison import Comparison
from bayesmoe.diagnostics.verdict import Checks
from bayesmoe.report._samplers import count_words
from bayesmoe.report.style import ESTIMATOR_LABELS, STATUS_LABELS, estimate, number, specification
from bayesmoe.study.plan import Cell, Plan
from bayesmoe.study.progress import Estimate
from bayesmoe.study.results import measure_samplers, reason

#: the quantities of the table at the end of a study; losses are normalised
SHOWN = {
    "normalised_loss": "Voronoi loss",
    "normalised_identified_loss": "Voronoi loss modulo ray",
    "temperature_sd": "posterior sd of τ",
}

_SUMMARY = {
    "mean": "mean",
    "sd": "sd",
    "eti90_lb": "5 %",
    "eti90_ub": "95 %",
    "ess_bulk": "ESS",
    "r_hat": "R-hat",
}
_MOST_FAILURES = 20
_LOG_EVERY = 20.0  # seconds between lines where there is no terminal


class StudyProgress:
    """A bar with the time left; plain lines where the output is no terminal."""

    def __init__(self, plan: Plan, finished: Collection[Cell]) -> None:
        cells = list(plan.cells())
        done = [cell for cell in cells if cell in finished]
        self._console = Console(stderr=True)
        self._counts = len(done), len(cells)
        self._printed = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[cells]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            speed_estimate_period=3600,
        )
        self._task = self._progress.add_task(
            plan.name, total=sum(cell.cost for cell in cells), cells=self._text()
        )
        self._progress.update(self._task, completed=sum(cell.cost for cell in done))

    def _text(self) -> str:
        return f"{self._counts[0]}/{self._counts[1]} cells"

    def advance(self, cell: Cell) -> None:
        """Count a finished cell."""
        self._counts = self._counts[0] + 1, self._counts[1]
        self._progress.update(self._task, advance=cell.cost, cells=self._text())
        if not self._console.is_terminal and time.monotonic() - self._printed > _LOG_EVERY:
            self._printed = time.monotonic()
            self._console.print(f"{self._text()}, {self._left()}")

    def _left(self) -> str:
        remaining = self._progress.tasks[0].time_remaining
        return "time left unknown" if remaining is None else f"about {remaining:.0f} s left"

    def finish(self, what: str) -> None:
        """Say what is being done after the last cell."""
        self._progress.update(self._task, description=what)

    def __enter__(self) -> StudyProgress:
        self._progress.start()
        if self._counts[0]:
            self._console.print(f"going on: {self._text()} are there")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()


def print_study(results: xr.Dataset, slopes: pd.DataFrame, counts: pd.DataFrame) -> None:
    """Per gate and setting, a row per estimator and quantity: slope, expected, converged fits.

    Below it is said which sampler the posteriors come from, where not all are by NUTS.
    """
    console = Console()
    console.print("Slopes of log error against log n, with 95 % intervals", style="bold")
    several = [name for name in ("scenario", "prior") if results.sizes[name] > 1]
    keys = ["scenario", "prior", "gate", "n_experts"]
    samplers = measure_samplers(results)
    drawn = {} if samplers.empty else dict(list(samplers.groupby(keys)))
    for key, rows in slopes[slopes["quantity"].isin(SHOWN)].groupby(keys, sort=False):
        where: dict[str, Any] = dict(zip(keys, key, strict=True))
        true = int(results["n_experts_true"].sel(scenario=where["scenario"], gate=where["gate"]))
        title = [str(results["gate_label"].sel(gate=where["gate"]).item())]
        title += [specification(int(where["n_experts"]), true)]
        title += [f"{name} {where[name]}" for name in several]
        console.print("\n" + ", ".join(title), highlight=False)
        console.print(_slope_table(rows, results.sel(where)["converged"]))
        if key in drawn:
            console.print(count_words(drawn[key]), highlight=False)
    _print_failures(console, results, counts)


def _slope_table(rows: pd.DataFrame, converged: xr.DataArray) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for heading, width in (("estimator", 9), ("quantity", 23)):
        table.add_column(heading, min_width=width)
    for heading, width in (("slope", 20), ("expected", 10), ("converged", 9)):
        table.add_column(heading, justify="right", min_width=width)
    for _, row in rows.iterrows():
        fits = converged.sel(estimator=row["estimator"])
        table.add_row(
            ESTIMATOR_LABELS[row["estimator"]],
            SHOWN[row["quantity"]],
            estimate(row["slope"], row["low"], row["high"]),
            str(row["expected_text"]),
            f"{int(fits.sum())}/{fits.size}",
        )
    return table


def _print_failures(console: Console, results: xr.Dataset, counts: pd.DataFrame) -> None:
    for _, row in counts[counts["status"] != "converged"].iterrows():
        label = str(results["gate_label"].sel(gate=row["gate"]).item())
        status = STATUS_LABELS.get(row["status"], row["status"])
        console.print(
            f"{row['count']} of {label}, k = {row['n_experts']}, "
            f"{ESTIMATOR_LABELS[row['estimator']]}: {status}",
            highlight=False,
        )


def print_failures(failures: Mapping[Cell, str]) -> None:
    """The cells that failed, by the last line of their tracebacks."""
    console = Console()
    if failures:
        number = "1 cell" if len(failures) == 1 else f"{len(failures)} cells"
        console.print(f"{number} failed; repeating the command tries again", style="bold")
    for cell, traceback in list(failures.items())[:_MOST_FAILURES]:
        console.print(f"{cell}: {reason(traceback)}", highlight=False, markup=False)
    if len(failures) > _MOST_FAILURES:
        console.print(f"and {len(failures) - _MOST_FAILURES} more")


def print_status(counts: pd.DataFrame) -> None:
    """Cells that are there, missing and failed, for each model and in all."""
    numbers = ["there", "missing", "failed"]
    names = [name for name in ("scenario", "gate", "n_experts") if name != "scenario"
             or counts["scenario"].nunique() > 1]  # fmt: skip
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column({"n_experts": "k"}.get(name, name))
    for name in numbers:
        table.add_column(name, justify="right")
    for _, row in counts.iterrows():
        table.add_row(*(str(row[name]) for name in (*names, *numbers)))
    table.add_row("all", *[""] * (len(names) - 1), *(str(counts[name].sum()) for name in numbers))
    Console().print(table)


def print_plan(total: int, missing: int, estimate: Estimate, draws: int) -> None:
    """How many cells there are to compute, how long that takes, and the bytes of their draws."""
    console = Console(soft_wrap=True)
    console.print(f"{total} cells, {total - missing} of them there, {missing} to compute")
    console.print(f"core time: {duration(estimate.seconds)} ({estimate.basis})")
    if draws:
        console.print(f"kept draws: at most {draws / 1e6:.3g} MB on disk")


def duration(seconds: float) -> str:
    """A time in the largest unit that fits."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.1f} {unit}"
    return f"about {seconds:.0f} seconds"


def print_analysis(analysis: Analysis) -> None:
    """Statuses, estimates and the posterior summary of a fit."""
    console = Console()
    for name, fit in (("MLE", analysis.mle), ("MAP", analysis.map)):
        console.print(
            f"{name}: log-likelihood {fit.log_likelihood:.4f}; {fit.status.value}", highlight=False
        )
    console.print(_checks_table(analysis.checks))
    console.print(_frame_table(estimates(analysis), "Point estimates"))
    summary = posterior_summary(analysis.posterior, analysis.model.gate)
    console.print(_frame_table(summary[list(_SUMMARY)].rename(columns=_SUMMARY), "Posterior"))


_LEAST_WIDTH = 118  # columns that a comparison's table needs


def print_comparison(comparison: Comparison) -> None:
    """The table of all models, and the recommendation below it."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _LEAST_WIDTH)
    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    headings = ("p", "log-lik.", "AIC", "BIC", "ICL", "elpd", "difference", "weight", "experts")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in comparison.to_frame().iterrows():
        table.add_row(*_comparison_row(str(name), row), style="bold" if row["recommended"] else "")
    console.print(table)
    console.print(escape(f"\n{comparison}"), highlight=False, soft_wrap=True)


def _comparison_row(name: str, row: pd.Series) -> list[str]:
    criteria = [number(row[column], 1) for column in ("aic", "bic", "icl", "elpd")]
    compared = ["unreliable", ""]
    if row["reliable"]:
        difference = f"{number(row['elpd_diff'], 1)} ± {number(row['elpd_diff_se'], 1)}"
        compared = [difference, number(row["weight"])]
    return [
        escape(name), str(row["n_parameters"]), number(row["log_likelihood"]), *criteria, *compared,
        number(row["effective_experts"], 1),
    ]  # fmt: skip


def _checks_table(checks: Checks) -> Table:
    table = Table(title=f"Posterior: {checks.verdict.label}", box=None, title_justify="left")
    for heading in ("check", "verdict"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what was found")
    for check in checks.checks:
        table.add_row(check.name, check.verdict.label, escape(check.text))
    return table


def _frame_table(frame: pd.DataFrame, title: str) -> Table:
    table = Table(title=title)
    table.add_column(str(frame.index.name), overflow="fold")
    for name in frame.columns:
        table.add_column(str(name), justify="right", no_wrap=True)
    for label, row in frame.iterrows():
        table.add_row(escape(str(label)), *(f"{value:.4g}" for value in row))
    return table
