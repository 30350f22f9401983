"""Stanford Cars, read by torchvision, and FGVC-Aircraft, downloaded by it."""

import os
from pathlib import Path

from torchvision.datasets import FGVCAircraft, StanfordCars, VisionDataset

from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.files import inside, open_regular, read_text
from dual_cross_attention.data.folders import holding_folder, what_is_in
from dual_cross_attention.data.pictures import PictureList
from dual_cross_attention.errors import InputError
from dual_cross_attention.messages import printable

CARS_LAYOUT = (
    "stanford_cars/ with cars_train/, cars_test/, cars_test_annos_withlabels.mat and devkit/ (cars_meta.mat, "
    "cars_train_annos.mat)"
)
CARS_TEST = "cars_test_annos_withlabels.mat"
CARS_SOURCE = "a copy (the official page is gone): https://github.com/pytorch/vision/issues/7545 tells where and how"
AIRCRAFT_LAYOUT = (
    "fgvc-aircraft-2013b/ with data/ (variants.txt, images_variant_trainval.txt, images_variant_test.txt, images/)"
)
AIRCRAFT_SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/ or with download (2.75 GB)"


def load_cars(data_root: Path) -> FineGrainedData:
    """196 models of cars, 8,144 training and 8,041 test pictures.

    Args:
        data_root: the folder stanford_cars, or the one that holds it.

    Raises:
        InputError: the layout is another one, or its files cannot be read.
    """
    root = holding_folder(data_root, "stanford_cars")
    for name in ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", CARS_TEST):
        _check_regular(root / "stanford_cars" / name, "cars")
    try:
        train, test = (StanfordCars(root, split, loader=Path) for split in ("train", "test"))
    except Exception as error:  # torchvision's RuntimeError, and whatever SciPy raises on a damaged .mat file
        raise InputError(
            f"cars: expected {CARS_LAYOUT} at {data_root}, but {what_is_in(data_root)} ({_reason(error)}); "
            f"get it from {CARS_SOURCE}"
        ) from error
    home = root / "stanford_cars"
    splits = _listed(train, home, "cars: cars_train_annos.mat"), _listed(test, home, f"cars: {CARS_TEST}")
    return FineGrainedData("cars", [f"{name}" for name in train.classes], *splits)


def load_aircraft(data_root: Path, download: bool = False) -> FineGrainedData:
    """100 variants of aircraft; training is the official "trainval", 6,667 pictures, and test has 3,333.

    Args:
        data_root: the folder fgvc-aircraft-2013b, or the one that holds it.
        download: fetch it if it is not there.

    Raises:
        InputError: the layout is another one, its files cannot be read, or the download failed.
    """
    root = holding_folder(data_root, "fgvc-aircraft-2013b")
    if download:
        try:
            FGVCAircraft(root, "trainval", loader=Path, download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"aircraft: the download to {root} failed ({_reason(error)}); get it from {AIRCRAFT_SOURCE}"
            ) from error
    data = root / "fgvc-aircraft-2013b" / "data"
    try:
        # Not by torchvision: it takes wrong lines as they are, and a byte order mark for a part of the first name.
        classes = _variants(data / "variants.txt")
        train, test = (_aircraft(data, split, classes) for split in ("trainval", "test"))
    except FileNotFoundError as error:
        raise InputError(
            f"aircraft: expected {AIRCRAFT_LAYOUT} at {data_root}, but {what_is_in(data_root)} ({error.filename} does "
            f"not exist); get it from {AIRCRAFT_SOURCE}"
        ) from error
    return FineGrainedData("aircraft", classes, train, test)


def _variants(path: Path) -> list[str]:
    names: list[str] = []
    for number, line in enumerate(read_text(path, "aircraft").rstrip().split("\n"), start=1):
        name = line.strip()
        if not name or name in names:
            raise InputError(
                f"aircraft: {path}, line {number}: expected the name of another variant, got {line!r:.200}"
            )
        names.append(name)
    return names


def _aircraft(data: Path, split: str, classes: list[str]) -> PictureList:
    """Lines are "picture variant", of pictures in images/ without their .jpg; variants have spaces."""
    path = data / f"images_variant_{split}.txt"
    index = {name: label for label, name in enumerate(classes)}
    labels: dict[Path, int] = {}
    text = read_text(path, "aircraft").rstrip()
    for number, line in enumerate(text.split("\n") if text else [], start=1):
        where = f"aircraft: {path}, line {number}"
        name, _, variant = line.strip().partition(" ")
        if variant not in index:
            raise InputError(f'{where}: expected "picture variant" with a variant of variants.txt, got {line!r:.200}')
        picture = inside(data / "images", f"{name}.jpg", where)
        if picture in labels:
            raise InputError(f"{where}: expected each picture once, but {printable(name)} is listed again")
        labels[picture] = index[variant]
    return PictureList(list(labels), list(labels.values()))


def _check_regular(path: Path, data_set: str) -> None:
    """torchvision would wait for a pipe for ever; that the file is missing it says itself."""
    try:
        open_regular(path).close()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise InputError(f"{data_set}: cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _listed(data_set: VisionDataset, home: Path, where: str) -> PictureList:
    """torchvision's pictures; none of them may be outside of the data set's folder."""
    items = [data_set[i] for i in range(len(data_set))]  # paths, not pictures: the loader is `Path`
    pictures = [inside(Path(os.path.abspath(home)), f"{Path(os.path.abspath(home), path)}", where) for path, _ in items]
    return PictureList(pictures, [int(label) for _, label in items])


def _reason(error: Exception) -> str:
    return printable(" ".join(f"{type(error).__name__}: {error}".split()))
