"""Methods over several streams: a comparison of each stream's runs, and average ranks with the Friedman test over all of them.

    python main.py compare logs/*_demo logs/*_icons --streams --out logs/streams

A stream is a data set with its classes, its split into tasks and the pre-trained weights. Methods are known by their titles, or by
`--labels`. A run of one task (joint training) is an upper bound in the streams of its data and takes no rank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import write_atomic
from utils.formulas.ranks import ALPHA, RankTest, rank_test
from utils.report.comparable import check_comparable, data_words, split_words, weights_words
from utils.report.compare import keep_older, read_runs, write_comparison
from utils.report.compare_pool import pooled
from utils.report.compare_tables import Entry, markdown_table, sort_entries, table_rows
from utils.report.drawing import picture_links
from utils.report.line_styles import check_chosen
from utils.report.page import PAGES, Picture, write_picture
from utils.report.plots_ranked import critical_difference_figure
from utils.report.results import csv_text
from utils.report.tables import text_table
from utils.run.runs import command_line
from utils.terminal import show


@dataclass(frozen=True)
class Stream:
    """One stream and the runs that learned it."""

    name: str               # "fashion-mnist, 10 classes, class-incremental, 5 x 2"
    folder: str             # where its own comparison is written, beside the ranks
    entries: list[Entry]

    @property
    def lasts(self) -> dict[str, float]:
        """Mean last accuracy of each continual method."""
        return {entry.label: mean for entry in self.entries
                if entry.result.num_tasks > 1 and (mean := entry.result.summary["last"]["mean"]) is not None}


def compare_streams(
    run_folders: Sequence[Path | str], out_dir: Path | str = "logs/compare", labels: Sequence[str] | None = None,
    sort: str | None = None, highlight: Sequence[str] = (), pool: bool = False,
) -> str:
    """Write a comparison for each stream into a folder of its own in `out_dir`, and `ranks.{html,md,csv}` with a picture beside them.

    Other ranks that are there already are kept, in a folder `older-N` beside them.

    Args: as for `compare`; a method has the same label in every stream.

    Returns:
        The ranks as plain text, as printed.

    Raises:
        UserError: fewer than two streams or than two methods that all have, two runs of one method in one stream, or a
            name in `highlight` that no run has.
    """
    runs = read_runs(run_folders, labels)
    check_chosen(highlight, list(dict.fromkeys(run.label for run in runs)))
    streams = streams_of(pooled(runs) if pool else runs)
    out = Path(out_dir)
    methods, test = ranks_over(streams)
    told = [words for stream in streams for words in _write_stream(out, stream, sort, highlight)]
    table = rank_rows(streams, methods, test)
    words = verdict(test, len(methods), [label for stream in streams for label in stream.lasts if label not in methods])
    page, older = _write_ranks(out, streams, methods, test, table, words)
    text = "\n".join([*text_table(table), "", words, *told])
    show(text)
    show(f"\nranks: {page}" + (f"\nthe ones that were there before: {older}" if older else ""))
    return text


def streams_of(entries: Sequence[Entry]) -> list[Stream]:
    """The runs by stream, in the order given; runs of one task go to every stream of their data. Raises UserError."""
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        if entry.result.num_tasks > 1:
            groups.setdefault((data_words(entry.result), split_words(entry.result), weights_words(entry.result)), []).append(entry)
    if len(groups) < 2:
        known = "; ".join(", ".join(key[:2]) for key in groups) or "none, all runs have one task"
        raise UserError(f"compare --streams: needs runs of two or more streams, got: {known}. Leave out --streams to compare one.")
    plain = [key[:2] for key in groups]
    streams = []
    for number, (key, members) in enumerate(groups.items(), start=1):
        name = ", ".join(key if plain.count(key[:2]) > 1 else key[:2])
        bounds = [entry for entry in entries if entry.result.num_tasks == 1 and data_words(entry.result) == key[0]
                  and weights_words(entry.result) == key[2]]
        labels = [entry.label for entry in (*members, *bounds)]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise UserError(f"compare --streams: {name} has several runs of {', '.join(twice)}. Name each run's method with --labels, "
                            "alike in every stream.")
        streams.append(Stream(name, f"{number}_{re.sub(r'[^A-Za-z0-9]+', '_', key[0].partition(',')[0])[:40]}", [*members, *bounds]))
    return streams


def ranks_over(streams: Sequence[Stream]) -> tuple[list[str], RankTest]:
    """The methods that every stream has, the best average rank first, and the test over them. Raises UserError."""
    methods = [label for label in streams[0].lasts if all(label in stream.lasts for stream in streams)]
    if len(methods) < 2:
        raise UserError(f"compare --streams: no two methods are in every stream. Got {'; '.join(', '.join(s.lasts) for s in streams)}. "
                        "Give the same methods for each stream, named alike (--labels).")
    test = rank_test(np.array([[stream.lasts[label] for label in methods] for stream in streams]))
    order = sorted(range(len(methods)), key=lambda number: test.ranks[number])
    ordered = RankTest(test.streams, [test.ranks[number] for number in order], test.chi_square, test.p, test.critical_difference,
                       test.left_out)
    return [methods[number] for number in order], ordered


def rank_rows(streams: Sequence[Stream], methods: Sequence[str], test: RankTest) -> list[list[str]]:
    """Header and a row per method: its average rank and its last accuracy (%) in each stream."""
    rows = [["Method", "Average rank", *(f"Last (%), {stream.name}" for stream in streams)]]
    return rows + [[label, f"{rank:.2f}", *(f"{stream.lasts[label]:.2f}" for stream in streams)]
                   for label, rank in zip(methods, test.ranks, strict=True)]


def verdict(test: RankTest, methods: int, elsewhere: Sequence[str] = ()) -> str:
    """The test in words, and which methods took no part because a stream lacks them."""
    missing = f" Not in every stream, so without a rank: {', '.join(dict.fromkeys(elsewhere))}." if elsewhere else ""
    if test.left_out:
        return f"No Friedman test: {test.left_out}.{missing}"
    differ = "the methods differ" if test.p is not None and test.p < ALPHA else "no difference is shown between the methods"
    return (f"Friedman chi-square {test.chi_square:.2f}, {methods - 1} degrees of freedom, p = {test.p:.2g}, over {test.streams} streams: "
            f"{differ}. Critical difference of two average ranks (Nemenyi, {ALPHA:g}): {test.critical_difference:.2f}.{missing} "
            "The test takes the streams as independent of each other; with few of them its p is coarse.")


def _write_stream(out: Path, stream: Stream, sort: str | None, highlight: Sequence[str]) -> list[str]:
    """One stream's comparison; returns what makes its runs incomparable, as lines."""
    entries = sort_entries(stream.entries, sort) if sort else stream.entries
    notes = check_comparable(entries)
    known = [label for label in highlight if label in [entry.label for entry in entries]]
    write_comparison(out / stream.folder, entries, table_rows(entries), notes, known)
    return ["", f"NOT LIKE FOR LIKE in {stream.name}:", *(f"  - {note}" for note in notes)] if notes else []


