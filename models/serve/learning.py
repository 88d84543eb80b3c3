"""`main.py extend` in a process of its own, so that learning neither stops the answers nor can break the server."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import PROJECT
from utils.run.runs import read_status, runs_in

log = logging.getLogger("slca.serve")
LINES = 200  # of the process's output that are kept
PATIENCE = 20.0  # seconds that it has to stop in order


class Learning:
    """At most one `extend` at a time, and how it goes: idle, running, done or failed."""

    def __init__(self) -> None:
        self.state = "idle"
        self._lines: deque[str] = deque(maxlen=LINES)
        self._started = self._ended = 0.0
        self._process: subprocess.Popen[str] | None = None
        self._watcher: threading.Thread | None = None

    @property
    def running(self) -> bool:
        return self.state == "running"

    def start(self, arguments: Sequence[str], done: Callable[[], None], failed: Callable[[], None]) -> None:
        """`python main.py ARGUMENTS`; then `done()` or `failed()` is called, in a thread."""
        assert not self.running, "one at a time"
        self.state, self._started, self._ended = "running", time.monotonic(), 0.0
        self._lines.clear()
        self._watcher = threading.Thread(target=self._watch, args=(list(arguments), done, failed), name="learning", daemon=True)
        self._watcher.start()

    def status(self) -> dict[str, Any]:
        """State, seconds since the start, and the last lines that the process printed."""
        seconds = (self._ended or time.monotonic()) - self._started if self._started else 0.0
        return {"state": self.state, "seconds": round(seconds, 1), "lines": list(self._lines)}

    def stop(self) -> None:
        """End the process in order, by force if it takes too long, and wait until `failed` was called."""
        end, asked = time.monotonic() + PATIENCE, None
        while self._watcher is not None and self._watcher.is_alive():  # it may not have started the process yet
            process = self._process
            if process is not None and process.poll() is None:
                if process is not asked:
                    process.terminate()
                    asked = process
                elif time.monotonic() > end:
                    process.kill()
            self._watcher.join(0.1)

    def _watch(self, arguments: list[str], done: Callable[[], None], failed: Callable[[], None]) -> None:
        state, learned = "failed", False
        try:
            try:
                learned = self._run(arguments)
            finally:  # also where it could not be started
                (done if learned else failed)()
            state = "done" if learned else "failed"
        except Exception as error:  # told on the page, whatever it is; the old model goes on answering
            log.exception("learning failed")
            self._lines.append(f"error: {error}")
        self._ended = time.monotonic()
        self.state = state

    def _run(self, arguments: list[str]) -> bool:
        """Run the program with `arguments` to its end, its lines on the page; whether it succeeded. Raises OSError."""
        with subprocess.Popen([sys.executable, "-u", str(PROJECT / "main.py"), *arguments], stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="backslashreplace") as process:
            self._process = process
            assert process.stdout is not None, "asked for with PIPE"
            for line in process.stdout:
                self._lines.append(line.rstrip())
        return process.returncode == 0


def child_of(parent: Path) -> Path:
    """The newest finished run that went on from the run `parent`. Raises UserError: there is none."""
    for run in reversed(runs_in(parent.parent)):
        status = read_status(run)
        if status.get("finished") and (status.get("parent") or {}).get("run") == str(parent.resolve()):
            return run
    raise UserError(f"no finished run in {parent.parent} went on from {parent}")
