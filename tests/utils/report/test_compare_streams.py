"""Methods over several streams: which runs belong together, ranks, and what is written."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.result_samples import make_result
from utils.errors import UserError
from utils.report.compare_streams import compare_streams, ranks_over, streams_of
from utils.report.compare_tables import Entry
from utils.report.plots_ranked import critical_difference_figure, joined, ranked_figure
from utils.report.results import RunResult, write_results

METHODS = {"SLCA": 2, "Seq FT": 9, "LwF": 6}  # title -> points lost per task


def entry(result: RunResult) -> Entry:
    return Entry(result.name, "run", result)


def runs_on(dataset: str, **config: object) -> list[RunResult]:
    return [make_result(title=title, drop=drop, dataset=dataset, **config) for title, drop in METHODS.items()]


def test_a_stream_is_data_and_split_and_joint_training_belongs_to_every_stream_of_its_data() -> None:
    joint = make_result("joint", "Joint", task_sizes=(10,), dataset="a")
    runs = [*runs_on("a"), *runs_on("a", task_sizes=(5, 5)), *runs_on("b"), joint]
    streams = streams_of([entry(run) for run in runs])
    assert [stream.name for stream in streams] == [f"{name}, 10 classes, class-incremental, {split}" for name, split in
                                                   (("a", "5 x 2"), ("a", "2 x 5"), ("b", "5 x 2"))]
    assert [len(stream.entries) for stream in streams] == [4, 4, 3] and all("Joint" not in stream.lasts for stream in streams)


def test_what_cannot_be_ranked_is_a_user_error() -> None:
    with pytest.raises(UserError, match="two or more streams, got: a, 10 classes"):
        streams_of([entry(run) for run in runs_on("a")])
    with pytest.raises(UserError, match="several runs of SLCA"):
        streams_of([entry(run) for run in [*runs_on("a"), *runs_on("b"), make_result(dataset="b", lr=1)]])
    with pytest.raises(UserError, match="no two methods are in every stream"):
        ranks_over(streams_of([entry(make_result(dataset="a")), entry(make_result(dataset="b", title="other"))]))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    runs = [run for dataset in "abc" for run in runs_on(dataset, seeds=(1,))]
    runs.append(make_result(title="BiC", dataset="a", seeds=(1,), epochs=9))
    for number, run in enumerate(runs):
        write_results(run, folder / str(number))
    folders = [folder / str(number) for number in range(len(runs))]
    (folder / "text").write_text(compare_streams(folders, folder / "out", highlight=["BiC"]))
    return folder


def test_ranks_the_test_and_every_streams_own_comparison_are_written(written: Path) -> None:
    out, text = written / "out", (written / "text").read_text()
    assert [row["method"] for row in csv.DictReader((out / "ranks.csv").open())] == ["SLCA", "LwF", "Seq FT"]
    assert [float(row["average_rank"]) for row in csv.DictReader((out / "ranks.csv").open())] == [1, 2, 3]
    page = (out / "ranks.html").read_text()
    for where in (text, page, (out / "ranks.md").read_text()):
        assert "Friedman chi-square 6.00, 2 degrees of freedom, p = 0.05" in where and "without a rank: BiC" in where
    assert all((out / name / "comparison.html").is_file() and f'href="{name}/comparison.html"' in page for name in ("1_a", "2_b", "3_c"))
    assert all((out / f"ranks.{suffix}").is_file() for suffix in ("png", "svg", "pdf")) and "Average ranks: SLCA 1.00" in page


def test_too_few_streams_leave_the_test_out_with_the_reason(written: Path, tmp_path: Path) -> None:
    text = compare_streams([written / str(number) for number in range(6)], tmp_path)
    assert "No Friedman test: with 3 methods on 2 streams even the same order in every stream has p = 0.14" in text
    assert not list(tmp_path.glob("ranks.p*"))
    one = (tmp_path / "ranks.csv").read_text()
    compare_streams([written / str(number) for number in (0, 1, 3, 4)], tmp_path)  # of fewer methods: the older ranks are kept
    compare_streams([written / str(number) for number in (0, 1, 3, 4)], tmp_path)  # the same again is no older one
    assert (tmp_path / "older-1" / "ranks.csv").read_text() == one != (tmp_path / "ranks.csv").read_text()
    assert not (tmp_path / "older-2").exists()


def test_a_highlighted_name_that_no_stream_has_is_a_user_error(written: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--highlight got 'nobody', allowed: SLCA, Seq FT, LwF$"):
        compare_streams([written / str(number) for number in range(6)], tmp_path, highlight=["nobody"])
    assert not list(tmp_path.iterdir())


def test_bars_join_the_largest_groups_that_lie_within_the_critical_difference() -> None:
    assert joined([1.0, 1.5, 2.2, 4.0], 1.0) == [(0, 1), (1, 2)]
    assert joined([1.0, 1.5, 1.9, 4.0], 1.0) == [(0, 2)] and joined([1.0, 3.0], 1.0) == []
    texts = [text.get_text() for text in critical_difference_figure([2.0, 1.0, 3.0], ["b", "a", "c"], 1.5).axes[0].texts]
    assert {"a  1.00", "b  2.00", "c  3.00", "critical difference 1.50"} <= set(texts)


def test_the_ranked_picture_has_a_row_per_run_the_best_on_top_with_its_spread() -> None:
    results = [make_result(title="low", drop=9), make_result(title="high", drop=2)]
    axes = ranked_figure(results, ["low", "high"]).axes[0]
    assert [label.get_text().split()[0] for label in axes.get_yticklabels()] == ["low", "high"]
    last = results[1].summary["last"]
    ends = axes.collections[1].get_segments()[0][:, 0]
    assert ends == pytest.approx([last["mean"] - last["std"], last["mean"] + last["std"]])
