"""What a user can get wrong: each is told in one line with what was expected, exits with 2, and leaves no run."""

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
    ("arguments", "message"),
    [
        ("nope", "unknown command 'nope': there is train, eval, predict, calibrate, embed, check-data"),
        ("train --task reid2", "unknown task 'reid2': there is fgvc"),
        ("train --task=", "unknown task '': there is fgvc"),
        ("train --dataset birds", "unknown dataset 'birds': there are toy, cub, cars, aircraft, folder"),
        ("train --dataset", "--dataset: expected text, got nothing"),
        ("train --bacth_size 3", "unknown flag --bacth_size: did you mean --batch_size? there are --task, --dataset, "),
        ("train --batch 3", "unknown flag --batch: "),  # no abbreviations: a later flag could change what they mean
        ("train --backbone_kwargs.depth 3", "unknown flag --backbone_kwargs.depth: did you mean --backbone_kwargs? "),
        ("train --", "unknown flag --: there are --task, "),
        ("train -lr 3", "dcal train: unexpected word '-lr': expected dcal train [--SETTING VALUE ...]"),
        ("train cub", "dcal train: unexpected word 'cub': expected dcal train "),
        ("train --lr 1 2", "dcal train: unexpected word '2': "),
        ("train --download false true", "dcal train: unexpected word 'true': "),
        ("train --lr", "--lr: expected a number, or null, got nothing"),
        ("train --lr --epochs 3", "--lr: expected a number, or null, got nothing"),
        ("train --lr fast", "--lr: expected a number, or null, got 'fast'"),
        ("train --lr nan", "--lr: expected a number, or null, got 'nan'"),
        ("train --lr .inf", "lr: expected a number of at least 0, got inf"),
        ("train --lr -1", "lr: expected a number of at least 0, got -1"),
        ("train --epochs 1.5", "--epochs: expected a whole number, got '1.5'"),
        ("train --epochs null", "--epochs: expected a whole number, got 'null'"),
        ("train --epochs=", "--epochs: expected a whole number, got ''"),
        ("train --epochs 0", "epochs: expected a number of at least 1, got 0"),
        ("train --warmup_epochs -1", "warmup_epochs: expected a number of at least 0, got -1"),
        ("train --flip 1.5", "flip: expected a number from 0 to 1, got 1.5"),
        ("train --label_smoothing 2", "label_smoothing: expected a number from 0 to 1, got 2"),
        ("train --ablation glca", "--ablation: expected one of full, sa_only, sa_glca, sa_pwca, got 'glca'"),
        ("train --precision int8", "--precision: expected one of auto, fp32, bf16, fp16, got 'int8'"),
        ("train --device tpu", "--device: expected one of auto, cpu, cuda, mps, got 'tpu'"),
        ("train --download maybe", "--download: expected true or false, got 'maybe'"),
        ("train --img_size big", "--img_size: expected a whole number, or two (height and width), got 'big'"),
        ("train --img_size 256x128", "--img_size: expected a whole number, or two (height and width), got '256x128'"),
        ("train --img_size 8 8 8", "img_size: expected a side, or height and width, in pixels; got [8, 8, 8]"),
        ("train --img_size 0", "img_size: expected a side, or height and width, in pixels; got 0"),
        ("train --resize_size 64 -64", "resize_size: expected a side, or height and width, in pixels; got [64, -64]"),
        ("train --backbone_kwargs 6", "--backbone_kwargs: expected names and values, such as '{\"depth\": 6}', got "),
        ("train --config", "--config: expected one argument"),
        ("train --config a.yaml b.yaml", "no config file 'a.yaml': expected a YAML file, or a recipe"),
        ("train --config cub_deit_huge", "no config file 'cub_deit_huge': did you mean cub_deit_base? "),
        ("train --batch_size 1", "batch_size 1: PWCA takes its distractor from the same batch, so it needs at least 2"),
        ("train --batch_size 1 --ablation sa_pwca", "batch_size 1: PWCA takes its distractor from the same batch"),
        ("eval", "dcal eval: expected RUN_OR_MODEL, got nothing"),
        ("eval one two", "dcal eval: unexpected word 'two': expected dcal eval RUN_OR_MODEL "),
        ("eval run --dataroot x", "unknown flag --dataroot: did you mean --data_root? there are --dataset, "),
        ("eval run --precision fp8", "--precision: expected one of auto, fp32, bf16, fp16, or null, got 'fp8'"),
        ("eval run --batch_size many", "--batch_size: expected a whole number, or null, got 'many'"),
        ("eval run --json", "--json: expected text, or null, got nothing"),
        ("eval run --json no/where.json", "--json: there is no folder 'no' to write 'no/where.json' in"),
        ("eval run", "no model at 'run': expected a run's folder (with best.safetensors), a .safetensors "),
    ],
)  # fmt: skip
def test_what_is_typed(refused, arguments, message):
    assert refused(*arguments.split()).startswith(message)


