"""Transforms against the same steps in PIL and NumPy."""

import numpy as np
import pytest
import torch
from PIL import Image

from dual_cross_attention.data import reid_train_transform, test_transform, train_transform
from dual_cross_attention.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def smooth_image(width: int, height: int) -> Image.Image:
    """No two places alike, and smooth, as photographs are: resampling is then much the same in PIL and PyTorch."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [127 + 120 * np.sin(x / 9 + y / 14 + phase) for phase in (0.0, 1.0, 2.0)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def resized_and_normalized(source: Image.Image, height: int, width: int) -> np.ndarray:
    pixels = np.asarray(source.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float64)
    return ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)


TOLERANCE = 3 / 255 / min(STD)  # three gray levels


def test_test_transform_is_resize_center_crop_normalize():
    for width, height in ((70, 50), (31, 90)):
        source = smooth_image(width, height)
        image = test_transform((24, 40), (30, 50), MEAN, STD)(source)
        assert (image.shape, image.dtype) == ((3, 24, 40), torch.float32)
        expected = resized_and_normalized(source, 30, 50)[:, 3:27, 5:45]
        assert np.abs(image.numpy() - expected).max() < TOLERANCE


def place(image: torch.Tensor, whole: np.ndarray) -> tuple[int, int, bool]:
    """Where in the whole source an image was cut from: (top, left, flipped)."""
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
    source = smooth_image(60, 45)
    whole = resized_and_normalized(source, 20, 27)
    transform = train_transform((16, 24), (20, 27), MEAN, STD, flip=0.5)
    found = [place(transform(source), whole) for _ in range(60)]
    assert {top for top, _, _ in found} == set(range(5))
    assert {left for _, left, _ in found} == set(range(4))
    assert 15 < sum(flipped for _, _, flipped in found) < 45


@pytest.mark.parametrize(
    "transform",
    [
        train_transform((16, 24), (20, 27), MEAN, STD),
        test_transform((16, 24), (20, 27), MEAN, STD),
        reid_train_transform((20, 27), MEAN, STD),
    ],
    ids=["train", "test", "reid"],
)
def test_resize_and_augment_are_the_transform(transform):
    """Resized pixels are the same every time, and what is drawn is drawn after them."""
    source = smooth_image(60, 45)
    torch.manual_seed(0)
    pixels = transform.resize(source)
    assert (pixels.shape, pixels.dtype, transform.size) == ((3, 20, 27), torch.uint8, (20, 27))
    before = pixels.clone()
    halves = transform.augment(pixels)
    torch.manual_seed(0)
    assert torch.equal(halves, transform(source))
    assert torch.equal(pixels, before)


def test_flip_is_a_probability(refused):
    source = smooth_image(30, 30)
    whole = resized_and_normalized(source, 16, 16)
    for flip, expected in ((0.0, False), (1.0, True)):
        transform = train_transform((16, 16), (16, 16), MEAN, STD, flip)
        assert place(transform(source), whole) == (0, 0, expected)
    with refused("flip", "1.5"):
        train_transform((16, 16), (16, 16), MEAN, STD, flip=1.5)


def test_resize_below_crop_is_refused(refused):
    for transform in (train_transform, test_transform):
        with refused("448×400", "448×448", "resize", "img_size"):
            transform((448, 448), (448, 400), MEAN, STD)


def reid_images(count=200, **options):
    """What the training transform makes of one image, time and again."""
    torch.manual_seed(0)
    transform = reid_train_transform((24, 12), MEAN, STD, **options)
    source = smooth_image(30, 50)
    return [transform(source).numpy() for _ in range(count)], resized_and_normalized(source, 24, 12)


def test_reid_crops_come_from_the_padded_image():
    images, whole = reid_images(flip=0, padding=3, erasing=0)
    black = (np.zeros(3) - MEAN) / STD
    padded = np.tile(black[:, None, None], (1, 30, 18))
    padded[:, 3:27, 3:15] = whole
    places = {place(torch.from_numpy(image), padded) for image in images}
    assert all(not flipped for _, _, flipped in places)
    assert {top for top, _, _ in places} == {left for _, left, _ in places} == set(range(7))


def test_reid_flips_half():
    images, whole = reid_images(padding=0, erasing=0)
    flipped = [np.abs(image - whole[:, :, ::-1]).max() < TOLERANCE for image in images]
    assert all(f or np.abs(i - whole).max() < TOLERANCE for f, i in zip(flipped, images, strict=True))
    assert 70 < sum(flipped) < 130


def test_reid_erases_half_with_noise_of_one_rectangle():
    images, whole = reid_images(flip=0, padding=0)
    changed = [np.abs(image - whole).max(0) > TOLERANCE for image in images]
    erased = [mask for mask in changed if mask.any()]
    assert 70 < len(erased) < 130
    for mask in erased:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert area <= mask.size / 3 * 1.2
        assert mask.sum() >= 0.7 * area  # noise, a value a pixel, is seldom what was there
    noise = np.concatenate([image[:, mask].ravel() for image, mask in zip(images, changed, strict=True)])
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_reid_settings_that_cannot_work_are_refused():
    for options in ({"flip": 1.5}, {"erasing": -0.1}, {"padding": -1}):
        with pytest.raises(InputError, match=next(iter(options))):
            reid_train_transform((24, 12), MEAN, STD, **options)
