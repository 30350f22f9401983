"""Market-1501 and DukeMTMC-reID from small trees, broken in every way, and the real Market-1501."""

import os
from pathlib import Path

import pytest

from dual_cross_attention.data import read_image
from dual_cross_attention.data.reid import load_reid, market1501
from dual_cross_attention.data.reid.release import Counts
from tests.helpers import any_says, assert_lines, assert_says

MARKET_PAGE = "https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html"
MARKET = {
    "bounding_box_train": ["0007_c2s1_000100_01", "0002_c1s1_000451_03", "0002_c3s1_000100_00", "0011_c6s3_000000_02"],
    "query": ["0001_c1s1_001051_00", "0005_c2s1_000301_00"],
    "bounding_box_test": [
        "-1_c1s1_000401_03",
        "-1_c6s4_000401_03",
        "0000_c1s1_000151_01",
        "0000_c4s6_000151_01",
        "0001_c2s1_000301_00",
        "0003_c2s1_000301_00",
        "0005_c1s1_001051_00",
    ],
}
DUKE = {
    "bounding_box_train": ["0015_c8_f0100000", "0001_c2_f0046182", "0001_c1_f0046182"],
    "query": ["0005_c2_f0046985"],
    "bounding_box_test": ["0002_c1_f0044158", "0005_c1_f0046985", "6789_c7_f0046985"],
}


def tree(root: Path, folders: dict[str, list[str]]) -> Path:
    for folder, names in folders.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / f"{name}.jpg").touch()
    return root


@pytest.fixture
def market(tmp_path) -> Path:
    return tree(tmp_path / "Market-1501-v15.09.15", MARKET)


@pytest.fixture
def duke(tmp_path) -> Path:
    return tree(tmp_path / "DukeMTMC-reID", DUKE)


def names(images) -> list[str]:
    return [path.stem for path in images.images]


def test_market1501(market):
    data = load_reid("market1501", market)
    assert (data.name, data.identities) == ("market1501", ["0002", "0007", "0011"])
    assert names(data.train) == sorted(MARKET["bounding_box_train"])
    assert (data.train.identities, data.train.cameras) == ([0, 0, 1, 2], [1, 3, 2, 6])
    assert names(data.query) == MARKET["query"]
    assert (data.query.identities, data.query.cameras) == ([1, 5], [1, 2])
    assert names(data.gallery) == MARKET["bounding_box_test"][2:]
    assert (data.gallery.identities, data.gallery.cameras) == ([0, 0, 1, 3, 5], [1, 4, 2, 2, 1])
    assert data.gallery.images[0] == market / "bounding_box_test" / "0000_c1s1_000151_01.jpg"


def test_dukemtmc(duke):
    data = load_reid("dukemtmc", duke)
    assert (data.name, data.identities) == ("dukemtmc", ["0001", "0015"])
    assert names(data.train) == ["0001_c1_f0046182", "0001_c2_f0046182", "0015_c8_f0100000"]
    assert (data.train.identities, data.train.cameras) == ([0, 0, 1], [1, 2, 8])
    assert (data.query.identities, data.query.cameras) == ([5], [2])
    assert (data.gallery.identities, data.gallery.cameras) == ([2, 5, 6789], [1, 1, 7])
    assert_lines(
        data.warnings,
        ("dukemtmc", "3 of 16,522 training images", "(2 of 702 identities)", "16,519 are missing"),
        ("dukemtmc", "1 of 2,228 query images", "(1 of 702 identities)", "2,227 are missing"),
        ("dukemtmc", "3 of 17,661 gallery images", "(3 of 1,110 identities)", "17,658 are missing"),
    )


@pytest.mark.parametrize("name", ["market1501", "dukemtmc"])
def test_the_folder_that_holds_it(market, duke, name):
    own = {"market1501": market, "dukemtmc": duke}[name]
    assert load_reid(name, own.parent) == load_reid(name, own) == load_reid(name, f"{own}/")


def test_junk_and_missing_images_are_counted(market):
    assert_lines(
        load_reid("market1501", market).warnings,
        ("market1501", market / "bounding_box_test", "2 junk images", "-1", "left out"),
        ("market1501", "4 of 12,936 training images", "(3 of 751 identities)", "12,932 are missing"),
        ("market1501", "2 of 3,368 query images", "(2 of 750 identities)", "3,366 are missing"),
        ("market1501", "5 of 15,913 gallery images", "(3 of 750 identities)", "15,908 are missing"),
    )


def test_counts_as_released_or_not(market, monkeypatch):
    def warnings(**counts):
        counts = {"training": Counts(4, 3), "query": Counts(2, 2), "gallery": Counts(5, 3)} | counts
        monkeypatch.setattr(market1501, "MARKET1501", market1501.MARKET1501._replace(counts=counts))
        return load_reid("market1501", market).warnings[1:]

    assert warnings() == []
    (few,) = warnings(query=Counts(1, 2))
    assert_says(few, "market1501: 2 of 1 query images (2 of 2 identities)", "1 more")
    (others,) = warnings(training=Counts(4, 5))
    assert_says(others, "market1501: 4 of 4 training images (3 of 5 identities)", "other identities")


def test_distractors_and_junk_are_no_queries_and_no_training_identities(market):
    expected = load_reid("market1501", market)
    for folder in ("bounding_box_train", "query"):
        for name in ("0000_c1s1_000001_00", "-1_c1s1_000001_00"):
            (market / folder / f"{name}.jpg").touch()
    data = load_reid("market1501", market)
    assert (data.identities, data.train, data.query) == (expected.identities, expected.train, expected.query)
    assert any_says(data.warnings, f"market1501: {market / 'query'}: 2 junk images", "-1 or 0000", "left out")


