"""`dcal COMMAND --help`, held by a snapshot of each command in tests/golden/help.

After a deliberate change of a setting or its text, renew the snapshots and read the diff:

    DCAL_UPDATE_GOLDEN=1 python -m pytest tests/commands/test_help.py
"""

import os
from dataclasses import fields
from pathlib import Path

import pytest

from dual_cross_attention import commands
from dual_cross_attention.cli import COMMANDS
from dual_cross_attention.commands.index import SUBCOMMANDS
from dual_cross_attention.configs import CONFIGS
from dual_cross_attention.configs.recipes import BACKBONES, DATASETS

FOLDER = Path(__file__).parents[1] / "golden" / "help"
HELP = {name: [name] for name in COMMANDS} | {"train-reid": ["train", "--task", "reid"]}
HELP |= {f"index-{name}": ["index", name] for name in SUBCOMMANDS}


@pytest.fixture(autouse=True)
def width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")


def test_each_command_has_a_file_and_a_snapshot():
    for name in (*COMMANDS, *(f"index-{name}" for name in SUBCOMMANDS)):
        assert (Path(commands.__file__).parent / f"{name.replace('-', '_')}.py").is_file()
    assert {path.stem for path in FOLDER.glob("*.txt")} == HELP.keys()


@pytest.mark.parametrize("name", HELP)
def test_help_is_the_snapshot(dcal, name):
    outcome = dcal(*HELP[name], "--help")
    assert (outcome.status, outcome.err) == (0, "")
    if os.environ.get("DCAL_UPDATE_GOLDEN"):
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.txt").write_text(outcome.out)
    assert outcome.out == (FOLDER / f"{name}.txt").read_text(), "to renew it: DCAL_UPDATE_GOLDEN=1"


@pytest.mark.parametrize("name", [name for name in HELP if name != "index"])
def test_help_begins_with_an_example_and_explains_each_option(dcal, name):
    text = dcal(*HELP[name], "-h").out
    words = HELP[name][:2] if name.startswith("index-") else HELP[name][:1]
    assert text.startswith(f"example:\n  dcal {' '.join(words)}")
    _, *options = text.partition("show this help message and exit")[2].split("\n  --")
    assert options or name == "index-rebuild"
    for option in options:
        name, form, *words = option.partition("\n\n")[0].split()
        assert form.strip("[]").isupper() or "|" in form or name == "task", option  # its type
        meaning, default, _ = " ".join(words).partition(" (default: ")
        assert default or name == "config" or meaning.endswith("required."), option
        assert len(meaning.split()) > 3, option


def test_help_of_index_lists_its_commands(dcal):
    text = dcal("index", "--help").out
    assert text.startswith("example:\n  dcal index build") and all(f"\n  {name} " in text for name in SUBCOMMANDS)
    assert dcal("index").out == text


@pytest.mark.parametrize("settings", list(dict.fromkeys(each for task in CONFIGS.values() for each in task.values())))
def test_each_setting_is_in_one_group(settings):
    grouped = " ".join(settings.GROUPS.values()).split()
    assert len(grouped) == len(set(grouped))
    assert {each.name for each in fields(settings)} - {"format_version"} <= set(grouped)


def test_groups_name_settings_only():
    known = {each.name for task in CONFIGS.values() for settings in task.values() for each in fields(settings)}
    assert set(" ".join(CONFIGS["fgvc"]["cub"].GROUPS.values()).split()) <= known


def test_help_of_train_has_the_defaults_of_the_dataset(dcal):
    for task, datasets in CONFIGS.items():
        for dataset, settings in datasets.items():
            text = " ".join(dcal("train", "--task", task, "--dataset", dataset, "--help").out.split())
            assert f"Passes over the training images. (default: {settings().epochs})" in text
            assert all(f" --{each.name} " in text for each in fields(settings) if each.name != "format_version")
    text = " ".join(dcal("train", "--config", "market_deit_tiny", "--help").out.split())
    assert all(name in text for name in (*DATASETS, *BACKBONES)) and "--dataset market1501; each" in text


def test_help_comes_before_other_complaints(dcal):
    assert dcal("train", "--bacth_size", "3", "--help").status == 0
    assert dcal("eval", "--help").status == 0  # without RUN_OR_MODEL
    assert dcal("shard", "--help").status == 0  # without --output_dir
