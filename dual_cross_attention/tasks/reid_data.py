"""A run of re-identification: P x K batches to train on, queries and a gallery to test on."""

from functools import partial

import numpy as np
import torch

from dual_cross_attention.configs import ReIDConfig
from dual_cross_attention.data import (
    IdentitySampler,
    ImageList,
    load_reid,
    reid_train_transform,
    test_loader,
    train_loader,
)
from dual_cross_attention.data.cache import check_memory
from dual_cross_attention.data.concat_sequence import ConcatSequence
from dual_cross_attention.data.fingerprint import DataFingerprint, digest_names, fingerprint_split
from dual_cross_attention.data.labels import distinct
from dual_cross_attention.data.loaders import Batches
from dual_cross_attention.data.reid.blocks import BlockIdentitySampler
from dual_cross_attention.data.samplers import EpochBatchSampler
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.tasks import ReIDTask, RetrievalSplit
from dual_cross_attention.tasks.branch_schedule import branch_schedule
from dual_cross_attention.tasks.data_module import RunSetup, pixel_stats, reading_processes
from dual_cross_attention.tasks.distractors import list_distractors, pair
from dual_cross_attention.tasks.training_noise import training_noise


class ReIDSetup(RunSetup):
    """See `RunSetup`; the classes are the training identities. The test images are the queries, then the gallery."""

    test_splits = ("query", "gallery")

    def __init__(self, config: ReIDConfig, train: bool = True, split: str | None = None):
        if split:
            raise InputError(f"--split {split} is for classification: re-identification is tested on query and gallery")
        self.config = config
        self.distractor_images = list_distractors(config) if train else None
        self.data = load_reid(config.dataset, config.data_root, train, config.download and train)
        self.classes = self.data.identities
        sides = (self.data.query, self.data.gallery)
        self.images = ConcatSequence(*(side.images for side in sides))
        self.split = RetrievalSplit(
            torch.from_numpy(np.concatenate([np.asarray(side.identities, dtype=np.int64) for side in sides])),
            torch.from_numpy(np.concatenate([np.asarray(side.cameras, dtype=np.int64) for side in sides])),
            len(self.data.query),
        )
        training = f"{len(self.classes):,} identities, {len(self.data.train):,} training images; " if train else ""
        people, cameras = distinct(self.data.query.identities), self.split.cameras.unique()
        self.description = (
            f"{training}{len(self.data.query):,} queries of {len(people):,} identities, "
            f"{len(self.data.gallery):,} gallery images, {len(cameras)} cameras"
        )
        self.notes = self.data.notes
        self.warnings = self.data.warnings
        self.num_test = len(self.images)
        self.cache = train and config.cache == "ram"
        if self.cache:
            check_memory(len(self.data.train) + self.num_test, tuple(config.img_size))

    def fingerprint(self) -> DataFingerprint:
        splits = {"train": self.data.train, "query": self.data.query, "gallery": self.data.gallery}
        return DataFingerprint(
            self.config.dataset,
            len(self.classes),
            digest_names(self.classes),
            {
                name: fingerprint_split(split.images, split.identities, split.cameras)
                for name, split in splits.items()
                if split is not None
            },
        ).with_distractors(self.distractor_images)

    def build_task(self, model: DualCrossAttentionViT) -> ReIDTask:
        config = self.config
        return ReIDTask(
            model,
            self.split,
            config.weight_bound,
            config.label_smoothing,
            config.triplet_margin,
            config.feature,
            config.distance,
            config.normalize_features,
            schedule=branch_schedule(config),
            loss_weights=config.loss_weights,
            noise=training_noise(config, len(self.classes)),
        )

    def train_loader(self, model: DualCrossAttentionViT, device: torch.device) -> Batches:
        config, train = self.config, self.data.train
        return train_loader(
            ImageList(train.images, train.identities),
            reid_train_transform(
                tuple(config.img_size), *self._stats(model), config.flip, config.padding, config.erasing
            ),
            config.batch_size,
            reading_processes(config, device),
            config.seed,
            device.type,
            sampler=self._sampler(),
            cache=self.cache,
            pair=partial(pair, config, distractor_images=self.distractor_images),
        )

    def _sampler(self) -> EpochBatchSampler:
        config, train = self.config, self.data.train
        per_identity = config.images_per_identity
        identities_per_batch = config.batch_size // per_identity
        if train.block is None:
            return IdentitySampler(train.identities, identities_per_batch, per_identity, config.seed)
        counts = train.identities.counts
        return BlockIdentitySampler(counts, identities_per_batch, per_identity, config.seed, train.block)

    def test_loader(self, model: DualCrossAttentionViT, device: torch.device) -> Batches:
        return test_loader(
            ImageList(self.images, self.split.identities.numpy()),
            self.preprocessing(model).transform,
            self.config.eval_batch_size or 4 * self.config.batch_size,
            reading_processes(self.config, device),
            device.type,
            self.cache,
        )

    def _stats(self, model: DualCrossAttentionViT) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the pixels."""
        mean, std, _ = pixel_stats(self.config, model)
        return mean, std
