"""Micro-batches cut into pieces that fit into the GPU's memory, with the same step of the optimizer."""

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.errors import InputError

_SAID_WITHOUT_MEMORY = (
    "CUDA error: out of memory",  # of the runtime, where PyTorch's own allocator does not ask for it
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "Cuda failure 2 'out of memory'",  # of NCCL
    "MPS backend out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",  # since cuDNN 9
)
ADVICE = (
    "what helps, the first things first: --use_gradient_checkpointing true (less memory, a third more time); "
    "--precision bf16 or fp16, if it is fp32; a smaller --img_size; --ablation sa_glca (no PWCA: half the rows); more "
    "GPUs with --parallel fsdp; a smaller --backbone"
)


class OutOfMemory(RuntimeError):
    """Memory has run out in some process, all of them know, and none has left the others waiting."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether it says that the device has too little memory.

    PyTorch's memory on CUDA has a type for that; Macs, CPUs, drivers and libraries say it in words.
    """
    said = str(error)
    has_type = isinstance(error, torch.OutOfMemoryError | OutOfMemory)
    return has_type or any(words in said for words in _SAID_WITHOUT_MEMORY)


def first_sentence(error: Exception) -> str:
    """Of what a device says when its memory runs out, what is said to users."""
    return str(error).partition("\n")[0].partition(". ")[0]


class Pieces:
    """How many pieces a micro-batch is cut into; doubled when the GPU's memory runs out.

    The number is kept beside the run, for this kind of device, so that a run that continues need not find out again.

    Args:
        batch_size: images of a micro-batch.
        unit: images that stay together: K of an identity.
        smallest: fewest images of a piece.
        path: where the number is kept.
        device: where the training runs.
        all_alike: cut every micro-batch into as many pieces, also one with too few images: under FSDP, processes wait
            for each other in every pass.
    """

    def __init__(
        self, batch_size: int, unit: int, smallest: int, path: Path, device: torch.device, all_alike: bool = False
    ):
        self.batch_size, self.unit, self.smallest, self.path = batch_size, unit, smallest, path
        self.all_alike = all_alike
        self.device = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self.number = 1
        try:
            kept = json.loads(path.read_text())
            if kept["device"] == self.device and 1 <= int(kept["pieces"]) <= batch_size:
                self.number = int(kept["pieces"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            pass  # it is found out again

    def double(self, reason: str, where: str) -> str:
        """Half the micro-batch from now on; returns the line that says so.

        Args:
            reason: what the device said.
            where: the last checkpoint, in words.

        Raises:
            InputError: pieces cannot be smaller.
        """
        images = self.batch_size // (2 * self.number)
        if images < self.smallest:
            least = f"{self.smallest} image{'s' if self.smallest > 1 else ''}"
            raise InputError(
                f"out of memory with {self.batch_size // self.number} images at a time, and {least} is the least "
                f"({reason}): {ADVICE}; {where}"
            )
        self.number *= 2
        with suppress(OSError):  # no room: a run that continues finds out again
            self._keep()
        return (
            f"out of memory ({reason}): from here on {images} images at a time instead of {2 * images}, with "
            "twice the accumulation; effective batch and learning rate stay"
        )

    def _keep(self) -> None:
        with atomic_write(self.path) as temporary:
            temporary.write_text(
                json.dumps({"format_version": FORMAT_VERSION, "device": self.device, "pieces": self.number}) + "\n"
            )

    def cut(self, batch: dict[str, Any]) -> Iterator[tuple[dict[str, Any], float]]:
        """The pieces of a micro-batch, each with its share of the images; none is smaller than `smallest`.

        What lacks for `all_alike` is the last piece once more, with a share of 0.
        """
        units = len(batch["labels"]) // self.unit
        number = max(1, min(self.number, len(batch["labels"]) // self.smallest))
        ends = [round(units * piece / number) * self.unit for piece in range(number)] + [len(batch["labels"])]
        for start, end in pairwise(ends):
            rows = slice(start, end)
            piece = {name: value[rows] for name, value in batch.items()}
            yield piece, (end - start) / ends[-1]
        for _ in range(self.number - number if self.all_alike else 0):
            yield piece, 0.0
