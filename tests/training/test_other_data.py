"""The same command on other data never resumes the run on the first data.

Which run is resumed on which data is decided in `test_resume_decisions.py`, what tells data apart is in
`data/test_fingerprint.py`.
"""

import shutil
from pathlib import Path

import pytest
import yaml

from dual_cross_attention.runs.run_folder import RunFolder
from tests.helpers import any_says


@pytest.fixture
def two(make_images, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Two datasets of the same classes and counts, with other names of a few images; the working directory is empty."""
    one, other = (make_images(tmp_path / name) for name in ("one", "other"))
    for path in (other / "train" / "ant").iterdir():
        path.rename(path.with_name(f"new_{path.name}"))
    monkeypatch.chdir(tmp_path)
    return one, other


def on(small: list[str], data: Path) -> list[str]:
    return [*small, f"--data_root={data}"]


def test_without_a_folder_other_data_get_another(dcal, small, two):
    one, other = two
    first = dcal("train", *on(small, one))
    assert first.status == 0, first.err
    (run,) = Path("runs").iterdir()
    second = dcal("train", *on(small, other))
    assert second.status == 0, second.err
    assert "other data" in second.out and "36 train images" in second.out
    assert "nothing to do" not in second.out
    assert {path.name for path in Path("runs").iterdir()} == {run.name, f"{run.name}-2"}
    for data, name in ((one, run.name), (other, f"{run.name}-2")):  # each finds its own again
        again = dcal("train", *on(small, data))
        assert again.status == 0 and f"runs/{name} holds this run" in again.out


def test_data_that_are_gone_are_not_done(dcal, small, two):
    one, _ = two
    assert dcal("train", *on(small, one), "--output_dir=run").status == 0
    outcome = dcal("train", *on(small, Path("nowhere")), "--output_dir=run")
    assert outcome.status == 2 and "nowhere" in outcome.err


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_an_interrupted_run_resumes_on_a_copy_only(train_until, dcal, tasks, make_images, make_people, tmp_path, task):
    make = {"fgvc": make_images, "reid": make_people}[task]
    data = make(tmp_path / "data")
    run = tmp_path / "run"
    flags = [*tasks[task], f"--data_root={data}"]
    assert train_until(flags, run, kind="backward, after", number=8, does="SIGTERM").status == 75
    other = shutil.copytree(data, tmp_path / "other")
    victim = sorted((other / "train").rglob("*.png"))[0]
    victim.rename(victim.with_name(f"door_{victim.name}"))
    refused = dcal("train", *tasks[task], f"--data_root={other}", "--output_dir", run)
    assert refused.status == 2 and "other data" in refused.err
    began = dcal("train", *tasks[task], f"--data_root={other}", "--resume", run, "--output_dir", tmp_path / "new")
    assert began.status == 2 and "other data" in began.err and "--weights" in began.err
    copy = data.rename(tmp_path / "moved")
    resumed = dcal("train", *tasks[task], f"--data_root={copy}", "--output_dir", run)
    assert resumed.status == 0, resumed.err
    assert "resumed after" in resumed.out


def test_test_images_count(dcal, small, two):
    one, _ = two
    assert dcal("train", *on(small, one), "--output_dir=run").status == 0
    (one / "val" / "ant" / "00.png").unlink()
    outcome = dcal("train", *on(small, one), "--output_dir=run")
    assert outcome.status == 2 and "test images (18 there, 17 here)" in outcome.err
    evaluated = dcal("eval", "run")
    assert evaluated.status == 0, evaluated.err
    assert any_says(evaluated.out.splitlines(), "not the test data", "test images (18 there, 17 here)")


def test_a_precision_that_the_device_does_not_have(dcal, tasks, undisturbed, tmp_path):
    """Precision "auto" is resolved once; a run that began on a GPU in fp16 resumes on a CPU in another one."""
    run = RunFolder(shutil.copytree(undisturbed("fgvc"), tmp_path / "run"))
    run.config.write_text(yaml.safe_dump(yaml.safe_load(run.config.read_text()) | {"precision": "fp16"}))
    outcome = dcal("train", *tasks["fgvc"], "--precision=auto", "--output_dir", run.path)
    assert outcome.status == 0, outcome.err
    assert "nothing to do" in outcome.out
    assert "was in fp16" in outcome.out
