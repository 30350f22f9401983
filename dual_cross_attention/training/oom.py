"""Out-of-memory errors: recognizing them, and splitting micro-batches into chunks that fit, with the same step."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.errors import InputError

T = TypeVar("T")
_MESSAGES = (
    "CUDA error: out of memory",  # from the CUDA runtime, outside of PyTorch's allocator
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "Cuda failure 2 'out of memory'",  # from NCCL
    "MPS backend out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",  # since cuDNN 9
)
ADVICE = (
    "what helps, in this order: --use_gradient_checkpointing true (less memory, a third more time); "
    "--precision bf16 or fp16, if it is fp32; a smaller --img_size; --ablation sa_glca (no PWCA: half the rows); more "
    "GPUs with --parallel fsdp; a smaller --backbone"
)


class OutOfMemory(RuntimeError):
    """Some rank is out of memory; all ranks raise this at the same point, so none waits for another."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that the device is out of memory.

    PyTorch's CUDA allocator raises a type of its own; MPS, CPU, drivers and libraries are recognized by their messages.
    """
    message = str(error)
    has_type = isinstance(error, torch.OutOfMemoryError | OutOfMemory)
    return has_type or any(words in message for words in _MESSAGES)


class Shortage(NamedTuple):
    """An out-of-memory error that was caught.

    Args:
        reason: what the device said, for the user.
        all_ranks_know: whether all ranks stopped at the same point; otherwise others may wait for this one.
    """

    reason: str
    all_ranks_know: bool


def catch_out_of_memory(function: Callable[[], T]) -> tuple[T | None, Shortage | None]:
    """Calls a function; returns its result, or the out-of-memory error that it raised.

    When this returns, the exception and thus the tensors of its frames are gone, so their memory can be released.
    """
    try:
        return function(), None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None, Shortage(first_sentence(error), isinstance(error, OutOfMemory))


def first_sentence(error: Exception) -> str:
    """The first sentence of an out-of-memory message, for the user."""
    return str(error).partition("\n")[0].partition(". ")[0]


class MicroBatchChunks:
    """Splits micro-batches into chunks; their number is doubled after every out-of-memory error.

    The number is kept in a file of the run, for this type of device, so that a run that resumes starts with it.

    Args:
        batch_size: images of a micro-batch.
        group_size: images that stay in the same chunk: K of an identity.
        min_size: fewest images of a chunk.
        path: file that keeps the number.
        device: where the training runs.
        pad: split every micro-batch into the same number of chunks, even one with too few images: under FSDP, every
            pass is a collective.

    Attributes:
        count: chunks of a micro-batch.
    """

    def __init__(
        self, batch_size: int, group_size: int, min_size: int, path: Path, device: torch.device, pad: bool = False
    ):
        self.batch_size, self.group_size, self.min_size, self.path = batch_size, group_size, min_size, path
        self.pad = pad
        self.device = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self.count = 1
        try:
            kept = json.loads(path.read_text())
            if kept["device"] == self.device and 1 <= int(kept["pieces"]) <= batch_size:
                self.count = int(kept["pieces"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            pass  # no usable file: the number is found again

    def double(self, reason: str, last_checkpoint: str) -> str:
        """Halves the chunks from now on; returns a message for the user.

        Args:
            reason: what the device said.
            last_checkpoint: a clause that names the last checkpoint.

        Raises:
            InputError: chunks cannot be smaller.
        """
        images = self.batch_size // (2 * self.count)
        if images < self.min_size:
            least = f"{self.min_size} image{'s' if self.min_size > 1 else ''}"
            raise InputError(
                f"out of memory with {self.batch_size // self.count} images at a time, and {least} is the least "
                f"({reason}): {ADVICE}; {last_checkpoint}"
            )
        self.count *= 2
        with suppress(OSError):  # a full disk: a run that resumes finds the number again
            self._keep()
        return (
            f"out of memory ({reason}): from here on {images} images at a time instead of {2 * images}, with "
            "twice the accumulation; effective batch and learning rate stay"
        )

    def _keep(self) -> None:
        with atomic_write(self.path) as temporary:
            temporary.write_text(
                json.dumps({"format_version": FORMAT_VERSION, "device": self.device, "pieces": self.count}) + "\n"
            )

    def split(self, batch: dict[str, Any]) -> Iterator[tuple[dict[str, Any], float]]:
        """The chunks of a micro-batch, each with its fraction of the images; none is smaller than `min_size`.

        With `pad`, missing chunks are the last one repeated, with a fraction of 0.
        """
        size = len(batch["labels"])
        groups = size // self.group_size
        count = max(1, min(self.count, size // self.min_size))
        ends = [round(groups * chunk / count) * self.group_size for chunk in range(count)] + [size]
        for start, end in pairwise(ends):
            chunk = {name: value[start:end] for name, value in batch.items()}
            yield chunk, (end - start) / size
        for _ in range(self.count - count if self.pad else 0):
            yield chunk, 0.0
