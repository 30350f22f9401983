"""Tables that the library `datasets` reads: the same images as from folders, hostile tables, and the commands."""

import csv
import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dual_cross_attention.configs.hub_names import split_hub_name
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.data import load_fgvc, read_image
from dual_cross_attention.data.fingerprint import fingerprint_split
from dual_cross_attention.data.images import UnreadableImage
from dual_cross_attention.errors import InputError
from tests.helpers import any_says, assert_refused, assert_says

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The library's cache is the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(color: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(file, "PNG")
    return file.getvalue()


def write_parquet(path: Path, images: list, labels: list, names: tuple[str, str] = ("image", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({names[0]: images, names[1]: labels}), path)
    return path


def rows(count: int, start: int = 0) -> tuple[list, list]:
    """Images in bytes, and their class names."""
    labels = [CLASSES[number % 3] for number in range(count)]
    return [{"bytes": png((start + number, 9, 9)), "path": f"{number}.png"} for number in range(count)], labels


def pixels(split) -> list[bytes]:
    return [read_image(image).tobytes() for image in split.images]


def names(data, split) -> list[str]:
    return [data.classes[label] for label in split.labels]


@pytest.fixture
def inputs(images, tmp_path) -> dict[str, tuple[str, Path]]:
    """The images of a folder in every form: name of the dataset and data_root."""
    found = {split: sorted((images / split).glob("*/*.png")) for split in ("train", "val")}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    tables = {
        {"train": "train", "val": "validation"}[split]: datasets.Dataset.from_dict(
            {
                "image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
                "label": [CLASSES.index(path.parent.name) for path in paths],
            },
            features=features,
        )
        for split, paths in found.items()
    }
    (tmp_path / "parquet").mkdir()
    for split, table in tables.items():
        table.to_parquet(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet")
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "arrow")
    with (images / "all.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows(
            [path.relative_to(images), path.parent.name, split] for split in found for path in found[split]
        )
    for split, paths in found.items():
        (images / f"{split}.txt").write_text(
            "".join(f"{path.relative_to(images)}, {path.parent.name}\n" for path in paths)
        )
    yield {
        "folder": ("folder", images),
        "csv": ("csv", images / "all.csv"),
        "lists": ("lists", images),
        "parquet": ("hf", tmp_path / "parquet"),
        "arrow": ("hf", tmp_path / "arrow"),
    }
    for name in ("all.csv", "train.txt", "val.txt"):
        (images / name).unlink()


def test_every_input_gives_the_same_images_and_labels(inputs):
    loaded = {form: load_fgvc(*given) for form, given in inputs.items()}
    expected = loaded["folder"]
    assert (len(expected.train), len(expected.test)) == (36, 18)
    for data in loaded.values():
        assert data.classes == CLASSES
        for split in ("train", "test"):
            assert [*getattr(data, split).labels] == getattr(expected, split).labels
            assert pixels(getattr(data, split)) == pixels(getattr(expected, split))


def test_image_folder(make_images, tmp_path):
    root = make_images(tmp_path / "pictures")
    data, folder = load_fgvc("hf", root), load_fgvc("folder", root)
    for split in ("train", "test"):
        ours, theirs = getattr(data, split), getattr(folder, split)
        assert [*ours.labels] == theirs.labels and [*ours.images] == theirs.images


def test_labels_are_an_array_and_rows_are_read_when_they_are_asked_for(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", *rows(30))
    data = load_fgvc("hf", path, val_fraction=0.2)
    assert isinstance(data.train.labels, np.ndarray) and data.train.labels.dtype == np.int64
    assert len(data.train) == 24 and len(data.test) == 6 and any_says(data.notes, "row numbers")
    copy = pickle.loads(pickle.dumps(data.train.images))
    assert len(pickle.dumps(data.train.images)) < 5000 and f"{copy[3]}" == f"{data.train.images[3]}"
    assert read_image(copy[3]).tobytes() == read_image(data.train.images[3]).tobytes()
    everything = sorted(
        read_image(image).getpixel((0, 0))[0] for each in (data.train, data.test) for image in each.images
    )
    assert everything == [*range(30)]


def test_fingerprint(tmp_path):
    one = load_fgvc("hf", write_parquet(tmp_path / "a" / "train.parquet", *rows(9)), train=False).test
    same = load_fgvc("hf", write_parquet(tmp_path / "b" / "train.parquet", *rows(9)), train=False).test
    other = load_fgvc("hf", write_parquet(tmp_path / "c" / "train.parquet", *rows(9, start=1)), train=False).test
    prints = [fingerprint_split(each.images, each.labels) for each in (one, same, other)]
    assert prints[0] == prints[1] and prints[0].digest == prints[2].digest and prints[0].sample != prints[2].sample


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (None, [None, *"abcdefgh"], ["train[0]", "none"]),
        (None, [0.5] * 9, ["whole numbers or text", "double"]),
        (None, [[1]] * 9, ["whole numbers or text", "list"]),
        (None, ["", *"abcdefgh"], ["whole numbers or text"]),
        (None, ["a"] * 9, ["two classes"]),
    ],
)
def test_hostile_labels_are_refused(tmp_path, images, labels, words):
    path = write_parquet(tmp_path / "train.parquet", images or rows(9)[0], labels)
    with pytest.raises(InputError) as caught:
        load_fgvc("hf", path, val_fraction=0.3)
    assert_says(caught.value, *words)
    assert "\n" not in f"{caught.value}"


