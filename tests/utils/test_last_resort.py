"""An error that nobody foresaw: one sentence, and a file with the traceback."""

from pathlib import Path

import pytest

from utils.errors import UserError
from utils.last_resort import keep_traceback, one_sentence, refused_path, told


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(("error", "sentence"), [
    (UserError("epochs: got 'x'"), r"epochs: got 'x'"),
    (ValueError("no shape\n  at c10::impl\n"), r"ValueError: no shape (tests/utils/test_last_resort.py, line 13)"),
    (MemoryError(), r"MemoryError (tests/utils/test_last_resort.py, line 13)"),
    (PermissionError(13, "Permission denied", "/data/x"), "/data/x: Permission denied"),
])
def test_an_error_is_one_line_with_its_place(error, sentence):
    assert one_sentence(raised(error)) == sentence


def test_the_traceback_is_kept_in_the_runs_log_or_in_a_new_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    error = raised(KeyError("lost"))
    kept = keep_traceback(error)
    assert kept.parent == tmp_path and "Traceback" in kept.read_text() and "KeyError: 'lost'" in kept.read_text()
    assert str(tmp_path) in told(error) and "Traceback" not in told(error)
    error.log_file = Path("logs/run/seed1/log.txt")
    assert keep_traceback(error) == error.log_file


def test_a_path_that_the_system_refuses_is_told_and_no_other_error():
    with pytest.raises(OSError) as too_long:
        (Path("x" * 400) / "run.json").stat()
    assert refused_path(too_long.value) == (f"{'x' * 300}... cannot be used: File name too long; name another place, or make room or give "
                                            "permission there")
    for other in (ValueError("x"), OSError("x"), FileNotFoundError(2, "No such file or directory", "x")):
        assert refused_path(other) is None


def test_an_error_is_told_where_no_traceback_can_be_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert told(raised(KeyError("lost"))).endswith("; the traceback could not be kept (--verbose shows it)")
