"""Data module of a task: dataset, loaders, preprocessing and fingerprint, as configured by the settings."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from dual_cross_attention.configs import FGVCConfig, TrainingConfig
from dual_cross_attention.data.dataset import ImageDataset
from dual_cross_attention.data.distractors import PairedDataset
from dual_cross_attention.data.fgvc.fine_grained import UnknownClasses
from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.loaders import Batches
from dual_cross_attention.data.names import same_names
from dual_cross_attention.data.preprocessing import Preprocessing
from dual_cross_attention.data.transforms import Transform
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.tasks.distractors import list_distractors, pair
from dual_cross_attention.tasks.task import Task
from dual_cross_attention.weights.pixel_stats import HALF, IMAGENET, PixelStats, default_stats


class RunSetup(ABC):
    """Data module of a task.

    Args:
        config: the settings of the task.
        train: False: for evaluation only, so the training side may be missing.

    Attributes:
        classes: names of what the classifiers tell apart, saved with the model; empty where `train` is False and the
            test side does not say.
        description: the data in a line.
        warnings: what is wrong with it.
        notes: how it was read, where that was a choice, a line each.
        coarse_classes: of classification, the coarse class of each class; None: there are none.
        distractor_images: of `--distractors dataset`; None: there are none.
        num_test: test images.
        cache: whether loaders keep their images in memory. Not for evaluation only, which reads each of them once.
        test_splits: names of the splits of the fingerprint that the test images are in.
        test_has_the_classes: whether test images are of the training classes, or of others (as in re-identification).
        saved_preprocessing: of test images, as the file of the evaluated model records it; None in training.
        uses_test_cameras: whether a model with an embedding of cameras or views gets those of test images; in an
            evaluation, cameras are those of the training only if the data is that of the run.
    """

    config: TrainingConfig
    classes: list[str]
    description: str
    warnings: list[str]
    notes: Sequence[str] = ()
    coarse_classes: list[str] | None = None
    distractor_images: ImageList | None = None
    num_test: int
    cache: bool
    test_splits: tuple[str, ...] = ("test",)
    test_has_the_classes: bool = False
    saved_preprocessing: Preprocessing | None = None
    uses_test_cameras: bool = False

    @abstractmethod
    def __init__(self, config: TrainingConfig, train: bool = True, split: str | None = None):
        """Reads the dataset.

        Args:
            config, train: see the class.
            split: of the test images, where a dataset has several, "val" or "test"; None: that of the dataset.

        Raises:
            InputError: that cannot work, or its images cannot be kept as `cache` says.
        """

    @abstractmethod
    def fingerprint(self) -> DataFingerprint:
        """What tells this data from other data; see `fingerprint_split`."""

    def resolve(self, config: TrainingConfig) -> TrainingConfig:
        """The settings of a run that begins, with those that its data decides.

        Raises:
            InputError: the data does not have what the settings need.
        """
        return config

    @abstractmethod
    def build_task(self, model: DualCrossAttentionViT) -> Task:
        """The task over a model."""

    @abstractmethod
    def train_loader(self, model: DualCrossAttentionViT, device: torch.device) -> Batches:
        """Batches for `Task.training_step`."""

    def read_distractors(self, train: bool) -> list[str]:
        """Sets `distractor_images` as the settings say, in training only; returns warnings."""
        self.distractor_images, warnings = list_distractors(self.config) if train else (None, [])
        return warnings

    @property
    def pair(self) -> Callable[[ImageDataset], PairedDataset | None]:
        """Pairs training images with their distractors, see `distractors.pair`."""
        return partial(pair, self.config, distractor_images=self.distractor_images)

    def train_transform(self, model: DualCrossAttentionViT) -> Transform:
        """Of the training images; with `freeze` "all", that of the test images, as features are computed once."""
        if self.config.freeze == "all":
            return self.preprocessing(model).transform
        config, (mean, std, _) = self.config, pixel_stats(self.config, model)
        further = config.color_jitter, config.auto_augment, config.interpolation, config.keep_aspect
        return self.augmentation(mean, std, further)

    @abstractmethod
    def augmentation(self, mean: Sequence[float], std: Sequence[float], further: tuple[Any, ...]) -> Transform:
        """The random transform of the task.

        Args:
            mean, std: that images are normalized by, per channel.
            further: the last arguments of `data.train_transform` and `data.reid_train_transform`.
        """

    @abstractmethod
    def test_loader(self, model: DualCrossAttentionViT, device: torch.device) -> Batches:
        """Batches for `Task.eval_step`."""

    def preprocessing(self, model: DualCrossAttentionViT) -> Preprocessing:
        """Of the test images."""
        return self.saved_preprocessing or preprocessing_of(self.config, model)

    def test_views(self) -> list[str]:
        """The view of each test image, "" where it is unknown, of a model with an embedding of views; else empty.

        Raises:
            InputError: the file that lists them cannot be used.
        """
        return []

    def align_classes(self, classes: list[str], unknown_classes: UnknownClasses = "refuse") -> None:
        """Maps the labels to the class indices of a model, whose classes must fit the data.

        Args:
            classes: of the model.
            unknown_classes: "leave_out" leaves out test images of classes that the model does not know, where the test
                images of a dataset can be read alone.

        Raises:
            InputError: the model cannot be evaluated on this data.
        """
        if self.test_has_the_classes and not same_names(classes, self.classes):
            raise InputError(
                f"the model knows {len(classes)} classes ({classes[0]}, …), the data at '{self.config.data_root}' has "
                f"{len(self.classes)} ({self.classes[0]}, …): expected the same, in the same order"
            )


def pixel_stats(config: TrainingConfig, model: DualCrossAttentionViT | None) -> PixelStats:
    """Mean and standard deviation that pixels are normalized by.

    In this order: the settings `mean` and `std`; what the weights file names, unless they are None, as in the settings
    of a run of format 1; re-ID's `pixel_stats`; the backbone's `pretrained_cfg`.
    """
    if isinstance(config.mean, list):
        return PixelStats(tuple(config.mean), tuple(config.std), "the settings mean and std")
    if config.mean == "auto" and model.pretrained_stats:
        return model.pretrained_stats
    return default_stats(getattr(config, "pixel_stats", None), model.backbone.default_cfg, config.backbone)


def preprocessing_of(config: TrainingConfig, model: DualCrossAttentionViT | None) -> Preprocessing:
    """Of images outside of training, as the settings say; re-ID images are not cropped.

    Args:
        config: the settings.
        model: may be None where `mean` and `std` of the settings are numbers, as in all runs since format 2.
    """
    mean, std, _ = pixel_stats(config, model)
    img_size = tuple(config.img_size)
    resize = tuple(config.resize()) if isinstance(config, FGVCConfig) else img_size
    return Preprocessing(img_size, resize, tuple(mean), tuple(std), config.interpolation, config.keep_aspect)


def pixel_stats_warning(config: TrainingConfig, model: DualCrossAttentionViT) -> str | None:
    """A warning, if the weights were probably trained with another mean and std than `pixel_stats` gives; else None.

    Where the weights name theirs (timm's published ones, or a file), the settings are held against them. Where a file
    names none, only settings out of a --config file are held against the backbone's: they may be of another backbone.
    """
    stats, auto = pixel_stats(config, model), pixel_stats(config.replaced(mean="auto", std="auto"), model)
    is_file = config.weights not in ("imagenet", "none")
    is_named = model.pretrained_stats is not None
    is_of_backbone = not is_named and getattr(config, "pixel_stats", None) != "half"
    if (stats.mean, stats.std) != (auto.mean, auto.std):
        weights_say = is_named or (is_of_backbone and config.weights == "imagenet")
        may_be_of_another = "mean" not in config.flags and (is_file or "pixel_stats" in config.flags)
        if not (weights_say or may_be_of_another):
            return None
        return (
            f"images are normalized by {stats}, but these weights and settings expect {auto}: "
            "--mean auto --std auto takes those"
        )
    if not is_file or not is_of_backbone or isinstance(config.mean, list) or (stats.mean, stats.std) != (HALF, HALF):
        return None
    mean, std = (" ".join(map(str, values)) for values in IMAGENET)
    return (
        f"'{config.weights}' does not say how its images were normalized: mean and std of 0.5 are taken, as timm's "
        f"{config.backbone}; DeiT, MAE and DINO files need ImageNet's: --mean {mean} --std {std}"
    )


def reading_processes(config: TrainingConfig, device: torch.device) -> int:
    """Returns `num_workers`; None: see `default_workers`. On a CPU, workers would compete with the training."""
    return default_workers(device) if config.num_workers is None else config.num_workers


def default_workers(device: torch.device) -> int:
    """DataLoader workers where the user does not say: none on a CPU, else one per core, at most 8."""
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
