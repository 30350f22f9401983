"""`dcal calibrate` of re-identification, as a user types it."""

import json
import math
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from dual_cross_attention import load_model
from dual_cross_attention.data.reid import load_reid
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference import calibrate_reid
from dual_cross_attention.inference.calibrate import calibrate
from dual_cross_attention.inference.calibrate_reid import (
    DistancesOfProbes,
    check_enough,
    gallery_sizes,
    measure_held_out,
    pairs,
    training_identities,
)
from dual_cross_attention.inference.halves import first_half
from dual_cross_attention.inference.model_files import BEST_ON_TEST, read_model, read_model_file, save_model
from dual_cross_attention.inference.reid_calibration import ReIDCalibration
from dual_cross_attention.metrics.identification import identity_distances
from dual_cross_attention.metrics.pair_probability import fit_same
from dual_cross_attention.tasks.registry import read_setup

ON_CPU = ["--device=cpu", "--num_workers=0"]
FORMAT_1 = Path(__file__).parent.parent / "fixtures" / "format_1"
NAMES = [f"p{number:02}" for number in range(14)]


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """A dataset of the `folder` kind without training images: 14 people, 3 queries and 2 gallery images a camera."""
    root, random = tmp_path_factory.mktemp("crowd"), Random(0)
    for name in NAMES:
        color = [random.randint(0, 255) for _ in range(6)]
        for split, count in (("query", 3), ("gallery", 2)):
            (root / split / name).mkdir(parents=True)
            for camera in ("door", "hall"):
                for number in range(count):
                    image = Image.new("RGB", (16, 32), tuple(c + random.randint(-25, 25) for c in color[:3]))
                    image.paste(tuple(c + random.randint(-25, 25) for c in color[3:]), (0, 16, 16, 32))
                    image.save(root / split / name / f"{camera}_{number}.png")
    return root


@pytest.fixture
def people(make_model, crowd):
    """A model of this dataset, trained on other identities."""
    return make_model("reid", labels=["anna", "bob", "cleo"], dataset="folder", data_root=f"{crowd}")


def files_of(crowd, split):
    return sorted((crowd / split).rglob("*.png"))


def literal_thresholds(model, crowd, fpir, branch=None, names=NAMES):
    """At all identities but the probe's: the distances between which the threshold lies."""
    sides = [[f for f in files_of(crowd, split) if f.parent.name in names] for split in ("query", "gallery")]
    query, gallery = (model.embed(side, branch=branch).double().numpy() for side in sides)
    nearest = []
    for probe, file in zip(query, sides[0], strict=True):
        others = [
            math.dist(probe, g)
            for g, other in zip(gallery, sides[1], strict=True)
            if other.parent.name != file.parent.name
        ]
        nearest.append(min(others))
    nearest.sort()
    accepted = math.floor(fpir * len(nearest))
    return nearest[accepted - 1], nearest[accepted]


def test_a_model_is_calibrated(dcal, people, crowd):
    plain = load_model(people, device="cpu")
    outcome = dcal("calibrate", people, "--fpir=0.1", "--json=-", *ON_CPU)
    assert outcome.status == 0, outcome.err
    result, model = json.loads(outcome.out), load_model(people, device="cpu")
    assert result["calibration"] == json.loads(model.calibration.to_json())
    assert result["held_out"] == result["calibration"]["held_out"] is not None
    assert (result["images"], result["identities"], result["unreadable"]) == (84 + 56, 14, 0)
    calibration = model.calibration
    assert isinstance(calibration, ReIDCalibration) and model.fingerprint() == plain.fingerprint()
    assert (calibration.fpir, calibration.distance, calibration.dataset) == (0.1, "euclidean", "folder")
    assert (calibration.identities, calibration.gallery_images, calibration.probes) == (14, 56, 84)
    assert calibration.gallery_sizes == (1, 3, 10, 13)
    assert calibration.answers.keys() == {"together", "sa", "glca"}
    for branch in (None, "sa", "glca"):
        low, high = literal_thresholds(model, crowd, 0.1, branch)
        assert calibration.threshold(13, branch) == pytest.approx((low + high) / 2, rel=1e-4)
        sizes = [calibration.threshold(size, branch) for size in range(1, 14)]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    near = model.embed(sorted((crowd / "query" / "p00").iterdir()))
    assert calibration.probability_same(math.dist(near[0].tolist(), near[1].tolist())) > 0.5
    assert "14 identities only" in outcome.err and "does not record its data" in outcome.err


