"""The doctor's report: what is wrong is named with the way out, and decides the exit code."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import main
from utils.doctor import data_sets, machine, packages, report
from utils.doctor.check import Check, lines, works
from utils.doctor.experiments import needs
from utils.doctor.files import file_words, folder_words
from utils.errors import RunFailed
from utils.files import PROJECT, file_sha256

GIB = 2**30


def test_a_missing_and_an_old_required_package_fail_with_the_command_that_mends_it(tmp_path, monkeypatch):
    (tmp_path / "requirements.txt").write_text("numpy>=1.0\nno-such-package>=2.1  # why\ntorch>=99.0\n# a comment\n")
    found = {check.name: check for check in packages.version_checks(tmp_path / "requirements.txt")}
    assert found["numpy"].state == "ok"
    assert found["no-such-package"].state == "failed" and 'pip install "no-such-package>=2.1"' in found["no-such-package"].words
    assert found["torch"].state == "failed" and "--upgrade" in found["torch"].words


def test_a_missing_optional_group_is_absent_and_not_a_failure(monkeypatch):
    monkeypatch.setattr(packages, "groups", lambda: {"serve": ["no-such-package>=1"]})
    check = packages.version_checks()[-1]
    assert check.state == "absent" and "python main.py serve" in check.words and "no-such-package" in check.words


@pytest.mark.parametrize(("version", "least", "enough"), [
    ("2.14.1", "2.9", True), ("2.9.0+cu128", "2.9", True), ("2.8", "2.9", False), ("1.0.0rc1", "1.0", True), ("10.0", "9.1", True)])
def test_versions_compare_by_their_numbers(version, least, enough):
    assert packages.at_least(version, least) == enough


def test_little_memory_disk_and_shared_memory_are_warnings_with_a_way_out(monkeypatch, tmp_path):
    assert machine.memory_check(GIB).state == "warning" and '"cache"' in machine.memory_check(GIB).words
    assert machine.memory_check(64 * GIB).state == machine.memory_check(None).state == "ok"
    usage = type("Usage", (), {"free": GIB // 4})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    assert machine.disk_check("disk", tmp_path / "not" / "there").state == "warning"
    assert "--shm-size" in machine.shared_memory_check(tmp_path).words
    assert machine.shared_memory_check(tmp_path / "none").state == "ok"
    usage.free = 1000
    assert machine.disk_check("disk", tmp_path).state == "failed"


def test_a_gpu_is_named_with_its_driver_and_a_torch_without_cuda_is_a_warning(monkeypatch):
    told = subprocess.CompletedProcess([], 0, stdout="NVIDIA H100, 550.54, 81559, 81000\n")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: told)
    monkeypatch.setattr(machine, "torch_cuda", lambda: None)
    (check,) = machine.gpu_checks()
    assert check.state == "warning" and "NVIDIA H100, driver 550.54, 81000 of 81559 MiB free" in check.words
    assert "without CUDA" in check.words
    monkeypatch.setattr(machine, "torch_cuda", lambda: "12.8")
    assert machine.gpu_checks()[0].state == "ok"


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(machine.subprocess, "run", missing)
    assert machine.gpu_checks()[0].state == "absent"


def test_files_are_told_with_size_and_checksum_and_a_changed_shipped_file_is_noticed(tmp_path):
    file = tmp_path / "net.safetensors"
    file.write_bytes(b"weights")
    words, right, facts = file_words(file)
    assert right and file_sha256(file)[:12] in words and facts["sha256"] == file_sha256(file) and facts["as_stated"] is None
    (tmp_path / "net.md").write_text(f"| sha256 | `{file_sha256(file)}` |")
    assert "as stated" in file_words(file)[0]
    file.write_bytes(b"other weights")
    words, right, _ = file_words(file)
    assert not right and "not the shipped file" in words


def test_a_folder_s_digest_follows_names_and_sizes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"123")
    words, facts = folder_words(tmp_path)
    assert "1 files, 3 B" in words
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "2.png")
    assert folder_words(tmp_path)[1]["names_and_sizes_sha256"] != facts["names_and_sizes_sha256"]


def test_shipped_images_are_there_and_a_benchmark_that_is_not_says_how_to_get_it(tmp_path):
    found = {check.name: check for check in data_sets.data_checks(tmp_path)}
    assert found["icons50"].state == "ok" and found["icons50"].facts["sha256"] == file_sha256(PROJECT / "exps" / "streams" / "icons50.npz")
    assert found["imagenet-r"].state == "absent" and "of the experiments: " in found["imagenet-r"].words
    (tmp_path / "imagenet-r" / "n01").mkdir(parents=True)
    (tmp_path / "imagenet-r" / "n01" / "1.jpg").write_bytes(b"1234")
    assert {check.name: check for check in data_sets.data_checks(tmp_path)}["imagenet-r"].state == "ok"


def test_experiments_that_need_the_same_thing_are_counted_together(tmp_path):
    for name, mean in (("one", 0.1), ("two", 0.2)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"dataset": {"name": name, "root": "a.npz", "mean": [mean]}}))
    (tmp_path / "broken.json").write_text("{")
    (need,) = needs("dataset", tmp_path)
    assert need.experiments == ["one", "two"]


def test_a_failed_check_decides_the_exit_code_and_others_do_not(monkeypatch, capsys):
    monkeypatch.setattr(report, "version_checks", lambda: [])
    fine = [Check("machine", "GPU", "absent", "none"), Check("machine", "disk", "warning", "little")]
    monkeypatch.setattr(report, "machine_checks", lambda root: fine)
    arguments = Namespace(data_root="data", json=True)
    report.examine(arguments, lambda _: [])
    assert json.loads(capsys.readouterr().out)["ok"] is True
    with pytest.raises(RunFailed, match="1 of 3 checks failed: self-test one step"):
        report.examine(arguments, lambda _: [Check("self-test", "one step", "failed", "why")])
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_a_package_that_cannot_be_imported_is_a_failed_check_and_no_crash(monkeypatch, capsys):
    def missing(arguments):
        raise ModuleNotFoundError("No module named 'pydantic'")

    with pytest.raises(RunFailed, match="self-test start"):
        report.examine(Namespace(data_root="data", json=False), missing)
    assert "No module named 'pydantic'" in capsys.readouterr().out


def test_the_report_has_a_heading_for_each_part():
    checks = [Check("machine", "memory", "ok", "4 GiB free"), Check("weights", "vit", "absent", "not there")]
    assert [(line.label.strip(), line.text) for line in lines(checks)] == [
        ("machine", ""), ("ok", "memory: 4 GiB free"), ("weights", ""), ("absent", "vit: not there")]
    assert works(checks)


def test_what_is_looked_at_needs_no_torch_and_the_program_itself_no_package():
    program = ("import sys, main\nprint(*{'pydantic', 'numpy', 'torch'} & set(sys.modules), 'loaded')\n"
               "code = main.main(['doctor', '--no_self_test', '--json'])\n"
               "print(code, *{'torch', 'timm'} & set(sys.modules), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    first, _, rest = done.stdout.partition("\n")
    assert first == "loaded" and json.loads(rest)["ok"] and done.stderr.splitlines()[-1] == "0"


def test_doctor_and_cache_are_commands_that_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main(["cache", "--data_root", "none"]) == 0 and "holds no decoded images" in capsys.readouterr().out
    assert main.main(["doctor", "--device", "cpu", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    tested = [check for check in checks if check["part"] == "self-test"]
    assert [(check["name"], check["state"]) for check in tested] == [("one step", "ok"), ("one alignment", "ok"), ("one resume", "ok")]
    assert "bit for bit" in tested[2]["words"] and not list(Path(tmp_path).iterdir())
