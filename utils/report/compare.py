"""Several runs side by side: one table (Markdown, CSV, LaTeX, terminal), one picture with all curves, one page.

    python main.py compare logs/finetune_demo logs/slca_demo --out logs/compare

Runs are compared only where that means something: on another data set or another number of classes it is an
error; other splits into tasks, seeds, weights, sizes, epochs, versions or machines are allowed and told loudly above the table. A
run of one task (joint training) is an upper bound: it has no average or forgetting and takes no part in "best".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils.errors import UserError
from utils.files import bytes_of_file, encodable, write_atomic
from utils.report.comparable import check_comparable, settings_that_differ
from utils.report.compare_page import page_context, settings_shown
from utils.report.compare_paired import paired_table
from utils.report.compare_pool import pooled
from utils.report.compare_published import published_table
from utils.report.compare_tables import (
    Cell,
    Entry,
    best_of,
    csv_row,
    latex,
    markdown,
    most_tasks,
    sort_entries,
    table_rows,
    terminal,
)
from utils.report.drawing import picture_links
from utils.report.line_styles import check_chosen
from utils.report.live_curves import live_curves
from utils.report.page import PAGES, write_picture
from utils.report.page_measured import curve_words
from utils.report.plots import curve_figure
from utils.report.plots_ranked import ranked_figure
from utils.report.results import csv_text, read_results
from utils.report.tables import printable
from utils.run.runs import newest_holding
from utils.terminal import show

FILES = [("table (CSV)", "comparison.csv"), ("Markdown", "comparison.md"), ("LaTeX", "comparison.tex"),
         *picture_links("comparison", "curves"), *picture_links("comparison_ranked", "ranked")]


def compare(
    run_folders: Sequence[Path | str], out_dir: Path | str = "logs/compare", labels: Sequence[str] | None = None,
    sort: str | None = None, highlight: Sequence[str] = (), pool: bool = False,
) -> str:
    """Write the table of several runs as `comparison.{md,csv,tex,html}` and the pictures `comparison` and `comparison_ranked`
    (PNG, SVG, PDF) into `out_dir`, then print it.

    A comparison of other figures that is there already is kept, in a folder `older-N` beside it.

    Args:
        run_folders: each a run's folder, or an experiment's folder, of which the newest run is taken.
        labels: names for the rows; default the methods' titles, with the experiment's name where two are alike.
        sort: a column's key (`SORTABLE`) by which the best run comes first; default the order of `run_folders`.
        highlight: labels of runs that are coloured in any case where there are many.
        pool: runs that are alike but for `torch_seed` are one row.

    Returns:
        The table as plain text, as printed.

    Raises:
        UserError: a folder without results, runs on different data, or a name in `highlight` that no run has.
    """
    entries = load_entries(run_folders, labels, pool)
    check_chosen(highlight, [entry.label for entry in entries])
    if sort is not None:
        entries = sort_entries(entries, sort)
    notes = check_comparable(entries)
    rows = table_rows(entries)
    text = data_line(entries) + terminal(rows, notes, [row[0] for row in settings_that_differ(entries)[1:]], more_tables(entries))
    page, older = write_comparison(Path(out_dir), entries, rows, notes, highlight)
    show(text)
    show(f"\ncomparison: {page}" + (f"\nthe one that was there before: {older}" if older else ""))
    return text


def more_tables(entries: Sequence[Entry]) -> list[tuple[list[list[str]], str]]:
    """The papers' own figures, and the differences seed by seed: each a table, empty where there is none, and the words below it."""
    labels, results = [entry.label for entry in entries], [entry.result for entry in entries]
    return [published_table(labels, results), paired_table(labels, results)]


