"""`dcal predict` and `dcal embed`, as a user types them."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dual_cross_attention import load_model
from dual_cross_attention.cli import main
from dual_cross_attention.inference.part_file import PartFile

ON_CPU = ["--device=cpu", "--num_workers=0"]


@pytest.fixture
def photos(tmp_path):
    """Nine images in folders, one of them broken, with names that need care."""
    random = np.random.default_rng(0)
    for name in ("1.jpg", "2.png", "sub/3.jpg", "sub/Zoë 4.png", "sub/[5].jpg", "sub/6.png", "sub/7.png", "sub/8.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "broken.jpg").write_text("no image")
    return tmp_path / "photos"


def test_a_table(dcal, make_model, photos):
    path = make_model()
    outcome = dcal("predict", path, photos, "--top_k=2", *ON_CPU)
    assert outcome.status == 1
    head, *lines = outcome.out.splitlines()
    expected = list(load_model(path, device="cpu").predict([photos / "1.jpg", photos / "2.png"]))
    assert head.split()[:3] == ["image", "class", "probability"] and len(lines) == 9
    for line, prediction in zip(lines, expected, strict=False):
        assert line.startswith(prediction.path) and prediction.label in line
        assert f"{100 * prediction.probability:.1f} %" in line and prediction.top[1][0] in line
    assert "cannot be read" in lines[2]
    assert dcal("predict", path, photos / "1.jpg", *ON_CPU).status == 0


def test_json_lines_on_standard_output(dcal, make_model, photos, monkeypatch):
    lines = b"1.jpg\nsub/Zo\xc3\xab 4.png\nmissing.jpg\n"
    monkeypatch.chdir(photos)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    outcome = dcal("predict", make_model(), "-", "--output=-", *ON_CPU)
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert [row["path"] for row in rows] == ["1.jpg", "sub/Zoë 4.png", "missing.jpg"]
    assert [row["error"] is None for row in rows] == [True, True, False] and outcome.status == 1


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_a_file(dcal, make_model, photos, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / f"out{suffix}"
    outcome = dcal("predict", make_model(), photos, f"--output={output}", *ON_CPU)
    assert outcome.status == 1 and "9 images, 1 of them unreadable" in outcome.out
    assert output.stat().st_size > 0
    assert not list(tmp_path.glob("*.part.jsonl*"))


def killed(arguments, row: int, monkeypatch) -> int:
    """Runs a command in a forked process that is killed in the middle of writing a row; how it ended."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        append, count = PartFile.append, iter(range(1, 1000))

        def append_or_die(self, values):
            if next(count) == row:
                self._file.write(json.dumps(values)[:30])
                self._file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            append(self, values)

        PartFile.append = append_or_die
        main([str(argument) for argument in arguments])
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("command", ["predict", "embed"])
def test_a_kill_loses_and_repeats_no_row(dcal, make_model, photos, tmp_path, monkeypatch, command):
    path = make_model()
    suffix = "json" if command == "predict" else "npz"
    whole, output = tmp_path / f"whole.{suffix}", tmp_path / f"out.{suffix}"
    common = [command, path, photos, "--batch_size=2", *ON_CPU]
    assert dcal(*common, f"--output={whole}").status == 1
    for row in (1, 6, 3):
        assert killed([*common, f"--output={output}"], row, monkeypatch) == -signal.SIGKILL
    assert not output.exists()
    part = tmp_path / f"out.{suffix}.part.jsonl"
    assert len(part.read_text().splitlines()) == 1 + 0 + 5 + 2 + 1  # a head, rows, and a part of one

    for changed, said in (
        (["--branch=sa"], "branch"),
        (["--precision=bf16"], "precision"),
        *([(["--top_k=2"], "top_k")] if command == "predict" else []),
    ):
        refused = dcal(*common, f"--output={output}", *changed)
        assert refused.status == 2 and said in refused.err and "--resume never" in refused.err
    other = dcal(command, make_model(seed=1), *common[2:], f"--output={output}")
    assert other.status == 2 and "model" in other.err
    fewer = dcal(command, path, photos / "sub", *common[3:], f"--output={output}")
    assert fewer.status == 2 and "same images" in fewer.err

    monkeypatch.setattr(PartFile, "append", counted := Counted(PartFile.append))
    resumed = dcal(*common, f"--output={output}")
    assert resumed.status == 1 and counted.number == 9 - 7
    if command == "predict":
        rows, expected = (json.loads(file.read_text())["images"] for file in (output, whole))
        assert [row["path"] for row in rows] == [row["path"] for row in expected]
        assert [row["label"] for row in rows] == [row["label"] for row in expected]
    else:
        with np.load(output) as found, np.load(whole) as wanted:
            assert found["paths"].tolist() == wanted["paths"].tolist()
            assert np.abs(found["features"] - wanted["features"]).max() < 1e-6
    assert not part.exists()


