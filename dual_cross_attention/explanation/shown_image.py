"""The pixels that figures show: the region that a model sees, at a resolution that is legible."""

from functools import cached_property

import torch
from torch import Tensor
from torchvision.transforms import v2

from dual_cross_attention.data.augmentation import resize_steps
from dual_cross_attention.data.images import ImageSource, read_image
from dual_cross_attention.data.preprocessing import Preprocessing

SHOWN_SIDE = 384
"""Pixels of the longer side, at least."""


class ShownPreprocessing:
    """Calls the preprocessing of a model, and keeps the pixels that it crops: (tensor, uint8 (H', W', 3)).

    H' : W' is the aspect ratio of the model's input. Small inputs are read a second time, at a higher resolution, so
    that a figure is not a magnified thumbnail.
    """

    def __init__(self, preprocessing: Preprocessing):
        self.preprocessing = preprocessing
        factor = max(1.0, SHOWN_SIDE / max(preprocessing.img_size))
        self.size, self.resize = (
            tuple(round(side * factor) for side in sides) for sides in (preprocessing.img_size, preprocessing.resize)
        )

    @cached_property
    def transform(self) -> v2.Compose:
        """From a PIL image in RGB to uint8 (3, H', W')."""
        interpolation = v2.InterpolationMode(self.preprocessing.interpolation)
        resize = resize_steps(self.resize, interpolation, self.preprocessing.keep_aspect)
        return v2.Compose([*resize, v2.CenterCrop(self.size)])

    def __call__(self, image: ImageSource) -> tuple[Tensor, Tensor]:
        read = self.preprocessing.read(image)
        # A JPEG file may have been decoded at a fraction of its size.
        shown = read if self.resize == self.preprocessing.resize else read_image(image, self.resize)
        return self.preprocessing.transform(read), self.transform(shown).permute(1, 2, 0).contiguous()


def crop_share(preprocessing: Preprocessing) -> tuple[float, float]:
    """Share of the resized image's height and width that the model sees."""
    (height, width), (resized_height, resized_width) = preprocessing.img_size, preprocessing.resize
    return height / resized_height, width / resized_width


def pixels_of(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Normalized images (B, 3, H, W) as pixels, uint8 (B, H, W, 3) on the CPU."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (preprocessing.mean, preprocessing.std))
    pixels = (images.detach().float().cpu() * std + mean) * 255
    return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
