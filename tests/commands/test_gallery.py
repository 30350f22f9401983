"""`dcal index`, `dcal search` and `dcal identify`, with answers derived again from the features."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dual_cross_attention import load_model
from dual_cross_attention.gallery import GalleryIndex
from dual_cross_attention.inference.model_files import write_calibration
from dual_cross_attention.inference.reid_calibration import CalibratedDistance, ReIDCalibration
from tests.helpers import assert_refused

ON_CPU = ["--device=cpu", "--num_workers=0"]
PEOPLE = ("ann", "bob", "cat", "dan", "eve")
ENROLLED = ("ann", "bob", "cat")


def portrait(person: str, number: int) -> Image.Image:
    """Images of a person differ a little, those of different people much."""
    base = np.random.default_rng(PEOPLE.index(person)).integers(0, 256, (32, 16, 3))
    noise = np.random.default_rng(100 + number).integers(-20, 21, base.shape)
    return Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8))


@pytest.fixture
def photos(tmp_path):
    """known/NAME with three images of each enrolled person; new/ with two more images of everybody; tracks/."""
    for person in PEOPLE:
        for number in range(6):
            folder = f"known/{person}" if number < 3 and person in ENROLLED else "new"
            if number >= 4:
                folder = f"tracks/of {person}"
            path = tmp_path / folder / f"{person}{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if number >= 3 or person in ENROLLED:
                portrait(person, number).save(path)
    return tmp_path


@pytest.fixture
def model(make_model):
    return make_model("reid")


def features(model, paths) -> np.ndarray:
    return load_model(model, device="cpu").embed([*paths]).numpy().astype(np.float64)


def calibrate(model, threshold: float, fpir: float = 0.05) -> None:
    """The threshold for a gallery of 3 identities; for more, it is smaller."""
    branch = CalibratedDistance((threshold, 0.9 * threshold), 4.0, -4 / threshold)
    answers = {"together": branch, "sa": branch, "glca": branch}
    values = ReIDCalibration(answers, (3, 10), "euclidean", fpir, 9, 9, 9, 18, "folder", "00", "2025-01-31")
    write_calibration(model, model, values, None)


@pytest.fixture
def calibrated(model, photos):
    """The model with a threshold between images of the same and of different people."""
    paths = sorted(photos.glob("*/*.png")) + sorted(photos.glob("*/*/*.png"))
    found, people = features(model, paths), [path.name[:3] for path in paths]
    distances = np.linalg.norm(found[:, None] - found, axis=2)
    is_same = np.array(people)[:, None] == np.array(people)
    assert distances[is_same].max() < distances[~is_same].min()
    calibrate(model, (distances[is_same].max() + distances[~is_same].min()) / 2)
    return model


@pytest.fixture
def index(dcal, model, photos):
    assert dcal("index", "build", photos / "index", photos / "known", f"--model={model}", *ON_CPU).status == 0
    return photos / "index"


def test_build_add_remove_info(dcal, model, photos, index):
    info = json.loads(dcal("index", "info", index, "--identities", "--json=-").out)
    assert (info["images"], info["identities"], info["images_by_identity"]["bob"]) == (9, 3, 3)
    assert info["fingerprint"] == load_model(model, device="cpu").fingerprint() and info["distance"] == "euclidean"
    (photos / "new" / "broken.jpg").write_text("no image")
    outcome = dcal("index", "add", index, photos / "new", photos / "known", *ON_CPU)
    assert outcome.status == 1 and "5 added" in outcome.out and "9 unchanged" in outcome.out
    assert "broken.jpg cannot be read" in outcome.out and "have no identity" in outcome.out
    (photos / "new").rename(photos / "later")
    outcome = dcal("index", "add", index, photos / "later", "--identity=zoe", *ON_CPU)
    assert "5 renamed" in outcome.out and "5 reassigned" in outcome.out and "0 added" in outcome.out
    assert dcal("index", "remove", index, photos / "later").out.startswith("5 removed; 9 images")
    assert dcal("index", "remove", index, "--identity=bob").out.startswith("3 removed; 6 images of 2")
    assert "advised" in dcal("index", "info", index).out
    assert "8 unused vectors" in dcal("index", "rebuild", index).out
    assert "not needed" in dcal("index", "info", index).out


def test_a_csv_file(dcal, model, photos):
    rows = [("path", "identity"), ("known/ann/ann0.png", "Ann"), ("known/bob/bob0.png", ""), ("new/missing.png", "x")]
    with (photos / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    outcome = dcal("index", "build", photos / "index", photos / "list.csv", f"--model={model}", *ON_CPU)
    assert outcome.status == 1 and "2 added" in outcome.out and "1 unreadable" in outcome.out
    images = GalleryIndex.open(photos / "index").images()
    assert [(Path(row.path).name, row.identity) for row in images] == [("ann0.png", "Ann"), ("bob0.png", None)]


def test_search_finds_the_nearest(dcal, model, photos, index, monkeypatch):
    monkeypatch.chdir(photos)
    gallery = sorted((photos / "known").glob("*/*.png"))
    queries = sorted((photos / "new").glob("*.png"))
    (photos / "new" / "zz.png").write_text("no image")
    outcome = dcal("search", "index", "new", "--top_k=4", "--output=-", *ON_CPU)
    assert outcome.status == 1
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert rows.pop()["error"] and len(rows) == 4 * len(queries)
    distances = np.linalg.norm(features(model, queries)[:, None] - features(model, gallery), axis=2)
    for place, row in enumerate(rows):
        query, rank = divmod(place, 4)
        nearest = distances[query].argsort()[rank]
        assert (row["path"], row["rank"]) == (f"new/{queries[query].name}", rank + 1)
        assert row["match"] == f"{gallery[nearest].relative_to(photos)}"
        assert row["identity"] == gallery[nearest].parent.name
        assert row["distance"] == pytest.approx(distances[query, nearest], abs=1e-5)
    table = dcal("search", "index", "new", "--top_k=2", *ON_CPU)
    assert [line.split()[-1] for line in table.out.splitlines()[1:3]] == [rows[0]["match"], rows[1]["match"]]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_files_of_results(dcal, photos, index, calibrated, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    for command in ("search", "identify"):
        output = photos / f"{command}{suffix}"
        assert dcal(command, index, photos / "new", f"--output={output}", *ON_CPU).status == 0
        number = 5 * (9 if command == "search" else 1)
        if suffix == ".parquet":
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(output).to_pylist()
        elif suffix == ".csv":
            with output.open(newline="") as file:
                rows = [*csv.DictReader(file)]
        else:
            text = output.read_text()
            rows = json.loads(text)["images"] if suffix == ".json" else [json.loads(line) for line in text.splitlines()]
        assert len(rows) == number and Path(rows[0]["path"]).name == "ann3.png"
        assert rows[0]["identity"] == "ann" and float(rows[0]["distance"]) >= 0
        if command == "identify":
            assert rows[0]["known"] in (True, "true") and rows[-1]["known"] in (False, "false")


def test_a_contact_sheet(dcal, photos, index):
    sheet = photos / "sheet.png"
    outcome = dcal("search", index, photos / "new", "--top_k=3", f"--sheet={sheet}", *ON_CPU)
    assert outcome.status == 0
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    assert (width > 4 * 160) and (height > 5 * 160)
    shown = np.asarray(portrait("ann", 3).resize((80, 160), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(pixels[8:168, 48:128] - shown).mean() < 12  # the first query in its place
    assert (pixels[168:208, 8:160] < 100).any()  # its name below


def test_identify_says_who_or_new(dcal, photos, index, calibrated):
    threshold = load_model(calibrated, device="cpu").calibration.threshold(3)
    outcome = dcal("identify", index, photos / "new", "--output=-", *ON_CPU)
    assert outcome.status == 0 and "3 identities" in outcome.err and "5 %" in outcome.err
    gallery = sorted((photos / "known").glob("*/*.png"))
    for line in outcome.out.splitlines():
        row = json.loads(line)
        person = Path(row["path"]).name[:3]
        distances = np.linalg.norm(features(calibrated, [row["path"]]) - features(calibrated, gallery), axis=1)
        nearest = gallery[distances.argmin()]
        assert row["identity"] == (person if person in ENROLLED else "new")
        assert row["known"] == (distances.min() <= threshold) == (person in ENROLLED)
        assert row["distance"] == pytest.approx(distances.min(), abs=1e-5)
        assert row["probability"] == pytest.approx(1 / (1 + math.exp(4 * row["distance"] / threshold - 4)), abs=1e-4)
        assert row["nearest"] == nearest.parent.name and Path(row["match"]).name == nearest.name
    table = dcal("identify", index, photos / "new", *ON_CPU).out.splitlines()
    assert [line.split()[1] for line in table[1:]] == ["ann", "bob", "cat", "new", "new"]


def test_images_of_a_track_are_answered_together(dcal, photos, index, calibrated):
    outcome = dcal("identify", index, photos / "tracks", "--output=-", *ON_CPU)
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(rows) == 10 and "5 subfolders" in outcome.err
    for person in PEOPLE:
        own = [row for row in rows if row["track"] == f"{photos / 'tracks' / f'of {person}'}"]
        assert len(own) == 2 and own[0]["distance"] == own[1]["distance"]
        assert own[0]["identity"] == (person if person in ENROLLED else "new")
        images = features(calibrated, [row["path"] for row in own])
        means = {}
        for other in ENROLLED:
            of_other = features(calibrated, sorted((photos / "known" / other).glob("*.png")))
            means[other] = np.linalg.norm(images[:, None] - of_other, axis=2).min(1).mean()
        assert own[0]["nearest"] == min(means, key=means.get)
        assert own[0]["distance"] == pytest.approx(min(means.values()), abs=1e-5)
    alone = dcal("identify", index, photos / "tracks", "--tracks=false", "--output=-", *ON_CPU)
    assert len({json.loads(line)["distance"] for line in alone.out.splitlines()}) == 10


def test_cluster_and_enroll(dcal, photos, index, calibrated):
    arguments = ["identify", index, photos / "new", photos / "tracks", "--tracks=false", "--output=-", *ON_CPU]

    def groups(*flags):
        rows = [json.loads(line) for line in dcal(*arguments, *flags).out.splitlines()]
        return {Path(row["path"]).stem: row["group"] for row in rows}

    calibration = load_model(calibrated, device="cpu").calibration
    assert calibration.probability_same(calibration.even_distance()) == pytest.approx(0.5)
    assert set(groups().values()) == {None}
    grouped = groups("--cluster")
    assert {grouped[f"dan{n}"] for n in (3, 4, 5)} == {"new-0001"} and grouped["ann3"] is None
    assert {grouped[f"eve{n}"] for n in (3, 4, 5)} == {"new-0002"}
    assert GalleryIndex.open(index).info()["identities"] == 3
    assert groups("--cluster", "--enroll") == grouped
    assert dict(GalleryIndex.open(index).identities()) == {"ann": 3, "bob": 3, "cat": 3, "new-0001": 3, "new-0002": 3}
    again = [json.loads(line) for line in dcal(*arguments).out.splitlines()]
    assert {row["identity"] for row in again} == {*ENROLLED, "new-0001", "new-0002"}


def test_enroll_without_cluster_names_each_image_or_track(dcal, photos, index, calibrated):
    dcal("identify", index, photos / "new", photos / "tracks", "--enroll", *ON_CPU)
    added = {name: number for name, number in GalleryIndex.open(index).identities() if name.startswith("new-")}
    assert sorted(added.values()) == [1, 1, 2, 2] and sorted(added)[-1] == "new-0004"
    portrait("eve", 9).rotate(180).save(photos / "other.png")
    outcome = dcal("identify", index, photos / "other.png", "--enroll", *ON_CPU)
    assert "new-0005" in outcome.err, outcome


def test_an_index_without_identities_can_be_begun_by_enrolling(dcal, photos, calibrated):
    built = dcal("index", "build", photos / "index", photos / "new", f"--model={calibrated}", *ON_CPU)
    assert built.status == 0
    outcome = dcal("identify", photos / "index", photos / "new", "--enroll", "--output=-", *ON_CPU)
    assert "all images are new" in outcome.err
    assert [json.loads(line)["group"] for line in outcome.out.splitlines()] == [f"new-000{n}" for n in range(1, 6)]
    info = GalleryIndex.open(photos / "index").info()
    assert (info["images"], info["identities"], info["unknown"]) == (5, 5, 0)


def test_without_calibration_identify_cannot_decide_and_search_works(dcal, photos, index):
    assert_refused(dcal("identify", index, photos / "new", *ON_CPU), "not calibrated", "dcal calibrate", "dcal search")
    assert dcal("search", index, photos / "new", *ON_CPU).status == 0


def test_another_model_is_refused(dcal, make_model, model, photos, index):
    other, moved = make_model("reid", seed=1), photos / "moved.safetensors"
    assert_refused(dcal("search", index, photos / "new", f"--model={other}", *ON_CPU), "not the model", "--model")
    assert_refused(dcal("index", "add", index, photos / "new", f"--model={other}", *ON_CPU), "not the model")
    shutil.move(model, moved)
    assert_refused(dcal("search", index, photos / "new", *ON_CPU), "not at", "--model")
    assert dcal("search", index, photos / "new", f"--model={moved}", *ON_CPU).status == 0
    calibrate(moved, 1.0)  # not part of the fingerprint
    assert dcal("search", index, photos / "new", f"--model={moved}", *ON_CPU).status == 0


def test_one_branch(dcal, photos, model):
    built = dcal("index", "build", photos / "index", photos / "known", f"--model={model}", "--branch=sa", *ON_CPU)
    assert built.status == 0
    row = json.loads(dcal("search", photos / "index", photos / "new", "--output=-", *ON_CPU).out.splitlines()[0])
    loaded = load_model(model, device="cpu")
    one, other = (loaded.embed(each, branch="sa").double() for each in (row["path"], row["match"]))
    assert row["distance"] == pytest.approx((one - other).norm().item(), abs=1e-5)
    assert GalleryIndex.open(photos / "index").settings.fingerprint == loaded.fingerprint("sa")


def test_milvus(dcal, photos, calibrated):
    pytest.importorskip("milvus_lite")
    pytest.importorskip("pymilvus")
    place = ["--engine=milvus", f"--uri={photos / 'vectors.db'}"]
    built = dcal("index", "build", photos / "index", photos / "known", f"--model={calibrated}", *place, *ON_CPU)
    assert built.status == 0, built
    assert "Milvus" in dcal("index", "info", photos / "index").out
    table = dcal("identify", photos / "index", photos / "new", *ON_CPU).out.splitlines()
    assert [line.split()[1] for line in table[1:]] == ["ann", "bob", "cat", "new", "new"]


def test_what_is_refused(dcal, photos, model, index):
    build = ["index", "build", photos / "other", photos / "known", f"--model={model}"]
    (photos / "empty").mkdir()
    for arguments, said in (
        (["index", "buidl"], "build, add"),
        (["index", "build"], "INDEX"),
        (["index", "build", photos / "other"], "FOLDER|CSV"),
        (build[:-1], "--model"),
        (["index", "build", index, *build[3:]], "index add"),
        ([*build, "--uri=x.db"], "--engine milvus"),
        ([*build, "--engine=milvus"], "--uri"),
        ([*build, "--engine=milvus", "--uri=x.txt"], ".db"),
        ([*build, "--branch=pwca"], "branch"),
        ([*build[:3], photos / "empty", build[4]], "no image"),
        (["index", "add", photos / "empty", photos / "known"], "no index"),
        (["index", "add", index], "FOLDER|CSV|IMAGE"),
        (["index", "remove", index], "got nothing"),
        (["index", "remove", index, photos / "nothing"], "no image"),
        (["index", "remove", index, "--identity=zoe"], "zoe"),
        (["index", "info", photos / "empty"], "no index"),
        (["search", index], "IMAGE"),
        (["search", index, photos / "new", "--top_k=0"], "top_k"),
        (["search", index, photos / "new", "--sheet=sheet.jpg"], ".png"),
        (["search", index, photos / "new", "--output=out.txt"], ".csv"),
        (["identify", index, photos / "missing"], "no file or folder"),
    ):
        outcome = dcal(*arguments)
        assert_refused(outcome, said)
        assert not (photos / "other").exists()
