"""Seconds of a whole epoch: JPEGs read and decoded, steps really done, by the program that users run.

    python -m benchmarks.epoch --backbone vit_base_patch16_224 --batch_size 16 --device cuda
    python -m benchmarks.epoch --images 1000 -- --num_workers 4 --compile true

Images of 500x375 in 200 classes are drawn into a temporary folder, as many as CUB-200-2011 has for training. What
stands behind `--` goes to `dcal train`. The time is that of an epoch's steps; of several epochs, the last one's, when
all is compiled and the files are in the machine's cache. Evaluation and checkpoints are not in it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.data import draw_images
from benchmarks.measure import add_flags, table, write_json

TRAIN = Path(__file__).parent.parent / "train.py"
PASSED_ON = ("backbone", "img_size", "batch_size", "epochs", "device", "precision")  # to dcal train, as they are
CLASSES, SIZE, DISTINCT = 200, (500, 375), 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, train, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="deit_tiny_patch16_224")
    parser.add_argument("--img_size", type=int, default=448)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--images", "--pictures", type=int, default=5_994)
    parser.add_argument("--epochs", type=int, default=2)
    add_flags(parser)
    parser.add_argument("train_flags", nargs="*", help="flags of dcal train, behind --")
    given = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fill_folder(folder / "data", given.images)
        flags = {
            "dataset": "folder",
            "data_root": folder / "data",
            "output_dir": folder / "run",
            "weights": "none",
            "eval_every": given.epochs,
            **{key: getattr(given, key) for key in PASSED_ON},
        }
        words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        subprocess.run([sys.executable, str(TRAIN), *words, *given.train_flags], check=True, stdout=sys.stderr)
        row = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    rows = {
        "epoch": {
            "images": given.images,
            "seconds": given.images / row["train/images_per_second"],
            "images/s": row["train/images_per_second"],
            "peak MiB": row["peak_memory_mb"],
        }
    }
    print(table(rows, f"{given.backbone} at {given.img_size}, batch {given.batch_size}"))
    write_json(given.json, rows=rows)
    return 0


def fill_folder(folder: Path, count: int) -> None:
    """train/CLASS/*.jpg, `count` in all, and an image in val/: a few drawn ones again and again, decoded each time."""
    with tempfile.TemporaryDirectory() as temporary:
        drawn = draw_images(Path(temporary), min(count, DISTINCT), *SIZE)
        jpegs = [path.read_bytes() for path in drawn.images]
    for index in range(count):
        _write(folder / "train" / f"{index % CLASSES:03}" / f"{index:05}.jpg", jpegs[index % len(jpegs)])
    _write(folder / "val" / "000" / "0.jpg", jpegs[0])


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
