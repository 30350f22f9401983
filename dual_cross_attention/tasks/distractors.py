"""PWCA's distractors as the settings say: another image of the batch, or a second image for each."""

from pathlib import Path
from typing import cast

import numpy as np

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.data.dataset import ImageDataset
from dual_cross_attention.data.distractors import DistractorSampler, PairedDataset, Rule
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.listing import left_out_warnings, list_images
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

HAVE_PWCA = ("full", "sa_pwca")
IN_BATCH = ("any", "noise")
"""Values of the setting `distractors` that need no second image."""


def list_distractors(config: TrainingConfig) -> tuple[ImageList | None, list[str]]:
    """The images of `--distractors dataset`, with labels of 0, or None where the settings need none; and warnings.

    Raises:
        InputError: the folder cannot be listed, or holds no image.
    """
    if config.distractors != "dataset" or config.ablation not in HAVE_PWCA or config.freeze == "all":
        return None, []
    folder = Path(cast(str, config.distractor_root))
    try:
        listing = list_images(folder)
    except OSError as error:
        raise InputError(f"distractor_root: '{escape(folder)}' cannot be listed: {error.strerror}") from error
    images, warnings = listing.images, left_out_warnings(f"distractor_root: {escape(folder)}", listing)
    if not images:
        raise InputError(f"distractor_root: expected a folder of images, and '{escape(folder)}' holds none")
    return ImageList(images, np.zeros(len(images), dtype=np.int64)), warnings


def pair(config: TrainingConfig, targets: ImageDataset, distractor_images: ImageList | None) -> PairedDataset | None:
    """The training images with their distractors; None where each batch has them.

    Args:
        targets: the training images.
        distractor_images: of `list_distractors`.

    Raises:
        InputError: as of `DistractorSampler`.
    """
    if config.distractors in IN_BATCH or config.ablation not in HAVE_PWCA or config.freeze == "all":
        return None
    images = targets.image_list if distractor_images is None else distractor_images
    sampler = DistractorSampler(cast(Rule, config.distractors), targets.image_list.labels, len(images))
    return PairedDataset.of(targets, images, sampler)
