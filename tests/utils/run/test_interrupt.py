"""utils/run/interrupt.py: a stop request is never lost."""

import os
import signal
from contextlib import suppress

import pytest

from utils.errors import UserError
from utils.run.interrupt import Terminated, check_stop, signals_stop


class Deaf:
    """Python prints and forgets what is raised in a destructor."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_whose_exception_was_swallowed_is_raised_at_the_next_step(number, raised):
    with pytest.raises(raised), signals_stop():
        noise = Deaf(number)
        del noise
        check_stop()
        raise AssertionError("the request was lost")
    check_stop()  # nothing is left over


def test_a_signal_outside_of_destructors_stops_at_once():
    with pytest.raises(Terminated), signals_stop():
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the request was lost")


@pytest.mark.parametrize("error", [AttributeError("module 'numpy' has no attribute 'minimum'"), UserError("torch is not there")])
def test_an_error_after_a_signal_that_an_import_caught_is_the_stop(error):
    with pytest.raises(Terminated), signals_stop():
        with suppress(BaseException):  # as C code that looks for an optional module
            os.kill(os.getpid(), signal.SIGTERM)
        raise error


def test_an_error_without_a_signal_stays_itself():
    with pytest.raises(AttributeError), signals_stop():
        raise AttributeError
