"""A run of fine-grained recognition: classes, crops, and images in any order."""

from collections.abc import Sequence
from typing import Any

import torch

from dual_cross_attention.configs import FGVCConfig
from dual_cross_attention.data import load_fgvc, test_loader, train_loader, train_transform
from dual_cross_attention.data.cache import check_memory
from dual_cross_attention.data.fgvc import FineGrainedData
from dual_cross_attention.data.fingerprint import DataFingerprint, digest_names, fingerprint_split
from dual_cross_attention.data.loaders import Batches
from dual_cross_attention.data.samplers import BalancedBatchSampler
from dual_cross_attention.data.transforms import Transform
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.tasks import FGVCTask
from dual_cross_attention.tasks.batch_mixing import batch_mixing
from dual_cross_attention.tasks.branch_schedule import branch_schedule
from dual_cross_attention.tasks.data_module import RunSetup, UnknownClasses, reading_processes
from dual_cross_attention.tasks.training_noise import training_noise


class FGVCSetup(RunSetup):
    """See `RunSetup`. Images are normalized as `pixel_stats` says."""

    test_has_the_classes = True

    def __init__(self, config: FGVCConfig, train: bool = True, split: str | None = None):
        self.config = config
        left_out = self.read_distractors(train)
        self._take(
            load_fgvc(
                config.dataset,
                config.data_root,
                config.download and train,
                train,
                split,
                config.val_fraction,
                config.image_column,
                config.label_column,
            )
        )
        self.warnings = [*self.warnings, *left_out]
        training = f"{len(self.data.train):,} training and " if self.data.train else ""
        self.description = f"{len(self.classes)} classes, {training}{self.num_test:,} test images"
        self.cache = train and config.cache == "ram"
        if self.cache:
            check_memory(len(self.data.train) + self.num_test, tuple(config.resize()))

    def _take(self, data: FineGrainedData) -> None:
        self.data, self.classes, self.num_test = data, data.classes, len(data.test)
        self.warnings, self.notes, self.coarse_classes = data.warnings, data.notes, data.coarse_classes

    def fingerprint(self) -> DataFingerprint:
        splits = {"train": self.data.train, "test": self.data.test}
        return DataFingerprint(
            self.config.dataset,
            len(self.classes),
            digest_names(self.classes),
            {name: fingerprint_split(split.images, split.labels) for name, split in splits.items() if split},
        ).with_distractors(self.distractor_images)

    def align_classes(self, classes: list[str], unknown_classes: UnknownClasses = "refuse") -> None:
        """See `RunSetup`. Test images get the labels that the model knows.

        Where training images were read, the classes are those of the model, in any order. Test images alone may be of
        some of them.
        """
        if self.data.train is None:
            self._take(self.data.with_classes_of_model(classes, unknown_classes))
        else:
            self._take(self.data.with_order_of(classes))
        super().align_classes(classes)

    def build_task(self, model: DualCrossAttentionViT) -> FGVCTask:
        return FGVCTask(
            model,
            self.config.weight_bound,
            self.config.label_smoothing,
            schedule=branch_schedule(self.config),
            loss_weights=self.config.loss_weights,
            noise=training_noise(self.config, len(self.classes)),
            mixing=batch_mixing(self.config, len(self.classes)),
        )

    def train_loader(self, model: DualCrossAttentionViT, device: torch.device) -> Batches:
        config = self.config
        min_batch = 2 if model.has_pwca and config.distractors == "any" else 1
        return train_loader(
            self.data.train,
            self.train_transform(model),
            config.batch_size,
            reading_processes(config, device),
            config.seed,
            device.type,
            min_batch=min_batch,
            sampler=self._balanced_sampler(min_batch) if config.class_balance else None,
            cache=self.cache,
            pair=self.pair,
        )

    def _balanced_sampler(self, min_batch: int) -> BalancedBatchSampler:
        config, train = self.config, self.data.train
        return BalancedBatchSampler(train.labels, config.batch_size, min_batch, config.seed, train.block)

    def test_loader(self, model: DualCrossAttentionViT, device: torch.device) -> Batches:
        return test_loader(
            self.data.test,
            self.preprocessing(model).transform,
            self.config.eval_batch_size or 4 * self.config.batch_size,
            reading_processes(self.config, device),
            device.type,
            self.cache,
        )

    def augmentation(self, mean: Sequence[float], std: Sequence[float], further: tuple[Any, ...]) -> Transform:
        config = self.config
        return train_transform(tuple(config.img_size), tuple(config.resize()), mean, std, config.flip, *further)
