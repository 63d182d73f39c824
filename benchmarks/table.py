"""The table of all measurements, and the machine that they were made on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Entry, Figure, Row, Skipped

_PACKAGES = (
    "bayesmoe", "jax", "jaxlib", "numpyro", "numpy", "nutpie", "pymc", "cgmm", "scikit-learn",
    "statsmodels",
)  # fmt: skip
_MARK = {True: "met", False: "MISSED", None: ""}


def show(console: Console, title: str, entries: list[Entry]) -> None:
    """Print one module's entries: ratios, other figures, and what was skipped."""
    rows = [entry for entry in entries if isinstance(entry, Row)]
    figures = [entry for entry in entries if isinstance(entry, Figure)]
    if rows:
        columns = ["what", "beside", "ours", "theirs", "ratio", "middle half", "wanted", ""]
        console.print(_table(title, columns, [_row_cells(row) for row in rows]))
    if figures:
        cells = [[f.what, f.value, f.wanted, _MARK[f.met]] for f in figures]
        console.print(_table(title, ["what", "measured", "wanted", ""], cells))
    for entry in entries:
        if isinstance(entry, Skipped):
            console.print(line(entry), style="bold", markup=False)


def line(entry: Entry) -> str:
    """An entry in one line."""
    if isinstance(entry, Row):
        what, peer, ours, theirs, ratio, spread, *_ = _row_cells(entry)
        return f"{what}: {ours}; {peer}: {theirs}; ratio {ratio} {spread}"
    if isinstance(entry, Figure):
        return f"{entry.what}: {entry.value}"
    return f"SKIPPED {entry.what}: {entry.why}"


def machine_facts() -> list[str]:
    """Lines on processor, cores and versions."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = ", ".join(str(device) for device in jax.devices())
    return [
        f"processor: {_processor()}, {os.cpu_count()} cores, {usable} usable; JAX: {devices}",
        f"system: {platform.platform()}, Python {platform.python_version()}",
        "versions: " + ", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
    ]


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for cells in rows:
        table.add_row(*cells)
    return table


def _row_cells(row: Row) -> list[str]:
    wanted = "" if row.least is None else f"at least {row.least:g}"
    wanted += "" if row.most is None else f"at most {row.most:g}"
    return [
        row.what,
        row.peer,
        _quantity(row.ours, row.unit),
        _quantity(row.theirs, row.unit),
        f"{row.ratio:.3g}",
        f"{row.low:.3g} to {row.high:.3g}",
        wanted,
        _MARK[row.met],
    ]


def _quantity(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:.3g} {unit}"
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
