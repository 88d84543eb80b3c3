"""The terminal shows what a run does and never decides it.

Whatever stands behind stdout and stderr (a pipe whose reader is gone, a full disk, an ASCII terminal, nothing at all) no run
fails because a line cannot be shown. Control characters in names are shown, never obeyed.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

log = logging.getLogger("slca")

# C0 and C1 controls but tab and line feed, separators that terminals take for line ends, marks that turn the writing direction,
# and surrogates: what python makes of bytes that are not UTF-8. A progress bar's own "one line up" is let through.
STEERING = re.compile(r"(?!\x1b\[A)[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
STYLES = {"bold": "1", "dim": "2", "red": "1;31", "green": "32", "yellow": "33"}  # numbers of ECMA-48's SGR
NARROW = {"±": "+-", "·": "-", "…": "...", "–": "-"}  # of our own words, for terminals without them


def visible(text: str, keep: str = "") -> str:
    r"""`text` with control characters written out (\x1b) and bytes that are not UTF-8 likewise (\xe9); those in `keep` stay."""
    return STEERING.sub(lambda found: found[0] if found[0] in keep else _written_out(ord(found[0])), text)


def visible_name(name: str) -> str:
    """A name as one line: line feeds and tabs written out too."""
    return visible(name.replace("\x1b[A", "\x1b [A")).replace("\n", r"\n").replace("\t", r"\t")


def _written_out(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # python's stand-in for a byte of a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def show(text: str = "", *, error: bool = False, label: str = "", style: str = "") -> None:
    """Print a line on stdout (or stderr) if that is possible.

    Args:
        label: stands before the text.
        style: a name of `STYLES`; colours the label, or the text where there is none, on terminals that have colours.
    """
    stream = sys.stderr if error else sys.stdout
    label, text = visible(label), visible(text)
    if style and has_colours(stream):
        label, text = (styled(label, style), text) if label else (label, styled(text, style))
        stream = stream.unguarded if isinstance(stream, _Steady) else stream  # our own sequences are to be obeyed
    _write(stream, f"{label} {text}\n" if label and text else f"{label}{text}\n")
    _flush(stream)


def styled(text: str, style: str) -> str:
    """`text` between the sequences that switch a style on and off, line by line."""
    return "\n".join(f"\x1b[{STYLES[style]}m{line}\x1b[0m" if line else line for line in text.split("\n"))


def has_colours(stream: Any, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a stream shows colours: NO_COLOR (no-color.org) and FORCE_COLOR decide, then whether it is a terminal that has them."""
    if environment.get("NO_COLOR"):
        return False
    forced = environment.get("FORCE_COLOR", "")
    if forced:
        return forced != "0"
    if environment.get("TERM") == "dumb" or (os.name == "nt" and "WT_SESSION" not in environment):
        return False
    with suppress(OSError, ValueError, AttributeError):  # ValueError: closed; AttributeError: no stream at all
        return bool(stream.isatty())
    return False


def shows_bars() -> bool:
    """Whether a progress bar on stderr is seen by somebody."""
    with suppress(OSError, ValueError):  # ValueError: closed
        return sys.stderr is not None and sys.stderr.isatty()
    return False


class TerminalHandler(logging.Handler):
    """Shows each record's message on stdout, warnings in yellow; tracebacks are for log.txt. With `verbose_terminal` more of it."""

    detailed = False

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.name}" if self.detailed else ""
        show(record.getMessage(), label=prefix, style=style_of(record))


def style_of(record: logging.LogRecord) -> str:
    """The style of a record's level; none for information."""
    return "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else ""


@contextmanager
def verbose_terminal() -> Iterator[None]:
    """Inside, every line of the log has its time and where it came from."""
    TerminalHandler.detailed = True
    try:
        yield
    finally:
        TerminalHandler.detailed = False


@contextmanager
def steady_terminal() -> Iterator[None]:
    """Inside, nothing that anybody prints can fail, and closed standard descriptors are replaced by the null device."""
    _open_missing_descriptors()
    before = sys.stdout, sys.stderr, logging.raiseExceptions
    sys.stdout, sys.stderr = _Steady(sys.stdout), _Steady(sys.stderr, keep="\r")
    logging.raiseExceptions = False  # other libraries' handlers
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr, logging.raiseExceptions = before


@contextmanager
def quiet_terminal() -> Iterator[None]:
    """Inside `steady_terminal`: only warnings and errors are shown, on stderr."""
    stdout, stderr = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout, sys.stderr = _Steady(nowhere), _Steady(stderr, bars=False)
        handler = _WarningHandler(logging.WARNING)
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)
            sys.stdout, sys.stderr = stdout, stderr


class _WarningHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        show(record.getMessage(), error=True, style=style_of(record))


class _Steady:
    """A text stream whose writing never fails; everything else is the stream's own."""

    def __init__(self, stream: Any, keep: str = "", bars: bool = True) -> None:
        self._stream: Any = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115 (lives as long)
        self._keep, self._bars = keep, bars

    @property
    def unguarded(self) -> Any:
        """The stream itself."""
        return self._stream

    def write(self, text: str) -> int:
        _write(self._stream, visible(text, self._keep))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        _flush(self._stream)

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self._bars and self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _write(stream: TextIO | _Steady | None, text: str) -> None:
    if stream is None:  # pythonw, or a descriptor that was closed before python started
        return
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = getattr(stream, "encoding", None) or "ascii"
        for ours, narrow in NARROW.items():
            text = text.replace(ours, narrow)
        _write(stream, text.encode(encoding, "backslashreplace").decode(encoding))
    except (OSError, ValueError):  # ValueError: the stream was closed
        _silence(stream)


def _flush(stream: TextIO | _Steady | None) -> None:
    if stream is not None:
        try:
            stream.flush()
        except (OSError, ValueError):
            _silence(stream)


def _silence(stream: TextIO | _Steady) -> None:
    """Point a stream that cannot be written to the null device, so that what it still holds fails nowhere, also not at exit."""
    with suppress(OSError, ValueError):  # ValueError: closed, or no file at all
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)


def _open_missing_descriptors() -> None:
    """A file opened while 0, 1 or 2 is closed would get that number, and with it what libraries print there."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
