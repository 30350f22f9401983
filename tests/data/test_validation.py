"""Every image is looked at, in this process or in several, and what is wrong is found and counted."""

import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from dual_cross_attention.data import validation as checking
from dual_cross_attention.data.validation import DataReport, Split, check_images, look_at


def ramp(path: Path | None = None, first: int = 0, size: tuple[int, int] = (10, 8)) -> Path | Image.Image:
    """An image of many levels, which nothing is odd about; written if there is a path."""
    image = Image.linear_gradient("L").resize(size).point([(value + first) % 256 for value in range(256)])
    if path is None:
        return image
    image.save(path)
    return path


def report_of(splits: dict[str, list], num_workers: int) -> DataReport:
    report = DataReport({name: Split(len(images), 1) for name, images in splits.items()})
    seen = []
    check_images(splits, report, num_workers, lambda: seen.append(1))
    assert len(seen) == sum(map(len, splits.values()))
    return report


@pytest.mark.parametrize("num_workers", [0, 2])
def test_findings(tmp_path, write_image, num_workers):
    good = [ramp(tmp_path / f"{number}.png", number) for number in range(40)]
    copy = tmp_path / "copy.png"
    copy.write_bytes(good[3].read_bytes())
    broken = tmp_path / "broken: a.jpg"
    broken.write_bytes(good[0].read_bytes()[:40])
    tiny = ramp(tmp_path / "tiny.png", size=(7, 30))
    red = write_image(tmp_path / "red.png", size=(7, 30))
    gray = tmp_path / "gray.png"
    Image.new("LA", (8, 8)).save(gray)
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    report = report_of({"train": [*good, broken, tiny, red], "test": [copy, gray, tmp_path / "a.gif"]}, num_workers)
    assert [(split, path) for split, path, _ in report.bad] == [("train", f"{broken}")]
    assert {name: split.bad for name, split in report.splits.items()} == {"train": 1, "test": 0}
    assert {(Path(path).name, reason.partition(":")[0].partition(",")[0]) for _, path, reason in report.odd} == {
        ("tiny.png", "tiny"),
        ("red.png", "tiny"),
        ("red.png", "constant"),
        ("gray.png", "mode LA"),
        ("gray.png", "constant"),
        ("a.gif", "holds several images"),
        ("a.gif", "mode P"),
        ("a.gif", "constant"),
    }
    assert report.duplicates == [[("train", f"{good[3]}"), ("test", f"{copy}")]]
    assert report.as_json()["bad"][0].keys() == {"split", "path", "reason"}


def test_same_content_in_one_split_is_no_matter(tmp_path, write_image):
    images = [write_image(tmp_path / f"{number}.png") for number in range(3)]
    assert report_of({"train": images, "test": []}, 0).duplicates == []


def test_large_images_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "LARGE", 79)
    assert look_at(ramp(tmp_path / "a.png")).odd == ["very large: 10x8 pixels"]


def test_images_in_memory():
    report = report_of({"train": [ramp()], "test": [ramp()]}, 0)
    assert (report.bad, report.odd, report.duplicates) == ([], [], [])


def die_at(image: Path):
    """In place of `look_at`: the decoder takes its process along."""
    if image.name == "7.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return look_at(image)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes must know what was replaced here")
def test_a_crash_of_the_decoder_is_a_bad_image(tmp_path, write_image, monkeypatch):
    images = [write_image(tmp_path / f"{number}.png") for number in range(20)]
    monkeypatch.setattr(checking, "look_at", die_at)
    report = report_of({"train": images}, 2)
    assert [path for _, path, _ in report.bad] == [f"{images[7]}"]
    assert "crashed" in report.bad[0].reason
