"""Order, last batches, and what is passed on from each image."""

import numpy as np
import pytest
import torch
from PIL import Image

from dual_cross_attention.data import (
    ImageList,
    test_loader,
    test_transform,
    train_loader,
    train_transform,
)
from dual_cross_attention.data.samplers import SequentialBatchSampler

NORM = ((0.0,) * 3, (1.0,) * 3)


def numbered(count: int) -> ImageList:
    """Images whose red channel is their number."""
    return ImageList([Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(count)], [i % 2 for i in range(count)])


def loaders(train=20, test=5, batch_size=4, eval_batch_size=2, num_workers=0, seed=0, device="cpu", min_batch=2):
    train = numbered(train) if isinstance(train, int) else train
    test = numbered(test) if isinstance(test, int) else test
    transforms = train_transform((4, 4), (4, 4), *NORM), test_transform((4, 4), (4, 4), *NORM)
    return (
        train_loader(train, transforms[0], batch_size, num_workers, seed, device, min_batch),
        test_loader(test, transforms[1], eval_batch_size, num_workers, device),
    )


def numbers(batch: dict) -> list[int]:
    return (batch["images"][:, 0, 0, 0] * 255).round().int().tolist()


def test_training_order_is_shuffled_by_the_seed_alone():
    torch.manual_seed(1)
    one, other, third = (loaders(seed=seed)[0] for seed in (7, 7, 8))
    first = [number for batch in one for number in numbers(batch)]
    torch.manual_seed(2)
    assert [number for batch in other for number in numbers(batch)] == first
    assert [number for batch in third for number in numbers(batch)] != first
    assert sorted(first) == list(range(20)) != first
    another = [number for batch in one.read(1, range(len(one))) for number in numbers(batch)]
    assert sorted(another) == sorted(first) != another != first  # another epoch has an order of its own


def test_labels_stay_with_their_images():
    for batch in loaders()[0]:
        assert [number % 2 for number in numbers(batch)] == batch["labels"].tolist()


def test_evaluation_is_in_order_complete_and_leaves_the_global_generator_alone():
    _, loader = loaders(test=5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = list(loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert [numbers(batch) for batch in batches] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("images", "batch_size", "min_batch", "sizes"),
    [
        (9, 4, 1, [4, 4, 1]),
        (9, 4, 2, [4, 4]),  # one left over has no distractor
        (10, 4, 2, [4, 4, 2]),
        (8, 4, 2, [4, 4]),
        (3, 16, 2, [3]),
        (3, 2, 2, [2]),
    ],
)
def test_last_training_batch(images, batch_size, min_batch, sizes):
    train, _ = loaders(train=images, batch_size=batch_size, min_batch=min_batch)
    assert [len(batch["labels"]) for batch in train] == sizes
    assert len(train) == len(sizes)


def test_memory_is_pinned_for_cuda_alone():
    for device, pinned in (("cuda", True), ("cpu", False), ("mps", False)):
        assert [loader.loader.pin_memory for loader in loaders(device=device)] == [pinned, pinned]


def test_workers_persist_and_report_unreadable_images(tmp_path):
    broken = ImageList([tmp_path / "none.jpg", *numbered(3).images], [1, 0, 1, 0])
    train, test = loaders(train=broken, test=broken, num_workers=1)
    assert train.loader.persistent_workers
    assert test.loader.persistent_workers
    (batch,) = train
    assert sorted(numbers(batch)) == [0, 0, 1, 2]
    assert [image.path for image in batch["unreadable"]] == [f"{tmp_path / 'none.jpg'}"]
    batches = list(test)
    assert batches[0]["labels"].tolist() == [1, 0] and batches[0]["valid"].tolist() == [False, True]
    assert [batch["indices"].tolist() for batch in batches] == [[0, 1], [2, 3]]
    assert len(batches[0]["unreadable"]) == 1


def test_sizes_that_cannot_work_are_refused(refused):
    with refused("batch_size", "at least 2", "PWCA", "got 1"):
        loaders(batch_size=1, min_batch=2)
    with refused("at least 2 training images", "got 1"):
        loaders(train=1, min_batch=2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmentation_follows_seed_epoch_and_image_alone(num_workers):
    """Whatever the workers: the same crops of the same images, others in another epoch, and no global draw."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)) for _ in range(6)]
    noise = ImageList(images, [0, 1] * 3)
    crop = train_transform((8, 8), (24, 24), (0.5,) * 3, (0.5,) * 3)

    def epochs(workers, seed=3):
        loader = train_loader(noise, crop, 2, workers, seed, "cpu", sampler=SequentialBatchSampler(6, 2))
        return [torch.cat([batch["images"] for batch in loader.read(epoch, range(3))]) for epoch in (1, 2)]

    first, second = epochs(num_workers)
    alone = epochs(0)
    assert torch.equal(first, alone[0]) and torch.equal(second, alone[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, epochs(0, seed=4)[0])
    state = torch.get_rng_state()
    train_loader(noise, crop, 2, 0, 3, "cpu").dataset[0]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_can_be_read_from_any_point_and_in_parts(num_workers):
    loader, _ = loaders(train=19, batch_size=4, num_workers=num_workers)
    whole = [numbers(batch) for batch in loader.read(3, range(5))]
    assert sorted(number for batch in whole for number in batch) == list(range(19))
    assert [numbers(batch) for batch in loader.read(3, [1, 3, 4, 4])] == [whole[i] for i in (1, 3, 4, 4)]
    assert list(loader.read(3, [])) == []
    # A reader that was left in the middle is of no consequence.
    assert numbers(next(loader.read(3, range(5)))) == whole[0]
    assert [numbers(batch) for batch in loader.read(3, range(2, 5))] == whole[2:]
    assert loader.image_names(3, [4]) == [[f"image {number}" for number in whole[4]]]
    with pytest.raises(ValueError, match=r"Batches\.read"):  # nothing is left to be read by mistake
        list(loader.loader)
    loader.close()
