"""Writing figures and reports: everything appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import xarray as xr

from bayesmoe.data.formula import Design
from bayesmoe.diagnostics.analysis import Analysis, estimates, posterior_summary
from bayesmoe.diagnostics.requests import FitRequest
from bayesmoe.diagnostics.stored_comparison import (
    MODELS,
    StoredComparison,
    load_comparison,
    save_comparison,
)
from bayesmoe.diagnostics.stored_fit import FITS, StoredFit, load_fit, save_fit
from bayesmoe.report._columns import formula_sweeps, load_sweeps, save_sweeps
from bayesmoe.report.compare_figure import compare_figure
from bayesmoe.report.compare_html import render_comparison
from bayesmoe.report.figures import save, study_figures
from bayesmoe.report.fit_figures import fit_figures
from bayesmoe.report.fit_html import render_fit
from bayesmoe.report.gallery import Picture, render_gallery
from bayesmoe.report.html import render_study
from bayesmoe.study.files import write_bytes
from bayesmoe.study.outputs import write_outputs
from bayesmoe.study.stored import RESULTS_NAME, Stored

PAGE, INDEX = "report.html", "index.html"
_HIDDEN = ".bayesmoe-"  # names of unfinished results begin so


def write_study(
    directory: Path, results: xr.Dataset, slopes: pd.DataFrame, counts: pd.DataFrame
) -> Path:
    """Write the figures (PNG and SVG) and ``report.html`` of a study; the latter's path."""
    pictures = {}
    for name, figure in study_figures(results, slopes).items():
        _, drawn = save(figure, directory / "figures" / name)
        pictures[name] = drawn.read_bytes()
    path = directory / PAGE
    write_bytes(path, render_study(results, slopes, counts, pictures).encode())
    return path


def check_new(directory: Path) -> None:
    """Raise ValueError unless ``directory`` is missing or empty, and can be written."""
    target = Path(os.path.realpath(directory))
    try:
        if target.exists() and not _is_empty(target):
            raise ValueError(
                f"{directory} exists and is not an empty directory; choose another --out"
            )
        there = next(path for path in (target, *target.parents) if path.exists())
        with tempfile.TemporaryDirectory(prefix=_HIDDEN, dir=there) as scratch:
            # names may be too long
            (Path(scratch) / target.relative_to(there)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{directory} cannot be made or written: {error.strerror}; choose another --out"
        ) from None


def _is_empty(directory: Path) -> bool:
    return directory.is_dir() and not any(directory.iterdir())


def write_analysis(
    directory: Path, request: FitRequest, analysis: Analysis, design: Design | None = None
) -> None:
    """Write report, estimates, starts, posterior and figures of a fit to a new directory.

    ``report.html``, ``estimates.csv``, ``starts.csv``, ``posterior_summary.csv``, ``checks.csv``,
    ``fits.nc``, ``posterior.nc``, and the figures of `fit_figures`, each as ``.png`` and ``.svg``,
    are written to a hidden directory beside it, which is then renamed, or in it, if there is one
    that is empty, and then moved; with the design of a formula, so is ``columns.nc``.
    """
    with _whole(directory) as partial:
        estimates(analysis).to_csv(partial / "estimates.csv")
        _starts(analysis).to_csv(partial / "starts.csv", index=False)
        summary = posterior_summary(analysis.posterior, analysis.model.gate)
        summary.to_csv(partial / "posterior_summary.csv")
        analysis.checks.to_frame().to_csv(partial / "checks.csv")
        save_fit(partial, request, analysis)
        if design is not None:
            save_sweeps(partial, formula_sweeps(design))
        _write_fit_page(partial, StoredFit(request, analysis))


def _write_fit_page(directory: Path, stored: StoredFit) -> Path:
    """Write the figures of `fit_figures` and ``report.html``; the latter's path."""
    figures = fit_figures(stored.analysis, stored.request.formulas, load_sweeps(directory))
    page = render_fit(stored, figures)
    for name, figure in figures.items():
        save(figure, directory / name)
    write_bytes(directory / PAGE, page.encode("utf-8", "replace"))
    return directory / PAGE


