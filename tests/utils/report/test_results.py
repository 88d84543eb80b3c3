"""Results on disk and on the terminal."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import statistics
import subprocess
from pathlib import Path

import pytest
import torch

from tests.result_samples import make_result
from utils.errors import UserError
from utils.files import write_atomic
from utils.machine.environment import environment, git_commit
from utils.report.published import CLASSES_PER_TASK, published
from utils.report.results import OPTIONAL_CURVES, RunResult, csv_text, read_results, statistic, tables_are_current, write_results
from utils.report.tables import SPREAD, mean_std_text, results_table

PAPER_CONFIG = {"dataset": "cifar100_224", "convnet_type": "vit-b-p16", "init_cls": 10, "increment": 10}


def test_summary_is_the_mean_and_the_sample_standard_deviation_over_seeds() -> None:
    result = make_result()
    values = [seed.last for seed in result.seeds]
    assert result.summary["last"]["mean"] == pytest.approx(statistics.mean(values), abs=1e-12)
    assert result.summary["last"]["std"] == pytest.approx(statistics.stdev(values), abs=1e-12)


def test_one_seed_has_no_standard_deviation() -> None:
    assert make_result(seeds=(7,)).summary["last"]["std"] is None
    assert statistic([None, 3.0]) == {"mean": 3.0, "std": None}
    assert statistic([None, None]) == {"mean": None, "std": None}


def test_results_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    for result in (make_result(), make_result(task_sizes=(10,), seeds=(0,)), RunResult({}, {}, [])):
        write_results(result, tmp_path)
        assert read_results(tmp_path / "results.json") == result


def test_results_json_has_the_promised_keys_and_unrounded_numbers(tmp_path: Path) -> None:
    result = make_result()
    write_results(result, tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert {"config", "environment", "method", "title", "rehearsal_free", "seeds", "summary"} <= set(stored)
    promised = {"seed", "class_order", "task_sizes", "top1_curve", "top5_curve", "accuracy_matrix", "last",
                "average_incremental", "forgetting", "backward_transfer", "grouped", "stage_seconds", "peak_memory_mb"}
    assert promised <= set(stored["seeds"][0])
    assert stored["seeds"][0]["top1_curve"] == result.seeds[0].top1_curve
    assert stored["seeds"][0]["accuracy_matrix"][0][1] is None
    assert set(stored["summary"]["last"]) == {"mean", "std"}


def test_a_figure_that_is_not_a_number_becomes_null_and_the_file_stays_valid_json(tmp_path: Path) -> None:
    result = make_result(seeds=(1,))
    result.seeds[0].forgetting = float("nan")
    write_results(result, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["seeds"][0]["forgetting"] is None


def test_csv_has_one_row_per_seed_and_task(tmp_path: Path) -> None:
    result = make_result()
    write_results(result, tmp_path)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    seeds_and_tasks = [(str(seed), str(task)) for seed in (1993, 1996, 1997) for task in range(1, 6)]
    assert [(row["seed"], row["task"]) for row in rows] == seeds_and_tasks
    assert [row["classes_seen"] for row in rows[:5]] == ["2", "4", "6", "8", "10"]
    assert float(rows[4]["top1"]) == result.seeds[0].last
    assert float(rows[4]["forgetting"]) == pytest.approx(result.seeds[0].forgetting)
    assert rows[0]["forgetting"] == "" and rows[0]["old"] == ""


def test_tidy_csv_holds_every_cell_of_the_accuracy_matrix_once(tmp_path: Path) -> None:
    result = make_result(seeds=(5,))
    write_results(result, tmp_path)
    rows = list(csv.DictReader((tmp_path / "results_tidy.csv").open()))
    cells = {(row["task"], row["images"]): row["percent"] for row in rows if row["images"].startswith("task ") and row["metric"] == "top1"}
    assert len(cells) == 15                                                        # the lower triangle of 5 x 5
    assert float(cells["5", "task 1"]) == result.seeds[0].accuracy_matrix[4][0]


def test_csv_has_how_well_classes_to_come_were_told_and_nothing_after_the_last_task(tmp_path: Path) -> None:
    write_results(make_result(), tmp_path)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["unknown_auroc_distance"] for row in rows[:5]] == ["90.0"] * 4 + [""]
    assert [row["uncalibrated_error"] for row in rows[:2]] == ["", "9.5"]
    tidy = [row for row in csv.DictReader((tmp_path / "results_tidy.csv").open()) if row["metric"] == "fpr95_energy"]
    assert len(tidy) == 15 and {row["images"] for row in tidy} == {"classes to come"}


def test_tidy_csv_holds_every_class_after_every_task_and_every_cell_of_the_confusions(tmp_path: Path) -> None:
    result = make_result(seeds=(5,))
    result.seeds[0].confusion["before"][1] = [30, 10, 0, 0, 0]
    write_results(result, tmp_path)
    rows = list(csv.DictReader((tmp_path / "results_tidy.csv").open()))
    named = [row for row in rows if row["images"].startswith("class ")]
    assert len(named) == 2 + 4 + 6 + 8 + 10
    assert named[0]["images"] == f"class class {result.seeds[0].class_order[0]}"
    taken = {(row["metric"], row["images"]): float(row["percent"]) for row in rows if row["metric"].startswith("taken_for")}
    assert len(taken) == 50 and taken["taken_for_task_1_before_alignment", "task 2"] == 75.0
    wide = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [float(row["images_per_second"]) for row in wide] == [150.0] * 5
    assert wide[1]["old_as_new"] == "4.0" and wide[0]["seconds_train"] == "2.0"


def test_results_of_an_older_version_are_read(tmp_path: Path) -> None:
    write_results(make_result(), tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text())
    for seed in stored["seeds"]:
        for name in (*OPTIONAL_CURVES, "confusion", "timeline"):
            del seed[name]
    (tmp_path / "results.json").write_text(json.dumps(stored))
    result = read_results(tmp_path / "results.json")
    write_results(result, tmp_path)
    assert result.seeds[0].class_accuracies == [] and result.seeds[0].images_per_second == []


@pytest.mark.parametrize("content", [
    b"", b"[1, 2]", b"{}", b'{"config": {}, "environment": {}, "seeds": [{"seed": "x"}]}', b"\xff\x00",
])
def test_a_file_that_is_no_results_file_is_a_user_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(UserError, match="is not a run's results"):
        read_results(tmp_path / "results.json")


def test_a_missing_results_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_results(tmp_path / "results.json")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_atomic(tmp_path / "deep" / "file.txt", "old")

    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(target, "new")
    assert target.read_text() == "old" and list(target.parent.iterdir()) == [target]


def test_the_table_shows_seeds_mean_and_spread() -> None:
    result = make_result()
    table = results_table(result)
    assert "SLCA on fashion-mnist with vit-b-p16: 10 classes in 5 tasks, 3 seeds" in table
    last = next(line for line in table.splitlines() if line.startswith("Last accuracy"))
    assert last.split()[-3:] == mean_std_text(result.summary["last"]).split() and f"{result.seeds[1].last:.2f}" in last
    assert "paper" not in table


def test_the_table_shows_the_papers_figure_labelled_where_the_config_is_the_papers() -> None:
    table = results_table(make_result(task_sizes=(10,) * 10, **PAPER_CONFIG))
    assert table.splitlines()[2].endswith("paper")
    assert next(line for line in table.splitlines() if line.startswith("Last accuracy")).endswith("91.53 ± 0.28")
    assert "arXiv 2303.05118" in table


def test_the_table_names_the_split_and_gives_no_papers_figure_beside_another_one() -> None:
    result = make_result(task_sizes=(10,) * 10, **PAPER_CONFIG)
    result.environment["images"] = {"split": "official, 50,000 / 10,000"}
    table = results_table(result)
    assert table.startswith("SLCA on cifar100_224 (split: official, 50,000 / 10,000) with ") and "paper" in table
    result.environment["images"] = {"split": "100 / 10, not a published split"}
    assert "paper" not in results_table(result)


def test_the_table_of_one_task_shows_a_dash_where_tasks_are_averaged() -> None:
    lines = results_table(make_result("joint", "Joint", task_sizes=(10,))).splitlines()
    assert next(line for line in lines if line.startswith("Average incremental")).split()[-4:] == ["-"] * 4
    assert next(line for line in lines if line.startswith("Forgetting")).endswith("-")


def test_a_name_from_a_config_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in results_table(make_result(title="\x1b[2Jgone", dataset={"name": "a\rb"}))


def test_the_table_of_an_unfinished_run_shows_the_tasks_that_every_seed_has_learned() -> None:
    result = make_result(seeds=(1, 2))
    behind = make_result(seeds=(2,), task_sizes=(2, 2)).seeds[0]
    table = results_table(RunResult(result.config, {}, [result.seeds[0], behind]))
    assert next(line for line in table.splitlines() if line.startswith("Classes seen")).split()[2:] == ["2", "4"]
    assert "Unfinished: the seeds have learned 5, 2 tasks" in table


def test_a_long_stream_is_wrapped_after_ten_tasks() -> None:
    assert max(map(len, results_table(make_result(task_sizes=(5,) * 20)).splitlines())) <= 100


@pytest.mark.parametrize(("method", "changed", "row"), [
    ("slca", {}, "SLCA"),
    ("slca_pp", {"convnet_type": "vit-b-p16-lora"}, "SLCA++"),
    ("slcapp", {"convnet_type": "vit-b-p16-lora"}, "SLCA++"),
    ("finetune", {"bcb_lrscale": 1.0}, "Seq FT"),
    ("finetune", {"bcb_lrscale": 0.01}, "Seq FT with SL"),
    ("slca", {"ca_epochs": 0, "bcb_lrscale": 0.01}, "Seq FT with SL"),
    ("joint", {"init_cls": 100, "increment": 0}, "Joint training"),
])
def test_the_papers_experiments_are_recognised(method: str, changed: dict, row: str) -> None:
    reference = published({**PAPER_CONFIG, **changed}, method)
    assert reference is not None and reference.row == row


@pytest.mark.parametrize("changed", [
    {"init_cls": 50}, {"increment": 5}, {"init_cls": 20, "increment": 20}, {"dataset": "cifar100"},
    {"dataset": {"name": "cifar100_224"}}, {"convnet_type": "vit-b-p16-mocov3"}, {"pretrained": False},
    {"convnet_type": {"timm": "VisionTransformer"}},
])
def test_no_figure_of_the_paper_is_shown_beside_another_experiment(changed: dict) -> None:
    assert published({**PAPER_CONFIG, **changed}, "slca") is None


def test_a_method_that_the_paper_did_not_run_has_no_figure() -> None:
    assert published(PAPER_CONFIG, "ewc") is None
    assert published({**PAPER_CONFIG, "dataset": "cub200_224", "init_cls": 20, "increment": 20}, "joint") is None


def test_every_published_slca_row_has_all_four_data_sets() -> None:
    for dataset, size in CLASSES_PER_TASK.items():
        for method in ("slca", "slcapp"):
            config = {**PAPER_CONFIG, "dataset": dataset, "init_cls": size, "increment": size}
            assert set(published(config, method).figures) == {"last", "average_incremental"}


def test_environment_names_versions_but_no_place() -> None:
    found = environment()
    assert {"python", "torch", "torchvision", "timm", "numpy", "platform", "cpu", "gpu", "git_commit"} <= set(found)
    assert str(Path.home()) not in json.dumps(found) and str(Path.cwd()) not in json.dumps(found)


def test_a_gpu_that_the_run_does_not_use_is_not_named(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert environment(torch.device("cpu"))["gpu"] is None and environment(torch.device("cuda"))["gpu"] == "NVIDIA H200"


def test_git_commit_tells_clean_from_changed_from_no_checkout(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "start"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    assert len(git_commit(tmp_path)) == 40
    (tmp_path / "file").write_text("x")
    subprocess.run(["git", "-C", str(tmp_path), "add", "file"], check=True)
    assert git_commit(tmp_path).endswith("-dirty")
    (tmp_path / "inner").mkdir()
    assert git_commit(tmp_path / "inner") is None


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\tx", " =1", "＝1"])
def test_a_name_in_a_csv_is_no_formula(name: str) -> None:
    _, (_, cell) = csv.reader(io.StringIO(csv_text([{"a": -1.5, "file": name}]), newline=""))
    assert cell == "'" + name
    assert csv_text([{"a": -1.5, "file": "a=b"}]) == "a,file\n-1.5,a=b\n"
    assert csv_text([{"file": "\r=1"}]) == "file\n\\x0d=1\n"


def test_a_name_in_a_csv_steers_no_terminal() -> None:
    steering = "\x1b[31mred\x1b[A\x07\u202e\r"
    assert csv_text([{"class": steering}]).splitlines()[1] == r"\x1b[31mred\x1b[A\x07\u202e\x0d"
    assert csv_text([{"class": "two\nlines"}]) == 'class\n"two\nlines"\n'


def test_names_that_are_not_utf8_are_written_out_in_every_file(tmp_path: Path) -> None:
    result = make_result(seeds=(1,), notes=os.fsdecode(b"\xff"))
    result.class_names[0] = os.fsdecode(b"caf\xe9")
    write_results(result, tmp_path)
    assert read_results(tmp_path / "results.json").class_names[0] == "caf\\xe9"
    assert tables_are_current(result, tmp_path)


@pytest.mark.timeout(10)
def test_a_pipe_in_place_of_a_table_is_not_waited_for(tmp_path: Path) -> None:
    write_results(make_result(seeds=(1,)), tmp_path)
    (tmp_path / "results.csv").unlink()
    os.mkfifo(tmp_path / "results.csv")
    assert not tables_are_current(make_result(seeds=(1,)), tmp_path)


def test_tables_that_are_of_other_results_or_missing_are_noticed(tmp_path: Path) -> None:
    write_results(make_result(seeds=(1,)), tmp_path)
    assert not tables_are_current(make_result(seeds=(1, 2)), tmp_path)
    (tmp_path / "results_tidy.csv").unlink()
    assert not tables_are_current(make_result(seeds=(1,)), tmp_path)


def test_results_json_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr("utils.report.results.write_atomic", lambda path, data: written.append(path.name))
    write_results(make_result(), tmp_path)
    assert sorted(written[:-1]) == ["results.csv", "results_tidy.csv"] and written[-1] == "results.json"


def damage(name: str, value: object):
    def change(content: dict) -> None:
        content["seeds"][1][name] = value
    return change


@pytest.mark.parametrize(("change", "told"), [
    (damage("top1_curve", [1.0]), "seeds.1.top1_curve: got 1 entries for 5 tasks"),
    (damage("grouped", []), "seeds.1.grouped: got 0"),
    (damage("accuracy_matrix", [[1.0]] * 5), "seeds.1.accuracy_matrix.0: got 1"),
    (damage("memory_curve", [{}]), "seeds.1.memory_curve"),
    (damage("task_sizes", []), "seeds.1.task_sizes: got 0 tasks, the first seed has 5"),
    (damage("task_sizes", [2, 2]), "seeds.1.task_sizes: got 2 tasks, the first seed has 5"),
    (damage("task_sizes", [2, 2, 2, 2, -2]), "is no number of classes"),
    (damage("last", "high"), "seeds.1.last"),
    (lambda content: content.pop("seeds"), "seeds"),
    (damage("confusion", {"after": [[1] * 5] * 4 + [[]]}), "seeds.1.confusion.after.4: got 0 entries for 5 tasks"),
    (damage("confusion", {"before": []}), "seeds.1.confusion.before: got 0"),
    (damage("timeline", [{"task": 1, "stage": "train", "begin": 0.0}]), "seeds.1.timeline.0.end: got None, allowed: a number"),
    (damage("timeline", [{"task": 1, "stage": 7, "begin": 0.0, "end": 1.0}]), "seeds.1.timeline.0.stage: got 7, allowed: a text"),
    (damage("timeline", [{"task": 1, "stage": "train", "begin": 0.0, "end": float("nan")}]), "seeds.1.timeline.0.end: got nan"),
    (damage("anytime", [{"task": 1, "images": 8, "accuracy": "high"}]), "seeds.1.anytime.0.accuracy: got 'high'"),
    (lambda content: content["summary"]["last"].pop("mean"), "summary.last: got std, allowed: mean and std"),
])
def test_results_that_do_not_fit_together_are_one_message(change, told: str, tmp_path: Path) -> None:
    write_results(make_result(seeds=(1, 2)), tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    change(content)
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"results\.json is not a run's results\.json: .*" + re.escape(told)):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize("text", [
    "", "[" * 100_000, '{"config":' * 50_000, '{"config": ' + "[" * 5000 + "]" * 5000 + "}", "null", "\x00", "{"])
def test_a_file_that_is_no_results_is_one_message(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match="is not a run's results"):
        read_results(tmp_path / "results.json")


def test_a_pipe_in_place_of_results_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "results.json")
    with pytest.raises(UserError, match="no regular file"):
        read_results(tmp_path / "results.json")


def test_the_table_says_what_the_spread_is_over() -> None:
    assert SPREAD in results_table(make_result()) and SPREAD not in results_table(make_result(seeds=(1,)))
