"""`dcal report`: a run, or several in comparison, as one HTML file."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from dual_cross_attention.commands.output import check_writable, open_console
from dual_cross_attention.configs.arguments import positional, read_options
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

ONE_RUN = ("model", "data_root", "split", "device", "precision", "batch_size", "num_workers")
"""Options that several runs do not have."""


@dataclass(kw_only=True)
class ReportOptions:
    """Writes a report of a run as one HTML file that loads nothing from elsewhere: what was trained on what, curves,
    scores of each branch, accuracy by class, mistakes with attention, reliability; for re-identification the CMC curve,
    mAP by camera and ranked lists. The model is evaluated once. Several runs give one comparison, from what the runs
    recorded: differences of settings, scores, curves; no dataset is needed for it."""

    EXAMPLE: ClassVar = "dcal report runs/birds\ndcal report runs/birds runs/baseline --output comparison.html"
    GROUPS: ClassVar = {
        "output": "output",
        "model and data (one run)": "model data_root split",
        "hardware and speed (one run)": "device precision batch_size num_workers",
    }

    runs: list[str] = positional("RUN")
    """Run folders: one for a report, several for a comparison."""
    output: str | None = None
    """HTML file to write; it is replaced. null: report.html in the run folder; of several runs, comparison.html in the
    current folder."""
    model: Literal["best", "last"] | None = None
    """Which model of the run is evaluated. best: the epoch with the best score on the test split; last: the last epoch.
    null: best."""
    data_root: str | None = None
    """Folder of the dataset, or the folder that contains it; a classifier needs only its test images. null: where the
    run found it."""
    split: Literal["val", "test"] | None = None
    """Classification, datasets with both: which images to evaluate on. null: val if it exists, else test."""
    batch_size: int | None = None
    """Images per forward pass. null: as in the run."""
    num_workers: int | None = None
    """Processes that read and decode images. null: as in the run."""
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None
    """auto: CUDA, else MPS, else CPU. null: auto."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """auto: bf16 if the device multiplies it in hardware, fp16 on older CUDA devices, else fp32. null: as in the
    run."""


def run(arguments: list[str]) -> None:
    """Writes the file and says where it is."""
    options = read_options(ReportOptions, "report", arguments)
    given = {name: value for name in ONE_RUN if (value := getattr(options, name)) is not None}
    if len(options.runs) > 1 and given:
        raise InputError(f"--{next(iter(given))} is for a report of one run: a comparison reads run folders only")
    default = Path(options.runs[0]) / "report.html" if len(options.runs) == 1 else Path("comparison.html")
    output = default if options.output is None else Path(options.output)
    check_writable("output", f"{output}" if options.output else None)
    if output.parent.is_dir() and not os.access(output.parent, os.W_OK):
        raise InputError(f"--output: expected a folder that can be written, got '{escape(output.parent)}'")
    console = open_console()
    unreadable = 0
    if len(options.runs) == 1:
        from dual_cross_attention.report.run_report import report_run

        unreadable = report_run(options.runs[0], output, **given, console=console)
    else:
        from dual_cross_attention.report.comparison import report_comparison

        report_comparison(options.runs, output)
    if unreadable:
        console.print(f"{unreadable} images could not be read and were left out; the report names them")
    size = output.stat().st_size / 1e6
    console.print(f"report: {escape(output)} ({size:.1f} MB)", soft_wrap=True)
