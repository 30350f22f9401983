"""The sheet of training images: what the model gets, and nothing else changes."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from dual_cross_attention.data import ImageList
from dual_cross_attention.data.dataset import ImageDataset
from dual_cross_attention.data.loaders import Batches
from dual_cross_attention.data.samplers import ShuffledBatchSampler
from dual_cross_attention.data.transforms import train_transform
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.tasks import FGVCTask
from dual_cross_attention.tasks.batch_mixing import BatchMixing
from dual_cross_attention.tasks.training_noise import TrainingNoise
from dual_cross_attention.training import trainer
from dual_cross_attention.training.distributed.partition import seed_micro_batch
from dual_cross_attention.training.oom import MicroBatchChunks
from dual_cross_attention.training.sample_images import SampleImages, draw_sheet, read_first_images
from dual_cross_attention.weights.pixel_stats import PixelStats
from tests.helpers import assert_same_run, tiny_model

MIXED = ["--mixup=0.8", "--cutmix=1", "--image_noise=0.1", "--label_noise=0.1", "--color_jitter=0.4"]
AUGMENTED = {
    "fgvc": [*MIXED, "--auto_augment=rand-m9-mstd0.5-inc1", "--distractors=half"],
    "reid": ["--color_jitter=0.4", "--auto_augment=augmix-m3-w3", "--image_noise=0.1"],
}
STATS = PixelStats((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "a test")


@pytest.mark.parametrize("task", AUGMENTED)
def test_a_run_is_the_same_without_the_sheet(dcal, tasks, tmp_path, task):
    flags = [*tasks[task], *AUGMENTED[task], "--epochs=1"]
    for name, count in (("with", 16), ("without", 0)):
        outcome = dcal("train", *flags, f"--sample_images={count}", "--output_dir", tmp_path / name)
        assert outcome.status == 0, outcome
    assert_same_run(tmp_path / "with", tmp_path / "without")
    assert (tmp_path / "with" / "train_images.jpg").is_file()
    assert not (tmp_path / "without" / "train_images.jpg").exists()


@pytest.mark.parametrize("task", AUGMENTED)
def test_the_sheet_has_what_the_model_gets(dcal, tasks, tmp_path, task, monkeypatch, made):
    """The images of the first forward pass, to the bit."""
    given = []
    forward = DualCrossAttentionViT.forward

    def kept(model, images, *arguments, **options):
        given.append(images.clone())
        return forward(model, images, *arguments, **options)

    monkeypatch.setattr(DualCrossAttentionViT, "forward", kept)
    seen = made((trainer, "read_first_images"))
    outcome = dcal(
        "train", *tasks[task], *AUGMENTED[task], "--epochs=1", "--sample_images=16", "--output_dir", tmp_path / "run"
    )
    assert outcome.status == 0, outcome
    samples = seen["read_first_images"]
    assert len(samples.images) == len(given[0]) > 1
    assert torch.equal(samples.images, given[0])
    assert samples.labels.ndim == (2 if task == "fgvc" else 1)


def batches_of(images, size=6):
    labels = [number % 3 for number in range(len(images))]
    transform = train_transform((16, 16), (20, 20), STATS.mean, STATS.std, 0.5)
    return Batches(
        ImageDataset(ImageList(images, labels), transform, training=True, seed=5),
        ShuffledBatchSampler(len(images), size, seed=5),
    )


@pytest.mark.parametrize("chunk_count", [1, 2])
def test_generators_and_chunks(tmp_path, chunk_count):
    """As many chunks as the training has after it was out of memory; generators are left as they are."""
    drawn = np.random.default_rng(0)
    images = [Image.fromarray(drawn.integers(0, 256, (24, 24, 3), dtype=np.uint8)) for _ in range(12)]
    task = FGVCTask(tiny_model(), noise=TrainingNoise(0.3, 0.0, 5), mixing=BatchMixing(0.8, 0.0, 5))
    chunks = MicroBatchChunks(6, 1, 1, tmp_path / "memory.json", torch.device("cpu"), False)
    chunks.count = chunk_count
    batches = batches_of(images)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    samples = read_first_images(task, batches, chunks, 5, torch.device("cpu"), 5)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert samples.images.shape == (5, 3, 16, 16)

    (batch,) = batches.read(1, [0])
    expected = []
    for number, (chunk, _) in enumerate(chunks.split(batch)):
        seed_micro_batch(5, 1, 0, number)
        expected.append(task.mixing.mix(task.noise.add(chunk)))
    assert torch.equal(samples.images, torch.cat([each["images"] for each in expected])[:5])
    assert torch.equal(samples.labels, torch.cat([each["labels"] for each in expected])[:5])


def test_drawing_undoes_the_normalization():
    """Each image is where it belongs, in its own colors; small ones are enlarged by a whole factor."""
    colors = torch.tensor([[0.2, 0.4, 0.6], [1.0, 0.0, 0.5], [0.0, 1.0, 0.0], [0.11, 0.11, 0.11], [1.0, 1.0, 0.0]])
    mean, std = torch.tensor(STATS.mean), torch.tensor(STATS.std)
    images = ((colors - mean) / std).view(5, 3, 1, 1).expand(-1, -1, 40, 20)
    sheet = np.asarray(draw_sheet(SampleImages(images, torch.arange(5)), STATS, list("abcde")))
    width, height = 128 + 8, 160 + 16 + 8  # columns are at least 128 wide; 40 x 20 becomes 160 x 80
    for number, color in enumerate(colors):
        row, column = divmod(number, 4)
        top, left = 8 + row * height, 8 + column * width
        shown = sheet[top : top + 160, left : left + 80]
        assert (shown == (255 * color).round().numpy()).all()
        below = sheet[top + 160 : top + 176, left : left + 128]
        assert below.min() < 128 and below.max() == 255  # its label


def test_mixed_labels_and_values_out_of_range_are_drawn():
    labels = torch.tensor([[0.3, 0.7, 0.0], [1.0, 0.0, 0.0]])
    sheet = draw_sheet(SampleImages(torch.full((2, 3, 300, 600), 99.0), labels), STATS, ["Ж" * 90, "b\n", "c"])
    assert sheet.size == (2 * (256 + 8) + 8, 128 + 2 * 16 + 8 + 8)
    assert sheet.getpixel((20, 20)) == (255, 255, 255)


def test_a_resumed_run_keeps_its_sheet(dcal, small, tmp_path):
    flags = [*small, "--output_dir", tmp_path / "run"]
    assert dcal("train", *flags, "--epochs=1").status == 0
    sheet = tmp_path / "run" / "train_images.jpg"
    sheet.write_bytes(b"kept")
    flags += ["--resume", tmp_path / "run" / "checkpoints" / "epoch_0001"]
    outcome = dcal("train", *flags, "--epochs=2")
    assert outcome.status == 0, outcome
    assert sheet.read_bytes() == b"kept"
    sheet.unlink()
    assert dcal("train", *flags, "--epochs=3").status == 0
    assert not sheet.exists()


def test_a_frozen_backbone_has_no_sheet(dcal, small, tmp_path):
    """It gets each image once, without augmentation."""
    flags = [*small, "--freeze=all", "--epochs=1", "--output_dir", tmp_path / "run"]
    assert dcal("train", *flags).status == 0
    assert not (tmp_path / "run" / "train_images.jpg").exists()


def test_a_sheet_that_cannot_be_written_is_a_warning(dcal, small, tmp_path):
    (tmp_path / "run" / "train_images.jpg.tmp").mkdir(parents=True)
    outcome = dcal("train", *small, "--epochs=1", "--output_dir", tmp_path / "run")
    assert outcome.status == 0, outcome
    assert "warning: cannot write" in outcome.out and "train_images.jpg" in outcome.out.replace("\n", "")
