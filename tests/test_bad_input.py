"""Invalid input: an error of one line that says what was expected, exit status 2, and no run.

Whole messages are in tests/golden/messages.txt.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dual_cross_attention.data.images import read_image
from tests.helpers import any_says, assert_says


@pytest.fixture
def refused(dcal, tmp_path, monkeypatch):
    """Runs a command that has to be refused, in an empty folder; returns the one line it is refused with."""
    empty = tmp_path / "working directory"
    empty.mkdir()
    monkeypatch.chdir(empty)

    def run(*arguments):
        outcome = dcal(*arguments)
        assert outcome.status == 2, (outcome.status, outcome.out, outcome.err)
        assert outcome.err.startswith("dcal: error: ")
        assert outcome.err.endswith("\n") and len(outcome.err.splitlines()) == 1
        assert "Traceback" not in outcome.err + outcome.out
        assert not list(empty.iterdir())  # no half-made run
        return outcome.err.removeprefix("dcal: error: ").strip()

    return run


# --- the command line ---


@pytest.mark.parametrize(
    ("arguments", "tokens"),
    [
        ("nope", "'nope' train, eval, predict, calibrate, embed, check-data"),
        ("train --task reid2", "task 'reid2' fgvc"),
        ("train --task=", "task '' fgvc"),
        ("train --dataset birds", "dataset 'birds' toy, cub, cars, aircraft, folder"),
        ("train --dataset", "--dataset: text, nothing"),
        ("train --bacth_size 3", "--bacth_size: --batch_size? --task, --dataset,"),
        ("train --batch 3", "unknown flag --batch:"),  # no abbreviations: a later flag could change what they mean
        ("train --backbone_kwargs.depth 3", "unknown flag --backbone_kwargs.depth: --backbone_kwargs?"),
        ("train --", "unknown flag --: --task,"),
        ("train -lr 3", "unexpected '-lr': [--SETTING"),
        ("train cub", "unexpected 'cub':"),
        ("train --lr 1 2", "unexpected '2':"),
        ("train --download false true", "unexpected 'true':"),
        ("train --lr", "--lr: number null nothing"),
        ("train --lr --epochs 3", "--lr: number null nothing"),
        ("train --lr fast", "--lr: number null 'fast'"),
        ("train --lr nan", "--lr: number null 'nan'"),
        ("train --lr .inf", "lr: at least 0 inf"),
        ("train --lr -1", "lr: at least 0 -1"),
        ("train --epochs 1.5", "--epochs: whole number '1.5'"),
        ("train --epochs null", "--epochs: whole number 'null'"),
        ("train --epochs=", "--epochs: whole number ''"),
        ("train --epochs 0", "epochs: at least 1 0"),
        ("train --warmup_epochs -1", "warmup_epochs: at least 0 -1"),
        ("train --flip 1.5", "flip: from 0 to 1 1.5"),
        ("train --label_smoothing 2", "label_smoothing: from 0 to 1 2"),
        ("train --ablation glca", "--ablation: full, sa_only, sa_glca, sa_pwca 'glca'"),
        ("train --precision int8", "--precision: auto, fp32, bf16, fp16, 'int8'"),
        ("train --device tpu", "--device: auto, cpu, cuda, mps, 'tpu'"),
        ("train --download maybe", "--download: true false 'maybe'"),
        ("train --img_size big", "--img_size: whole number two 'big'"),
        ("train --img_size 256x128", "--img_size: whole number two '256x128'"),
        ("train --img_size 8 8 8", "img_size: pixels [8, 8, 8]"),
        ("train --img_size 0", "img_size: pixels 0"),
        ("train --resize_size 64 -64", "resize_size: pixels [64, -64]"),
        ("train --backbone_kwargs 6", "--backbone_kwargs: names values '{\"depth\": 6}' got"),
        ("train --config", "--config: one argument"),
        ("train --config a.yaml b.yaml", "'a.yaml': YAML recipe"),
        ("train --config cub_deit_huge", "'cub_deit_huge': cub_deit_base?"),
        ("train --batch_size 1", "batch_size 1: PWCA 2"),
        ("train --batch_size 1 --ablation sa_pwca", "batch_size 1: PWCA 2"),
        ("eval", "eval: RUN_OR_MODEL nothing"),
        ("eval one two", "eval: unexpected 'two': RUN_OR_MODEL"),
        ("eval run --dataroot x", "--dataroot: --data_root? --dataset,"),
        ("eval run --precision fp8", "--precision: auto, fp32, bf16, fp16, null 'fp8'"),
        ("eval run --batch_size many", "--batch_size: whole number null 'many'"),
        ("eval run --json", "--json: text null nothing"),
        ("eval run --json no/where.json", "--json: 'no' 'no/where.json'"),
        ("eval run", "'run': best.safetensors .safetensors"),
    ],
)
def test_invalid_command_line(refused, arguments, tokens):
    assert_says(refused(*arguments.split()), *tokens.split())


def test_a_batch_of_one_is_fine_without_pwca(dcal, small, tmp_path):
    flags = [*small, "--epochs=1", "--output_dir", tmp_path]
    assert dcal("train", *flags, "--ablation", "sa_glca", "--batch_size", 1).status == 0


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("lr: fast", "lr: number null 'fast'"),
        ("epochs: null", "epochs: whole number null"),
        ("epochs: true", "epochs: whole number True"),
        ("backbone: 7", "backbone: text 7"),
        ("img_size: [1, 2.5]", "img_size: whole number two [1, 2.5]"),
        ("backbone_kwargs: [depth]", "backbone_kwargs: names values '{\"depth\": 6}' ["),
        ("bach_size: 3", "'bach_size': batch_size? task, dataset,"),
        ("config: other.yaml", "setting 'config':"),
        ("3: 4", "setting '3': task,"),
        ("dataset: [cub]", "dataset ['cub']: toy,"),
        ("task: null", "task: fgvc null"),
    ],
)
def test_invalid_settings_in_a_file(refused, tmp_path, text, tokens):
    path = tmp_path / "settings.yaml"
    path.write_text(text + "\n")
    assert_says(refused("train", "--config", path, "--epochs", 3), *tokens.split())


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"", b"lr: [1, 2", b"a: b: c", b"\xff\xfe\x00", b"just words"])
def test_a_file_that_is_not_settings(refused, tmp_path, content):
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    assert re.match(rf"(cannot read )?'{re.escape(str(path))}'", refused("train", "--config", path))


@pytest.mark.parametrize("key", ["lr", "dataset", "backbone_kwargs"])
@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system"])
def test_a_hostile_file_runs_nothing(refused, tmp_path, key, tag):
    mark, path = tmp_path / "mark", tmp_path / "hostile.yaml"
    path.write_text(f"{key}: {tag} ['touch {mark}']\n")
    assert_says(refused("train", "--config", path), path, "YAML", "constructor")
    refused("train", "--lr", path.read_text().partition(": ")[2].strip())
    refused("train", "--backbone_kwargs", path.read_text().partition(": ")[2].strip())
    assert not mark.exists()


# --- data ---


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


# --- the model and its weights ---


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


# --- the run's folder ---


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


# --- models to evaluate ---


def test_evaluating_invalid_models(dcal, refused, small, make_images, tmp_path):
    assert_says(refused("eval", tmp_path), f"'{tmp_path}'", "best.safetensors")
    (tmp_path / "notes.txt").write_text("no model")
    assert "as .safetensors" in refused("eval", tmp_path / "notes.txt")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    assert "no settings and class names" in refused("eval", tmp_path / "foreign.safetensors")

    run = tmp_path / "run"
    dcal("train", *small, "--epochs=1", "--output_dir", run)
    best = run / "best.safetensors"
    with safe_open(best, framework="pt") as file:
        metadata = file.metadata()

    def with_header(**changes):
        save_file(load_file(best), tmp_path / "changed.safetensors", metadata | changes)
        return refused("eval", tmp_path / "changed.safetensors")

    config = json.loads(metadata["config"])
    assert "no settings" in with_header(config="{")
    assert "no settings" in with_header(config="[1]")
    assert "no settings" in with_header(classes="3")
    assert "unknown setting 'extra'" in with_header(config=json.dumps(config | {"extra": 1}))
    assert "unknown task 'other'" in with_header(config=json.dumps(config | {"task": "other"}))
    assert_says(with_header(config=json.dumps(config | {"batch_size": "x"})), "batch_size: ", "whole number")
    assert "does not fit" in with_header(config=json.dumps(config | {"ablation": "sa_only"}))
    assert "does not fit" in with_header(classes='["a", "b"]')

    assert_says(refused("eval", run, "--batch_size", 0), "eval_batch_size: ", "at least 1", "got 0")
    assert "it does not exist" in refused("eval", run, "--data_root", tmp_path / "nowhere")
    other = make_images(tmp_path / "other")
    for split in ("train", "val"):
        (other / split / "bee").rename(other / split / "wasp")
    message = refused("eval", run, "--data_root", other)
    assert_says(message, "3 classes (ant, bee, cat)", "wasp")
    (tmp_path / "file").mkdir()
    assert_says(refused("eval", run, "--json", tmp_path / "file"), "--json", "a file to write")
    best.write_bytes(best.read_bytes()[:5000])
    assert "cannot read" in refused("eval", run)


# --- images that cannot be read ---


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_do_not_end_a_run(dcal, small, make_images, tmp_path, workers):
    """They are named once, skipped, counted, and reported at the end."""
    root = make_images(tmp_path / "pictures")
    broken = root / "train" / "ant" / "03.png"
    broken.write_bytes(broken.read_bytes()[:40])
    odd = root / "val" / "cat" / "[red]00.png"
    odd.write_text("no image")
    run = tmp_path / "run"
    flags = [*small, "--data_root", root, "--epochs=3", "--num_workers", workers, "--output_dir", run]
    outcome = dcal("train", *flags)
    assert (outcome.status, outcome.err) == (0, "")
    warnings = [line for line in outcome.out.splitlines() if line.startswith("warning: ")]
    for path in (broken, odd):
        assert sum(str(path) in line for line in warnings) == 1
    assert len(warnings) == 2
    end = outcome.out[outcome.out.index("best epoch") :]
    assert "2 images could not be read" in end and str(broken) in end and str(odd) in end
    # The rest is scored: 18 images of 3 classes, and not the broken nineteenth.
    result = json.loads(dcal("eval", run, "--json", "-").out)
    assert (result["images"], result["unreadable"]) == (18, 1)
    assert result["top1"] * 18 / 100 == pytest.approx(round(result["top1"] * 18 / 100), abs=1e-4)
    # Said again when the finished run is looked at again.
    assert "2 images could not be read" in dcal("train", *flags).out


def test_a_broken_image_is_replaced_in_training_batches(dcal, small, make_images, tmp_path, monkeypatch):
    """The last image of the list: what replaces it is the first."""
    root = make_images(tmp_path / "pictures")
    broken = sorted((root / "train").glob("*/*.png"))[-1]
    broken.unlink()
    broken.symlink_to(root / "gone")
    read = []

    def watch(image, *size):
        read.append(image)
        return read_image(image, *size)

    monkeypatch.setattr("dual_cross_attention.data.dataset.read_image", watch)
    flags = ["--epochs=1", "--sample_images=0"]  # the sheet reads images once more
    outcome = dcal("train", *small, "--data_root", root, *flags, "--output_dir", tmp_path / "run")
    assert outcome.status == 0
    assert any_says(outcome.out.splitlines(), "warning: ", "unreadable", "replaced", f"{broken}: ")
    training = [path for path in read if "train" in path.parts]
    assert len(training) == 37  # 36 and the replacement
    assert training[training.index(broken) + 1] == root / "train" / "ant" / "00.png"


@pytest.mark.parametrize("workers", [0, 2])
def test_no_training_image_can_be_read(shell, small, make_images, tmp_path, workers):
    """The error is raised in the process that reads, and told in the one that was started."""
    root = make_images(tmp_path / "pictures")
    for path in root.glob("train/*/*"):
        path.write_bytes(b"")
    done = shell(*small, "--data_root", root, "--num_workers", workers, "--output_dir", tmp_path / "run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert_says(line, "dcal: error: ", "none of the 36 training images", root)


def test_no_test_image_can_be_read(dcal, small, make_images, tmp_path):
    root = make_images(tmp_path / "pictures")
    for path in root.glob("val/*/*"):
        path.write_bytes(b"")
    flags = ["--data_root", root, "--max_bad_images", 18, "--output_dir", tmp_path / "run"]
    outcome = dcal("train", *small, *flags)
    assert outcome.status == 2
    assert "none of the test images" in outcome.err


# --- from a shell ---


@pytest.fixture
def shell(tmp_path):
    """`python train.py …` in a process of its own."""

    def run(*arguments):
        root = Path(__file__).parents[1]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        command = [sys.executable, root / "train.py", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_a_shell_sees_one_line_and_the_status(shell, tmp_path):
    """Nothing that a library prints or logs on the way stands beside it."""
    done = shell("--dataset", "cub", "--data_root", tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert_says(line, "dcal: error: cub: ", "CUB_200_2011/")


@pytest.mark.slow
def test_weights_that_cannot_be_fetched(shell, small, tmp_path):
    """The hub's client tries again for a minute, and keeps it to itself. Nothing listens on that port."""
    with mock.patch.dict(os.environ, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "empty cache")):
        done = shell(*small, "--backbone_kwargs={}", "--weights=imagenet", "--output_dir", tmp_path / "run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert_says(line, "dcal: error: ", "'vit_tiny_patch16_224'", "--weights none")


def test_interrupting_is_no_error_of_the_program(dcal, small, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dual_cross_attention.tasks.fgvc.FGVCTask.training_step", interrupt)
    outcome = dcal("train", *small, "--output_dir", tmp_path)
    assert outcome.status == 130
    assert len(outcome.err.splitlines()) == 1 and "last checkpoint" in outcome.err
