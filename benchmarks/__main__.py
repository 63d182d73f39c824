"""Runs the modules named, all by default, and prints their table: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import importlib
import time

from rich.console import Console

from benchmarks.table import line, machine_facts, show
from benchmarks.timing import Entry

NAMES = (
    "likelihood", "em", "scaling", "study", "sampling", "necks", "starts", "losses", "engine",
    "data", "prediction", "accelerator",
)  # fmt: skip


def main() -> None:
    """Measure first, each entry printed as it comes; then the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(NAMES))
    names = list(dict.fromkeys(parser.parse_args().names)) or list(NAMES)
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(NAMES)}")
    console = Console(width=150, highlight=False)
    results: list[tuple[str, list[Entry]]] = []
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        start, entries = time.perf_counter(), []
        for entry in module.entries():
            console.print(f"{name}: {line(entry)}", style="dim", markup=False, soft_wrap=True)
            entries.append(entry)
        title = f"{name}: {module.__doc__.splitlines()[0]}"
        results.append((f"{title} ({time.perf_counter() - start:.0f} s)", entries))
    for title, entries in results:
        console.print()
        show(console, title, entries)
    console.print()
    for fact in machine_facts():
        console.print(fact, markup=False)


if __name__ == "__main__":
    main()
