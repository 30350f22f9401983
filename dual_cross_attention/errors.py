"""The one exception for what a user can mend: a path, a flag, a picture, a checkpoint."""


class InputError(ValueError):
    """What was given cannot work. The message says what was expected, what came, and how to mend it.

    The command line prints the message in one line, without a traceback, and exits with status 2.
    """
