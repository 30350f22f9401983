"""Batches for training and for evaluation."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.pictures import PictureDataset, collate
from dual_cross_attention.errors import InputError

Transform = Callable[[Image.Image], Tensor]


def build_loaders(
    data: FineGrainedData,
    train_transform: Transform,
    test_transform: Transform,
    batch_size: int,
    eval_batch_size: int,
    num_workers: int,
    seed: int,
    device_type: str,
    min_batch: int,
) -> tuple[DataLoader, DataLoader]:
    """The shuffled training loader and the ordered test loader; batches are those of `collate`.

    The last training batch is kept when it is short, unless it has fewer than `min_batch` pictures.

    Args:
        data: the pictures of both splits.
        train_transform, test_transform: from a PIL image in RGB to a float tensor (3, H, W).
        batch_size, eval_batch_size: pictures per batch, in training and in evaluation.
        num_workers: processes that read ahead, for each loader; 0 reads in this one.
        seed: of the order of the training pictures, and of their augmentation.
        device_type: pages are pinned for "cuda".
        min_batch: fewest pictures a training batch may have; 2 with PWCA, where each needs a distractor.

    Raises:
        InputError: a size that cannot work, or fewer training pictures than `min_batch`.
    """
    if batch_size < min_batch or eval_batch_size < 1 or num_workers < 0:
        raise InputError(
            f"expected batch_size of at least {min_batch}{' (PWCA pairs pictures of a batch)' if min_batch > 1 else ''}"
            f", eval_batch_size of at least 1 and num_workers of at least 0; got {batch_size}, {eval_batch_size} and "
            f"{num_workers}"
        )
    if len(data.train) < min_batch:
        raise InputError(f"{data.name}: expected at least {min_batch} training pictures, got {len(data.train)}")
    shared = {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": device_type == "cuda",
        "collate_fn": collate,
    }
    train_loader = DataLoader(
        PictureDataset(data.train, train_transform, training=True, seed=seed),
        batch_size=batch_size,
        shuffle=True,
        drop_last=0 < len(data.train) % batch_size < min_batch,
        generator=torch.Generator().manual_seed(seed),
        **shared,
    )
    test_loader = DataLoader(
        PictureDataset(data.test, test_transform, training=False),
        batch_size=eval_batch_size,
        generator=torch.Generator().manual_seed(seed),  # else each evaluation would draw from the global generator
        **shared,
    )
    return train_loader, test_loader
