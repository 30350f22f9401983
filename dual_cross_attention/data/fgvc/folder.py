"""A user's own pictures: one folder per class."""

from pathlib import Path

from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.folders import EXTENSIONS, picture_files, what_is_in
from dual_cross_attention.data.pictures import PictureList
from dual_cross_attention.errors import InputError

LAYOUT = "train/CLASS/*.jpg and val/CLASS/*.jpg (test/ will do in place of val/)"
SOURCE = "pictures of your own, sorted into one folder per class"


def load_folder(data_root: Path) -> FineGrainedData:
    """Classes are the folders in train/, sorted by name, and so are the pictures of each.

    Args:
        data_root: the folder that holds train/ and val/ (or test/).

    Raises:
        InputError: a folder is missing, a class of train/ is without pictures, or val/ has a class that train/ has not.
    """
    train = data_root / "train"
    test = data_root / "val" if (data_root / "val").is_dir() else data_root / "test"
    if not (train.is_dir() and test.is_dir()):
        raise InputError(f"folder: expected {LAYOUT} in {data_root}, but {what_is_in(data_root)}")
    classes = _class_names(train)
    unknown = [name for name in _class_names(test) if name not in classes]
    if unknown:
        raise InputError(f"folder: {test} has the class {unknown[0]!r}, but {train} has not; it has {_few(classes)}")
    train_list = _listed(train, classes)
    seen = set(train_list.labels)
    for label, name in enumerate(classes):
        if label not in seen:
            raise InputError(
                f"folder: expected pictures ({', '.join(sorted(EXTENSIONS))}) in {train / name}, but "
                f"{what_is_in(train / name)}"
            )
    return FineGrainedData("folder", classes, train_list, _listed(test, classes))


def _class_names(split: Path) -> list[str]:
    return sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _listed(split: Path, classes: list[str]) -> PictureList:
    found = [
        (path, label)
        for label, name in enumerate(classes)
        if (split / name).is_dir()
        for path in picture_files(split / name)
    ]
    return PictureList([path for path, _ in found], [label for _, label in found])


def _few(names: list[str], shown: int = 10) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
