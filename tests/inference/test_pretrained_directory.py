"""`save_pretrained`: a directory that loads elsewhere, and a card that says where its numbers are from."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from dual_cross_attention import InputError, load_model
from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.data.fingerprint import DataFingerprint, SplitFingerprint
from dual_cross_attention.inference.model_files import LAST_EPOCH, read_model_file, save_model

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def card_of(directory):
    """Front matter and text of the card."""
    _, front, text = (directory / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_round_trip_of_a_directory(tmp_path, make_model, calibration):
    path = make_model(
        data_root="/home/me/birds",
        output_dir="/home/me/runs/1",
        weights="/home/me/deit.pth",
        distractors="dataset",
        distractor_root="/home/me/clutter",
    )
    model = load_model(path, device="cpu")
    model.calibration = calibration
    model.save_pretrained(tmp_path / "new" / "birds")
    directory = tmp_path / "new" / "birds"
    assert {file.name for file in directory.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    for again in (load_model(directory, device="cpu"), load_model(directory / "model.safetensors", device="cpu")):
        assert again.predict(IMAGE) == model.predict(IMAGE)
        assert torch.equal(again.embed(IMAGE), model.embed(IMAGE))
        assert (again.labels, again.transform, again.calibration) == (model.labels, model.transform, calibration)
        assert again.fingerprint() == model.fingerprint() and again.metrics == model.metrics
    described = json.loads((directory / "config.json").read_text())
    assert described["labels"] == model.labels and described["preprocessing"]["resize"] == [36, 48]
    assert described["format_version"] and described["calibration"]["answers"]["sa"]["temperature"] == 1.5
    for file in directory.iterdir():
        assert b"/home/me" not in file.read_bytes(), file
    model.save_pretrained(directory)  # replaces it


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
def test_the_card_says_how_the_epoch_was_chosen(tmp_path, make_model, name):
    file = read_model_file(make_model(labels=["a|b", "`c`", "d"]))
    splits = {"train": SplitFingerprint(1234, "12ab"), "test": SplitFingerprint(567, "34cd")}
    data = DataFingerprint("folder", 3, "ff", splits)
    metrics = {"epoch": 7, "val/top1": 81.25, "val/top1_glca": 79.5}
    save_model(tmp_path / name, file.state, file.config, file.classes, metrics, data)
    load_model(tmp_path / name, device="cpu").save_pretrained(tmp_path / "out")
    front, text = card_of(tmp_path / "out")
    assert front["pipeline_tag"] == "image-classification" and front["library_name"] == "dual-cross-attention"
    for words in ("1,234 images", "567 images", "81.25", "79.50", "epoch 7", "optimistic"):
        assert words in text
    assert ("best score on the test split" in text) == (name == "best.safetensors")
    assert (LAST_EPOCH in text.split("The best model")[0]) == (name == "last.safetensors")
    again = load_model(tmp_path / "out", device="cpu")  # which is called neither best nor last
    again.save_pretrained(tmp_path / "again")
    assert card_of(tmp_path / "again") == (front, text)


@pytest.mark.parametrize(
    ("weights", "license_", "said"),
    [
        ("imagenet", "apache-2.0", "apache-2.0"),
        ("none", None, "random weights"),
        ("/home/me/own.pth", None, "`own.pth`"),
        ("C:\\Users\\me\\own.pth", None, "`own.pth`"),
    ],
)
def test_the_card_names_the_license_of_the_starting_weights(tmp_path, make_model, weights, license_, said):
    load_model(make_model(weights=weights), device="cpu").save_pretrained(tmp_path / "out")
    front, text = card_of(tmp_path / "out")
    assert front.get("license") == license_ and said in text.split("## License")[1]


def test_a_run_is_not_written_over(tmp_path, make_model):
    (tmp_path / "run").mkdir()
    shutil.copy(make_model(), tmp_path / "run" / "best.safetensors")
    model = load_model(tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match="run's folder"):
        model.save_pretrained(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        model.save_pretrained(tmp_path / "file")


def test_other_directories_are_refused(tmp_path, make_model):
    load_model(make_model(), device="cpu").save_pretrained(tmp_path / "out")
    good = (tmp_path / "out" / "model.safetensors").read_bytes()
    version = f'"format_version":"{FORMAT_VERSION}"'.encode()
    assert version in good
    for bad, said in (
        (good[: len(good) // 2], "safetensors"),
        (b"", "safetensors"),
        (good.replace(version, b'"format_version":"9"'), "format_version 9"),
    ):
        (tmp_path / "out" / "model.safetensors").write_bytes(bad)
        with pytest.raises(InputError, match=said):
            load_model(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    for path in (tmp_path / "out", tmp_path):
        with pytest.raises(InputError, match="no model"):
            load_model(path)
