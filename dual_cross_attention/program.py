"""How the user started this program, for messages that name the next command."""

import shlex
import sys
from pathlib import Path


def train_command() -> str:
    """`python PATH/train.py` if the program was started so, else `dcal train`."""
    return f"python {shlex.quote(sys.argv[0])}" if Path(sys.argv[0]).name == "train.py" else "dcal train"
