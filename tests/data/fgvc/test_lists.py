"""Images in list files: classes and coarse classes, wrong lists, and a training with its evaluation and report."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dual_cross_attention.data import load_fgvc
from dual_cross_attention.errors import InputError
from dual_cross_attention.metrics.coarse import coarse_accuracy
from tests.helpers import any_says, assert_says

CLASSES = """Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int)
Granny,0,Apple,0
Pink-Lady,1,Apple,0
Asparagus,2,Asparagus,1
"""
COLORS = [(60, 200, 60), (70, 190, 70), (200, 60, 60)]
COARSE = {0: "Apple", 1: "Apple", 2: "Asparagus"}


@pytest.fixture
def grocery(tmp_path) -> Path:
    """As Grocery Store is published: three lists, paths below train/, val/ and test/, ids in place of names."""
    root, random = tmp_path / "grocery", np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        lines = []
        for label, color in enumerate(COLORS):
            (root / split / "Fruit" / f"c{label}").mkdir(parents=True)
            for number in range(count):
                path = f"{split}/Fruit/c{label}/c{label}_{number:03}.png"
                Image.new("RGB", (32, 32), tuple(int(each) for each in color + random.integers(-50, 50, 3))).save(
                    root / path
                )
                lines.append(f"{path}, {label}, {int(label == 2)}")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    (root / "classes.csv").write_text(CLASSES)
    return root


def test_classes_and_images(grocery):
    data = load_fgvc("lists", grocery)
    assert data.classes == ["Granny", "Pink-Lady", "Asparagus"]
    assert data.coarse_classes == ["Apple", "Apple", "Asparagus"] and not data.warnings
    assert data.train.labels == [0] * 6 + [1] * 6 + [2] * 6 and data.test.labels == [0] * 3 + [1] * 3 + [2] * 3
    assert data.test.images[4] == grocery / "val/Fruit/c1/c1_001.png"
    assert any_says(data.notes, "val.txt", "test.txt") and any_says(data.notes, "3 classes", "2 coarse classes")
    tested = load_fgvc("lists", grocery.parent, train=False, split="test")  # the folder that holds it, too
    assert tested.train is None and len(tested.test) == 6 and tested.test.images[0].parts[-4] == "test"


def test_without_classes_csv_ids_are_in_numerical_order(grocery):
    (grocery / "classes.csv").unlink()
    for split in ("train", "val", "test"):
        path = grocery / f"{split}.txt"
        path.write_text(path.read_text().replace(", 1, 0", ", 10, 0"))
    data = load_fgvc("lists", grocery)
    assert data.classes == ["0", "2", "10"] and data.coarse_classes == ["0", "1", "0"]
    assert Counter(data.train.labels) == {0: 6, 1: 6, 2: 6}


@pytest.mark.parametrize(("separator", "named"), [("; ", "a semicolon"), ("\t", "a tab"), (" ", "spaces")])
def test_other_separators_and_names(grocery, separator, named):
    (grocery / "classes.csv").unlink()
    for split in ("train", "val", "test"):
        lines = [line.split(", ")[:2] for line in (grocery / f"{split}.txt").read_text().splitlines()]
        (grocery / f"{split}.txt").write_text("\n".join(f"{path}{separator}{'cab'[int(i)]}" for path, i in lines))
    data = load_fgvc("lists", grocery)
    assert data.classes == ["a", "b", "c"] and data.coarse_classes is None
    assert data.train.labels[:1] == [2] and any_says(data.notes, "train.txt", named)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("train.txt", "c0_000.png, 0", "c0_000.png, 7", ["train.txt, line 1", "3 known classes", "'7'"]),
        ("train.txt", "c0_000.png, 0, 0", "c0_000.png, 0, 1", ["train.txt, line 1", "Granny", "Apple", "Asparagus"]),
        ("train.txt", "c0_001.png", "c0_000.png", ["train.txt, line 2", "line 1 already"]),
        ("train.txt", "train/Fruit/c0/c0_002.png", "../grocery/x.png", ["train.txt, line 3", "inside"]),
        ("val.txt", "c0_001.png", "gone.png", ["val.txt, line 2", "does not exist"]),
        ("val.txt", "c0_001.png, 0, 0", "c0_001.png, 0", ["val.txt, line 2", "path, class, coarse class"]),
        ("val.txt", "c0_001.png, 0, 0", "c0_001.png, 0, 0, 0", ["val.txt, line 2", "path, class, coarse class"]),
        ("classes.csv", "Pink-Lady,1", "Granny,1", ["classes.csv, line 3", "Granny"]),
        ("classes.csv", "Pink-Lady,1", "Pink-Lady,0", ["classes.csv, line 3", "'0'"]),
        ("classes.csv", "Class Name", "Name", ["classes.csv, line 1", "class name"]),
    ],
)
def test_wrong_lists_are_refused(grocery, file, old, new, words):
    path = grocery / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        load_fgvc("lists", grocery)
    assert_says(caught.value, *words)


def test_missing_lists_and_untrained_classes(grocery):
    (grocery / "test.txt").unlink()
    with pytest.raises(InputError) as caught:
        load_fgvc("lists", grocery, split="test")
    assert_says(caught.value, "test.txt", grocery)
    lines = (grocery / "train.txt").read_text().splitlines()
    (grocery / "train.txt").write_text("\n".join(lines[:12]))
    with pytest.raises(InputError) as caught:
        load_fgvc("lists", grocery)
    assert_says(caught.value, "val.txt, line 7", "Asparagus", "train.txt")


def test_images_that_no_list_names_and_images_in_two_lists(grocery):
    lines = (grocery / "train.txt").read_text().splitlines()
    (grocery / "train.txt").write_text("\n".join(lines[1:]))
    with (grocery / "val.txt").open("a") as file:
        file.write(lines[1])
    warnings = load_fgvc("lists", grocery).warnings
    assert any_says(warnings, "1 image is left out", "c0_000.png") and any_says(warnings, "1 images", "val.txt")


@pytest.mark.parametrize("coarse", [True, False])
@pytest.mark.parametrize("separator", [" ", "   ", ", ", "; ", "\t"])
def test_paths_with_spaces_commas_and_three_fields(tmp_path, separator, coarse):
    """With spaces between the fields, the path ends where an image's suffix does."""
    for split in ("train", "val"):
        lines = []
        for number, (folder, label, group) in enumerate([("a red, ripe one", "0", "x"), ("b.png", "1", "y")]):
            path = tmp_path / split / folder / f"my photo {number}.JPG"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(path, format="JPEG")
            name = path.relative_to(tmp_path).as_posix()
            quoted = f'"{name}"' if "," in separator else name
            lines.append(separator.join([quoted, label, group][: 3 if coarse else 2]))
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    data = load_fgvc("lists", tmp_path)
    assert data.classes == ["0", "1"] and data.coarse_classes == (["x", "y"] if coarse else None)
    assert [path.name for path in data.test.images] == ["my photo 0.JPG", "my photo 1.JPG"]


