"""Counts unreadable images; a run continues without them up to a limit."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

SHOWN = 3  # images that the error names


class Unreadable(NamedTuple):
    """An image that could not be read, as a batch's "unreadable" list has it.

    Args:
        path: the file, exactly as it is named.
        reason: why, in a line.
        replaced: whether another image took its place (in training), or it was left out (in evaluation).
    """

    path: str
    reason: str
    replaced: bool


def allowed_unreadable(max_bad_images: int | None, train_images: int) -> int:
    """How many unreadable images a training continues with: `max_bad_images`; None: 1 % of them, at least 10."""
    return max(10, train_images // 100) if max_bad_images is None else max_bad_images


class UnreadableImages:
    """Collects the unreadable images of batches; each image is reported once.

    Args:
        tell: called with a line that names the image, the reason and what happens, the first time an image fails.
        allowed: how many may fail, see `allowed_unreadable`; None: any number.

    Attributes:
        found: path → reason.
    """

    def __init__(self, tell: Callable[[str], None], allowed: int | None = None):
        self.tell = tell
        self.allowed = allowed
        self.found: dict[str, str] = {}

    def watch(self, loader: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The loader's batches, without their "unreadable" entry.

        Raises:
            InputError: more images could not be read than are allowed.
        """
        for batch in loader:
            for image in batch.pop("unreadable", ()):
                self.add(image)
            yield batch

    def add(self, image: Unreadable) -> None:
        """Records an image; raises as `watch` does."""
        path, reason, replaced = image
        if path in self.found:
            return
        self.found[path] = reason
        happens = "replaced by the next one that can be read" if replaced else "left out"
        self.tell(f"unreadable image, {happens}: {escape(path)}: {reason}")
        self._judge()

    def merge(self, found: dict[str, str]) -> None:
        """Records unreadable images of another rank; raises as `watch` does."""
        new = {path: reason for path, reason in found.items() if path not in self.found}
        for path, reason in new.items():
            self.tell(f"unreadable image: {escape(path)}: {reason}")
        self.found |= new
        if new:
            self._judge()

    def _judge(self) -> None:
        if self.allowed is not None and len(self.found) > self.allowed:
            first = "; ".join(f"{escape(path)} ({reason})" for path, reason in islice(self.found.items(), SHOWN))
            raise InputError(
                f"{len(self.found):,} images could not be read, and --max_bad_images allows {self.allowed:,}: {first}"
                f"{', …' if len(self.found) > SHOWN else ''}; `dcal check-data` lists all of them: mend or remove "
                "them, or allow more"
            )

    def __len__(self) -> int:
        return len(self.found)
