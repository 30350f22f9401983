"""Stanford Cars and FGVC-Aircraft, read (and the second downloaded) by torchvision."""

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
    _check_aircraft(data)
    try:
        train, test = (FGVCAircraft(root, split, loader=Path) for split in ("trainval", "test"))
    except Exception as error:  # torchvision's RuntimeError, and whatever else a file that is not as it should be does
        raise InputError(
            f"aircraft: expected {AIRCRAFT_LAYOUT} at {data_root}, but {what_is_in(data_root)} ({_reason(error)}); "
            f"get it from {AIRCRAFT_SOURCE}"
        ) from error
    lists = [f"aircraft: {data / _aircraft_list(split)}" for split in ("trainval", "test")]
    splits = [_listed(data_set, data, where) for data_set, where in zip((train, test), lists, strict=True)]
    return FineGrainedData("aircraft", list(train.classes), *splits)


def _aircraft_list(split: str) -> str:
    return f"images_variant_{split}.txt"


def _check_aircraft(data: Path) -> None:
    """torchvision takes the lists as they are; here a wrong line is refused with its number. Missing: it says so."""
    try:
        variants = read_text(data / "variants.txt", "aircraft").rstrip().split("\n")
        lists = {split: read_text(data / _aircraft_list(split), "aircraft").rstrip() for split in ("trainval", "test")}
    except FileNotFoundError:
        return
    known: set[str] = set()
    for number, line in enumerate(variants, start=1):
        where = f"aircraft: {data / 'variants.txt'}, line {number}"
        name = line.strip()
        if not name or name in known:
            raise InputError(f"{where}: expected the name of another variant, got {line!r:.200}")
        known.add(name)
    for split, text in lists.items():
        seen: set[str] = set()
        for number, line in enumerate(text.split("\n") if text else [], start=1):
            where = f"aircraft: {data / _aircraft_list(split)}, line {number}"
            picture, _, variant = line.strip().partition(" ")
            if variant not in known:
                raise InputError(
                    f'{where}: expected "picture variant" with a variant of variants.txt, got {line!r:.200}'
                )
            if picture in seen:
                raise InputError(f"{where}: expected each picture once, but {printable(picture)} is listed again")
            inside(data / "images", f"{picture}.jpg", where)
            seen.add(picture)


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
