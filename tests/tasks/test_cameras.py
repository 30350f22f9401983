"""`--sie camera` from the data to the evaluation: by the names of cameras, and never by the number of another one."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from dual_cross_attention import load_model
from dual_cross_attention.configs import ReIDConfig
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.data.reid.folder import load_folder
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.side_information import UNKNOWN
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.tasks.cameras import CameraIndices, camera_indices, training_cameras
from dual_cross_attention.tasks.registry import read_setup
from tests.helpers import assert_refused, assert_same_run, rows_of

SIE = ["--sie=camera", "--cameras=name", "--ablation=sa_only"]


@pytest.fixture(scope="module")
def other_cameras(people, tmp_path_factory):
    """People whose training images are of the cameras attic and hall, and test images of door and hall."""
    root = tmp_path_factory.mktemp("cameras") / "people"
    shutil.copytree(people, root)
    for path in [*(root / "train").rglob("door_*")]:
        path.rename(path.with_name(path.name.replace("door", "attic")))
    return root


@pytest.fixture(scope="module")
def trained(small_reid, people, tmp_path_factory):
    from dual_cross_attention.cli import main

    run = tmp_path_factory.mktemp("sie") / "run"
    assert main(["train", *small_reid, *SIE, "--lr=1e-2", f"--output_dir={run}"]) == 0
    return run


def test_cameras_go_by_their_names(other_cameras):
    data = load_folder(other_cameras)
    names = training_cameras(data, ())
    assert names == ["attic", "hall"]
    for side, first in ((data.train, "attic"), (data.query, "door"), (data.gallery, "door")):
        expected = [{"attic": 0, "hall": 1, "door": UNKNOWN}[path.name.split("_")[0]] for path in side.images]
        assert camera_indices(data, side, names).tolist() == expected
        assert any(path.name.startswith(first) for path in side.images)
    assert training_cameras(data, ("hall",)) == ["hall"]
    assert set(camera_indices(data, data.train, ["hall"]).tolist()) == {0, UNKNOWN}
    with pytest.raises(InputError, match="door"):
        training_cameras(data, ("hall", "door"))


def test_archives_number_a_camera_alike_in_all_splits(dcal, other_cameras, tmp_path):
    """Of a folder, cameras become numbers in archives, and its training images have numbers of their own."""
    flags = ["--task=reid", "--dataset=folder", "--cameras=name", "--num_workers=0"]
    assert dcal("shard", *flags, "--data_root", other_cameras, "--output_dir", tmp_path).status == 0
    setup = read_setup(ReIDConfig(dataset="shards", data_root=str(tmp_path)))
    names = training_cameras(setup.data, ())
    test = camera_indices(setup.data, setup.data.query, names)
    train = camera_indices(setup.data, setup.data.train, names)
    of_folder = load_folder(other_cameras)
    doors = [path.name.startswith("door") for path in of_folder.query.images]
    assert [(place == UNKNOWN) for place in test.tolist()] == doors
    assert sorted(np.bincount(train.numpy()).tolist()) == [12, 12]
    hall = names[test[test != UNKNOWN][0]]
    assert hall == "1"  # door is 0 and hall 1 in the test images; attic, which is not there, 2
    assert names == ["1", "2"]


def test_dropping_counts_images_as_unknown():
    cameras = torch.arange(6).repeat(2000)
    indices = CameraIndices(cameras, cameras, 0.25)
    torch.manual_seed(0)
    found = indices.of_training(torch.arange(12_000))
    assert 0.23 < (found == UNKNOWN).float().mean() < 0.27
    assert torch.equal(found[found != UNKNOWN], cameras[found != UNKNOWN])
    assert torch.equal(indices.of_test(torch.tensor([5, 0])), torch.tensor([5, 0]))


def test_a_run_trains_and_saves_the_embeddings(trained):
    config = RunFolder(trained).read_config()
    assert (config.sie, config.sie_cameras) == ("camera", ("door", "hall"))
    embedding = load_file(trained / "last.safetensors")["side_information.embedding"]
    assert embedding.shape == (2, 48) and embedding.std() > 0
    assert load_model(trained, device="cpu").model.side_information.scale == 3.0


def test_an_evaluation_of_the_run_uses_them(dcal, trained, tmp_path):
    outcome = dcal("eval", trained, "--json", tmp_path / "a.json", "--device=cpu")
    assert "embeddings of 2 cameras" in outcome.out, outcome
    found = json.loads((tmp_path / "a.json").read_text())
    best = max(rows_of(trained), key=lambda row: row["val/mAP"])
    assert found["mAP"] == pytest.approx(best["val/mAP"], abs=0.01)


def test_another_dataset_has_unknown_cameras(dcal, trained, people, tmp_path):
    """Though they have the same names. Features are those of the model without any camera."""
    shutil.copytree(people, tmp_path / "other")
    extra = tmp_path / "other" / "gallery" / "eva"
    shutil.copy(extra / "door_0.png", extra / "door_9.png")
    outcome = dcal("eval", trained, "--data_root", tmp_path / "other", "--device=cpu")
    assert outcome.status == 0 and "all test images count as of unknown cameras" in outcome.out, outcome


def test_features_outside_of_an_evaluation_are_of_unknown_cameras(trained, people):
    model = load_model(trained, device="cpu")
    path = people / "query" / "eva" / "door_0.png"
    from PIL import Image

    with Image.open(path) as image:
        pixels = model.transform(image.convert("RGB"))[None]
    with torch.no_grad():
        plain = F.normalize(model.model(pixels).features["sa"])
        at_door = F.normalize(model.model(pixels, cameras=torch.tensor([0])).features["sa"])
    embedded = model.embed(path)
    assert torch.allclose(embedded, plain, atol=1e-5) and not torch.allclose(embedded, at_door, atol=1e-5)


def test_a_resumed_run_is_the_same(dcal, small_reid, tmp_path):
    flags = [*small_reid, *SIE, "--sie_dropout=0.5", "--seed=3"]
    assert dcal("train", *flags, "--output_dir", tmp_path / "whole").status == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "epoch_0002")
    outcome = dcal("train", *flags, "--output_dir", tmp_path / "parts")
    assert outcome.status == 0 and "resume" in outcome.out, outcome
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("flags", [["--ablation=full"], ["--ablation=full", "--distractors=half"], ["--lora_rank=2"]])
def test_with_other_settings(dcal, small_reid, tmp_path, flags):
    given = [*small_reid, "--sie=camera", "--cameras=name", "--epochs=1", *flags]
    outcome = dcal("train", *given, "--output_dir", tmp_path / "run")
    assert outcome.status == 0, outcome


@pytest.mark.parametrize("flags", [["--freeze=1"], ["--freeze=all"]])
def test_frozen_blocks_would_not_train_them(dcal, small_reid, flags):
    assert_refused(dcal("train", *small_reid, *SIE, *flags), "sie", "freeze")


def test_data_without_cameras_is_refused(dcal, small_reid):
    assert_refused(dcal("train", *small_reid, "--sie=camera", "--cameras=none"), "sie camera", "no cameras")


def test_a_setting_without_effect_is_said(dcal, small_reid, tmp_path):
    outcome = dcal("train", *small_reid, "--sie_dropout=0.3", "--epochs=1", "--output_dir", tmp_path / "run")
    assert "no effect: sie_dropout" in outcome.out.replace("\n", " ")


def test_settings():
    config = parse_config(["--task=reid", "--sie=camera", "--sie_cameras", "1", "2"])
    assert config.sie_cameras == ("1", "2")
    with pytest.raises(InputError, match="twice"):
        ReIDConfig(sie_cameras=("a", "a"))


def test_an_exported_graph_has_unknown_cameras(dcal, trained, people, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    outcome = dcal("export", trained, "--output", tmp_path / "model.onnx")
    assert outcome.status == 0, outcome
    path = people / "query" / "eva" / "door_0.png"
    one, other = (load_model(each, device="cpu").embed(path) for each in (trained, tmp_path / "model.onnx"))
    assert torch.allclose(one, other, atol=1e-4)
    evaluated = dcal("eval", tmp_path / "model.onnx", "--data_root", people)
    assert evaluated.status == 0 and "no embedding of cameras" in evaluated.out, evaluated
