"""Resolves a path of weights to a file, and reads it without executing code in it."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import short_repr
from dual_cross_attention.weights.archives import check_archive

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".th", ".pth.tar", ".pt.tar", ".npz")
IN_FOLDERS = ("best.safetensors", "last.safetensors", "state.pt", "model.safetensors", "pytorch_model.bin")
"""File names that are searched in a folder: of a run, of a checkpoint, or of the Hugging Face hub."""


class Content(NamedTuple):
    """What a file holds.

    Args:
        tree: tensors by name, perhaps in nested dicts and among other values.
        header: the metadata of a `.safetensors`.
    """

    tree: Any
    header: dict[str, str]


def find_weights(path: str | Path) -> Path:
    """Returns the file itself, or the one in a folder.

    Raises:
        InputError: there is none, or its name ends as no file of weights does.
    """
    path = Path(path)
    if path.is_dir():
        found = next((path / name for name in IN_FOLDERS if (path / name).is_file()), None)
        if found is None:
            raise InputError(f"no weights in the folder '{path}': expected one of {', '.join(IN_FOLDERS)}, or a file")
        return found
    if not path.is_file():
        raise InputError(
            f"no weights at '{path}': expected imagenet, none, or a file ({', '.join(SUFFIXES)}), or a run's folder"
        )
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"weights '{path}' end in '{path.suffix}': expected one of {', '.join(SUFFIXES)}")
    return path


def read_content(path: Path) -> Content:
    """A `.safetensors`, or a file of `torch.save`, read with `weights_only=True`.

    Raises:
        InputError: a zip bomb, or more than tensors and plain values.
        Exception: whatever readers raise on damaged bytes.
    """
    if path.name.lower().endswith(".safetensors"):
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        return Content(load_file(path), header)
    check_archive(path)
    try:
        # Training scripts save their parsed arguments with the weights: a class without code of its own.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return Content(torch.load(path, map_location="cpu", weights_only=True), {})
    except Exception as error:
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise InputError(
                f"cannot read weights '{path}': it holds more than tensors, and what else is in it could run code, so "
                "nothing of it was run; expected a state dict of tensors: save that alone, or as .safetensors"
            ) from error
        raise


def check_tensors(state: dict[str, Tensor], source: str) -> None:
    """Raises InputError unless every tensor has the numbers that it claims: few bytes can claim billions of them."""
    for name, tensor in state.items():
        plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InputError(
                f"weights from {source}: expected tensors with all of their numbers in the file, but "
                f"{short_repr(name)} claims the shape {short_repr(tuple(tensor.shape))} without"
            )
