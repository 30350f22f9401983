"""Rows of `dcal search` and `dcal identify`, for files of `inference/row_files.py`."""

from collections.abc import Sequence
from typing import Any

from dual_cross_attention.gallery.identify import Answer
from dual_cross_attention.gallery.index import Match
from dual_cross_attention.gallery.sources import shown_path

NEW = "new"
MATCH_COLUMNS = {
    "path": "string",
    "rank": "int64",
    "distance": "float64",
    "identity": "string",
    "match": "string",
    "error": "string",
}
IDENTITY_COLUMNS = {
    "path": "string",
    "track": "string",
    "identity": "string",
    "known": "bool",
    "distance": "float64",
    "probability": "float64",
    "nearest": "string",
    "match": "string",
    "group": "string",
    "error": "string",
}


def match_rows(path: str, matches: Sequence[Match], error: str | None) -> list[dict[str, Any]]:
    """A row per image that was found for an image; one row if there is none."""
    if error or not matches:
        return [dict.fromkeys(MATCH_COLUMNS) | {"path": path, "error": error}]
    return [
        {
            "path": path,
            "rank": rank,
            "distance": match.distance,
            "identity": match.identity,
            "match": shown_path(match.path),
            "error": None,
        }
        for rank, match in enumerate(matches, 1)
    ]


def identity_row(
    path: str, answer: Answer | None, error: str | None, track: str | None = None, group: str | None = None
) -> dict[str, Any]:
    """The row of an image.

    Args:
        path: of the image.
        answer: None if the image cannot be read.
        error: why it cannot be read.
        track: name of its track.
        group: name of the group of a new image.
    """
    row = dict.fromkeys(IDENTITY_COLUMNS) | {"path": path, "error": error}
    if answer is not None:
        row |= {
            "track": track,
            "identity": answer.identity if answer.is_known else NEW,
            "known": answer.is_known,
            "distance": answer.distance,
            "probability": answer.probability,
            "nearest": answer.identity,
            "match": answer.match and shown_path(answer.match),
            "group": group,
        }
    return row