def test_a_batch_of_one_is_fine_without_pwca(dcal, small, tmp_path):
    flags = [*small, "--epochs=1", "--output_dir", tmp_path]
    assert dcal("train", *flags, "--ablation", "sa_glca", "--batch_size", 1).status == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: fast", "lr: expected a number, or null, got 'fast'"),
        ("epochs: null", "epochs: expected a whole number, got null"),
        ("epochs: true", "epochs: expected a whole number, got True"),
        ("backbone: 7", "backbone: expected text, got 7"),
        ("img_size: [1, 2.5]", "img_size: expected a whole number, or two (height and width), got [1, 2.5]"),
        ("backbone_kwargs: [depth]", "backbone_kwargs: expected names and values, such as '{\"depth\": 6}', got ["),
        ("bach_size: 3", "unknown setting 'bach_size': did you mean batch_size? there are task, dataset, "),
        ("config: other.yaml", "unknown setting 'config': "),
        ("3: 4", "unknown setting '3': there are task, "),
        ("dataset: [cub]", "unknown dataset ['cub']: there are toy, "),
        ("task: null", "task: expected one of fgvc, got null"),
    ],
)  # fmt: skip
def test_settings_in_a_file(refused, tmp_path, text, message):
    path = tmp_path / "settings.yaml"
    path.write_text(text + "\n")
    told = refused("train", "--config", path, "--epochs", 3)
    assert told.removeprefix(f"'{path}': ").startswith(message)


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
    assert refused("train", "--config", path).startswith(
        f"cannot read '{path}' as YAML: could not determine a constructor"
    )
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
    assert "expected at least two classes, found 1" in refused(*flags, root)

    root = make_images(tmp_path / "empty split")
    for path in root.glob("val/*/*.png"):
        path.unlink()
    assert "the test split is empty" in refused(*flags, root)

    root = make_images(tmp_path / "no split")
    shutil.rmtree(root / "val")
    assert "train/CLASS/*.jpg" in refused(*flags, root)
    assert not (tmp_path / "run").exists()


# --- the model and its weights ---


def test_backbone_and_size(refused, small, tmp_path):
    flags = ["train", *small, "--output_dir", tmp_path / "run"]
    message = refused(*flags, "--backbone", "deit_tinny_patch16_224")
    assert message.startswith("unknown backbone 'deit_tinny_patch16_224': did you mean deit_tiny_patch16_224")
    assert message.count("_patch16_") == 4  # the three nearest, not all of them
    assert "is not a plain ViT" in refused(*flags, "--backbone", "resnet18")
    message = refused(*flags, "--img_size", 30, 36)
    assert message.startswith("img_size 30x36 is not a multiple of the patch size 8x8")
    assert "timm cannot build" in refused(*flags, "--backbone_kwargs", '{"deppth": 2}')
    assert "resize must be at least img_size" in refused(*flags, "--resize_size", 16)
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
    assert message.startswith("no device 'cuda' on this machine") and message.endswith("there is auto, cpu")
    assert "fp16 needs CUDA, and the device is cpu" in refused(*flags, "--precision", "fp16")
    assert not (tmp_path / "run").exists()


# --- the run's folder ---


def test_output_dir_that_cannot_be_written(refused, small, tmp_path):
    file = tmp_path / "a file"
    file.write_text("something")
    for target in (file, file / "below", Path("/proc/nope") if sys.platform == "linux" else file):
        message = refused("train", *small, "--output_dir", target)
        assert message.startswith(f"cannot write to the run's folder '{target}': ")
    assert file.read_text() == "something"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_output_dir_without_permission(refused, small, tmp_path):
    target = tmp_path / "locked"
    target.mkdir(mode=0o555)
    assert "ermission denied" in refused("train", *small, "--output_dir", target)


def test_nothing_to_resume(refused, small, tmp_path):
    message = refused("train", *small, "--resume", tmp_path / "nowhere", "--output_dir", tmp_path / "run")
    assert message.startswith(f"nothing to resume at '{tmp_path / 'nowhere'}': expected auto, never, ")


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
            assert refused(*flags).startswith(f"none of the 1 checkpoints in '{run / 'checkpoints'}' is valid ({name}")
        path.write_bytes(whole)

    (run / "config.yaml").write_text("- not\n- settings\n")
    assert "config.yaml" in refused(*flags)


