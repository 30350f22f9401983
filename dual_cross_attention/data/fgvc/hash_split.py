"""A validation split by a hash of the image names."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

from dual_cross_attention.data.names import composed


def choose_validation(
    names: Sequence[str], labels: Sequence[int], copies: Iterable[Sequence[int]], fraction: float
) -> list[bool]:
    """Chooses the validation images of each class by a hash of their names.

    Within a class of n distinct images, images are ranked by the hash of their names, and the first
    round(fraction · n) are validation images: at least one and at most n - 1. A class of one image has none.

    Byte-identical files count as one image, whose rank is that of the smallest hash among their names, so they are all
    on one side. Images of which several classes have a copy are training images.

    The choice depends on the names and labels only: not on the order of listing, the folder that holds the dataset, or
    a seed. A new image changes the side of at most one other image, which is of its class: the one at the boundary.

    Args:
        names: of the images, relative to the dataset's folder, with "/" between the parts. Unicode may be composed or
            decomposed.
        labels: the class of each image.
        copies: groups of positions of byte-identical files.
        fraction: of the images of a class, between 0 and 1.

    Returns:
        Whether each image is a validation image.
    """
    image_of = {position: group[0] for group in copies for position in group}
    rank: dict[int, dict[int, bytes]] = defaultdict(dict)  # of each class: its distinct images
    classes_of: dict[int, set[int]] = defaultdict(set)
    for position, (name, label) in enumerate(zip(names, labels, strict=True)):
        image, digest = image_of.get(position, position), _digest(name)
        rank[label][image] = min(digest, rank[label].get(image, digest))
        classes_of[image].add(label)
    chosen: set[int] = set()
    for ranks in rank.values():
        wanted = min(max(1, int(fraction * len(ranks) + 0.5)), len(ranks) - 1)
        of_this_class_only = sorted((image for image in ranks if len(classes_of[image]) == 1), key=ranks.__getitem__)
        chosen.update(of_this_class_only[:wanted])
    return [image_of.get(position, position) in chosen for position in range(len(names))]


def _digest(name: str) -> bytes:
    return hashlib.blake2b(composed(name).encode("utf-8", "surrogateescape"), digest_size=16).digest()
