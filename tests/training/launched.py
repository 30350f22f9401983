"""A training as a launcher starts it, with hooks that tests need; run by `torchrun`, and not itself a test.

    python launched.py FLAGS …      as `dcal train FLAGS …`

Environment:
    KEEP_ALL            keep every checkpoint, so that steps can be compared one by one
    SIGNAL_AT           "RANK STEP SIGNAL": that process sends itself the signal after the step, in the first attempt
    SIGNAL_IN_EVAL      "RANK": that process sends itself SIGTERM in the first evaluation
    WAIT_IN             folder: every process, once it has read the labels, leaves a file there, and waits
    POISON_AT           "RANK STEP": the loss of that process is NaN in the step
"""

import os
import signal
import sys
import time
from pathlib import Path

from dual_cross_attention.cli import main
from dual_cross_attention.runs import training
from dual_cross_attention.tasks import FGVCTask
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

if os.environ.get("SIGNAL_IN_EVAL") == os.environ.get("RANK", "0"):
    evaluate = FGVCTask.evaluate

    def signal_and_evaluate(task, loader):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(task, loader)

    FGVCTask.evaluate = signal_and_evaluate

if os.environ.get("WAIT_IN"):
    read_setup = training.read_setup

    def read_and_wait(config):
        setup = read_setup(config)
        (Path(os.environ["WAIT_IN"]) / os.environ.get("RANK", "0")).touch()
        time.sleep(100)
        return setup

    training.read_setup = read_and_wait

if os.environ.get("POISON_AT"):
    poisoned_rank, poisoned_step = os.environ["POISON_AT"].split()
    step_at_once, training_step = Trainer._step, FGVCTask.training_step
    now = []

    def remember(trainer, *arguments):
        now[:] = [trainer.step + 1]
        step_at_once(trainer, *arguments)

    def poisoned(task, batch):
        losses = training_step(task, batch)
        hit = os.environ.get("RANK", "0") == poisoned_rank and now == [int(poisoned_step)]
        return {name: value * float("nan") for name, value in losses.items()} if hit else losses

    Trainer._step, FGVCTask.training_step = remember, poisoned

sys.exit(main(["train", *sys.argv[1:]]))
