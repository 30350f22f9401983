"""`dcal calibrate`, and `dcal predict` with a calibrated model, as a user types them."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dual_cross_attention import load_model
from dual_cross_attention.cli import main
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.calibrate import calibrate
from dual_cross_attention.inference.calibrate_classifier import LabeledLogits, fit_answers, measure_held_out
from dual_cross_attention.inference.halves import first_half
from dual_cross_attention.inference.model_files import write_calibration
from dual_cross_attention.metrics.calibration import expected_calibration_error, fit_temperature

ON_CPU = ["--device=cpu", "--num_workers=0"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small):
    """A run that no test changes."""
    run = tmp_path_factory.mktemp("run")
    assert main(["train", *small, "--epochs=1", f"--output_dir={run}"]) == 0
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")


def test_a_run_is_calibrated(dcal, run, images):
    before = load_file(run / "best.safetensors")
    plain = load_model(run, device="cpu")
    outcome = dcal("calibrate", run, "--keep=0.5", "--json=-", *ON_CPU)
    assert outcome.status == 0, outcome.err
    result, after = json.loads(outcome.out), load_file(run / "best.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before) and after.keys() == before.keys()
    assert "chosen by" in " ".join(outcome.err.split())
    assert "18 images only" in outcome.err
    model = load_model(run, device="cpu")
    assert json.loads(model.calibration.to_json()) == result["calibration"]
    assert model.calibration.images == result["images"] == 18 and model.calibration.keep == 0.5
    assert model.fingerprint() == plain.fingerprint()

    # All of them are classified correctly, which says nothing of a temperature.
    assert outcome.err.count("stays 1") == 3
    assert {answer.temperature for answer in model.calibration.answers.values()} == {1.0}
    files = sorted((images / "val").rglob("*.png"))
    assert sum(prediction.known for prediction in model.predict(files)) == 9


def test_stored_calibration_is_of_all_images(dcal, run, images, tmp_path):
    data = shutil.copytree(images / "val", tmp_path / "data" / "val").parent
    for number, other in (("00", "bee"), ("01", "cat"), ("02", "cat")):  # else all are classified correctly
        (data / "val" / "ant" / f"{number}.png").rename(data / "val" / other / f"ant {number}.png")
    plain = load_model(run, device="cpu")
    assert dcal("calibrate", run, f"--data_root={data}", "--keep=0.5", *ON_CPU).status == 0
    model = load_model(run, device="cpu")
    files = sorted((data / "val").rglob("*.png"))
    logits = plain.model.predict_logits(torch.stack([plain.transform(file) for file in files]))
    labels = torch.tensor([plain.labels.index(file.parent.name) for file in files])
    mean = sum(each.double().softmax(-1) for each in logits.values()) / 2
    scores = {"sa": logits["sa"].double(), "glca": logits["glca"].double(), "together": mean.log()}
    grid = torch.logspace(-2, 2, 4000, dtype=torch.float64)
    for name, answer in model.calibration.answers.items():
        losses = [torch.nn.functional.cross_entropy(scores[name] / each, labels).item() for each in grid]
        assert answer.temperature == pytest.approx(grid[int(np.argmin(losses))].item(), rel=0.01) != 1.0
    assert sum(prediction.known for prediction in model.predict(files)) == 9


def test_a_copy_leaves_the_model_as_it_is(dcal, run, tmp_path):
    before, copy = (run / "best.safetensors").read_bytes(), tmp_path / "birds.safetensors"
    outcome = dcal("calibrate", run, f"--output={copy}", "--split=val", *ON_CPU)
    assert outcome.status == 0, outcome.err
    assert (run / "best.safetensors").read_bytes() == before
    assert load_model(run).calibration is None and load_model(copy).calibration.split == "val"
    assert load_model(copy).chosen_by == load_model(run).chosen_by
    for word in ("ECE", "NLL", "temperature", "SA + GLCA", "known", "birds.safetensors"):
        assert word in outcome.out


def test_training_images_are_refused(dcal, run, images, tmp_path):
    before = (run / "best.safetensors").read_bytes()
    outcome = dcal("calibrate", run, f"--data_root={images / 'train'}", *ON_CPU)
    assert outcome.status == 2 and "training images" in outcome.err and len(outcome.err.splitlines()) == 1
    renamed = shutil.copytree(images / "train", tmp_path / "other" / "val").parent  # under the name of another split
    assert dcal("calibrate", run, f"--data_root={renamed}", *ON_CPU).status == 2
    assert dcal("calibrate", run, "--split=train", *ON_CPU).status == 2
    with pytest.raises(InputError, match="training images"):
        calibrate(run, split="train")
    assert (run / "best.safetensors").read_bytes() == before


def test_other_images_are_noted(dcal, run, images, tmp_path):
    shutil.copytree(images / "val", tmp_path / "data" / "test")
    (tmp_path / "data" / "test" / "ant" / "00.png").unlink()
    outcome = dcal("calibrate", run, f"--data_root={tmp_path / 'data'}", "--split=test", *ON_CPU)
    said = " ".join(outcome.out.split())
    assert outcome.status == 0 and "not the test images" in said and "chosen by" not in said


def test_invalid_input_is_refused(dcal, run, make_model, tmp_path):
    alone = make_model(ablation="sa_only")
    for arguments, said in (
        ([], "MODEL"),
        ([run, "--fpir=0.1"], "--score and --keep"),
        ([make_model("reid"), "--keep=0.5"], "--fpir"),
        ([make_model("reid"), "--score=energy"], "--fpir"),
        ([make_model("reid"), "--fpir=0"], "--fpir"),
        ([make_model("reid"), "--fpir=1"], "--fpir"),
        ([make_model("reid"), f"--output={tmp_path / 'copy.pth'}"], ".safetensors"),
        ([run, "--keep=0"], "--keep"),
        ([run, "--keep=1.5"], "--keep"),
        ([run, "--score=entropy"], "score"),
        ([alone, "--score=agreement"], "agreement"),
        ([run, f"--output={tmp_path / 'no' / 'copy.safetensors'}"], "no folder"),
        ([run, f"--output={tmp_path / 'copy.pth'}"], ".safetensors"),
        ([run, f"--data_root={tmp_path / 'missing'}"], "missing"),
    ):
        outcome = dcal("calibrate", *arguments)
        assert outcome.status == 2 and said in outcome.err, (arguments, outcome)
        assert len(outcome.err.splitlines()) == 1
    assert load_model(run).calibration is None


@pytest.mark.parametrize("score", ["probability", "energy", "agreement"])
def test_predict_reports_unknown_images(dcal, run, images, tmp_path, score):
    assert dcal("calibrate", run, f"--score={score}", "--keep=0.5", *ON_CPU).status == 0
    answers = load_model(run).calibration.answers
    assert answers["together"].score == score
    assert answers["sa"].score == ("probability" if score == "agreement" else score)
    files = tmp_path / "files.csv"
    assert dcal("predict", run, images / "val", f"--output={files}", *ON_CPU).status == 0
    with files.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["known"] for row in rows].count("true") == 9 == [row["known"] for row in rows].count("false")
    head, *lines = dcal("predict", run, images / "val", *ON_CPU).out.splitlines()
    assert head.split()[3:] == ["known", "next"]
    assert [" unknown " in line for line in lines] == [row["known"] == "false" for row in rows]
    for suffix in (".json", ".parquet"):
        if suffix == ".parquet":
            pytest.importorskip("pyarrow")
        output = tmp_path / f"files{suffix}"
        assert dcal("predict", run, images / "val", "--branch=sa", f"--output={output}", *ON_CPU).status == 0
        known = read_known(output)
        assert set(known) <= {True, False} and sum(known) == 9


def read_known(path):
    if path.suffix == ".json":
        return [row["known"] for row in json.loads(path.read_text())["images"]]
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).column("known").to_pylist()


def test_rows_of_another_calibration_are_not_resumed(dcal, make_model, calibration, images, tmp_path, monkeypatch):
    from dual_cross_attention.inference import prediction_files

    path, output = make_model(), tmp_path / "rows.csv"
    arguments = ["predict", path, images / "val", f"--output={output}", *ON_CPU]

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prediction_files, "write_predictions", fail)
        assert dcal(*arguments).status == 130
        assert (tmp_path / "rows.csv.part.jsonl").exists()
        write_calibration(path, path, calibration, None)
        refused = dcal(*arguments)
        assert refused.status == 2 and "calibration" in refused.err and "--resume never" in refused.err
        assert dcal(*arguments, "--resume=never").status == 130
    assert dcal(*arguments).status == 0  # the same calibration: the rows are there
    with output.open() as file:
        assert {row["known"] for row in csv.DictReader(file)} <= {"true", "false"}


def test_rows_of_eval_have_the_probabilities_of_predict(dcal, images, make_model, calibration, tmp_path):
    path = make_model(labels=["ant", "bee", "cat"], dataset="folder", data_root=f"{images}")
    write_calibration(path, path, calibration, None)
    assert dcal("eval", path, f"--output={tmp_path / 'rows.csv'}", *ON_CPU).status == 0
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    model = load_model(path, device="cpu")
    for suffix, branch in (("", None), ("_sa", "sa"), ("_glca", "glca")):
        expected = list(model.predict([row["path"] for row in rows], branch=branch))
        assert [row[f"prediction{suffix}"] for row in rows] == [each.label for each in expected]
        found = [float(row[f"probability{suffix}"]) for row in rows]
        assert found == pytest.approx([each.probability for each in expected], abs=1e-5)


def test_unreadable_images_are_left_out(dcal, run, images, tmp_path):
    data = shutil.copytree(images / "val", tmp_path / "data" / "val").parent
    (data / "val" / "bee" / "00.png").write_text("no image")
    outcome = dcal("calibrate", run, f"--data_root={data}", "--json=-", *ON_CPU)
    result = json.loads(outcome.out)
    assert (result["images"], result["unreadable"]) == (17, 1) and "00.png" in outcome.err
    assert load_model(run).calibration.images == 17


def test_images_in_archives(dcal, run, images, tmp_path):
    flags = ["--dataset=folder", f"--data_root={images}", f"--output_dir={tmp_path / 'shards'}", "--num_workers=0"]
    assert dcal("shard", *flags).status == 0
    of_files, of_archives = tmp_path / "files.safetensors", tmp_path / "archives.safetensors"
    assert dcal("calibrate", run, f"--output={of_files}", *ON_CPU).status == 0
    from_archives = ["--dataset=shards", f"--data_root={tmp_path / 'shards'}"]
    assert dcal("calibrate", run, *from_archives, f"--output={of_archives}", *ON_CPU).status == 0
    found, expected = (load_model(file).calibration.answers["together"] for file in (of_archives, of_files))
    assert found.temperature == pytest.approx(expected.temperature)
    assert found.threshold == pytest.approx(expected.threshold, abs=1e-5)


def test_logits_that_are_not_finite_are_refused(dcal, run, monkeypatch):
    from dual_cross_attention.models.dual_vit import DualCrossAttentionViT

    forward = DualCrossAttentionViT.forward

    def broken(self, *arguments):
        out = forward(self, *arguments)
        out.logits["glca"][0, 0] = float("nan")
        return out

    monkeypatch.setattr(DualCrossAttentionViT, "forward", broken)
    outcome = dcal("calibrate", run, *ON_CPU)
    assert outcome.status == 2 and "NaN" in outcome.err
    assert load_model(run).calibration is None


# --- without a model ---


def synthetic(number: int = 4000, temperature: float = 3.0) -> LabeledLogits:
    """SA is overconfident by a factor."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(number, 8, generator=random, dtype=torch.float64) * 6
    labels = torch.multinomial((logits / temperature).softmax(-1), 1, generator=random).squeeze(1)
    names = [f"class {label}/{i:05}.jpg" for i, label in enumerate(labels.tolist())]
    glca = logits / 2 + torch.randn(logits.shape, generator=random, dtype=torch.float64)
    return LabeledLogits({"sa": logits, "glca": glca}, labels, names, ["sa", "glca"])


