"""Transforms against the same steps in PIL and NumPy."""

import numpy as np
import torch
from PIL import Image

from dual_cross_attention.data import test_transform, train_transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def smooth_picture(width: int, height: int) -> Image.Image:
    """No two places alike, and smooth, as photographs are: resampling is then much the same in PIL and PyTorch."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [127 + 120 * np.sin(x / 9 + y / 14 + phase) for phase in (0.0, 1.0, 2.0)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def resized_and_normalised(picture: Image.Image, height: int, width: int) -> np.ndarray:
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float64)
    return ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)


TOLERANCE = 3 / 255 / min(STD)  # three grey levels


def test_test_transform_is_resize_centre_crop_normalise():
    for width, height in ((70, 50), (31, 90)):
        picture = smooth_picture(width, height)
        image = test_transform((24, 40), (30, 50), MEAN, STD)(picture)
        assert (image.shape, image.dtype) == ((3, 24, 40), torch.float32)
        expected = resized_and_normalised(picture, 30, 50)[:, 3:27, 5:45]
        assert np.abs(image.numpy() - expected).max() < TOLERANCE


def place(image: torch.Tensor, whole: np.ndarray) -> tuple[int, int, bool]:
    """Where in the whole picture an image was cut from: (top, left, flipped)."""
    _, height, width = image.shape
    errors = {
        (top, left, flipped): np.abs(whole[:, top : top + height, left : left + width] - cut).max()
        for top in range(whole.shape[1] - height + 1)
        for left in range(whole.shape[2] - width + 1)
        for flipped, cut in ((False, image.numpy()), (True, image.numpy()[:, :, ::-1]))
    }
    closest = min(errors, key=errors.get)
    assert errors[closest] < TOLERANCE
    return closest


def test_train_transform_crops_at_random_and_flips():
    torch.manual_seed(0)
    picture = smooth_picture(60, 45)
    whole = resized_and_normalised(picture, 20, 27)
    transform = train_transform((16, 24), (20, 27), MEAN, STD, flip=0.5)
    found = [place(transform(picture), whole) for _ in range(60)]
    assert {top for top, _, _ in found} == set(range(5))
    assert {left for _, left, _ in found} == set(range(4))
    assert 15 < sum(flipped for _, _, flipped in found) < 45


def test_flip_is_a_probability(refused):
    picture = smooth_picture(30, 30)
    whole = resized_and_normalised(picture, 16, 16)
    for flip, expected in ((0.0, False), (1.0, True)):
        transform = train_transform((16, 16), (16, 16), MEAN, STD, flip)
        assert place(transform(picture), whole) == (0, 0, expected)
    with refused("flip", "1.5"):
        train_transform((16, 16), (16, 16), MEAN, STD, flip=1.5)


def test_resize_below_crop_is_refused(refused):
    for transform in (train_transform, test_transform):
        with refused("448×400", "448×448", "resize must be at least img_size"):
            transform((448, 448), (448, 400), MEAN, STD)
