"""Time and peak memory of re-ID metrics, at the sizes of Market-1501 and MSMT17.

    python -m benchmarks.retrieval --sizes market1501 msmt17

Random features with plausible identities and cameras. Each measurement has a process of its own, so that its peak
resident memory is its own; what was resident after the imports, and after the features were made, stands beside it.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

SIZES = {  # queries, gallery images, identities, cameras
    "market1501": (3_368, 19_732, 750, 6),
    "msmt17": (11_659, 82_161, 3_060, 15),
}


def main() -> int:
    """Measure every size in a fresh process, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--distance", default="euclidean", choices=("euclidean", "cosine"))
    parser.add_argument("--rerank", action="store_true", help="k-reciprocal re-ranking's distances")
    parser.add_argument("--block_size", type=int, help="(query, gallery) pairs held at once")
    parser.add_argument("--device", help="default: CUDA where there is one, else the CPU")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the fresh process: one size
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given.sizes[0], given)))
        return 0

    # The flags as they came, then the one size: the last --sizes counts.
    command = [sys.executable, "-m", "benchmarks.retrieval", *sys.argv[1:], "--here", "--sizes"]
    rows = {}
    for size in given.sizes:
        done = subprocess.run([*command, size], check=True, stdout=subprocess.PIPE, text=True)
        rows[size] = json.loads(done.stdout)
    columns = list(next(iter(rows.values())))
    print(f"| size | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for size, row in rows.items():
        print(f"| {size} | {' | '.join(f'{v:.1f}' if isinstance(v, float) else str(v) for v in row.values())} |")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def measure(size: str, given: argparse.Namespace) -> dict[str, str | int | float]:
    """One row of the table."""
    import torch  # only in the fresh process: the other one stays small

    from dual_cross_attention.devices import peak_memory_mb
    from dual_cross_attention.metrics import retrieval_metrics

    here = torch.device("cpu")  # the resident set of this process, wherever it computes
    imports = peak_memory_mb(here)
    queries, gallery, identities, cameras = SIZES[size]
    random = torch.Generator().manual_seed(0)
    data = [torch.randn(count, given.dim, generator=random) for count in (queries, gallery)]
    for limit in (identities, cameras):
        data += [torch.randint(limit, (count,), generator=random) for count in (queries, gallery)]
    features = peak_memory_mb(here)
    options = {"block_size": given.block_size} if given.block_size else {}
    start, start_cpu = time.perf_counter(), time.process_time()
    result = retrieval_metrics(*data, distance=given.distance, rerank=given.rerank, device=given.device, **options)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    assert result.num_valid_queries == queries, "random identities: every query should have a match"
    return {
        "dim": given.dim,
        "rerank": "yes" if given.rerank else "no",
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "CPU seconds": cpu_seconds,  # of all threads: what other work on the machine lengthens least
        "imports MiB": imports,
        "with features MiB": features,
        "peak MiB": peak_memory_mb(here),
    }


if __name__ == "__main__":
    sys.exit(main())