def test_the_table_has_what_is_stored(dcal, people, tmp_path):
    before, copy = people.read_bytes(), tmp_path / "people.safetensors"
    outcome = dcal("calibrate", people, f"--output={copy}", "--fpir=0.1", *ON_CPU)
    assert outcome.status == 0, outcome.err
    assert people.read_bytes() == before and load_model(people).calibration is None
    for word in ("FPIR", "FNIR", "enrolled identities", "SA + GLCA", "GLCA", "P(same)", "84 queries", "people"):
        assert word in outcome.out
    calibration = load_model(copy).calibration
    assert f"13: {calibration.threshold(13):.4f}" in outcome.out
    held_out = calibration.held_out
    assert f"{held_out.answers['sa'].thresholds[-1]:.4f}" in outcome.out
    assert f"{100 * held_out.answers['sa'].fpir[-1]:.2f}" in outcome.out


def test_training_identities_are_left_out(dcal, make_model, crowd):
    labels = ["anna", *NAMES[:5]]
    path = make_model("reid", labels=labels, dataset="folder", data_root=f"{crowd}")
    outcome = dcal("calibrate", path, "--fpir=0.1", *ON_CPU)
    assert outcome.status == 0, outcome.err
    assert "5 of the identities are training identities" in " ".join(outcome.out.split())
    model = load_model(path, device="cpu")
    assert (model.calibration.identities, model.calibration.probes, model.calibration.gallery_images) == (9, 54, 36)
    low, high = literal_thresholds(model, crowd, 0.1, names=NAMES[5:])
    assert model.calibration.threshold(8) == pytest.approx((low + high) / 2, rel=1e-4)


def test_training_images_are_refused(dcal, make_model, crowd, people, tmp_path):
    trained = make_model("reid", labels=NAMES, dataset="folder", data_root=f"{crowd}")
    outcome = dcal("calibrate", trained, "--fpir=0.1", *ON_CPU)
    assert outcome.status == 2 and "training identities" in outcome.err and len(outcome.err.splitlines()) == 1
    file = read_model_file(people)
    setup = read_setup(file.config, train=False)
    data = setup.fingerprint()
    for split in ("query", "gallery"):
        known = data.splits | {"train": data.splits[split]}
        recorded = data.__class__("folder", 3, "00", known)
        path = tmp_path / f"{split}.safetensors"
        save_model(path, file.state, file.config, file.classes, file.metrics, recorded)
        outcome = dcal("calibrate", path, "--fpir=0.1", *ON_CPU)
        assert outcome.status == 2 and "training images" in outcome.err
        assert load_model(path).calibration is None
    with pytest.raises(InputError, match="training images"):
        calibrate(people, split="train")


def test_the_images_that_chose_the_epoch_are_noted(dcal, people, tmp_path):
    file = read_model_file(people)
    data = read_setup(file.config, train=False).fingerprint()
    path = tmp_path / "people.safetensors"
    save_model(path, file.state, file.config, file.classes, file.metrics, data, chosen_by=BEST_ON_TEST)
    outcome = dcal("calibrate", path, "--fpir=0.1", *ON_CPU)
    assert outcome.status == 0 and "slightly optimistic" in " ".join(outcome.out.split())


def test_names_of_another_dataset_say_nothing(people, crowd):
    """p00 of another dataset is another person."""
    data = load_reid("folder", crowd, train=False)
    assert data.training_identities(["p00", "x"]) == {0}
    saved = read_model(people)
    saved.classes = ["p03", "x"]
    assert training_identities(saved, data, "folder") == {3}
    assert training_identities(saved, data, "shards") == set()


def test_a_model_of_sa_alone(dcal, make_model, crowd):
    path = make_model("reid", labels=["x", "y"], dataset="folder", data_root=f"{crowd}", ablation="sa_only")
    outcome = dcal("calibrate", path, "--fpir=0.1", *ON_CPU)
    assert outcome.status == 0 and "GLCA" not in outcome.out
    answers = load_model(path).calibration.answers
    assert answers.keys() == {"together", "sa"} and answers["together"] == answers["sa"]


