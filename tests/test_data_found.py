"""Datasets are found in $DCAL_DATA or ./data where no --data_root is given, and the run remembers where."""

import errno
import json
import os
from pathlib import Path

import pytest
import yaml

from dual_cross_attention.data import load_fgvc, load_reid
from dual_cross_attention.data.fgvc import FGVC_DATASETS
from dual_cross_attention.data.registry import find_data_root
from dual_cross_attention.data.reid import REID_DATASETS
from dual_cross_attention.errors import InputError
from tests.data.test_data_roots import LAYOUTS, OFFICIAL
from tests.helpers import assert_says
from tests.test_hostile_files import make_cub

TINY = [
    "--backbone=vit_tiny_patch16_224",
    '--backbone_kwargs={"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}',
    "--weights=none",
    "--img_size=32",
    "--resize_size=32",
    "--batch_size=2",
    "--device=cpu",
    "--num_workers=0",
]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("layout", OFFICIAL, ids=["-".join(layout) for layout in OFFICIAL])
def test_every_dataset_with_official_names_is_found(tmp_path, here, monkeypatch, layout):
    """All of them lie side by side, in ./data or in $DCAL_DATA; of Market-1501 and DukeMTMC-reID the right one."""
    task, name = layout
    registry = FGVC_DATASETS if task == "fgvc" else REID_DATASETS
    own = {each: LAYOUTS[each](here / "data") for each in OFFICIAL}[layout]
    assert find_data_root(registry, name) == own
    load = load_fgvc if task == "fgvc" else load_reid
    assert load(name, None) == load(name, own)
    (here / "data").rename(tmp_path / "disk")
    assert find_data_root(registry, name) is None
    for given in (tmp_path / "disk", tmp_path / "disk" / own.name, "../disk", "~/disk"):
        monkeypatch.setenv("HOME", f"{tmp_path}")
        monkeypatch.setenv("DCAL_DATA", f"{given}")
        assert find_data_root(registry, name) == tmp_path / "disk" / own.name


def test_the_variable_comes_first(tmp_path, here, monkeypatch):
    for place in (here / "data", tmp_path / "disk"):
        make_cub(place)
    monkeypatch.setenv("DCAL_DATA", f"{tmp_path / 'disk'}")
    assert find_data_root(FGVC_DATASETS, "cub") == tmp_path / "disk/CUB_200_2011"
    (tmp_path / "disk/CUB_200_2011").rename(tmp_path / "disk/gone")
    assert find_data_root(FGVC_DATASETS, "cub") == here / "data/CUB_200_2011"  # gone/ has another name


def test_another_dataset_is_not_taken_for_it(here):
    LAYOUTS["reid", "dukemtmc"](here / "data")
    assert find_data_root(REID_DATASETS, "market1501") is None


def test_several_of_it_are_refused(here):
    for name in ("a", "b"):
        make_cub(here / "data" / name)
    with pytest.raises(InputError, match=r"cub: .* \./data: .*CUB_200_2011"):
        load_fgvc("cub", None)


@pytest.mark.parametrize("command", ["train", "check-data", "shard --output_dir out"])
@pytest.mark.parametrize(("task", "dataset"), [("fgvc", "cub"), ("reid", "market1501")])
def test_nothing_is_found(dcal, here, monkeypatch, tmp_path, command, task, dataset):
    flags = [*command.split(), "--task", task, "--dataset", dataset]
    outcome = dcal(*flags)
    assert outcome.status == 2
    for words in (f"{dataset} needs data_root", "$DCAL_DATA (not set)", "./data (no such folder)", "get it from"):
        assert words in outcome.err
    (here / "data").mkdir()
    monkeypatch.setenv("DCAL_DATA", f"{tmp_path / 'none'}")
    outcome = dcal(*flags)
    assert f"$DCAL_DATA ({tmp_path / 'none'}) (no such folder)" in outcome.err
    assert "./data;" in outcome.err


@pytest.fixture
def unreadable(tmp_path, monkeypatch) -> Path:
    """$DCAL_DATA, which may not be listed. Mocked, as root may list all folders."""
    disk = tmp_path / "disk"
    disk.mkdir()
    scandir = os.scandir

    def refuse(path="."):
        if Path(path) == disk:
            raise PermissionError(errno.EACCES, "Permission denied", f"{path}")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setenv("DCAL_DATA", f"{disk}")
    return disk


@pytest.mark.parametrize("layout", [("fgvc", "cub"), ("fgvc", "cars"), ("fgvc", "aircraft"), ("reid", "market1501")])
def test_an_unreadable_variable_is_not_passed_over_in_silence(here, unreadable, caplog, layout):
    task, name = layout
    registry = FGVC_DATASETS if task == "fgvc" else REID_DATASETS
    own = LAYOUTS[layout](here / "data")
    assert find_data_root(registry, name) == own
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    for word in (name, f"$DCAL_DATA ({unreadable})", "cannot be searched", "Permission denied"):
        assert word in warning


