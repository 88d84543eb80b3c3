"""Comparing runs: which are found, which may be compared, what is best, and how the table is written."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.result_samples import make_result
from utils.errors import UserError
from utils.report.comparable import by_value, check_comparable, settings_that_differ
from utils.report.compare import compare, find_results, load_entries
from utils.report.compare_page import settings_shown
from utils.report.compare_paired import paired
from utils.report.compare_published import published_table
from utils.report.compare_tables import Entry, latex, markdown, sort_entries, table_rows
from utils.report.results import RunResult, summarise, write_results
from utils.report.tables import bytes_text, count_text, seconds_text

HOSTILE = "<script>alert(1)</script>|$x_1$&%\n"


def entries(*results: RunResult) -> list[Entry]:
    return [Entry(f"{result.name} {n}", f"run {n}", result) for n, result in enumerate(results)]


def best_cells(*results: RunResult) -> list[tuple[int, int]]:
    """Rows and columns of the cells that are marked as best."""
    rows = table_rows(entries(*results))
    return [(i, k) for i, row in enumerate(rows) for k, cell in enumerate(row) if cell.best]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three experiments as the trainer leaves them; slca_demo has an older run besides."""
    logs = tmp_path_factory.mktemp("logs")
    write_results(make_result("finetune", "Seq FT", drop=14), logs / "finetune_demo" / "2026-01-01_10-00-00")
    write_results(make_result(drop=20), logs / "slca_demo" / "2025-12-31_23-00-00")
    write_results(make_result(drop=4), logs / "slca_demo" / "2026-01-01_11-00-00")
    joint = make_result("joint", "Joint", task_sizes=(10,), first=99.5)
    write_results(joint, logs / "joint_demo" / "2026-01-01_12-00-00")
    return logs


@pytest.fixture(scope="module")
def written(logs: Path) -> Path:
    out = logs.parent / "comparison"
    compare([logs / "finetune_demo", logs / "slca_demo", logs / "joint_demo"], out)
    return out


def test_the_newest_run_of_an_experiment_is_taken_and_a_run_can_be_named(logs: Path) -> None:
    assert find_results(logs / "slca_demo").parent.name == "2026-01-01_11-00-00"
    older = logs / "slca_demo" / "2025-12-31_23-00-00"
    assert find_results(older).parent == older


