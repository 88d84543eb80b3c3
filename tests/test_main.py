"""The command line as a user types it."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import trainer
from main import COMMANDS, main
from tests.processes import start_main
from tests.run_files import only_run
from tests.support import that_it_has
from utils import files
from utils.errors import StorageError
from utils.report.page import report_is_there
from utils.report.results import read_results, tables_are_current
from utils.run.run_folder import RunFolder

PROJECT = Path(__file__).parent.parent
TINY = {"model_name": "slca_tiny", "init_cls": 2, "increment": 2, "epochs": 1, "batch_size": 8, "seed": [1, 2], "ca_epochs": 1,
        "ca_samples": 8,
        "dataset": {"name": "tiny", "layout": "synthetic", "num_classes": 5, "image_size": 16, "train_per_class": 8, "test_per_class": 4,
                    "train_transform": "none"},
        "convnet_type": {"timm": "vit_tiny_patch16_224",
                         "args": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}},
        "pretrained": False, "device": "cpu"}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


def call(*arguments, cwd=PROJECT):
    return subprocess.run([sys.executable, str(PROJECT / "main.py"), *map(str, arguments)], capture_output=True, text=True,
                          cwd=cwd, check=False)


def test_one_command_trains_and_writes_every_file(config, tmp_path, capsys):
    assert main(["--config", str(config), "--out", str(tmp_path / "logs")]) == 0
    printed = capsys.readouterr().out
    assert "Last accuracy (%)" in printed and "±" in printed and "report.html" in printed
    run = next((tmp_path / "logs" / "tiny").iterdir())
    results = json.loads((run / "results.json").read_text())
    assert [seed["seed"] for seed in results["seeds"]] == [1, 2]
    assert results["seeds"][0]["task_sizes"] == [2, 2, 1]
    assert results["summary"]["last"]["std"] is not None
    assert {"config", "environment", "seeds", "summary"} <= set(results)


def test_test_only_prints_the_table_that_the_run_printed(config, tmp_path, capsys):
    main(["--config", str(config), "--out", str(tmp_path / "logs")])
    trained = capsys.readouterr().out
    assert main(["--config", str(config), "--out", str(tmp_path / "logs"), "--test_only"]) == 0
    tested = capsys.readouterr().out
    table = tested[tested.index("SLCA on tiny"):].strip()
    assert "Last accuracy (%)" in table and table in trained


def test_set_and_device_win_over_the_file(config, tmp_path, capsys):
    assert main(["--config", str(config), "--set", "epochs=0", "seed=7", "--device", "cpu", "--out", str(tmp_path)]) == 0
    results = json.loads(next((tmp_path / "tiny").glob("*/results.json")).read_text())
    assert results["config"]["epochs"] == 0 and [s["seed"] for s in results["seeds"]] == [7]


def test_compare_writes_one_table_for_several_runs(config, tmp_path, capsys):
    out = tmp_path / "logs"
    main(["--config", str(config), "--out", str(out)])
    config.with_name("ft.json").write_text(json.dumps(that_it_has("finetune", {**TINY, "model_name": "finetune"})))
    main(["--config", str(config.with_name("ft.json")), "--out", str(out)])
    capsys.readouterr()
    assert main(["compare", str(out / "tiny"), str(out / "ft"), "--out", str(out / "both")]) == 0
    printed = capsys.readouterr().out
    assert "SLCA" in printed and "Seq FT" in printed
    for suffix in ("md", "csv", "tex", "png", "html"):
        assert (out / "both" / f"comparison.{suffix}").stat().st_size > 0


@pytest.mark.parametrize("what", ["methods", "datasets", "backbones"])
def test_list_names_what_a_config_may_use(what, capsys):
    assert main(["list", what]) == 0
    assert {"methods": "slca", "datasets": "cifar100_224", "backbones": "vit-b-p16-mocov3"}[what] in capsys.readouterr().out


def test_a_mistake_is_one_message_without_traceback_and_exit_code_2(config):
    config.write_text(json.dumps({**TINY, "epocs": 3}))
    done = call("--config", config)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "did you mean 'epochs'" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_wrong_config_among_several_is_told_before_anything_runs(config, tmp_path):
    config.with_name("bad.json").write_text("{")
    done = call("--config", config, config.with_name("bad.json"), "--out", tmp_path / "logs")
    assert done.returncode == 2 and not (tmp_path / "logs").exists()


def test_the_demo_runs_shortened_from_another_folder(tmp_path):
    done = call("--config", PROJECT / "exps" / "slca_demo.json", "--set", "seed=0", "epochs=1", "ca_epochs=1", "--out", tmp_path,
                cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(next((tmp_path / "slca_demo").glob("*/results.json")).read_text())
    assert results["seeds"][0]["last"] > 30  # chance is 10
    assert results["environment"]["weights"]["source"] == "vit_demo_glyphs.safetensors"


SHORT = ["--set", "seed=[1]", "ca_epochs=0"]
PAGE = ("report.html", "curve.png", "matrix.png", "results.csv", "results_tidy.csv")


@pytest.mark.parametrize(("arguments", "code"), [
    (["--help"], 0), (["--version"], 0), (["list", "--help"], 0), (["predict", "--help"], 0), (["export", "--help"], 0), ([], 2),
    (["--config", "gone.json"], 2), (["--config", "{malformed}"], 2), (["--config", "{unknown}"], 2), (["lisst"], 2),
])
def test_what_needs_no_torch_waits_for_none(arguments, code, tmp_path):
    (tmp_path / "malformed").write_text('{"lr": 1,}')
    (tmp_path / "unknown").write_text('{"epocs": 1}')
    arguments = [a.format(malformed=tmp_path / "malformed", unknown=tmp_path / "unknown") for a in arguments]
    program = ("import sys, main\ntry: code = main.main(sys.argv[1:])\nexcept SystemExit as stop: code = stop.code\n"
               "print(code or 0, *({'torch', 'timm', 'matplotlib', 'numpy'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(code), done.stderr


@pytest.mark.parametrize("what", ["methods", "datasets", "backbones"])
def test_what_there_is_is_told_without_torch(what):
    program = "import sys, main; print(main.main(['list', sys.argv[1]]), *({'torch', 'timm', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program, what], cwd=PROJECT, capture_output=True, text=True, check=True)
    *names, code = done.stdout.splitlines()
    assert code == "0" and len(names) >= 4, done.stderr


def test_training_imports_no_matplotlib_before_the_first_picture():
    program = "import sys, trainer; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True).stdout == "False\n"


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(re.search(rf"main\.py {name}\b.* {{2,}}\S", printed) for name in COMMANDS)


@pytest.mark.parametrize(("arguments", "told"), [
    (["lisst", "methods"], "no command 'lisst'; did you mean 'list'"),
    (["exps/slca_demo.json"], "python main.py --config exps/slca_demo.json"),
    (["--config", "exps/slca_demo.json", "--after_task", "2"], "--after_task: belongs to --test_only"),
    (["--config", "exps/slca_demo.json", "--test_only", "--after_task", "0"], "--after_task: got 0, allowed: 1 or more"),
])
def test_a_command_that_makes_no_sense_is_told_what_to_type(arguments, told, capsys):
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_a_setting_inside_an_object_is_set_by_dots(config, tmp_path):
    assert main(["--config", str(config), *SHORT, "dataset.test_per_class=2", "--out", str(tmp_path / "logs")]) == 0
    assert read_results(only_run(tmp_path / "logs" / "tiny") / "results.json").config["dataset"]["test_per_class"] == 2


def test_quiet_shows_nothing_when_all_is_well_and_the_log_has_it(config, tmp_path, capsys):
    assert main(["--config", str(config), *SHORT, "--quiet", "--out", str(tmp_path / "logs")]) == 0
    out, err = capsys.readouterr()
    assert out == "" and all("pretrained is false" in line for line in err.splitlines())
    assert "task 3/3 done" in (only_run(tmp_path / "logs" / "tiny") / "seed1" / "log.txt").read_text()


def test_an_after_task_without_a_checkpoint_says_which_there_are(config, tmp_path, capsys):
    main(["--config", str(config), *SHORT, "--out", str(tmp_path)])
    assert main(["--config", str(config), *SHORT, "--out", str(tmp_path), "--test_only", "--after_task", "1"]) == 2
    error = capsys.readouterr().err
    assert "no checkpoint after task 1" in error and "there are task_02, task_03" in error and "train first" not in error


# The terminal ----------------------------------------------------------------------------------------------------


def test_a_run_whose_output_has_a_full_disk_behind_it_writes_everything(config, tmp_path):
    process = start_main(["--config", str(config), *SHORT, "--out", str(tmp_path / "logs")], Path("/dev/full"))
    process.join()
    run = only_run(tmp_path / "logs" / "tiny")
    assert process.exitcode == 0 and json.loads((run / "run.json").read_text())["finished"]
    assert all((run / name).stat().st_size for name in PAGE)


@pytest.mark.parametrize("arguments", [["--dry_run"], ["--out", "{tmp}/logs"]])
def test_a_run_whose_reader_is_gone_goes_on_in_silence(arguments, config, tmp_path, monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        assert main(["--config", str(config), *SHORT, *(a.format(tmp=tmp_path) for a in arguments)]) == 0
    assert "Broken" not in capsys.readouterr().err


# The last resort -------------------------------------------------------------------------------------------------


def fails(*_, **__):
    raise ZeroDivisionError("nobody\nforesaw it")


def test_an_error_that_nobody_foresaw_is_one_sentence_with_its_traceback_in_the_log(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer.Session, "measure", fails)
    assert main(["--config", str(config), *SHORT, "--out", str(tmp_path / "logs")]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    log_file = only_run(tmp_path / "logs" / "tiny") / "seed1" / "log.txt"
    assert len(told) == 1 and f"ZeroDivisionError: nobody (tests/test_main.py, line {fails.__code__.co_firstlineno + 1})" in told[0]
    assert str(log_file) in told[0] and f"continue with: python main.py --config {config}" in told[0] and "--resume" in told[0]
    assert "Traceback" in log_file.read_text() and "foresaw it" in log_file.read_text()


def test_an_error_before_there_is_a_log_keeps_its_traceback_in_a_file(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("models.tools.dry_run.describe_run", fails)
    assert main(["--config", str(config), "--dry_run"]) == 1
    kept, = tmp_path.glob("slca_*_traceback.txt")
    error = capsys.readouterr().err
    assert str(kept) in error and "--resume" not in error and "Traceback" not in error and "Traceback" in kept.read_text()


@pytest.mark.parametrize("arguments", [["report", "x" * 300], ["status", "x" * 300], ["compare", "a/" * 2500], ["predict", "x" * 300, "."],
                                       ["list", "methods", "--plugin", "x" * 300]], ids=lambda words: words[0])
def test_a_path_that_the_system_refuses_is_one_sentence_and_exit_code_2(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "File name too long" in error and len(error) < 500 and not list(tmp_path.iterdir())


# Results come first, pages after --------------------------------------------------------------------------------


def test_a_page_that_cannot_be_made_loses_no_seed(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "write_report", fails)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["--config", str(config), "--set", "ca_epochs=0", "--out", str(tmp_path / "logs")]) == 0
    run = only_run(tmp_path / "logs" / "tiny")
    assert len(read_results(run / "results.json").seeds) == 2
    assert "report.html could not be made: ZeroDivisionError" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["--config", str(config), "--set", "ca_epochs=0", "--out", str(tmp_path / "logs"), "--resume"]) == 0
    assert all((run / name).exists() for name in PAGE)


class Killed(BaseException):
    """As a kill ends a process: no handler of the program sees it."""


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    """(out folder, config file) of a run of two seeds that is done."""
    folder = tmp_path_factory.mktemp("two")
    config = folder / "tiny.json"
    config.write_text(json.dumps({**TINY, "ca_epochs": 0}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "write_report", lambda result, run: None)
        assert main(["--config", str(config), "--out", str(folder / "logs")]) == 0
    return folder / "logs", config


@pytest.mark.parametrize("place", ["results.csv", "results_tidy.csv", "results.json", "curve.png", "report.html", "run.json"])
def test_a_kill_between_any_two_files_of_a_seed_leaves_nothing_stale_after_a_resume(place, two_seeds, tmp_path, monkeypatch):
    """The last seed's write of `place` does not happen, nor anything after it."""
    out, config = two_seeds
    shutil.copytree(out, tmp_path / "logs")
    run = RunFolder(only_run(tmp_path / "logs" / "tiny"))
    both = read_results(run.path / "results.json")
    trainer._write(replace(both, seeds=both.seeds[:1], summary={}), run.path)
    run._write({**run.status(), "finished": False})
    real = files._replace

    def stop(target, data):
        if target.name == place:
            raise Killed
        real(target, data)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(files, "_replace", stop)
        trainer._write(both, run.path)
        run.finish()
    assert main(["--config", str(config), "--out", str(tmp_path / "logs"), "--resume"]) == 0
    result = read_results(run.path / "results.json")
    assert [seed.seed for seed in result.seeds] == [1, 2] and tables_are_current(result, run.path) and report_is_there(run.path)
    assert "seed 2" in (run.path / "report.html").read_text() and run.finished


def test_a_finished_run_whose_tables_or_pages_are_missing_or_stale_gets_them_back(config, tmp_path):
    command = ["--config", str(config), *SHORT, "--out", str(tmp_path / "logs"), "--resume"]
    main(command)
    run = only_run(tmp_path / "logs" / "tiny")
    (run / "results.csv").write_text("stale")
    (run / "matrix.png").unlink()
    assert main(command) == 0
    assert tables_are_current(read_results(run / "results.json"), run) and (run / "matrix.png").exists()


def test_a_full_disk_while_the_page_is_written_ends_the_run_in_one_sentence(config, tmp_path, monkeypatch):
    from utils.config import load_config

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "write_report", full)
    with pytest.raises(StorageError, match="the disk is full"):
        trainer.train(load_config(config), tmp_path / "logs", name="tiny")
    assert read_results(only_run(tmp_path / "logs" / "tiny") / "results.json").seeds
