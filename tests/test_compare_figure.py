"""The figure of a comparison: points, bars, labels and what is marked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bayesmoe.report.compare_figure import compare_figure


@pytest.mark.parametrize("reliable", [True, False])
def test_models_are_points_with_bars_of_two_standard_errors(reliable: bool) -> None:
    frame = pd.DataFrame(
        {
            "elpd_diff": [0.0, -6.0 if reliable else np.nan],
            "elpd_diff_se": [0.0, 2.5 if reliable else np.nan],
            "weight": [1.0, 0.0 if reliable else np.nan],
            "reliable": [True, reliable],
            "recommended": [not reliable, reliable],
        },
        index=["wide", "$simple$"],
    )
    table = SimpleNamespace(y=pd.Series(np.zeros(28), name="co2"))
    comparison: Any = SimpleNamespace(to_frame=lambda: frame, table=table)
    (ax,) = compare_figure(comparison).axes
    bars = [bar for bar in ax.containers if bar.get_label() == "_model"]
    segments = [bar.lines[2][0].get_segments()[0] for bar in bars]
    expected = [[[0, 0], [0, 0]], [[-11, 1], [-1, 1]]][: 1 + reliable]
    np.testing.assert_allclose(segments, expected)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["wide", r"\$simple\$"]
    texts = {(text.get_text(), text.xy[1]) for text in ax.texts}
    assert ("recommended", int(reliable)) in texts
    assert ("−6.0 ± 2.5" if reliable else "unreliable", 1) in texts
