"""A second image for every training image: PWCA's distractor, where it is not another image of the batch."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from torch.utils.data import Dataset

from dual_cross_attention.data.dataset import ImageDataset
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.samplers import SampleKey
from dual_cross_attention.errors import InputError

Rule = Literal["same_class", "other_class", "half", "dataset"]
ATTEMPTS = 20
"""Number of unreadable distractors in a row, of one image, that is an error."""
SEED_OFFSET = 2**32
"""Added to a seed: the distractors of a run are augmented and sampled with random numbers of their own."""


class DistractorSampler:
    """Samples which image distracts from a training image.

    Args:
        rule: "same_class": another image of its class; "other_class": an image of another class; "half": one of these,
            with equal probability; "dataset": any image.
        labels: (N,) class of each training image; not used by "dataset".
        count: images to sample from, with "dataset".

    Raises:
        InputError: a class has no second image, or there is no second class, where the rule needs it.
    """

    def __init__(self, rule: Rule, labels: Sequence[int], count: int):
        if rule not in get_args(Rule):
            raise InputError(f"unknown rule of distractors '{rule}': there are {', '.join(get_args(Rule))}")
        self.rule, self.count = rule, count
        if rule == "dataset":
            return
        self.labels = np.asarray(labels)
        self.by_class = np.argsort(self.labels, kind="stable")  # positions, those of a class in a row
        classes, self.counts = np.unique(self.labels, return_counts=True)
        self.ends = np.cumsum(self.counts)
        self.places = np.searchsorted(classes, self.labels)  # of each image's class
        if rule != "same_class" and len(classes) < 2:
            raise InputError(f"--distractors {rule}: expected training images of at least two classes, got one")
        if rule != "other_class" and self.counts.min() < 2:
            raise InputError(
                f"--distractors {rule}: expected at least two training images of every class, and "
                f"{(self.counts < 2).sum()} of {len(classes)} have one: leave these classes out, or use any"
            )

    def sample(self, position: int, random: np.random.Generator) -> int:
        """The position of a distractor for the training image at `position`, each possible one equally likely."""
        if self.rule == "dataset":
            return int(random.integers(self.count))
        place = self.places[position]
        end, count = self.ends[place], self.counts[place]
        same = self.rule == "same_class" or (self.rule == "half" and bool(random.integers(2)))
        if not same:
            chosen = random.integers(len(self.labels) - count)
            return int(self.by_class[chosen if chosen < end - count else chosen + count])
        own = self.by_class[end - count : end]
        chosen = random.integers(count - 1)
        return int(own[chosen + (chosen >= np.searchsorted(own, position))])


class PairedDataset(Dataset):
    """Training images, each with a distractor: a pure function of the `SampleKey`, as `ImageDataset` is.

    A distractor that cannot be read is sampled again.

    Args:
        targets: the training images.
        distractors: the images to sample from, with `training=False`.
        sampler: which one.
    """

    def __init__(self, targets: ImageDataset, distractors: ImageDataset, sampler: DistractorSampler):
        self.targets, self.distractors, self.sampler = targets, distractors, sampler

    @classmethod
    def of(cls, targets: ImageDataset, images: ImageList, sampler: DistractorSampler) -> "PairedDataset":
        """With distractors out of `images`, which are augmented as the training images are."""
        cache = targets.cache if images is targets.image_list else None
        seed = targets.seed + SEED_OFFSET
        return cls(targets, ImageDataset(images, targets.transform, training=False, seed=seed, cache=cache), sampler)

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        """See `ImageDataset.name`."""
        return self.targets.name(index)

    def __getitem__(self, key: SampleKey | int) -> dict[str, Any]:
        """The sample of `ImageDataset`, and "distractor": (3, H, W) float.

        Raises:
            InputError: as of `ImageDataset`; or `ATTEMPTS` distractors of this image in a row cannot be read.
        """
        epoch, index, repeat = key if isinstance(key, tuple) else SampleKey(0, key)
        sample = self.targets[SampleKey(epoch, index, repeat)]
        random = np.random.default_rng((self.distractors.seed, epoch, index, repeat))
        for _ in range(ATTEMPTS):
            chosen = self.sampler.sample(sample["index"], random)
            other = self.distractors[SampleKey(epoch, chosen, int(random.integers(2**31)))]
            sample["unreadable"] += [image._replace(replaced=True) for image in other["unreadable"]]
            if other["valid"]:
                return sample | {"distractor": other["image"]}
        raise InputError(
            f"{ATTEMPTS} distractors in a row cannot be read; the first: {other['unreadable'][0].path}: "
            f"{other['unreadable'][0].reason}"
        )
