"""A study killed at many moments ends as one that was left in peace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from killed_study import KILLS, STAGES, stage

from bayesmoe.study.dataset import load_results
from bayesmoe.study.results import failures
from bayesmoe.study.stored import Stored


@pytest.mark.slow
def test_a_study_killed_25_times_while_it_grows_loses_nothing(tmp_path: Path) -> None:
    """Cells are made up here; `test_cli` kills the real command."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, here / "killed_study.py", whole, broken],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    killed = json.loads(run.stdout)
    assert len(killed) == STAGES * KILLS == 25
    assert all(killed)
    plan = stage(STAGES - 1)
    one, other = (load_results(Stored(path), plan) for path in (whole, broken))
    assert set(failures(one)) == {c for c in plan.cells() if c.n == 300 and c.replicate == 1}
    assert not (one["status"] == "missing").any()
    xr.testing.assert_equal(one.drop_vars("failure"), other.drop_vars("failure"))
    np.testing.assert_array_equal(one["data_digest"], other["data_digest"])
    assert set(failures(one)) == set(failures(other))
    assert not [*broken.glob(".partial-*"), *broken.glob("results.zarr/*/.partial-*")]
