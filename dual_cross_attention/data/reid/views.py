"""Views of images (front, rear, …) by path, from a CSV file next to a dataset."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from dual_cross_attention.data.crops import file_of
from dual_cross_attention.data.images import ImageSource, open_bytes
from dual_cross_attention.data.names import composed
from dual_cross_attention.data.tables import Titles, read_rows, strip_titles
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

COLUMNS = ("path", "view")
ALSO_CALLED = {
    "path": ("file", "filename", "file_name", "image", "imagename", "image_name", "name"),
    "view": ("viewpoint",),
}
"""Other titles of a column, which are used where the file does not have the first."""

Parts = tuple[str, ...]


class ViewList:
    """Views of images by the end of their paths: a row `image_test/0002.jpg` is of all images whose path ends with it.

    Args:
        path: a CSV file with the columns path (or name) and view. Paths have slashes or backslashes; a file name alone
            will do. A row whose view is empty says that it is unknown.
        notes: lines are added on a separator or an encoding that had to be found.

    Raises:
        InputError: the file cannot be read, names no view, or names two for a path.
    """

    def __init__(self, path: Path, notes: list[str]):
        self.path = path
        self.views: dict[Parts, str] = {}
        self._first: dict[Parts, ImageSource] = {}
        try:
            rows = read_rows(path, COLUMNS[:1], "views", notes, COLUMNS[1:], _rename, any_encoding=True)
        except FileNotFoundError as error:
            raise InputError(
                f"views: expected a CSV file with the columns {','.join(COLUMNS)}, but {escape(path)} does not exist"
            ) from error
        for line, fields in rows:
            parts, view = _parts(fields["path"]), composed(fields["view"])
            if (known := self.views.setdefault(parts, view)) != view:
                raise InputError(
                    f"views: {escape(path)}, line {line}: {escape(fields['path'])} has the view {escape(view)!r}, and "
                    f"{escape(known)!r} in a line before"
                )
        if not any(self.views.values()):
            raise InputError(f"views: {escape(path)} names no view: expected the columns {','.join(COLUMNS)}")
        self._longest = max(map(len, self.views))

    def of(self, images: Sequence[ImageSource]) -> list[str]:
        """The view of each image, "" where it is unknown; of several rows, the one with the longest path.

        Raises:
            InputError: a row is of several images, of this call or an earlier one, that are not copies of one file.
        """
        found = []
        for image in images:
            parts = () if isinstance(image, Image.Image) else _parts(f"{file_of(image) or image}")
            ends = (parts[-length:] for length in range(min(self._longest, len(parts)), 0, -1))
            row = next((end for end in ends if end in self.views), None)
            if row is not None:
                self._check_is_one_file(row, image)
            found.append("" if row is None else self.views[row])
        return found

    @property
    def num_unused(self) -> int:
        """Rows that no image has been found for."""
        return len(self.views) - len(self._first)

    def _check_is_one_file(self, row: Parts, image: ImageSource) -> None:
        first = self._first.setdefault(row, image)
        if first != image and not _same_content(first, image):
            raise InputError(
                f"views: {escape(self.path)}: {escape('/'.join(row))} is the end of the paths of several images, such "
                f"as {escape(file_of(first) or first)} and {escape(file_of(image) or image)}: give more of their paths"
            )


def _same_content(one: ImageSource, other: ImageSource) -> bool:
    """Whether two images are of one file or of copies of it."""
    if file_of(one) is not None and file_of(one) == file_of(other):  # several crops
        return True
    try:
        with open_bytes(one) as first, open_bytes(other) as second:
            return first.read() == second.read()
    except (OSError, ValueError):
        return False


def _parts(path: str) -> Parts:
    return tuple(
        part for part in PurePosixPath(composed(path.replace("\\", "/"))).parts if part not in ("/", ".", "..")
    )


def _rename(titles: Titles) -> Titles:
    titles = strip_titles(titles)
    there = [title.casefold() for title in titles]
    for name, others in ALSO_CALLED.items():
        if name not in there and (found := next((each for each in others if each in there), None)):
            titles[there.index(found)] = name
    return titles