def test_a_folder_without_results_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no results\.json"):
        compare([tmp_path], tmp_path / "out")
    with pytest.raises(UserError, match="is not a folder"):
        compare([tmp_path / "nothing"], tmp_path / "out")
    with pytest.raises(UserError, match="got no run"):
        compare([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_finished_seed_is_a_user_error(tmp_path: Path) -> None:
    write_results(make_result(seeds=()), tmp_path)
    with pytest.raises(UserError, match="holds no finished seed"):
        load_entries([tmp_path])


def test_every_form_of_the_comparison_is_written(written: Path) -> None:
    names = {f"comparison.{suffix}" for suffix in ("md", "csv", "tex", "html")} | {
        f"{name}.{suffix}" for name in ("comparison", "comparison_ranked") for suffix in ("png", "svg", "pdf")}
    assert {path.name for path in written.iterdir()} == names
    for name in ("comparison.md", "comparison.tex", "comparison.html"):
        text = (written / name).read_text()
        assert all(expected in text for expected in ("Seq FT", "SLCA", "Joint", "601,290", "1.24 MiB", "15.3"))


def test_the_table_is_printed_and_returned(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = compare([logs / "finetune_demo", logs / "slca_demo"], tmp_path)
    printed = capsys.readouterr().out
    assert table in printed and str(tmp_path / "comparison.html") in printed
    assert next(line for line in table.splitlines() if line.startswith("SLCA")).count("*") == 3


def test_csv_holds_unrounded_means_and_spreads(written: Path) -> None:
    rows = list(csv.DictReader((written / "comparison.csv").open()))
    expected = make_result(drop=4)
    assert [row["learner"] for row in rows] == ["finetune", "slca", "joint"]
    assert float(rows[1]["last_mean"]) == expected.summary["last"]["mean"]
    assert float(rows[1]["forgetting_std"]) == expected.summary["forgetting"]["std"]
    assert float(rows[1]["training_seconds_mean"]) == pytest.approx((15 + 15 + 16) / 3)   # without evaluation
    assert rows[2]["forgetting_mean"] == "" and rows[2]["tasks"] == "1"


def test_sorting_puts_the_best_first_and_runs_without_the_figure_last() -> None:
    entries = [Entry(name, name, result) for name, result in
               {"joint": make_result(task_sizes=(10,)), "worse": make_result(drop=9), "better": make_result(drop=2)}.items()]
    assert [entry.label for entry in sort_entries(entries, "average_incremental")] == ["better", "worse", "joint"]
    assert [entry.label for entry in sort_entries(entries, "forgetting")] == ["better", "worse", "joint"]
    assert next(entry.label for entry in sort_entries(entries, "last")) == "joint"


def test_memory_is_told_after_every_task(written: Path) -> None:
    rows = list(csv.DictReader((written / "comparison.csv").open()))
    kept = [rows[1][f"memory_statistics_after_task_{t}"] for t in range(1, 6)]
    assert [float(number) for number in kept] == [260_000, 520_000, 780_000, 1_040_000, 1_300_000]
    assert rows[2]["memory_statistics_after_task_2"] == ""  # joint training has one task
    assert "761.72 KiB" in (written / "comparison.html").read_text()


def test_best_is_the_highest_accuracy_and_the_lowest_forgetting() -> None:
    assert best_cells(make_result(drop=9), make_result(drop=2), make_result(drop=5)) == [(1, 2), (1, 3), (1, 4)]


def test_joint_training_is_never_best_and_shows_dashes() -> None:
    joint = make_result("joint", "Joint", task_sizes=(10,), first=99.9)
    assert best_cells(joint, make_result(drop=9), make_result(drop=2)) == [(2, 2), (2, 3), (2, 4)]
    assert [cell.text for cell in table_rows(entries(joint))[0]][3:5] == ["-", "-"]


def test_figures_that_read_alike_are_equally_good() -> None:
    assert best_cells(make_result(), make_result()) == [(0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)]


def test_a_best_figure_that_does_not_stand_out_is_not_marked() -> None:
    close, other = make_result(drop=4), make_result(drop=4)
    for result, lasts in ((close, [80.0, 81.0, 82.0]), (other, [80.5, 80.5, 81.5])):
        for seed, last in zip(result.seeds, lasts, strict=True):
            seed.last = last
        result.summary = summarise(result.seeds)
    assert close.summary["last"]["mean"] > other.summary["last"]["mean"]
    assert all(column != 2 for _, column in best_cells(close, other))
    assert best_cells(make_result(seeds=(1,), drop=2), make_result(seeds=(1,), drop=9)) == []  # one seed shows nothing


def test_what_makes_runs_incomparable_is_told_and_what_is_not_recorded_is_no_difference() -> None:
    def run(sha256: str, size: int, fingerprint: str, torch: str, **config: object) -> RunResult:
        result = make_result(**config)
        result.environment |= {"weights": {"sha256": sha256, "source": "w"}, "images": {"size": size, "fingerprint": fingerprint},
                               "torch": torch}
        return result

    one, other = run("a" * 64, 28, "f1", "2.9", epochs=5, batch_size=32), run("b" * 64, 64, "f2", "2.10", epochs=9, batch_size=64,
                                                                               precision="bf16-mixed")
    other.seeds[0].class_order = other.seeds[0].class_order[::-1]
    told = " ".join(check_comparable(entries(one, other)))
    for words in ("weights (SHA-256): aaaaaaaaaaaa w (SLCA 0); bbbbbbbbbbbb w", "image sizes: 28", "fingerprint): f1", "epochs: 5",
                  "batch sizes: 32", "precisions: 32-true (SLCA 0); bf16-mixed", "versions: torch 2.9", "class orders of the same seeds"):
        assert words in told
    bare = make_result(epochs=5, batch_size=32)
    bare.environment["torch"] = "2.9"
    assert check_comparable(entries(one, bare)) == []


@pytest.mark.parametrize(("one", "other", "told"), [
    ({"convnet_type": {"timm": "v", "args": {"depth": 2, "patch_size": 4}}}, {"convnet_type": {"timm": "v", "args": {"depth": 2,
      "patch_size": 7}}}, "backbones: v, 2 blocks, patch_size 4 (SLCA 0); v, 2 blocks, patch_size 7 (SLCA 1)"),
    ({"pretrained": True}, {"pretrained": False}, "backbones: vit-b-p16 (SLCA 0); vit-b-p16, random weights (SLCA 1)"),
    ({"val_fraction": 0.0}, {"val_fraction": 0.1}, "held out: 0.0 (SLCA 0); 0.1 (SLCA 1)"),
    ({"normalize": "dataset", "test_transform": None}, {"normalize": "dataset", "test_transform": "resize224"},
     "transforms of the test images: dataset, None (SLCA 0); dataset, resize224 (SLCA 1)"),
])
def test_a_network_or_images_that_only_seem_alike_are_told_apart(one: dict, other: dict, told: str) -> None:
    notes = check_comparable(entries(make_result(**one), make_result(**other)))
    assert len(notes) == 1 and told in notes[0]


def test_settings_that_several_runs_have_and_not_alike_are_listed(tmp_path: Path) -> None:
    one, other = make_result(lr=0.1, own=1, dataset={"name": "x", "image_size": 28}), make_result(
        lr=0.2, device="cuda", dataset={"name": "x", "image_size": 32})
    other.environment["torch"] = "3"
    table = settings_that_differ(entries(one, other))
    assert table[0] == ["Setting", "SLCA 0", "SLCA 1"]
    assert table[1:] == [["dataset.image_size", "28", "32"], ["lr", "0.1", "0.2"], ["torch", "2.14.1", "3"]]
    assert settings_that_differ(entries(one, one)) == []


def test_of_many_runs_a_row_per_value_says_which_have_it() -> None:
    differ = [["Setting", "A", "B", "C"], ["lr", "0.1", "0.2", "0.1"], ["drift", "-", "x", "y"]]
    assert by_value(differ) == [["Setting", "Value", "Runs"], ["lr", "0.1", "A, C"], ["lr", "0.2", "B"], ["drift", "x", "B"],
                                ["drift", "y", "C"]]
    assert settings_shown(differ) == differ and settings_shown([row * 3 for row in differ])[0] == ["Setting", "Value", "Runs"]


def test_the_papers_figures_stand_beside_the_papers_experiments_alone() -> None:
    paper = make_result(task_sizes=(10,) * 10, drop=1, dataset="cifar100_224")
    other = make_result(task_sizes=(10,) * 10, drop=1, dataset="cifar100_224", epochs=1)
    rows, words = published_table(["mine", "short"], [paper, other])
    assert [row[0] for row in rows[1:]] == ["mine"] and "91.53 ± 0.28" in rows[1] and "2303.05118" in words
    assert published_table(["short"], [other]) == ([], "")
    paper.environment["images"] = {"split": "45,000 / 15,000, not a published split (test images 1a2b3c4d)"}
    assert published_table(["elsewhere"], [paper]) == ([], "")


def test_runs_alike_but_for_the_torch_seed_are_one_row_where_asked_for(logs: Path, tmp_path: Path) -> None:
    for torch_seed, drop in ((1, 4), (2, 5)):
        write_results(make_result(torch_seed=torch_seed, drop=drop), tmp_path / f"slca_{torch_seed}")
        write_results(make_result("finetune", "Seq FT", torch_seed=torch_seed, drop=9), tmp_path / f"ft_{torch_seed}")
    folders = sorted(tmp_path.iterdir())
    assert len(load_entries(folders)) == 4
    ours, theirs = load_entries(folders, pool=True)
    assert [ours.label, theirs.label, len(ours.result.seeds)] == ["Seq FT", "SLCA", 6]
    found = paired(ours.result, theirs.result, "last")
    assert found.pairs == 6 and found.mean == pytest.approx(np.mean([
        a.last - b.last for drop in (4, 5) for a, b in zip(make_result(drop=9).seeds, make_result(drop=drop).seeds, strict=True)]))
    assert len(load_entries([folders[0], folders[0]], pool=True)[0].result.seeds) == 3  # the same run twice counts once


def test_runs_from_other_weights_or_on_other_images_are_not_one_row(tmp_path: Path) -> None:
    runs = [make_result(torch_seed=torch_seed) for torch_seed in range(3)]
    runs[1].environment["weights"] = {"sha256": "1a2b3c4d", "source": "vit.safetensors"}
    runs[2].environment["images"] = {"size": 224, "fingerprint": "f"}
    for number, run in enumerate(runs):
        write_results(run, tmp_path / str(number))
    assert len(load_entries([tmp_path / str(number) for number in range(3)], pool=True)) == 3


def test_names_for_the_rows_are_one_for_each_run_and_highlighted_ones_are_among_them(logs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got 1 names for 2 runs"):
        compare([logs / "finetune_demo", logs / "slca_demo"], tmp_path, labels=["one"])
    with pytest.raises(UserError, match="--highlight got 'nobody', allowed: SLCA"):
        compare([logs / "slca_demo"], tmp_path, highlight=["nobody"])


def test_the_page_says_when_and_of_which_folders_it_was_made_and_links_their_files(written: Path, logs: Path) -> None:
    text = (written / "comparison.html").read_text()
    assert "Made</th><td>20" in text and "finetune_demo/2026-01-01_10-00-00" in text
    for link in re.findall(r'href="([^"]+)"', text):
        assert (written / link).is_file(), link


def test_the_difference_to_the_best_is_taken_seed_by_seed(written: Path, logs: Path) -> None:
    rows = list(csv.DictReader((written / "comparison.csv").open()))
    pairs = [(a.last, b.last) for a, b in zip(make_result("finetune", drop=14).seeds, make_result().seeds, strict=True)]
    mean = sum(a - b for a, b in pairs) / 3
    assert float(rows[0]["difference_to_best"]) == pytest.approx(mean) and float(rows[0]["sign_test_p"]) == 0.25
    assert min(a - b for a, b in pairs) - 1e-9 <= float(rows[0]["difference_low"]) <= mean <= float(rows[0]["difference_high"])
    assert rows[2]["paired_seeds"] == "3"  # joint: the same order of classes
    for name in ("comparison.md", "comparison.html"):
        assert "Sign test" in (written / name).read_text() and "Settings that differ" in (written / name).read_text()
        assert "NOT LIKE FOR LIKE" not in (written / name).read_text()


def test_only_seeds_that_both_runs_have_are_paired() -> None:
    found = paired(make_result(seeds=(1, 2, 3)), make_result(seeds=(2, 3, 4), drop=9), "last")
    assert found.pairs == 2 and found.mean > 0 and found.stands_out
    assert paired(make_result(seeds=(1,)), make_result(seeds=(2,)), "last").mean is None


def test_the_loud_block_stands_above_the_table(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(make_result(epochs=3), tmp_path / "short" / "run")
    write_results(make_result(epochs=30), tmp_path / "long" / "run")
    printed = compare([tmp_path / "short", tmp_path / "long"], tmp_path / "out")
    assert printed.startswith("NOT LIKE FOR LIKE") and "  - Different epochs: 3 (SLCA (short)); 30 (SLCA (long))." in printed
    assert 'class="loud"' in (tmp_path / "out" / "comparison.html").read_text()


def test_nothing_is_best_of_one() -> None:
    assert best_cells(make_result()) == []


def test_other_splits_are_noted_and_only_the_last_accuracy_is_ranked() -> None:
    runs = make_result(drop=2), make_result(drop=2, task_sizes=(5, 5))
    assert {column for _, column in best_cells(*runs)} == {2}
    assert check_comparable(entries(*runs)) == [
        "Different splits into tasks, so average and forgetting do not compare: 5 x 2 (SLCA 0); 2 x 5 (SLCA 1)."
    ]


def test_other_seeds_backbones_and_machines_are_noted() -> None:
    other = make_result(seeds=(1993,), convnet_type={"timm": "VisionTransformer"})
    other.environment["gpu"] = "NVIDIA H100"
    notes = " ".join(check_comparable(entries(make_result(), other)))
    assert "1993, 1996, 1997 (SLCA 0); 1993 (SLCA 1)" in notes and "VisionTransformer" in notes and "H100" in notes
    assert check_comparable(entries(make_result(), make_result())) == []


@pytest.mark.parametrize("other", [
    make_result(dataset="cifar100"), make_result(task_sizes=(2, 2)), make_result(scenario="domain"),
], ids=["data set", "classes", "scenario"])
def test_runs_on_different_data_are_a_user_error(other: RunResult) -> None:
    with pytest.raises(UserError, match="different data"):
        check_comparable(entries(make_result(), other))


def on_split(split: str, dataset: str = "cub200_224") -> RunResult:
    result = make_result(dataset=dataset)
    result.environment["images"] = {"size": 224, "fingerprint": "f", "split": split}
    return result


def test_two_splits_of_one_data_set_are_not_compared_and_one_is_named_in_every_form(tmp_path: Path) -> None:
    official, other = on_split("official, 5,994 / 5,794"), on_split("9,430 / 2,358, not a published split (test images 1a2b3c4d)")
    with pytest.raises(UserError, match=r"other images of one data set.*cub200_224, split official.*\(SLCA 0\).*not a published split"):
        check_comparable(entries(official, other))
    assert check_comparable(entries(official, make_result(dataset="cub200_224"))) == []  # an older run, which recorded none
    for number in (1, 2):
        write_results(official, tmp_path / f"run{number}" / "2026-01-01_10-00-00")
    text, words = compare([tmp_path / "run1", tmp_path / "run2"], tmp_path / "out"), "cub200_224 (split: official, 5,994 / 5,794)"
    assert text.startswith(words)
    assert all(words in (tmp_path / f"out/comparison.{kind}").read_text() for kind in ("md", "html"))
    assert next(csv.DictReader((tmp_path / "out/comparison.csv").open()))["split"] == official.split


def test_runs_with_the_same_title_are_told_apart_by_experiment_then_by_run(logs: Path) -> None:
    older, newer = sorted((logs / "slca_demo").iterdir())
    labels = [entry.label for entry in load_entries([logs / "finetune_demo", older, newer])]
    assert labels[0] == "Seq FT" and len(set(labels)) == 3
    assert "slca_demo/2025-12-31_23-00-00" in labels[1]
    assert [entry.label for entry in load_entries([older, newer], ["first", "second"])] == ["first", "second"]
    assert len({entry.label for entry in load_entries([older, older])}) == 2


def test_hostile_names_are_escaped_in_every_form(tmp_path: Path) -> None:
    for name, title in (("a", HOSTILE), ("b", "SLCA")):
        write_results(make_result(title=title, seeds=(1,), dataset={"name": HOSTILE}), tmp_path / name)
    compare([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert "<script>alert" not in (tmp_path / "out" / "comparison.html").read_text()
    rows = table_rows(load_entries([tmp_path / "a", tmp_path / "b"]))
    assert r"\<script\>alert(1)\</script\>\|$x\_1$&%" in markdown(rows, [])
    assert r"\textless{}script\textgreater{}alert(1)" in latex(rows, [])
    assert r"script\textgreater{}\textbar{}\$x\_1\$\&\%" in latex(rows, [])


def test_quantities_are_written_for_people() -> None:
    assert [bytes_text(n) for n in (None, 0, 1023, 1536, 3 * 2**20, 5 * 2**30)] == [
        "-", "0 B", "1023 B", "1.50 KiB", "3.00 MiB", "5.00 GiB"]
    assert [count_text(n) for n in (None, 1290, 85_800_000)] == ["-", "1,290", "85.80 M"]
    assert seconds_text({"mean": 13.24, "std": 0.4}) == "13.2 ± 0.4 s"
    assert seconds_text({"mean": 600.0, "std": None}) == "10.0 min"
    assert seconds_text({"mean": 36000.0, "std": 3600.0}) == "10.0 ± 1.0 h"
    assert seconds_text({"mean": None, "std": None}) == "-"


def test_another_comparison_that_is_there_is_kept_and_the_same_one_is_not_doubled(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [logs / "finetune_demo", logs / "slca_demo"]
    compare(runs, tmp_path)
    compare(runs, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []
    first = (tmp_path / "comparison.csv").read_text()
    compare(runs[:1], tmp_path)
    assert str(tmp_path / "older-1") in capsys.readouterr().out
    compare(runs, tmp_path)
    assert (tmp_path / "older-1" / "comparison.csv").read_text() == first == (tmp_path / "comparison.csv").read_text()
    assert len(list((tmp_path / "older-2").iterdir())) == 10


def test_a_comparison_is_written_where_nothing_can_be_printed(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        compare([logs / "finetune_demo"], tmp_path)
    assert len(list(tmp_path.iterdir())) == 10


def test_a_comparison_imports_no_torch(logs: Path, tmp_path: Path) -> None:
    program = "import sys, main; main.main(['compare', sys.argv[1], '--out', sys.argv[2]]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", program, logs / "slca_demo", tmp_path]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
