"""Crops of image files, by bounding boxes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, width, height in pixels of the upright image."""


@dataclass(frozen=True)
class CroppedFile:
    """A part of an image file, read as an image of its own.

    Args:
        path: the file.
        box: what is read of it. What lies outside of the image is cut off.
    """

    path: Path
    box: Box

    @property
    def name(self) -> str:
        """Of the file."""
        return self.path.name

    @property
    def parts(self) -> tuple[str, ...]:
        """Of the file's path."""
        return self.path.parts

    def __str__(self) -> str:
        return f"{self.path} [{', '.join(f'{side:g}' for side in self.box)}]"

    def crop(self, image: Image.Image) -> Image.Image:
        """The part of the file's image, which is upright.

        Raises:
            ValueError: the box has no pixel of the image.
        """
        left, top, width, height = self.box
        right, bottom = min(image.width, round(left + width)), min(image.height, round(top + height))
        left, top = max(0, round(left)), max(0, round(top))
        if left >= right or top >= bottom:
            raise ValueError(
                f"bbox: expected a box (x, y, width, height) with pixels of the image of {image.width} x "
                f"{image.height}, got {', '.join(f'{side:g}' for side in self.box)}"
            )
        return image.crop((left, top, right, bottom))


def file_of(image: Any) -> Path | None:
    """The file of an image, cropped or not; None if it has none of its own."""
    if isinstance(image, CroppedFile):
        return image.path
    return image if isinstance(image, Path) else None
