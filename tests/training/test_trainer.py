"""The training loop: it learns, its gradients are right however the batch is cut up, and it stops when it diverges."""

import gc
import json
import math
import random
from collections import Counter
from itertools import chain

import pytest
import torch
from safetensors.torch import load_file

from dual_cross_attention.data import collate
from dual_cross_attention.errors import TrainingDivergedError
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.tasks import FGVCTask
from dual_cross_attention.training.checkpointing.checkpoints import list_checkpoints
from dual_cross_attention.training.distributed.partition import MicroBatchPartition
from dual_cross_attention.training.trainer import Trainer
from tests.helpers import assert_says

ABLATIONS = ("full", "sa_only", "sa_glca", "sa_pwca")


def step_of(trainer, *batches):
    """One step of the optimizer on these micro-batches."""
    share = MicroBatchPartition(len(batches), len(batches)).micro_batches_of(0)
    return trainer.optimizer_step.run(1, share, iter(batches), lambda images: None)


def rows_of(trainer):
    return trainer.folder.read_metrics()


# --- it learns ---


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_each_ablation_learns(make_trainer, birds, ablation):
    """80 steps on 20 images: every branch's loss falls well below chance, which is log 10 = 2.30."""
    images = birds[:20] * 4  # four steps an epoch
    trainer = make_trainer(
        images, ablation=ablation, epochs=20, batch_size=20, lr=3e-3, drop_path_rate=0.0, eval_every=20
    )
    trainer.fit()
    first, *_, last = rows_of(trainer)
    for branch in trainer.task.model.branches:
        assert first[f"train/loss_{branch}"] > 2.2
        assert last[f"train/loss_{branch}"] < 2.0
    assert last["train/loss"] < first["train/loss"] - 0.3
    assert last["train/accuracy"] > 50 > first["train/accuracy"]


def test_the_loss_weights_learn_and_stay_within_their_bound(make_trainer):
    trainer = make_trainer(epochs=4, lr=0.05, weight_bound=0.1)
    trainer.fit()
    weights = [row[f"train/w_{branch}"] for row in rows_of(trainer) for branch in ("sa", "glca", "pwca")]
    assert max(abs(w) for w in weights) == pytest.approx(0.1)
    assert all(abs(w) <= 0.1 + 1e-6 for w in weights)


def test_images_are_read_by_their_epoch(make_trainer, birds, monkeypatch):
    trainer = make_trainer(birds[:32], eval_every=2, sample_images=0)
    samples, read = type(trainer.train_batches.dataset), []
    get = samples.__getitem__
    monkeypatch.setattr(samples, "__getitem__", lambda dataset, key: (read.append(key), get(dataset, key))[1])
    trainer.fit()
    epochs = [[key for key in read if key.epoch == epoch] for epoch in (1, 2, 0)]
    assert epochs[0] + epochs[1] + epochs[2] == read  # 0: the evaluation
    assert all(sorted(key.index for key in keys) == list(range(32)) for keys in epochs)
    assert not any(key.repeat for key in read)


def test_losses_are_means_of_the_epoch_and_weights_are_its_last(make_trainer, monkeypatch):
    steps = []
    training_step = FGVCTask.training_step

    def watch(task, batch):
        losses = training_step(task, batch)
        steps.append({name: value.item() for name, value in losses.items()})
        return losses

    monkeypatch.setattr(FGVCTask, "training_step", watch)
    trainer = make_trainer(epochs=2)
    trainer.fit()
    for row, epoch in zip(rows_of(trainer), (steps[:5], steps[5:]), strict=True):
        for name in ("loss", "loss_sa", "loss_glca", "loss_pwca", "accuracy"):
            assert row[f"train/{name}"] == pytest.approx(sum(step[name] for step in epoch) / 5, rel=1e-6)
        for name in ("w_sa", "w_glca", "w_pwca"):
            assert row[f"train/{name}"] == pytest.approx(epoch[-1][name], rel=1e-6)


# --- gradients ---


def gradients_of(trainer):
    """What `_step` leaves for the optimizer, by parameter."""
    seen = {}

    def look(parameters, limit):
        seen.update({name: p.grad.clone() for name, p in trainer.task.named_parameters() if p.grad is not None})
        return torch.zeros(())

    trainer.accelerator.clip_grad_norm_ = look
    return seen


def batch_of(birds, start, stop):
    batch = collate(birds[start:stop])
    batch.pop("unreadable")
    return batch