def test_resuming_what_does_not_fit(dcal, refused, small, tmp_path):
    dcal("train", *small, "--output_dir", tmp_path / "run")
    flags = ["train", *small, "--resume", tmp_path / "run"]
    assert "the checkpoint is of epoch 2, and --epochs is 1" in refused(
        *flags, "--epochs", 1, "--output_dir", tmp_path / "a"
    )
    for name, other in (("--ablation", "sa_only"), ("--img_size", "48")):
        message = refused(*flags, name, other, "--output_dir", tmp_path / name)
        assert f"holds a run with other settings: {name[2:]} (" in message


# --- models to evaluate ---


def test_evaluating_what_is_no_model(dcal, refused, small, make_images, tmp_path):
    assert refused("eval", tmp_path).startswith(f"no model at '{tmp_path}': ")
    (tmp_path / "notes.txt").write_text("no model")
    assert "as .safetensors" in refused("eval", tmp_path / "notes.txt")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    assert "holds no settings and class names" in refused("eval", tmp_path / "foreign.safetensors")

    run = tmp_path / "run"
    dcal("train", *small, "--epochs=1", "--output_dir", run)
    best = run / "best.safetensors"
    with safe_open(best, framework="pt") as file:
        metadata = file.metadata()

    def with_header(**changes):
        save_file(load_file(best), tmp_path / "changed.safetensors", metadata | changes)
        return refused("eval", tmp_path / "changed.safetensors")

    config = json.loads(metadata["config"])
    assert "holds no settings" in with_header(config="{")
    assert "holds no settings" in with_header(config="[1]")
    assert "holds no settings" in with_header(classes="3")
    assert "unknown setting 'extra'" in with_header(config=json.dumps(config | {"extra": 1}))
    assert "unknown task 'other'" in with_header(config=json.dumps(config | {"task": "other"}))
    assert "batch_size: expected a whole number" in with_header(config=json.dumps(config | {"batch_size": "x"}))
    assert "does not fit the settings" in with_header(config=json.dumps(config | {"ablation": "sa_only"}))
    assert "does not fit the settings" in with_header(classes='["a", "b"]')

    assert refused("eval", run, "--batch_size", 0).startswith("eval_batch_size: expected a number of at least 1, got 0")
    assert "it does not exist" in refused("eval", run, "--data_root", tmp_path / "nowhere")
    other = make_images(tmp_path / "other")
    for split in ("train", "val"):
        (other / split / "bee").rename(other / split / "wasp")
    message = refused("eval", run, "--data_root", other)
    assert "the model knows 3 classes (ant, bee, cat)" in message and "wasp" in message
    (tmp_path / "file").mkdir()
    assert "expected a file to write" in refused("eval", run, "--json", tmp_path / "file")
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
    outcome = dcal("train", *small, "--data_root", root, "--epochs=1", "--output_dir", tmp_path / "run")
    assert outcome.status == 0
    assert f"warning: unreadable image, replaced by the next one that can be read: {broken}: " in outcome.out
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
    assert line.startswith("dcal: error: none of the 36 training images can be read; the first: ")
    assert str(root) in line


def test_no_test_image_can_be_read(dcal, small, make_images, tmp_path):
    root = make_images(tmp_path / "pictures")
    for path in root.glob("val/*/*"):
        path.write_bytes(b"")
    flags = ["--data_root", root, "--max_bad_images", 18, "--output_dir", tmp_path / "run"]
    outcome = dcal("train", *small, *flags)
    assert outcome.status == 2
    assert "none of the test images can be read" in outcome.err


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
    assert line.startswith("dcal: error: cub: expected CUB_200_2011/")


@pytest.mark.slow
def test_weights_that_cannot_be_fetched(shell, small, tmp_path):
    """The hub's client tries again for a minute, and keeps it to itself. Nothing listens on that port."""
    with mock.patch.dict(os.environ, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "empty cache")):
        done = shell(*small, "--backbone_kwargs={}", "--weights=imagenet", "--output_dir", tmp_path / "run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("dcal: error: timm could not fetch the weights of 'vit_tiny_patch16_224'")
    assert "--weights none" in line


def test_interrupting_is_no_error_of_the_program(dcal, small, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dual_cross_attention.tasks.fgvc.FGVCTask.training_step", interrupt)
    outcome = dcal("train", *small, "--output_dir", tmp_path)
    assert outcome.status == 130
    assert len(outcome.err.splitlines()) == 1 and "resumes from its last checkpoint" in outcome.err
