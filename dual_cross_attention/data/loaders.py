"""Batches for training and for evaluation."""

import logging
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from dual_cross_attention.data.cache import ImageCache
from dual_cross_attention.data.images import ImageDataset, ImageList, collate
from dual_cross_attention.data.samplers import BatchOrder, SequentialOrder, ShuffledOrder
from dual_cross_attention.data.transforms import Transform
from dual_cross_attention.errors import InputError

logger = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds after which a worker that has sent nothing counts as hung."""
NOTICED_WITHIN = 5.0
"""Seconds after which one that has died is noticed, at the latest."""
READING_ATTEMPTS = 3
"""How often in a row reading may break down before a run gives up."""


_TIMED_OUT = "DataLoader timed out"


class Batches:
    """The batches of a dataset, which can be read from any point of any epoch.

    A worker that dies or hangs is replaced, and what it was to read is read again. The processes stay from one
    reading to the next, unless the one before was left in its middle.

    Args:
        dataset: what to read.
        order: which images make which batch.
        options: of `DataLoader`.
    """

    def __init__(self, dataset: ImageDataset, order: BatchOrder, **options: Any):
        self.dataset, self.order = dataset, order
        self._wanted = _Wanted(order)
        self._left = False  # in the middle of what was to be read
        # Seeded, else every epoch would draw the seeds of the workers from the global generator.
        generator = torch.Generator().manual_seed(0)
        self.loader = DataLoader(
            dataset, batch_sampler=self._wanted, collate_fn=collate, generator=generator, **options
        )

    def __len__(self) -> int:
        """Batches of an epoch, of all processes together."""
        return self.order.num_batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All batches of epoch 0."""
        return self.read(0, range(len(self)))

    def read(self, epoch: int, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Some batches of an epoch, as `collate` makes them.

        Args:
            epoch: decides the order, and what is drawn for augmentation.
            numbers: which batches, in ascending order (one may come twice); the first is 0.

        Raises:
            InputError: the workers have died or hung `READING_ATTEMPTS` times in a row.
        """
        self.dataset.set_epoch(epoch)
        numbers, done, failures = list(numbers), 0, 0
        while done < len(numbers):
            self._wanted.epoch, self._wanted.numbers = epoch, numbers[done:]
            try:
                if self._left:  # PyTorch would first wait for the batches that nobody wants any more
                    self.close()
                batches, self._left = iter(self.loader), True
                # PyTorch would raise the death of a process wherever the program happens to be. Without its handler the
                # loader finds out by itself, when it waits for that process.
                in_main = threading.current_thread() is threading.main_thread()
                if in_main and self.loader.num_workers and signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                while (batch := self._next_of(batches)) is not None:
                    self._left = done + 1 < len(numbers)
                    yield batch
                    done, failures = done + 1, 0
            except RuntimeError as error:
                if not _is_of_reading(error):
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
                self.close()  # what is left of them would be asked again

    def _next_of(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        """The next batch; None at the end. PyTorch looks for processes that died whenever its own patience ends."""
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
        """End the workers, which else wait for another epoch."""
        self.loader._iterator = None

    def image_names(self, epoch: int, numbers: Iterable[int]) -> list[list[str]]:
        """The images of some batches, as `read` takes them: their paths, or their number where they have none."""
        return [[self.dataset.name(index) for index in batch] for batch in self._wanted.lists(epoch, list(numbers))]


class _Wanted(Sampler[list[int]]):
    """The batches that are asked for at the moment."""

    def __init__(self, order: BatchOrder):
        self.order = order
        self.epoch, self.numbers = 0, list[int]()

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[list[int]]:
        return self.lists(self.epoch, self.numbers)

    def lists(self, epoch: int, numbers: list[int]) -> Iterator[list[int]]:
        """Indices of these batches."""
        if not numbers:
            return
        batches = enumerate(self.order.batches(epoch, numbers[0]), numbers[0])
        at, batch = next(batches)
        for number in numbers:
            while at < number:
                at, batch = next(batches)
            yield batch


def _is_of_reading(error: RuntimeError) -> bool:
    """Whether it tells of a worker, not of what one raised."""
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
    order: BatchOrder | None = None,
    cache: bool = False,
) -> Batches:
    """The training batches; they are those of `collate`.

    The last batch is kept when it is short, unless it has fewer than `min_batch` images.

    Args:
        images: what to train on.
        transform: from a PIL image in RGB to a float tensor (3, H, W).
        batch_size: images per batch.
        num_workers: processes that read ahead; 0 reads in this one.
        seed: of the order of the images, and of their augmentation.
        device_type: pages are pinned for "cuda".
        min_batch: fewest images a batch may have; 2 with PWCA, where each needs a distractor.
        order: which images make which batch; None shuffles them.
        cache: keeps images in memory, see `ImageCache`; what comes out is the same.

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
    return Batches(
        ImageDataset(images, transform, training=True, seed=seed, cache=kept),
        order or ShuffledOrder(len(images), batch_size, min_batch, seed, images.block),
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
    """The test batches, in the order of the list. Arguments and errors as in `train_loader`."""
    kept = ImageCache(len(images), transform.size) if cache else None
    dataset = ImageDataset(images, transform, training=False, cache=kept)
    return Batches(dataset, SequentialOrder(len(images), batch_size), **_reading(num_workers, device_type, cache))


test_loader.__test__ = False  # pytest takes it for a test wherever it is imported


def _reading(num_workers: int, device_type: str, cache: bool) -> dict[str, Any]:
    """Options of `DataLoader`: by how many processes, and where to."""
    forked = cache and num_workers > 0  # only forked processes share the cache, and not every system forks by default
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
        # prefetch_factor stays PyTorch's 2: at 8 processes 16 batches lie ready, 2.5 GB of shared memory in evaluation.
        "pin_memory": device_type == "cuda",
    }