def rewrite_report(directory: Path) -> Path:
    """Write figures and ``report.html`` of a study, a fit or a comparison anew from what is stored.

    Parameters
    ----------
    directory
        The ``--out`` of ``bayesmoe study run``, ``bayesmoe fit`` or ``bayesmoe compare``.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    ValueError
        If the directory holds none, a study is not finished, or a file is damaged; nothing is
        written then.
    """
    if (directory / RESULTS_NAME).is_dir():
        return _rewrite_study(directory)
    if (directory / FITS).is_file():
        return _write_fit_page(directory, load_fit(directory))
    if (directory / MODELS).is_file():
        return _write_comparison_page(directory, load_comparison(directory))
    raise ValueError(
        f"{directory} is neither a study (it has no {RESULTS_NAME}), nor a fit (it has no {FITS}), "
        f"nor a comparison (it has no {MODELS}); give the --out of 'bayesmoe study run', "
        "'bayesmoe fit' or 'bayesmoe compare'"
    )


def _rewrite_study(directory: Path) -> Path:
    stored = Stored(directory)
    left = len(set(stored.plan.cells()) - stored.finished() - stored.failed())
    if left:
        raise ValueError(
            f"the study in {directory} lacks {left} cells; finish it with "
            "'bayesmoe study run' first"
        )
    return write_study(directory, *write_outputs(stored.plan, stored))


def write_comparison(directory: Path, stored: StoredComparison) -> None:
    """Write table, figure, recommendation, report and models of a comparison to a new directory.

    ``comparison.csv``, ``.png``, ``.svg``, ``recommendation.txt``, ``report.html`` and
    ``models.nc`` appear together, as those of `write_analysis` do.
    """
    with _whole(directory) as partial:
        save_comparison(partial, *stored)
        _write_comparison_page(partial, stored)


def _write_comparison_page(directory: Path, stored: StoredComparison) -> Path:
    """Write all of a comparison but its models; the path of ``report.html``."""
    comparison = stored.comparison
    figure = compare_figure(comparison)
    page = render_comparison(stored, figure)
    comparison.to_frame().to_csv(directory / "comparison.csv")
    write_bytes(directory / "recommendation.txt", f"{comparison}\n".encode())
    save(figure, directory / "comparison")
    write_bytes(directory / PAGE, page.encode("utf-8", "replace"))
    return directory / PAGE


def write_gallery(directory: Path, pictures: Sequence[Picture]) -> Path:
    """Write every picture as PNG and SVG, and ``index.html``, to a new directory; the page's path.

    They appear together, as those of `write_analysis` do.
    """
    with _whole(directory) as partial:
        for picture in pictures:
            save(picture.figure, partial / picture.name)
        write_bytes(partial / INDEX, render_gallery(pictures).encode())
    return directory / INDEX


@contextlib.contextmanager
def _whole(directory: Path) -> Iterator[Path]:
    """A hidden directory that becomes ``directory`` if nothing is raised.

    Raises
    ------
    OSError
        If it cannot: where all was written, the hidden directory is kept, and the error names it.
    """
    target = Path(os.path.realpath(directory))
    partial = _hidden(target)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    try:
        partial.chmod(0o755)
        _move(partial, target)
    except OSError as error:
        raise OSError(
            f"{os.strerror(error.errno or errno.EIO)}; the results are complete in {partial}: "
            "move them to another place"
        ) from None


def _hidden(directory: Path) -> Path:
    """A new hidden directory, in ``directory`` if there is one, else beside it."""
    place = directory if directory.is_dir() else directory.parent
    place.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=_HIDDEN, dir=place))


def _move(partial: Path, directory: Path) -> None:
    """Rename a directory; within an empty one, which may be a mount point, move what is in it."""
    if partial.parent != directory:
        os.replace(partial, directory)
        return
    if len(list(directory.iterdir())) > 1:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
    for path in partial.iterdir():
        os.replace(path, directory / path.name)
    partial.rmdir()


def _starts(analysis: Analysis) -> pd.DataFrame:
    """Every start of MLE and MAP: objective, status and evidence."""
    frames = []
    for name, fit in (("mle", analysis.mle), ("map", analysis.map)):
        starts = fit.starts
        frames.append(
            pd.DataFrame(
                {
                    "estimator": name,
                    "start": range(len(starts.objective)),
                    "objective": starts.objective,
                    "status": [status.name.lower() for status in starts.status],
                    "gradient_norm": starts.gradient_norm,
                    "least_curvature": starts.least_curvature,
                    "n_iterations": starts.n_iterations,
                }
            )
        )
    return pd.concat(frames)
