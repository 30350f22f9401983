"""Decides whether file names have cameras: the same ones recur across identities."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from dual_cross_attention.text import escape

CameraMode = Literal["auto", "none", "name"]
NO_CAMERA = ""
"""The camera of an image where cameras are not read."""
OF_NUMBER = re.compile(r"(?:^|_)c([0-9]+)(?:s[0-9]+)?(?=[_.])")
"""The camera of Market-1501's, DukeMTMC-reID's and VeRi-776's file names: 0001_c1s1_001051_00.jpg, 0001_c2_f1.jpg."""


@dataclass(frozen=True)
class CameraRule:
    """How a camera is read from a file name.

    Args:
        taken_from: what is read, for messages.
        camera: of a file name; `NO_CAMERA` if it has none.
    """

    taken_from: str
    camera: Callable[[str], str]


def prefix(name: str) -> str:
    """`door` of door_0001.jpg."""
    camera, found, _ = name.partition("_")
    return camera if found else NO_CAMERA


def number(name: str) -> str:
    """`1` of 0001_c1s1_001051_00.jpg."""
    found = OF_NUMBER.search(name)
    return found[1] if found else NO_CAMERA


BY_PREFIX = CameraRule('the part of a file name before its first "_"', prefix)
BY_NUMBER = CameraRule('the number after "_c" in a file name', number)


class NamedImage(NamedTuple):
    """An image of which a camera may be known.

    Args:
        file: where it is.
        identity: its name.
        camera: of a table; `NO_CAMERA`: it is read from the name of the file.
        is_query, is_gallery: the sides that it is on.
    """

    file: Path
    identity: str
    camera: str
    is_query: bool
    is_gallery: bool


class Choice(NamedTuple):
    """What `choose_rule` decides.

    Args:
        rule: None: there are no cameras.
        why: the reason, with two examples.
    """

    rule: CameraRule | None
    why: str


def choose_rule(images: Sequence[NamedImage]) -> Choice:
    """The first rule whose cameras are cameras, of query and gallery.

    That is, more than half of the images have one, there are several, no more than half of the images have one that
    only a single identity has, and some query has its identity in the gallery under another camera.
    """
    reasons = []
    for rule in (BY_PREFIX, BY_NUMBER):
        reason = _doubt(images, rule)
        if reason is None:
            return Choice(rule, "they recur across identities")
        reasons.append(reason)
    return Choice(None, reasons[0])


def _doubt(images: Sequence[NamedImage], rule: CameraRule) -> str | None:
    """Why a rule gives no cameras; None if it does."""
    cameras = [image.camera or rule.camera(image.file.name) for image in images]
    named = [(image, camera) for image, camera in zip(images, cameras, strict=True) if camera]
    if 2 * len(named) <= len(images):
        unnamed = [image for image, camera in zip(images, cameras, strict=True) if not camera]
        return f"most file names lack {rule.taken_from}, such as {' and '.join(_file(image) for image in unnamed[:2])}"
    identities: dict[str, set[str]] = defaultdict(set)
    by_identity: dict[str, set[str]] = defaultdict(set)
    for image, camera in named:
        identities[camera].add(image.identity)
        if image.is_gallery:
            by_identity[image.identity].add(camera)
    if len(identities) == 1:
        return f"{rule.taken_from} is the same in all: {_examples(named)}"
    if 2 * sum(len(identities[camera]) == 1 for _, camera in named) > len(named):
        single = [(image, camera) for image, camera in named if len(identities[camera]) == 1]
        return f"{rule.taken_from} is of one identity only in most images: {_examples(single)}"
    if not any(image.is_query and by_identity[image.identity] - {camera} for image, camera in named):
        return f"no query has its identity in the gallery under another of {rule.taken_from}: {_examples(named)}"
    return None


def _examples(named: Sequence[tuple[NamedImage, str]]) -> str:
    """Two images with their cameras, of different cameras if possible."""
    first = named[0]
    second = next((each for each in named if each[1] != first[1]), named[-1])
    return ", ".join(f"{escape(camera)} ({_file(image)})" for image, camera in dict.fromkeys((first, second)))


def _file(image: NamedImage) -> str:
    return escape("/".join(image.file.parts[-2:]))
