"""Tables, pictures and pages of runs from their results alone: `python main.py report RUN ...`.

Nothing else is needed: results.json says it all, and analysis.json where a run was analysed. Neither is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from utils.files import refuse_links, storage_errors_told
from utils.report.analysis import ANALYSIS, read_analysis
from utils.report.analysis_page import write_analysis_page
from utils.report.page import write_report
from utils.report.results import read_results, write_tables
from utils.run.runs import newest_holding
from utils.terminal import show


def rebuild(runs: Sequence[Path]) -> list[Path]:
    """Write the tables, pictures and pages of every run that can be read, and say where the pages are.

    Args:
        runs: each a run's folder, its results.json, or an experiment's folder (its newest run with results).

    Returns:
        The pages.

    Raises:
        UserError: some of them could not be made; the others are.
    """
    pages, problems = [], []
    for run in runs:
        try:
            made = _rebuilt(results_folder(run))
        except UserError as error:
            problems.append(str(error))
            continue
        pages += made
        for page in made:
            show(f"report: {page}")
    if problems:
        done = f" ({len(runs) - len(problems)} of {len(runs)} runs are done)" if len(runs) > 1 else ""
        raise UserError(f"report: {'; '.join(problems)}{done}")
    return pages


def results_folder(run: Path) -> Path:
    """The folder whose results.json `run` means. Raises UserError: there is none."""
    if run.name == "results.json" and run.is_file():
        return run.parent
    found = newest_holding(run, "results.json")
    if found is None:
        problem = "does not exist" if not run.exists() else "holds no results.json, nor does any folder in it"
        raise UserError(f"{run} {problem}; name runs that finished a seed, such as logs/slca_demo")
    return found


def _rebuilt(folder: Path) -> list[Path]:
    """The pages of one run. Raises UserError."""
    result = read_results(folder / "results.json")
    if not result.seeds:
        raise UserError(f"{folder / 'results.json'} holds no finished seed; continue the run with --resume")
    refuse_links(folder)
    with storage_errors_told(folder / "report.html"):
        write_tables(result, folder)
        pages = [write_report(result, folder)]
        if (folder / ANALYSIS).is_file():
            pages.append(write_analysis_page(read_analysis(folder), folder))
    return pages
