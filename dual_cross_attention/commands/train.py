"""`dcal train`: train a model, or resume a run."""

import os
import sys

from dual_cross_attention.commands.output import flush_or_discard, show_log
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.progress import make_console
from dual_cross_attention.training.signals import exit_on_signal


def run(arguments: list[str]) -> None:
    """Errors as of `parse_config` and `training.run.train`."""
    console = make_console(patient=True)
    show_log(console)
    config = parse_config(arguments)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # hides retry messages; a failure still raises
    with exit_on_signal():
        from dual_cross_attention.training.run import train  # late: help and mistyped flags need not wait for torch

    try:
        train(config, console)
    finally:
        flush_or_discard(sys.stdout)
