"""A training as a launcher starts it, with hooks that tests need; run by `torchrun`, and not itself a test.

    python launched.py FLAGS …      as `dcal train FLAGS …`

Environment:
    KEEP_ALL            keep every checkpoint, so that steps can be compared one by one
    SIGNAL_AT           "RANK STEP SIGNAL": that process sends itself the signal after the step, in the first attempt
    SIGNAL_IN_EVAL      "RANK": that process sends itself SIGTERM in the first evaluation
    WAIT_IN             folder: every process, once it has read the labels, leaves a file there, and waits
    POISON_AT           "RANK STEP": the loss of that process is NaN in the step
    POISON_IN_EVAL      "RANK": the images that process evaluates are NaN
    MEMORY              "RANK TRAINING EVALUATION PASS": from that pass on, no model of that process takes more
                        images at a time
    SLOW_WRITING        seconds that a checkpoint takes more; a process that ends says which ones there are
    LOSS_SCALING        as fp16 on CUDA has it, here in float32 on the CPU
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from dual_cross_attention import cli
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.tasks import FGVCTask
from dual_cross_attention.training import divergence, setup
from dual_cross_attention.training import run as training
from dual_cross_attention.training.checkpointing import checkpoints
from dual_cross_attention.training.step import OptimizerStep
from dual_cross_attention.training.trainer import Trainer

if os.environ.get("KEEP_ALL"):
    checkpoints.KEPT = 10**6

rank, step, name = os.environ.get("SIGNAL_AT", "-1 -1 SIGTERM").split()
if os.environ.get("RANK", "0") == rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
    on_step_end = Trainer.on_step_end

    def signal_on_step_end(trainer):
        if trainer.state.step == int(step):
            os.kill(os.getpid(), getattr(signal, name))
        on_step_end(trainer)

    Trainer.on_step_end = signal_on_step_end

if os.environ.get("SIGNAL_IN_EVAL") == os.environ.get("RANK", "0"):
    eval_step = FGVCTask.eval_step

    def signal_and_evaluate(task, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        eval_step(task, batch)

    FGVCTask.eval_step = signal_and_evaluate

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
    run_step, training_step = OptimizerStep.run, FGVCTask.training_step
    steps = []

    def count(*arguments):
        steps.append(1)
        return run_step(*arguments)

    def poisoned(task, batch):
        losses = training_step(task, batch)
        hit = os.environ.get("RANK", "0") == poisoned_rank and len(steps) == int(poisoned_step)
        return {name: value * float("nan") for name, value in losses.items()} if hit else losses

    OptimizerStep.run, FGVCTask.training_step = count, poisoned

if os.environ.get("POISON_IN_EVAL") == os.environ.get("RANK", "0"):
    eval_clean_step = FGVCTask.eval_step

    def eval_poisoned_step(task, batch):
        eval_clean_step(task, {**batch, "images": batch["images"] * float("nan")})

    FGVCTask.eval_step = eval_poisoned_step

if os.environ.get("MEMORY"):
    limited_rank, most_training, most_evaluating, first_limited = os.environ["MEMORY"].split()
    if os.environ.get("RANK", "0") == limited_rank:
        forward, passes = DualCrossAttentionViT.forward, []

        def limited(model, images, *more):
            passes.append(1)
            most = int(most_training if model.training else most_evaluating)
            if len(passes) >= int(first_limited) and len(images) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(model, images, *more)

        DualCrossAttentionViT.forward = limited

if os.environ.get("SLOW_WRITING"):
    (folder,) = (Path(flag.partition("=")[2]) for flag in sys.argv if flag.startswith("--output_dir="))
    write, end = checkpoints.write_checkpoint, cli.end_process

    def write_slowly(*arguments):
        time.sleep(float(os.environ["SLOW_WRITING"]))
        write(*arguments)

    def say_and_end(status):
        there = [*(folder / "checkpoints").glob("epoch_*"), *folder.glob("diverged*")]
        print(f"process {os.environ['RANK']} ends with {status}: {sorted(path.name for path in there)}", flush=True)
        end(status)

    checkpoints.write_checkpoint = divergence.write_checkpoint = write_slowly
    cli.end_process = say_and_end

if os.environ.get("LOSS_SCALING"):

    class Scaling(Accelerator):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.scaler = torch.amp.GradScaler("cpu")

    setup.Accelerator = Scaling

sys.exit(cli.main(["train", *sys.argv[1:]]))
