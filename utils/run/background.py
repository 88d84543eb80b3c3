"""Work beside the training: one thread that does the newest job, and the tensors that it works on brought to host memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

K = TypeVar("K")
Job = Callable[[], None]


class NewestJob:
    """Does jobs in a thread, one at a time and in order; a job that comes takes the place of one that still waits.

    The thread is there while there is something to do, so none outlives `wait`. A stop (Ctrl-C, SIGTERM) may be raised in the caller
    at any point of `put`: what waits is then done by the thread, or by the next `wait` itself.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Job, bool]] = deque()  # with whether a newer one takes its place
        self._turn = threading.Lock()  # held by whoever does jobs
        self._lock = threading.Lock()  # held for a look at `_waiting`
        self._runs = False  # whether a thread will look at `_waiting` once more
        self._thread: threading.Thread | None = None  # the last one
        self._error: BaseException | None = None

    def put(self, job: Job, replaceable: bool = True) -> None:
        """Do `job` soon. Raises what an earlier job raised, without taking this one."""
        self._raise_error()
        self.drop_waiting()
        with self._lock:
            self._waiting.append((job, replaceable))
            if self._runs:
                return
            self._thread = threading.Thread(target=self._work, name="checkpoints")
            try:
                self._thread.start()
                self._runs = True
            except RuntimeError:  # the system gives no more threads
                self._thread = None
        if self._thread is None:
            self.wait()

    @property
    def busy(self) -> bool:
        """Whether a job is being done or waits."""
        return self._turn.locked() or self._runs or bool(self._waiting)

    def drop_waiting(self) -> None:
        """Forget the job that waits, if one does and is replaceable."""
        with self._lock:
            self._waiting = deque(entry for entry in self._waiting if not entry[1])

    def wait(self) -> None:
        """Return when nothing is being done, nothing waits and no thread is left. Raises what a job raised."""
        self._work()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()
        self._raise_error()

    def settle(self) -> BaseException | None:
        """`wait` on the way out of an error: nothing is raised. Gives what would have been.

        A stop that comes meanwhile drops what waits; what is being done is waited for all the same, so that it leaves nothing half.
        """
        raised: BaseException | None = None
        while True:
            try:
                self.wait()
                return raised
            except BaseException as error:
                raised = error
                self.drop_waiting()

    def _work(self) -> None:
        """Do what waits until nothing does."""
        with self._turn:
            while True:
                with self._lock:
                    if not self._waiting:
                        self._runs = False
                        return
                    job, _ = self._waiting.popleft()
                try:
                    job()
                except BaseException as error:  # also what stops a program: it is raised where the training is
                    self._error = self._error or error
                del job  # with its tensors, before the next one comes

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


def host_copies(tensors: Mapping[K, Tensor]) -> dict[K, Tensor]:
    """Private, contiguous copies in host memory: the training may go on changing the tensors in place.

    From CUDA they go into page-locked memory, all at once, and the device is waited for once.
    """
    copies = {key: _begin_copy(tensor.detach()) for key, tensor in tensors.items()}
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies


def _begin_copy(tensor: Tensor) -> Tensor:
    """A copy on the CPU, which from CUDA is whole only after the stream's synchronisation."""
    if tensor.is_cuda:
        try:
            page_locked = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        except RuntimeError:  # the system gives no more of it
            return tensor.cpu().contiguous()
        return page_locked.copy_(tensor, non_blocking=True)
    return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
