"""Data, models, weights and folders that cannot be trained with: an error of one line, and no run."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers import assert_says


def test_data_root_missing_or_wrong(refused, tmp_path):
    for dataset, layout in (("cub", "CUB_200_2011/"), ("cars", "stanford_cars/"), ("aircraft", "fgvc-aircraft-2013b/")):
        wanted = refused("train", "--dataset", dataset)
        assert layout in wanted and "get it from" in wanted
        (tmp_path / dataset).mkdir()
        for wrong in (tmp_path / dataset, tmp_path / "nowhere", Path(__file__)):
            wanted = refused("train", "--dataset", dataset, "--data_root", wrong)
            assert layout in wanted and "get it from" in wanted and str(wrong) in wanted


def test_images_that_cannot_be_trained_on(refused, small, make_images, tmp_path):
    flags = ["train", *small, "--output_dir", tmp_path / "run", "--data_root"]
    root = make_images(tmp_path / "one class")
    for split in ("train", "val"):
        for name in ("bee", "cat"):
            shutil.rmtree(root / split / name)
    assert_says(refused(*flags, root), "two classes", "found 1")

    root = make_images(tmp_path / "empty split")
    for path in root.glob("val/*/*.png"):
        path.unlink()
    assert_says(refused(*flags, root), "test split", "empty")

    root = make_images(tmp_path / "no split")
    shutil.rmtree(root / "val")
    assert "train/CLASS/*.jpg" in refused(*flags, root)
    assert not (tmp_path / "run").exists()


def test_backbone_and_size(refused, small, tmp_path):
    flags = ["train", *small, "--output_dir", tmp_path / "run"]
    message = refused(*flags, "--backbone", "deit_tinny_patch16_224")
    assert_says(message, "'deit_tinny_patch16_224'", " deit_tiny_patch16_224")
    assert message.count("_patch16_") == 4  # the three nearest, not all of them
    assert "none of the families" in refused(*flags, "--backbone", "resnet18")
    message = refused(*flags, "--img_size", 30, 36)
    assert_says(message, "img_size 30x36", "patch size 8x8")
    assert "timm cannot build" in refused(*flags, "--backbone_kwargs", '{"deppth": 2}')
    message = refused(*flags, "--backbone_kwargs", '{"drop_path_rate": 0.2}')
    assert_says(message, "backbone_kwargs", "'drop_path_rate'", "--drop_path_rate")
    for name in ("num_classes", "img_size", "pretrained", "distractor_noise"):
        assert f"'{name}'" in refused(*flags, "--backbone_kwargs", f'{{"{name}": 1}}')
    assert_says(refused(*flags, "--resize_size", 16), "resize", "16×16", "img_size")
    assert "local_ratio" in refused(*flags, "--local_ratio", 0)
    assert not (tmp_path / "run").exists()


def test_weights(refused, small, tmp_path):
    flags = ["train", *small, "--output_dir", tmp_path / "run", "--weights"]
    assert "nowhere.pth" in refused(*flags, tmp_path / "nowhere.pth")
    assert "imagnet" in refused(*flags, "imagnet")

    for name in ("garbage.safetensors", "garbage.pth", "garbage.npz", "garbage.jpg"):
        (tmp_path / name).write_bytes(b"no weights at all" * 20)
        assert name in refused(*flags, tmp_path / name)

    foreign = tmp_path / "foreign.safetensors"
    save_file({"conv1.weight": torch.zeros(3)}, foreign)
    message = refused(*flags, foreign)
    assert "unexpected [conv1.weight]" in message and "blocks.0.attn.proj.weight" in message


def test_device_and_precision(refused, small, tmp_path, monkeypatch):
    flags = ["train", *small, "--output_dir", tmp_path / "run"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused(*flags, "--device", "cuda")
    assert "'cuda'" in message and message.endswith("auto, cpu")
    assert_says(refused(*flags, "--precision", "fp16"), "fp16", "CUDA", "cpu")
    assert not (tmp_path / "run").exists()


def test_output_dir_that_cannot_be_written(refused, small, tmp_path):
    file = tmp_path / "a file"
    file.write_text("something")
    for target in (file, file / "below", Path("/proc/nope") if sys.platform == "linux" else file):
        message = refused("train", *small, "--output_dir", target)
        assert_says(message, "cannot write", f"'{target}'")
    assert file.read_text() == "something"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_output_dir_without_permission(refused, small, tmp_path):
    target = tmp_path / "locked"
    target.mkdir(mode=0o555)
    assert "ermission denied" in refused("train", *small, "--output_dir", target)


def test_nothing_to_resume(refused, small, tmp_path):
    message = refused("train", *small, "--resume", tmp_path / "nowhere", "--output_dir", tmp_path / "run")
    assert_says(message, f"'{tmp_path / 'nowhere'}'", "auto, never, ")


def test_a_folder_with_a_damaged_run(dcal, refused, small, tmp_path):
    run = tmp_path / "run"
    flags = ["train", *small, "--output_dir", run]
    dcal(*flags)
    shutil.rmtree(run / "checkpoints" / "epoch_0002")
    for name in ("progress.json", "state.pt", "manifest.json"):
        path = run / "checkpoints" / "epoch_0001" / name
        whole = path.read_bytes()
        for damaged in (b"", b"no checkpoint", whole[:100], whole[:-100]):
            path.write_bytes(damaged)
            assert_says(refused(*flags), "none of the 1 checkpoints", run / "checkpoints", f"({name}")
        path.write_bytes(whole)

    (run / "config.yaml").write_text("- not\n- settings\n")
    assert "config.yaml" in refused(*flags)


def test_resuming_what_does_not_fit(dcal, refused, small, tmp_path):
    dcal("train", *small, "--output_dir", tmp_path / "run")
    flags = ["train", *small, "--resume", tmp_path / "run"]
    assert_says(refused(*flags, "--epochs", 1, "--output_dir", tmp_path / "a"), "epoch 2", "--epochs is 1")
    for name, other in (("--ablation", "sa_only"), ("--img_size", "48")):
        message = refused(*flags, name, other, "--output_dir", tmp_path / name)
        assert_says(message, "other settings: ", f"{name[2:]} (")
