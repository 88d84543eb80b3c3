"""`"tensorboard": true`: each seed's metrics.jsonl as an event file in its folder, for `tensorboard --logdir logs`.

Written by tensorboard's own parts, but in the calling thread: its usual writer is a thread, whose errors nobody can catch.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from utils.extras import extra
from utils.run.events import Event
from utils.trackers.records import RECORDS, Steps, named_numbers, written_records

EVENT_FILE = "events.out.tfevents"  # how a name begins that tensorboard reads
VERSION = "brain.Event:2"


class TensorBoard:
    """One log of each seed, <run>/seed<N>/tensorboard.

    A resumed seed's log is written anew from metrics.jsonl: nothing that the run computes again is in it twice. Raises UserError
    without the package.
    """

    name = "TensorBoard"

    def __init__(self) -> None:
        self._summary: ModuleType = extra("torch.utils.tensorboard.summary", "trackers", '"tensorboard": true')
        self._file: EventFile | None = None  # while a seed goes on
        self._steps = Steps()
        self._config: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        kind = event["kind"]
        if kind == "run_start":
            self._config = event["config"]
        elif kind == "seed_start":
            self._open(Path(event["folder"]))
        elif kind in RECORDS:
            self._add(event)
            self._file.flush()
        elif kind == "seed_end" and self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, seed_folder: Path) -> None:
        folder = seed_folder / "tensorboard"
        for older in folder.glob(f"{EVENT_FILE}.*"):
            older.unlink()
        folder.mkdir(exist_ok=True)
        self._file, self._steps = EventFile(folder / f"{EVENT_FILE}.{int(time.time())}.{os.getpid()}"), Steps()
        self._file.add(0, self._summary.text("config", f"```json\n{json.dumps(self._config, indent=2)}\n```"))
        for record in written_records(seed_folder):
            self._add(record)
        self._file.flush()

    def _add(self, record: Event) -> None:
        step = self._steps.of(record)
        for name, number in named_numbers(record).items():
            self._file.add(step, self._summary.scalar(name, number))


class EventFile:
    """A file of tensorboard's events, each whole when it is there."""

    def __init__(self, path: Path) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._events = event_pb2
        self._stream = path.open("wb")
        self._writer = RecordWriter(self._stream)
        self._write(file_version=VERSION)
        # an open page of tensorboard drops what it had read of the log before
        self._write(step=0, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def add(self, step: int, summary: Any) -> None:
        self._write(step=step, summary=summary)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()

    def _write(self, **facts: Any) -> None:
        self._writer.write(self._events.Event(wall_time=time.time(), **facts).SerializeToString())
