"""A training as a launcher starts it, with hooks that tests need; run by `torchrun`, and not itself a test.

    python launched.py FLAGS …      as `dcal train FLAGS …`

Environment:
    KEEP_ALL            keep every checkpoint, so that steps can be compared one by one
    SIGNAL_AT           "RANK STEP SIGNAL": that process sends itself the signal after the step, in the first attempt
"""

import os
import signal
import sys

from dual_cross_attention.cli import main
from dual_cross_attention.training import checkpoints
from dual_cross_attention.training.trainer import Trainer

if os.environ.get("KEEP_ALL"):
    checkpoints.KEPT = 10**6

rank, step, name = os.environ.get("SIGNAL_AT", "-1 -1 SIGTERM").split()
if os.environ.get("RANK", "0") == rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
    attend = Trainer._attend

    def signal_and_attend(trainer):
        if trainer.step == int(step):
            os.kill(os.getpid(), getattr(signal, name))
        attend(trainer)

    Trainer._attend = signal_and_attend

sys.exit(main(["train", *sys.argv[1:]]))
