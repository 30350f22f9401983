"""`dcal train`: train a model, or resume a run."""

import os
import sys

from dual_cross_attention.commands.output import asks_for_help, flush_or_discard, show_log
from dual_cross_attention.configs.parse import describe_config, parse_config
from dual_cross_attention.progress import make_console
from dual_cross_attention.training.signals import exit_on_signal

SUMMARY = "train a model"


def run(arguments: list[str]) -> None:
    """See `describe_config`; errors as of `training.run.train`."""
    if asks_for_help(arguments):
        print(describe_config(arguments))
        return
    console = make_console(patient=True)
    show_log(console)
    config = parse_config(arguments)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries fill the screen; what comes of them is told below
    with exit_on_signal():
        from dual_cross_attention.training.run import train  # late: help and mistyped flags need not wait for torch

    try:
        train(config, console)
    finally:
        flush_or_discard(sys.stdout)
