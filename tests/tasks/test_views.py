"""`--sie view` and `--sie camera_view`: views from a CSV file, in training, evaluation and everywhere else."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from dual_cross_attention import load_model
from dual_cross_attention.cli import main
from dual_cross_attention.models.side_information import UNKNOWN
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.tasks.cameras import pair_indices
from dual_cross_attention.tasks.registry import read_setup
from tests.helpers import assert_refused, rows_of

SIE = ["--sie=view", "--ablation=sa_only"]
VIEWS = ("front", "rear", "")
"""Of images …_0, …_1 and …_2 of a folder."""


def view_of(path):
    return VIEWS[int(path.stem[-1])]


@pytest.fixture(scope="module")
def views(people, tmp_path_factory):
    """A file with the views of `people`: none for …_2."""
    file = tmp_path_factory.mktemp("views") / "views.csv"
    paths = sorted(people.rglob("*.png"))
    rows = [f"{path.relative_to(people).as_posix()},{view_of(path)}" for path in paths if "query/dan" not in f"{path}"]
    file.write_text("path,view\n" + "\n".join(rows) + "\n")
    return file


@pytest.fixture(scope="module")
def trained(small_reid, views, tmp_path_factory):
    run = tmp_path_factory.mktemp("sie") / "run"
    assert main(["train", *small_reid, *SIE, f"--views={views}", "--lr=1e-2", f"--output_dir={run}"]) == 0
    return run


def test_a_run_says_and_saves_them(dcal, small_reid, views, tmp_path):
    outcome = dcal("train", *small_reid, *SIE, "--views", views, "--epochs=1", "--output_dir", tmp_path / "run")
    printed = " ".join(outcome.out.split())
    # Of 6 training images for each of 4 people, 2 are …_2; of the 6 queries, the 2 of dan are not listed.
    assert "2 views in training (front, rear)" in printed and "8 of 24 training images" in printed, outcome
    assert "2 of 18 test images" in printed
    config = RunFolder(tmp_path / "run").read_config()
    assert (config.sie, config.sie_views, config.sie_cameras) == ("view", ("front", "rear"), ())
    assert load_file(tmp_path / "run" / "last.safetensors")["side_information.embedding"].shape == (2, 48)


def test_indices_are_those_of_the_files(small_reid, views, trained):
    setup = read_setup(RunFolder(trained).read_config())
    indices = setup.build_task(load_model(trained, device="cpu").model).cameras
    places = {"front": 0, "rear": 1, "": UNKNOWN}
    assert indices.train.tolist() == [places[view_of(path)] for path in setup.data.train.images]
    expected = [UNKNOWN if "query/dan" in f"{path}" else places[view_of(path)] for path in setup.images]
    assert indices.test.tolist() == expected and UNKNOWN in expected and 1 in expected


def test_an_evaluation_of_the_run_uses_them(dcal, trained, tmp_path):
    outcome = dcal("eval", trained, "--json", tmp_path / "a.json", "--device=cpu")
    assert "embeddings of 2 views" in outcome.out and "2 of 18 test images" in outcome.out, outcome
    best = max(row["val/mAP"] for row in rows_of(trained))
    assert json.loads((tmp_path / "a.json").read_text())["mAP"] == pytest.approx(best, abs=0.01)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "not the data of the run: give theirs by --views"),
        (["--views=none"], "--views none"),
        (["--views=FILE"], "embeddings of 2 views of the training are used; 3 of 19"),
    ],
)
def test_views_of_other_data_are_given(dcal, trained, views, people, tmp_path, flags, says):
    other = tmp_path / "other"
    shutil.copytree(people, other)
    shutil.copy(other / "gallery" / "eva" / "door_0.png", other / "gallery" / "eva" / "door_9.png")
    outcome = dcal(
        "eval", trained, "--data_root", other, "--device=cpu", *(each.replace("FILE", f"{views}") for each in flags)
    )
    assert outcome.status == 0 and says in " ".join(outcome.out.split()), outcome


def test_a_model_whose_file_of_views_is_gone(dcal, trained, views, tmp_path):
    """Said, and the images count as of unknown views, as of a published model without its training data."""
    gone = tmp_path / "run"
    shutil.copytree(trained, gone)
    from dual_cross_attention.inference.model_files import read_model, save_model

    saved = read_model(gone)
    config = saved.config.replaced(views=f"{tmp_path / 'gone.csv'}")
    file = tmp_path / "model.safetensors"
    save_model(file, saved.model.state_dict(), config, saved.classes, saved.metrics, saved.data, saved.preprocessing)
    outcome = dcal("eval", file, "--device=cpu")
    assert outcome.status == 0 and "of unknown views" in outcome.out and "gone.csv" in outcome.out, outcome
    assert dcal("eval", file, "--device=cpu", "--views", views).status == 0


def test_features_outside_of_an_evaluation_are_of_unknown_views(dcal, trained, people, tmp_path):
    from PIL import Image

    model = load_model(trained, device="cpu")
    path = people / "query" / "eva" / "door_0.png"
    with Image.open(path) as image:
        pixels = model.transform(image.convert("RGB"))[None]
    with torch.no_grad():
        plain = F.normalize(model.model(pixels).features["sa"])
        front = F.normalize(model.model(pixels, cameras=torch.tensor([0])).features["sa"])
    assert torch.allclose(model.embed(path), plain, atol=1e-5) and not torch.allclose(plain, front, atol=1e-5)
    outcome = dcal("embed", trained, people / "query", "--output", tmp_path / "features.npz", "--device=cpu")
    assert outcome.status == 0, outcome


def test_an_exported_graph_has_unknown_views(dcal, trained, people, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert dcal("export", trained, "--output", tmp_path / "model.onnx").status == 0
    evaluated = dcal("eval", tmp_path / "model.onnx", "--data_root", people)
    assert evaluated.status == 0 and "no embedding of views" in " ".join(evaluated.out.split()), evaluated


def test_other_views_are_other_data(dcal, small_reid, trained, views, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "epoch_0002")
    other = tmp_path / "other.csv"
    other.write_text(views.read_text().replace("train/anna/door_0.png,front", "train/anna/door_0.png,rear"))
    flags = [*small_reid, *SIE, f"--views={other}", "--lr=1e-2"]
    assert_refused(dcal("train", *flags, "--output_dir", tmp_path / "run"), "views of the training images")


def test_pairs_of_camera_and_view(dcal, small_reid, views, tmp_path):
    """One vector for each pair, numbered as in TransReID; unknown where the camera or the view is."""
    cameras, of_view = torch.tensor([0, 1, 2, UNKNOWN, 1]), torch.tensor([1, 0, UNKNOWN, 1, 1])
    assert pair_indices(cameras, of_view, 2).tolist() == [1, 2, UNKNOWN, UNKNOWN, 3]
    flags = ["--sie=camera_view", "--cameras=name", f"--views={views}", "--epochs=1"]
    assert dcal("train", *small_reid, *flags, "--output_dir", tmp_path / "run").status == 0
    assert load_file(tmp_path / "run" / "last.safetensors")["side_information.embedding"].shape == (4, 48)
    outcome = dcal("eval", tmp_path / "run", "--device=cpu")
    assert "embeddings of 2 cameras and 2 views" in outcome.out, outcome


def test_without_the_file_it_is_refused(dcal, small_reid, tmp_path):
    assert_refused(dcal("train", *small_reid, *SIE), "sie view", "--views", "path,view")
    missing = tmp_path / "none.csv"
    assert_refused(dcal("train", *small_reid, *SIE, f"--views={missing}"), "views", missing, "not exist")


def test_views_that_are_of_no_training_image_are_refused(dcal, small_reid, views, tmp_path):
    (tmp_path / "other.csv").write_text("path,view\nelsewhere.png,front\n")
    assert_refused(dcal("train", *small_reid, *SIE, f"--views={tmp_path / 'other.csv'}"), "other.csv", "no view")
    flags = [*small_reid, *SIE, f"--views={views}", "--sie_views", "top"]
    assert_refused(dcal("train", *flags), "sie_views", "top", "front, rear")


def test_a_file_without_effect_is_said(dcal, small_reid, views, tmp_path):
    outcome = dcal("train", *small_reid, f"--views={views}", "--epochs=1", "--output_dir", tmp_path / "run")
    assert "no effect: views: sie none has no embedding of views" in " ".join(outcome.out.split())
    outcome = dcal("eval", tmp_path / "run", f"--views={views}", "--device=cpu")
    assert_refused(outcome, "--views", "--sie view")