def test_other_settings_of_the_run(dcal, make_model, crowd):
    settings = {"distance": "cosine", "normalize_features": False, "feature": "after_neck", "ablation": "sa_only"}
    path = make_model("reid", labels=["x", "y"], dataset="folder", data_root=f"{crowd}", **settings)
    assert dcal("calibrate", path, "--fpir=0.1", *ON_CPU).status == 0
    model = load_model(path, device="cpu")
    query, gallery = (model.embed(files_of(crowd, split)).double() for split in ("query", "gallery"))
    names = [[file.parent.name for file in files_of(crowd, split)] for split in ("query", "gallery")]
    cosine = 1 - torch.nn.functional.normalize(query) @ torch.nn.functional.normalize(gallery).T
    other = torch.tensor([[one != two for two in names[1]] for one in names[0]])
    nearest = cosine.masked_fill(~other, math.inf).amin(1).sort().values
    assert model.calibration.distance == "cosine"
    assert model.calibration.threshold(13) == pytest.approx(nearest[7:9].mean().item(), rel=1e-3)


def test_distractors_are_not_enrolled(dcal, tmp_path, monkeypatch):
    """The toy dataset has four people of identity 0. The run is of format 1, and too small to tell people apart."""
    monkeypatch.setattr(calibrate_reid, "fit_same", lambda same, different: (1.0, -1.0))
    run = shutil.copytree(FORMAT_1 / "reid-finished", tmp_path / "run")
    outcome = dcal("calibrate", run, "--fpir=0.1", *ON_CPU)
    assert outcome.status == 0, outcome.err
    calibration = load_model(run).calibration
    assert (calibration.identities, calibration.probes, calibration.gallery_images) == (20, 120, 360)


def test_distances_that_say_nothing_are_refused(dcal, make_model):
    path = make_model("reid", labels=["x", "y"], dataset="toy", ablation="sa_only")
    outcome = dcal("calibrate", path, "--fpir=0.1", *ON_CPU)
    assert outcome.status == 2 and "no nearer" in outcome.err
    assert load_model(path).calibration is None


def test_unreadable_images_are_left_out(dcal, people, crowd, tmp_path):
    data = shutil.copytree(crowd, tmp_path / "data")
    (data / "gallery" / "p01" / "door_0.png").write_text("no image")
    outcome = dcal("calibrate", people, f"--data_root={data}", "--fpir=0.1", "--json=-", *ON_CPU)
    result = json.loads(outcome.out)
    assert (result["unreadable"], result["images"]) == (1, 139) and "door_0.png" in outcome.err


def test_what_is_refused(dcal, people, crowd, monkeypatch):
    for arguments, said in (
        (["--fpir=0.01"], "at least 100 query images"),
        (["--split=val"], "--split"),
        ([f"--data_root={crowd / 'missing'}"], "missing"),
    ):
        outcome = dcal("calibrate", people, *arguments, *ON_CPU)
        assert outcome.status == 2 and said in outcome.err, (arguments, outcome)
        assert len(outcome.err.splitlines()) == 1
    from dual_cross_attention.models.dual_vit import DualCrossAttentionViT

    forward = DualCrossAttentionViT.forward

    def broken(self, *arguments):
        out = forward(self, *arguments)
        out.features["glca"][0, 0] = float("nan")
        return out

    monkeypatch.setattr(DualCrossAttentionViT, "forward", broken)
    outcome = dcal("calibrate", people, "--fpir=0.1", *ON_CPU)
    assert outcome.status == 2 and "NaN" in outcome.err
    assert load_model(people).calibration is None


def test_too_few_to_verify_is_said(dcal, people, crowd, tmp_path):
    data = shutil.copytree(crowd, tmp_path / "data")
    for name in NAMES[3:]:
        for split in ("query", "gallery"):
            shutil.rmtree(data / split / name)
    outcome = dcal("calibrate", people, f"--data_root={data}", "--fpir=0.1", *ON_CPU)
    assert outcome.status == 0 and "not verified" in outcome.out
    assert load_model(people).calibration.held_out is None


def test_a_calibrated_model_evaluates_as_before(dcal, people):
    before = dcal("eval", people, "--json=-", *ON_CPU)
    assert dcal("calibrate", people, "--fpir=0.1", *ON_CPU).status == 0
    after = dcal("eval", people, "--json=-", *ON_CPU)
    assert before.status == after.status == 0 and before.out == after.out


