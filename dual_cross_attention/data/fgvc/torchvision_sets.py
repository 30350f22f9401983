"""Stanford Cars and FGVC-Aircraft, laid out as torchvision has them."""

from pathlib import Path

import numpy as np
from scipy.io import loadmat

from dual_cross_attention.data.download import Archive
from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.folders import holding_folder, inner_folder_lines, own_folder, undoubled, what_is_in
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.listing import not_listed_warnings
from dual_cross_attention.data.names import composed
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape
from dual_cross_attention.untrusted_files import inside, open_regular, read_text

CARS, AIRCRAFT = "stanford_cars", "fgvc-aircraft-2013b"
CARS_LAYOUT = (
    "stanford_cars/ with cars_train/, cars_test/, cars_test_annos_withlabels.mat and devkit/ (cars_meta.mat, "
    "cars_train_annos.mat)"
)
CARS_TRAIN, CARS_TEST = "cars_train_annos.mat", "cars_test_annos_withlabels.mat"
CARS_META = "cars_meta.mat"
CARS_SOURCE = "a copy (the official page is gone): https://github.com/pytorch/vision/issues/7545 tells where and how"
AIRCRAFT_LAYOUT = (
    "fgvc-aircraft-2013b/ with data/ (variants.txt, images_variant_trainval.txt, images_variant_test.txt, images/)"
)
AIRCRAFT_SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/ or by dcal download aircraft (2.75 GB)"
AIRCRAFT_ARCHIVE = Archive(
    "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
    "d4acdd33327262359767eeaa97a4f732",
    2_753_340_328,
    AIRCRAFT,
    ("data/images", "data/variants.txt", "data/images_variant_trainval.txt", "data/images_variant_test.txt"),
)


def find_cars(folder: Path) -> Path | None:
    """Finds the folder stanford_cars in or below a folder; None if it does not exist."""
    return _cars_folder(folder, wrapped=False)


def find_aircraft(folder: Path) -> Path | None:
    """Finds the folder fgvc-aircraft-2013b in or below a folder; None if it does not exist."""
    return own_folder(folder, AIRCRAFT, "data/variants.txt", wrapped=False)


def _cars_folder(folder: Path, wrapped: bool) -> Path | None:
    found = (own_folder(folder, CARS, f"{devkit}/{CARS_META}", wrapped) for devkit in ("devkit", "devkit/devkit"))
    return next(filter(None, found), None)


def load_cars(data_root: Path) -> FineGrainedData:
    """196 models of cars, 8,144 training and 8,041 test images.

    Args:
        data_root: the folder stanford_cars, or the one that holds it. The annotations of the test images may be in it
            or in devkit/; cars_train/cars_train and the like are accepted as cars_train.

    Raises:
        InputError: the layout is another one, or its files cannot be read.
    """
    home = _cars_folder(data_root, wrapped=True) or holding_folder(data_root, CARS) / CARS
    devkit = undoubled(home / "devkit")
    test = next((path for path in (home / CARS_TEST, devkit / CARS_TEST) if path.exists()), home / CARS_TEST)
    try:
        classes = [f"{name}" for name in _read_mat(devkit / CARS_META, "class_names")]
        rows = {"train": devkit / CARS_TRAIN, "test": test}
        annotations = {split: _annotations(path) for split, path in rows.items()}
    except InputError:
        raise
    except Exception as error:  # a missing file, and any exception of SciPy on a damaged .mat file
        raise InputError(
            f"cars: expected {CARS_LAYOUT} at {data_root}, but {what_is_in(data_root)} ({_reason(error)}); "
            f"get it from {CARS_SOURCE}"
        ) from error
    warnings = inner_folder_lines("cars", home, data_root, data_root / CARS, holding_folder(data_root, CARS) / CARS)
    warnings += inner_folder_lines("cars", devkit, home / "devkit")
    splits = []
    for split, path in rows.items():
        folder = undoubled(home / f"cars_{split}")
        warnings += inner_folder_lines("cars", folder, home / f"cars_{split}")
        images = [inside(folder, name, f"cars: {path.name}") for name, _ in annotations[split]]
        splits.append(ImageList(images, [number - 1 for _, number in annotations[split]]))
        if folder.is_dir():
            warnings += not_listed_warnings("cars", folder, images, path.name)
    return FineGrainedData("cars", [composed(name) for name in classes], *splits, warnings)