def test_variables_of_accelerate_change_nothing(make_trainer, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    trainer = make_trainer()
    assert trainer.strategy.wrapped is trainer.task
    assert trainer.accelerator.gradient_accumulation_steps == 1


@pytest.mark.parametrize("steps", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(make_trainer, birds, steps):
    trainer = make_trainer(
        ablation="sa_glca", drop_path_rate=0.0, gradient_accumulation_steps=steps, batch_size=16 // steps
    )
    trainer.task.train()
    seen = gradients_of(trainer)
    trainer.task.training_step(batch_of(birds, 0, 16))["loss"].backward()
    expected = {name: parameter.grad.clone() for name, parameter in trainer.task.named_parameters()}
    trainer.task.zero_grad()

    size = 16 // steps
    step_of(trainer, *(batch_of(birds, i * size, (i + 1) * size) for i in range(steps)))
    assert seen.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(seen[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-2  # so that 1e-5 means something


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointing_changes_no_gradient(make_trainer, birds, drop_path):
    """Random numbers are drawn again as they were, so drop path and distractors are the same."""
    gradients, calls = [], []
    for checkpointing in (False, True):
        trainer = make_trainer(use_gradient_checkpointing=checkpointing, drop_path_rate=drop_path)
        trainer.task.train()
        seen, called = gradients_of(trainer), []
        trainer.task.model.backbone.blocks[0].register_forward_pre_hook(lambda *_: None)
        trainer.task.model.backbone.blocks[0].norm1.register_forward_hook(lambda *_, called=called: called.append(1))
        step_of(trainer, batch_of(birds, 0, 16))
        gradients.append(seen)
        calls.append(len(called))
    assert calls == [1, 2]  # it is recomputed
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys() == {name for name, _ in trainer.task.named_parameters()}
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("asked", [True, False, "auto"])
def test_a_compiled_model_trains_as_the_plain_one(make_trainer, monkeypatch, asked):
    """What is compiled by `--compile true` is the model that trains; the backend is the one without a C compiler."""
    torch.compiler.reset()
    compile_blocks = DualCrossAttentionViT.compile_blocks
    compiled = []

    def by_aot(model):
        compiled.append(model)
        compile_blocks(model, "aot_eager")

    monkeypatch.setattr(DualCrossAttentionViT, "compile_blocks", by_aot)
    plain = make_trainer(compile=False, epochs=1).fit()
    trainer = make_trainer(compile=asked, epochs=1)
    assert compiled == ([trainer.task.model] if asked is True else [])
    assert trainer.fit()["train/loss"] == pytest.approx(plain["train/loss"], rel=1e-4)


def test_checkpointing_keeps_less(make_trainer, birds):
    """Bytes that autograd saves in a forward pass."""
    kept = []
    for checkpointing in (False, True):
        trainer = make_trainer(use_gradient_checkpointing=checkpointing)
        trainer.task.train()
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.task.training_step(batch_of(birds, 0, 16))
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize(("limit", "expected"), [(0.01, 0.01), (None, None)])
def test_clipping(make_trainer, birds, limit, expected):
    trainer = make_trainer(clip_grad=limit, ablation="sa_glca", drop_path_rate=0.0)
    trainer.task.train()
    norms = []

    def step(original=trainer.optimizer.step):
        gradients = [parameter.grad for parameter in trainer.task.parameters()]
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
        return original()

    trainer.optimizer.step = step
    scalars, _ = step_of(trainer, batch_of(birds, 0, 16))
    reported = scalars["grad_norm"].item()  # before clipping
    assert reported > 0.1
    assert norms == pytest.approx([reported if expected is None else expected], rel=1e-3)


def test_an_epoch_that_the_accumulation_does_not_divide(make_trainer):
    """80 images in batches of 16 are 5 micro-batches: 3 updates of 2, 2 and 1; the cosine ends with the last one."""
    trainer = make_trainer(gradient_accumulation_steps=2, lr=None)
    rates = []

    def step(original=trainer.optimizer.step):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return original()

    trainer.optimizer.step = step
    trainer.fit()
    peak = 5e-4 / 512 * 32
    assert rates == pytest.approx([peak * (1 + math.cos(math.pi * update / 6)) / 2 for update in range(6)])
    assert [row["lr"] for row in rows_of(trainer)] == pytest.approx([rates[3], 0.0], abs=1e-12)


def test_a_checkpoint_of_another_run_does_not_bring_its_learning_rate(make_trainer, tmp_path):
    make_trainer(epochs=1, output_dir=str(tmp_path / "one")).fit()
    source = tmp_path / "one" / "checkpoints" / "epoch_0001"
    trainer = make_trainer(lr=0.01, output_dir=str(tmp_path / "two"), resume_from=source)
    rates = []

    def step(original=trainer.optimizer.step):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return original()

    trainer.optimizer.step = step
    trainer.fit()
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi * update / 10)) / 2 for update in range(5, 10)])


