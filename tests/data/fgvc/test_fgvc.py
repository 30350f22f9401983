"""Choosing a dataset by name, and what a user is told when that cannot work."""

import pytest
from PIL import Image

from dual_cross_attention.data import FGVC_DATASETS, FineGrainedData, ImageList, load_fgvc

ON_DISK = ["cub", "cars", "aircraft", "folder"]  # in a folder of their own


def test_what_exists():
    assert list(FGVC_DATASETS) == ["toy", *ON_DISK, "lists", "csv", "hf", "shards"]
    assert all(dataset.description for dataset in FGVC_DATASETS.values())


@pytest.mark.parametrize(("name", "meant"), [("CUB", "cub"), ("car", "cars"), ("aircrafts", "aircraft")])
def test_unknown_name_lists_what_exists(refused, name, meant):
    with refused(f"'{name}'", f"{meant}?", "toy, cub, cars, aircraft, folder"):
        load_fgvc(name, None)


def test_unknown_name_unlike_any(refused):
    with refused("'xyz'", "toy, cub"):
        load_fgvc("xyz", None)


@pytest.mark.parametrize("name", ON_DISK)
def test_data_root_missing_or_wrong(tmp_path, refused, name):
    dataset = FGVC_DATASETS[name]
    with refused(name, "needs data_root", dataset.layout, dataset.source):
        load_fgvc(name, None)
    with refused(dataset.layout, tmp_path / "none", "does not exist", dataset.source):
        load_fgvc(name, tmp_path / "none")
    (tmp_path / "file").touch()
    with refused(dataset.layout, tmp_path / "file", "not a folder"):
        load_fgvc(name, tmp_path / "file")
    (tmp_path / "nothing").mkdir()
    with refused(dataset.layout, tmp_path / "nothing", "it is empty"):
        load_fgvc(name, tmp_path / "nothing")


@pytest.mark.parametrize("name", ["toy", "cars", "folder", "lists", "csv", "hf"])
def test_no_download_where_there_is_none(tmp_path, refused, name):
    with refused(name, "cannot be downloaded", FGVC_DATASETS[name].no_download):
        load_fgvc(name, None if name == "toy" else tmp_path, download=True)


def test_toy_takes_no_data_root(tmp_path, refused):
    with refused("toy", tmp_path, "cub", "folder"):
        load_fgvc("toy", tmp_path)


def test_home_is_expanded(tmp_path, monkeypatch, write_image):
    monkeypatch.setenv("HOME", f"{tmp_path}")
    for name in ("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg"):
        write_image(tmp_path / "mine" / name)
    assert load_fgvc("folder", "~/mine").classes == ["a", "b"]


def test_data_that_cannot_be_trained_on(refused):
    def images(*labels: int) -> ImageList:
        return ImageList([Image.new("RGB", (2, 2)) for _ in labels], labels)

    FineGrainedData("mine", ["a", "b"], images(0, 1), images(1))
    with refused("mine", "two classes", "found 1"):
        FineGrainedData("mine", ["a"], images(0), images(0))
    with refused("mine", "training split is empty"):
        FineGrainedData("mine", ["a", "b"], images(), images(0))
    with refused("mine", "test split is empty"):
        FineGrainedData("mine", ["a", "b"], images(0), images())
    with refused("mine", "from 0 to 1", "training split", "from 0 to 2"):
        FineGrainedData("mine", ["a", "b"], images(0, 2), images(0))
    with refused("mine", "from 0 to 1", "test split", "from -1 to 1"):
        FineGrainedData("mine", ["a", "b"], images(0, 1), images(-1, 1))