def _write_ranks(
    out: Path, streams: Sequence[Stream], methods: Sequence[str], test: RankTest, table: Sequence[Sequence[str]], words: str,
) -> tuple[Path, Path | None]:
    """The page, and where older ranks were put."""
    rows: list[dict[str, Any]] = [
        {"method": label, "average_rank": rank, **{f"last {stream.name}": stream.lasts[label] for stream in streams}}
        for label, rank in zip(methods, test.ranks, strict=True)]
    older = keep_older(out, csv_text(rows), "ranks")
    write_atomic(out / "ranks.csv", csv_text(rows))
    write_atomic(out / "ranks.md", "\n".join([*markdown_table(table), "", words]) + "\n")
    picture: Picture | None = None
    if test.critical_difference is not None:
        alt = "Average ranks: " + ", ".join(f"{label} {rank:.2f}" for label, rank in zip(methods, test.ranks, strict=True))
        picture = write_picture(out / "ranks", critical_difference_figure(test.ranks, methods, test.critical_difference),
                                f"{alt}; critical difference {test.critical_difference:.2f}")
    made = [("Made", datetime.now().astimezone().isoformat(" ", "minutes")), ("Command", command_line() or "-")]
    files = [("table (CSV)", "ranks.csv"), ("Markdown", "ranks.md"), *(picture_links("ranks") if picture else [])]
    page = write_atomic(out / "ranks.html", PAGES.get_template("streams.html.j2").render(
        title=f"{len(methods)} methods over {len(streams)} streams", table=table, words=words, picture=picture, files=files, made=made,
        streams=[(stream.name, f"{stream.folder}/comparison.html", len(stream.entries)) for stream in streams]))
    return page, older
