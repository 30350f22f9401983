"""Pictures of every mode come out upright and in RGB; broken ones are replaced or marked, and named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dual_cross_attention.data import (
    UNREADABLE,
    PictureDataset,
    PictureList,
    UnreadablePicture,
    collate,
    read_picture,
    test_transform,
)

RED, WHITE = (255, 0, 0), (255, 255, 255)


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()


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
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, 0, 255, 0])
    picture.putdata([0, 1])
    picture.info["transparency"] = bytes([255, 0])  # the second colour is see-through
    return picture


@pytest.mark.parametrize(
    ("picture", "expected"),
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
def test_modes_become_rgb(tmp_path, picture, expected):
    suffix = "tif" if picture.mode == "CMYK" else "png"
    picture.save(tmp_path / f"picture.{suffix}")
    for source in (picture, tmp_path / f"picture.{suffix}"):
        read = read_picture(source)
        assert read.mode == "RGB"
        assert [read.getpixel((x, 0)) for x in range(2)] == expected


def test_exif_orientation_is_applied(tmp_path):
    lying = Image.new("RGB", (2, 1), WHITE)
    lying.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90° clockwise to be upright: the left end becomes the top
    lying.save(tmp_path / "lying.png", exif=exif)
    upright = read_picture(tmp_path / "lying.png")
    assert upright.size == (1, 2)
    assert [upright.getpixel((0, y)) for y in range(2)] == [RED, WHITE]


@pytest.mark.parametrize("broken", BREAK)
def test_unreadable_says_path_and_reason_in_one_line(tmp_path, broken):
    path = broken(tmp_path / "a.jpg")
    with pytest.raises(UnreadablePicture) as caught:
        read_picture(path)
    assert f"{caught.value}".startswith(f"{path}: ")
    assert len(f"{caught.value}") > len(f"{path}: ")
    assert "\n" not in f"{caught.value}"


def test_decompression_bomb_is_unreadable(tmp_path, write_picture, monkeypatch):
    path = write_picture(tmp_path / "bomb.png", size=(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # PIL refuses twice as many
    with pytest.raises(UnreadablePicture, match="bomb"):
        read_picture(path)


@pytest.mark.parametrize("broken", BREAK)
def test_training_takes_the_next_readable(tmp_path, write_picture, broken):
    paths = [
        write_picture(tmp_path / "0.png", (1, 2, 3)),
        broken(tmp_path / "1.jpg"),
        broken(tmp_path / "2.jpg"),
        write_picture(tmp_path / "3.png", (7, 8, 9)),
        broken(tmp_path / "4.jpg"),
    ]
    pictures = PictureDataset(PictureList(paths, [10, 11, 12, 13, 14]), as_tensor, training=True)
    expected = {0: (10, 1), 1: (13, 7), 2: (13, 7), 3: (13, 7), 4: (10, 1)}  # the last wraps around
    named = {0: [], 1: [1, 2], 2: [2], 3: [], 4: [4]}
    for index, (label, red) in expected.items():
        sample = pictures[index]
        assert (sample["label"], int(sample["image"][0, 0, 0])) == (label, red)
        assert [message.partition(": ")[0] for message in sample["unreadable"]] == [f"{paths[i]}" for i in named[index]]


def test_training_without_any_readable_picture_is_refused(tmp_path, refused):
    pictures = PictureDataset(PictureList([tmp_path / "a.jpg", tmp_path / "b.jpg"], [0, 1]), as_tensor, training=True)
    with refused("none of the 2 training pictures", tmp_path / "b.jpg"):
        pictures[1]


@pytest.mark.parametrize("broken", BREAK)
def test_evaluation_marks_and_blanks(tmp_path, write_picture, broken):
    paths = [broken(tmp_path / "0.jpg"), write_picture(tmp_path / "1.png")]
    transform = test_transform((6, 4), (7, 5), (0.5,) * 3, (0.5,) * 3)
    pictures = PictureDataset(PictureList(paths, [3, 4]), transform, training=False)
    batch = collate([pictures[0], pictures[1]])
    assert batch["labels"].tolist() == [UNREADABLE, 4]
    assert batch["labels"].dtype == torch.int64
    assert batch["images"].shape == (2, 3, 6, 4)
    assert batch["images"][0].count_nonzero() == 0
    assert batch["images"][1].count_nonzero() > 0
    assert len(batch["unreadable"]) == 1
    assert batch["unreadable"][0].startswith(f"{paths[0]}: ")


def test_an_error_in_the_transform_is_not_taken_for_a_broken_picture(tmp_path, write_picture):
    def faulty(picture):
        raise ZeroDivisionError

    pictures = PictureDataset(PictureList([write_picture(tmp_path / "a.png")], [0]), faulty, training=True)
    with pytest.raises(ZeroDivisionError):
        pictures[0]


def test_a_list_needs_a_label_for_each_picture():
    assert len(PictureList([Path("a"), Path("b")], [0, 1])) == 2
    with pytest.raises(ValueError, match="2 and 1"):
        PictureList([Path("a"), Path("b")], [0])
