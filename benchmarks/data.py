"""Images per second of the training loader, by workers and cache, beside what a training step takes.

    python -m benchmarks.data --workers 0 1 2 4 8 --step_images_per_second 120
    python -m benchmarks.data --dataset cub --data_root DIR --workers 8

Read, decode, resize, crop, flip, normalize and collate, as `dcal train` does it for fine-grained recognition, with
nothing else beside it. Without --data_root the images are smooth noise, about as large in bytes as photographs,
written as JPEG files into a temporary folder. The first epoch starts the processes and fills the caches (the system's,
of files, too), and stands in a column of its own; the others are measured, and the median is taken.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import table, write_json
from dual_cross_attention.configs.training_config import sides
from dual_cross_attention.data import ImageList, load_fgvc, train_loader, train_transform
from dual_cross_attention.data.cache import check_memory, pixel_bytes
from dual_cross_attention.data.loaders import Batches

HALF = (0.5,) * 3

Row = dict[str, float | None]


def main() -> int:
    """Measure every combination, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="processes that read; 0: this one")
    parser.add_argument("--cache", nargs="+", default=["none", "ram"], choices=("none", "ram"))
    parser.add_argument("--img_size", type=int, nargs="+", default=[448], help="a side, or height and width")
    parser.add_argument("--resize_size", type=int, nargs="+", default=[550], help="a side, or height and width")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--images", "--pictures", type=int, default=600, help="of a real dataset: at most so many")
    parser.add_argument("--source_size", type=int, nargs=2, default=[500, 375], help="width and height of drawn ones")
    parser.add_argument("--data_root", help="a real dataset's folder; unset: images are drawn")
    parser.add_argument("--dataset", default="cub", help="its name, as that of dcal train --task fgvc")
    parser.add_argument("--epochs", type=int, default=3, help="measured ones, after the first")
    parser.add_argument(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="cuda: batches are also brought there, from pinned memory",
    )
    parser.add_argument("--step_images_per_second", type=float, help="what training takes (benchmarks.train_step)")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    given = parser.parse_args()
    for name in ("img_size", "resize_size"):
        setattr(given, name, tuple(sides(name, getattr(given, name))))

    torch.set_num_threads(1)  # as in a worker, so that 0 processes compare with 1
    with tempfile.TemporaryDirectory() as folder:
        if given.data_root:
            images = load_fgvc(given.dataset, given.data_root, download=False).train
            chosen = np.random.default_rng(0).permutation(len(images))[: given.images]
            images = ImageList([images.images[i] for i in chosen], [images.labels[i] for i in chosen])
        else:
            images = draw_images(Path(folder), given.images, *given.source_size)
        rows = {
            f"cache {cache}, {workers} processes": measure(images, cache, workers, given)
            for cache in given.cache
            for workers in given.workers
        }
    if given.step_images_per_second:
        for row in rows.values():
            row["steps fed"] = row["images/s"] / given.step_images_per_second
    source = given.dataset if given.data_root else f"drawn {given.source_size[0]}x{given.source_size[1]} JPEGs"
    setting = (
        f"{len(images)} images, {source}, resized to {given.resize_size}, cropped to "
        f"{given.img_size}, batch {given.batch_size}, {given.device}, {os.cpu_count()} cores; "
        f"median of {given.epochs} epochs"
    )
    print(f"{setting}\n\n{table(rows, 'loader')}")
    write_json(given.json, setting=setting, rows=rows)
    return 0


def draw_images(folder: Path, count: int, width: int, height: int) -> ImageList:
    """JPEG files of quality 90 with detail on every scale, the less the finer, as photographs have it."""
    random = np.random.default_rng(0)
    paths = [folder / f"{index:05}.jpg" for index in range(count)]
    for path in paths:
        pixels = np.full((height, width, 3), 128.0)
        for cell in (128, 64, 32, 16, 8, 4, 2, 1):  # pixels between two independent values
            coarse = random.normal(128, 4 + cell**0.5, (-(-height // cell), -(-width // cell), 3))
            layer = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
            pixels += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)) - 128.0
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return ImageList(paths, [index % 2 for index in range(count)])


def measure(images: ImageList, cache: str, workers: int, given: argparse.Namespace) -> Row:
    """One row of the table."""
    resize, device = given.resize_size, torch.device(given.device)
    if cache == "ram":
        check_memory(len(images), resize)
    transform = train_transform(given.img_size, resize, HALF, HALF)
    loader = train_loader(images, transform, given.batch_size, workers, 0, device.type, cache=cache == "ram")
    first, *others = [len(images) / epoch_seconds(loader, epoch, device) for epoch in range(given.epochs + 1)]
    return {
        "images/s": statistics.median(others),
        "first epoch images/s": first,
        "cache MiB": pixel_bytes(len(images), resize) / 2**20 if cache == "ram" else None,
    }


def epoch_seconds(loader: Batches, epoch: int, device: torch.device) -> float:
    """Seconds until all of an epoch's batches are on the device."""
    start = time.perf_counter()
    for batch in loader.read(epoch, range(len(loader))):
        assert not batch["unreadable"], batch["unreadable"]
        batch["images"].to(device, non_blocking=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
