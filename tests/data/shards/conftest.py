"""What tests of archives share: writing them with nothing but tarfile, and with `dcal shard`'s own function."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from dual_cross_attention.tasks.sharding import shard

Content = bytes | tarfile.TarInfo


@pytest.fixture
def jpeg() -> Callable[[int], bytes]:
    """A small JPEG file, of a color that its number decides."""

    def make(number: int = 0) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (12, 10), (number % 256, 40, 255 - number % 256)).save(file, "JPEG")
        return file.getvalue()

    return make


@pytest.fixture
def write_archive() -> Callable[..., Path]:
    """Writes an archive of {name: content}; a TarInfo in place of a content is written as it is, without any."""

    def write(path: Path, members: Mapping[str, Content], form: int = tarfile.PAX_FORMAT) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=form) as archive:
            for name, content in members.items():
                if isinstance(content, tarfile.TarInfo):
                    content.name = name
                    archive.addfile(content)
                    continue
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return path

    return write


@pytest.fixture
def classified(write_archive, jpeg) -> Callable[..., Path]:
    """Archives as others write them: `train` images of `classes` in `archives`, and as many to test on."""

    def write(folder: Path, train: int = 12, archives: int = 2, classes: int = 3) -> Path:
        for split in ("train", "val"):
            for archive in range(archives):
                members = {}
                for number in range(archive, train, archives):
                    members |= {
                        f"{number:04}.jpg": jpeg(number),
                        f"{number:04}.cls": b"%d" % (number // archives % classes),
                    }
                write_archive(folder / f"{split}-{archive:06}.tar", members)
        return folder

    return write


@pytest.fixture
def shard_set() -> Callable[..., list[str]]:
    """`dcal shard` as a function, in this process."""

    def run(task: str, dataset: str, data_root: Path | None, output_dir: Path, **options: object) -> list[str]:
        given = {"shard_mb": 256, "seed": 0, "num_workers": 0, "max_bad_images": None} | options
        root = None if data_root is None else f"{data_root}"
        return shard(task, dataset, root, f"{output_dir}", console=Console(quiet=True), **given)

    return run