# --- without a model ---


def synthetic(seed=0, identities=40):
    """Six probes and six gallery images of each identity around its center, without cameras."""
    random = np.random.default_rng(seed)
    ids = np.repeat(np.arange(identities), 6)
    centers = random.normal(size=(identities, 8))
    probe, gallery = (centers[ids] + 0.6 * random.normal(size=(len(ids), 8)) for _ in range(2))
    table = identity_distances(probe, gallery, ids, ids)
    return DistancesOfProbes({"together": table, "sa": table}, torch.from_numpy(ids), len(ids))


def test_sizes():
    assert gallery_sizes(2) == (1,) and gallery_sizes(4) == (1, 3) and gallery_sizes(12) == (1, 3, 10, 11)
    assert gallery_sizes(1001) == (1, 3, 10, 30, 100, 300, 1000)
    assert gallery_sizes(1002) == (1, 3, 10, 30, 100, 300, 1000, 1001)


def test_what_is_reported_is_of_identities_that_were_not_fitted():
    found = synthetic()
    held_out = measure_held_out(found, 0.05, str)
    first = first_half([f"{identity}" for identity in range(40)])
    assert held_out.identities == int((~first).sum()) and held_out.probes == 6 * held_out.identities
    assert held_out.gallery_sizes == gallery_sizes(min(int(first.sum()), held_out.identities))
    size, rates = held_out.gallery_sizes[-1], held_out.answers["sa"]
    assert rates == held_out.answers["together"]
    ids, table = found.probe_ids, found.tables["sa"].distances
    fitted_on, measured_on = (
        (table[side[ids]][:, side], torch.nonzero(side).flatten(), ids[side[ids]]) for side in (first, ~first)
    )
    intercept, slope = fit_same(*pairs(found.of(torch.nonzero(first).flatten()).tables["sa"]))
    for distances, columns, probe_ids in (fitted_on, measured_on):
        assert distances.shape == (len(probe_ids), len(columns))
    # Of random galleries of the same size, drawn otherwise.
    random = np.random.default_rng(1)
    false_positives, false_negatives = [], []
    distances, columns, probe_ids = measured_on
    for row, identity in zip(distances.numpy(), probe_ids.tolist(), strict=True):
        others = np.flatnonzero(columns.numpy() != identity)
        own = row[columns.numpy() == identity].item()
        for _ in range(100):
            chosen = row[random.choice(others, size, replace=False)]
            false_positives.append(chosen.min() <= rates.thresholds[-1])
            false_negatives.append(not own <= rates.thresholds[-1] or chosen[1:].min() <= own)
    assert rates.fpir[-1] == pytest.approx(np.mean(false_positives), abs=0.01)
    assert rates.fnir[-1] == pytest.approx(np.mean(false_negatives), abs=0.01)
    same, different = pairs(found.of(torch.nonzero(~first).flatten()).tables["sa"])
    p, q = (1 / (1 + np.exp(-intercept - slope * each.double().numpy())) for each in (same, different))
    assert rates.nll == pytest.approx(-(np.log(p).mean() + np.log(1 - q).mean()) / 2)


def test_thresholds_do_not_see_the_half_that_is_measured():
    found = synthetic()
    before = measure_held_out(found, 0.05, str)
    first = first_half([f"{identity}" for identity in range(40)])
    table = found.tables["sa"]
    distances = table.distances.clone()
    distances[~first[found.probe_ids]] *= 0.5
    moved = table.__class__(distances, table.identities, table.own)
    after = measure_held_out(found._replace(tables={"together": moved, "sa": moved}), 0.05, str)
    for name in ("sa", "together"):
        assert after.answers[name].thresholds == before.answers[name].thresholds
        assert after.answers[name].fpir[-1] > before.answers[name].fpir[-1] + 0.2


def test_too_few_probes_or_identities():
    found = synthetic(identities=3)
    check_enough(found, 0.1)
    for few, fpir, said in (
        (found, 0.01, "at least 100 query images, and there are 18"),
        (found.of(torch.tensor([1])), 0.5, "at least 2 gallery identities"),
    ):
        with pytest.raises(InputError, match=said):
            check_enough(few, fpir)
    assert measure_held_out(found, 0.1, str) is None
