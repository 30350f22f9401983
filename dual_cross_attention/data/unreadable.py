"""Keeping count of pictures that could not be read, while a run goes on without them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any


class UnreadablePictures:
    """Collects what batches say of unreadable pictures; every picture is told once.

    Args:
        tell: called with "path: reason" the first time a picture fails.

    Attributes:
        found: path → reason.
    """

    def __init__(self, tell: Callable[[str], None]):
        self.tell = tell
        self.found: dict[str, str] = {}

    def watch(self, loader: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The loader's batches, without their "unreadable" entry."""
        for batch in loader:
            for message in batch.pop("unreadable", ()):
                path, _, reason = message.partition(": ")
                if path not in self.found:
                    self.found[path] = reason
                    self.tell(f"skipped an unreadable picture, {message}")
            yield batch

    def __len__(self) -> int:
        return len(self.found)
