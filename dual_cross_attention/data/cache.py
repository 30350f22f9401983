"""Images kept in memory, decoded and resized, so that they are read from disk in the first epoch only."""

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
USABLE = 0.9  # of the memory that is available: model, batches and the workers themselves need some too


class ImageCache:
    """Pixels by number, shared with every process that is forked after this was made, whichever of them reads first.

    The memory is an anonymous shared mapping: the system gives pages as they are written, and it is not in /dev/shm,
    which containers limit to 64 MB. It cannot be pickled, so processes that are spawned cannot have it.

    Args:
        count: images.
        size: (height, width) of each in pixels.

    Raises:
        InputError: the system refuses to map as much.
    """

    def __init__(self, count: int, size: tuple[int, int]):
        try:
            memory = mmap.mmap(-1, count + pixel_bytes(count, size))
        except OSError as error:  # a limit of this process (ulimit -v), or a system that promises no more than it has
            raise InputError(f"{_needs(count, size)}, which the system refuses ({error.strerror}): {ADVICE}") from error
        self._filled = torch.frombuffer(memory, dtype=torch.uint8, count=count)
        self._pixels = torch.frombuffer(memory, dtype=torch.uint8, offset=count).view(count, 3, *size)

    def get(self, index: int, read: Callable[[int], Tensor]) -> Tensor:
        """Image `index`, uint8 (3, height, width), not to be written to; `read(index)` gives it the first time.

        What `read` raises goes through, and nothing is kept: the image is tried again the next time.
        """
        if not self._filled[index]:
            self._pixels[index] = read(index)
            self._filled[index] = 1  # after the pixels: another process may be waiting to see it
        return self._pixels[index]


def pixel_bytes(count: int, size: tuple[int, int]) -> int:
    """Bytes of so many uint8 images (3, *size)."""
    return count * 3 * size[0] * size[1]


def check_memory(count: int, size: tuple[int, int]) -> None:
    """Before anything is read: whether so many images of (height, width) pixels can be kept.

    Raises:
        InputError: they need more than this process can take, or its share where a machine runs several.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # as torchrun and accelerate launch say it
    available = available_memory()
    if processes * pixel_bytes(count, size) > USABLE * available:
        several = f" in each of {processes} processes" if processes > 1 else ""
        raise InputError(
            f"{_needs(count, size)}{several}, and {available / 2**30:.2f} GiB are available, of which {USABLE:.0%} may "
            f"be used: {ADVICE}"
        )


def available_memory() -> float:
    """Bytes that can still be taken: what the machine has left, or a control group if that is less."""
    return min(psutil.virtual_memory().available, *map(_left_in, _control_groups()))


def _control_groups() -> list[Path]:
    """This process's control group (version 2: a container, a batch system's job) and those around it."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:  # not Linux
        return [CGROUP]
    own = next((CGROUP / line.removeprefix("0::/") for line in lines if line.startswith("0::")), CGROUP)
    return [group for group in (own, *own.parents) if group.is_relative_to(CGROUP)]


def _left_in(group: Path) -> float:
    """Bytes that a control group can still take."""
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # there is no such group, or it has no limit: "max"
        return math.inf
    # Files that were read count as used, and are reclaimed when memory is needed.
    return limit - used + int(parts["active_file"]) + int(parts["inactive_file"])


ADVICE = "take --cache none, or smaller images (--resize_size; of re-identification --img_size)"


def _needs(count: int, size: tuple[int, int]) -> str:
    gib = pixel_bytes(count, size) / 2**30
    return f"--cache ram needs {gib:.2f} GiB for {count:,} images of {size[0]}×{size[1]} pixels (height×width)"
