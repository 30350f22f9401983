"""Start-up and memory of `--dataset shards` by the number of images, and images read a second, beside files.

    python -m benchmarks.shards

Start-up is from the dataset's name to the indices of the first batch: its labels and places read, classes and queries
checked, order and loader made. A million images are simulated by an index whose rows name the same 1,000 small
members of one archive again and again, which is what start-up reads of it; `--dataset folder` has as many hard links.
Identities have 20 images each. Every row of the first table is of a fresh process, and memory is its peak above that
of an idle one. The second table is of the training loader in this process, with JPEG files of 500x375 pixels.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.data import HALF, draw_images, epoch_seconds
from benchmarks.measure import describe_machine, in_fresh_process, table, write_json
from dual_cross_attention.data import ImageList, train_loader, train_transform
from dual_cross_attention.data.fgvc.shards import images_of
from dual_cross_attention.data.shards.index import index_of, make_index, row_type, write_index
from dual_cross_attention.data.shards.writing import ArchiveWriter

MEMBERS = 1000  # that are really there
CLASSES = 100
PER_IDENTITY = 20
TESTED = 1000  # images of a test split
CPU = torch.device("cpu")

Row = dict[str, float | str | None]


def main() -> int:
    """Measure start-up, then reading, and print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", "--pictures", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--files", type=int, nargs="*", default=[1000, 100_000], help="of --dataset folder")
    parser.add_argument("--read", type=int, default=400, help="images of the second table; 0: none")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes a row, of which the median")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    content = small_jpeg()
    started, read = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for task in ("fgvc", "reid"):
            for dataset, counts, write in (("shards", given.images, simulate), ("folder", given.files, link_files)):
                for count in counts:
                    home = Path(folder) / f"{task}-{dataset}-{count}"
                    write(home, task, count, content)
                    runs = sorted(in_fresh_process(start_up, task, dataset, home) for _ in range(given.repeats))
                    started[f"{task}, {dataset}, {count:,}"] = {
                        "start-up s": runs[len(runs) // 2][0],
                        "first batch ms": runs[len(runs) // 2][1],
                        "memory MiB": runs[len(runs) // 2][2],
                    }
        print(f"{describe_machine(CPU, torch.float32)}\n\n{table(started, 'task, dataset, training images')}\n")
        print(f"headers read, once: {header_seconds(Path(folder)):.1f} s a million images (KEY.jpg and KEY.cls each)\n")
        if given.read:
            read = reading(Path(folder) / "read", given.read)
            print(table(read, "read from"))
    write_json(given.json, started=started, read=read)
    return 0


def small_jpeg() -> bytes:
    """An image of 16x16 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        return draw_images(Path(folder), 1, 16, 16).images[0].read_bytes()


def start_up(task: str, dataset: str, home: Path) -> tuple[float, float, float]:
    """Seconds of start-up, milliseconds for a first batch in the middle of an epoch, MiB of peak memory for both."""
    from dual_cross_attention.configs import CONFIGS
    from dual_cross_attention.devices import peak_memory_mb
    from dual_cross_attention.models.factory import create_model
    from dual_cross_attention.tasks.registry import read_setup

    model = create_model("vit_tiny_patch16_224", 2, img_size=32, depth=1, embed_dim=48, num_heads=3)
    config = CONFIGS[task][dataset](dataset=dataset, data_root=str(home), num_workers=0)
    idle, start = peak_memory_mb(CPU), time.perf_counter()
    loader = read_setup(config).train_loader(model, CPU)
    next(loader.sampler.batches(0))
    ready = time.perf_counter()
    next(loader.sampler.batches(1, len(loader) // 2))
    return ready - start, 1000 * (time.perf_counter() - ready), peak_memory_mb(CPU) - idle


def simulate(home: Path, task: str, count: int, content: bytes) -> None:
    """Archives of `MEMBERS` images, and an index that says that there are `count` to train on."""
    home.mkdir()
    for split in ("train", "val") if task == "fgvc" else ("train", "query", "gallery"):
        writer = ArchiveWriter(home, split, 10**9)
        list(writer.write({"jpg": content, **label(task, number, split)} for number in range(MEMBERS)))
        index = index_of([home / writer.archives[0]], task, split, [])
        if split != "train":
            continue
        labels = index.labels if task == "fgvc" else [f"{number:08}" for number in range(-(-count // PER_IDENTITY))]
        rows = np.empty(count, row_type(index.about["name_bytes"]))
        rows[:] = np.resize(index.rows, count)
        rows["label"] = np.arange(count) % CLASSES if task == "fgvc" else np.arange(count) // PER_IDENTITY
        counts = np.bincount(rows["label"], minlength=len(labels)).tolist()
        about = index.about | {"labels": labels, "counts": counts, "pictures": count}
        write_index(index.path, about, [rows])


def label(task: str, number: int, split: str) -> dict[str, bytes]:
    """The member that says what an image shows."""
    if task == "fgvc":
        return {"cls": b"%d" % (number % CLASSES)}
    name = f"{number // PER_IDENTITY:08}"
    return {"json": json.dumps({"identity": name, "camera": number % 2 if split == "gallery" else 2}).encode()}


def link_files(home: Path, task: str, count: int, content: bytes) -> None:
    """Files of the layout `folder`: links to a few files, since a file has no more than 65,000 names."""
    home.mkdir()
    for number in range(0, max(count, TESTED), 50_000):
        (home / f"{number}.jpg").write_bytes(content)
    for split in ("train", "val") if task == "fgvc" else ("train", "query", "gallery"):
        for number in range(count if split == "train" else TESTED):
            who = number % CLASSES if task == "fgvc" else number // PER_IDENTITY
            path = home / split / f"{who:06}" / f"{split}{number % 2}_{number:07}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(home / f"{number // 50_000 * 50_000}.jpg", path)


def header_seconds(folder: Path, count: int = 20_000) -> float:
    """Seconds for a million images, of reading headers and labels of an archive and writing its index."""
    writer = ArchiveWriter(folder, "headers", 10**12)
    list(writer.write({"jpg": bytes(10_000), **label("fgvc", number, "train")} for number in range(count)))
    start = time.perf_counter()
    make_index([folder / writer.archives[0]], "fgvc", "headers", folder / "headers.index")
    return (time.perf_counter() - start) * 1_000_000 / count


def reading(folder: Path, count: int) -> dict[str, Row]:
    """Images a second of the training loader, from files and from an archive of the same, in turns."""
    folder.mkdir()
    files = draw_images(folder, count, 500, 375)
    writer = ArchiveWriter(folder, "train", 10**12)
    list(writer.write({"jpg": path.read_bytes(), "cls": b"0"} for path in files.images))
    index = index_of([folder / writer.archives[0]], "fgvc", "train", [])
    lists: dict[str, ImageList] = {"files": files, "shards": images_of(index, ["0", "1"])}
    transform = train_transform((448, 448), (550, 550), HALF, HALF)
    loaders = {name: train_loader(images, transform, 16, 0, 0, "cpu") for name, images in lists.items()}
    whole: dict[str, list[float]] = {name: [] for name in lists}
    opened: dict[str, list[float]] = {name: [] for name in lists}
    for epoch in range(4):
        for name, loader in loaders.items():
            seconds = epoch_seconds(loader, epoch, CPU)
            taken = seconds_of(lambda name=name: [read_bytes(image) for image in lists[name].images])
            if epoch:  # the first fills the system's cache
                whole[name].append(count / seconds)
                opened[name].append(count / taken)
    return {
        name: {
            "images/s, decoded and augmented": float(np.median(whole[name])),
            "images/s, bytes alone": float(np.median(opened[name])),
        }
        for name in lists
    }


def read_bytes(image) -> bytes:
    """All of a file or member, as the decoder would get it."""
    from dual_cross_attention.data.images import open_bytes

    with open_bytes(image) as file:
        return file.read()


def seconds_of(function: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
