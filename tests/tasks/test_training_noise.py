"""Noise in training images and labels."""

import torch

from dual_cross_attention.tasks.training_noise import TrainingNoise

BATCH = {"images": torch.zeros(4000, 3, 4, 4), "labels": torch.arange(4000) % 5, "indices": torch.arange(4000)}


def test_none_changes_nothing_and_samples_nothing():
    state = torch.get_rng_state()
    added = TrainingNoise(0.0, 0.0, 5).add(BATCH)
    assert all(added[name] is value for name, value in BATCH.items())
    assert torch.equal(state, torch.get_rng_state())


def test_images_have_gaussian_noise_of_that_deviation():
    torch.manual_seed(0)
    images = TrainingNoise(0.5, 0.0, 5).add(BATCH)["images"]
    assert abs(images.mean()) < 0.01 and abs(images.std() - 0.5) < 0.01
    assert BATCH["images"].abs().max() == 0


def test_labels_are_replaced_by_any_other_class_equally_often():
    torch.manual_seed(0)
    labels = TrainingNoise(0.0, 0.4, 5).add(BATCH)["labels"]
    changed = labels != BATCH["labels"]
    assert abs(changed.float().mean() - 0.4) < 0.03
    steps = (labels - BATCH["labels"])[changed] % 5
    shares = torch.bincount(steps, minlength=5)[1:] / len(steps)
    assert (shares - 0.25).abs().max() < 0.05
    assert labels.min() == 0 and labels.max() == 4
