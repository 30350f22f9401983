"""Official releases of datasets: finding their files, and checking their sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dual_cross_attention.data.folders import (
    EXTENSIONS,
    image_files,
    inner_folder_lines,
    own_folder,
    undoubled,
    what_is_in,
)
from dual_cross_attention.data.listed_paths import absent
from dual_cross_attention.data.reid.cameras import CameraSource
from dual_cross_attention.data.reid.identities import ReIDData
from dual_cross_attention.data.reid.leftovers import describe_left_out
from dual_cross_attention.data.reid.names import in_both, look_alikes
from dual_cross_attention.data.reid.records import Sighting, listed, positions
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape
from dual_cross_attention.untrusted_files import read_text


class Counts(NamedTuple):
    """Numbers of images and identities."""

    images: int
    identities: int


class Release(NamedTuple):
    """An official release of a dataset.

    Args:
        name: the dataset.
        layout: the files and folders expected.
        source: where to get it.
        folders: names of its own folder, one for each version.
        naming: what file names look like, with an example.
        counts: of its splits "training", "query" and "gallery".
        distractors: the identity number of gallery images that show no query identity.
        taken_from: the source of cameras, see `CameraSource`.
        numbered_anew: whether training and test number their identities separately, so equal numbers are different
            identities.
    """

    name: str
    layout: str
    source: str
    folders: tuple[str, ...]
    naming: str
    counts: Mapping[str, Counts]
    distractors: str | None = None
    taken_from: str = "file names"
    numbered_anew: bool = False

    def found_in(self, data_root: Path, marker: str) -> Path:
        """Returns the dataset's own folder, which contains `marker`: `data_root` or a folder in it."""
        found = {own_folder(data_root, name, marker) for name in self.folders} - {None}
        if len(found) > 1:
            names = " and ".join(sorted(folder.name for folder in found))
            raise InputError(f"{self.name}: {data_root} has {names}; give the folder of one of them")
        if not found:
            raise self.error(f"expected {self.layout} at {data_root}, but {what_is_in(data_root)}")
        return found.pop()

    def inner_folder_lines(self, home: Path, data_root: Path) -> list[str]:
        """Returns a line if the dataset's own folder is neither `data_root` nor an officially named folder in it."""
        return inner_folder_lines(self.name, home, data_root, *(data_root / name for name in self.folders))

    def error(self, text: str) -> InputError:
        """An error that says where to get the dataset."""
        return InputError(f"{self.name}: {text}; get it from {self.source}")


def split_folder(release: Release, folder: Path, warnings: list[str]) -> Path:
    """Returns the folder of a split, or query/query, as some archives unpack, with a warning."""
    inner = undoubled(folder)
    warnings += [line for line in inner_folder_lines(release.name, inner, folder) if line not in warnings]
    return inner


def files_in(release: Release, folder: Path) -> list[Path]:
    """Returns the images directly in the folder of a split, sorted.

    Raises:
        InputError: the folder does not exist or has no images.
    """
    if not folder.is_dir():
        raise release.error(f"expected the folder {folder}, but {what_is_in(folder)}")
    files = image_files(folder)
    if not files:
        raise release.error(
            f"expected images ({', '.join(sorted(EXTENSIONS))}) in {folder}, but {what_is_in(folder)}"
            f"{describe_left_out(folder, 0)}"
        )
    return files


def lines_of(release: Release, path: Path) -> list[tuple[int, str]]:
    """Returns the lines of a list with their numbers, without blank lines.

    Raises:
        InputError: the file does not exist, is not text, or is empty.
    """
    try:
        text = read_text(path, release.name)
    except FileNotFoundError:
        raise release.error(f"expected {release.layout}, but {path} does not exist") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise release.error(f"expected images in {path}, but it lists none")
    return lines


def on_disk(release: Release, list_file: Path, files: list[Path], warnings: list[str]) -> list[Path]:
    """Returns the files of a list that exist; a warning counts the others.

    Raises:
        InputError: none is there.
    """
    gone = absent(files)
    if not gone:
        return files
    if len(gone) == len(files):
        raise release.error(
            f"none of the {len(files):,} images that {list_file} lists is there, such as {escape(gone[0])}"
        )
    warnings.append(
        f"{release.name}: {len(gone):,} of the {len(files):,} images that {list_file} lists are not there and "
        f"left out, such as {escape(gone[0])}"
    )
    left_out = set(gone)
    return [file for file in files if file not in left_out]


def released_data(release: Release, splits: Mapping[str, list[Sighting]], warnings: list[str]) -> ReIDData:
    """Builds the dataset of a release with numeric names; a split of unexpected size adds a warning.

    Args:
        release: the expected release.
        splits: by "training" (may be left out), "query" and "gallery".
        warnings: those so far.
    """
    warnings = [*warnings, *filter(None, (_difference(release, split, seen) for split, seen in splits.items()))]
    query, gallery = listed(splits["query"]), listed(splits["gallery"])
    identities = {
        "camera_source": CameraSource(release.taken_from),
        "distractors": None if release.distractors is None else int(release.distractors),
        "same_numbers": not release.numbered_anew,
    }
    if "training" not in splits:
        return ReIDData(release.name, [], None, query, gallery, warnings, **identities)
    # Labels go by name, the numbers of query and gallery by value.
    warnings += look_alikes(release.name, {"training": splits["training"]})
    if not release.numbered_anew:
        tested = {f"{number}" for number in {*query.identities, *gallery.identities}}
        tested -= {release.distractors and f"{int(release.distractors)}"}
        trained = {s.identity for s in splits["training"]}
        warnings += in_both(release.name, trained, (name for name in trained if (name.lstrip("0") or "0") in tested))
    labels = positions(s.identity for s in splits["training"])
    train = listed(splits["training"], labels.__getitem__)
    return ReIDData(release.name, list(labels), train, query, gallery, warnings, **identities)


def _difference(release: Release, split: str, sightings: list[Sighting]) -> str | None:
    """Says what is missing or surplus in a split; None if it is complete."""
    there = Counts(len(sightings), len({s.identity for s in sightings} - {release.distractors}))
    expected = release.counts[split]
    if there == expected:
        return None
    missing = expected.images - there.images
    if missing > 0:
        verdict = f"{missing:,} are missing"
    else:
        verdict = f"{-missing:,} more than released" if missing else "other identities than released"
    return (
        f"{release.name}: {there.images:,} of {expected.images:,} {split} images "
        f"({there.identities:,} of {expected.identities:,} identities): {verdict}"
    )
