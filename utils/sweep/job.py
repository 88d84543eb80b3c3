"""What a job does: one command of the project in a process of its own, ended in order when its time is over, and begun again.

submitit carries a `CommandJob` to where it runs. It is pickled with its code (`places.py`), so this file needs nothing but the
standard library, and submitit there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LOOK_SECONDS = 0.2    # between looks at the command
ORDER_SECONDS = 60.0  # that a command may take to end in order; submitit sends its signal 90 s before the time is over


class CommandJob:
    """Run a command; its exit code goes into a file, so that whoever looks later need not load a pickle.

    Args:
        command: program and arguments; resumed: the same for the second time, when the job was requeued.
        folder: where it starts; exit_file: gets the exit code as text.
        environment: variables besides those of the job.
    """

    def __init__(self, command: Sequence[str], resumed: Sequence[str], folder: str, exit_file: str, environment: Mapping[str, str]) -> None:
        self.command, self.resumed = list(command), list(resumed)
        self.folder, self.exit_file, self.environment = folder, exit_file, dict(environment)
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """The command's exit code. Whatever ends the job ends the command too."""
        local = os.environ.get("SUBMITIT_EXECUTOR") == "local"
        if local:
            signal.signal(signal.SIGTERM, _stop)  # submitit's own handler passes it over; on a cluster that is right
        self.process = subprocess.Popen(self.command, cwd=self.folder, env={**os.environ, **self.environment}, preexec_fn=_deaf,
                                        start_new_session=local)  # a terminal's Ctrl-C is for the sweep; Slurm must find all processes
        try:
            while self.process.poll() is None:
                time.sleep(LOOK_SECONDS)  # not wait(): the signal's handler could not wait a second time
        except BaseException:
            self.end()
            raise
        code = self.process.returncode
        temporary = Path(f"{self.exit_file}.tmp")
        temporary.write_text(f"{code}\n")
        os.replace(temporary, self.exit_file)
        return code

    def checkpoint(self) -> Any:
        """submitit calls this before it requeues a job whose time is over: end in order, and go on later with `resumed`."""
        from submitit.helpers import DelayedSubmission

        self.end()
        return DelayedSubmission(CommandJob(self.resumed, self.resumed, self.folder, self.exit_file, self.environment))

    def end(self) -> None:
        """Stop the command with SIGTERM, and after ORDER_SECONDS with SIGKILL."""
        if self.process is None:
            return
        end = time.monotonic() + ORDER_SECONDS
        self.process.terminate()
        while self.process.poll() is None and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
        self.process.kill()


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _deaf() -> None:
    """The signal that announces the end of the job reaches all its processes; only the job itself answers it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
