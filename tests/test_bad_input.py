"""Invalid command lines and settings: an error of one line that says what was expected, exit status 2, and no run.

Whole messages are in tests/golden/messages.txt.
"""

import os
import re
from unittest import mock

import pytest

from tests.helpers import assert_says


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
