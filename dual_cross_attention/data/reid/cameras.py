"""What was taken for a camera: said with examples, and doubted where it does not behave like one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dual_cross_attention.data.images import Picture
from dual_cross_attention.text import printable

SHOWN = 3
"""Cameras that are named in an error."""


@dataclass(frozen=True)
class CameraSource:
    """Where the cameras of query and gallery come from.

    Args:
        taken_from: what was taken for a camera, such as "the number after c in a file name".
        mend: how a user gives others; empty where the dataset's authors say what a camera is.
        cameras: names by number; None: numbers are their names.
        identities: likewise, of query and gallery.
    """

    taken_from: str
    mend: str = ""
    cameras: Sequence[str] | None = None
    identities: Sequence[str] | None = None

    def camera(self, number: int) -> str:
        return printable(self.cameras[number]) if self.cameras is not None else f"{number}"

    def identity(self, number: int) -> str:
        return printable(self.identities[number]) if self.identities is not None else f"{number}"


def shown_picture(pictures: Sequence[Picture], index: int) -> str:
    """An image in a message: its folder and name, or its number."""
    picture = pictures[index]
    if isinstance(picture, Image.Image):
        return f"number {index}"
    parts = getattr(picture, "parts", None)
    return printable("/".join(parts[-2:]) if parts else picture.name)


def describe_cameras(source: CameraSource, pictures: Sequence[Picture], cameras: np.ndarray) -> str:
    """A line: how many cameras query and gallery have, from where, and an image of each of the first two."""
    numbers, first = np.unique(cameras, return_index=True)
    examples = _examples(source, pictures, numbers[:2], first[:2])
    return f"cameras: {len(numbers):,} in query and gallery, from {source.taken_from}: {examples}"


def list_cameras(source: CameraSource, pictures: Sequence[Picture], cameras: np.ndarray) -> str:
    """For an error: which cameras there are, and how to give others."""
    numbers, first = np.unique(cameras, return_index=True)
    examples = _examples(source, pictures, numbers[:SHOWN], first[:SHOWN])
    more = f" and {len(numbers) - SHOWN:,} more" if len(numbers) > SHOWN else ""
    what = "the only camera is" if len(numbers) == 1 else f"the {len(numbers):,} cameras are"
    return f"{what} {examples}{more}, from {source.taken_from}{f'; {source.mend}' if source.mend else ''}"


def doubt_cameras(
    name: str, source: CameraSource, pictures: Sequence[Picture], identities: np.ndarray, cameras: np.ndarray
) -> list[str]:
    """A line where most images of query and gallery have a camera that sees one identity, or one image, only.

    Real cameras see many: what was taken for one is then part of the image's or the identity's name, and the protocol,
    which hides images of the query's own camera, hides nothing or the wrong ones.
    """
    if not source.mend or len(np.unique(identities)) < 2:
        return []
    numbers, first, of_image, images = np.unique(cameras, return_index=True, return_inverse=True, return_counts=True)
    pairs = np.unique(np.stack([of_image.reshape(-1), identities]), axis=1)
    seen = np.bincount(pairs[0], minlength=len(numbers))
    for lonely, what in (
        (images == 1, "have a camera that no other image has"),
        (seen == 1, "have a camera that sees their identity only"),
    ):
        count = int(images[lonely].sum())
        if 2 * count > len(cameras):
            examples = _examples(source, pictures, numbers[lonely][:2], first[lonely][:2])
            return [
                f"{name}: what was taken for cameras may be none: {count:,} of {len(cameras):,} images of query and "
                f"gallery {what}, such as {examples}, from {source.taken_from}; metrics leave out gallery images "
                f"of the query's own identity and camera, and so depend on it; {source.mend}"
            ]
    return []


def _examples(source: CameraSource, pictures: Sequence[Picture], numbers: np.ndarray, first: np.ndarray) -> str:
    return ", ".join(
        f"{source.camera(int(number))} ({shown_picture(pictures, int(index))})"
        for number, index in zip(numbers, first, strict=True)
    )
