"""The command that messages name is the one that the user ran."""

import sys

import pytest

from dual_cross_attention.program import train_command


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        ("train.py", "python train.py"),
        ("/a folder/train.py", "python '/a folder/train.py'"),
        ("/usr/bin/dcal", "dcal train"),
        ("dcal.exe", "dcal train"),
        ("-c", "dcal train"),
        ("", "dcal train"),
    ],
)
def test_train_command(monkeypatch, started, expected):
    monkeypatch.setattr(sys, "argv", [started, "--epochs", "1"])
    assert train_command() == expected


def test_the_end_of_a_training_names_it(dcal, tmp_path, monkeypatch):
    """Of the toy task, which is followed by a real dataset; the finished run is only reported again."""
    flags = ["train", "--epochs=1", "--batch_size=35", "--num_workers=0", "--device=cpu", "--ablation=sa_only"]
    size = ["--img_size=16", "--resize_size=16"]
    small = '--backbone_kwargs={"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}'
    for started, expected in (
        ("/usr/bin/dcal", "\n  dcal train --task fgvc"),
        ("train.py", "\n  python train.py --task"),
    ):
        monkeypatch.setattr(sys, "argv", [started])
        outcome = dcal(*flags, *size, small, "--output_dir", tmp_path / "run")
        assert outcome.status == 0 and expected in outcome.out, outcome
