"""What goes wrong through no fault of the program."""


class UserError(ValueError):
    """A mistake that the user can mend. Its text names the file, the key and the mend, in one or two lines.

    The command line prints it without a traceback and exits with status 2; every other exception is a defect.
    """