@pytest.mark.parametrize(
    "image",
    [
        {"bytes": None, "path": "/etc/hostname"},
        {"bytes": None, "path": "../outside.png"},
        {"bytes": None, "path": "https://127.0.0.1:9/x.png"},
        {"bytes": None, "path": None},
        {"bytes": b"", "path": "x.png"},
        {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n", "path": "x.eps"},
        {"bytes": png((1, 2, 3))[:60], "path": "x.png"},
    ],
)
def test_hostile_images_are_unreadable(tmp_path, image):
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    images, labels = rows(6)
    path = write_parquet(tmp_path / "data" / "train.parquet", [image, *images[1:]], labels)
    data = load_fgvc("hf", path, train=False)
    with pytest.raises(UnreadableImage) as caught:
        read_image(data.test.images[0])
    assert f"{caught.value}".count("train[0]") == 1
    assert read_image(data.test.images[1]).size == (32, 32)


def test_damaged_files_are_refused(tmp_path):
    whole = write_parquet(tmp_path / "train.parquet", *rows(9)).read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2], b"x" * 1000):
        (tmp_path / "train.parquet").write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_fgvc("hf", tmp_path / "train.parquet", train=False)
        assert "\n" not in f"{caught.value}" and len(f"{caught.value}") < 1500


def test_splits_and_columns(tmp_path):
    write_parquet(tmp_path / "train.parquet", *rows(6), names=("photo", "bird"))
    write_parquet(tmp_path / "dev.parquet", *rows(3), names=("photo", "bird"))
    with pytest.raises(InputError) as caught:
        load_fgvc("hf", tmp_path)
    assert_says(caught.value, "photo", "bird", "--image_column")
    data = load_fgvc("hf", tmp_path, image_column="photo", label_column="bird")
    assert (len(data.train), len(data.test)) == (6, 3)
    write_parquet(tmp_path / "more.parquet", *rows(3), names=("photo", "bird"))
    with pytest.raises(InputError) as caught:
        load_fgvc("hf", tmp_path, image_column="photo", label_column="bird")
    assert_says(caught.value, "more.parquet", "train, validation or test")
    (tmp_path / "more.parquet").unlink()
    images, _ = rows(3)
    write_parquet(tmp_path / "dev.parquet", images, ["ant", "bee", "yak"], names=("photo", "bird"))
    with pytest.raises(InputError) as caught:
        load_fgvc("hf", tmp_path, image_column="photo", label_column="bird")
    assert_says(caught.value, "[2]", "yak", "train")


def test_each_split_numbers_its_classes_itself(tmp_path):
    """Class numbers are positions in the split's own list of names."""
    tables = {}
    for split, order in (("train", CLASSES), ("test", CLASSES[::-1])):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=order)})
        images, labels = rows(6)
        tables[split] = datasets.Dataset.from_dict(
            {"image": images, "label": [order.index(label) for label in labels]}, features=features
        )
        (tmp_path / "parquet").mkdir(exist_ok=True)
        tables[split].to_parquet(tmp_path / "parquet" / f"{split}.parquet")
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "arrow")
    for kind in ("parquet", "arrow"):
        data = load_fgvc("hf", tmp_path / kind)
        assert names(data, data.train) == names(data, data.test) == rows(6)[1], kind


def test_the_split_is_that_of_the_file_name_then_of_the_nearest_folder(tmp_path):
    root = tmp_path / "train_test_split"
    write_parquet(root / "test.parquet", *rows(3))
    write_parquet(root / "train" / "0.parquet", *rows(6))
    data = load_fgvc("hf", tmp_path)
    assert (len(data.train), len(data.test)) == (6, 3)
    write_parquet(root / "1.parquet", *rows(3))
    with pytest.raises(InputError) as refused:
        load_fgvc("hf", tmp_path)
    assert_says(refused.value, "one split", "train_test_split")


