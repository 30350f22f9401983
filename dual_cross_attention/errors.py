"""What a user of the command line can meet. Each is told in one line, without a traceback.

Nothing is imported here: a mistyped flag is told of before PyTorch is loaded.
"""


class InputError(ValueError):
    """What was given cannot work: a path, a flag, an image, a checkpoint. Exit status 2.

    The message says what was expected, what came, and how to mend it.
    """


class TrainingDivergedError(RuntimeError):
    """A loss or a gradient became NaN or infinite. Exit status 3.

    The message names the step, the branch and the last checkpoint.
    """


class LostProcessError(RuntimeError):
    """Another process of the same training has ended, and this one cannot continue alone. Exit status 1."""


class InterruptedRun(BaseException):
    """A training was asked to leave, by Ctrl-C or SIGTERM, has saved what there was, and can continue. Exit status 75.

    The message names the signal, and how to continue. It is raised wherever the program happens to be, as
    KeyboardInterrupt is: whoever catches any Exception, as the reading of images does, must not take it for one.
    """