@pytest.mark.parametrize("name", ["market1501", "dukemtmc"])
def test_other_numbers_of_digits(tmp_path, name):
    """More cameras, sequences and frames than the original has; junk and distractors in any number of digits."""
    middle = {"market1501": "s{}_{}_00", "dukemtmc": "_f{}{}"}[name]
    files = {
        "bounding_box_train": ["00002_c12" + middle.format(1, "000451"), "15_C1" + middle.format(12, "00000451")],
        "query": ["0001_c10" + middle.format(1, "000001"), "00000_c1" + middle.format(1, "7")],
        "bounding_box_test": [
            *("00001_c2" + middle.format(123, "1"), "0001_c110" + middle.format(1, "0001051")),
            *("-1_c12" + middle.format(1, "1"), "-01_c1" + middle.format(1, "1"), "00000_c9" + middle.format(3, "1")),
        ],
    }
    data = load_reid(name, tree(tmp_path, files))
    assert (data.identities, data.train.cameras) == (["00002", "15"], [12, 1])
    assert (data.query.identities, data.query.cameras) == ([1], [10])
    assert (data.gallery.identities, data.gallery.cameras) == ([0, 1, 1], [9, 2, 110])
    assert any_says(data.warnings, f"{name}: {tmp_path / 'bounding_box_test'}: 2 junk images", "-1", "left out")
    assert not any("their names lack" in warning for warning in data.warnings)


def test_without_training_images(market, refused):
    expected = load_reid("market1501", market)
    (market / "bounding_box_train").rename(market / "elsewhere")
    data = load_reid("market1501", market, train=False)
    assert (data.train, data.identities) == (None, [])
    assert (data.query, data.gallery) == (expected.query, expected.gallery)
    assert not any("training images" in warning for warning in data.warnings)
    with refused(market / "bounding_box_train", "does not exist", MARKET_PAGE):
        load_reid("market1501", market)


def test_other_names(market, refused):
    expected = load_reid("market1501", market)
    (market / "query" / "Thumbs.db").touch()
    (market / "query" / ".0001_c1s1_001051_00.jpg").touch()
    assert load_reid("market1501", market) == expected
    for name in ("copy of 0001_c1s1_001051_00.jpg", "0005_c2_f0046985.jpg"):
        (market / "query" / name).touch()
    data = load_reid("market1501", market)
    assert (data.query, len(data.warnings)) == (expected.query, len(expected.warnings) + 1)
    assert any_says(data.warnings, f"market1501: {market / 'query'}: 2 of 4 images", "left out", "0005_c2_f0046985.jpg")
    for file in (market / "query").glob("*_c?s*"):
        file.unlink()
    with refused("market1501", market / "query", "none of the 1", "0002_c1s1_000451_03.jpg", "0005_c2_f0046985.jpg"):
        load_reid("market1501", market)


@pytest.mark.parametrize("folder", [*MARKET])
def test_empty_folder(market, refused, folder):
    for file in (market / folder).iterdir():
        file.unlink()
    with refused("market1501", market / folder, ".jpg", "it is empty", MARKET_PAGE):
        load_reid("market1501", market)


@pytest.mark.parametrize("folder", ["query", "bounding_box_test"])
def test_missing_folder(market, refused, folder):
    (market / folder).rename(market / "other")
    for train in (True, False):
        with refused("market1501", folder, MARKET_PAGE):
            load_reid("market1501", market, train=train)


def test_nothing_but_junk(market, refused):
    for file in (market / "bounding_box_test").glob("0*"):
        file.unlink()
    with refused("market1501", "gallery split", "empty"):
        load_reid("market1501", market)


def test_another_data_set(duke, refused):
    with refused("market1501", "Market-1501-v15.09.15/ with bounding_box_train/", duke.parent, "DukeMTMC-reID/"):
        load_reid("market1501", duke.parent)
    with refused("market1501", "0001_c1_f0046182.jpg", "0002_c1s1_000451_03.jpg"):
        load_reid("market1501", duke)


SHARED = Path(os.environ.get("DCAL_SHARED") or Path(__file__).parents[4] / "shared")


@pytest.mark.skipif(not (SHARED / "data" / "Market-1501-v15.09.15").is_dir(), reason="the real images are not here")
def test_real_people():
    data = load_reid("market1501", SHARED / "data")
    assert (len(data.identities), len(data.train), len(data.query), len(data.gallery)) == (501, 8642, 1076, 3218)
    assert data.identities[0] == "0002"
    assert_lines(
        data.warnings[:3],
        ("market1501", "8,642 of 12,936 training images", "(501 of 751 identities)", "4,294 are missing"),
        ("market1501", "1,076 of 3,368 query images", "(250 of 750 identities)", "2,292 are missing"),
        ("market1501", "3,218 of 15,913 gallery images", "(246 of 750 identities)", "12,695 are missing"),
    )
    assert [warning.split()[:4] for warning in data.warnings[3:]] == [["21", "of", "1076", "queries"]]
    named = [data.identities[label] for label in data.train.identities]
    assert [path.name[:4] for path in data.train.images] == named
    for images in (data.query, data.gallery):
        assert [int(path.name[:4]) for path in images.images] == images.identities
        assert [int(path.name[6]) for path in images.images] == images.cameras
        assert set(images.cameras) == set(range(1, 7))
        assert read_image(images.images[-1]).size == (64, 128)
