"""What can go wrong with worker processes, told in one sentence; and a limit to every wait for them.

A worker can be killed (by the system when memory is short, by SIGBUS when /dev/shm is full), run out of file descriptors
or shared memory, or stop answering. torch's loader knows of the first alone, and may say so in the middle of any line of
the program; what a worker cannot send is lost, and the loader waits for it for ever.
"""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.resource_sharer  # needed by every worker; later there may be no descriptor left to import it with
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from torch.utils.data import Dataset

from utils.errors import UserError, first_line

PATIENCE = 600.0  # seconds that a batch may take; after that the workers are ended
TICK = 1.0  # seconds; only those are counted in which this process runs, so that a suspended program loses no patience
SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EAGAIN, errno.EDQUOT}
SHORTAGE_WORDS = (  # torch raises plain RuntimeErrors; "ancdata": there was no descriptor free for the one that was sent
    "shared memory", "allocate memory", "Too many open files", "No space left", "unable to mmap", "ancdata", "start new thread",
    "No usable temporary directory")


class WorkerTrouble:
    """What a worker, or the way from it, could not do; travels in a batch's place."""

    def __init__(self, words: str) -> None:
        self.words = words


class Sending(Dataset):
    """A dataset for worker processes: whatever goes wrong with an item arrives as a `UserError` or a `WorkerTrouble`.

    Args:
        inner: item -> anything that can be pickled. Its UserErrors are handed over: raised in a worker they would come
            back wrapped in a traceback.
    """

    def __init__(self, inner: Dataset) -> None:
        self.inner = inner

    def __getitem__(self, item: Any) -> _Packed | UserError | WorkerTrouble:
        try:
            return _Packed(self.inner[item])
        except UserError as error:
            return WorkerTrouble(words_of(error)) if shortage(error) else UserError(str(error))
        except (OSError, MemoryError, RuntimeError) as error:
            if not shortage(error):
                raise
            return WorkerTrouble(words_of(error))


class _Packed:
    """An object pickled at once, where a failure can be told: the queue's own thread would only print it and go on."""

    def __init__(self, content: Any) -> None:
        self.data = bytes(ForkingPickler.dumps(content))  # tensors go to shared memory

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (self.data,)


def _unpacked(data: bytes) -> Any:
    """In the main process: the content, as soon as it arrives from a worker that this run started. No file is read here."""
    try:
        return ForkingPickler.loads(data)
    except (OSError, EOFError, RuntimeError) as error:  # its worker has died, or no descriptor is free
        return WorkerTrouble(f"a batch was lost on its way ({words_of(error)})")


def shortage(error: BaseException | None) -> bool:
    """Whether `error`, or one behind it, says that memory, shared memory, file descriptors or processes ran out."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in SHORTAGES):
            return True
        if any(words in str(error) for words in SHORTAGE_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def words_of(error: BaseException) -> str:
    """The first line of an error."""
    return first_line(error)[:200]


def trouble_told(what: str, num_workers: int) -> UserError:
    """The one sentence for everything that stops worker processes, with the ways out."""
    shared = ""
    with suppress(OSError):
        free = shutil.disk_usage("/dev/shm").free
        shared = f" ({free / 2**20:,.0f} MiB free now; in a container raise --shm-size)"
    return UserError(f"the worker processes that read images cannot go on: {what}. Usually memory is short, or /dev/shm{shared}, or "
                     f"the limit of open files (ulimit -n); lower num_workers (now {num_workers}; 0 reads images in the main process) "
                     "or batch_size, then continue with --resume")


class Watch:
    """The processes of one loader: started without torch's signal handler, ended when nothing comes from them any more."""

    def __init__(self) -> None:
        self.processes: list[BaseProcess] = []
        self.gave_up = False
        self._ticks_left: float | None = None  # None: nobody waits
        self._closed = threading.Event()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Inside, the loader starts its processes."""
        others = set(multiprocessing.active_children())
        main_thread = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGCHLD) if main_thread and hasattr(signal, "SIGCHLD") else None
        try:
            yield
        finally:
            self.processes = [child for child in multiprocessing.active_children() if child not in others]
            if handler is not None:  # torch's raises wherever the program is; while it waits for a batch the loader looks by itself
                signal.signal(signal.SIGCHLD, handler)
        threading.Thread(target=self._count, name="watch over workers", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, a wait for a batch; after PATIENCE seconds the processes are ended, which the loader then finds."""
        self._ticks_left = PATIENCE / TICK
        try:
            yield
        finally:
            self._ticks_left = None

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def end(self) -> None:
        """End the processes, whatever they do."""
        self.close()
        self._kill()
        for process in self.processes:
            process.join(5)

    def died(self) -> bool:
        return any(process.exitcode is not None for process in self.processes)

    def dying(self) -> bool:
        """Whether a process has died, or does within a second."""
        for _ in range(20):
            if self.died():
                return True
            time.sleep(0.05)
        return False

    def words(self) -> str:
        """What happened to them."""
        if self.gave_up:
            return f"no batch came for {PATIENCE:.0f} seconds"
        codes = [process.exitcode for process in self.processes if process.exitcode is not None]
        killed = [signal.Signals(-code).name for code in codes if code < 0]
        return f"one was killed by {killed[0]}" if killed else f"one ended with code {codes[0]}" if codes else "one ended"

    def _count(self) -> None:
        while not self._closed.wait(TICK):
            left = self._ticks_left
            if left is not None:
                self._ticks_left = left - 1
                if left <= 1:
                    self.gave_up = True
                    self._kill()
                    return

    def _kill(self) -> None:
        for process in self.processes:
            with suppress(OSError, ValueError):
                process.kill()
