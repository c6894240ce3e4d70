"""What ends a command through no fault of the program."""

import signal


class UserError(ValueError):
    """A mistake that the user can mend. Its text names the file, the key and the mend, in one or two lines.

    The command line prints it without a traceback and exits with status 2; every other exception is a defect.
    """


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """The run was asked to stop; `signal_number` says by what."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number
