"""Images that one CSV file lists: columns, encodings, splits, hostile files, and a training."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dual_cross_attention.data import load_fgvc
from dual_cross_attention.errors import InputError
from tests.helpers import any_says, assert_refused, assert_says, names_of

CLASSES = ("crow", "robin", "wren")


@pytest.fixture
def birds(tmp_path) -> Path:
    """Three classes of six images in one folder."""
    (tmp_path / "images").mkdir()
    for label, name in enumerate(CLASSES):
        for number in range(6):
            Image.new("RGB", (32, 32), (40 * number, 80 * label, 50)).save(tmp_path / "images" / f"{name}{number}.png")
    return tmp_path


def write(birds: Path, header: str, split: bool, encoding: str = "utf-8", separator: str = ",") -> Path:
    """A CSV file of all images; of each class, images 0 to 3 are of train, 4 of val and 5 of test."""
    splits = ["train"] * 4 + ["Validation", "test"]
    rows = [
        [f"images/{name}{number}.png", name, *([splits[number]] if split else [])]
        for name in CLASSES
        for number in range(6)
    ]
    text = "\n".join(separator.join(row) for row in [header.split(","), *rows])
    path = birds / "birds.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_splits(birds):
    path = write(birds, "path,label,split", split=True)
    data = load_fgvc("csv", path)
    assert data.classes == [*CLASSES] and not data.warnings
    assert names_of(data.train)[:5] == [*(f"images/crow{i}.png" for i in range(4)), "images/robin0.png"]
    assert data.train.labels == [0] * 4 + [1] * 4 + [2] * 4 and data.test.labels == [0, 1, 2]
    assert names_of(data.test)[0] == "images/crow4.png" and any_says(data.notes, "val")
    tested = load_fgvc("csv", path, train=False, split="test")
    assert tested.train is None and names_of(tested.test) == [f"images/{name}5.png" for name in CLASSES]


def test_without_a_split_val_fraction_splits(birds):
    path = write(birds, "path,label", split=False)
    with pytest.raises(InputError) as caught:
        load_fgvc("csv", path)
    assert_says(caught.value, "18 images", "--val_fraction")
    data = load_fgvc("csv", path, val_fraction=0.3)
    assert (len(data.train), len(data.test)) == (12, 6)
    assert len(load_fgvc("csv", path, train=False).test) == 18


@pytest.mark.parametrize(
    ("encoding", "said"), [("utf-8-sig", None), ("utf-16", "UTF-16"), ("cp1252", "Windows-1252"), ("utf-8", None)]
)
@pytest.mark.parametrize(("separator", "named"), [(",", None), (";", "semicolon"), ("\t", "tab")])
def test_encoding_and_separator_are_found(birds, encoding, said, separator, named):
    path = write(birds, "Image,Größe,Label", split=False, encoding=encoding, separator=separator)
    text = path.read_bytes().decode(encoding).replace("png" + separator, f"png{separator}7{separator}")
    path.write_bytes(text.replace("robin\n", "étourneau\n").encode(encoding))
    data = load_fgvc("csv", path, val_fraction=0.3)
    assert data.classes == ["crow", "wren", "étourneau"]
    assert any_says(data.notes, "Image", "path", "--image_column")
    assert any_says(data.notes, "birds.csv", said, "Größe") if said else not any_says(data.notes, "Windows")
    if named:
        assert any_says(data.notes, "birds.csv", named)


def test_named_columns(birds):
    path = write(birds, "file,bird,class", split=True)
    data = load_fgvc("csv", path, image_column="File", label_column="bird", val_fraction=0.3)
    assert data.classes == [*CLASSES] and not any_says(data.notes, "--image_column")
    with pytest.raises(InputError) as caught:
        load_fgvc("csv", path, label_column="species", val_fraction=0.3)
    assert_says(caught.value, "line 1", "species")
    with pytest.raises(InputError) as caught:
        load_fgvc("folder", birds, label_column="bird")
    assert_says(caught.value, "--label_column", "csv")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("path,label", "\npath,label", ["line 1", "blank line"]),
        ("path,label", " ,, \npath,label", ["line 1", "blank line"]),
        ("images/crow0.png", "../secret.png", ["line 2", "inside"]),
        ("images/crow0.png", "/etc/passwd", ["line 2", "inside"]),
        ("images/crow0.png", "C:\\crow.png", ["line 2", "Windows"]),
        ("images/crow0.png", "images/gone.png", ["line 2", "does not exist"]),
        ("images/crow1.png", "images/crow0.png", ["line 3", "line 2"]),
        ("crow,Validation", "crow,holdout", ["line 6", "holdout"]),
        ("crow,Validation", "jay,Validation", ["line 6", "jay", "split train"]),
        ("images/crow0.png", "images/\0crow0.png", ["NUL"]),
        ("images/crow0.png,crow", 'images/crow0.png,"crow', ["CSV"]),
        ("images/crow0.png,crow", "images/crow0.png,", ["line 2", "label"]),
        ("images/crow0.png,crow", "images/crow0.png,a,b", ["line 2", "fields"]),
        ("path,label", "path,path", ["line 1", "several path"]),
        ("images/crow0.png", "=" + "x" * 200_000, ["CSV"]),
        ("images/crow0.png", "a" * 3000, ["line 2", "does not exist"]),
    ],
)
def test_hostile_files_are_refused(birds, old, new, words):
    path = write(birds, "path,label,split", split=True)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        load_fgvc("csv", path)
    assert_says(caught.value, "csv: ", *words)
    assert "\n" not in f"{caught.value}" and len(f"{caught.value}") < 8000


def test_no_file(birds, dcal):
    assert_refused(dcal("check-data", "--dataset", "csv", "--data_root", birds), birds, "images/")
    assert_refused(dcal("check-data", "--dataset", "csv", "--data_root", birds / "no.csv"), "no.csv")
    assert_refused(dcal("check-data", "--dataset", "csv"), "data_root", "path and label")
    assert_refused(dcal("check-data", "--task", "reid", "--label_column", "a"), "--label_column", "fgvc")


def test_commands(birds, dcal, small, tmp_path):
    path, run = write(birds, "bild,vogel,split", split=True), tmp_path / "run"
    data = ["--dataset", "csv", "--data_root", path, "--image_column", "bild", "--label_column", "vogel"]
    flags = [flag for flag in small if not flag.startswith(("--data", "--epochs"))]
    trained = dcal("train", *flags, *data, "--epochs=1", f"--output_dir={run}")
    assert trained.status == 0, trained.err
    evaluated = dcal("eval", run, "--split", "test", "--device", "cpu", "--json", "-")
    assert evaluated.status == 0 and json.loads(evaluated.out)["images"] == 3
    other = write(birds, "path,label,split", split=True)
    again = dcal("eval", run, "--dataset", "csv", "--data_root", other, "--image_column", "path", "--device", "cpu")
    assert_refused(again, "vogel")  # the label column is that of the run
    page = tmp_path / "report.html"
    both = ["--image_column", "path", "--label_column", "label", "--device", "cpu", "--json", "-"]
    assert json.loads(dcal("eval", run, "--data_root", other, *both).out)["images"] == 3
    assert dcal("report", run, "--device", "cpu", "--num_workers", 0, "--output", page).status == 2  # columns renamed
    write(birds, "bild,vogel,split", split=True)
    assert dcal("report", run, "--device", "cpu", "--num_workers", 0, "--output", page).status == 0
    shards = tmp_path / "shards"
    assert dcal("shard", *data, "--num_workers", 0, "--output_dir", shards).status == 0
    assert load_fgvc("shards", shards).classes == [*CLASSES]
    assert dcal("check-data", *data, "--num_workers", 0).status == 0