def _annotations(path: Path) -> list[tuple[str, int]]:
    """Returns file names with class numbers from 1."""
    return [(f"{row['fname']}", int(row["class"])) for row in _read_mat(path, "annotations")]


def _read_mat(path: Path, name: str) -> np.ndarray:
    """Reads a variable of a MATLAB file as an array (rows,).

    Raises:
        InputError: it is no regular file, or it cannot be read.
        Exception: it does not exist, is damaged, or has no such variable.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"cars: cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    with file:
        return np.atleast_1d(loadmat(file, squeeze_me=True)[name])


def load_aircraft(data_root: Path) -> FineGrainedData:
    """100 variants of aircraft; training is the official "trainval", 6,667 images, and test has 3,333.

    Args:
        data_root: the folder fgvc-aircraft-2013b, or the one that holds it.

    Raises:
        InputError: the layout is another one, or its files cannot be read.
    """
    home = own_folder(data_root, AIRCRAFT, "data/variants.txt")
    data = (home or holding_folder(data_root, AIRCRAFT) / AIRCRAFT) / "data"
    images = undoubled(data / "images")
    try:
        # Not by torchvision, which accepts malformed lines and reads a byte order mark as part of the first name.
        classes = _variants(data / "variants.txt")
        train, test = (_aircraft(data, images, split, classes) for split in ("trainval", "test"))
    except FileNotFoundError as error:
        raise InputError(
            f"aircraft: expected {AIRCRAFT_LAYOUT} at {data_root}, but {what_is_in(data_root)} ({error.filename} does "
            f"not exist); get it from {AIRCRAFT_SOURCE}"
        ) from error
    lists = "images_variant_trainval.txt or images_variant_test.txt"
    listed = [*train.images, *test.images]
    warnings = inner_folder_lines("aircraft", home, data_root, data_root / AIRCRAFT) if home else []
    warnings += inner_folder_lines("aircraft", images, data / "images")
    if images.is_dir():
        warnings += not_listed_warnings("aircraft", images, listed, lists)
    return FineGrainedData("aircraft", classes, train, test, warnings)


def _variants(path: Path) -> list[str]:
    names: list[str] = []
    for number, line in enumerate(read_text(path, "aircraft").rstrip().split("\n"), start=1):
        name = composed(line.strip())
        if not name or name in names:
            raise InputError(
                f"aircraft: {path}, line {number}: expected the name of another variant, got {line!r:.200}"
            )
        names.append(name)
    return names


def _aircraft(data: Path, images: Path, split: str, classes: list[str]) -> ImageList:
    """Lines are "image variant", of images in images/ without their .jpg; variants have spaces."""
    path = data / f"images_variant_{split}.txt"
    index = {name: label for label, name in enumerate(classes)}
    labels: dict[Path, int] = {}
    text = read_text(path, "aircraft").rstrip()
    for number, line in enumerate(text.split("\n") if text else [], start=1):
        where = f"aircraft: {path}, line {number}"
        name, _, variant = line.strip().partition(" ")
        if (variant := composed(variant)) not in index:
            raise InputError(f'{where}: expected "image variant" with a variant of variants.txt, got {line!r:.200}')
        image = inside(images, f"{name}.jpg", where)
        if image in labels:
            raise InputError(f"{where}: expected each image once, but {escape(name)} is listed again")
        labels[image] = index[variant]
    return ImageList(list(labels), list(labels.values()))


def _reason(error: Exception) -> str:
    return escape(" ".join(f"{type(error).__name__}: {error}".split()))