class Counted:
    """`append`, counting its calls."""

    def __init__(self, append):
        self.append, self.number = append, 0

    def __get__(self, instance, owner=None):
        def count(row):
            self.number += 1
            self.append(instance, row)

        return count


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_resume_never_starts_anew(dcal, make_model, photos, tmp_path, monkeypatch):
    path, output = make_model(), tmp_path / "out.csv"
    assert killed(["predict", path, photos, f"--output={output}", *ON_CPU], 4, monkeypatch) == -signal.SIGKILL
    arguments = ["predict", path, photos, f"--output={output}", "--top_k=1", *ON_CPU]
    assert dcal(*arguments).status == 2
    assert dcal(*arguments, "--resume=never").status == 1
    assert len(output.read_text().splitlines()) == 10


def test_embed_writes_what_python_gives(dcal, make_model, photos, tmp_path):
    path, output = make_model("reid"), tmp_path / "out.npz"
    outcome = dcal("embed", path, photos / "sub", f"--output={output}", "--branch=sa", *ON_CPU)
    assert outcome.status == 0, outcome.err
    model = load_model(path, device="cpu")
    with np.load(output) as file:
        assert str(file["fingerprint"]) == model.fingerprint("sa") != model.fingerprint()
        assert np.abs(file["features"] - model.embed(file["paths"].tolist(), branch="sa").numpy()).max() < 1e-6


def test_invalid_input_is_refused(dcal, make_model, photos, tmp_path):
    path, reid = make_model(), make_model("reid")
    for arguments, said in (
        (["predict"], "MODEL"),
        (["predict", path], "IMAGE"),
        (["predict", path, tmp_path / "missing"], "no file or folder"),
        (["predict", tmp_path / "missing", photos], "no model"),
        (["predict", photos / "1.jpg", photos], "safetensors"),
        (["predict", reid, photos], "dcal embed"),
        (["predict", path, photos, "--top_k=0"], "top_k"),
        (["predict", path, photos, "--branch=pwca"], "branch"),
        (["predict", path, photos, "--output=out.xlsx"], ".csv"),
        (["predict", path, photos, f"--output={tmp_path / 'no' / 'out.csv'}"], "no folder"),
        (["embed", path, photos], "--output"),
        (["embed", path, photos, "--output=out.csv"], ".npz"),
    ):
        outcome = dcal(*arguments, *(ON_CPU if len(arguments) > 1 else []))
        assert outcome.status == 2 and said in outcome.err, (arguments, outcome)
        assert len(outcome.err.splitlines()) == 1 and outcome.out == ""


def test_closed_standard_input_is_an_error_in_a_line(dcal, make_model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    outcome = dcal("predict", make_model(), "-", *ON_CPU)
    assert outcome.status == 2 and "standard input is closed" in outcome.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_standard_output_on_a_full_disk_is_an_error_in_a_line(make_model, photos):
    command = [sys.executable, "-c", "import sys; from dual_cross_attention.cli import main; sys.exit(main())"]
    command += ["predict", make_model(), photos / "1.jpg", *ON_CPU]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr and "No space" in ended.stderr
