"""The one exception for mistakes that the user can mend."""


class UserError(Exception):
    """A mistake in a config, a file or the machine's set-up, told in one paragraph.

    The message says what is wrong, what was got, what is allowed and what to do. `main.py` prints it
    without a traceback and exits with code 2; a notebook sees an ordinary exception.
    """
