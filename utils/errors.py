"""The exceptions for mistakes that the user can mend, and what other exceptions say, in short."""


class UserError(Exception):
    """A mistake in a config, a file or the machine's set-up, told in one paragraph.

    The message says what is wrong, what was got, what is allowed and what to do. `main.py` prints it
    without a traceback and exits with code 2; a notebook sees an ordinary exception.
    """


class StorageError(UserError):
    """The disk is full or cannot be written, so that no other seed of the run would fare better."""


class DataChanged(UserError):
    """The data, or the stream of tasks, are not those that a run's checkpoints were made with; true for every seed."""


class RunFailed(UserError):
    """Part of a run failed (a seed, or a config of several); the rest is done and written. Exit code 1."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
