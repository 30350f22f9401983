"""The dataset of a loader: an image read, augmented and labeled, as a pure function of its `SampleKey`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from dual_cross_attention.data.cache import ImageCache
from dual_cross_attention.data.images import ImageList, UnreadableImage, read_image
from dual_cross_attention.data.samplers import SampleKey
from dual_cross_attention.data.transforms import Transform
from dual_cross_attention.data.unreadable import Unreadable
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

MAX_IN_A_ROW = 1000
"""Number of consecutive unreadable training images that is an error."""


class ImageDataset(Dataset):
    """Images read, augmented, and paired with their labels.

    In training, an image that cannot be read is replaced by the next one in the list that can. In evaluation it becomes
    a blank image that is not `valid`, since a replacement would be counted twice.

    The augmentation is seeded by `seed` and the sample's key alone: neither the number of workers nor an interruption
    changes the images that a run sees.

    Args:
        image_list: images and labels.
        transform: from a PIL image in RGB to a float tensor (3, H, W).
        training: whether an unreadable image is replaced (True) or marked (False).
        seed: of the augmentation.
        cache: keeps decoded and resized images, as many as the list has; None: images are read every time.
    """

    def __init__(
        self,
        image_list: ImageList,
        transform: Transform,
        training: bool,
        seed: int = 0,
        cache: ImageCache | None = None,
    ):
        self.image_list = image_list
        self.transform = transform
        self.training = training
        self.seed = seed
        self.cache = cache

    def __len__(self) -> int:
        return len(self.image_list)

    def name(self, index: int) -> str:
        """Name of image `index` in messages: its path, or its number if it is in memory."""
        image = self.image_list.images[index]
        return f"image {index}" if isinstance(image, Image.Image) else f"{image}"

    def __getitem__(self, key: SampleKey | int) -> dict[str, Any]:
        """The sample of a key; of an int, image `key` in epoch 0.

        Returns:
            image (3, H, W) float; label, int; index, int: position in the list, of the replacement where there is one;
            valid, bool: False if the image could not be read; unreadable: an `Unreadable` for each image that failed.

        Raises:
            IndexError: the index is not in the list.
            InputError: in training, if no image of the list can be read, or none of `MAX_IN_A_ROW` consecutive ones:
                searching 100,000 broken images would block a batch for too long.
        """
        epoch, index, repeat = key if isinstance(key, tuple) else SampleKey(0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index from 0 to {len(self) - 1}, got {index}")
        unreadable: list[Unreadable] = []
        for offset in range(min(len(self), MAX_IN_A_ROW) if self.training else 1):
            position = (index + offset) % len(self)
            try:
                pixels = self.cache.get(position, self._read) if self.cache else self._read(position)
            except UnreadableImage as error:
                unreadable.append(Unreadable(error.path, error.reason, self.training))
                continue
            with _seeded(self.seed, epoch, index + repeat * len(self)):
                return self._sample(self.transform.augment(pixels), position, True, unreadable)
        if self.training:
            first = f"{escape(unreadable[0].path)}: {unreadable[0].reason}"
            if len(unreadable) < len(self):
                raise InputError(
                    f"{len(unreadable):,} of the {len(self):,} training images, one after the other, cannot be read; "
                    f"`dcal check-data` lists all that cannot; the first: {first}"
                )
            raise InputError(f"none of the {len(self)} training images can be read; the first: {first}")
        blank = self.transform(Image.new("RGB", (8, 8)))  # through the transform, which has the output size
        return self._sample(torch.zeros_like(blank), index, False, unreadable)

    def _sample(self, image: Tensor, index: int, valid: bool, unreadable: list[Unreadable]) -> dict[str, Any]:
        label = int(self.image_list.labels[index])
        return {"image": image, "label": label, "index": index, "valid": valid, "unreadable": unreadable}

    def _read(self, index: int) -> Tensor:
        """uint8 (3, *transform.size); raises UnreadableImage."""
        image = read_image(self.image_list.images[index], self.transform.size)
        return self.transform.resize(image)


@contextmanager
def _seeded(*entropy: int) -> Iterator[None]:
    """Seeds torch's CPU generator within the context, and restores it after."""
    before = torch.get_rng_state()
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    torch.default_generator.manual_seed(int(seed >> np.uint64(1)))
    try:
        yield
    finally:
        torch.set_rng_state(before)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples of `ImageDataset` → a batch.

    Returns:
        images (B, 3, H, W) float; labels (B,) int64; indices (B,) int64, positions in the list of images; valid (B,)
        bool, False for images that metrics must leave out; unreadable, a list of `Unreadable`; and of samples with a
        "distractor" (see `PairedDataset`), distractor_images (B, 3, H, W) float.
    """
    batch = {
        # In a worker, default_collate stacks into shared memory, which saves a copy when the batch is sent.
        "images": default_collate([sample["image"] for sample in samples]),
        "labels": torch.tensor([sample["label"] for sample in samples], dtype=torch.int64),
        "indices": torch.tensor([sample["index"] for sample in samples], dtype=torch.int64),
        "valid": torch.tensor([sample["valid"] for sample in samples], dtype=torch.bool),
        "unreadable": [image for sample in samples for image in sample["unreadable"]],
    }
    if "distractor" in samples[0]:
        batch["distractor_images"] = default_collate([sample["distractor"] for sample in samples])
    return batch
