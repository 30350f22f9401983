"""Trains a tiny backbone of each family on two ranks; a program, and not itself a test.

    python train_families.py FOLDER FLAGS …     each as `dcal train FLAGS …`, into FOLDER/FAMILY

Ranks are forked children with the environment of a launcher: modules are imported once for all families. It ends with 1
as soon as a rank has failed.
"""

import os
import signal
import socket
import sys

from dual_cross_attention import cli
from dual_cross_attention.training import run  # noqa: F401  (imports what each child would)
from tests.training.families import FAMILIES, flags_of

RANKS = 2


def start(rank: int, port: int, flags: list[str]) -> int:
    """Starts a rank, and returns its process id."""
    if process := os.fork():
        return process
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{RANKS}", "LOCAL_WORLD_SIZE": f"{RANKS}"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    cli.main(["train", *flags])  # ends the process, with several ranks
    os._exit(1)


folder, *flags = sys.argv[1:]
for family in FAMILIES:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {start(rank, port, [*flags, *flags_of(family), f"--output_dir={folder}/{family}"]) for rank in range(RANKS)}
    while ranks:
        process, status = os.wait()
        ranks.discard(process)
        if status:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"{family}: a rank has failed")
