"""In-memory cache of decoded and resized images, which are read from disk in the first epoch only."""

import math
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor

from dual_cross_attention.errors import InputError

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
USABLE = 0.9  # share of the available memory; model, batches and workers need the rest


class ImageCache:
    """Pixels by image number, shared with all processes forked after construction.

    The memory is an anonymous shared mapping: pages are allocated when they are written, outside of /dev/shm, which
    containers limit to 64 MB. It cannot be pickled, so spawned processes cannot share it.

    Args:
        count: images.
        size: (height, width) of each in pixels.

    Raises:
        InputError: the system refuses a mapping of this size.
    """

    def __init__(self, count: int, size: tuple[int, int]):
        try:
            memory = mmap.mmap(-1, count + pixel_bytes(count, size))
        except OSError as error:  # a limit of this process (ulimit -v), or a system without overcommit
            raise InputError(f"{_needs(count, size)}, which the system refuses ({error.strerror}): {ADVICE}") from error
        self._filled = torch.frombuffer(memory, dtype=torch.uint8, count=count)
        self._pixels = torch.frombuffer(memory, dtype=torch.uint8, offset=count).view(count, 3, *size)

    def get(self, index: int, read: Callable[[int], Tensor]) -> Tensor:
        """Returns image `index`, read-only uint8 (3, height, width), from `read(index)` at the first access.

        Exceptions of `read` propagate, and nothing is cached.
        """
        if not self._filled[index]:
            self._pixels[index] = read(index)
            self._filled[index] = 1  # after the pixels: other processes check it first
        return self._pixels[index]


def pixel_bytes(count: int, size: tuple[int, int]) -> int:
    """Size in bytes of `count` uint8 images (3, *size)."""
    return count * 3 * size[0] * size[1]


def check_memory(count: int, size: tuple[int, int]) -> None:
    """Checks, before anything is read, whether the images fit into memory.

    Raises:
        InputError: they need more than the available memory, or this rank's share of it.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun and accelerate launch
    available = available_memory()
    if processes * pixel_bytes(count, size) > USABLE * available:
        several = f" in each of {processes} processes" if processes > 1 else ""
        raise InputError(
            f"{_needs(count, size)}{several}, and {available / 2**30:.2f} GiB are available, of which {USABLE:.0%} may "
            f"be used: {ADVICE}"
        )


def available_memory() -> float:
    """Available memory in bytes: of the machine, or of the control group if that is less."""
    return min(psutil.virtual_memory().available, *map(_left_in, _control_groups()))


def _control_groups() -> list[Path]:
    """Yields this process's control group (version 2: a container, a batch job) and its parents."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:  # not Linux
        return [CGROUP]
    own = next((CGROUP / line.removeprefix("0::/") for line in lines if line.startswith("0::")), CGROUP)
    return [group for group in (own, *own.parents) if group.is_relative_to(CGROUP)]


def _left_in(group: Path) -> float:
    """Available memory of a control group in bytes."""
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # the group does not exist, or has no limit ("max")
        return math.inf
    # The page cache counts as used, but is reclaimable.
    return limit - used + int(parts["active_file"]) + int(parts["inactive_file"])


ADVICE = "take --cache none, or smaller images (--resize_size; of re-identification --img_size)"


def _needs(count: int, size: tuple[int, int]) -> str:
    gib = pixel_bytes(count, size) / 2**30
    return f"--cache ram needs {gib:.2f} GiB for {count:,} images of {size[0]}×{size[1]} pixels (height×width)"
