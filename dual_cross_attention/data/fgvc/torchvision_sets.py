"""Stanford Cars and FGVC-Aircraft, read (and the second downloaded) by torchvision."""

from pathlib import Path

from torchvision.datasets import FGVCAircraft, StanfordCars, VisionDataset

from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.folders import holding_folder, what_is_in
from dual_cross_attention.data.pictures import PictureList
from dual_cross_attention.errors import InputError

CARS_LAYOUT = (
    "stanford_cars/ with cars_train/, cars_test/, cars_test_annos_withlabels.mat and devkit/ (cars_meta.mat, "
    "cars_train_annos.mat)"
)
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
    try:
        train, test = (StanfordCars(root, split, loader=Path) for split in ("train", "test"))
    except Exception as error:  # torchvision's RuntimeError, and whatever SciPy raises on a damaged .mat file
        raise InputError(
            f"cars: expected {CARS_LAYOUT} at {data_root}, but {what_is_in(data_root)} ({_reason(error)}); "
            f"get it from {CARS_SOURCE}"
        ) from error
    return FineGrainedData("cars", [f"{name}" for name in train.classes], _listed(train), _listed(test))


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
    try:
        train, test = (FGVCAircraft(root, split, loader=Path) for split in ("trainval", "test"))
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # the last two: a malformed line, an unknown variant
        raise InputError(
            f"aircraft: expected {AIRCRAFT_LAYOUT} at {data_root}, but {what_is_in(data_root)} ({_reason(error)}); "
            f"get it from {AIRCRAFT_SOURCE}"
        ) from error
    return FineGrainedData("aircraft", list(train.classes), _listed(train), _listed(test))


def _listed(data_set: VisionDataset) -> PictureList:
    items = [data_set[i] for i in range(len(data_set))]  # paths, not pictures: the loader is `Path`
    return PictureList([path for path, _ in items], [int(label) for _, label in items])


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
