"""Images of every mode come out upright and in RGB; broken ones are replaced or marked, and named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from dual_cross_attention.data import (
    ImageDataset,
    ImageList,
    UnreadableImage,
    collate,
    read_image,
    test_transform,
    train_transform,
)
from dual_cross_attention.data.samplers import SampleKey
from dual_cross_attention.data.transforms import Transform

RED, WHITE = (255, 0, 0), (255, 255, 255)


def as_floats() -> Transform:
    """Values from 0 to 255, as they are."""
    return Transform((4, 4), [v2.ToDtype(torch.float32)])


def truncated(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    return path


def text_named_jpg(path: Path) -> Path:
    path.write_text("<html>404</html>")
    return path


def missing(path: Path) -> Path:
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


def damaged_png(path: Path) -> Path:
    png = path.with_suffix(".png")
    Image.new("RGB", (64, 64), RED).save(png)
    content = bytearray(png.read_bytes())
    content[45:60] = b"\0" * 15
    png.write_bytes(content)
    return png


BREAK = [truncated, text_named_jpg, missing, empty, damaged_png]


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 255, 0])
    image.putdata([0, 1])
    image.info["transparency"] = bytes([255, 0])  # the second color is see-through
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (2, 1), RED), [RED, RED]),
        (Image.new("L", (2, 1), 90), [(90, 90, 90)] * 2),
        (Image.new("1", (2, 1), 1), [WHITE] * 2),
        (Image.new("CMYK", (2, 1), (0, 255, 255, 0)), [RED] * 2),
        (Image.new("RGBA", (2, 1), (*RED, 0)), [WHITE] * 2),
        (Image.new("RGBA", (2, 1), (*RED, 255)), [RED] * 2),
        (Image.new("LA", (2, 1), (0, 0)), [WHITE] * 2),
        (palette_with_transparency(), [RED, WHITE]),
        (Image.fromarray(np.array([[0, 40000]], dtype=np.uint16)), [(0, 0, 0), (156, 156, 156)]),  # 40000 // 256
    ],
    ids=["RGB", "L", "1", "CMYK", "RGBA clear", "RGBA solid", "LA", "palette", "16 bits"],
)
def test_modes_become_rgb(tmp_path, image, expected):
    suffix = "tif" if image.mode == "CMYK" else "png"
    image.save(tmp_path / f"image.{suffix}")
    for source in (image, tmp_path / f"image.{suffix}"):
        read = read_image(source)
        assert read.mode == "RGB"
        assert [read.getpixel((x, 0)) for x in range(2)] == expected


def test_exif_orientation_is_applied(tmp_path):
    lying = Image.new("RGB", (2, 1), WHITE)
    lying.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90° clockwise to be upright: the left end becomes the top
    lying.save(tmp_path / "lying.png", exif=exif)
    upright = read_image(tmp_path / "lying.png")
    assert upright.size == (1, 2)
    assert [upright.getpixel((0, y)) for y in range(2)] == [RED, WHITE]


def write_photograph(path: Path, width: int, height: int, **options) -> Path:
    """Smooth noise on several scales, as photographs have it."""
    rng = np.random.default_rng(0)
    layers = [
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
        for side in (4, 16, 64)
    ]
    Image.fromarray(np.mean([np.asarray(layer) for layer in layers], axis=0).astype(np.uint8)).save(path, **options)
    return path


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize(
    ("width", "height", "size", "read"),
    [
        (800, 600, (100, 100), (400, 300)),  # a quarter would be 150 high, less than twice 100
        (800, 600, (75, 100), (200, 150)),
        (804, 602, (75, 100), (402, 301)),  # a quarter of 602 is no whole number
        (803, 602, (75, 100), (803, 602)),
        (800, 600, (10, 10), (100, 75)),  # the least that a decoder does
        (800, 600, (150, 201), (800, 600)),
        (800, 600, (151, 200), (800, 600)),
        (800, 600, (300, 400), (800, 600)),
        (40, 30, (100, 100), (40, 30)),
        (800, 600, None, (800, 600)),
    ],
)
def test_a_much_larger_jpeg_is_decoded_smaller(tmp_path, width, height, size, read):
    path = write_photograph(tmp_path / "large.jpg", width, height)
    assert read_image(path, size).size == read
    if size:
        whole, smaller = (Transform(size, [v2.Identity()]).resize(read_image(path, s)) for s in (None, size))
        assert (whole.float() - smaller.float()).abs().mean() <= (1 if read != (width, height) else 0)


def test_a_lying_jpeg_is_decoded_as_large_as_its_upright_image_needs(tmp_path):
    lying = write_photograph(tmp_path / "lying.jpg", 800, 300, exif=orientation(6))
    assert read_image(lying, (200, 40)).size == (150, 400)
    assert read_image(lying, (40, 200)).size == (300, 800)  # 300 wide: too few to halve
    upside_down = write_photograph(tmp_path / "upside_down.jpg", 800, 300, exif=orientation(3))
    assert read_image(upside_down, (40, 200)).size == (400, 150)


def test_other_formats_and_images_in_memory_are_decoded_at_full_size(tmp_path):
    for suffix in ("png", "webp", "bmp"):
        path = write_photograph(tmp_path / f"large.{suffix}", 320, 240)
        assert read_image(path, (10, 10)).size == (320, 240)
    assert read_image(Image.new("RGB", (320, 240)), (10, 10)).size == (320, 240)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_jpeg_decoded_smaller_keeps_its_colors(tmp_path, mode):
    color = {"L": 90, "CMYK": (0, 255, 255, 0)}[mode]
    Image.new(mode, (160, 160), color).save(tmp_path / "large.jpg")
    whole, smaller = (read_image(tmp_path / "large.jpg", size) for size in (None, (10, 10)))
    assert smaller.size == (20, 20)
    assert smaller.getpixel((5, 5)) == whole.getpixel((5, 5))


def test_a_dataset_reads_what_its_transform_needs(tmp_path):
    path = write_photograph(tmp_path / "large.jpg", 800, 600)
    transform = test_transform((60, 80), (75, 100), (0.5,) * 3, (0.5,) * 3)
    sample = ImageDataset(ImageList([path], [0]), transform, training=False)[0]
    assert torch.equal(sample["image"], transform(read_image(path, (75, 100))))
    assert not torch.equal(sample["image"], transform(read_image(path)))


@pytest.mark.parametrize("broken", BREAK)
def test_unreadable_says_path_and_reason_in_one_line(tmp_path, broken):
    path = broken(tmp_path / "a.jpg")
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    assert f"{caught.value}".startswith(f"{path}: ")
    assert len(f"{caught.value}") > len(f"{path}: ")
    assert "\n" not in f"{caught.value}"


def test_decompression_bomb_is_unreadable(tmp_path, write_image, monkeypatch):
    path = write_image(tmp_path / "bomb.png", size=(40, 40))
    monkeypatch.setattr("dual_cross_attention.data.images.MAX_PIXELS", 1599)
    with pytest.raises(UnreadableImage, match="bomb"):
        read_image(path)


@pytest.mark.parametrize("broken", BREAK)
def test_training_takes_the_next_readable(tmp_path, write_image, broken):
    paths = [
        write_image(tmp_path / "0.png", (1, 2, 3)),
        broken(tmp_path / "1.jpg"),
        broken(tmp_path / "2.jpg"),
        write_image(tmp_path / "3.png", (7, 8, 9)),
        broken(tmp_path / "4.jpg"),
    ]
    images = ImageDataset(ImageList(paths, [10, 11, 12, 13, 14]), as_floats(), training=True)
    expected = {0: (10, 1), 1: (13, 7), 2: (13, 7), 3: (13, 7), 4: (10, 1)}  # the last wraps around
    named = {0: [], 1: [1, 2], 2: [2], 3: [], 4: [4]}
    for index, (label, red) in expected.items():
        sample = images[index]
        assert (sample["label"], int(sample["image"][0, 0, 0])) == (label, red)
        assert (sample["index"], sample["valid"]) == (label - 10, True)
        assert [image.path for image in sample["unreadable"]] == [f"{paths[i]}" for i in named[index]]


def test_training_without_any_readable_image_is_refused(tmp_path, refused):
    images = ImageDataset(ImageList([tmp_path / "a.jpg", tmp_path / "b.jpg"], [0, 1]), as_floats(), training=True)
    with refused("none of the 2", "training images", tmp_path / "b.jpg"):
        images[1]


@pytest.mark.parametrize("broken", BREAK)
def test_evaluation_marks_and_blanks(tmp_path, write_image, broken):
    paths = [broken(tmp_path / "0.jpg"), write_image(tmp_path / "1.png")]
    transform = test_transform((6, 4), (7, 5), (0.5,) * 3, (0.5,) * 3)
    images = ImageDataset(ImageList(paths, [3, 4]), transform, training=False)
    batch = collate([images[0], images[1]])
    assert batch["labels"].tolist() == [3, 4] and batch["indices"].tolist() == [0, 1]
    assert batch["labels"].dtype == batch["indices"].dtype == torch.int64
    assert batch["valid"].tolist() == [False, True] and batch["valid"].dtype == torch.bool
    assert batch["images"].shape == (2, 3, 6, 4)
    assert batch["images"][0].count_nonzero() == 0
    assert batch["images"][1].count_nonzero() > 0
    assert len(batch["unreadable"]) == 1
    assert batch["unreadable"][0].path == f"{paths[0]}" and not batch["unreadable"][0].replaced


def test_an_error_in_the_transform_is_not_taken_for_a_broken_image(tmp_path, write_image):
    def faulty(pixels):
        raise ZeroDivisionError

    transform = Transform((4, 4), [v2.Lambda(faulty)])
    images = ImageDataset(ImageList([write_image(tmp_path / "a.png")], [0]), transform, training=True)
    with pytest.raises(ZeroDivisionError):
        images[0]


def test_a_sample_is_a_pure_function_of_its_key():
    """Whatever was read before; epoch, image and repeat each change the crop, and indices out of the list are none."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)) for _ in range(2)]
    crop = train_transform((8, 8), (24, 24), (0.5,) * 3, (0.5,) * 3)
    dataset = ImageDataset(ImageList([images[0], images[0]], [5, 6]), crop, training=True, seed=3)
    keys = [SampleKey(1, 0), SampleKey(1, 0, 1), SampleKey(2, 0), SampleKey(1, 1)]
    first = [dataset[key]["image"] for key in keys]
    again = [dataset[key]["image"] for key in reversed(keys)][::-1]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({tuple(image.flatten().tolist()) for image in first}) == len(keys)
    assert torch.equal(dataset[1]["image"], dataset[SampleKey(0, 1)]["image"])
    # The crop is that of runs of earlier versions: seeded by seed, epoch and index + repeat · images.
    state = np.random.SeedSequence((3, 1, 0 + 1 * 2)).generate_state(1, np.uint64)[0]
    with torch.random.fork_rng():
        torch.manual_seed(int(state >> np.uint64(1)))
        assert torch.equal(first[1], crop.augment(crop.resize(images[0])))
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"from 0 to 1, got {index}"):
            dataset[SampleKey(1, index)]


def test_a_list_needs_a_label_for_each_image():
    assert len(ImageList([Path("a"), Path("b")], [0, 1])) == 2
    with pytest.raises(ValueError, match="2 and 1"):
        ImageList([Path("a"), Path("b")], [0])
