"""P x K batches: every image has positives and negatives for the triplet loss."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from dual_cross_attention.data.samplers import EpochBatchSampler, SampleKey
from dual_cross_attention.errors import InputError


class IdentitySampler(EpochBatchSampler):
    """Samples micro-batches of P identities with K images each; each identity's images are adjacent.

    An epoch shows every image at least once. Each identity's images are shuffled and split into groups of K; the last
    group is filled with other images of the identity (repeated only where there are fewer than K). Every batch takes a
    group of P identities, sampled in proportion to their remaining groups; identities with as many groups as there are
    remaining batches are always taken, so that no identity is needed twice in a batch. To fill all batches, some
    identities contribute extra groups.

    Args:
        identities: label of each image.
        identities_per_batch: P.
        images_per_identity: K.
        seed: of the order.
        stream: further entropy of the order, in addition to seed and epoch.

    Raises:
        InputError: P or K below 1, or fewer than P identities.
    """

    def __init__(
        self,
        identities: Sequence[int],
        identities_per_batch: int,
        images_per_identity: int,
        seed: int = 0,
        stream: tuple[int, ...] = (),
    ):
        if identities_per_batch < 1 or images_per_identity < 1:
            raise InputError(
                "expected at least one identity a batch and one image of each, got "
                f"{identities_per_batch} and {images_per_identity}"
            )
        labels = np.asarray(identities)
        order = np.argsort(labels, kind="stable")
        self.images = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)  # of each identity
        if len(self.images) < identities_per_batch:
            most = len(self.images) * images_per_identity
            smaller = f"--batch_size {most} or less" if len(self.images) > 1 else "more training identities"
            raise InputError(
                f"a batch needs {identities_per_batch} identities, and there are {len(self.images)} to train on: "
                f"take {smaller} ({len(self.images)} identities x {images_per_identity} images), or more "
                "--images_per_identity"
            )
        self.identities_per_batch = identities_per_batch
        self.images_per_identity = images_per_identity
        self.unit, self.smallest = (
            images_per_identity,
            2 * images_per_identity,
        )  # with two, each has a negative
        self.seed, self.stream = seed, stream
        self.groups = np.array([-(-len(own) // images_per_identity) for own in self.images])
        self.num_batches = batches_of(self.groups, identities_per_batch)
        self.num_images = len(labels)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[SampleKey]]:
        yield from islice(self._all_batches(epoch), start, None)

    def _all_batches(self, epoch: int) -> Iterator[list[SampleKey]]:
        random = np.random.default_rng((self.seed, epoch, *self.stream))
        left = self._fill_up(random)
        queues = [self._split(random, own, count) for own, count in zip(self.images, left, strict=True)]
        repeats = np.zeros(self.num_images, dtype=np.int64)
        for batches_left in range(self.num_batches, 0, -1):
            batch = []
            for identity in self._choose(random, left, batches_left):
                left[identity] -= 1
                for image in queues[identity][left[identity]]:
                    batch.append(SampleKey(epoch, int(image), int(repeats[image])))
                    repeats[image] += 1
            yield batch

    def _fill_up(self, random: np.random.Generator) -> np.ndarray:
        """Returns the groups of each identity, with extra groups for some, so that all batches are full."""
        groups = self.groups.copy()
        missing = self.num_batches * self.identities_per_batch - groups.sum()
        while missing:
            able = random.permutation(np.flatnonzero(groups < self.num_batches))[:missing]
            groups[able] += 1
            missing -= len(able)
        return groups

    def _split(self, random: np.random.Generator, own: np.ndarray, count: int) -> np.ndarray:
        """Returns `count` groups of K images with every image at least once, and without repeats in a group where
        possible."""
        size = self.images_per_identity
        shuffled = random.permutation(own)
        groups = []
        for start in range(0, count * size, size):
            group = shuffled[start : start + size]
            while len(group) < size:
                others = random.permutation(np.setdiff1d(own, group) if len(group) < len(own) else own)
                group = np.concatenate([group, others[: size - len(group)]])
            groups.append(group)
        return random.permutation(np.stack(groups))

    def _choose(self, random: np.random.Generator, left: np.ndarray, batches_left: int) -> np.ndarray:
        """Samples the P identities of the next batch."""
        due = np.flatnonzero(left == batches_left)
        others = np.flatnonzero((left > 0) & (left < batches_left))
        missing = self.identities_per_batch - len(due)
        share = left[others] / max(1, left[others].sum())
        drawn = random.choice(others, missing, replace=False, p=share) if missing else others[:0]
        return random.permutation(np.concatenate([due, drawn]))


def batches_of(groups: np.ndarray, identities_per_batch: int) -> int:
    """Returns the number of batches of an epoch for groups (identities,), if an identity is in a batch at most once."""
    return int(max(groups.max(), -(-groups.sum() // identities_per_batch)))
