"""Time to the page of `dcal demo`, to its first answer and to the next ones, and its memory over many uploads.

    python -m benchmarks.page runs/birds photo.jpg --json page.json

Beside it, the time of `dcal predict` and `dcal explain` for the same image, each a command of its own. An answer of the
page is a prediction and its maps, through Gradio's client, with the upload.
"""

import argparse
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from benchmarks.measure import describe_machine, table, write_json
from dual_cross_attention.devices import choose_device

COMMAND = [sys.executable, "-c", "import sys; from dual_cross_attention.cli import main; sys.exit(main())"]
READ_MEMORY_AFTER = (1, 10, 100)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as for dcal demo")
    parser.add_argument("image", type=Path, help="image that is uploaded")
    parser.add_argument("--uploads", type=int, default=200)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--json", type=Path, help="write the numbers here")
    given = parser.parse_args(arguments)
    machine = describe_machine(choose_device(given.device), torch.float32)
    rows = {f"dcal {command}": row(seconds=seconds_of(command, given)) for command in ("predict", "explain")}
    rows |= page_rows(given)
    print(machine, table(rows), sep="\n")
    write_json(given.json, machine=machine, rows=rows)
    return 0


def row(seconds: float | None = None, memory: float | None = None) -> dict[str, float | None]:
    """Of the table."""
    return {"s": seconds, "MiB": memory}


def seconds_of(command: str, given: argparse.Namespace) -> float:
    """Of a command on the image."""
    with tempfile.TemporaryDirectory() as folder:
        output = ["--output", folder] if command == "explain" else []
        start = time.perf_counter()
        subprocess.run(
            [*COMMAND, command, given.model, f"{given.image}", "--device", given.device, *output],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return time.perf_counter() - start


def page_rows(given: argparse.Namespace) -> dict[str, dict[str, float | None]]:
    """Seconds of the page, and MiB of its process."""
    from gradio_client import Client, handle_file

    start = time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, "demo", given.model, "--device", given.device], stdout=subprocess.PIPE, text=True
    )
    try:
        address = next(line.split()[0] for line in process.stdout if line.startswith("http://"))
        rows = {"page: to its address": row(time.perf_counter() - start)}
        client = Client(address, verbose=False, analytics_enabled=False, download_files=False)
        seconds = []
        with tempfile.TemporaryDirectory() as folder:
            for number in range(1, given.uploads + 1):
                # Another file each time, as of different images: Gradio stores files by their content.
                copy = Path(folder) / f"{number}{given.image.suffix}"
                shutil.copyfile(given.image, copy)
                with copy.open("ab") as file:
                    file.write(f"{number}".encode())
                start = time.perf_counter()
                client.predict(handle_file(f"{copy}"), api_name="/classify")
                seconds.append(time.perf_counter() - start)
                copy.unlink()
                if number in (*READ_MEMORY_AFTER, given.uploads):
                    held = psutil.Process(process.pid).memory_info().rss / 2**20
                    rows[f"page: after {number} uploads"] = row(memory=held)
        rows["page: first answer"] = row(seconds[0])
        if seconds[1:]:
            rows["page: next answers, median"] = row(statistics.median(seconds[1:]))
        return rows
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


if __name__ == "__main__":
    sys.exit(main())