def write_comparison(
    out: Path, entries: Sequence[Entry], rows: Sequence[Sequence[Cell]], notes: Sequence[str], highlight: Sequence[str] = (),
) -> tuple[Path, Path | None]:
    """Write the table in every form, the pictures and the page into `out`; returns the page and where an older one was put."""
    table = csv_text([csv_row(entry, most_tasks(entries), best_of(entries)) for entry in entries])
    older = keep_older(out, table)
    labels, results = [entry.label for entry in entries], [entry.result for entry in entries]
    words = curve_words(labels, results)
    write_picture(out / "comparison", curve_figure(results, labels, chosen=highlight), words)
    write_picture(out / "comparison_ranked", ranked_figure(results, labels, chosen=highlight), words)
    more, differ = more_tables(entries), settings_that_differ(entries)
    write_atomic(out / "comparison.md", data_line(entries) + markdown(rows, notes, settings_shown(differ), more))
    write_atomic(out / "comparison.csv", table)
    write_atomic(out / "comparison.tex", latex(rows, notes))
    context = page_context(out, entries, rows, notes) | {
        "settings": settings_shown(differ), "paper": more[0], "paired": more[1], "live": live_curves(results, labels, words, highlight),
        "files": FILES}
    page = write_atomic(out / "comparison.html", PAGES.get_template("compare.html.j2").render(**context))
    return page, older


def data_line(entries: Sequence[Entry]) -> str:
    """"cub200_224 (split: official, 5,994 / 5,794)" above a table, where the split is known; else nothing."""
    words = next((entry.result.dataset_words for entry in entries if entry.result.split), "")
    return f"{printable(words)}\n\n" if words else ""


def keep_older(out: Path, table: str, name: str = "comparison") -> Path | None:
    """Move what is called `name` in `out` into `older-N` if its csv is not `table`; returns that folder, None where nothing was moved."""
    files = [file for pattern in (f"{name}.*", f"{name}_ranked.*") for file in sorted(out.glob(pattern)) if file.is_file()]
    try:
        if not files or bytes_of_file(out / f"{name}.csv") == encodable(table).encode():
            return None
    except OSError:  # an incomplete one is kept too
        pass
    older = out / f"older-{1 + max((int(folder.name[6:]) for folder in out.glob('older-*') if folder.name[6:].isdecimal()), default=0)}"
    older.mkdir()
    for file in files:
        file.rename(older / file.name)
    return older


# Which runs, and whether they can be compared ------------------------------------------------------------------


def find_results(folder: Path | str) -> Path:
    """The `results.json` of a run's folder, or of the newest run in an experiment's folder.

    Raises:
        UserError: there is none.
    """
    folder = Path(folder)
    found = newest_holding(folder, "results.json")
    if found is None:
        problem = "has no results.json, nor has any folder in it" if folder.is_dir() else "is not a folder"
        raise UserError(f"compare: {folder} {problem}. Give runs that finished a seed, e.g. logs/slca_demo.")
    return found / "results.json"


def load_entries(run_folders: Sequence[Path | str], labels: Sequence[str] | None = None, pool: bool = False) -> list[Entry]:
    """Read the runs, join those that differ in their torch seeds alone (`pool`), and give each a label of its own. Raises UserError."""
    runs = read_runs(run_folders, labels)
    runs = pooled(runs) if pool else runs
    paths = [run.folder for run in runs if run.folder]
    names = [run.label for run in runs]
    for longer in ([path.parent.name for path in paths], [run.run for run in runs], [f"run {n + 1}" for n in range(len(runs))]):
        names = [
            f"{name} ({more})" if names.count(name) > 1 else name for name, more in zip(names, longer, strict=True)
        ]
    return [replace(run, label=name) for run, name in zip(runs, names, strict=True)]


def read_runs(run_folders: Sequence[Path | str], labels: Sequence[str] | None = None) -> list[Entry]:
    """The runs with the labels given, or with their methods' titles, which several may share. Raises UserError."""
    if not run_folders:
        raise UserError("compare: got no run. Give one or more folders, e.g. logs/finetune_demo logs/slca_demo.")
    if labels and len(labels) != len(run_folders):
        raise UserError(f"compare: --labels got {len(labels)} names for {len(run_folders)} runs. Give one for each, in their order.")
    paths = [find_results(folder).resolve().parent for folder in run_folders]
    results = [read_results(path / "results.json") for path in paths]
    for path, result in zip(paths, results, strict=True):
        if not result.seeds:
            raise UserError(f"compare: {path / 'results.json'} holds no finished seed. Continue the run with --resume.")
    names = [printable(label) for label in labels or [result.name for result in results]]
    return [Entry(name, f"{path.parent.name}/{path.name}", result, path) for name, path, result in zip(names, paths, results, strict=True)]
