"""`dcal embed`: the features of any images."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dual_cross_attention.commands.inference_options import (
    HARDWARE,
    InferenceOptions,
    find_inputs,
    open_model,
    part_settings,
    report,
)
from dual_cross_attention.commands.output import check_writable, show_log
from dual_cross_attention.configs.arguments import read_options
from dual_cross_attention.progress import make_console


@dataclass(kw_only=True)
class EmbedOptions(InferenceOptions):
    """Writes the features of images, float32. They are normalized and taken before or after the neck as the settings of
    the run say. The exit status is 1 if an image cannot be read."""

    EXAMPLE: ClassVar = "dcal embed runs/people crops/ --output people.npz"
    GROUPS: ClassVar = {"features": "branch", "output": "output resume", "hardware and speed": HARDWARE}

    output: str
    """File to write: .npz (features, paths, unreadable, reasons, fingerprint) or .parquet (path, feature, error);
    required."""


def run(arguments: list[str]) -> int:
    options = read_options(EmbedOptions, "embed", arguments)
    console = make_console()
    show_log(console)
    from dual_cross_attention.inference import feature_files as files
    from dual_cross_attention.inference.part_file import PartFile
    from dual_cross_attention.inference.row_files import check_suffix
    from dual_cross_attention.inference.streaming import write_stream

    output = Path(options.output)
    check_writable("output", options.output)
    check_suffix(output, files.SUFFIXES)
    images = find_inputs(options.images, console)
    model, arguments = open_model(options)
    width, fingerprint = model.feature_width(options.branch), model.fingerprint(options.branch)
    written = write_stream(
        PartFile(output, part_settings("embed", model, options), options.resume),
        images.paths,
        images.total,
        lambda paths: model.embeddings(paths, **arguments),
        files.as_row,
        lambda temporary, rows: files.write_features(temporary, rows, output.suffix.lower(), width, fingerprint),
        "embed",
        console,
    )
    return report(written, output, console)
