"""Too little memory: the same step in smaller pieces, which is remembered, and an end that says what helps."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.data import collate
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.tasks import FGVCTask, ReIDTask
from dual_cross_attention.training import oom
from dual_cross_attention.training.oom import MicroBatchChunks, is_out_of_memory
from tests.helpers import assert_lines, assert_says

SAID = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"),
    "MPS": RuntimeError(
        "MPS backend out of memory (MPS allocated: 17.9 GB, other allocations: 1 MB, max allowed: 18.13 GB). Tried …"
    ),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried …"),
}


def without_memory(monkeypatch, limit: int, training: bool = True, error: Exception = SAID["CUDA"]):
    """From now on no model takes more than so many images at a time; returns how many each pass had that worked."""
    forward = DualCrossAttentionViT.forward
    passed = []

    def limited(model, images, *more):
        if model.training == training and len(images) > limit:
            raise error
        out = forward(model, images, *more)
        if model.training == training:
            passed.append(len(images))
        return out

    monkeypatch.setattr(DualCrossAttentionViT, "forward", limited)
    return passed


# --- in a training ---


@pytest.mark.parametrize(
    ("ablation", "accumulation", "said"),
    [("sa_only", 1, "CUDA"), ("sa_glca", 1, "MPS"), ("sa_only", 2, "CPU"), ("sa_glca", 2, "CUDA")],
)
def test_the_step_is_that_of_the_whole_batch(make_trainer, birds, monkeypatch, tmp_path, ablation, accumulation, said):
    """Weights after an epoch of five steps and of three, with pieces of 4 of 16 images."""
    trained, rates = [], []
    for limit in (None, 5):
        trainer = make_trainer(
            epochs=1,
            ablation=ablation,
            drop_path_rate=0.0,
            lr=None,
            lr_per_512=0.2,
            optimizer="sgd",
            gradient_accumulation_steps=accumulation,
            output_dir=str(tmp_path / f"{limit}"),
        )
        with monkeypatch.context() as patch:
            passed = without_memory(patch, limit or 100, error=SAID[said])
            row = trainer.fit()
        assert set(passed) == ({4} if limit else {16})
        trained.append({name: value.detach().clone() for name, value in trainer.task.named_parameters()})
        rates.append((row["lr"], trainer.schedule.base_values, trainer.state.step))
    assert rates[0] == rates[1]
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, atol=1e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    start = make_trainer(epochs=1, ablation=ablation, output_dir=str(tmp_path / "start")).task
    moved = max((trained[0][name] - value).abs().max() for name, value in start.named_parameters())
    assert moved > 1e-4  # so that 1e-5 means something


@pytest.mark.parametrize("ablation", ["sa_only", "sa_glca"])
def test_gradients_of_chunks_are_those_of_the_batch(make_trainer, birds, ablation):
    batch = collate(birds[:16])
    batch.pop("unreadable")
    gradients = []
    for number in (1, 4):
        trainer = make_trainer(ablation=ablation, drop_path_rate=0.0)
        trainer.task.train()
        trainer.chunks.count = number
        for part, weight in trainer.chunks.split(batch):
            (trainer.task.training_step(part)["loss"] * weight).backward()
        gradients.append({name: parameter.grad for name, parameter in trainer.task.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_chunks_are_reported_and_kept(dcal, small, tmp_path, monkeypatch):
    flags = ["train", *small, "--ablation=sa_glca", "--output_dir", tmp_path]
    passed = without_memory(monkeypatch, 3)
    outcome = dcal(*flags, "--epochs=2")
    assert outcome.status == 0, outcome.err
    told = [line for line in outcome.out.splitlines() if line.startswith("warning: out of memory")]
    assert_lines(
        told,
        ("CUDA out of memory", "4 images at a time instead of 8", "effective batch and learning rate stay"),
        ("CUDA out of memory", "2 images at a time instead of 4", "effective batch and learning rate stay"),
    )
    assert set(passed) == {1, 2}  # 1: of the last batch, which is half as large
    assert json.loads((tmp_path / "memory.json").read_text()) == {
        "format_version": FORMAT_VERSION,
        "device": "cpu",
        "pieces": 4,
    }
    # A run that continues need not find out again.
    on = tmp_path / "on"
    (on).mkdir()
    (on / "memory.json").write_text((tmp_path / "memory.json").read_text())
    again = dcal(*flags[:-1], on)
    assert again.status == 0 and "out of memory" not in again.out


def test_chunks_are_kept_in_memory_on_a_full_disk(make_trainer, monkeypatch):
    """A full disk does not end a run, even during an out-of-memory retry."""
    without_memory(monkeypatch, 8)
    trainer = make_trainer(epochs=1, ablation="sa_only")

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(oom, "atomic_write", full)
    trainer.fit()
    assert trainer.chunks.count == 2 and not trainer.folder.memory.exists()


def test_chunks_have_their_own_random_numbers(make_trainer, monkeypatch):
    """Drop path and distractors are sampled per chunk, so a run in chunks is reproducible."""
    rows = []
    for _ in range(2):
        with monkeypatch.context() as patch:
            without_memory(patch, 8)
            rows.append(make_trainer(epochs=1, drop_path_rate=0.3, resume_from=None).fit()["train/loss"])
    assert rows[0] == rows[1]


LEAST = {
    "fgvc": ("sa_only", "1 image is the least"),
    "fgvc with PWCA": ("full", "2 images is the least"),
    "reid": ("full", "4 images is the least"),  # two identities of two images
}


@pytest.mark.parametrize(("task", "case"), LEAST.items(), ids=LEAST)
def test_below_the_least_it_ends_and_says_what_helps(dcal, small, small_reid, tmp_path, monkeypatch, task, case):
    ablation, least = case
    passed = without_memory(monkeypatch, 0)
    flags = small_reid if task == "reid" else small
    outcome = dcal("train", *flags, "--ablation", ablation, "--output_dir", tmp_path)
    assert outcome.status == 2 and not passed
    (line,) = outcome.err.splitlines()
    assert_says(line, f"and {least} (CUDA out of memory): ", "in this order: ")
    order = ["--use_gradient_checkpointing true", "--precision bf16", "--img_size", "--ablation", "fsdp", "--backbone"]
    places = [line.index(each) for each in order]
    assert places == sorted(places)
    assert line.endswith("there is no checkpoint yet")


@pytest.mark.parametrize(("task", "limit"), [("fgvc", 2), ("reid", 4)])
def test_the_least_is_tried(dcal, small, small_reid, tmp_path, monkeypatch, task, limit):
    passed = without_memory(monkeypatch, limit)
    flags = small_reid if task == "reid" else small
    assert dcal("train", *flags, "--output_dir", tmp_path).status == 0
    assert set(passed) <= {limit, limit + 1} and passed


def test_a_step_that_ran_out_leaves_nothing(dcal, small_reid, tmp_path, monkeypatch):
    """Running statistics of a micro-batch that is computed again in pieces: as of a run in pieces from the start."""
    from safetensors.torch import load_file

    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "memory.json").write_text(json.dumps({"device": "cpu", "pieces": 2}))
    assert dcal("train", *small_reid, "--output_dir", begun).status == 0
    training_step, calls = ReIDTask.training_step, []

    def step(task, batch):
        losses = training_step(task, batch)
        calls.append(len(batch["labels"]))
        if len(batch["labels"]) > 4:
            raise SAID["CUDA"]  # in the backward pass, when the statistics have moved
        return losses

    monkeypatch.setattr(ReIDTask, "training_step", step)
    found_out = tmp_path / "found out"
    assert dcal("train", *small_reid, "--output_dir", found_out).status == 0
    assert calls[0] == 8 and set(calls[1:]) == {4}
    ours, theirs = (load_file(run / "last.safetensors") for run in (begun, found_out))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("error", [SAID["CUDA"], SAID["MPS"]], ids=["CUDA", "MPS"])
def test_evaluation_in_pieces(dcal, small, tmp_path, monkeypatch, error):
    """Its batches are larger, and are cut down to one image; nothing that comes out changes."""
    assert dcal("train", *small, "--output_dir", tmp_path / "plain").status == 0
    passed = without_memory(monkeypatch, 1, training=False, error=error)
    outcome = dcal("train", *small, "--output_dir", tmp_path / "cut")
    assert outcome.status == 0, outcome.err
    assert set(passed) == {1}
    assert "16 images at a time instead of 32" in outcome.out  # 4 times the batch of the training
    plain, cut = (
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("plain", "cut")
    )
    for ours, theirs in zip(plain, cut, strict=True):
        assert {k: v for k, v in ours.items() if "val" in k} == {k: v for k, v in theirs.items() if "val" in k}
    assert json.loads((tmp_path / "cut" / "eval_memory.json").read_text())["pieces"] == 32
    assert not (tmp_path / "cut" / "memory.json").exists()  # of the training


def test_another_error_is_none_of_memory(make_trainer, monkeypatch):
    def fail(task, batch):
        raise RuntimeError("expected a matrix")

    monkeypatch.setattr(FGVCTask, "training_step", fail)
    with pytest.raises(RuntimeError, match="expected a matrix"):
        make_trainer().fit()


@pytest.mark.parametrize(
    "error",
    [
        *SAID.values(),
        torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in …"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: not enough memory: you tried …"),
    ],
    ids=str,
)
def test_what_says_that_memory_is_short(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA driver error: invalid argument"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(…)`"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ],
    ids=str,
)
def test_what_says_something_else(error):
    assert not is_out_of_memory(error)


# --- MicroBatchChunks ---


def chunks_of(tmp_path, batch_size, unit=1, smallest=1, device="cpu"):
    return MicroBatchChunks(batch_size, unit, smallest, tmp_path / "memory.json", torch.device(device))


@given(st.integers(1, 8), st.integers(1, 40), st.integers(1, 64), st.integers(1, 3))
def test_every_image_is_in_one_piece(tmp_path_factory, unit, units, number, smallest_units):
    images, smallest = unit * units, unit * smallest_units
    chunks = chunks_of(tmp_path_factory.getbasetemp() / "none", images, unit, smallest)
    chunks.count = number
    cut = list(chunks.split({"labels": torch.arange(images), "images": torch.arange(images) * 2}))
    assert torch.cat([part["labels"] for part, _ in cut]).tolist() == list(range(images))
    assert all(torch.equal(part["images"], part["labels"] * 2) for part, _ in cut)
    sizes = [len(part["labels"]) for part, _ in cut]
    assert all(size % unit == 0 for size in sizes)
    assert len(cut) == max(1, min(number, images // smallest))
    assert min(sizes) >= min(smallest, images)
    assert [weight for _, weight in cut] == pytest.approx([size / images for size in sizes])
    assert max(sizes) - min(sizes) <= unit


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 3))
def test_pad_are_cut_into_as_many_pieces(tmp_path_factory, images, number, smallest):
    """What is too much has the shape of a piece, and no share."""
    plain, alike = (
        MicroBatchChunks(20, 1, smallest, tmp_path_factory.getbasetemp() / "none", torch.device("cpu"), pad)
        for pad in (False, True)
    )
    plain.count = alike.count = number
    batch = {"labels": torch.arange(images)}
    expected, cut = list(plain.split(batch)), list(alike.split(batch))
    assert len(cut) == number if images >= smallest else len(cut) >= 1
    for (part, weight), (other, other_weight) in zip(expected, cut, strict=False):
        assert torch.equal(part["labels"], other["labels"]) and weight == other_weight
    assert all(weight == 0 and len(part["labels"]) for part, weight in cut[len(expected) :])


@pytest.mark.parametrize(
    "kept",
    [
        "",
        "[]",
        "{}",
        "null",
        "[" * 100_000,
        '{"device": "cpu"}',
        *(f'{{"device": "cpu", "pieces": {number}}}' for number in ("0", "-4", "1000", '"many"', "1e999", "null")),
        '{"device": "another GPU", "pieces": 4}',
    ],
)
def test_chunks_of_another_device_are_ignored(tmp_path, kept):
    (tmp_path / "memory.json").write_text(kept)
    assert chunks_of(tmp_path, 16).count == 1


def test_the_number_is_kept(tmp_path):
    chunks = chunks_of(tmp_path, 16)
    chunks.double("why", "where")
    chunks.double("why", "where")
    assert chunks_of(tmp_path, 16).count == 4 and chunks_of(tmp_path, 2).count == 1
    chunks.count = 16
    with pytest.raises(InputError, match=r"1 images at a time, .*1 image .*\(why\): "):
        chunks.double("why", "where")


def test_a_half_taken_step_is_not_taken_again(make_trainer, monkeypatch):
    """The optimizer's state is made in its first step: smaller batches would leave it no more room."""
    trainer = make_trainer()

    def out_of_memory(*_):
        raise SAID["CUDA"]

    monkeypatch.setattr(trainer.optimizer, "step", out_of_memory)
    with pytest.raises(InputError, match=r"optimizer's state .*--parallel fsdp"):
        trainer.fit()
    assert trainer.state.step == 0
