"""Options that commands which apply a model to images share, and what they do with them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from dual_cross_attention.configs.arguments import positional
from dual_cross_attention.text import escape

if TYPE_CHECKING:
    from dual_cross_attention.inference.image_paths import ImagePaths
    from dual_cross_attention.inference.loaded_model import LoadedModel
    from dual_cross_attention.inference.streaming import Written


@dataclass(kw_only=True)
class DeviceOptions:
    """Options of commands that load a model."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: CUDA, else MPS, else CPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """auto: bf16 if the device multiplies it in hardware, fp16 on older CUDA devices, else fp32. null: as in
    training."""


@dataclass(kw_only=True)
class HardwareOptions(DeviceOptions):
    """Options of commands that apply a model to images."""

    batch_size: int | None = None
    """Images per forward pass. null: 32."""
    num_workers: int | None = None
    """DataLoader workers. null: 1 on a CPU, else one per core, at most 8."""


@dataclass(kw_only=True)
class NamedModelOptions:
    """The model of a command line, for `load_model`."""

    model: str = positional("MODEL")
    """Run folder, whose best model is used, a .safetensors model file, a directory of save_pretrained, or
    hf:ORG/NAME[@REVISION] of the Hugging Face Hub."""


@dataclass(kw_only=True)
class ModelOptions(NamedModelOptions, HardwareOptions):
    """Options of commands that apply a named model to images."""


@dataclass(kw_only=True)
class ImagesOptions:
    """The images of a command line, for `find_inputs`."""

    images: list[str] = positional("IMAGE|FOLDER|PATTERN|-")
    """Image files, folders (searched recursively), patterns such as 'photos/*.jpg'; - reads paths from standard input,
    one per line."""


@dataclass(kw_only=True)
class InferenceOptions(ImagesOptions, ModelOptions):
    """Options of commands with one result per image."""

    model: str = positional("MODEL")
    """Run folder, whose best model is used, a .safetensors model file, a directory of save_pretrained,
    hf:ORG/NAME[@REVISION] of the Hugging Face Hub, or an .onnx file of dcal export, which runs on the CPU."""
    branch: Literal["sa", "glca"] | None = None
    """Use one branch alone. null: both, if the model has both."""
    resume: Literal["auto", "never"] = "auto"
    """auto: an interrupted command resumes after the rows in OUTPUT.part.jsonl; never: start over."""


HARDWARE = "device precision batch_size num_workers"
"""The group "hardware and speed" of these commands."""


def find_inputs(words: list[str], console: Console) -> "ImagePaths":
    """The images that the words of the command line name; prints warnings about files that are left out."""
    from dual_cross_attention.inference.image_paths import find_images

    images = find_images(words, getattr(sys.stdin, "buffer", sys.stdin))
    for warning in images.warnings:
        console.print(f"warning: {warning}", style="yellow")
    return images


def open_model(options: InferenceOptions) -> tuple["LoadedModel", dict[str, Any]]:
    """The model, and the arguments of its `predict` and `embeddings` that the options set."""
    model, reading = load_for_images(options)
    return model, {"branch": options.branch, **reading}


def load_for_images(options: ModelOptions) -> tuple["LoadedModel", dict[str, Any]]:
    """The model, and its arguments `batch_size` and `num_workers` that the options set."""
    from dual_cross_attention.devices import keep_freed_memory
    from dual_cross_attention.inference.loaded_model import load_model

    keep_freed_memory()
    model = load_model(options.model, options.device, options.precision)
    return model, reading_arguments(options, model)


def reading_arguments(options: HardwareOptions, model: "LoadedModel") -> dict[str, Any]:
    """The arguments `batch_size` and `num_workers` of a model's methods that the options set."""
    from dual_cross_attention.tasks.data_module import default_workers

    workers = options.num_workers
    if workers is None:
        workers = max(1, default_workers(model.device))
    return {"batch_size": options.batch_size, "num_workers": workers}


def part_settings(command: str, model: "LoadedModel", options: InferenceOptions, **more: Any) -> dict[str, Any]:
    """Returns the settings that determine the output rows; a command resumes only rows with equal settings."""
    return {
        "command": command,
        "model": model.fingerprint(options.branch),
        "branch": options.branch,
        "precision": model.precision,
        **more,
    }


def report(written: "Written", output: Path, console: Console) -> int:
    """Says what was written; the exit status, 1 if images could not be read."""
    unreadable = f", {written.unreadable:,} of them unreadable" if written.unreadable else ""
    console.print(f"{written.rows:,} images{unreadable}: {escape(output)}")
    return 1 if written.unreadable else 0
