"""Fingerprint of a dataset: detects that a run would resume or be evaluated on other data.

The fingerprint of a split has the number of its images, a hash over their names and labels, in order, and one over the
sizes of at most 1,024 and the first bytes of 16 of them. Names are relative to the folder that holds them all, so a
copy in another place, or a remounted disk, has the same fingerprint; other images under the same names have another
one. Of a table, no names are read. Of tar archives, it is a hash over what their index says, which was taken when the
index was made.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from dual_cross_attention.configs.versions import FORMAT_VERSION, check_version
from dual_cross_attention.data.crops import CroppedFile, file_of
from dual_cross_attention.data.images import ImageList, ImageSource, open_bytes
from dual_cross_attention.data.names import composed
from dual_cross_attention.data.row_images import RowImages
from dual_cross_attention.data.shards.columns import IndexedImages
from dual_cross_attention.data.shards.index import Index
from dual_cross_attention.errors import InputError

AT_ONCE = 1 << 16  # names per update of the hash
MEASURED = 1024  # images of a split whose sizes are read
SAMPLED = 16  # images of a split whose bytes are read
SAMPLED_BYTES = 1 << 16  # of each of them


@dataclass(frozen=True)
class SplitFingerprint:
    """A split's number of images, a hash over their names and labels, and one over the bytes of a few.

    Args:
        sample: None where images have no files of their own: archives, whose digest has the size of each image, and
            images in memory.
    """

    images: int
    digest: str
    sample: str | None = None


@dataclass(frozen=True)
class DataFingerprint:
    """Fingerprint of a dataset.

    Args:
        dataset: its name.
        label_names: number of classes, or of training identities.
        label_digest: a hash over their names, in order.
        splits: by name, such as "train" and "test".
        views: a hash over the views of the training images, of a run with an embedding of them.
    """

    dataset: str
    label_names: int
    label_digest: str
    splits: dict[str, SplitFingerprint]
    views: str | None = None

    def with_distractors(self, images: ImageList | None) -> "DataFingerprint":
        """This data and the images of `--distractors dataset`, as a split "distractors"; None: there are none."""
        if images is None:
            return self
        return replace(self, splits=self.splits | {"distractors": fingerprint_split(images.images)})

    def with_views(self, views: Sequence[str]) -> "DataFingerprint":
        """This data with the views of its training and test images, "" of those without; empty: there are none."""
        return replace(self, views=digest_names(views)) if views else self

    def to_json(self) -> str:
        """Text that `from_json` reads."""
        values = asdict(self)
        if self.views is None:  # as files before there were views
            del values["views"]
        return json.dumps({"format_version": FORMAT_VERSION, **values}, indent=1)

    @classmethod
    def from_json(cls, text: str, source: str) -> "DataFingerprint":
        """Reads what `to_json` wrote; `source` is where it is from, for errors.

        Raises:
            InputError: it is something else, or of a later version.
        """
        try:
            read = json.loads(text)
            check_version(read["format_version"], source)
            splits = {
                f"{name}": SplitFingerprint(int(s["images"]), f"{s['digest']}", s["sample"])
                for name, s in read["splits"].items()
            }
            views = None if (digest := read.get("views")) is None else f"{digest}"
            return cls(f"{read['dataset']}", int(read["label_names"]), f"{read['label_digest']}", splits, views)
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise InputError(f"{source} does not say which data it is of ({type(error).__name__}: {error})") from error

    def differences(self, other: "DataFingerprint", splits: Sequence[str] | None = None) -> list[str]:
        """What differs, in words; empty if nothing does.

        Args:
            other: what there is now; this one is what was recorded.
            splits: those to compare; None: all, and the names of the labels.
        """
        found = []
        if splits is None and self.label_digest != other.label_digest:
            same_number = self.label_names == other.label_names
            what = "names or order of the labels" if same_number else "number of labels"
            found.append(f"{what} ({self.label_names:,} there, {other.label_names:,} here)")
        if splits is None and self.views != other.views:
            found.append("views of the training images")
        for name in splits if splits is not None else {**self.splits, **other.splits}:
            there, here = (side.splits.get(name, SplitFingerprint(0, "")) for side in (self, other))
            if there.images != here.images:
                found.append(f"number of {name} images ({there.images:,} there, {here.images:,} here)")
            elif there.digest != here.digest:
                found.append(f"names or labels of the {there.images:,} {name} images")
            elif there.sample != here.sample:
                found.append(f"content of the {there.images:,} {name} images, by a sample of them")
        return found


def digest_names(names: Sequence[str]) -> str:
    """A hash over names in their order, the same for composed and decomposed Unicode."""
    digest = hashlib.blake2b(digest_size=16)
    for name in names:
        digest.update(_encoded(name))
    return digest.hexdigest()


def fingerprint_split(images: Sequence[ImageSource], *labels: Sequence[int]) -> SplitFingerprint:
    """Of images in their order and their labels (of re-identification, identities and cameras).

    Args:
        images: files, members of tar archives, or images in memory, which have no names.
        labels: sequences of whole numbers, each as long as `images`.
    """
    digest = hashlib.blake2b(digest_size=16)
    sample = None
    if isinstance(images, IndexedImages):
        digest.update(_of_index(images.index))
        for each in labels:
            digest.update(np.ascontiguousarray(each.table, dtype="<i8").tobytes())
    else:
        for each in labels:
            digest.update(np.ascontiguousarray(np.asarray(each), dtype="<i8").tobytes())
        if isinstance(images, RowImages):  # names would have to be read from each row
            return SplitFingerprint(len(images), digest.hexdigest(), _sample(images))
        files = [path for path in map(file_of, images) if path is not None]
        if len(images) and len(files) == len(images):
            paths = [os.fspath(path) for path in files]
            # The common prefix of the first and the last in sorted order is that of all.
            folder = os.path.commonpath([os.path.dirname(min(paths)), os.path.dirname(max(paths))])
            start = len(folder) + 1 if folder else 0
            sample = _sample(files)
            for begin in range(0, len(paths), AT_ONCE):
                digest.update(b"".join(_encoded(path[start:]) for path in paths[begin : begin + AT_ONCE]))
            for place, image in enumerate(images):
                if isinstance(image, CroppedFile):
                    digest.update(f"{place} {image.box}\0".encode())
    return SplitFingerprint(len(images), digest.hexdigest(), sample)


def _sample(images: Sequence[Path] | RowImages) -> str:
    """A hash over the sizes of some images and the first bytes of fewer, evenly spaced."""
    digest = hashlib.blake2b(digest_size=16)
    for place in _spaced(len(images), MEASURED):
        with suppress(OSError, ValueError):  # an unreadable image contributes nothing
            digest.update(b"%d %d\0" % (place, _size(images[place])))
    for place in _spaced(len(images), SAMPLED):
        with suppress(OSError, ValueError), open_bytes(images[place]) as file:
            digest.update(b"%d " % place + file.read(SAMPLED_BYTES))
    return digest.hexdigest()


def _size(image: ImageSource) -> int:
    """In bytes."""
    if isinstance(image, Path):
        return os.stat(image).st_size
    with open_bytes(image) as file:
        return file.seek(0, os.SEEK_END)


def _spaced(count: int, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, wanted).round().astype(int))


def _of_index(index: Index) -> bytes:
    """Content of an index without modification times, which a copy does not keep."""
    about = {name: index.about[name] for name in ("labels", "counts", "cameras", "pictures")}
    archives = [[name, size] for name, (size, _) in index.about["archives"].items()]
    return json.dumps([about, archives, index.digest], sort_keys=True).encode("utf-8", "surrogatepass")


def _encoded(name: str) -> bytes:
    return composed(name.replace(os.sep, "/")).encode("utf-8", "surrogateescape") + b"\0"
