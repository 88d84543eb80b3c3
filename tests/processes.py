"""Runs in processes of their own that start in milliseconds: forked from a server that has torch imported already."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from utils.config import Config

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["main", "trainer", "models.slca.slca", "tests.run_files"])


def start_main(arguments: list[str], output: Path, file_limit: int | None = None) -> BaseProcess:
    """`python main.py ARGUMENTS`, its output appended to a file; no file of it can grow beyond `file_limit` bytes."""
    process = SERVER.Process(target=_main, args=(arguments, str(output), file_limit))
    process.start()
    return process


def _main(arguments: list[str], output: str, file_limit: int | None) -> None:
    run_as_main(arguments, output, prepare=lambda: None if file_limit is None else resource.setrlimit(
        resource.RLIMIT_FSIZE, (file_limit, file_limit)))


def run_as_main(arguments: list[str], output: str, prepare: Callable[[], object]) -> None:
    """In a forked process: `python main.py ARGUMENTS`, its output appended to a file; never returns."""
    import main

    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    prepare()
    sys.exit(main.main(arguments))


def write_config(config: Config, path: Path) -> Path:
    path.write_text(json.dumps(config.model_dump(mode="json")))
    return path


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Until `condition` holds; one that meets a folder that a run removes in this moment (FileNotFoundError) does not hold yet."""
    end = time.monotonic() + seconds
    while not _holds(condition):
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.005)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except FileNotFoundError:
        return False
