"""Stanford Cars and FGVC-Aircraft from small trees, in both forms of data_root."""

import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from scipy.io import savemat

from dual_cross_attention.data import load_fgvc, read_image

MODELS = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi TT RS Coupe 2012"]
VARIANTS = ["707-320", "Boeing 717", "F/A-18"]


def annotations(labels: list[int]) -> dict[str, np.ndarray]:
    rows = [(f"{i:05}.jpg", np.uint8(label)) for i, label in enumerate(labels)]
    return {"annotations": np.array(rows, dtype=[("fname", object), ("class", object)])}


@pytest.fixture
def cars(tmp_path, write_image) -> Path:
    root = tmp_path / "stanford_cars"
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array(MODELS, dtype=object)})
    savemat(root / "devkit" / "cars_train_annos.mat", annotations([3, 1, 2, 1]))
    savemat(root / "cars_test_annos_withlabels.mat", annotations([2, 3]))
    for split, count in (("cars_train", 4), ("cars_test", 2)):
        for i in range(count):
            write_image(root / split / f"{i:05}.jpg")
    return root


@pytest.fixture
def aircraft(tmp_path, write_image) -> Path:
    root = tmp_path / "fgvc-aircraft-2013b"
    names = [f"{i:07}" for i in range(5)]
    for name in names:
        write_image(root / "data" / "images" / f"{name}.jpg")
    (root / "data" / "variants.txt").write_text("\n".join(VARIANTS) + "\n")
    (root / "data" / "images_variant_trainval.txt").write_text("0000000 F/A-18\n0000001 707-320\n0000002 Boeing 717\n")
    (root / "data" / "images_variant_test.txt").write_text("0000003 Boeing 717\n0000004 707-320\n")
    return root


def test_cars(cars):
    for data_root in (cars, cars.parent):
        data = load_fgvc("cars", data_root)
        assert (data.name, data.classes) == ("cars", MODELS)
        assert (data.train.labels, data.test.labels) == ([2, 0, 1, 0], [1, 2])
        assert all(type(label) is int for label in data.train.labels)
        assert [path.name for path in data.train.images] == ["00000.jpg", "00001.jpg", "00002.jpg", "00003.jpg"]
        assert read_image(data.test.images[1]).size == (10, 8)


def test_aircraft(aircraft):
    for data_root in (aircraft, aircraft.parent):
        data = load_fgvc("aircraft", data_root)
        assert (data.name, data.classes) == ("aircraft", VARIANTS)
        assert (data.train.labels, data.test.labels) == ([2, 0, 1], [1, 0])
        assert [path.name for path in data.test.images] == ["0000003.jpg", "0000004.jpg"]
        assert read_image(data.train.images[0]).size == (10, 8)


def test_from_inside_the_folder_and_through_a_link(cars, aircraft, tmp_path, monkeypatch):
    (tmp_path / "planes").symlink_to(aircraft)
    assert load_fgvc("aircraft", tmp_path / "planes").classes == VARIANTS
    monkeypatch.chdir(cars)
    assert load_fgvc("cars", ".").classes == MODELS


def test_other_layouts_are_refused(tmp_path, cars, aircraft, refused):
    (tmp_path / "elsewhere" / "pictures").mkdir(parents=True)
    issue = "https://github.com/pytorch/vision/issues/7545"
    page = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
    with refused("cars_test_annos_withlabels.mat", tmp_path / "elsewhere", "pictures/", issue):
        load_fgvc("cars", tmp_path / "elsewhere")
    with refused("fgvc-aircraft-2013b/", "data/", tmp_path / "elsewhere", "images/", page):
        load_fgvc("aircraft", tmp_path / "elsewhere")
    (cars / "cars_test_annos_withlabels.mat").unlink()
    with refused("cars_test_annos_withlabels.mat"):
        load_fgvc("cars", cars)
    (aircraft / "data" / "images_variant_test.txt").unlink()
    with refused("images_variant_test.txt", page):
        load_fgvc("aircraft", aircraft)


def test_damaged_annotations_are_refused(cars, aircraft, refused):
    (cars / "devkit" / "cars_train_annos.mat").write_bytes(b"not a mat file")
    with refused("cars: expected"):
        load_fgvc("cars", cars)
    for line in ("0000003 Concorde", "0000003"):
        (aircraft / "data" / "images_variant_test.txt").write_text(f"{line}\n")
        with refused("aircraft: ", "images_variant_test.txt, line 1: expected", "got '0000003"):
            load_fgvc("aircraft", aircraft)


def test_label_without_a_class_and_empty_split(cars, aircraft, refused):
    savemat(cars / "cars_test_annos_withlabels.mat", annotations([2, 4]))
    with refused("cars", "from 0 to 2", "test split", "from 1 to 3"):
        load_fgvc("cars", cars)
    (aircraft / "data" / "images_variant_test.txt").write_text("")
    with refused("aircraft", "test split is empty"):
        load_fgvc("aircraft", aircraft)


def test_download_of_aircraft(aircraft, tmp_path, refused, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    assert load_fgvc("aircraft", aircraft, download=True).classes == VARIANTS  # it is there: nothing to fetch
    with refused("aircraft", "download", tmp_path / "new", "no network"):
        load_fgvc("aircraft", tmp_path / "new", download=True)


def test_images_that_are_not_listed_are_counted(cars, aircraft, write_image):
    write_image(cars / "cars_test" / "more.jpg")
    (warning,) = load_fgvc("cars", cars).warnings
    assert "1 image is left out" in warning and "cars_test_annos_withlabels.mat" in warning
    write_image(aircraft / "data" / "images" / "more.jpg")
    (warning,) = load_fgvc("aircraft", aircraft).warnings
    assert "1 image is left out" in warning and "images_variant_test.txt" in warning
