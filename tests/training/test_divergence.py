"""A loss or gradient that is not finite: caught with its step, the state before it kept, and overflows told apart."""

import json
import math
from itertools import product

import pytest
import torch
from accelerate import Accelerator
from torch.utils._pytree import tree_map_only

from dual_cross_attention.errors import TrainingDivergedError
from dual_cross_attention.tasks import FGVCTask, ReIDTask
from dual_cross_attention.tasks import fgvc_data as fgvc
from dual_cross_attention.training import divergence, setup
from dual_cross_attention.training import trainer as trainer_module
from dual_cross_attention.training.checkpointing.checkpoints import read_progress, read_state, verify
from dual_cross_attention.training.step_log import SMALLEST_SCALE, StepLog
from dual_cross_attention.training.trainer import Trainer
from tests.helpers import any_says, assert_says


class Scaled(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx, tensor, factor):
        ctx.factor = factor
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def break_steps(monkeypatch, task, steps, what, accumulation=1):
    """From now on, the loss ("loss") or its gradient ("gradient") is not finite in some steps, counted from 1."""
    training_step, calls = task.training_step, []

    def broken(self, batch):
        losses = training_step(self, batch)
        calls.append(1)
        if -(-len(calls) // accumulation) in steps:
            broken_loss = losses["loss"] * math.nan if what == "loss" else Scaled.apply(losses["loss"], math.inf)
            losses |= {"loss": broken_loss}
        return losses

    monkeypatch.setattr(task, "training_step", broken)


def flat(state, prefix=""):
    """Tensors and numbers of a state by their places in it."""
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {place: value for key, inner in items for place, value in flat(inner, f"{prefix}.{key}").items()}
    return {prefix: state}


def assert_same_state(ours, theirs):
    ours, theirs = flat(ours), flat(theirs)
    assert ours.keys() == theirs.keys()
    for place, value in ours.items():
        if not place.endswith((".lr", "initial_lr")):  # follow from the step
            same = torch.equal(value, theirs[place]) if isinstance(value, torch.Tensor) else value == theirs[place]
            assert same, place


def states_before_steps(monkeypatch):
    """Of a training that follows: the state before each of its steps, from the second on."""
    states = {}
    on_step_end = Trainer.on_step_end

    def keep(trainer):
        states[trainer.state.step + 1] = tree_map_only(torch.Tensor, torch.clone, trainer.strategy.state_dict())
        on_step_end(trainer)

    monkeypatch.setattr(Trainer, "on_step_end", keep)
    return states


FAST = {("fgvc", "loss", 1), ("reid", "gradient", 10)}
CASES = [
    pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
    for case in product(("fgvc", "reid"), ("loss", "gradient"), (1, 10))
]


@pytest.mark.parametrize(("task", "what", "interval"), CASES)  # 1: on a CPU; 10: on a GPU
def test_the_state_before_the_step_is_kept(dcal, tasks, tmp_path, monkeypatch, task, what, interval):
    """To the bit, running statistics included, however late the loss is looked at."""
    flags = [*tasks[task], "--output_dir"]
    steps = {"fgvc": 3, "reid": 2}[task]  # of an epoch
    with monkeypatch.context() as patch:
        states = states_before_steps(patch)
        assert dcal("train", *flags, tmp_path / "whole").status == 0
    at = 2 * steps + 1  # the first of an epoch, whose end looks at the losses at the latest
    monkeypatch.setattr(trainer_module, "StepLog", lambda _: StepLog(interval))
    break_steps(monkeypatch, {"fgvc": FGVCTask, "reid": ReIDTask}[task], {at}, what, accumulation=2)
    run = tmp_path / "run"
    outcome = dcal("train", *flags, run)
    assert outcome.status == 3
    (line,) = outcome.err.splitlines()
    named = "loss is nan" if what == "loss" else "the gradient's norm is "
    assert f"training diverged at step {at}: {named}" in line
    assert f"--resume {run}/diverged --output_dir OTHER" in line
    assert verify(run / "diverged") is None
    assert_same_state(read_state(run / "diverged"), states[at])
    progress = read_progress(run / "diverged")
    assert (progress.state.epoch, progress.state.step, progress.state.step_in_epoch) == (2, at - 1, 0)


def test_the_report_names_step_and_images(dcal, small, images, tmp_path, monkeypatch):
    loaders, train_loader = [], fgvc.train_loader

    def keep(*arguments, **options):
        loaders.append(train_loader(*arguments, **options))
        return loaders[-1]

    monkeypatch.setattr(fgvc, "train_loader", keep)
    break_steps(monkeypatch, FGVCTask, {4}, "loss", accumulation=2)
    flags = ["--gradient_accumulation_steps=2", "--batch_size=6", "--output_dir", tmp_path]
    assert dcal("train", *small, *flags).status == 3
    report = json.loads((tmp_path / "diverged" / "report.json").read_text())
    assert (report["epoch"], report["step"], report["micro_batches"]) == (2, 4, [0, 1])
    assert report["what"].startswith("training diverged at step 4: loss is nan")
    assert report["pictures"] == loaders[0].image_names(2, [0, 1])
    assert all(str(images) in name for batch in report["pictures"] for name in batch)
    assert [len(batch) for batch in report["pictures"]] == [6, 6]
    assert report["lr"] > 0 and report["precision"] == "no" and "torch" in report["versions"]


@pytest.mark.parametrize("step", [1, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 6, 7))])
def test_resuming_from_it_repeats_it(dcal, tasks, tmp_path, monkeypatch, step):
    """The cause is in images and weights: whenever the loss is, to the bit, that of the broken step, it breaks."""
    training_step, losses_of = FGVCTask.training_step, []

    def broken(task, batch):
        losses = training_step(task, batch)
        value = losses["loss"].item()
        if not losses_of or value == losses_of[-1]:
            losses |= {"loss": losses["loss"] * math.nan}
        return losses

    with monkeypatch.context() as patch:

        def watch(task, batch):
            losses = training_step(task, batch)
            losses_of.append(losses["loss"].item())
            return losses

        patch.setattr(FGVCTask, "training_step", watch)
        assert dcal("train", *tasks["fgvc"], "--output_dir", tmp_path / "whole").status == 0
    del losses_of[2 * step :]  # two micro-batches to a step
    monkeypatch.setattr(FGVCTask, "training_step", broken)
    first = dcal("train", *tasks["fgvc"], "--output_dir", tmp_path / "run")
    assert first.status == 3 and f"diverged at step {step}: " in first.err
    again = dcal("train", *tasks["fgvc"], "--resume", tmp_path / "run" / "diverged", "--output_dir", tmp_path / "other")
    assert again.status == 3 and f"diverged at step {step}: " in again.err
    assert "resumed after epoch" in again.out
    assert_same_state(read_state(tmp_path / "other" / "diverged"), read_state(tmp_path / "run" / "diverged"))


