"""Events to a report: one HTML file with plots and tables, for one run or for a comparison of several.

Layout: runs.py (what is read from events), judgement.py (the verdict), plots.py (Matplotlib), svg.py (plots
in the page), tables.py, traffic.py (more of both for simulated runs), page.py and its template. Matplotlib
and Jinja2 are imported when a report is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from freewheel.errors import ConfigurationError
from freewheel.report.judgement import verdict
from freewheel.report.runs import Repeat, Run, Summary, summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Repeat", "Run", "Summary", "figures", "render", "summarize", "verdict", "write"]


def figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """The plots of a report, by name; a plot for which nothing was recorded is left out.

    Args:
        runs: one run, or several to compare; those of the same label are repeats.

    Raises:
        ConfigurationError: no runs.

    Example:
        >>> from freewheel.events import Evaluated, RunStarted
        >>> start = RunStarted("hogwild", "threads", 2, 16, 0, 1000, None, 10, None)
        >>> list(figures([Run("mine", (start, Evaluated(1.0, 500, 0.5, {"accuracy": 0.8})))]))
        ['metric_by_seconds', 'metric_by_samples']
    """
    from freewheel.report import plots, traffic

    runs = _checked(runs)
    return {**plots.figures(runs), **traffic.figures(runs)}


def render(runs: Sequence[Run], title: str | None = None, *, baseline: str | None = None) -> str:
    """The report as a string of HTML; see :func:`write`."""
    from freewheel.report import page

    runs = _checked(runs)
    return page.render(runs, title if title is not None else _title(runs), figures(runs), baseline)


def write(
    runs: Sequence[Run],
    path: str | Path,
    title: str | None = None,
    *,
    png: bool = False,
    baseline: str | None = None,
) -> Path:
    """Writes the report: one HTML file that works offline, in light and dark, and on a phone.

    Args:
        runs: one run gives its report, several a comparison; runs of the same label are repeats.
        path: the HTML file; missing folders are made.
        title: the heading; made from the labels if left out.
        png: also write each plot as ``NAME.png`` into the folder ``<stem>-figures`` beside the file.
        baseline: the label of the synchronous runs to judge by; the fastest if left out, see :func:`verdict`.

    Returns:
        The path of the HTML file.

    Raises:
        ConfigurationError: no runs, or the files cannot be written.

    Example:
        >>> import tempfile
        >>> from freewheel.events import RunStarted
        >>> run = Run("mine", (RunStarted("hogwild", "threads", 2, 16, 0, 1000, None, 10, None),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write([run], Path(folder) / "report.html").name
        'report.html'
    """
    path = Path(path)
    page = render(runs, title, baseline=baseline)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
        if png:
            folder = path.with_name(f"{path.stem}-figures")
            folder.mkdir(exist_ok=True)
            for name, figure in figures(runs).items():
                figure.savefig(folder / f"{name}.png", dpi=160)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write the report to {path}: {error.strerror or error}; choose another `path`"
        ) from error
    return path


def _checked(runs: Sequence[Run]) -> list[Run]:
    runs = list(runs)
    if not runs:
        raise ConfigurationError(
            "`runs` must hold at least one run, got none; read them with Run.from_directory()"
        )
    return runs


def _title(runs: Sequence[Run]) -> str:
    labels = list(dict.fromkeys(run.label for run in runs))
    return " against ".join(labels) if len(labels) <= 2 else f"{len(labels)} methods compared"
