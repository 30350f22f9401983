"""Batches for training and for evaluation."""

import logging
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from dual_cross_attention.data.cache import ImageCache
from dual_cross_attention.data.dataset import ImageDataset, collate
from dual_cross_attention.data.distractors import PairedDataset
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.samplers import (
    EpochBatchSampler,
    SampleKey,
    SequentialBatchSampler,
    ShuffledBatchSampler,
)
from dual_cross_attention.data.transforms import Transform
from dual_cross_attention.errors import InputError

logger = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds without a batch after which a worker counts as hung."""
NOTICED_WITHIN = 5.0
"""Seconds within which the death of a worker is noticed."""
READING_ATTEMPTS = 3
"""Number of consecutive failures of workers after which a run ends."""

_TIMED_OUT = "DataLoader timed out"


class Batches:
    """The batches of a dataset, which can be read from any point of any epoch.

    A worker that dies or hangs is replaced, and its batches are read again. Workers persist from one reading to the
    next, unless a reading is abandoned midway.

    Args:
        dataset: a sample for every `SampleKey`.
        sampler: which images make which batch.
        options: of `DataLoader`.
    """

    def __init__(self, dataset: ImageDataset | PairedDataset, sampler: EpochBatchSampler, **options: Any):
        self.dataset, self.sampler, self.options = dataset, sampler, options
        self._request = _Request()
        self._is_abandoned = False  # the last reading, midway
        # With a seed: otherwise every epoch would draw the base seed of its workers from the global generator.
        generator = torch.Generator().manual_seed(0)
        self.loader = DataLoader(
            dataset, batch_sampler=self._request, collate_fn=collate, generator=generator, **options
        )

    def __len__(self) -> int:
        """Batches of an epoch, over all ranks."""
        return self.sampler.num_batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All batches of epoch 0."""
        return self.read(0, range(len(self)))

    def read(self, epoch: int, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Reads some batches of an epoch; see `collate` for their content.

        Args:
            epoch: seeds order and augmentation.
            numbers: of the batches, ascending; a number may come several times; the first batch is 0.

        Raises:
            InputError: workers died or hung `READING_ATTEMPTS` times in a row.
        """
        numbers, done, failures = list(numbers), 0, 0
        while done < len(numbers):
            try:
                if self._is_abandoned:  # re-iterating would first drain stale prefetched batches
                    self.close()
                batches, self._is_abandoned = self._start(epoch, numbers[done:]), True
                while (batch := self._next_of(batches)) is not None:
                    self._is_abandoned = done + 1 < len(numbers)
                    yield batch
                    done, failures = done + 1, 0
            except RuntimeError as error:
                if not _is_worker_failure(error):
                    raise
                failures += 1
                reason = " ".join(str(error).split())
                if failures == READING_ATTEMPTS:
                    raise InputError(
                        f"the workers that read images broke down {failures} times in a row, at batch "
                        f"{numbers[done]} of epoch {epoch} ({reason}): memory may be short, or a disk may hang; try "
                        "fewer --num_workers, or 0"
                    ) from error
                logger.warning("a process that reads images broke down, and is replaced: %s", reason)
                self.close()

    def _start(self, epoch: int, numbers: list[int]) -> Iterator[dict[str, Any]]:
        """DataLoader's iterator over some batches of an epoch."""
        self._request.put(self.sampler.select(epoch, numbers))
        batches = iter(self.loader)
        # PyTorch's SIGCHLD handler raises the death of a worker wherever the program is. Without the handler, the
        # loader notices it when it waits for that worker.
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and self.loader.num_workers and signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches

    def _next_of(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        """The next batch; None at the end. PyTorch checks for dead workers after each of its timeouts."""
        waited = 0.0
        while True:
            try:
                return next(batches, None)
            except RuntimeError as error:
                waited += self.loader.timeout
                if not str(error).startswith(_TIMED_OUT):
                    raise
                if waited >= PATIENCE:
                    raise RuntimeError(f"{_TIMED_OUT} after {waited:.0f} seconds") from error

    def close(self) -> None:
        """Ends the workers, which otherwise wait for the next reading."""
        self.loader._iterator = None

    def image_names(self, epoch: int, numbers: Iterable[int]) -> list[list[str]]:
        """Names of the images of some batches; see `read` and `ImageDataset.name`."""
        return [[self.dataset.name(key.index) for key in batch] for batch in self.sampler.select(epoch, numbers)]


class _Request(Sampler[list[SampleKey]]):
    """Hands the batches of one reading to `DataLoader`, which keeps its workers only with its sampler.

    An iteration takes the request, so no later iteration can read it by mistake.
    """

    def __init__(self):
        self._batches: Iterator[list[SampleKey]] | None = None

    def put(self, batches: Iterator[list[SampleKey]]) -> None:
        """Sets the request of the next iteration."""
        self._batches = batches

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # Lazy, since DataLoader calls `iter` twice when it starts workers, and uses the second iterator.
        batches, self._batches = self._batches, None
        if batches is None:
            raise ValueError("expected a request: read batches by Batches.read, not from its loader")
        yield from batches


def _is_worker_failure(error: RuntimeError) -> bool:
    """Whether an error says that a worker died or hung; an exception raised within a worker is none."""
    message = str(error)
    return message.startswith(("DataLoader worker (pid", _TIMED_OUT)) or "Pin memory thread" in message


def train_loader(
    images: ImageList,
    transform: Transform,
    batch_size: int,
    num_workers: int,
    seed: int,
    device_type: str,
    min_batch: int = 1,
    sampler: EpochBatchSampler | None = None,
    cache: bool = False,
    pair: Callable[[ImageDataset], PairedDataset | None] = lambda _: None,
) -> Batches:
    """Builds the training batches; see `collate` for their content.

    The last batch is kept when it is smaller, unless it has fewer than `min_batch` images.

    Args:
        images: training images and labels.
        transform: from a PIL image in RGB to a float tensor (3, H, W).
        batch_size: images per batch.
        num_workers: DataLoader workers; 0 reads in this process.
        seed: of order and augmentation.
        device_type: memory is pinned for "cuda".
        min_batch: fewest images of a batch; 2 with PWCA, where each needs a distractor.
        sampler: which images make which batch; None: `ShuffledBatchSampler`.
        cache: keep images in memory, see `ImageCache`; the batches are the same.
        pair: gives every training image a distractor; its result None: the batches have none.

    Raises:
        InputError: a size that cannot work, fewer images than `min_batch`, or a cache that cannot be.
    """
    if batch_size < min_batch:
        raise InputError(
            f"expected batch_size of at least {min_batch}{' (PWCA pairs images of a batch)' if min_batch > 1 else ''}"
            f", got {batch_size}"
        )
    if len(images) < min_batch:
        raise InputError(f"expected at least {min_batch} training images, got {len(images)}")
    kept = ImageCache(len(images), transform.size) if cache else None
    dataset = ImageDataset(images, transform, training=True, seed=seed, cache=kept)
    return Batches(
        pair(dataset) or dataset,
        sampler or ShuffledBatchSampler(len(images), batch_size, min_batch, seed, images.block),
        **_reading(num_workers, device_type, cache),
    )


def test_loader(
    images: ImageList,
    transform: Transform,
    batch_size: int,
    num_workers: int,
    device_type: str,
    cache: bool = False,
) -> Batches:
    """Builds the test batches, in the order of the list. Arguments and errors as in `train_loader`."""
    kept = ImageCache(len(images), transform.size) if cache else None
    dataset = ImageDataset(images, transform, training=False, cache=kept)
    sampler = SequentialBatchSampler(len(images), batch_size)
    return Batches(dataset, sampler, **_reading(num_workers, device_type, cache))


test_loader.__test__ = False  # pytest takes it for a test wherever it is imported


def _reading(num_workers: int, device_type: str, cache: bool) -> dict[str, Any]:
    """Options of `DataLoader`: workers and pinned memory."""
    forked = cache and num_workers > 0  # only forked workers share the cache, and not every system forks by default
    # macOS has fork, but a forked process may crash in Apple's libraries.
    if forked and ("fork" not in multiprocessing.get_all_start_methods() or sys.platform == "darwin"):
        raise InputError(
            f"--cache ram with --num_workers {num_workers} needs processes that are forked, which this system does not "
            "do: take --num_workers 0, or --cache none"
        )
    return {
        "num_workers": num_workers,
        "multiprocessing_context": "fork" if forked else None,
        "persistent_workers": num_workers > 0,
        "timeout": min(NOTICED_WITHIN, PATIENCE) if num_workers else 0,
        # prefetch_factor stays at 2: with 8 workers, 16 batches are ready, 2.5 GB of shared memory in evaluation.
        "pin_memory": device_type == "cuda",
    }
