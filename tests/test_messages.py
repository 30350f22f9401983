"""Error messages that users see, held word for word by one file: tests/golden/messages.txt.

Other tests assert the exception and key tokens of its message. After a deliberate change of a message, renew the file
and read the diff:

    DCAL_UPDATE_GOLDEN=1 python -m pytest tests/test_messages.py
"""

import csv
import os
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

GOLDEN = Path(__file__).parent / "golden" / "messages.txt"
TRAIN = (
    "train --dataset folder --data_root images --backbone vit_tiny_patch16_224 --weights none --img_size 32 --epochs 1 "
    """--batch_size 8 --num_workers 0 --device cpu --backbone_kwargs '{"patch_size": 8, "embed_dim": 48, "depth": 2, """
    """"num_heads": 3}' --output_dir run"""
)
REID = TRAIN.replace("train --dataset", "train --task reid --dataset").replace("images", "people")
TYPED = (
    "nope",
    "train --task reid2",
    "train --dataset birds",
    "train --bacth_size 3",
    "train cub",
    "train --lr",
    "train --lr fast",
    "train --lr -1",
    "train --epochs 1.5",
    "train --flip 1.5",
    "train --ablation glca",
    "train --download maybe",
    "train --img_size 8 8 8",
    "train --backbone_kwargs 6",
    "train --mean 0.5",
    "train --config a.yaml",
    "train --config cub_deit_huge",
    "train --config list.yaml",
    "train --config unknown.yaml",
    "train --batch_size 1",
    "train --task reid --batch_size 6",
    "train --padding 4",
    "train --task reid --val_fraction 0.1",
    "train --weights_key ema",
    "eval",
    "eval one two",
    "eval missing",
    "eval foreign.safetensors",
    "eval model.safetensors --json no/where.json",
    "eval model.safetensors --rerank true",
    "eval model.safetensors --output rows.xlsx",
    "predict missing images",
    "predict model.safetensors nowhere.jpg",
    "embed model.safetensors",
    "calibrate model.safetensors --keep 2",
    "check-data --task reid --dataset market1501 --data_root images",
    "shard --dataset folder --data_root images",
)
"""Command lines, by their words."""
ADDED = {
    "train": (
        "--data_root nowhere",
        "--data_root one_class",
        "--data_root no_split",
        "--data_root empty_test",
        "--val_fraction 0.2",
        "--dataset cub",
        "--dataset cub --data_root notes.txt",
        "--dataset toy",
        "--backbone deit_tinny_patch16_224",
        "--img_size 30 36",
        "--resize_size 16",
        "--local_ratio 0",
        "--precision fp16",
        "--weights nowhere.pth",
        "--weights notes.txt",
        "--weights foreign.safetensors",
        "--freeze 3",
        "--freeze all --lora_rank 4",
        "--lora_rank 100",
        "--auto_augment rand-x9",
        "--output_dir notes.txt",
        "--resume nowhere",
    ),
    "train --task reid": (
        "--data_root images",
        "--data_root no_camera --cameras name",
        "--data_root missing_column --cameras name",
        "--data_root missing_image",
        "--data_root more_fields",
        "--batch_size 32 --images_per_identity 4",
    ),
}
"""Options that are added to `TRAIN` and `REID`; the file names only them, with the command."""
CASES = {command: command for command in TYPED}
CASES |= {f"train … {options}": f"{TRAIN} {options}" for options in ADDED["train"]}
CASES |= {f"train --task reid … {options}": f"{REID} {options}" for options in ADDED["train --task reid"]}


def golden() -> dict[str, str]:
    """Messages by their command, as the file has them: two lines each, and an empty one."""
    if not GOLDEN.exists():
        return {}
    entries = GOLDEN.read_text().strip().split("\n\n")
    return dict(entry.removeprefix("$ dcal ").split("\n", 1) for entry in entries)


def update(case: str, message: str) -> None:
    known = golden() | {case: message}
    GOLDEN.write_text("\n\n".join(f"$ dcal {each}\n{known[each]}" for each in CASES if each in known) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, images, people, make_images) -> Path:
    """What the commands name, made once."""
    root = tmp_path_factory.mktemp("messages")
    (root / "images").symlink_to(images)
    (root / "people").symlink_to(people)
    (root / "notes.txt").write_text("not a model, not a dataset")
    (root / "list.yaml").write_text("- a\n- b\n")
    (root / "unknown.yaml").write_text("bach_size: 3\n")
    for name in ("one_class", "no_split", "empty_test"):
        make_images(root / name)
    for path in (*root.glob("one_class/*/bee"), *root.glob("one_class/*/cat"), root / "no_split" / "val"):
        shutil.rmtree(path)
    for path in root.glob("empty_test/val/*/*"):
        path.unlink()
    rows = [["path", "identity", "camera"], ["ann/door_1.png", "ann", "door"], ["ann/hall_1.png", "ann", "hall"]]
    tables = {
        "missing_column": [["path", "identity"], ["ann/door_1.png", "ann"]],
        "missing_image": [*rows, ["ann/gone.png", "ann", "hall"]],
        "more_fields": [*rows[:2], [*rows[2], "more"]],
    }
    for name, table in tables.items():
        (root / name / "ann").mkdir(parents=True)
        for path in ("ann/door_1.png", "ann/hall_1.png"):
            shutil.copy(next(people.glob("train/*/*")), root / name / path)
        for split in ("train", "query", "gallery"):
            with (root / name / f"{split}.csv").open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(table)
    for path in people.glob("*/*/*_0.png"):
        copy = root / "no_camera" / path.relative_to(people).with_name(f"{path.stem.replace('_', '-')}.png")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return root


@pytest.fixture
def cwd(folder, make_model, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    if not Path("model.safetensors").exists():
        shutil.copy(make_model(), "model.safetensors")
        save_file({"conv1.weight": torch.zeros(3)}, "foreign.safetensors")
    return folder


def test_the_file_has_the_messages_of_these_commands():
    if not os.environ.get("DCAL_UPDATE_GOLDEN"):
        assert golden().keys() == CASES.keys()


@pytest.mark.parametrize("case", CASES)
def test_message(dcal, cwd, images, people, case):
    outcome = dcal(*shlex.split(CASES[case]))
    assert outcome.status == 2, outcome
    assert outcome.err.startswith("dcal: error: ") and outcome.err.count("\n") == 1
    assert not (cwd / "run").exists()
    message = outcome.err.removeprefix("dcal: error: ").strip()
    for path, shown in ((images, "/…/images"), (people, "/…/people"), (cwd, "/…")):
        message = message.replace(f"{path.resolve()}", shown).replace(f"{path}", shown)
    if os.environ.get("DCAL_UPDATE_GOLDEN"):
        update(case, message)
    assert message == golden()[case], "to renew it: DCAL_UPDATE_GOLDEN=1"