def test_more_words_after_a_path_are_refused(grocery):
    path = grocery / "train.txt"
    path.write_text(path.read_text().replace(", ", " ").replace("c0_000.png 0 0", "c0_000.png red apple 0"))
    with pytest.raises(InputError) as caught:
        load_fgvc("lists", grocery)
    assert_says(caught.value, "train.txt, line 1", "path, class")


def test_an_image_with_another_class_in_the_other_list(grocery):
    """Grocery Store's lists with two images of train.txt in val.txt, one of which has another class there."""
    with (grocery / "val.txt").open("a") as file:
        file.write("train/Fruit/c0/c0_001.png, 0, 0\ntrain/Fruit/c0/c0_002.png, 1, 0\n")
    warnings = load_fgvc("lists", grocery).warnings
    assert any_says(warnings, "2 images are in train.txt and in val.txt", "c0_001.png")
    assert any_says(warnings, "1 of these", "c0_002.png: Granny and Pink-Lady")


def test_coarse_accuracy_against_loops():
    random = np.random.default_rng(3)
    labels, predicted, coarse = random.integers(0, 6, 50), random.integers(0, 7, 50), list("ABABCAD")
    found = coarse_accuracy(labels, predicted, coarse)
    right = [coarse[a] == coarse[b] for a, b in zip(labels, predicted, strict=True)]
    assert found.top1 == pytest.approx(100 * sum(right) / 50)
    pairs = [*zip(labels.tolist(), predicted.tolist(), strict=True)]
    assert found.mistakes_inside == sum(a != b and coarse[a] == coarse[b] for a, b in pairs) > 0
    assert found.mistakes_across == sum(coarse[a] != coarse[b] for a, b in pairs) > 0
    assert [each.name for each in found.by_class] == ["A", "B", "C"]  # no test image is of D
    for each in found.by_class:
        own = [(a, b) for a, b in pairs if coarse[a] == each.name]
        assert (each.images, each.classes) == (len(own), len({a for a, _ in own}))
        assert each.top1 == pytest.approx(100 * sum(a == b for a, b in own) / len(own))
        assert each.coarse_top1 == pytest.approx(100 * sum(coarse[b] == each.name for _, b in own) / len(own))