def test_without_the_library_the_extra_is_named(dcal, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    outcome = dcal("check-data", "--dataset", "hf", "--data_root", tmp_path)
    assert_refused(outcome, "dual-cross-attention[data]")


def test_names_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_hub_name("hf:org/name", None) == ("hf", "hf:org/name")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert split_hub_name("hf:org/name", None) == ("hf", "org/name")
    assert split_hub_name("hf:./there", None) == ("hf", "./there") and split_hub_name("cub", "a") == ("cub", "a")
    for given in (("hf:", None), ("hf:a/b", "c")):
        with pytest.raises(InputError):
            split_hub_name(*given)
    config = parse_config(["--dataset", "hf:a/b", "--epochs", "3"])
    assert (config.dataset, config.data_root, config.task) == ("hf", "hf:a/b", "fgvc")
    assert parse_config(["--dataset=hf", "--data_root=hf:a/b"]).data_root == "hf:a/b"
    (tmp_path / "s.yaml").write_text("dataset: hf:a/b\nformat_version: 2\n")
    assert parse_config(["--config", "s.yaml"]).data_root == "hf:a/b"


def test_a_dataset_of_the_hub(dcal, small, tmp_path, monkeypatch):
    """The library gives what the hub would; a training records, resumes and evaluates it by its name."""
    given = []
    table = datasets.Dataset.from_dict(
        {"image": rows(12)[0], "label": [number % 3 for number in range(12)], "extra": [0] * 12},
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES), "extra": datasets.Value("int64")}
        ),
    )

    def load_dataset(*arguments, **_):
        given.append(arguments)
        return datasets.DatasetDict({"train": table, "test": table.select(range(3)), "unlabeled": table})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    run = tmp_path / "run"
    flags = [flag for flag in small if not flag.startswith(("--data", "--epochs"))]
    command = ["train", *flags, "--dataset=hf:org/birds:small", "--epochs=1", f"--output_dir={run}"]
    trained = dcal(*command)
    assert trained.status == 0, trained.err
    assert given[0] == ("org/birds", "small") and any_says(trained.out.splitlines(), "unlabeled", "not read")
    assert dcal(*command).status == 0  # finished already
    evaluated = dcal("eval", run, "--device", "cpu", "--output", tmp_path / "rows.csv", "--json", "-")
    assert json.loads(evaluated.out)["images"] == 3
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [f"hf:org/birds:small/test[{n}]" for n in range(3)]


def test_image_files_of_the_hub_are_those_in_its_cache(tmp_path, monkeypatch):
    """Of a repository of image files, the library gives paths in the cache of the Hub; no others are read."""
    cache, elsewhere = tmp_path / "home" / "hub" / "birds" / "0.png", tmp_path / "1.png"
    for path in (cache, elsewhere):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png((7, 8, 9)))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    table = datasets.Dataset.from_dict({"image": [f"{cache}", f"{elsewhere}"], "label": [0, 1]}, features=features)
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", f"{tmp_path / 'home'}")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict({"test": table}))
    first, second = load_fgvc("hf", "hf:org/birds", train=False).test.images
    assert read_image(first).getpixel((0, 0)) == (7, 8, 9)
    with pytest.raises(UnreadableImage, match="inside"):
        read_image(second)


@pytest.mark.parametrize("moved", ["HF_HUB_CACHE", "HF_DATASETS_CACHE"])
def test_a_part_of_the_cache_may_be_elsewhere(tmp_path, monkeypatch, moved):
    """HF_HUB_CACHE moves downloads of the hub out of HF_HOME, and HF_DATASETS_CACHE the archives that it unpacks."""
    from huggingface_hub import constants

    path = tmp_path / "elsewhere" / "birds" / "0.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(png((7, 8, 9)))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    table = datasets.Dataset.from_dict({"image": [f"{path}"], "label": [0]}, features=features)
    monkeypatch.setattr(constants if moved == "HF_HUB_CACHE" else datasets.config, moved, f"{tmp_path / 'elsewhere'}")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict({"test": table}))
    images = load_fgvc("hf", "hf:org/birds", train=False).test.images
    assert read_image(images[0]).getpixel((0, 0)) == (7, 8, 9)


def test_commands(dcal, small, inputs, tmp_path):
    run, root = tmp_path / "run", inputs["parquet"][1]
    flags = [flag for flag in small if not flag.startswith(("--data", "--epochs"))]
    trained = dcal("train", *flags, f"--dataset=hf:{root}", "--epochs=1", f"--output_dir={run}")
    assert trained.status == 0, trained.err
    from_folder = tmp_path / "folder"
    folder = ["--dataset=folder", f"--data_root={inputs['folder'][1]}"]
    assert dcal("train", *flags, *folder, "--epochs=1", f"--output_dir={from_folder}").status == 0
    metrics = [json.loads((each / "metrics.jsonl").read_text().splitlines()[0]) for each in (run, from_folder)]
    assert metrics[0]["train/loss"] == metrics[1]["train/loss"] and metrics[0]["val/top1"] == metrics[1]["val/top1"]
    checked = dcal("check-data", "--dataset", "hf", "--data_root", root, "--num_workers", 2)
    assert checked.status == 0, checked.out
    shards = tmp_path / "shards"
    assert dcal("shard", "--dataset", f"hf:{root}", "--num_workers", 2, "--output_dir", shards).status == 0
    assert sorted(pixels(load_fgvc("shards", shards).train)) == sorted(pixels(load_fgvc(*inputs["folder"]).train))
    assert dcal("report", run, "--device", "cpu", "--num_workers", 0, "--output", tmp_path / "r.html").status == 0
    evaluated = dcal("eval", run, "--device", "cpu", "--num_workers", 2, "--json", "-")
    assert json.loads(evaluated.out)["images"] == 18
