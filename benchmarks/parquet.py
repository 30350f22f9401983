"""Start-up and memory of `--dataset hf` on a local Parquet file, by the number of rows, beside archives of as many.

    python -m benchmarks.parquet

Rows are small JPEG images of 16x16 pixels with one of 100 classes. Start-up is from the dataset's name to the indices
of the first batch, as in `benchmarks.shards`. The library `datasets` converts Parquet to Arrow when it reads a file for
the first time; later starts map that into memory. Every start is of a fresh process, and memory is its peak above that
of an idle one; it counts pages of mapped files, which the system takes back when it needs them. Archives are simulated
by an index, as there. About 3 GB of a temporary folder (--folder) are needed for a million rows.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.measure import describe_machine, in_fresh_process, table, write_json
from benchmarks.shards import CLASSES, CPU, TESTED, simulate, small_jpeg, start_up

AT_ONCE = 10_000  # rows of a group of the Parquet file

Row = dict[str, float | str | None]


def main() -> int:
    """Write the tables, measure first and later starts, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes of a later start, of which the median")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    content = small_jpeg()
    found: dict[str, Row] = {}
    for count in given.rows:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            os.environ["HF_DATASETS_CACHE"] = os.environ["HF_HOME"] = f"{folder}/cache"
            home = Path(folder) / "parquet"
            write_parquet(home, count, content)
            found[f"Parquet, {count:,} rows, first start"] = row_of(home, "hf", 1)
            found[f"Parquet, {count:,} rows"] = row_of(home, "hf", given.repeats)
            archives = Path(folder) / "shards"
            simulate(archives, "fgvc", count, content)
            found[f"shards, {count:,} images"] = row_of(archives, "shards", given.repeats)
    print(f"{describe_machine(CPU, torch.float32)}\n\n{table(found, 'training images')}")
    write_json(given.json, started=found)
    return 0


def row_of(home: Path, dataset: str, repeats: int) -> Row:
    """The median of some starts, each in a fresh process."""
    runs = sorted(in_fresh_process(start_and_read, dataset, home) for _ in range(repeats))
    start, batch, reading, memory = runs[len(runs) // 2]
    return {"start-up s": start, "first batch ms": batch, "16 images read, ms": reading, "memory MiB": memory}


def start_and_read(dataset: str, home: Path) -> tuple[float, float, float, float]:
    """Seconds of start-up, milliseconds for a first batch in the middle of an epoch and for reading 16 random images
    of it, MiB of peak memory."""
    from dual_cross_attention.configs import CONFIGS
    from dual_cross_attention.tasks.registry import read_setup

    start, batch, memory = start_up("fgvc", dataset, home)
    setup = read_setup(CONFIGS["fgvc"][dataset](dataset=dataset, data_root=str(home), num_workers=0))
    places = torch.randperm(len(setup.data.train), generator=torch.Generator().manual_seed(0))[:16].tolist()
    begin = time.perf_counter()
    for place in places:
        setup.data.train.images[place].open().read()
    return start, batch, 1000 * (time.perf_counter() - begin), memory


def write_parquet(home: Path, count: int, content: bytes) -> None:
    """train.parquet with `count` rows and test.parquet, as the library `datasets` writes them: {bytes, path}, label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    home.mkdir()
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": image, "label": pa.int64()})

    def groups(total: int) -> Iterator[pa.Table]:
        for first in range(0, total, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, total))
            rows = [{"bytes": content, "path": f"{number}.jpg"} for number in numbers]
            columns = [pa.array(rows, image), pa.array([number % CLASSES for number in numbers])]
            yield pa.Table.from_arrays(columns, schema=schema)

    for split, total in (("train", count), ("test", TESTED)):
        # As real images: neither a dictionary nor compression makes equal bytes one.
        options = {"use_dictionary": False, "compression": "none"}
        with pq.ParquetWriter(home / f"{split}.parquet", schema, **options) as writer:
            for group in groups(total):
                writer.write_table(group)


if __name__ == "__main__":
    raise SystemExit(main())
