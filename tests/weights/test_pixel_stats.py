"""Mean and standard deviation of pixels: by the flag, the weights file, pixel_stats, the backbone; kept by a run."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file
from timm.data import resolve_data_config

from dual_cross_attention import InputError, create_model
from dual_cross_attention.backbones import create
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.data import preprocessing
from dual_cross_attention.inference.model_files import read_model
from dual_cross_attention.tasks import fgvc_data as fgvc
from dual_cross_attention.tasks import reid_data as reid
from tests.weights.test_weights import write_npz

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)
OWN = ([0.25, 0.5, 0.75], [0.125, 0.25, 0.5])
FLAGS = ["--mean", 0.25, 0.5, 0.75, "--std", 0.125, 0.25, 0.5]
FIXTURES = Path(__file__).parents[1] / "fixtures" / "format_1"


@pytest.fixture
def weights(tmp_path):
    """A timm file that fits the small flags, and what `config.json` beside it may say."""

    def make(config=None, img_size=32):
        folder = tmp_path / "weights"
        folder.mkdir(exist_ok=True)
        sizes = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
        model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=img_size, **sizes)
        save_file(model.state_dict(), folder / "model.safetensors")
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        return folder / "model.safetensors"

    return make


@pytest.fixture
def normalized(monkeypatch):
    """What pixels are really normalized by: (mean, std) of each transform that was made."""
    seen = []
    makers = ((fgvc, "train_transform", 2), (reid, "reid_train_transform", 1), (preprocessing, "test_transform", 2))

    def watch(original, start):
        def record(*arguments):
            seen.append(tuple(list(map(float, values)) for values in arguments[start : start + 2]))
            return original(*arguments)

        return record

    for module, name, start in makers:
        monkeypatch.setattr(module, name, watch(getattr(module, name), start))
    return seen


def of_run(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    return config["mean"], config["std"]


def of_header(path):
    config = read_model(path).config
    return config.mean, config.std


def test_the_flag_is_taken_printed_kept_and_evaluated_with(dcal, small, tmp_path, normalized):
    run = tmp_path / "run"
    outcome = dcal("train", *small, "--epochs=1", *FLAGS, "--output_dir", run)
    assert outcome.status == 0, outcome.err
    assert "pixels: mean 0.25 0.5 0.75, std 0.125 0.25 0.5 (from the settings" in outcome.out
    assert normalized == [OWN, OWN] and of_run(run) == of_header(run) == OWN
    normalized.clear()
    assert dcal("eval", run, "--device=cpu").status == 0
    assert normalized == [OWN]
    stats = resolve_data_config(pretrained_cfg=read_model(run).model.backbone.pretrained_cfg)
    assert (list(stats["mean"]), list(stats["std"])) == OWN


def test_re_id_takes_the_flag_over_pixel_stats(dcal, small_reid, tmp_path, normalized):
    assert dcal("train", *small_reid, "--epochs=1", *FLAGS, "--output_dir", tmp_path / "a").status == 0
    assert set(map(str, normalized)) == {str(OWN)}
    normalized.clear()
    outcome = dcal("train", *small_reid, "--epochs=1", "--output_dir", tmp_path / "b")
    assert set(map(str, normalized)) == {str(HALF)} and of_run(tmp_path / "b") == HALF
    assert "(from pixel_stats half" in outcome.out


def test_a_file_without_metadata_under_a_default_of_one_half_gets_a_warning(dcal, small, tmp_path, weights, normalized):
    outcome = dcal("train", *small, "--epochs=1", "--weights", weights(), "--output_dir", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    (warning,) = (line for line in outcome.out.splitlines() if line.startswith("warning: "))
    assert "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225" in warning
    assert normalized == [HALF, HALF]
    outcome = dcal("train", *small, "--epochs=1", "--weights", weights(), *FLAGS, "--output_dir", tmp_path / "other")
    assert "warning: " not in outcome.out


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_timms_config_beside_the_file_is_taken(dcal, small, small_reid, tmp_path, weights, normalized, task):
    size = {"fgvc": 32, "reid": (32, 16)}[task]
    path = weights({"architecture": "x", "pretrained_cfg": {"mean": IMAGENET[0], "std": IMAGENET[1]}}, size)
    flags = {"fgvc": small, "reid": small_reid}[task]
    outcome = dcal("train", *flags, "--epochs=1", "--weights", path, "--output_dir", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    assert "warning: '" not in outcome.out and "config.json')" in outcome.out
    assert set(map(str, normalized)) == {str(IMAGENET)} and of_run(tmp_path / "run") == IMAGENET


def test_hugging_faces_preprocessor_beside_the_file_is_taken(dcal, small, tmp_path, weights, normalized):
    path = Path(weights({}, 32))
    preprocessor = path.with_name("preprocessor_config.json")
    preprocessor.write_text(json.dumps({"image_mean": list(IMAGENET[0]), "image_std": list(IMAGENET[1])}))
    outcome = dcal("train", *small, "--epochs=1", "--weights", path, "--output_dir", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    assert "does not say" not in outcome.out and of_run(tmp_path / "run") == IMAGENET


def test_ones_own_model_passes_its_normalization_on(dcal, small, tmp_path, normalized):
    assert dcal("train", *small, "--epochs=1", *FLAGS, "--output_dir", tmp_path / "a").status == 0
    normalized.clear()
    outcome = dcal("train", *small, "--epochs=1", "--weights", tmp_path / "a", "--output_dir", tmp_path / "b")
    assert outcome.status == 0, outcome.err
    assert normalized == [OWN, OWN] and of_run(tmp_path / "b") == OWN
    model = create_model("vit_tiny_patch16_224", 4, img_size=32, pretrained=str(tmp_path / "a"), **{
        "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3,
    })  # fmt: skip
    stats = resolve_data_config(pretrained_cfg=model.backbone.pretrained_cfg)
    assert (list(stats["mean"]), list(stats["std"])) == OWN


def test_the_same_command_resumes_with_recorded_stats(dcal, small, tmp_path, weights, normalized):
    """`mean` is open in the command, and the file that it came from has gone."""
    path, run = weights({"pretrained_cfg": {"mean": OWN[0], "std": OWN[1]}}), tmp_path / "run"
    command = ["train", *small, "--weights", path, "--output_dir", run]
    assert dcal(*command).status == 0
    before = load_file(run / "last.safetensors")
    shutil.rmtree(run / "checkpoints" / "epoch_0002")
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().splitlines(True)[0])
    shutil.rmtree(path.parent)
    normalized.clear()
    outcome = dcal(*command)
    assert outcome.status == 0, outcome.err
    assert "resumed after epoch 1" in outcome.out
    assert normalized == [OWN, OWN] and of_run(run) == of_header(run) == OWN
    assert all(torch.equal(value, before[name]) for name, value in load_file(run / "last.safetensors").items())
    assert "other settings: mean" in dcal(*command, "--mean=0.5", "--std=0.5").err


def test_a_run_that_begins_from_anothers_checkpoint_takes_what_that_one_recorded(dcal, small, tmp_path, normalized):
    assert dcal("train", *small, "--epochs=1", *FLAGS, "--output_dir", tmp_path / "a").status == 0
    normalized.clear()
    longer = ["--epochs=2", "--resume", tmp_path / "a", "--output_dir", tmp_path / "b"]
    outcome = dcal("train", *small, *longer)
    assert outcome.status == 0, outcome.err
    assert normalized == [OWN, OWN] and of_run(tmp_path / "b") == of_header(tmp_path / "b") == OWN


@pytest.mark.parametrize(("task", "expected"), [("fgvc", HALF), ("reid", HALF)])
def test_a_run_of_format_1_resumes_with_its_stats(dcal, tmp_path, normalized, task, expected):
    run = shutil.copytree(FIXTURES / f"{task}-interrupted", tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert "mean" not in config
    config |= {"output_dir": str(run), "resume": "auto"}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(config))
    outcome = dcal("train", "--config", tmp_path / "again.yaml")
    assert outcome.status == 0, outcome.err
    assert set(map(str, normalized)) == {str(expected)} and of_run(run) == (None, None)


def test_null_takes_the_backbones_whatever_the_file_says(dcal, small, tmp_path, weights, normalized):
    path = weights({"pretrained_cfg": {"mean": OWN[0], "std": OWN[1]}})
    flags = ["--weights", path, "--mean=null", "--std=null", "--output_dir", tmp_path / "run"]
    assert dcal("train", *small, "--epochs=1", *flags).status == 0
    assert normalized == [HALF, HALF] and of_run(tmp_path / "run") == HALF


@pytest.mark.parametrize(
    ("flags", "token"),
    [
        ("--mean 123.7 116.3 103.5 --std 58 57 57", "from 0 to 1"),
        ("--mean 0.5 0.5 --std 0.5", "one or three"),
        ("--mean 0.5 --std 0", "above 0"),
        ("--mean 0.5", "together"),
        ("--mean nan --std 0.5", "--mean: expected"),
        ("--mean .nan --std 0.5", "mean: expected"),
        ("--mean half --std 0.5", "expected a number"),
    ],
)
def test_values_that_cannot_be_are_refused(flags, token):
    with pytest.raises(InputError, match=token):
        parse_config(flags.split())


def test_one_number_stands_for_all_channels():
    config = parse_config(["--mean", "0.5", "--std", "0.25", "--epochs", "3"])
    assert (config.mean, config.std, config.epochs) == ([0.5] * 3, [0.25] * 3, 3)


def test_a_config_json_with_a_mean_that_is_none_is_refused(weights):
    path = weights({"pretrained_cfg": {"mean": [1, 2], "std": [1, 1, 1]}})
    with pytest.raises(InputError, match=r"config\.json.*mean"):
        create_model("vit_tiny_patch16_224", 5, img_size=32, pretrained=str(path), patch_size=8, embed_dim=48, depth=2,
                     num_heads=3)  # fmt: skip


# --- mean and std that are not those of the weights ---


def warnings_of(outcome):
    """Those about mean and std; the images of these tests have warnings of their own."""
    assert outcome.status == 0, outcome.err
    return [line for line in outcome.out.splitlines() if line.startswith("warning: images are normalized")]


TAKE_THOSE = "--mean auto --std auto takes those"


@pytest.fixture
def train(dcal, tmp_path):
    """Trains an epoch in a folder of its own; returns what was printed, and the folder."""
    runs = iter(range(100))

    def run(*arguments):
        folder = tmp_path / f"run{next(runs)}"
        return dcal("train", *arguments, "--epochs=1", "--output_dir", folder), folder

    return run


@pytest.mark.parametrize("named", [True, False])
def test_stats_out_of_another_runs_config_get_a_warning_with_another_file(train, small, weights, named, normalized):
    first = weights({"pretrained_cfg": {"mean": OWN[0], "std": OWN[1]}})
    outcome, run = train(*small, "--weights", first)
    assert not warnings_of(outcome) and of_run(run) == OWN
    config = ["--config", run / "config.yaml", "--resume=auto"]
    other = weights({"pretrained_cfg": {"mean": IMAGENET[0], "std": IMAGENET[1]}} if named else {})
    normalized.clear()
    (warning,) = warnings_of(train(*config, "--weights", other)[0])
    assert "mean 0.25 0.5 0.75" in warning and "the settings" in warning and TAKE_THOSE in warning
    assert ("mean 0.485 0.456 0.406" if named else "mean 0.5 0.5 0.5") in warning
    assert normalized == [OWN, OWN]
    outcome, run = train(*config, "--weights", other, *["--mean", "auto", "--std", "auto"])
    assert not warnings_of(outcome) and of_run(run) == (IMAGENET if named else HALF)


def test_stats_out_of_another_runs_config_get_a_warning_with_another_backbone(small, train, monkeypatch):
    _, run = train(*small)
    assert of_run(run) == HALF
    monkeypatch.setattr(create, "fetch_imagenet_weights", lambda *_: None)
    config = ["--config", run / "config.yaml", "--resume=auto"]
    command = [*config, "--backbone=deit_tiny_patch16_224", "--weights=imagenet"]
    (warning,) = warnings_of(train(*command)[0])
    assert "mean 0.485 0.456 0.406" in warning and "timm's deit_tiny_patch16_224" in warning and TAKE_THOSE in warning
    outcome, run = train(*command, "--mean=auto", "--std=auto")
    assert not warnings_of(outcome) and of_run(run) == IMAGENET
    assert not warnings_of(train(*config)[0])


def test_re_ids_pixel_stats_is_no_reason_for_a_warning_but_a_file_is(train, small_reid, weights, monkeypatch):
    monkeypatch.setattr(create, "fetch_imagenet_weights", lambda *_: None)
    outcome, run = train(*small_reid, "--backbone=deit_tiny_patch16_224", "--weights=imagenet")
    assert not warnings_of(outcome) and of_run(run) == HALF
    path = weights({"pretrained_cfg": {"mean": IMAGENET[0], "std": IMAGENET[1]}}, (32, 16))
    config = ["--config", run / "config.yaml", "--resume=auto"]
    (warning,) = warnings_of(train(*config, "--backbone=vit_tiny_patch16_224", "--weights", path)[0])
    assert "mean 0.485 0.456 0.406" in warning and "config.json" in warning
    (warning,) = warnings_of(train(*config, "--pixel_stats=backbone")[0])
    assert "timm's deit_tiny_patch16_224" in warning and "mean 0.485 0.456 0.406" in warning


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_a_recipe_of_format_1_says_that_it_ignores_the_files_stats(
    train, small, small_reid, weights, tmp_path, task, normalized
):
    """Its settings have no mean and std, and mean what they did: the backbone's, or re-ID's one half."""
    flags, size = {"fgvc": (small, 32), "reid": (small_reid, (32, 16))}[task]
    (tmp_path / "a.yaml").write_text("flip: 0.5\n")
    path = weights({"pretrained_cfg": {"mean": IMAGENET[0], "std": IMAGENET[1]}}, size)
    command = ["--config", tmp_path / "a.yaml", *flags, "--weights", path]
    outcome, _ = train(*command)
    (warning,) = warnings_of(outcome)
    assert "mean 0.5 0.5 0.5" in warning and "mean 0.485 0.456 0.406" in warning and TAKE_THOSE in warning
    assert "does not say" not in outcome.out and set(map(str, normalized)) == {str(HALF)}
    normalized.clear()
    assert not warnings_of(train(*command, "--mean=auto", "--std=auto")[0])
    assert set(map(str, normalized)) == {str(IMAGENET)}


def test_no_warning_if_the_file_names_equal_stats(train, small, weights):
    path = weights({"pretrained_cfg": {"mean": HALF[0], "std": HALF[1]}})
    outcome, _ = train(*small, "--weights", path, "--mean=null", "--std=null")
    assert not warnings_of(outcome) and "does not say" not in outcome.out


@pytest.mark.parametrize("backbone", ["deit_tiny_patch16_224", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("named", [True, False])
def test_googles_npz_has_one_half_in_any_backbone(train, small, tmp_path, normalized, backbone, named):
    sizes = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    write_npz(timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, **sizes), tmp_path / "ViT.npz")
    if named:
        (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": OWN[0], "std": OWN[1]}}))
    expected = OWN if named else HALF
    flags = [*small, "--backbone", backbone, "--weights", tmp_path / "ViT.npz"]
    outcome, run = train(*flags)
    assert not warnings_of(outcome) and "does not say" not in outcome.out
    assert normalized == [expected, expected] and of_run(run) == expected
    model = create_model(backbone, 4, img_size=32, pretrained=str(tmp_path / "ViT.npz"), **sizes)
    stats = resolve_data_config(pretrained_cfg=model.backbone.pretrained_cfg)
    assert (list(stats["mean"]), list(stats["std"])) == expected
    (warning,) = warnings_of(train(*flags, "--mean", 0.1, 0.2, 0.3, "--std", 0.1, 0.2, 0.3)[0])
    assert "mean 0.1 0.2 0.3" in warning
