"""Exceptions that the command line reports in one line, without a traceback.

Imports nothing, so that a mistyped flag is reported before PyTorch is imported.
"""


class InputError(ValueError):
    """Invalid input: a path, a flag, an image or a checkpoint. Exit status 2.

    The message states what was expected, what was given, and how to fix it.
    """


class RunInUseError(InputError):
    """Another training holds the lock of the run folder. Exit status `RUN_IN_USE`."""


RUN_IN_USE = 4


class TrainingDivergedError(RuntimeError):
    """A loss or a gradient became NaN or infinite. Exit status 3.

    The message names the step, the branch and the last checkpoint.
    """


class LostProcessError(RuntimeError):
    """Another process of the same training has ended, and this one cannot continue alone. Exit status 1."""


class InterruptedRun(BaseException):
    """SIGINT or SIGTERM stopped a training; its state, if any, is saved, and it can resume. Exit status 75.

    The message names the signal and how to resume. Like KeyboardInterrupt, it can be raised at any point, and
    derives from BaseException, so that `except Exception`, as in image reading, does not catch it.
    """
