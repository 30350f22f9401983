"""A run of re-identification: P x K batches to train on, queries and a gallery to test on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from dual_cross_attention.data.fingerprint import DataFingerprint, digest_names, fingerprint_split
from dual_cross_attention.data.labels import distinct
from dual_cross_attention.data.loaders import Batches
from dual_cross_attention.data.reid import ReIDData
from dual_cross_attention.data.reid.blocks import BlockIdentitySampler
from dual_cross_attention.data.reid.identities import IdentityList
from dual_cross_attention.data.reid.views import ViewList
from dual_cross_attention.data.samplers import EpochBatchSampler
from dual_cross_attention.data.transforms import Transform
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.tasks import ReIDTask, RetrievalSplit
from dual_cross_attention.tasks.branch_schedule import branch_schedule
from dual_cross_attention.tasks.cameras import (
    CameraIndices,
    camera_indices,
    name_indices,
    pair_indices,
    training_cameras,
    training_views,
)
from dual_cross_attention.tasks.data_module import RunSetup, reading_processes
from dual_cross_attention.tasks.training_noise import training_noise
from dual_cross_attention.text import escape, few


class ReIDSetup(RunSetup):
    """See `RunSetup`; the classes are the training identities. The test images are the queries, then the gallery; with
    leave-one-out, both at once."""

    test_splits = ("query", "gallery")

    def __init__(self, config: ReIDConfig, train: bool = True, split: str | None = None):
        if split:
            raise InputError(f"--split {split} is for classification: re-identification is tested on query and gallery")
        self.config = config
        self.uses_test_cameras = train
        if train and "view" in config.sie and not config.views:
            raise InputError(
                f"sie {config.sie}: expected --views FILE.csv with the columns path,view, as no dataset names the "
                "views of its images"
            )
        left_out = self.read_distractors(train)
        download = config.download and train
        self.data = load_reid(config.dataset, config.data_root, train, download, config.cameras, config.bbox)
        self.classes = self.data.identities
        self.images = self.data.test_images
        self.split = _retrieval_split(self.data)
        if self.data.leave_one_out:
            self.test_splits = ("test",)
        training = f"{len(self.classes):,} identities, {len(self.data.train):,} training images; " if train else ""
        people = f"{len(distinct(self.data.query.identities)):,} identities"
        cameras = "no" if self.split.cameras is None else f"{len(self.split.cameras.unique())}"
        test = f"{len(self.data.query):,} queries of {people}, {len(self.data.gallery):,} gallery images"
        if self.data.leave_one_out:
            test = f"{len(self.data.query):,} test images of {people}, leave-one-out"
        self.description = f"{training}{test}, {cameras} cameras"
        self.notes = self.data.notes
        self.warnings = [*self.data.warnings, *left_out]
        self.train_views, self._test_views = self._read_views() if train and "view" in config.sie else ([], None)
        self.num_test = len(self.images)
        self.cache = train and config.cache == "ram"
        if self.cache:
            check_memory(len(self.data.train) + self.num_test, tuple(config.img_size))

    def fingerprint(self) -> DataFingerprint:
        sides = (self.data.query, self.data.gallery)  # of which there is one with leave-one-out
        splits = {"train": self.data.train} | dict(zip(self.test_splits, sides, strict=False))
        found = DataFingerprint(
            self.config.dataset,
            len(self.classes),
            digest_names(self.classes),
            {
                name: fingerprint_split(
                    split.images, split.identities, *(() if split.cameras is None else (split.cameras,))
                )
                for name, split in splits.items()
                if split is not None
            },
        )
        return found.with_distractors(self.distractor_images).with_views(
            [*self.train_views, *(self._test_views or [])] if self.train_views else []
        )

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
            cameras=self._camera_indices(model),
        )

    def resolve(self, config: ReIDConfig) -> ReIDConfig:
        """See `RunSetup.resolve`; the cameras and views that have an embedding."""
        named = {}
        if "camera" in config.side_information:
            named["sie_cameras"] = tuple(training_cameras(self.data, config.sie_cameras))
        if "view" in config.side_information:
            named["views"] = f"{Path(f'{config.views}').expanduser().absolute()}"
            named["sie_views"] = tuple(training_views(self.train_views, Path(f"{config.views}"), config.sie_views))
        return config.replaced(**named) if named else config

    def _read_views(self) -> tuple[list[str], list[str]]:
        """Views of training and test images; adds a line on them to the notes."""
        views = self._view_list()
        of_train, of_test = views.of(self.data.train.images), views.of(self.images)
        names = sorted({*of_train} - {""})
        self.notes.append(
            f"views: {len(names)} views in training ({few(names)}), from {escape(self.config.views)}; "
            f"{of_train.count(''):,} of {len(of_train):,} training images and {of_test.count(''):,} of "
            f"{len(of_test):,} test images have none and count as of an unknown view"
            + (f"; {views.num_unused:,} rows are of no image" if views.num_unused else "")
        )
        return of_train, of_test

    def _view_list(self) -> ViewList:
        return ViewList(Path(f"{self.config.views}").expanduser(), self.notes)

    def test_views(self) -> list[str]:
        """See `RunSetup.test_views`."""
        if "view" not in self.config.side_information:
            return []
        if self._test_views is None:
            self._test_views = self._view_list().of(self.images)
        return self._test_views

    def _camera_indices(self, model: DualCrossAttentionViT) -> CameraIndices | None:
        if model.side_information is None:
            return None
        data, sides = self.data, (self.data.query,) if self.data.leave_one_out else (self.data.query, self.data.gallery)
        train = None if data.train is None else self._indices([data.train], self.train_views)
        test = self._indices(sides, self.test_views()) if self.uses_test_cameras else None
        return CameraIndices(train, test, self.config.sie_dropout)

    def _indices(self, sides: Sequence[IdentityList], views: Sequence[str]) -> torch.Tensor:
        """Of the images of some splits, in a row."""
        named, found = self.config.side_information, {}
        if "camera" in named:
            found["camera"] = torch.cat([camera_indices(self.data, side, named["camera"]) for side in sides])
        if "view" in named:
            found["view"] = name_indices(views, named["view"])
        if len(found) == 2:
            return pair_indices(found["camera"], found["view"], len(named["view"]))
        return next(iter(found.values()))

    def train_loader(self, model: DualCrossAttentionViT, device: torch.device) -> Batches:
        config, train = self.config, self.data.train
        return train_loader(
            ImageList(train.images, train.identities),
            self.train_transform(model),
            config.batch_size,
            reading_processes(config, device),
            config.seed,
            device.type,
            sampler=self._sampler(),
            cache=self.cache,
            pair=self.pair,
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

    def augmentation(self, mean: Sequence[float], std: Sequence[float], further: tuple[Any, ...]) -> Transform:
        config = self.config
        geometry = config.flip, config.padding, config.erasing
        return reid_train_transform(tuple(config.img_size), mean, std, *geometry, *further)


def _retrieval_split(data: ReIDData) -> RetrievalSplit:
    """Labels of the test images of a dataset."""

    def joined(name: str) -> torch.Tensor | None:
        sides = [getattr(side, name) for side in (data.query, data.gallery)][: 1 if data.leave_one_out else 2]
        return (
            None
            if sides[0] is None
            else torch.from_numpy(np.concatenate([np.asarray(s, dtype=np.int64) for s in sides]))
        )

    files = None if data.test_files is None else torch.from_numpy(data.test_files)
    return RetrievalSplit(joined("identities"), joined("cameras"), len(data.query), files, data.leave_one_out)
