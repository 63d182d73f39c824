"""Which sampler the posteriors of a study come from, in words and rows.

Tables are those of `bayesmoe.study.results.measure_samplers`, empty where all are by NUTS.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bayesmoe.inference.laplace import MAX_PARETO_K
from bayesmoe.report.style import number, size_text
from bayesmoe.study.sampling import LAPLACE, NUTS

_COUNTS = [LAPLACE, NUTS]

#: what becomes of an approximation that was tried, in words
RULE = (
    f"kept where the Pareto k of its weights is at most {MAX_PARETO_K:g} and its proposals are "
    "worth as many independent draws as are taken; all other posteriors are by NUTS"
)


def sampler_words(samplers: pd.DataFrame) -> str:
    """What a plan has drawn posteriors by, and what came of it."""
    if samplers.empty:
        return "NUTS"
    return f"Laplace's approximation, resampled by importance, {RULE}: {count_words(samplers)}"


def count_words(samplers: pd.DataFrame) -> str:
    """``13 of 16 posteriors by Laplace's approximation, 3 by NUTS``, out of a table's rows."""
    laplace, nuts = (int(samplers[name].sum()) for name in _COUNTS)
    return (
        f"{size_text(laplace)} of {size_text(laplace + nuts)} posteriors by Laplace's "
        f"approximation, {size_text(nuts)} by NUTS"
    )


def sampler_rows(samplers: pd.DataFrame, labels: dict[str, str]) -> list[dict[str, Any]]:
    """Per scenario, prior, gate and k: how many posteriors each sampler drew, and in what time.

    ``share`` and ``pareto_k`` have the values at the smallest and the largest n.
    """
    if samplers.empty:
        return []
    rows = []
    for _, group in samplers.groupby(["scenario", "prior", "gate", "n_experts"], sort=False):
        first, ends = group.iloc[0], group.iloc[[0, -1]]
        rows.append(
            {
                "scenario": first["scenario"],
                "prior": first["prior"],
                "gate": labels[first["gate"]],
                "k": int(first["n_experts"]),
                **{name: int(group[name].sum()) for name in _COUNTS},
                "share": " → ".join(
                    f"{row[LAPLACE]}/{row[LAPLACE] + row[NUTS]}" for _, row in ends.iterrows()
                ),
                "pareto_k": " → ".join(number(value) for value in ends["pareto_k"]),
                "seconds": " / ".join(
                    number(float(group[f"{name}_seconds"].median())) for name in _COUNTS
                ),
            }
        )
    return rows
