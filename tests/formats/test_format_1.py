"""Files that revision a2eb0ad wrote, before format versions: they are read, resumed and evaluated as then."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.data.shards import index as shard_index
from dual_cross_attention.inference.model_files import read_model
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.training.checkpointing.checkpoints import read_state

FIXTURES = Path(__file__).parent.parent / "fixtures" / "format_1"
COMMANDS = {
    "fgvc": ["--task=fgvc", "--lr=2e-3"],
    "reid": ["--task=reid", "--eval_every=1"],
}
SHARED = [
    "--dataset=toy",
    "--epochs=3",
    "--warmup_epochs=1",
    "--device=cpu",
    '--backbone_kwargs={"patch_size":16,"embed_dim":12,"depth":2,"num_heads":2}',
]
STATES = {  # SHA-256 over all tensors and values, computed with a2eb0ad's own reader
    "fgvc-finished/epoch_0003": "8454af2765c367bf8026aad2bb9446dfef6ea9550d65274abaf7260a62fccbf1",
    "fgvc-interrupted/epoch_0001_step_00000214": "e7f78f3d1125ffa3193f992da7e4268db6aed8848a8f9bd634d8dabb38349a4f",
    "reid-finished/epoch_0003": "2814ef2f1c483d38251cdd458a31787f8d5660824f5b38d70351ead483f3903d",
    "reid-interrupted/epoch_0001_step_00000112": "5f9d995313c7d2062c4ea4613799d728d1f75814e59c69be702088bef790a95e",
}
# Other CPUs and versions of PyTorch round otherwise: a few of the 500 test images, of the 120 queries.
TOLERANCE = {"fgvc": 1.0, "reid": 2.0}


@pytest.fixture
def fixture(tmp_path):
    """`fixture("fgvc-finished")`: a copy of that run."""
    return lambda name: Path(shutil.copytree(FIXTURES / name, tmp_path / name))


def digest(value: object) -> str:
    """A hash over nested containers of tensors and plain values."""
    hashed = hashlib.sha256()

    def add(value: object, name: str) -> None:
        if isinstance(value, torch.Tensor):
            hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            hashed.update(value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                add(value[key], f"{name}/{key}")
        elif isinstance(value, list | tuple):
            for place, each in enumerate(value):
                add(each, f"{name}/{place}")
        else:
            hashed.update(f"{name} {value!r}".encode())

    add(value, "")
    return hashed.hexdigest()


@pytest.mark.parametrize("checkpoint", STATES)
def test_the_state_is_read_to_the_bit(checkpoint):
    run, name = checkpoint.split("/")
    assert digest(read_state(FIXTURES / run / "checkpoints" / name)) == STATES[checkpoint]


@pytest.mark.parametrize("task", COMMANDS)
def test_an_interrupted_run_ends_as_it_would_have(dcal, fixture, task):
    """In fp32 on a CPU, whatever "auto" means today: the run that was left alone has the same rows."""
    run = fixture(f"{task}-interrupted")
    outcome = dcal("train", *COMMANDS[task], *SHARED, "--output_dir", run)
    assert outcome.status == 0, outcome.err
    assert "resumed after epoch 1, step" in outcome.out
    assert "did not record its data" in outcome.out
    finished = RunFolder(FIXTURES / f"{task}-finished").read_metrics()
    for row, expected in zip(RunFolder(run).read_metrics(), finished, strict=True):
        assert row.keys() == expected.keys()
        for name in row:
            if name.startswith("train/loss"):
                assert row[name] == pytest.approx(expected[name], rel=1e-3), name
            elif name.startswith("val/"):
                assert row[name] == pytest.approx(expected[name], abs=TOLERANCE[task]), name
    assert RunFolder(run).read_config().format_version == 1  # it continues meaning what it meant
    assert RunFolder(run).read_data() is not None


@pytest.mark.parametrize("task", COMMANDS)
def test_a_finished_run_is_done(dcal, fixture, task):
    outcome = dcal("train", *COMMANDS[task], *SHARED, "--output_dir", fixture(f"{task}-finished"))
    assert outcome.status == 0, outcome.err
    assert "nothing to do" in outcome.out


@pytest.mark.parametrize("task", COMMANDS)
def test_a_finished_model_evaluates_to_what_it_did(dcal, fixture, tmp_path, task):
    run = fixture(f"{task}-finished")
    assert dcal("eval", run, "--json", tmp_path / "now.json").status == 0
    now, then = (json.loads(path.read_text()) for path in (tmp_path / "now.json", run / "evaluated.json"))
    assert now.pop("format_version") == FORMAT_VERSION
    assert now.keys() == then.keys()
    for name in then.keys() - {"checkpoint"}:
        assert now[name] == (pytest.approx(then[name], abs=0.5) if isinstance(then[name], float) else then[name]), name


@pytest.mark.parametrize("task", COMMANDS)
def test_a_model_file_keeps_its_settings(task):
    saved = read_model(FIXTURES / f"{task}-finished")
    assert saved.config.format_version == 1
    assert (saved.config.precision, saved.config.glca_init) == ("auto", "random")
    assert saved.data is None


def test_other_labels_are_refused_with_what_is_known(dcal, fixture, tmp_path):
    """A run without a fingerprint knows its label names and how many images it was trained on."""
    run = fixture("fgvc-interrupted")
    progress = next((run / "checkpoints").iterdir()) / "progress.json"
    known = json.loads(progress.read_text())
    assert known["pictures"] == 2500
    for change, said in (
        ({"pictures": 2499}, "2,499 there, 2,500 here"),
        ({"classes": ["a"] * 10}, "names or order of the labels"),
    ):
        progress.write_text(json.dumps(known | change))
        outcome = dcal("train", *COMMANDS["fgvc"], *SHARED, "--output_dir", run)
        assert outcome.status == 2 and "other data" in outcome.err and said in outcome.err, outcome.err


def test_archives_and_their_index(dcal, fixture, monkeypatch):
    shards = fixture("shards-fgvc")
    for index in shards.glob("*.index"):  # an index fits archives of the same time, which a checkout does not keep
        about, _ = json.JSONDecoder().raw_decode(index.read_bytes().decode("latin-1"))
        for name, (_, time) in about["archives"].items():
            os.utime(shards / name, ns=(time, time))
    monkeypatch.setattr(shard_index, "make_index", lambda *arguments: pytest.fail("the index was made again"))
    outcome = dcal("check-data", "--dataset=shards", "--data_root", shards, "--num_workers=0")
    assert outcome.status == 0, outcome.err
    assert "9 images of 3 classes" in outcome.out