def test_halves_are_decided_by_the_names():
    names = synthetic().names
    halves = first_half(names)
    assert 0.45 < halves.double().mean() < 0.55
    assert torch.equal(first_half(names[::-1]).flip(0), halves)
    assert first_half(["a/e\u0301.jpg"]) == first_half(["a/\xe9.jpg"])


def test_reported_errors_are_of_held_out_images():
    found = synthetic()
    result = measure_held_out(found, "probability", 0.9)
    first = first_half(found.names)
    other, labels = found.logits["sa"][~first], found.labels[~first]
    temperature = fit_temperature(found.logits["sa"][first], found.labels[first])
    assert result["images"] == len(other)
    assert result["sa"]["ece"] == pytest.approx(expected_calibration_error(other / temperature, labels))
    assert result["sa"]["ece"] < 0.04 < 0.1 < result["sa"]["ece_uncalibrated"]
    assert result["sa"]["nll"] < result["sa"]["nll_uncalibrated"]
    assert result["kept"] == pytest.approx(0.9, abs=0.03)
    relabeled = found._replace(labels=torch.where(first, found.labels, (found.labels + 1) % 8))
    worse = measure_held_out(relabeled, "probability", 0.9)
    assert worse["sa"]["nll"] > result["sa"]["nll"] + 1 and worse["kept"] == result["kept"]


@pytest.mark.parametrize("score", ["probability", "energy", "agreement"])
@pytest.mark.parametrize("keep", [0.5, 0.95, 1.0])
def test_thresholds_keep_the_share(score, keep):
    found = synthetic(999)
    for answer in fit_answers(found, score, keep).values():
        assert abs(answer.kept * 999 - keep * 999) <= 1