# --- it stops when it diverges ---


def poison(monkeypatch, branch, at, value=math.nan):
    """The logits of one branch become `value` from one training step on."""
    forward = DualCrossAttentionViT.forward
    steps = 0

    def poisoned(model, images, *more):
        nonlocal steps
        out = forward(model, images, *more)
        steps += model.training
        if steps >= at and model.training:
            out.logits[branch] = out.logits[branch] + value
        return out

    monkeypatch.setattr(DualCrossAttentionViT, "forward", poisoned)


@pytest.mark.parametrize("branch", ["sa", "glca", "pwca"])
def test_a_loss_that_is_not_finite_ends_the_run(make_trainer, monkeypatch, branch):
    """Five steps an epoch; step 8 is in the second."""
    poison(monkeypatch, branch, at=8)
    trainer = make_trainer(epochs=3)
    with pytest.raises(TrainingDivergedError) as raised:
        trainer.fit()
    (checkpoint,) = list_checkpoints(trainer.folder.checkpoints)
    assert checkpoint.name == "epoch_0001"
    assert_says(raised.value, "at step 8: ", f"branch '{branch}' is nan", f"{checkpoint}; ")
    assert_nothing_poisoned(trainer.folder)
    assert [row["epoch"] for row in rows_of(trainer)] == [1]


def assert_nothing_poisoned(folder):
    for path in folder.path.rglob("*.safetensors"):
        for name, value in load_file(path).items():
            assert value.isfinite().all(), (path, name)


def test_before_the_first_checkpoint_there_is_none_to_name(make_trainer, monkeypatch):
    poison(monkeypatch, "sa", at=1)
    with pytest.raises(TrainingDivergedError, match=r"at step 1: .*no checkpoint"):
        make_trainer().fit()


