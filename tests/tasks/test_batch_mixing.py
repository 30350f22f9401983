"""MixUp and CutMix: pixels, labels, and the loss of every branch."""

import pytest
import torch
from torch.nn import functional as F

from dual_cross_attention.configs.fgvc_config import FGVCConfig
from dual_cross_attention.tasks import FGVCTask
from dual_cross_attention.tasks.batch_mixing import BatchMixing, batch_mixing
from tests.helpers import random_images, tiny_model

CLASSES = 5


def batch_of(batch=4):
    return {"images": random_images(batch), "labels": torch.arange(batch) % CLASSES, "valid": torch.ones(batch)}


def weight_of(mixed, labels):
    """λ, from the label of an image whose neighbor is of another class."""
    weights = mixed["labels"].gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(weights, weights[:1].expand(len(labels)))
    torch.testing.assert_close(mixed["labels"].sum(1), torch.ones(len(labels)))
    return float(weights[0])


@pytest.mark.parametrize("size", [4, 5])
def test_mixup(size):
    batch, seen = batch_of(size), []
    for seed in range(20):
        torch.manual_seed(seed)
        mixed = BatchMixing(0.8, 0.0, CLASSES).mix(batch)
        weight = weight_of(mixed, batch["labels"])
        other = batch["images"].roll(1, 0)
        torch.testing.assert_close(mixed["images"], weight * batch["images"] + (1 - weight) * other)
        torch.testing.assert_close(
            mixed["labels"],
            weight * F.one_hot(batch["labels"], CLASSES) + (1 - weight) * F.one_hot(batch["labels"].roll(1), CLASSES),
        )
        seen.append(weight)
    assert max(seen) - min(seen) > 0.5 and mixed["valid"] is batch["valid"]


def test_cutmix():
    batch, weights = batch_of(), []
    for seed in range(20):
        torch.manual_seed(seed)
        mixed = BatchMixing(0.0, 1.0, CLASSES).mix(batch)
        own, other = mixed["images"] == batch["images"], mixed["images"] == batch["images"].roll(1, 0)
        assert (own | other).all()
        weights.append(weight_of(mixed, batch["labels"]))
        assert own.float().mean().item() == pytest.approx(weights[-1], abs=1e-5)
    assert max(weights) - min(weights) > 0.5


def test_with_both_each_batch_has_one_of_them():
    batch, cut = batch_of(), 0
    for seed in range(60):
        torch.manual_seed(seed)
        images = BatchMixing(1.0, 1.0, CLASSES).mix(batch)["images"]
        cut += bool(((images == batch["images"]) | (images == batch["images"].roll(1, 0))).all())
    assert 15 < cut < 45


def test_off():
    batch = batch_of()
    assert BatchMixing(0.0, 0.0, CLASSES).mix(batch) is batch


def test_a_frozen_backbone_has_no_mixing():
    """With freeze all, an image is the same in every epoch, whether features are cached or not."""
    settings = {"dataset": "toy", "mixup": 0.8, "cutmix": 1.0}
    assert batch_mixing(FGVCConfig(**settings), CLASSES) == BatchMixing(0.8, 1.0, CLASSES)
    assert batch_mixing(FGVCConfig(**settings, freeze="all"), CLASSES) == BatchMixing(0.0, 0.0, CLASSES)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mean_over_both_labels(smoothing):
    """For every branch: λ times the cross-entropy with the own label, 1 − λ times that with the other's."""
    model = tiny_model()
    task = FGVCTask(model, label_smoothing=smoothing, mixing=BatchMixing(0.8, 0.0, CLASSES)).train()
    batch = batch_of()
    torch.manual_seed(7)
    scalars = task.training_step(batch)
    torch.manual_seed(7)
    mixed = task.mixing.mix(batch)
    logits = model(mixed["images"], None, task.scales).logits
    weight, labels = weight_of(mixed, batch["labels"]), batch["labels"]
    assert set(logits) == {"sa", "glca", "pwca"}
    for branch, scores in logits.items():
        own, other = (F.cross_entropy(scores, each, label_smoothing=smoothing) for each in (labels, labels.roll(1)))
        torch.testing.assert_close(scalars[f"loss_{branch}"], (weight * own + (1 - weight) * other).detach())
    larger = labels if weight > 0.5 else labels.roll(1)
    together = sum(logits[branch].softmax(-1) for branch in ("sa", "glca"))
    torch.testing.assert_close(scalars["accuracy"], 100 * (together.argmax(-1) == larger).float().mean())
