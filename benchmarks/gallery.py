"""Time to build and to search an index of a gallery: FAISS flat, HNSW, Milvus Lite, and a plain NumPy product.

    python -m benchmarks.gallery --sizes 10000 100000 --json gallery.json

Vectors are made, not computed from images: "clusters" of 20 per identity, with a mean cosine of about 0.67 between
images of the same identity, and "gaussian", without any structure, where no graph index does well. A search is
`GalleryIndex.search` of one query for the 10 nearest, as `dcal search` calls it; NumPy's is the product of the matrix
with the query and the largest score, in memory. All are timed in turns, with one thread. Recall is against the exact
nearest vector. Each size is measured in a process of its own; with --json, a row that is there is not measured again.

The second table is the share of the index and its database in `dcal index add`, with features of a real model.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
for name in THREADS:  # before NumPy is imported, here and in the processes that this one starts
    os.environ[name] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from benchmarks.measure import describe_machine, in_fresh_process, table, time_in_turns, write_json  # noqa: E402
from dual_cross_attention.gallery import GalleryIndex, IndexSettings, adding  # noqa: E402
from dual_cross_attention.gallery.index import GalleryImage  # noqa: E402
from dual_cross_attention.gallery.sources import find_named_images  # noqa: E402

DIMENSION, PER_IDENTITY, TOP_K = 384, 20, 10
SPREAD = 0.7
"""Length of the noise of an image around its identity's vector of length 1."""
AT_ONCE = 10_000
ENGINES = ("flat", "hnsw", "milvus flat", "milvus hnsw")
Rows = dict[str, dict[str, float | str | None]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each size in a process of its own, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--vectors", nargs="+", default=["clusters", "gaussian"], choices=("clusters", "gaussian"))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--milvus_most", type=int, default=100_000, help="largest size for Milvus Lite")
    parser.add_argument(
        "--hnsw_most", type=int, default=1_000_000, help="largest size for HNSW, which is slow to build"
    )
    parser.add_argument("--queries", type=int, default=200, help="of which the recall is measured")
    parser.add_argument("--repeats", type=int, default=20, help="timed searches of each engine, of which the median")
    parser.add_argument("--model", help="measure `dcal index add` of --images with this model, too")
    parser.add_argument("--images", help="folder of identities for --model")
    parser.add_argument("--folder", type=Path, help="where indexes are written; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="write the numbers here; what is there is kept")
    given = parser.parse_args(arguments)
    there = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    rows: Rows = there.get("rows", {})
    machine = describe_machine(torch.device("cpu"), torch.float32)
    for vectors in given.vectors:
        for size in given.sizes:
            engines = [engine for engine in given.engines if is_measured(engine, size, given)]
            if any(row_name(vectors, size, engine) not in rows for engine in engines):
                options = (given.queries, given.repeats, given.folder)
                rows |= in_fresh_process(measure_size, vectors, size, engines, *options)
                write_json(given.json, machine=machine, rows=rows, add=there.get("add"))
    shares = in_fresh_process(measure_add, given.model, given.images) if given.model else there.get("add")
    write_json(given.json, machine=machine, rows=rows, add=shares)
    print(f"{machine}, {DIMENSION} dimensions\n\n{table(rows, 'vectors')}")
    if shares:
        print(f"\n{table(shares, 'dcal index add')}")
    return 0


def is_measured(engine: str, size: int, given: argparse.Namespace) -> bool:
    if engine.startswith("milvus"):
        return size <= given.milvus_most
    return engine != "hnsw" or size <= given.hnsw_most


def row_name(vectors: str, size: int, engine: str) -> str:
    return f"{vectors}, {size:,}, {engine}"


def make_vectors(vectors: str, size: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Vectors of length 1, (N, D) float32, in parts; "clusters": `PER_IDENTITY` of each identity, one after another."""
    centers, noise = np.random.default_rng(0), np.random.default_rng([1, seed])
    for start in range(0, size, AT_ONCE):
        number = min(AT_ONCE, size - start)
        made = noise.standard_normal((number, DIMENSION), dtype=np.float32)
        if vectors == "clusters":
            center = _unit(centers.standard_normal((-(-number // PER_IDENTITY), DIMENSION), dtype=np.float32))
            made = np.repeat(center, PER_IDENTITY, axis=0)[:number] + np.float32(SPREAD / DIMENSION**0.5) * made
        yield _unit(made)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_queries(vectors: str, size: int, number: int) -> np.ndarray:
    """Further images of identities of the gallery, (number, D), spread over all of them."""
    chosen = {*np.linspace(0, size - 1, number).astype(int).tolist()}
    found = []
    for start, part in zip(range(0, size, AT_ONCE), make_vectors(vectors, size, seed=1), strict=True):
        found += [part[place - start] for place in sorted(chosen) if start <= place < start + len(part)]
    return np.stack(found)


def measure_size(
    vectors: str, size: int, engines: Sequence[str], queries: int, repeats: int, folder: Path | None
) -> Rows:
    """Rows of all engines at one size, timed in turns."""
    console, sought = Console(stderr=True), make_queries(vectors, size, queries)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        matrix = np.concatenate([*make_vectors(vectors, size)])
        exact = np.concatenate([(sought[at : at + 50] @ matrix.T).argmax(1) for at in range(0, queries, 50)])
        indexes, seconds = {}, {}
        for engine in engines:
            console.print(f"{row_name(vectors, size, engine)}: building")
            indexes[engine], seconds[engine] = build(engine, Path(place), vectors, size)
        turns = iter(range(10**9))
        calls = {"numpy product": lambda: (matrix @ sought[next(turns) % queries]).argmax()}
        for engine, index in indexes.items():
            calls[engine] = lambda index=index: index.search(sought[next(turns) % queries][None], TOP_K)
        times = time_in_turns(calls, torch.device("cpu"), repeats)
        rows: Rows = {}
        for engine, milliseconds in times.items():
            row: dict[str, float | str | None] = {
                "build s": seconds.get(engine),
                "search ms": 1000 * milliseconds,
                "times NumPy's": milliseconds / times["numpy product"],
                "recall@1": 1.0,
                "MB": matrix.nbytes / 1e6,
            }
            if engine in indexes:
                found = [index_found[0].id for index_found in indexes[engine].search(sought, TOP_K)]
                row["recall@1"] = float(np.mean(np.array(found) == exact))
                row["MB"] = (indexes[engine].info()["bytes"] or sum(_sizes(Path(place) / f"{engine}.db"))) / 1e6
            rows[row_name(vectors, size, engine)] = row
    return rows


def build(engine: str, folder: Path, vectors: str, size: int) -> tuple[GalleryIndex, float]:
    """The index, and seconds; making the vectors is not counted."""
    kind, place = engine.removeprefix("milvus "), {}
    if engine.startswith("milvus"):
        place = {"engine": "milvus", "uri": f"{folder / engine}.db", "collection": "dcal_benchmark"}
    settings = IndexSettings(model="none", fingerprint="0" * 32, dimension=DIMENSION, kind=kind, **place)
    index, made = GalleryIndex.create(folder / engine, settings), list(make_vectors(vectors, size))
    start = time.perf_counter()
    with index.writing():
        for number, part in enumerate(made):
            index.stage([_digest(number * AT_ONCE + row) for row in range(len(part))], part)
        index.add([GalleryImage(f"/{row}.jpg", f"{row // PER_IDENTITY}", _digest(row)) for row in range(size)])
    return index, time.perf_counter() - start


def _digest(row: int) -> bytes:
    return row.to_bytes(16, "little")


def _sizes(folder: Path) -> Iterator[int]:
    return (path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure_add(model_path: str, images: str) -> Rows:
    """Seconds of `dcal index add` and its parts, for the images below a folder."""
    from dual_cross_attention.gallery.models import settings_of
    from dual_cross_attention.inference.loaded_model import load_model

    torch.set_num_threads(1)
    model, files = load_model(model_path, device="cpu"), find_named_images(images, [])
    spent = {"features": 0.0}

    def embed(paths: Iterator[str]) -> Iterator:
        made, start = model.embeddings(paths), time.perf_counter()
        for one in made:
            spent["features"] += time.perf_counter() - start
            yield one
            start = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        index = GalleryIndex.create(Path(folder) / "index", settings_of(model))
        start = time.perf_counter()
        adding.add_files(index, embed, files, Console(quiet=True))
        whole = time.perf_counter() - start
    rest = whole - spent["features"]
    row = {"s": whole, "features s": spent["features"], "hashes, index and database s": rest}
    return {f"{len(files):,} images": row | {"their share %": 100 * rest / whole}}


if __name__ == "__main__":
    sys.exit(main())
