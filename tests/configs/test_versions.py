"""What files of earlier formats mean."""

from dataclasses import asdict, dataclass, fields

import pytest
import yaml

from dual_cross_attention import InputError
from dual_cross_attention.configs import CONFIGS, FGVCConfig, parse
from dual_cross_attention.configs.parse import as_of, parse_config, restore_config
from dual_cross_attention.configs.versions import FORMAT_VERSION, check_version, earlier_defaults, setting

FORMAT_1 = set(
    [
        "task",
        "dataset",
        "data_root",
        "download",
        "backbone",
        "backbone_kwargs",
        "weights",
        "ablation",
        "local_ratio",
        "glca_init",
        "distractor_stream",
        "drop_path_rate",
        "img_size",
        "flip",
        "epochs",
        "batch_size",
        "gradient_accumulation_steps",
        "lr",
        "lr_per_512",
        "min_lr",
        "warmup_epochs",
        "optimizer",
        "bias_lr_factor",
        "w_lr_factor",
        "weight_decay",
        "clip_grad",
        "weight_bound",
        "precision",
        "use_gradient_checkpointing",
        "compile",
        "device",
        "parallel",
        "num_workers",
        "cache",
        "max_bad_images",
        "eval_batch_size",
        "eval_every",
        "seed",
        "checkpoint_minutes",
        "output_dir",
        "resume",
        "resize_size",
        "label_smoothing",
        "padding",
        "erasing",
        "pixel_stats",
        "images_per_identity",
        "triplet_margin",
        "feature",
        "distance",
        "normalize_features",
    ]
)
ALL_SETTINGS = sorted(
    {settings for task in CONFIGS.values() for settings in task.values()}, key=lambda each: each.__name__
)


@dataclass(kw_only=True)
class Later(FGVCConfig):
    """Settings as a later version might have them: one new, one with another default."""

    eye: float = setting(0.5, before={1: 0.0})
    flip: float = setting(0.25, before={1: 0.5})


@pytest.fixture
def later(monkeypatch):
    monkeypatch.setitem(CONFIGS["fgvc"], "cub", Later)


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_every_later_setting_declares_what_files_without_it_mean(settings):
    later = {each.name for each in fields(settings)} - FORMAT_1 - {"format_version"}
    assert {
        name for each in fields(settings) if (name := each.name) in later and "before" not in each.metadata
    } == set()


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_versions_are_raised_with_defaults(settings):
    for each in fields(settings):
        for version, value in each.metadata.get("before", {}).items():
            assert version < FORMAT_VERSION or value == each.default, each.name


def test_earlier_defaults():
    @dataclass
    class Settings:
        old: int = 1
        new: int = setting(2, before={1: 0})
        changed: int = setting(9, before={1: 5, 3: 7})

    assert earlier_defaults(Settings, 1, complete=False) == {"new": 0, "changed": 5}
    assert earlier_defaults(Settings, 2, complete=False) == {"changed": 7}
    assert earlier_defaults(Settings, 4, complete=False) == {}
    # A file that names all settings of its time and lacks one was written before there was one.
    assert earlier_defaults(Settings, 4, complete=True) == {"new": 0, "changed": 7}


def test_stored_settings_never_take_todays_defaults(later):
    stored = asdict(FGVCConfig(lr=0.5))
    del stored["format_version"], stored["flip"]
    restored = restore_config(stored, "a run")
    assert (restored.eye, restored.flip, restored.lr, restored.format_version) == (0.0, 0.5, 0.5, 1)
    assert restore_config(stored | {"format_version": FORMAT_VERSION}, "a run").eye == 0.0


def test_a_config_file_keeps_the_defaults_of_its_format(later, tmp_path, caplog):
    caplog.set_level("INFO", logger=parse.__name__)
    path = tmp_path / "mine.yaml"
    path.write_text("dataset: cub\nlr: 1.0e-3\n")
    config = parse_config(["--config", f"{path}"])
    assert (config.eye, config.flip, config.lr, config.format_version) == (0.0, 0.5, 1e-3, 1)
    (said,) = caplog.messages
    assert "no format_version" in said and "eye 0.0 (today 0.5)" in said and "flip 0.5 (today 0.25)" in said
    assert parse_config(["--config", f"{path}", "--flip", "0.1"]).flip == 0.1
    caplog.clear()
    path.write_text(f"dataset: cub\nformat_version: {FORMAT_VERSION}\n")
    config = parse_config(["--config", f"{path}"])
    assert (config.eye, config.flip, config.format_version) == (0.5, 0.25, FORMAT_VERSION)
    assert not caplog.messages


def test_recipes_keep_the_defaults_of_their_format(later, caplog):
    caplog.set_level("INFO", logger=parse.__name__)
    config = parse_config(["--config", "cub_vit_base"])
    assert (config.eye, config.flip, config.format_version) == (0.0, 0.5, 1)
    assert not caplog.messages


def test_the_same_command_line_as_of_then(later):
    config = parse_config(["--dataset", "cub", "--lr", "0.1"])
    assert (config.eye, config.flip) == (0.5, 0.25)
    then = as_of(config, 1)
    assert (then.eye, then.flip, then.lr, then.format_version) == (0.0, 0.5, 0.1, 1)
    assert as_of(parse_config(["--dataset", "cub", "--eye", "0.7"]), 1).eye == 0.7
    assert as_of(config, FORMAT_VERSION) is config
    then = as_of(Later(dataset="cub", lr=0.2), 1)  # made in Python: what is not today's default was given
    assert (then.eye, then.flip, then.lr, then.format_version) == (0.0, 0.5, 0.2, 1)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, "2", True, 1.0])
def test_other_versions_are_refused(version, tmp_path):
    with pytest.raises(InputError, match="format_version"):
        check_version(version, "FILE")
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"format_version": version}))
    with pytest.raises(InputError, match="format_version"):
        parse_config(["--config", f"{path}"])


def test_a_later_version_says_what_to_do():
    with pytest.raises(InputError, match=rf"format_version 99, .* up to {FORMAT_VERSION}: update"):
        check_version(99, "FILE")


def test_it_is_no_flag(capsys):
    with pytest.raises(InputError, match="unknown flag --format_version"):
        parse_config(["--format_version", "1"])
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    assert "format_version" not in capsys.readouterr().out