def test_no_room_for_it(dcal, small, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(divergence, "save_diverged", full)
    break_steps(monkeypatch, FGVCTask, {7}, "loss")
    outcome = dcal("train", *small, "--output_dir", tmp_path)
    assert outcome.status == 3 and f"{tmp_path}/checkpoints/epoch_0001" in outcome.err
    assert any_says(outcome.out.splitlines(), "warning: ", f"'{tmp_path}/diverged'", "No space left")


def test_one_that_a_kill_has_left_half_replaced(dcal, small, tmp_path, monkeypatch):
    """Between two renames: the one before has its name again at the next start."""
    with monkeypatch.context() as patch:
        break_steps(patch, FGVCTask, {4}, "loss")
        assert dcal("train", *small, "--output_dir", tmp_path).status == 3
    (tmp_path / "diverged").rename(tmp_path / "diverged.old")
    (tmp_path / "diverged.tmp").mkdir()
    assert dcal("train", *small, "--output_dir", tmp_path).status == 0
    assert sorted(path.name for path in tmp_path.glob("diverged*")) == ["diverged"]
    assert verify(tmp_path / "diverged") is None


# --- the loss scaling of fp16 ---


@pytest.fixture
def make_scaled_trainer(make_trainer, monkeypatch):
    """A trainer with loss scaling, as fp16 on CUDA has it, here in float32 on the CPU."""

    class Scaling(Accelerator):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.scaler = torch.amp.GradScaler("cpu")

    monkeypatch.setattr(setup, "Accelerator", Scaling)

    def make(interval=1, **settings):
        trainer = make_trainer(clip_grad=None, **settings)
        trainer.step_log.interval = interval
        return trainer

    return make


@pytest.mark.parametrize("interval", [1, 10])
def test_an_overflow_is_no_divergence(make_scaled_trainer, monkeypatch, interval):
    """The scaler skips the step, and halves its factor, which a checkpoint keeps."""
    states = states_before_steps(monkeypatch)
    break_steps(monkeypatch, FGVCTask, {3, 6}, "gradient")
    trainer = make_scaled_trainer(interval)
    trainer.fit()
    assert trainer.state.step == 10 and trainer.accelerator.scaler.get_scale() == 2.0**14
    for step, skipped in ((3, True), (4, False), (6, True)):
        before, after = (
            {place: value for place, value in flat(states[number]).items() if place.startswith(".task")}
            for number in (step, step + 1)
        )
        assert all(torch.equal(value, after[place]) for place, value in before.items()) == skipped
    rows = trainer.folder.read_metrics()
    assert len(rows) == 2 and not any("scale" in name for row in rows for name in row)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert read_state(trainer.folder.checkpoints / "epoch_0001")["scaler"]["scale"] == 2.0**15


def test_a_run_resumes_with_loss_scaling(make_scaled_trainer, monkeypatch, tmp_path):
    """A run that diverges in its first step saves its initial scale, though the checkpoint of another precision has
    none."""
    make_scaled_trainer(output_dir=str(tmp_path / "one")).fit()
    source = tmp_path / "one" / "checkpoints" / "epoch_0001"
    progress = read_progress(source).to_json()
    del progress["log"]["latest"]["loss_scale"]
    (source / "progress.json").write_text(json.dumps(progress))
    trainer = make_scaled_trainer(output_dir=str(tmp_path / "two"), resume_from=source)
    break_steps(monkeypatch, FGVCTask, {1}, "loss")
    with pytest.raises(TrainingDivergedError, match=r"step 6: loss.* nan"):
        trainer.fit()
    assert read_state(trainer.folder.diverged)["scaler"]["scale"] == 2.0**16


def test_a_scaler_resumes_with_its_scale(make_scaled_trainer, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        break_steps(patch, FGVCTask, {3}, "gradient")
        first = make_scaled_trainer(output_dir=str(tmp_path / "one"))
        first.fit()
    source = tmp_path / "one" / "checkpoints" / "epoch_0001"
    second = make_scaled_trainer(output_dir=str(tmp_path / "two"), resume_from=source)
    assert second.accelerator.scaler.get_scale() == 2.0**15
    second.fit()
    assert_same_state(second.strategy.state_dict(), first.strategy.state_dict())


@pytest.mark.parametrize("interval", [1, 10])
def test_overflows_without_end_are_divergence(make_scaled_trainer, monkeypatch, interval):
    """From step 4 on nothing is finite; 2¹⁶ is halved 27 times until it is below the smallest scale."""
    break_steps(monkeypatch, FGVCTask, range(4, 1000), "gradient")
    trainer = make_scaled_trainer(interval, epochs=20, eval_every=20)
    with pytest.raises(TrainingDivergedError) as raised:
        trainer.fit()
    assert 2.0**16 / 2**27 < SMALLEST_SCALE <= 2.0**16 / 2**26
    assert_says(raised.value, "step 30: ", "overflow in fp16")
    report = json.loads((trainer.folder.diverged / "report.json").read_text())
    assert report["step"] == 30
    state = read_state(trainer.folder.diverged)
    assert all(value.isfinite().all() for value in state["task"].values())


@pytest.mark.parametrize("interval", [1, 10])
def test_a_loss_that_is_not_finite_is_divergence_also_with_scaling(make_scaled_trainer, monkeypatch, interval):
    """However late it is looked at, weights are those before its step."""
    with monkeypatch.context() as patch:
        states = states_before_steps(patch)
        make_scaled_trainer(output_dir=str(make_scaled_trainer().folder.path / "whole")).fit()
    break_steps(monkeypatch, FGVCTask, {3}, "loss")
    trainer = make_scaled_trainer(interval, gradient_accumulation_steps=1)
    with pytest.raises(TrainingDivergedError, match=r"step 3: loss.* nan"):
        trainer.fit()
    kept, expected = flat(read_state(trainer.folder.diverged)), flat(states[3])
    for place, value in kept.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, expected[place]), place
    assert kept[".scaler.scale"] == expected[".scaler.scale"]
