"""Samples of a tar archive by WebDataset's convention: consecutive members with the same key are a sample."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dual_cross_attention.data.folders import EXTENSIONS
from dual_cross_attention.data.shards.archive import members
from dual_cross_attention.data.shards.member import Member
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, short_repr
from dual_cross_attention.untrusted_files import open_regular

MAX_LABEL = 1 << 20
"""Largest member with a label, in bytes."""
MAX_NUMBER = 10**18
"""Exclusive upper bound of an identity or camera number, so that it fits into an int64."""
MAX_NAME = 1000
"""Longest name of a class, identity or camera, in characters."""

Label = int | str


class Sample(NamedTuple):
    """An image with its label and camera.

    Args:
        image: its position in the archive.
        label: its class or identity, as a number or a name.
        camera: in re-identification, None if it has none; otherwise 0.
    """

    image: Member
    label: Label
    camera: Label | None


def samples(archive: Path, task: str) -> Iterator[Sample]:
    """Yields the samples of an archive in order.

    In fine-grained recognition, the label is in KEY.cls (an integer) or KEY.json, {"label": number or name}; in
    re-identification, in KEY.json, {"identity": number or name, "camera": number or name}; the camera may be absent.
    Other members and hidden files are skipped.

    Args:
        archive: a plain .tar.
        task: "fgvc" or "reid".

    Raises:
        OSError: it cannot be opened.
        InputError: the archive cannot be used (see `members`), a key comes twice, or a sample lacks its image or
            label, or has one that cannot be used.
    """
    with open_regular(archive) as file:
        seen: set[str] = set()
        parts: dict[str, Member] = {}
        key = None
        for member in members(file, archive):
            folder, name = os.path.split(member.name)
            if name.startswith((".", "__")):  # such as ._image.jpg, which macOS adds
                continue
            stem, _, kind = name.partition(".")
            own, kind = os.path.join(folder, stem), kind.lower()
            if own != key:
                if parts:
                    yield _sample(file, parts, archive, task)
                if own in seen:
                    raise _error(archive, own, "expected a key once, with all of its members next to each other")
                seen.add(own)
                key, parts = own, {}
            if kind in parts:
                raise _error(archive, member.name, "expected a member once, but there is another of that name")
            parts[kind] = member
        if parts:
            yield _sample(file, parts, archive, task)


def _sample(file: BinaryIO, parts: dict[str, Member], archive: Path, task: str) -> Sample:
    images = [member for kind, member in parts.items() if f".{kind}" in EXTENSIONS]
    if len(images) != 1:
        key = next(iter(parts.values())).name.partition(".")[0]
        found = ", ".join(escape(member.name) for member in parts.values())
        raise _error(archive, key, f"expected one image with a key, there are {len(images)}: it has {found:.300}")
    image = images[0]
    if task == "fgvc" and "cls" in parts:
        return Sample(image, _class_number(file, parts["cls"]), 0)
    if "json" not in parts:
        expected = "its class in KEY.cls or KEY.json" if task == "fgvc" else "its identity in KEY.json"
        raise _error(archive, image.name, f"expected {expected} beside it, there is none")
    said = _json(file, parts["json"])
    if task == "fgvc":
        return Sample(image, _label(said, "label", parts["json"]), 0)
    camera = _label(said, "camera", parts["json"]) if "camera" in said else None
    return Sample(image, _label(said, "identity", parts["json"]), camera)


def _class_number(file: BinaryIO, member: Member) -> int:
    text = _content(file, member).strip()
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise _error(member.archive, member.name, f"expected a whole number from 0 on, got {short_repr(text)}")
    return int(text)


def _json(file: BinaryIO, member: Member) -> dict:
    try:
        said = json.loads(_content(file, member))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise _error(member.archive, member.name, f"cannot be read as JSON: {reason}") from error
    if not isinstance(said, dict):
        raise _error(member.archive, member.name, f"expected a JSON object, got {short_repr(said)}")
    return said


def _label(said: dict, name: str, member: Member) -> Label:
    value = said.get(name)
    number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER
    if number or (isinstance(value, str) and 0 < len(value) <= MAX_NAME):
        return value
    there = short_repr(value) if name in said else f"none (it has {short_repr(sorted(said))})"
    raise _error(member.archive, member.name, f'expected "{name}" as a number from 0 on or a name, got {there}')


def _content(file: BinaryIO, member: Member) -> str:
    if member.size > MAX_LABEL:
        raise _error(
            member.archive, member.name, f"expected a label of at most {MAX_LABEL:,} bytes, got {member.size:,}"
        )
    file.seek(member.offset)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _error(member.archive, member.name, "expected text in UTF-8") from error


def _error(archive: Path, name: str, reason: str) -> InputError:
    return InputError(f"shards: {escape(archive)}/{escape(name)}: {reason}")
