"""The tables and figures of docs/guide/data_sets.md: ``make tables``, by `bayesmoe compare` alone.

For each data set that ships with the package: ``docs/tables/NAME.csv``, selected columns of
``comparison.csv``, rounded; ``docs/tables/NAME.txt``, what the command recommends; and
``docs/figures/compare_NAME.png``. A comparison that is there already is not computed again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

DOCS = Path(__file__).resolve().parent
RESPONSES = {
    "co2": ("--response", "co2", "--covariate", "gnp"),
    "ethanol": ("--response", "nox"),
    "motorcycle": ("--response", "acceleration_g"),
    "tone": ("--response", "tuned"),
}
GATES = ("softmax", "dense_to_sparse", "activation_dense_to_sparse")
EXPERTS = (1, 2, 3)

#: columns of comparison.csv that are shown as they are: name in the table, and digits
COLUMNS: dict[str, tuple[str, int]] = {
    "n_parameters": ("p", 0),
    "log_likelihood": ("log-likelihood", 2),
    "bic": ("BIC", 1),
    "elpd": ("elpd", 1),
}


def command(name: str, out: Path) -> list[str]:
    """The words of the command line that compares models on a data set."""
    return [
        "bayesmoe", "compare", name, *RESPONSES[name], "--gates", ",".join(GATES),
        "--experts", ",".join(map(str, EXPERTS)), "--out", str(out / name),
    ]  # fmt: skip


def shown(comparison: pd.DataFrame) -> pd.DataFrame:
    """What the page shows of ``comparison.csv``, as texts."""
    columns = {
        title: [_number(value, digits) for value in comparison[name]]
        for name, (title, digits) in COLUMNS.items()
    }
    apart = zip(comparison["elpd_diff"], comparison["elpd_diff_se"], strict=True)
    return pd.DataFrame(
        {
            "model": comparison["model"],
            **columns,
            "less the best": [_difference(*pair) for pair in apart],
            "MLE": comparison["mle_status"].str.replace("_", " "),
            "recommended": comparison["recommended"].map({True: "yes", False: ""}),
        }
    )


def _number(value: float, digits: int) -> str:
    return f"{value:z.{digits}f}".replace("-", "−")


def _difference(difference: float, error: float) -> str:
    if pd.isna(difference):
        return "unreliable"
    return f"{_number(difference, 1)}\u00a0±\u00a0{_number(error, 1)}" if difference else "best"


def write(name: str, results: Path) -> None:
    """Table, recommendation and figure of a data set, from the directory of its comparison."""
    comparison = pd.read_csv(results / "comparison.csv")
    shown(comparison).to_csv(DOCS / "tables" / f"{name}.csv", index=False)
    sentences = (results / "recommendation.txt").read_text("utf-8").splitlines()
    listed = "".join(f"- {sentence}\n" for sentence in sentences if sentence)
    (DOCS / "tables" / f"{name}.txt").write_text(listed, encoding="utf-8")
    shutil.copyfile(results / "comparison.png", DOCS / "figures" / f"compare_{name}.png")


def main() -> None:
    """Compare models on every data set, and write what the page shows."""
    parser = argparse.ArgumentParser(prog="docs/tables.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"))
    out = parser.parse_args().out
    for name in RESPONSES:
        words = command(name, out)
        if (out / name / "comparison.csv").exists():
            print(f"{out / name} is there and used; remove it to compute it anew")
        else:
            print(" ".join(words), flush=True)
            subprocess.run([str(Path(sys.executable).with_name(words[0])), *words[1:]], check=True)
        write(name, out / name)


if __name__ == "__main__":
    main()