class BrokenGradient(torch.autograd.Function):
    """The identity, with a gradient of NaN."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


@pytest.mark.parametrize("clip_grad", [1.0, None])
@pytest.mark.parametrize("accumulation", [1, 5])
def test_a_gradient_that_is_not_finite_is_never_saved(make_trainer, monkeypatch, clip_grad, accumulation):
    """In the last step of an epoch the loss is still fine: it is the gradient that tells before weights are written."""
    training_step = FGVCTask.training_step
    steps = 0

    def broken(task, batch):
        nonlocal steps
        steps += 1
        losses = training_step(task, batch)
        return losses | {"loss": BrokenGradient.apply(losses["loss"])} if steps == 10 else losses

    monkeypatch.setattr(FGVCTask, "training_step", broken)
    trainer = make_trainer(
        epochs=4, clip_grad=clip_grad, gradient_accumulation_steps=accumulation, eval_every=4, ablation="sa_only"
    )
    at = 10 // accumulation
    with pytest.raises(TrainingDivergedError, match=rf"at step {at}: .*gradient.* nan; .*epoch_0001"):
        trainer.fit()
    assert_nothing_poisoned(trainer.folder)


def test_an_evaluation_that_is_not_finite_names_the_checkpoint(make_trainer, monkeypatch):
    predict = DualCrossAttentionViT.forward
    trainer = make_trainer()

    def poisoned(model, images, *more):
        out = predict(model, images, *more)
        if not model.training and trainer.state.epoch == 1:
            out.logits["glca"] = out.logits["glca"] * math.inf
        return out

    monkeypatch.setattr(DualCrossAttentionViT, "forward", poisoned)
    with pytest.raises(TrainingDivergedError, match=r"evaluation: .*after step 10.*epoch_0001"):
        trainer.fit()
    assert len(rows_of(trainer)) == 1


def test_divergence_is_an_error_of_one_line(dcal, small, tmp_path, monkeypatch):
    poison(monkeypatch, "glca", at=7)
    outcome = dcal("train", *small, "--output_dir", tmp_path)
    assert outcome.status == 3
    (line,) = outcome.err.splitlines()
    assert line.startswith("dcal: error: training diverged at step 7: the loss of branch 'glca' is nan; ")
    assert f"{tmp_path}/checkpoints/epoch_0001" in line
    # And the run resumes from there, once the reason is gone.
    monkeypatch.undo()
    assert dcal("train", *small, "--output_dir", tmp_path).status == 0


# --- memory, precision, and what is chosen ---


def test_memory_does_not_grow_from_epoch_to_epoch(make_trainer, monkeypatch):
    """Tensors alive at the end of each epoch, and their bytes: after the first two, always the same."""
    alive = []
    finish = Trainer.on_epoch_end

    def count(trainer, row):
        finish(trainer, row)
        gc.collect()
        # Not those that torch.compile has left in this process, of shapes without numbers.
        kinds = (torch.Tensor, torch.nn.Parameter)
        tensors = [item for item in gc.get_objects() if type(item) in kinds]
        alive.append((len(tensors), sum(tensor.numel() * tensor.element_size() for tensor in tensors)))

    monkeypatch.setattr(Trainer, "on_epoch_end", count)
    make_trainer(epochs=6).fit()
    assert len(set(alive[2:])) == 1, alive


def test_bfloat16(make_trainer):
    """Autocast around the task: the rollout stays in float32, parameters and losses too."""
    seen = {}

    def watch(task):
        def hook(model, _, out):
            seen["rollout"], seen["sa"] = out.rollout.dtype, out.logits["sa"].dtype

        task.model.register_forward_hook(hook)

    trainer = make_trainer(precision="bf16", epochs=3, lr=3e-3, prepare=watch)
    trainer.fit()
    assert seen == {"rollout": torch.float32, "sa": torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in trainer.task.parameters())
    first, *_, last = rows_of(trainer)
    assert all(math.isfinite(value) for row in (first, last) for value in row.values())
    assert last["train/loss"] < first["train/loss"]


def test_the_best_model_is_kept_and_a_tie_keeps_the_earlier(make_trainer, monkeypatch):
    scores = iter([10.0, 30.0, 30.0, 20.0])
    monkeypatch.setattr(FGVCTask, "compute_metrics", lambda task: {"top1": next(scores), "not a column": 1.0})
    trainer = make_trainer(epochs=4)
    best = trainer.fit()
    assert (best["epoch"], best["val/top1"]) == (2, 30.0)
    assert [row["val/top1"] for row in rows_of(trainer)] == [10.0, 30.0, 30.0, 20.0]
    assert not [name for row in rows_of(trainer) for name in row if "column" in name]
    ours, last = load_file(trainer.folder.best), load_file(trainer.folder.last)
    assert any(not torch.equal(ours[name], last[name]) for name in ours)
    assert [path.name for path in list_checkpoints(trainer.folder.checkpoints)] == [
        "epoch_0002",  # the best
        "epoch_0003",
        "epoch_0004",
    ]
    assert json.loads((list_checkpoints(trainer.folder.checkpoints)[-1] / "progress.json").read_text())["best"] == best


def test_every_epoch_is_its_own_shuffle_and_seed(make_trainer, monkeypatch):
    orders = []
    training_step = FGVCTask.training_step

    def watch(task, batch):
        orders.append((batch["labels"].tolist(), torch.get_rng_state().sum().item()))
        return training_step(task, batch)

    monkeypatch.setattr(FGVCTask, "training_step", watch)
    make_trainer(epochs=2, seed=0).fit()
    first, second = orders[:5], orders[5:]
    assert [labels for labels, _ in first] != [labels for labels, _ in second]
    assert first[0][1] != second[0][1]
    assert Counter(chain(*(labels for labels, _ in first))) == Counter(chain(*(labels for labels, _ in second)))


def test_an_epoch_depends_on_seed_and_number_alone(make_trainer, monkeypatch, tmp_path):
    """Random numbers that are sampled between epochs do not change the next epoch."""
    finish = Trainer.on_epoch_end

    def disturb(trainer, row):
        finish(trainer, row)
        torch.rand(7)
        random.random()

    make_trainer(output_dir=str(tmp_path / "plain")).fit()
    monkeypatch.setattr(Trainer, "on_epoch_end", disturb)
    make_trainer(output_dir=str(tmp_path / "disturbed")).fit()
    plain, disturbed = (load_file(tmp_path / name / "last.safetensors") for name in ("plain", "disturbed"))
    assert all(torch.equal(plain[name], disturbed[name]) for name in plain)
