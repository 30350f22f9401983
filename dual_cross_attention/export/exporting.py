"""`export_model`: reads a trained model, exports it in a format, and says what was compared."""

from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from dual_cross_attention.errors import InputError
from dual_cross_attention.export.gate import Comparison
from dual_cross_attention.inference.model_files import (
    CHOSEN_BY,
    PRETRAINED_NAME,
    SavedModel,
    find_model_file,
    read_model,
)
from dual_cross_attention.inference.onnx_files import DTYPES, import_onnx
from dual_cross_attention.inference.onnx_model import OnnxModel
from dual_cross_attention.runs.run_folder import RunFolder

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "timm": "-timm"}
FORMATS = tuple(SUFFIXES)


def export_model(
    model: str | Path,
    format: str = "onnx",
    branch: str | None = None,
    output: Path | None = None,
    data_root: str | None = None,
    dtype: str = "fp32",
    max_loss: float | None = None,
    console: Console | None = None,
) -> tuple[Path, list[str]]:
    """Exports a trained model.

    Args:
        model: as of `load_model`, but no exported file.
        format: one of `FORMATS`.
        branch: "sa" or "glca" alone; None: all that predict.
        output: the file, or the directory of timm; None: named after the model, in the current folder.
        data_root: of the run's dataset; None: where the run found it.
        dtype: of onnx: one of `DTYPES`.
        max_loss: of fp16 and int8: see `export_reduced`; None: `MAX_LOSS`.
        console: shows the progress of the evaluation of fp16 and int8; None: not shown.

    Returns:
        The file or directory, and lines that say what was compared.

    Raises:
        InputError: options that do not fit, a missing library, a failed comparison, or a file that cannot be written.
    """
    if format not in FORMATS:
        raise InputError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    if format == "timm" and branch not in (None, "sa"):
        raise InputError("--format timm holds SA alone: GLCA is no model of timm")
    if dtype not in DTYPES or (dtype != "fp32" and format != "onnx"):
        raise InputError(f"--dtype: expected one of {', '.join(DTYPES)}, with --format onnx, or fp32, got {dtype}")
    if max_loss is not None and (dtype == "fp32" or not max_loss >= 0):
        raise InputError(f"--max_loss: expected points of 0 or more with --dtype fp16 or int8, got {max_loss}")
    if format == "onnx":
        for name in ("onnx", "onnxruntime", "onnxscript"):
            import_onnx(name)
    file = find_model_file(model)
    saved = read_model(file)
    if isinstance(saved.model, OnnxModel):
        raise InputError(f"'{file}' is an exported model: expected the model that it was exported from")
    branches = exported_branches(saved, branch)
    ending = "".join(f"-{word}" for word in (branch, dtype) if word not in (None, "fp32"))
    target = output or Path(f"{default_name(file)}{ending}{SUFFIXES[format]}")
    check_target(target, format)
    from dual_cross_attention.export.sample_images import sample_images

    labeled = None
    if dtype != "fp32":
        from dual_cross_attention.export.reduced import read_labeled

        labeled = read_labeled(saved, data_root)
    images, images_are = sample_images(saved, data_root)
    if format == "timm":
        from dual_cross_attention.export.timm_directory import write_timm_directory

        return target, write_timm_directory(saved, target, images)
    if format == "pt2":
        from dual_cross_attention.export.program import make_program, write_program

        compared = write_program(make_program(saved, branches), saved, branches, target, images, images_are)
        trust = "a .pt2 file can hold code: load only files that you trust"
        return target, [*comparison_lines(compared, images_are, saved, branches), trust]
    from dual_cross_attention.export.onnx_export import make_proto, write_checked

    proto = make_proto(saved, branches)
    with TemporaryDirectory() as folder:
        in_fp32 = target if labeled is None else Path(folder) / "fp32.onnx"
        compared = write_checked(proto, saved, branches, in_fp32, images, images_are)
        fp32_bytes = in_fp32.stat().st_size
    lines = comparison_lines(compared, images_are, saved, branches)
    if labeled is not None:
        from dual_cross_attention.export.reduced import MAX_LOSS, export_reduced

        allowed = MAX_LOSS if max_loss is None else max_loss
        accuracy = export_reduced(proto, saved, branches, target, dtype, labeled, allowed, console)
        size = f"{target.stat().st_size:,} bytes, in fp32 {fp32_bytes:,}"
        lines = [f"in fp32, {lines[0]}", *lines[1:], *accuracy.lines(saved.config.task, allowed), size]
    return target, lines


def comparison_lines(result: Comparison, images_are: str, saved: SavedModel, branches: list[str]) -> list[str]:
    """What was compared, for the screen."""
    batches = ", ".join(map(str, result.batches))
    first = f"compared with PyTorch on {result.images} images ({images_are}), batches of {batches}:"
    return [first, *result.lines(saved.config.task, "glca" in branches)]


def exported_branches(saved: SavedModel, branch: str | None) -> list[str]:
    """The branches of an exported graph.

    Raises:
        InputError: the model does not have `branch`.
    """
    if branch is None:
        return saved.model.predicting_branches
    if branch not in saved.model.test_branches:
        raise InputError(
            f"--branch: expected {' or '.join(saved.model.test_branches)}, which this model has, got {branch}"
        )
    return [branch]


def default_name(file: Path) -> str:
    """The name of the run folder or directory of a model file, of the repository of a downloaded one, or of the file
    where it has a name of its own. A model of a run other than its best adds which: "birds-last", "birds-best_raw"."""
    path = file.absolute()
    if path.parents[1].name == "snapshots" and path.parents[2].name.startswith("models--"):
        return path.parents[2].name.rpartition("--")[2]  # of huggingface_hub: models--ORG--NAME/snapshots/COMMIT/FILE
    folder = file.absolute().parent.name
    if not folder or file.name not in (*CHOSEN_BY, PRETRAINED_NAME):
        return file.stem
    return folder if file.name in (RunFolder(".").best.name, PRETRAINED_NAME) else f"{folder}-{file.stem}"


def check_target(target: Path, format: str) -> None:
    """Raises InputError if `target` cannot be written, or has a suffix that says something else."""
    if not target.absolute().parent.is_dir():
        raise InputError(f"--output: there is no folder '{target.parent}' to write '{target}' in")
    if format == "timm":
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"--output: expected a new or an empty directory, got '{target}'")
        return
    if target.is_dir() or target.suffix != SUFFIXES[format]:
        raise InputError(f"--output: expected a file NAME{SUFFIXES[format]}, got '{target}'")
