"""Batches of images for inference, read by DataLoader workers from a stream of sources."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from dual_cross_attention.data.images import ImageSource, UnreadableImage
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.inputs import Source

FIRST_BATCH = 4
"""Size of the first batch, which is small to reduce the latency of the first result."""


@dataclass
class ImageBatch:
    """A batch of images.

    Args:
        paths: of all images of the batch; None for images in memory.
        errors: for each of them, why it cannot be read; None if it was.
        images: (n, 3, H, W) float32, those that could be read; None if there are none.
    """

    paths: list[str | None]
    errors: list[str | None]
    images: Tensor | None


def read_batches(
    sources: Iterable[Source],
    preprocessing: Callable[[ImageSource], Any],
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> Iterator[ImageBatch]:
    """Reads images in the order of the sources; memory does not grow with their number.

    Sources are taken as the workers need them, at most two batches a worker ahead.

    Args:
        sources: any iterable, endless ones too.
        preprocessing: of the model; or a function that gives several tensors an image, such as `ShownPreprocessing`:
            `ImageBatch.images` is then a list of as many batches.
        batch_size: images of a batch; the first one has at most `FIRST_BATCH`.
        num_workers: processes that read; 0 reads in this one.
        device: where the batches go; memory is pinned for CUDA.

    Raises:
        InputError: a worker was killed.
    """
    loader = DataLoader(
        _Images(preprocessing),
        batch_sampler=_batches(sources, batch_size),
        collate_fn=_collate,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(0),  # otherwise it samples from the global generator
    )
    try:
        for paths, errors, images in loader:
            yield ImageBatch(paths, errors, images)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise InputError(
            f"a worker that reads images was killed ({' '.join(str(error).split())}): memory may be short: try fewer "
            "--num_workers, or 0"
        ) from error


def _batches(sources: Iterable[Source], batch_size: int) -> Iterator[list[Source]]:
    sources, size = iter(sources), min(FIRST_BATCH, batch_size)
    while batch := list(islice(sources, size)):
        yield batch
        size = batch_size


class _Images(Dataset):
    """Indexed by sources themselves: the sampler runs in the main process and sends them to the workers."""

    def __init__(self, preprocessing: Callable[[ImageSource], Any]):
        self.preprocessing = preprocessing

    def __getitem__(self, source: Source) -> tuple[str | None, str | None, Any]:
        try:
            return source.path, None, self.preprocessing(source.image)
        except UnreadableImage as error:
            return source.path, error.reason, None


def _collate(samples: Sequence[tuple[str | None, str | None, Any]]) -> tuple:
    paths, errors, images = zip(*samples, strict=True)
    readable = [image for image in images if image is not None]
    # In a worker PyTorch's own function stacks into shared memory at once.
    return list(paths), list(errors), default_collate(readable) if readable else None
