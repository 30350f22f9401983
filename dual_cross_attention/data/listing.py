"""Lists the images below a folder, and the files that look like images and are left out."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dual_cross_attention.data.folders import EXTENSIONS, is_visible
from dual_cross_attention.text import escape
from dual_cross_attention.untrusted_files import open_regular

FolderId = tuple[int, int]
"""Device and inode, which identify a folder."""

OTHER_EXTENSIONS = re.compile(
    r"\.(apng|arw|avif|cr2|cr3|dib|dng|exr|heic|heif|hif|ico|j2c|j2k|jfi|jfif|jif|jp2|jpc|jpe|jpf|jpx|jxl|jxr|nef|orf"
    r"|pbm|pcx|pfm|pgm|pnm|psd|qoi|rw2|sgi|svg|tga|xbm|xpm)"
)
"""Extensions of image formats that are not read; other files are recognized by their first bytes."""
SIDECARS = re.compile(
    r"\.(bin|cls|csv|db|gz|html?|ini|jsonl?|log|mat|md|np[yz]|pdf|pickle|pkl|pt|py|sqlite|tar|tfrecord|toml|tsv|txt|url"
    r"|xlsx?|xml|ya?ml|zip)"
)
"""Extensions of other files that are common next to images: they are not opened."""
MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{4}\0\0\0\0|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP|P[1-6]\s+\d|8BPS\0\x01"
    rb"|\0\0\0\x0c(jP  |JXL )|\xff\x4f\xff\x51|\xff\x0a|.{4}ftyp(avi[fs]|hei[cfmsx]|hev[cx]|mif1|msf1)"
    rb"|\x76\x2f\x31\x01|#\?RADIANCE|qoif",
    re.DOTALL,
)
"""The first bytes of image files."""


@dataclass
class Listing:
    """Files below a folder, as paths in the order of traversal.

    Args:
        images: files that are taken: those in the folder itself, then subfolder by subfolder, each sorted by name.
        nested: those of them in subfolders.
        other: files that look like images, but have none of `EXTENSIONS`.
        hidden: images that are hidden, or in hidden folders.
        repeated: targets of links that are read already, or that contain the listed folder.
    """

    images: list[Path] = field(default_factory=list)
    nested: list[Path] = field(default_factory=list)
    other: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)

    def add(self, more: "Listing") -> None:
        """Appends another listing."""
        for name in ("images", "nested", "other", "hidden", "repeated"):
            getattr(self, name).extend(getattr(more, name))


def list_images(
    folder: Path,
    above: Collection[FolderId] = (),
    deep: bool = True,
    visible: bool = True,
    known: Collection[str] = frozenset(),
) -> Listing:
    """Lists the images below a folder; links to folders are followed, and a folder is read once.

    Args:
        folder: where to look.
        above: parents of `folder`, which are not read through links.
        deep: False: only the folder itself, without subfolders.
        visible: False: the folder and its content count as hidden.
        known: paths of files that the listing leaves out, below `folder` as it is spelled.

    Raises:
        OSError: the folder or one below it, which is not hidden, cannot be listed.
    """
    listing = Listing()
    seen = {*above}
    waiting = [(folder, visible)]
    while waiting:
        current, visible = waiting.pop()
        try:
            identity, entries = folder_id(current), _entries(current)
        except OSError:
            if visible:
                raise
            continue
        if identity in seen:
            listing.repeated.append(current)
            continue
        seen.add(identity)
        inner = []
        prefix = os.fspath(current / "x")[:-1]  # strings: constructing a Path takes 10 times as long as a lookup
        for name, is_folder in entries:
            if prefix + name in known:
                continue
            shown = visible and is_visible(name)
            if is_folder:
                inner.append((current / name, shown))
            elif not shown:
                if _looks_like_an_image(current / name, by_name=False):
                    listing.hidden.append(current / name)
            elif os.path.splitext(name)[1].lower() in EXTENSIONS:
                listing.images.append(current / name)
                if current is not folder:
                    listing.nested.append(listing.images[-1])
            elif _looks_like_an_image(current / name):
                listing.other.append(current / name)
        if deep:
            waiting += reversed(inner)
    return listing


def folder_id(folder: Path) -> FolderId:
    """Raises OSError if there is none."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def left_out_warnings(where: str, listing: Listing) -> list[str]:
    """Warnings for each kind of file that looks like an image and is left out."""
    warnings = []
    if listing.other:
        look = "look" if len(listing.other) > 1 else "looks"
        kinds = Counter(path.suffix.lower() or "no extension" for path in listing.other)
        said = ", ".join(f"{escape(kind)}: {count:,}" for kind, count in kinds.most_common(8))
        warnings.append(
            f"{where}: {_are(len(listing.other), 'file')} left out that {look} like images ({said}), such as "
            f"{escape(listing.other[0])}: convert or rename them to one of {', '.join(sorted(EXTENSIONS))}"
        )
    if listing.hidden:
        warnings.append(
            f"{where}: {_are(len(listing.hidden), 'hidden image')} left out, such as {escape(listing.hidden[0])}"
        )
    if listing.repeated:
        warnings.append(
            f"{where}: {_are(len(listing.repeated), 'link')} not followed, to folders that are read already or hold "
            f"this one, such as {escape(listing.repeated[0])}"
        )
    return warnings


def not_listed_warnings(where: str, folder: Path, listed: Iterable[Path], list_file: str) -> list[str]:
    """Warns about images in a folder that its list does not name; adds the warnings of `left_out_warnings`.

    Args:
        where: the dataset, for the message.
        folder: folder of the images, with subfolders.
        listed: the images that are taken, below `folder`.
        list_file: name of the list.
    """
    try:
        found = list_images(folder, known={os.fspath(path) for path in listed})
    except OSError as error:  # the listed images may still be readable
        return [
            f"{where}: {escape(error.filename or folder)} cannot be listed ({error.strerror}): images that are not "
            f"in {list_file} are not counted"
        ]
    warnings = left_out_warnings(f"{where}: {escape(folder)}", found)
    if more := found.images:
        warnings.append(
            f"{where}: {_are(len(more), 'image')} left out of {escape(folder)}, not being in {list_file}, such as "
            f"{escape(more[0])}"
        )
    return warnings


def _are(count: int, what: str) -> str:
    return f"{count:,} {what}s are" if count > 1 else f"1 {what} is"


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """Name, and whether it is a folder (or a link to one), sorted by name."""
    with os.scandir(folder) as entries:
        return sorted((entry.name, entry.is_dir()) for entry in entries)


def _looks_like_an_image(path: Path, by_name: bool = True) -> bool:
    suffix = path.suffix.lower()
    if SIDECARS.fullmatch(suffix):
        return False
    if by_name and OTHER_EXTENSIONS.fullmatch(suffix):
        return True
    try:
        with open_regular(path) as file:
            return MAGIC.match(file.read(32)) is not None
    except (OSError, ValueError):
        return False
