"""`dcal eval` of a classifier: which images it takes, and the file with a row of each."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from dual_cross_attention.cli import main
from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.data import read_image, test_transform
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.evaluation import evaluate
from dual_cross_attention.inference.model_files import read_model
from dual_cross_attention.tasks.data_module import pixel_stats

MEASURES = ("prediction", "probability", "label_probability")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small):
    """Runs of one epoch by their flags, which no test changes."""
    runs: dict[tuple[str, ...], Path] = {}

    def train(*flags: str) -> Path:
        if flags not in runs:
            runs[flags] = tmp_path_factory.mktemp("run")
            assert main(["train", *small, "--epochs=1", f"--output_dir={runs[flags]}", *flags]) == 0
        return runs[flags]

    return train


@pytest.fixture(scope="module")
def unsplit(tmp_path_factory, make_images):
    """The small images as class folders without a split."""
    made, root = make_images(tmp_path_factory.mktemp("made")), tmp_path_factory.mktemp("all")
    for path in sorted(made.glob("*/*/*.png")):
        target = root / path.parent.name / f"{path.parent.parent.name}_{path.name}"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return root


@pytest.fixture
def tests_only(images, tmp_path):
    """A copy of val/ without train/."""
    shutil.copytree(images / "val", tmp_path / "data/val")
    return tmp_path / "data"


def result_of(dcal, *arguments):
    outcome = dcal("eval", *arguments, "--json", "-")
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out), outcome.err


def metrics(result):
    return {name: value for name, value in result.items() if name.startswith("top")}


# --- the images ---


def test_the_training_folder_is_not_needed(dcal, trained, tests_only):
    run = trained()
    expected, _ = result_of(dcal, run)
    result, said = result_of(dcal, run, "--data_root", tests_only)
    assert (metrics(result), result["images"]) == (metrics(expected), 18)
    assert "not the test data" not in said  # same names, labels and bytes


def test_some_classes_are_enough(dcal, trained, tests_only, tmp_path):
    shutil.rmtree(tests_only / "val/ant")
    result, said = result_of(dcal, trained(), "--data_root", tests_only, "--output", tmp_path / "rows.csv")
    assert result["images"] == 12 and "1 of the 3 classes" in said and "ant" in said
    expected, _ = result_of(dcal, trained(), "--output", tmp_path / "all.csv")
    rows, everything = (
        {Path(row["path"]).parts[-2:]: row for row in read(tmp_path / f)} for f in ("rows.csv", "all.csv")
    )
    for name, row in rows.items():
        assert {**row, "path": ""} == {**everything[name], "path": ""}
    assert expected["images"] == 18


def test_unknown_classes_are_refused_or_left_out(dcal, trained, tests_only):
    shutil.copytree(tests_only / "val/ant", tests_only / "val/dog")
    outcome = dcal("eval", trained(), "--data_root", tests_only)
    assert outcome.status == 2 and "dog" in outcome.err and "--unknown_classes leave_out" in outcome.err
    expected, _ = result_of(dcal, trained())
    result, said = result_of(dcal, trained(), "--data_root", tests_only, "--unknown_classes", "leave_out")
    assert (metrics(result), result["images"]) == (metrics(expected), 18)
    assert "6 images of 1 classes" in said and "dog" in said


def test_test_beside_val(dcal, trained, images, tmp_path):
    shutil.copytree(images, tmp_path / "data")
    shutil.copytree(images / "train/ant", tmp_path / "data/test/ant")
    for split, count in (("val", 18), ("test", 12)):
        assert result_of(dcal, trained(), "--data_root", tmp_path / "data", "--split", split)[0]["images"] == count
    outcome = dcal("eval", trained(), "--split", "test")
    assert outcome.status == 2 and "test/" in outcome.err and "val/" in outcome.err


def test_shards_need_test_archives_only(dcal, trained, images, tmp_path):
    flags = ["--dataset", "folder", "--data_root", images, "--output_dir", tmp_path / "shards", "--num_workers", 0]
    assert dcal("shard", *flags).status == 0
    (tmp_path / "shards/train-000000.tar").unlink()
    expected, _ = result_of(dcal, trained())
    result, _ = result_of(dcal, trained(), "--dataset", "shards", "--data_root", tmp_path / "shards")
    assert metrics(result) == metrics(expected)
    outcome = dcal("eval", trained(), "--dataset", "shards", "--data_root", tmp_path / "shards", "--split", "test")
    assert outcome.status == 2 and "test-*.tar" in outcome.err


@pytest.mark.parametrize("words", [("--split", "test"), ("--output", "rows.csv"), ("--unknown_classes", "leave_out")])
def test_reid_refuses_them(dcal, small_reid, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert dcal("train", *small_reid, "--epochs=1", "--output_dir", tmp_path / "run").status == 0
    outcome = dcal("eval", tmp_path / "run", *words)
    assert outcome.status == 2 and words[0] in outcome.err and "classification" in outcome.err


# --- a run that split its data itself ---


def test_a_run_of_class_folders(dcal, trained, unsplit, tmp_path):
    run = trained(f"--data_root={unsplit}", "--val_fraction=0.25")
    assert yaml.safe_load((run / "config.yaml").read_text())["val_fraction"] == 0.25
    (row,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result, said = result_of(dcal, run, "--output", tmp_path / "rows.csv")
    assert {name: row[f"val/{name}"] for name in ("top1", "top5", "top1_sa", "top1_glca")} == {
        name: result[name] for name in ("top1", "top5", "top1_sa", "top1_glca")
    }
    assert result["images"] == round(54 * 0.25 / 3 + 0.01) * 3 and "not the test data" not in said
    checked = dcal("check-data", "--dataset", "folder", "--data_root", unsplit, "--val_fraction", 0.25, "--json", "-")
    splits = json.loads(checked.out)["splits"]
    assert (splits["train"]["images"], splits["test"]["images"]) == (54 - result["images"], result["images"])
    flags = ["--dataset", "folder", "--data_root", unsplit, "--val_fraction", 0.25, "--num_workers", 0]
    assert dcal("shard", *flags, "--output_dir", tmp_path / "shards").status == 0
    same, _ = result_of(dcal, run, "--dataset", "shards", "--data_root", tmp_path / "shards")
    assert metrics(same) == metrics(result)


def test_another_fraction_is_another_run(dcal, trained, unsplit, small):
    run = trained(f"--data_root={unsplit}", "--val_fraction=0.25")
    flags = [*small, "--epochs=1", f"--data_root={unsplit}", f"--output_dir={run}"]
    assert dcal("train", *flags, "--val_fraction=0.25").status == 0
    outcome = dcal("train", *flags, "--val_fraction=0.5")
    assert outcome.status == 2 and "val_fraction (0.25 there, 0.5 here)" in outcome.err


@pytest.mark.parametrize("command", ["train", "check-data", "shard"])
def test_without_the_flag_and_with_reid(dcal, unsplit, tmp_path, command):
    flags = [command, "--dataset", "folder", "--data_root", unsplit, "--output_dir", tmp_path / "out"]
    flags = flags[:-2] if command == "check-data" else flags
    outcome = dcal(*flags)
    assert outcome.status == 2 and "--val_fraction" in outcome.err and "3 class folders" in outcome.err
    outcome = dcal(*flags, "--task", "reid", "--val_fraction", 0.2)
    assert outcome.status == 2 and "--val_fraction" in outcome.err and "query" in outcome.err
    outcome = dcal(*flags, "--val_fraction", 1.5)
    assert outcome.status == 2 and "val_fraction" in outcome.err and "1.5" in outcome.err


# --- the rows ---


def read(path):
    with open(path, newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def expected_rows(run, paths):
    """One image at a time, in float64, from the definition of the vote."""
    saved = read_model(run)
    stats = pixel_stats(saved.config, saved.model)
    transform = test_transform(tuple(saved.config.img_size), tuple(saved.config.resize()), stats.mean, stats.std)
    for path in paths:
        with torch.no_grad():
            logits = saved.model(transform(read_image(Path(path)))[None]).logits
        each = {f"_{name}": row[0].double().softmax(-1) for name, row in logits.items() if name != "pwca"}
        label = saved.classes.index(Path(path).parent.name)
        row = {"path": path, "label": saved.classes[label]}
        for suffix, scores in {"": sum(each.values()) / len(each), **each}.items():
            row[f"prediction{suffix}"] = saved.classes[scores.argmax()]
            row[f"probability{suffix}"] = scores.max().item()
            row[f"label_probability{suffix}"] = scores[label].item()
        yield row | {"correct": row["prediction"] == row["label"], "error": None}


@pytest.mark.parametrize("ablation", ["full", "sa_only"])
def test_rows_are_those_of_one_image_at_a_time(dcal, trained, images, tmp_path, ablation):
    run = trained(f"--ablation={ablation}", "--lr=1e-7")
    result, _ = result_of(dcal, run, "--output", tmp_path / "rows.jsonl", "--batch_size", 5)
    assert 0 < result["top1"] < 100  # else some columns would be constant
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row.pop("format_version") for row in rows} == {FORMAT_VERSION}
    paths = [f"{path}" for path in sorted((images / "val").glob("*/*.png"))]
    assert [row["path"] for row in rows] == paths
    branches = ["_sa", "_glca"] if ablation == "full" else ["_sa"]
    for row, expected in zip(rows, expected_rows(run, paths), strict=True):
        assert row == {
            name: pytest.approx(value, abs=2e-5) if isinstance(value, float) else value
            for name, value in expected.items()
        }
        assert [*row] == [
            "path", "label", "prediction", "correct", "probability", "label_probability",
            *(f"{measure}{branch}" for branch in branches for measure in MEASURES), "error",
        ]  # fmt: skip
    for suffix in ("", *branches):
        right = sum(row[f"prediction{suffix}"] == row["label"] for row in rows)
        assert 100 * right / len(rows) == pytest.approx(result[f"top1{suffix}"], abs=1e-4)
    assert result == result_of(dcal, run)[0]  # writing rows changes no metric


def test_formats_hold_the_same(dcal, trained, tmp_path):
    pytest.importorskip("pyarrow")
    from pyarrow.parquet import read_table

    for suffix in ("csv", "json", "jsonl", "parquet"):
        assert dcal("eval", trained(), "--output", tmp_path / f"rows.{suffix}").status == 0
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(lines) == 18
    assert {line.pop("format_version") for line in lines} == {FORMAT_VERSION}
    assert json.loads((tmp_path / "rows.json").read_text()) == {"format_version": FORMAT_VERSION, "images": lines}
    assert read_table(tmp_path / "rows.parquet").to_pylist() == lines
    as_text = [{name: "" if value is None else f"{value}" for name, value in line.items()} for line in lines]
    as_text = [line | {"correct": line["correct"].lower()} for line in as_text]
    assert read(tmp_path / "rows.csv") == as_text
    assert {path.name for path in tmp_path.iterdir()} == {f"rows.{s}" for s in ("csv", "json", "jsonl", "parquet")}


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_an_unreadable_image_is_a_row_with_its_reason(dcal, trained, tests_only, tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    (tests_only / "val/bee/02.png").write_bytes(b"")
    Image.new("RGB", (32, 32)).save(tests_only / 'val/cat/a, "quoted" name.png')
    (tests_only / "val/cat/00.png").rename(
        tests_only / "val/cat" / b"latin-\xe9.png".decode("utf-8", "surrogateescape")
    )
    file = tmp_path / f"rows.{suffix}"
    result, _ = result_of(dcal, trained(), "--data_root", tests_only, "--output", file)
    assert (result["images"], result["unreadable"]) == (18, 1)
    if suffix == "parquet":
        from pyarrow.parquet import read_table

        rows = read_table(file).to_pylist()
    else:
        rows = read(file) if suffix == "csv" else json.loads(file.read_text())["images"]
    assert len(rows) == 19
    (bad,) = [row for row in rows if row["error"]]
    assert bad["path"].endswith("val/bee/02.png") and bad["label"] == "bee" and "empty" in bad["error"]
    assert not any(value for name, value in bad.items() if name not in ("path", "label", "error"))
    assert any(row["path"].endswith('a, "quoted" name.png') for row in rows)
    if suffix == "csv":
        assert any(row["path"].endswith("latin-\udce9.png") for row in rows)  # the bytes of the name
    assert sum(f"{row['correct']}".lower() == "true" for row in rows) == round(result["top1"] * 18 / 100)


def test_files_that_cannot_be_written(dcal, trained, tmp_path, monkeypatch):
    for name, words in (("rows.txt", ".csv"), ("no/rows.csv", "no folder")):
        outcome = dcal("eval", trained(), "--output", tmp_path / name)
        assert outcome.status == 2 and "--output" in outcome.err and words in outcome.err
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    outcome = dcal("eval", trained(), "--output", tmp_path / "rows.parquet")
    assert outcome.status == 2 and "pyarrow" in outcome.err and "--output" in outcome.err


def test_an_evaluation_that_fails_leaves_no_file(trained, tests_only, tmp_path):
    for path in tests_only.glob("val/*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="test images"):
        evaluate(trained(), data_root=f"{tests_only}", device="cpu", output=tmp_path / "rows.json")
    assert not list(tmp_path.glob("rows*"))
