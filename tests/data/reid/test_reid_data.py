"""What a re-identification dataset must be, and finding one by its name."""

import pytest
from PIL import Image

from dual_cross_attention.data.reid import REID_DATASETS, IdentityList, ReIDData, load_reid
from tests.helpers import assert_says


def images(*seen: tuple[int, int]) -> IdentityList:
    """An image for each (identity, camera)."""
    return IdentityList([Image.new("RGB", (4, 8)) for _ in seen], [i for i, _ in seen], [c for _, c in seen])


TRAIN, QUERY, GALLERY = images((0, 1), (1, 2)), images((5, 1), (6, 1)), images((5, 2), (6, 3), (0, 1))


def data(train=TRAIN, query=QUERY, gallery=GALLERY, identities=("a", "b")) -> ReIDData:
    return ReIDData("crowd", list(identities), train, query, gallery)


def test_data_that_can_be_used():
    assert data().warnings == []
    assert data(None, identities=()).train is None
    assert len(data().gallery) == 3


def test_an_identity_and_a_camera_for_each_image():
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        IdentityList(QUERY.images[:1], [0, 1], [1])


@pytest.mark.parametrize(
    ("name", "split"), [("train", "the training split"), ("query", "the query split"), ("gallery", "the gallery split")]
)
def test_empty_split(refused, name, split):
    with refused("crowd", f"{split} is empty"):
        data(**{name: images()})


def test_training_labels(refused):
    for labels in ((0, 2), (1, 2), (0, 0)):
        with refused("crowd", "labels from 0 to 1"):
            data(images(*((label, 1) for label in labels)))
    with refused("crowd", "at least two", "training identities", "a"):
        data(images((0, 1), (0, 2)), identities="a")


def test_queries_under_one_camera_only(refused):
    """Identity 5 is in the gallery under camera 1 alone, which is the query's, and 7 is not there at all."""
    (line,) = data(gallery=images((5, 1), (6, 3))).warnings
    assert_says(line, "1 of 2 queries", "number 0", "another camera")
    assert [text[:14] for text in data(query=images((5, 1), (7, 1), (5, 2))).warnings] == ["2 of 3 queries"]
    with refused("crowd", "none of the 2 queries", "number 0", "identity 5", "camera 1"):
        data(gallery=images((5, 1), (6, 1)))


def test_names():
    assert [*REID_DATASETS] == ["toy", "market1501", "dukemtmc", "msmt17", "veri776", "folder", "shards"]
    for entry in REID_DATASETS.values():
        assert entry.description
        assert entry.no_download
        assert bool(entry.layout) == bool(entry.source)


def test_toy():
    people = load_reid("toy", None, train=False)
    assert (people.train, people.identities) == (None, [])
    assert len(people.query) < len(people.gallery)


@pytest.mark.parametrize("name", ["market1501", "dukemtmc", "msmt17", "veri776", "folder"])
def test_data_root_that_is_not_there(tmp_path, refused, name):
    entry = REID_DATASETS[name]
    with refused(f"{name} needs data_root", entry.layout, entry.source):
        load_reid(name, None)
    with refused(f"{name} needs data_root", tmp_path / "none", "does not exist", entry.source):
        load_reid(name, tmp_path / "none")


def test_unknown_name_and_a_toy_from_disk(tmp_path, refused):
    with refused("unknown dataset 'market'", "did you mean market1501?", "veri776"):
        load_reid("market", tmp_path)
    with refused("toy", "takes no data_root", tmp_path):
        load_reid("toy", tmp_path)