def test_an_error_names_an_unreadable_variable(dcal, here, unreadable):
    outcome = dcal("train", "--dataset", "cub")
    assert outcome.status == 2
    assert_says(outcome.err, f"$DCAL_DATA ({unreadable}) (", "Permission denied")


@pytest.mark.parametrize(("given", "why"), [("/none/there", "no such folder"), ("~nouser/data", "cannot be searched")])
def test_a_mistyped_variable_is_warned_of(here, monkeypatch, caplog, given, why):
    make_cub(here / "data")
    monkeypatch.setenv("DCAL_DATA", given)
    assert find_data_root(FGVC_DATASETS, "cub") == here / "data/CUB_200_2011"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"$DCAL_DATA ({given})" in warning and why in warning


@pytest.mark.parametrize("dataset", ["folder", "shards"])
def test_ones_own_data_are_always_named(dcal, here, dataset):
    LAYOUTS["fgvc", dataset](here / "data")
    (here / "data/mine").rename(here / "data/folder")
    outcome = dcal("train", "--dataset", dataset)
    assert outcome.status == 2
    assert f"{dataset} needs data_root" in outcome.err and "DCAL_DATA" not in outcome.err


def test_a_run_as_it_is_typed(dcal, here, monkeypatch, tmp_path):
    """It remembers the folder that was found, so that eval finds it from anywhere."""
    own = make_cub(here / "data")
    outcome = dcal("train", "--task", "fgvc", "--dataset", "cub", "--epochs", "1", *TINY)
    assert (outcome.status, outcome.err) == (0, "")
    assert f"cub: found in ./data: {own}" in outcome.out.splitlines()
    (run,) = (here / "runs").iterdir()
    assert yaml.safe_load((run / "config.yaml").read_text())["data_root"] == f"{own}"
    again = dcal("train", "--task", "fgvc", "--dataset", "cub", "--epochs", "1", *TINY)
    assert again.status == 0 and "nothing to do" in again.out
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outcome = dcal("eval", run, "--json", "result.json")
    assert outcome.status == 0
    assert json.loads(Path("result.json").read_text())["images"] == 2


def test_the_other_commands_find_it_too(dcal, here):
    own = make_cub(here / "data")
    outcome = dcal("check-data", "--dataset", "cub")
    assert outcome.status == 0
    assert f"cub: found in ./data: {own}" in outcome.out and "train: 2 images" in outcome.out
    outcome = dcal("shard", "--dataset", "cub", "--output_dir", "out", "--num_workers", "0")
    assert (outcome.status, outcome.err) == (0, "")
    assert f"cub: found in ./data: {own}" in outcome.out
    assert len(load_fgvc("shards", "out").train) == 2
    outcome = dcal("train", "--dataset=folder", "--data_root=x", "--epochs=1", "--output_dir=run", *TINY)
    assert outcome.status == 2  # what is given is not searched for


def test_eval_on_another_dataset(dcal, here):
    make_cub(here / "data")
    root = LAYOUTS["fgvc", "folder"](here)
    for split in ("train", "val"):
        for old, new in (("a", "001.A"), ("b", "002.B")):
            (root / split / old).rename(root / split / new)
    flags = ["--dataset", "folder", "--data_root", root, "--epochs", "1", "--output_dir", "run"]
    assert dcal("train", *flags, *TINY).status == 0
    outcome = dcal("eval", "run", "--dataset", "cub")
    assert outcome.status == 0
    assert "cub: found in ./data" in outcome.out


@pytest.mark.parametrize("name", ["caf\u00e9", "cafe\u0301"])
def test_models_and_checkpoints_know_either_spelling(dcal, here, name):
    """A run of one spelling of a class continues, and is evaluated, with the other one on disk."""
    root = LAYOUTS["fgvc", "folder"](here)
    other = {"caf\u00e9": "cafe\u0301", "cafe\u0301": "caf\u00e9"}[name]
    for split in ("train", "val"):
        (root / split / "b").rename(root / split / name)
    flags = ["train", "--dataset", "folder", "--data_root", root, "--seed", "1", *TINY]
    assert dcal(*flags, "--epochs", "1", "--output_dir", "run").status == 0
    for split in ("train", "val"):
        (root / split / name).rename(root / split / other)
    assert dcal("eval", "run").status == 0
    outcome = dcal(*flags, "--epochs", "2", "--output_dir", "longer", "--resume", "run")
    assert (outcome.status, outcome.err) == (0, "")
