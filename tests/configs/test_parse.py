"""Which setting wins."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from dual_cross_attention.configs import CONFIGS, FGVCConfig, ToyConfig
from dual_cross_attention.configs.parse import parse_config, restore_config
from dual_cross_attention.errors import InputError


@pytest.fixture
def file(tmp_path):
    """Writes a YAML file of settings; returns its path as text."""

    def write(name="settings.yaml", **settings):
        (tmp_path / name).write_text(yaml.safe_dump(settings))
        return str(tmp_path / name)

    return write


def test_defaults_are_those_of_the_data_set():
    assert parse_config([]) == ToyConfig()
    assert parse_config(["--dataset", "cub"]) == FGVCConfig()
    cars = parse_config(["--dataset=cars"])
    assert (cars.dataset, cars.img_size, cars.resize(), cars.epochs) == ("cars", [448, 448], [550, 550], 100)
    for dataset, settings in CONFIGS["fgvc"].items():
        config = parse_config(["--task", "fgvc", "--dataset", dataset])
        assert type(config) is settings and config.dataset == dataset


def test_flags_win_over_files_wherever_they_stand(file):
    path = file(dataset="cub", epochs=7, lr=0.25, seed=3)
    for line in (
        ["--epochs", "9", "--config", path],
        ["--config", path, "--epochs", "9"],
        [f"--config={path}", "--epochs=9"],
    ):
        config = parse_config(line)
        assert (config.dataset, config.epochs, config.lr, config.seed) == ("cub", 9, 0.25, 3)
        assert config.batch_size == FGVCConfig().batch_size  # what nobody set


def test_of_two_files_the_later_wins(file):
    one, other = file("one.yaml", dataset="cub", epochs=7, seed=3), file("other.yaml", epochs=8)
    assert parse_config(["--config", one, "--config", other]).epochs == 8
    assert parse_config(["--config", other, "--config", one]).epochs == 7
    assert parse_config(["--config", one, "--config", other]).seed == 3
    both = parse_config(["--config", one, "--config", file("third.yaml", dataset="toy")])
    assert type(both) is ToyConfig and both.epochs == 7


def test_the_data_set_of_a_flag_decides_on_the_defaults_under_a_file(file):
    config = parse_config(["--config", file(dataset="cub", epochs=7), "--dataset", "toy"])
    assert type(config) is ToyConfig and (config.dataset, config.epochs) == ("toy", 7)


def test_sizes():
    config = parse_config(["--dataset", "cub", "--img_size", "256", "128"])
    assert (config.img_size, config.resize()) == ([256, 128], [round(256 * 550 / 448), round(128 * 550 / 448)])
    config = parse_config(["--img_size", "96", "--resize_size", "100", "110"])
    assert (config.img_size, config.resize()) == ([96, 96], [100, 110])
    assert parse_config(["--img_size", "128"]).resize() == [140, 140]  # the toy set's own proportion
    assert FGVCConfig(img_size=[224]).img_size == [224, 224]


def test_round_trip_of_settings():
    config = parse_config(
        ["--dataset", "cars", "--img_size", "64", "96", "--backbone_kwargs", '{"depth": 3}', "--lr", "1e-5"]
    )
    assert restore_config(asdict(config), "here") == config


def test_settings_are_in_the_documented_files():
    for task in ("fgvc", "reid"):
        text = Path(__file__).parents[2].joinpath(f"dual_cross_attention/configs/{task}_config.py").read_text()
        for name in ("batch_size", "gradient_accumulation_steps", "use_gradient_checkpointing"):
            assert re.search(rf"^    {name}: \w+ = ", text, re.M)


def test_reid_defaults_are_the_papers_and_transreids():
    """PAPER: SGD 0.008 at batch 64 = 16 x 4, cosine, 120 epochs; TransReID: all the rest."""
    config = parse_config(["--task", "reid", "--dataset", "market1501"])
    assert (config.optimizer, config.weight_decay, config.epochs, config.warmup_epochs) == ("sgd", 1e-4, 120, 5)
    assert (config.batch_size, config.images_per_identity) == (64, 4)
    assert config.lr is None and config.lr_per_512 * config.batch_size / 512 == pytest.approx(0.008)
    assert (config.bias_lr_factor, config.drop_path_rate, config.clip_grad) == (2.0, 0.1, None)
    assert (config.flip, config.padding, config.erasing, config.pixel_stats) == (0.5, 10, 0.5, "half")
    assert (config.label_smoothing, config.triplet_margin) == (0.0, None)
    assert (config.feature, config.distance, config.normalize_features) == ("before_neck", "euclidean", True)
    assert (config.local_ratio, config.img_size) == (0.3, [256, 128])
    assert parse_config(["--task", "reid", "--dataset", "veri776"]).img_size == [256, 256]
    assert parse_config(["--task", "reid"]).dataset == "toy"


def test_batches_must_be_p_times_k():
    for size in (30, 4):
        with pytest.raises(InputError, match=f"batch_size {size}: .*two identities of 4"):
            parse_config(["--task", "reid", "--dataset", "market1501", "--batch_size", str(size)])
    assert parse_config(["--task", "reid", "--batch_size", "6", "--images_per_identity", "3"]).batch_size == 6


@pytest.mark.parametrize(("name", "value"), [("weights_key", "teacher"), ("weights_img_size", [32, 64])])
@pytest.mark.parametrize("weights", ["imagenet", "none"])
def test_a_file_of_settings_can_be_followed_without_its_weights(tmp_path, name, value, weights):
    """What the message says to type has to work, though the setting is in the --config file."""
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"weights": "a.pth", name: value, "format_version": 2}))
    arguments = ["--config", str(tmp_path / "a.yaml"), "--weights", weights]
    with pytest.raises(InputError, match=f"{name}.*--{name} null") as caught:
        parse_config(arguments)
    remedy = str(caught.value).rpartition("or ")[2].split()
    assert getattr(parse_config([*arguments, *remedy]), name) is None


@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_half_of_the_pixel_stats_says_how_to_take_neither(tmp_path, name):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"mean": [0.5] * 3, "std": [0.5] * 3, "format_version": 2}))
    arguments = ["--config", str(tmp_path / "a.yaml"), f"--{name}=auto"]
    with pytest.raises(InputError, match=r"mean and std.*--mean auto --std auto") as caught:
        parse_config(arguments)
    remedy = str(caught.value).rpartition("or ")[2].split()
    config = parse_config([*arguments, *remedy])
    assert (config.mean, config.std) == ("auto", "auto")


def test_which_settings_are_flags_is_kept(tmp_path):
    (tmp_path / "a.yaml").write_text("epochs: 3\nlr: 0.1\nformat_version: 2\n")
    config = parse_config(["--config", str(tmp_path / "a.yaml"), "--lr", "0.2", "--seed=1"])
    assert config.flags == {"lr", "seed"} == config.replaced(epochs=4).flags


@pytest.mark.parametrize("in_file", [False, True])
def test_a_setting_of_another_task_names_the_task(tmp_path, in_file):
    (tmp_path / "settings.yaml").write_text("task: reid\nval_fraction: 0.2\n")
    flags = ["--config", f"{tmp_path / 'settings.yaml'}"] if in_file else ["--task=reid", "--val_fraction=0.2"]
    with pytest.raises(InputError, match=r"val_fraction.*--task fgvc.*reid.*query/"):
        parse_config(flags)
    with pytest.raises(InputError, match=r"--padding.*--task reid.*fgvc"):
        parse_config(["--padding=4"])


@pytest.mark.parametrize("value", ["0", "1", "-0.1", "nan"])
def test_val_fraction_is_a_share(value):
    with pytest.raises(InputError, match="val_fraction"):
        parse_config(["--dataset=folder", f"--val_fraction={value}"])
    assert parse_config(["--dataset=folder"]).val_fraction is None
