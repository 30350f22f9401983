"""What a fine-grained data set is, and finding its folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from dual_cross_attention.data.pictures import PictureList
from dual_cross_attention.errors import InputError


@dataclass(frozen=True)
class FineGrainedData:
    """A data set for classification: its class names, and labelled pictures to train and to test on.

    Raises:
        InputError: fewer than two classes, a split without pictures, or a label without a class.
    """

    name: str
    classes: list[str]
    train: PictureList
    test: PictureList

    def __post_init__(self):
        if len(self.classes) < 2:
            raise InputError(f"{self.name}: expected at least two classes, found {len(self.classes)}: {self.classes}")
        for split, pictures in (("training", self.train), ("test", self.test)):
            if not len(pictures):
                raise InputError(f"{self.name}: expected pictures in both splits, but the {split} split is empty")
            if min(pictures.labels) < 0 or max(pictures.labels) >= len(self.classes):
                raise InputError(
                    f"{self.name}: expected labels from 0 to {len(self.classes) - 1}, one for each class, but those of "
                    f"the {split} split go from {min(pictures.labels)} to {max(pictures.labels)}"
                )


def own_folder(data_root: Path, name: str, marker: str) -> Path | None:
    """The folder that has `marker` (a path in it): `data_root` itself or its subfolder `name`; None if neither does."""
    for folder in (data_root, data_root / name):
        if (folder / marker).exists():
            return folder
    return None


def holding_folder(data_root: Path, name: str) -> Path:
    """The folder that holds the folder `name`, where `data_root` is either of the two."""
    absolute = Path(os.path.abspath(data_root))  # "." has a name then
    for folder in (absolute, absolute.resolve()):
        if folder.name == name:
            return folder.parent
    return data_root


def what_is_in(folder: Path, shown: int = 6) -> str:
    """What a folder holds, in a few words, for an error message."""
    if not folder.exists():
        return "it does not exist"
    if not folder.is_dir():
        return "it is not a folder"
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in folder.iterdir())
    if not names:
        return "it is empty"
    return f"it holds {', '.join(names[:shown])}{f' and {len(names) - shown} more' if len(names) > shown else ''}"
