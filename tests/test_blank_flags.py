"""A flag whose value is empty, as of an unset variable of the shell, is refused: the path "" is the current folder."""

import pytest

from dual_cross_attention.configs import FGVCConfig
from dual_cross_attention.data import FGVC_DATASETS
from dual_cross_attention.data.registry import download_data
from dual_cross_attention.errors import InputError
from tests.helpers import assert_refused


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ["download", "cub", "--data_root", ""],
        ["download", ""],
        ["train", "--output_dir", ""],
        ["train", "--data_root", "  ", "--dataset", "cub"],
        ["train", "--distractors", "dataset", "--distractor_root="],
        ["train", "--weights="],
        ["train", "--task", "reid", "--sie", "view", "--views", ""],
        ["shard", "--output_dir", "", "--dataset", "toy"],
        ["explain", "model", "a.png", "--output", ""],
        ["explain", "model", "--pair", "a.png", ""],
        ["embed", "model", "a.png", "--output", ""],
        ["eval", ""],
        ["index", "build", "", "a", "--model", "m"],
        ["report", "run", "--output", ""],
        ["demo", "model", "--index", ""],
        ["reproduce", "table1", "--output_dir", ""],
    ],
    ids=" ".join,
)
def test_it_is_refused(dcal, command):
    assert_refused(dcal(*command), "empty", "variable of the shell")


def test_it_is_refused_in_python_and_in_files(tmp_path):
    with pytest.raises(InputError, match="empty"):
        download_data(FGVC_DATASETS["cub"], "cub", FGVC_DATASETS, "")
    with pytest.raises(InputError, match="distractor_root"):
        FGVCConfig(distractors="dataset", distractor_root="")


def test_text_that_is_empty_by_default_may_be(dcal):
    assert dcal("backbones", "--name", "").status == 0
