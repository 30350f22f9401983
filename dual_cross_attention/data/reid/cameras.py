"""Cameras of query and gallery: messages with examples, and a warning if the names are unlikely to be cameras."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dual_cross_attention.data.images import ImageSource
from dual_cross_attention.text import escape

SHOWN = 3
"""How many cameras an error names."""


@dataclass(frozen=True)
class CameraSource:
    """How camera names are derived.

    Args:
        taken_from: the source, such as "the number after c in a file name".
        remedy: how a user can set cameras; empty if the dataset defines them.
        cameras: names by number; None: numbers are their names.
        identities: likewise, of query and gallery.
        remark: added to the line that describes the cameras.
    """

    taken_from: str
    remedy: str = ""
    cameras: Sequence[str] | None = None
    identities: Sequence[str] | None = None
    remark: str = ""

    def camera(self, number: int) -> str:
        return escape(self.cameras[number]) if self.cameras is not None else f"{number}"

    def identity(self, number: int) -> str:
        return escape(self.identities[number]) if self.identities is not None else f"{number}"


class Cameras:
    """The cameras of the images of query and gallery. They are sorted once: there may be millions of images.

    Args:
        source: where they come from.
        images: of query and gallery.
        cameras: (images,) int64, of each image.
    """

    def __init__(self, source: CameraSource, images: Sequence[ImageSource], cameras: np.ndarray):
        self.source, self.images = source, images
        self.numbers, self.first, self.of_image, self.counts = np.unique(
            cameras, return_index=True, return_inverse=True, return_counts=True
        )
        self.of_image = self.of_image.reshape(-1)  # its shape depends on the version of NumPy

    def describe(self) -> str:
        """Returns a line with the number of cameras, their source, and an example image of the first two."""
        count, chosen = len(self.numbers), np.arange(len(self.numbers))[:2]
        remark = f" ({self.source.remark})" if self.source.remark else ""
        source = self.source.taken_from
        return f"cameras: {count:,} in query and gallery, from {source}: {self._examples(chosen)}{remark}"

    def list_all(self) -> str:
        """For an error message: the cameras, and how to set others."""
        count, remedy = len(self.numbers), self.source.remedy
        more = f" and {count - SHOWN:,} more" if count > SHOWN else ""
        what = "the only camera is" if count == 1 else f"the {count:,} cameras are"
        examples = self._examples(np.arange(count)[:SHOWN])
        return f"{what} {examples}{more}, from {self.source.taken_from}{f'; {remedy}' if remedy else ''}"

    def warnings(self, dataset: str, identities: np.ndarray) -> list[str]:
        """Returns a warning if most images have a camera with a single identity, or a single image.

        Real cameras record many identities. Other names are probably parts of the image's or the identity's name; the
        protocol, which ignores gallery images with the query's identity and camera, then ignores none or the wrong
        ones.

        Args:
            dataset: its name, for the message.
            identities: (images,) int64, of each image.
        """
        if not self.source.remedy or not len(identities) or identities.min() == identities.max():
            return []
        limits = np.iinfo(np.int64)
        lowest, highest = np.full(len(self.numbers), limits.max), np.full(len(self.numbers), limits.min)
        np.minimum.at(lowest, self.of_image, identities)
        np.maximum.at(highest, self.of_image, identities)
        for unlikely, what in (
            (self.counts == 1, "have a camera that no other image has"),
            (lowest == highest, "have a camera without images of another identity"),
        ):
            count = int(self.counts[unlikely].sum())
            if 2 * count > len(identities):
                return [
                    f"{dataset}: these may not be cameras: {count:,} of {len(identities):,} images of query and "
                    f"gallery {what}, such as {self._examples(np.flatnonzero(unlikely)[:2])}, from "
                    f"{self.source.taken_from}; metrics ignore gallery images with the identity and camera of the "
                    f"query, so they depend on cameras; {self.source.remedy}"
                ]
        return []

    def _examples(self, places: np.ndarray) -> str:
        return ", ".join(
            f"{self.source.camera(int(self.numbers[place]))} ({image_name(self.images, int(self.first[place]))})"
            for place in places
        )


def image_name(images: Sequence[ImageSource], index: int) -> str:
    """An image in a message: its folder and name, or its number."""
    image = images[index]
    if isinstance(image, Image.Image):
        return f"number {index}"
    parts = getattr(image, "parts", None)
    return escape("/".join(parts[-2:]) if parts else image.name)
