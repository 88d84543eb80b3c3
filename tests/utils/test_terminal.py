"""Nothing that stands behind stdout or stderr can fail a program."""

import io
import logging
import os
import re
import sys

import pytest

from utils.terminal import (
    TerminalHandler,
    has_colours,
    quiet_terminal,
    show,
    shows_bars,
    steady_terminal,
    verbose_terminal,
    visible,
    visible_name,
)


def reader_gone():
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


def disk_full():
    return open("/dev/full", "w")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [reader_gone, disk_full, closed, lambda: None], ids=["reader gone", "disk full", "closed", "none"])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_cannot_be_written_fails_nothing(stream, name, monkeypatch):
    stream = stream()
    monkeypatch.setattr(sys, name, stream)
    log = logging.getLogger("slca.terminal_test")
    log.addHandler(TerminalHandler())
    show("x" * 100_000)
    show("x" * 100_000, error=True)
    log.warning("± careful")
    with steady_terminal():
        print("x" * 100_000)
        print("x" * 100_000, file=sys.stderr, flush=True)
        assert not sys.stderr.isatty()
    assert not shows_bars()
    if stream is not None:
        stream.close()  # what it still held is gone: closing does not fail either


def test_a_narrow_terminal_shows_what_it_can(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    show("79.83 ± 0.69 in 名 and " + os.fsdecode(b"caf\xe9"))
    with steady_terminal():
        print("café ±")
    assert raw.getvalue() == b"79.83 +- 0.69 in \\u540d and caf\\xe9\ncaf\\xe9 +-\n"


@pytest.mark.parametrize(("raw", "shown"), [
    ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"), ("\x9b2J", r"\x9b2J"), ("a\rb", r"a\x0db"), ("a\x00\x7f", r"a\x00\x7f"),
    ("\u202egnp.exe", r"\u202egnp.exe"), ("a\u2028b", r"a\u2028b"), (os.fsdecode(b"\xff"), r"\xff"), ("naïve 名 ✓", "naïve 名 ✓"),
])
def test_control_characters_are_shown_not_obeyed(raw, shown):
    assert visible(raw) == shown == visible_name(raw)


def test_a_name_is_one_line():
    assert visible_name("a\nb\tc\x1b[Ad") == r"a\nb\tc\x1b [Ad" and visible("a\n\tb") == "a\n\tb"


def test_raw_prints_are_made_visible_too_and_progress_bars_still_move(monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with steady_terminal():
        print("\x1b[2Jgone\r")
        sys.stderr.write("\r 50%\x1b[A")
    assert out.getvalue() == "\\x1b[2Jgone\\x0d\n" and err.getvalue() == "\r 50%\x1b[A"
    assert sys.stdout is out and sys.stderr is err


def test_quiet_shows_warnings_and_errors_alone(capsys):
    log = logging.getLogger("slca")
    with steady_terminal(), quiet_terminal():
        print("table")
        log.info("epoch")
        log.warning("careful")
        show("error: gone", error=True)
        assert not shows_bars()
    show("after")
    assert capsys.readouterr() == ("after\n", "careful\nerror: gone\n")


@pytest.mark.parametrize(("environment", "terminal", "coloured"), [
    ({}, True, True), ({}, False, False), ({"NO_COLOR": "1"}, True, False), ({"NO_COLOR": ""}, True, True), ({"TERM": "dumb"}, True, False),
    ({"FORCE_COLOR": "1"}, False, True), ({"FORCE_COLOR": "0"}, True, False), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
    ({"FORCE_COLOR": "1", "TERM": "dumb"}, False, True),
])
@pytest.mark.skipif(os.name == "nt", reason="consoles there have colours or not by other signs")
def test_colours_are_shown_where_the_terminal_has_them_and_nobody_forbids_them(environment, terminal, coloured, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    assert has_colours(stream, environment) == coloured


@pytest.mark.parametrize("stream", [None, closed()], ids=["none", "closed"])
def test_a_stream_that_is_not_there_has_no_colours(stream):
    assert not has_colours(stream, {})


def test_a_label_is_coloured_and_control_characters_in_the_text_are_still_shown(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with steady_terminal():
        show("a\x1b[31mb", label="error:", style="red")
        shown = sys.stdout.getvalue()
    assert shown == "\x1b[1;31merror:\x1b[0m a\\x1b[31mb\n"


def test_without_colours_a_label_is_plain_text(monkeypatch, capsys):
    monkeypatch.setenv("NO_COLOR", "1")
    show("no such file", label="error:", style="red")
    assert capsys.readouterr().out == "error: no such file\n"


def test_verbose_lines_say_when_and_from_where(capsys):
    record = logging.LogRecord("slca.data", logging.INFO, "", 1, "read", None, None)
    with verbose_terminal():
        TerminalHandler().emit(record)
    TerminalHandler().emit(record)
    detailed, plain = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d slca.data read", detailed) and plain == "read"
