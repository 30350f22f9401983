"""The command line: dispatches to `commands/`, and says how a command ended."""

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from dual_cross_attention.commands.output import flush_or_discard
from dual_cross_attention.errors import (
    RUN_IN_USE,
    InputError,
    InterruptedRun,
    LostProcessError,
    RunInUseError,
    TrainingDivergedError,
)
from dual_cross_attention.text import escape
from dual_cross_attention.version import __version__

COMMANDS = {
    "train": "train a model, or resume a run",
    "eval": "evaluate a trained model on the test split",
    "predict": "classify images with a trained model",
    "explain": "draw what a trained model attends to in images",
    "calibrate": "fit the probabilities of a trained model, and thresholds for unknown images or identities",
    "report": "write a report of a run, or a comparison of several, as an HTML file",
    "embed": "write the features of images that a trained model computes",
    "export": "write a trained model as a file that runs without this project (ONNX, timm, torch.export)",
    "publish": "upload a trained model to the Hugging Face Hub",
    "index": "build an index of images of known individuals, and change it",
    "search": "find the nearest images of an index",
    "identify": "say which individual of an index images show, or that it is new",
    "demo": "serve a web page on this machine that applies a model to images",
    "reproduce": "train a table of the paper again and compare it with the published numbers",
    "backbones": "list the backbones: size, input, license, what DCAL can do with each",
    "download": "download a dataset, or say where to get it",
    "check-data": "check every image of a dataset before training",
    "shard": "write a large dataset into tar archives to train from",
}
"""By name, what it does; its `run(arguments)` is in `commands/NAME.py`, which is imported when it is called."""
USAGE = f"""usage: dcal COMMAND …   (dcal COMMAND --help says more)

{chr(10).join(f"  {name:12}{summary}" for name, summary in COMMANDS.items())}

Dual Cross-Attention Learning {__version__}. Without arguments, `dcal train` trains the built-in toy task in minutes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0, 1 for images that cannot be read (check-data, predict, embed, explain) or a training of
        which another process has ended, 2 for invalid input, 3 for a diverged training, 75 for one that a signal
        stopped and that can resume, 130 after Ctrl-C in other commands. A rank of a distributed training does not
        return: it exits with this status.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    status = _run(arguments)
    if arguments[:1] == ["train"] and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        end_process(status)
    return status


def end_process(status: int) -> None:
    """Exits without running Python's finalizers.

    FSDP's caches keep process groups alive until finalization, where a thread of theirs occasionally aborts the
    process; the launcher would then report a finished training as failed.
    """
    for stream in (sys.stdout, sys.stderr):
        flush_or_discard(stream)
    os._exit(status)


def _run(arguments: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):  # a file name may hold what the terminal's encoding has not
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(USAGE)
            return 0
        if arguments[0] == "--version":
            print(__version__)
            return 0
        command, *rest = arguments
        if command not in COMMANDS:
            raise InputError(f"unknown command '{escape(command):.60}': there is {', '.join(COMMANDS)}")
        module = import_module(f"dual_cross_attention.commands.{command.replace('-', '_')}")
        return module.run(rest) or 0
    except SystemExit as end:  # argparse, when it has printed the help
        return end.code or 0
    except RunInUseError as error:
        return _fail(error, RUN_IN_USE)
    except InputError as error:
        return _fail(error, 2)
    except TrainingDivergedError as error:
        return _fail(error, 3)
    except LostProcessError as error:
        return _fail(error, 1)
    except InterruptedRun as error:
        return _fail(error, 75)
    except BrokenPipeError:  # the reader has seen enough: dcal train --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain once more at exit
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO) or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python flushes it again at exit
        return _fail(f"cannot write the output: {error.strerror}", 2)
    except KeyboardInterrupt:
        return _fail(
            "interrupted; a training resumes from its last checkpoint with the same command, and predict and embed "
            "with --output after their last row",
            130,
        )


def _fail(error: Exception | str, status: int) -> int:
    message = str(error)
    if "Original Traceback" in message:  # raised in a data worker: what matters is at the end
        message = message.strip().splitlines()[-1].partition(": ")[2]
    print("dcal: error:", escape(" ".join(message.split())), file=sys.stderr)
    return status
