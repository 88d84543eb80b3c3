"""Files are the old version or the new one; what is no regular file is written into, never replaced."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from utils import files
from utils.files import links_that_leave, write_atomic

PROJECT = Path(__file__).parents[2]


def test_a_regular_file_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path):
    target = tmp_path / "new" / "file.txt"
    for text in ("old", "new ✓"):
        assert write_atomic(target, text) == target
        assert target.read_text(encoding="utf-8") == text and list(target.parent.iterdir()) == [target]


def test_the_null_device_stays_a_device(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    for path in (Path("/dev/null"), link):
        write_atomic(path, "gone")
        assert stat.S_ISCHR(path.stat().st_mode)
    assert link.is_symlink()


def test_a_full_device_is_an_error_and_stays(tmp_path):
    with pytest.raises(OSError, match="No space") as full:
        write_atomic("/dev/full", "x" * 100_000)
    assert full.value.filename == "/dev/full"  # the system says it without the place
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_named_pipe_gets_the_bytes_and_stays_a_pipe(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_atomic(pipe, "a,b\n" * 50_000)
    reader.join(timeout=20)
    assert read == [b"a,b\n" * 50_000] and pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_a_named_pipe_that_nobody_reads_is_waited_for_with_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIPE_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="nobody reads"):
        write_atomic(tmp_path / "pipe", "x")


@pytest.mark.parametrize("exists", [True, False], ids=["to a file", "to nothing yet"])
def test_a_link_is_followed_and_stays_a_link(exists, tmp_path):
    target, first, second = tmp_path / "far" / "target.csv", tmp_path / "first", tmp_path / "second"
    target.parent.mkdir()
    if exists:
        target.write_text("old")
    second.symlink_to(target)
    first.symlink_to("second")
    write_atomic(first, "new")
    assert target.read_text() == "new" and not target.is_symlink()
    assert first.is_symlink() and second.is_symlink() and list(target.parent.iterdir()) == [target]


def test_a_link_to_itself_is_an_error_not_a_loop(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        write_atomic(tmp_path / "loop", "x")


@pytest.mark.parametrize("behind", ["file", "pipe"])
def test_dev_stdout_is_written_in_its_place_among_what_is_printed(behind, tmp_path):
    program = "from utils.files import write_atomic; print('before'); write_atomic('/dev/stdout', 'table\\n'); print('after')"
    command = [sys.executable, "-c", program]
    if behind == "file":
        with (tmp_path / "out.txt").open("w") as out:
            subprocess.run(command, cwd=PROJECT, stdout=out, check=True)
        written = (tmp_path / "out.txt").read_text()
    else:
        written = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert written == "before\ntable\nafter\n"


def test_a_planted_temporary_link_is_not_written_through(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to(elsewhere)
    write_atomic(tmp_path / "file", "new")
    assert elsewhere.read_text() == "mine" and (tmp_path / "file").read_text() == "new"


def test_text_that_utf8_cannot_hold_is_written_out(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    assert write_atomic(tmp_path / "a", name + "é\ud800").read_text(encoding="utf-8") == "caf\\xe9é\\ud800"


def test_the_longest_names_that_a_disk_takes_can_be_written(tmp_path):
    for name in ("n" * 255, "名" * 85):
        assert write_atomic(tmp_path / name, "x").read_text() == "x"


def test_links_that_leave_a_folder_are_found_however_deep_and_those_inside_are_not(tmp_path):
    run = tmp_path / "run"
    (run / "seed1").mkdir(parents=True)
    (run / "seed1" / "log.txt").symlink_to(tmp_path / "foreign.txt")
    (run / "checkpoints").symlink_to(tmp_path)
    (run / "inside").symlink_to(run / "seed1")
    assert links_that_leave(run) == [run / "checkpoints", run / "seed1" / "log.txt"]
