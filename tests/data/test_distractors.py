"""A second image for every training image: which one, and that nothing but the key decides."""

import numpy as np
import pytest
import torch
from PIL import Image

from dual_cross_attention import InputError
from dual_cross_attention.data.dataset import ImageDataset, collate
from dual_cross_attention.data.distractors import ATTEMPTS, DistractorSampler, PairedDataset
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.samplers import SampleKey
from dual_cross_attention.data.transforms import train_transform

LABELS = [3, 7, 3, 0, 7, 3, 0, 0]


@pytest.mark.parametrize("rule", ["same_class", "other_class", "half"])
def test_every_possible_distractor_is_equally_likely(rule):
    sampler, random = DistractorSampler(rule, LABELS, len(LABELS)), np.random.default_rng(0)
    draws = 6000
    for position, label in enumerate(LABELS):
        counts = np.bincount([sampler.sample(position, random) for _ in range(draws)], minlength=len(LABELS)) / draws
        same = [p for p, other in enumerate(LABELS) if other == label and p != position]
        others = [p for p, other in enumerate(LABELS) if other != label]
        shares = {"same_class": (1, 0), "other_class": (0, 1), "half": (0.5, 0.5)}[rule]
        expected = np.zeros(len(LABELS))
        expected[same], expected[others] = shares[0] / len(same), shares[1] / len(others)
        np.testing.assert_allclose(counts, expected, atol=0.03)


def test_any_image_of_another_dataset():
    sampler, random = DistractorSampler("dataset", LABELS, 3), np.random.default_rng(0)
    assert {sampler.sample(7, random) for _ in range(100)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("rule", "labels", "words"),
    [
        ("same_class", [0, 0, 1], ["two training images", "1 of 2"]),
        ("half", [0, 0, 1], ["two training images", "1 of 2"]),
        ("other_class", [4, 4, 4], ["two classes"]),
        ("some", LABELS, ["some", "same_class"]),
    ],
)
def test_labels_that_have_no_such_pair(rule, labels, words):
    with pytest.raises(InputError) as refused:
        DistractorSampler(rule, labels, len(labels))
    assert all(word in str(refused.value) for word in words)


def paired(rule="same_class", seed=5):
    """Images of one gray value each, 10 · position; the value survives flips and crops."""
    transform = train_transform((8, 8), (10, 10), (0, 0, 0), (1, 1, 1))
    images = [Image.new("RGB", (10, 10), (10 * position,) * 3) for position in range(len(LABELS))]
    targets = ImageDataset(ImageList(images, LABELS), transform, training=True, seed=seed)
    return PairedDataset.of(targets, targets.image_list, DistractorSampler(rule, LABELS, len(LABELS)))


def position_of(image):
    return round(image.mean().item() * 255 / 10)


def test_a_sample_has_its_distractor_and_the_target_is_as_without():
    dataset = paired()
    for index, label in enumerate(LABELS):
        for epoch in (1, 2):
            sample = dataset[SampleKey(epoch, index)]
            assert torch.equal(sample["image"], dataset.targets[SampleKey(epoch, index)]["image"])
            other = position_of(sample["distractor"])
            assert sample["label"] == label == LABELS[other] and other != index == sample["index"]
    batch = collate([dataset[SampleKey(1, index)] for index in range(4)])
    assert batch["distractor_images"].shape == batch["images"].shape == (4, 3, 8, 8)
    assert "distractor_images" not in collate([dataset.targets[0]])


def test_only_the_key_decides():
    keys = [SampleKey(epoch, index, repeat) for epoch in range(3) for index in range(8) for repeat in range(2)]
    first = [position_of(paired()[key]["distractor"]) for key in keys]
    torch.manual_seed(99)
    dataset = paired()
    assert [position_of(dataset[key]["distractor"]) for key in reversed(keys)] == first[::-1]
    assert [position_of(paired(seed=6)[key]["distractor"]) for key in keys] != first
    by_epoch = np.array(first).reshape(3, 16)
    assert (by_epoch[0] != by_epoch[1]).any() and (by_epoch[0] != by_epoch[2]).any()


def test_an_unreadable_distractor_is_sampled_again(tmp_path):
    images = []
    for position in range(len(LABELS)):
        images.append(tmp_path / f"{position}.png")
        Image.new("RGB", (10, 10), (10 * position,) * 3).save(images[-1])
    images[2].write_bytes(b"no image")  # of the class of 0 and 5
    transform = train_transform((8, 8), (10, 10), (0, 0, 0), (1, 1, 1))
    targets = ImageDataset(ImageList(images, LABELS), transform, training=True)
    dataset = PairedDataset.of(targets, targets.image_list, DistractorSampler("same_class", LABELS, 8))
    samples = [dataset[SampleKey(epoch, 0)] for epoch in range(20)]
    assert {position_of(sample["distractor"]) for sample in samples} == {5}
    found = {image.path for sample in samples for image in sample["unreadable"]}
    assert found == {str(images[2])}
    images[5].unlink()
    with pytest.raises(InputError, match=f"{ATTEMPTS} distractors"):
        dataset[SampleKey(1, 0)]
