"""Small runs with hostile names, and their reports."""

import re
from html.parser import HTMLParser
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from dual_cross_attention.cli import main

HOSTILE = ("<script>alert(1)", '"><img src=x onerror=alert(1)>', "a & b")
ALIKE = (60, 200, 60)
COLORS = {HOSTILE[0]: ALIKE, HOSTILE[1]: ALIKE, HOSTILE[2]: (200, 60, 60)}
"""The first two classes look the same, so that there are mistakes."""
ON_CPU = ["--device=cpu", "--num_workers=0"]


@pytest.fixture(scope="session")
def hostile_images(tmp_path_factory) -> Path:
    """A dataset of the `folder` kind whose classes and files have names of HTML; one test image is broken."""
    root, random = tmp_path_factory.mktemp("images"), Random(0)
    for split, count in (("train", 6), ("val", 5)):
        for name, color in COLORS.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                varied = tuple(channel + random.randint(-50, 50) for channel in color)
                Image.new("RGB", (40, 32), varied).save(root / split / name / f"<b onclick=x>{number}.png")
    (root / "val" / HOSTILE[2] / "<i>broken.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory, small, hostile_images) -> Path:
    """A run on them, that no test changes; its folder has a hostile name, too."""
    run = tmp_path_factory.mktemp("runs") / "<u>run"
    arguments = [word for word in small if not word.startswith(("--data_root", "--epochs"))]
    assert main(["train", *arguments, f"--data_root={hostile_images}", "--epochs=2", f"--output_dir={run}"]) == 0
    return run


@pytest.fixture(scope="session")
def hostile_report(tmp_path_factory, hostile_run) -> Path:
    """Its report."""
    path = tmp_path_factory.mktemp("reports") / "fgvc.html"
    assert main(["report", f"{hostile_run}", f"--output={path}", *ON_CPU]) == 0
    return path


@pytest.fixture(scope="session")
def reid_run(tmp_path_factory, small_reid) -> Path:
    """A run of re-identification that no test changes."""
    run = tmp_path_factory.mktemp("runs") / "people"
    assert main(["train", *small_reid, "--epochs=1", f"--output_dir={run}"]) == 0
    return run


@pytest.fixture(scope="session")
def reid_report(tmp_path_factory, reid_run) -> Path:
    """Its report."""
    path = tmp_path_factory.mktemp("reports") / "reid.html"
    assert main(["report", f"{reid_run}", f"--output={path}", *ON_CPU]) == 0
    return path


class Page(HTMLParser):
    """What a page holds.

    Attributes:
        tags: names of the elements.
        attributes: (element, name, value).
        text: without tags, spaces collapsed.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.parts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", " ".join(self.parts))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.parts.append(data)


@pytest.fixture
def read_page():
    return Page