def test_training_evaluation_report_and_shards(grocery, dcal, small, tmp_path):
    run, rows = tmp_path / "run", tmp_path / "rows.csv"
    flags = [flag for flag in small if not flag.startswith(("--data", "--epochs"))]
    trained = dcal("train", *flags, "--dataset=lists", f"--data_root={grocery}", "--epochs=1", f"--output_dir={run}")
    assert trained.status == 0, trained.err
    evaluated = dcal(
        "eval", run, "--split", "test", "--device", "cpu", "--output", rows, "--json", tmp_path / "eval.json"
    )
    assert evaluated.status == 0, evaluated.err
    said = json.loads((tmp_path / "eval.json").read_text())
    read = list(csv.DictReader(rows.open(newline="")))
    name_of = {"Granny": "Apple", "Pink-Lady": "Apple", "Asparagus": "Asparagus"}
    assert len(read) == said["images"] == 6
    for row in read:
        assert row["coarse_label"] == name_of[row["label"]] and row["coarse_prediction"] == name_of[row["prediction"]]
    right = [row["coarse_label"] == row["coarse_prediction"] for row in read]
    assert said["coarse_top1"] == pytest.approx(100 * sum(right) / 6)
    wrong = [row for row in read if row["label"] != row["prediction"]]
    assert said["mistakes_inside"] + said["mistakes_across"] == len(wrong)
    assert any_says(evaluated.out.splitlines(), "coarse classes: top-1", f"{len(wrong)} wrong images")
    page = tmp_path / "report.html"
    assert dcal("report", run, "--device", "cpu", "--num_workers", 0, "--output", page).status == 0
    assert "Accuracy by coarse class" in page.read_text() and "Asparagus" in page.read_text()
    shards = tmp_path / "shards"
    data = ["--dataset", "lists", "--data_root", grocery, "--num_workers", 0]
    assert dcal("shard", *data, "--output_dir", shards).status == 0
    archived = load_fgvc("shards", shards)
    assert archived.coarse_classes == ["Apple", "Apple", "Asparagus"] and len(archived.test) == 9
    again = dcal("eval", run, "--dataset", "shards", "--data_root", shards, "--device", "cpu", "--json", "-")
    of_lists = dcal("eval", run, "--device", "cpu", "--json", "-")
    there, here = (json.loads(outcome.out) for outcome in (again, of_lists))
    assert there["coarse_classes"] == here["coarse_classes"] and there["top1"] == here["top1"]


def test_order_of_a_model(grocery):
    data = load_fgvc("lists", grocery, train=False)
    aligned = data.with_classes_of_model(["Asparagus", "Granny", "Pink-Lady"])
    assert aligned.coarse_classes == ["Asparagus", "Apple", "Apple"]
    more = data.with_classes_of_model(["Asparagus", "Granny", "Pink-Lady", "Kiwi"])
    assert more.coarse_classes is None and any_says(more.notes, "coarse classes", "Kiwi")
    turned = load_fgvc("lists", grocery).with_order_of(["Asparagus", "Granny", "Pink-Lady"])
    assert turned.coarse_classes == ["Asparagus", "Apple", "Apple"] and turned.train.labels[0] == 1
