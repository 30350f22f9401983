"""The same command on other data never takes the first data's run for its own."""

import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from rich.console import Console

from dual_cross_attention.configs import ToyConfig
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.training.run import train

FIXTURES = Path(__file__).parent.parent / "fixtures" / "format_1"


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
        assert again.status == 0 and f"runs/{name} holds this run already" in again.out


def test_in_a_named_folder_it_is_refused(dcal, small, two):
    one, other = two
    assert dcal("train", *on(small, one), "--output_dir=run").status == 0
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()}
    outcome = dcal("train", *on(small, other), "--output_dir=run")
    assert outcome.status == 2
    assert "other data" in outcome.err and "names or labels of the 36 train images" in outcome.err
    after = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()}
    assert {path: time for path, time in after.items() if path.name[0] != "."} == {
        path: time for path, time in before.items() if path.name[0] != "."
    }


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
    assert outcome.status == 2 and "number of test images (18 there, 17 here)" in outcome.err
    evaluated = dcal("eval", "run")
    assert evaluated.status == 0, evaluated.err
    assert "not the test data of the run: number of test images (18 there, 17 here)" in evaluated.out


def test_what_a_command_leaves_open_stays_as_the_run_has_it(dcal, small, two):
    """Precision "auto" is decided once."""
    one, _ = two
    small = [*small, "--precision=auto"]
    assert dcal("train", *on(small, one), "--output_dir=run").status == 0
    config = RunFolder("run").config
    stored = yaml.safe_load(config.read_text())
    assert stored["precision"] in ("fp32", "bf16")
    other = {"fp32": "bf16", "bf16": "fp32"}[stored["precision"]]
    config.write_text(yaml.safe_dump(stored | {"precision": other}))
    assert "nothing to do" in dcal("train", *on(small, one), "--output_dir=run").out
    refused = dcal("train", *on(small, one), "--output_dir=run", f"--precision={stored['precision']}")
    assert refused.status == 2 and f"precision ({other} there, {stored['precision']} here)" in refused.err
    config.write_text(yaml.safe_dump(stored | {"precision": "fp16"}))  # as if it had begun on a GPU
    assert "nothing to do" in dcal("train", *on(small, one), "--output_dir=run").out


def test_damaged_records_are_told_in_a_line(dcal, small, two):
    one, _ = two
    assert dcal("train", *on(small, one), "--output_dir=run").status == 0
    RunFolder("run").data.write_text("{")
    outcome = dcal("train", *on(small, one), "--output_dir=run")
    assert outcome.status == 2 and "data.json" in outcome.err and len(outcome.err.splitlines()) == 1


def test_other_images_under_the_same_names(dcal, small, make_images, tmp_path, monkeypatch):
    """Numbered images, as in folds of a cross-validation."""
    one, other = (make_images(tmp_path / name) for name in ("one", "other"))
    for path in other.rglob("*.png"):
        Image.new("RGB", (32, 32), (1, 2, 3)).save(path)
    monkeypatch.chdir(tmp_path)
    assert dcal("train", *on(small, one)).status == 0
    second = dcal("train", *on(small, other))
    assert second.status == 0 and "nothing to do" not in second.out
    assert "content of the 36 train images" in second.out


def test_a_run_of_format_1_resumes_from_python_too(tmp_path):
    """Settings that were not typed are those of the run where they are today's defaults."""
    run = Path(shutil.copytree(FIXTURES / "fgvc-interrupted", tmp_path / "run"))
    stored = yaml.safe_load((run / "config.yaml").read_text())
    config = ToyConfig(**stored | {"output_dir": f"{run}"})
    train(config, Console(quiet=True))
    assert len(RunFolder(run).read_metrics()) == config.epochs
