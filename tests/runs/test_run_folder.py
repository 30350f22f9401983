"""A run's files: written whole, read back as they were."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open

from dual_cross_attention import InputError
from dual_cross_attention.configs import FGVCConfig
from dual_cross_attention.inference.model_files import build_model, find_model_file, read_model, save_model
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.training.checkpointing.checkpoints import list_checkpoints, write_checkpoint


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "deep" / "run")


@pytest.fixture
def config():
    return FGVCConfig(
        backbone="vit_tiny_patch16_224",
        backbone_kwargs={"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
        img_size=[32, 48],
        lr=1e-5,
    )


def test_settings(folder, config):
    folder.write_config(config)
    assert folder.read_config() == config
    folder.config.write_text("{")
    with pytest.raises(InputError, match=r"config.yaml.*YAML"):
        folder.read_config()


def test_metrics(folder, config):
    folder.write_config(config)
    folder.drop_metrics_after(0)
    assert folder.read_metrics() == []
    rows = [{"epoch": epoch, "train/loss": 1 / epoch} for epoch in (1, 2, 3)]
    for row in rows:
        folder.write_metrics(row)
    assert folder.read_metrics() == rows
    folder.drop_metrics_after(2)
    assert folder.read_metrics() == rows[:2]
    folder.write_metrics(rows[2])
    assert folder.read_metrics() == rows
    folder.drop_metrics_after(0)
    assert folder.read_metrics() == []


def test_parts_of_files_that_a_kill_has_left_go(folder, config):
    folder.write_config(config)
    names = ("config.yaml", "resumed_from.json", "metrics.jsonl", "best.safetensors", "memory.json")
    left = [folder.path / f"{name}.tmp" for name in names]
    for path in left:
        path.write_text("half")
    own = folder.path / "notes.tmp"
    own.write_text("of somebody else")
    folder.remove_leftovers()
    assert {path.name for path in folder.path.iterdir()} == {"config.yaml", "notes.tmp"}


@pytest.mark.parametrize("line", ["7", "{}", "[]", '{"epoch": "one"}', "[" * 100_000, "no json"])
def test_rows_that_are_none(folder, config, line):
    folder.write_config(config)
    folder.metrics.write_text(f'{{"epoch": 1}}\n{line}\n')
    assert folder.read_metrics() == [{"epoch": 1}]  # the last may be cut short
    folder.metrics.write_text(f'{line}\n{{"epoch": 1}}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl', line 1: .*JSON"):
        folder.read_metrics()


def test_round_trip_of_a_model(folder, config, monkeypatch):
    folder.write_config(config)
    torch.manual_seed(0)
    model = build_model(config, 3, pretrained=False).eval()
    save_model(folder.last, model.state_dict(), config, ["ä", "b", "c"], {"epoch": 4, "val/top1": 50.0})
    saved = read_model(folder.path)  # no best yet: the last
    assert find_model_file(folder.path) == folder.last
    assert (saved.config, saved.classes, saved.metrics) == (config, ["ä", "b", "c"], {"epoch": 4, "val/top1": 50.0})
    images = torch.rand(2, 3, 32, 48)
    torch.testing.assert_close(saved.model.predict(images), model.predict(images), atol=0, rtol=0)
    # Once there is a best model, it is the one that is meant.
    shutil.copy(folder.last, folder.best)
    assert find_model_file(folder.path) == folder.best
    with safe_open(folder.best, framework="pt") as file:
        assert "torch" in json.loads(file.metadata()["versions"])

    # A write that fails leaves what was there.
    before = folder.last.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("dual_cross_attention.inference.model_files.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(folder.last, model.state_dict(), config, ["a", "b", "c"], {})
    assert folder.last.read_bytes() == before


def test_only_finished_checkpoints_count(folder):
    assert list_checkpoints(folder.checkpoints) == []
    in_order = ["epoch_0002", "epoch_0009", "epoch_0009_step_00000120", "epoch_0009_step_00000130", "epoch_0010"]
    for name in (*reversed(in_order), "epoch_0011.tmp", "epoch_0001.old", "epoch_0012.damaged", "notes"):
        write_checkpoint(folder.checkpoints / name, {}, {"epoch": 1})
    (folder.checkpoints / "epoch_0012").mkdir()
    assert [path.name for path in list_checkpoints(folder.checkpoints)] == in_order


def test_settings_of_the_model_reach_the_model():
    size = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    model = build_model(
        FGVCConfig(
            backbone="vit_tiny_patch16_224",
            backbone_kwargs=size,
            img_size=[32, 48],
            ablation="full",
            local_ratio=0.25,
            glca_init="last_block",
            distractor_stream="sa",
            drop_path_rate=0.3,
        ),
        7,
        pretrained=False,
    )
    assert len(model.backbone.blocks) == 3 and model.backbone.patch_embed.grid_size == (4, 6)
    assert (model.ablation, model.local_ratio, model.clean_distractors) == ("full", 0.25, True)
    assert model.backbone.blocks[2].drop_path1.drop_prob == pytest.approx(0.3)
    assert torch.equal(model.glca_block.block.attn.qkv.weight, model.backbone.blocks[2].attn.qkv.weight)
    assert model.eval().predict(torch.rand(1, 3, 32, 48)).shape == (1, 7)
