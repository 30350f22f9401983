"""Batches for training and for evaluation."""

import multiprocessing
import sys

import torch
from torch.utils.data import DataLoader, Sampler

from dual_cross_attention.data.cache import PictureCache
from dual_cross_attention.data.pictures import PictureDataset, PictureList, collate
from dual_cross_attention.data.transforms import Transform
from dual_cross_attention.errors import InputError


def train_loader(
    pictures: PictureList,
    transform: Transform,
    batch_size: int,
    num_workers: int,
    seed: int,
    device_type: str,
    min_batch: int = 1,
    sampler: Sampler[int] | None = None,
    cache: bool = False,
) -> DataLoader:
    """The training loader; batches are those of `collate`.

    The last batch is kept when it is short, unless it has fewer than `min_batch` pictures.

    Args:
        pictures: what to train on.
        transform: from a PIL image in RGB to a float tensor (3, H, W).
        batch_size: pictures per batch.
        num_workers: processes that read ahead; 0 reads in this one.
        seed: of the order of the pictures, and of their augmentation.
        device_type: pages are pinned for "cuda".
        min_batch: fewest pictures a batch may have; 2 with PWCA, where each needs a distractor.
        sampler: the order of the pictures; None shuffles them.
        cache: keeps pictures in memory, see `PictureCache`; what comes out is the same.

    Raises:
        InputError: a size that cannot work, fewer pictures than `min_batch`, or a cache that cannot be.
    """
    if batch_size < min_batch:
        raise InputError(
            f"expected batch_size of at least {min_batch}{' (PWCA pairs pictures of a batch)' if min_batch > 1 else ''}"
            f", got {batch_size}"
        )
    if len(pictures) < min_batch:
        raise InputError(f"expected at least {min_batch} training pictures, got {len(pictures)}")
    drawn = len(pictures if sampler is None else sampler)
    kept = PictureCache(len(pictures), transform.size) if cache else None
    return DataLoader(
        PictureDataset(pictures, transform, training=True, seed=seed, cache=kept),
        batch_size=batch_size,
        sampler=sampler,
        shuffle=sampler is None,
        drop_last=0 < drawn % batch_size < min_batch,
        **_shared(num_workers, seed, device_type, cache),
    )


def test_loader(
    pictures: PictureList,
    transform: Transform,
    batch_size: int,
    num_workers: int,
    seed: int,
    device_type: str,
    cache: bool = False,
) -> DataLoader:
    """The test loader, in the order of the list. Arguments and errors as in `train_loader`."""
    kept = PictureCache(len(pictures), transform.size) if cache else None
    dataset = PictureDataset(pictures, transform, training=False, cache=kept)
    # Seeded, else each evaluation would draw from the global generator.
    return DataLoader(dataset, batch_size=batch_size, **_shared(num_workers, seed, device_type, cache))


test_loader.__test__ = False  # pytest takes it for a test wherever it is imported


def _shared(num_workers: int, seed: int, device_type: str, cache: bool) -> dict:
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
        # prefetch_factor stays PyTorch's 2: at 8 processes 16 batches lie ready, 2.5 GB of shared memory in evaluation.
        "pin_memory": device_type == "cuda",
        "collate_fn": collate,
        "generator": torch.Generator().manual_seed(seed),
    }
