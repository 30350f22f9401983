"""`dcal explain`, as a user types it."""

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dual_cross_attention import load_model
from tests.helpers import assert_refused

ON_CPU = ["--device=cpu", "--num_workers=0"]


@pytest.fixture
def photos(tmp_path):
    """Three images, two of them with one name, and a broken one."""
    random = np.random.default_rng(0)
    for name in ("a/$1$.png", "b/$1$.JPG", "b/[Zoë].png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "b" / "a.jpg").write_text("no image")
    return tmp_path / "photos"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_figure_for_each_image_that_can_be_read(dcal, make_model, photos, tmp_path):
    output = tmp_path / "new" / "figures"
    outcome = dcal("explain", make_model(), photos, "--output", output, "--batch_size=2", *ON_CPU)
    assert outcome.status == 1
    assert "a.jpg cannot be read" in outcome.out and "3 images, 1 unreadable" in outcome.out
    assert "$1$-2.explained.png" in outcome.out and "same name" in outcome.out
    assert files(output) == ["$1$-2.explained.png", "$1$.explained.png", "[Zoë].explained.png"]
    for path in output.iterdir():
        with Image.open(path) as figure:
            figure.load()
            assert figure.width == 1200
    one, other = (Image.open(output / f"$1${number}.explained.png").tobytes() for number in ("", "-2"))
    assert one != other


def test_maps_are_those_of_python_and_no_figure_is_drawn(dcal, make_model, photos, tmp_path, monkeypatch):
    path, output = make_model(), tmp_path / "maps"
    monkeypatch.chdir(photos)
    lines = b"a/$1$.png\nmissing.png\nb/[Zo\xc3\xab].png\n"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    outcome = dcal("explain", path, "-", "--maps", "--gradient", "--output", output, *ON_CPU)
    assert outcome.status == 1 and "missing.png cannot be read" in outcome.out
    assert files(output) == ["$1$.maps.npz", "[Zoë].maps.npz"]
    expected = load_model(path, device="cpu").explain("a/$1$.png", gradient=True)
    with np.load(output / "$1$.maps.npz") as found:
        assert set(found) == {"rollout", "layers", "local", "glca", "gradient"}
        for name in found:
            np.testing.assert_allclose(found[name], getattr(expected, name), rtol=1e-4, atol=1e-6)


def test_two_models_and_layers_make_a_taller_figure(dcal, make_model, photos, tmp_path):
    image, models = photos / "a" / "$1$.png", (make_model(ablation="sa_only"), make_model(seed=1))
    heights = []
    for more in ([], ["--compare", models[1]], ["--compare", models[1], "--layers"]):
        outcome = dcal("explain", models[0], image, "--output", tmp_path / "out", *more, *ON_CPU)
        assert outcome.status == 0, outcome
        heights.append(Image.open(tmp_path / "out" / "$1$.explained.png").height)
    assert heights == sorted(set(heights))
    said = [line for line in outcome.out.splitlines() if "is not calibrated" in line]
    assert len(said) == 2 and all(path.name in line for path, line in zip(models, said, strict=True))


def test_a_pair(dcal, make_model, photos, tmp_path):
    path, names = make_model("reid"), (photos / "a" / "$1$.png", photos / "b" / "[Zoë].png")
    outcome = dcal("explain", path, "--pair", *names, "--output", tmp_path / "out", "--device=cpu")
    distance = load_model(path, device="cpu").explain_pair(*names).distance
    assert outcome.status == 0 and f"euclidean distance {distance:.4f}" in outcome.out
    assert files(tmp_path / "out") == ["$1$-[Zoë].pair.png"]


def test_a_reid_model(dcal, make_model, photos, tmp_path):
    outcome = dcal("explain", make_model("reid"), photos / "a", "--output", tmp_path / "out", *ON_CPU)
    assert outcome.status == 0 and files(tmp_path / "out") == ["$1$.explained.png"]


def test_what_does_not_fit_together_is_refused(dcal, make_model, photos, tmp_path):
    path, image = make_model(), photos / "a" / "$1$.png"
    assert_refused(dcal("explain", path), "expected images")
    assert_refused(dcal("explain", path, "--pair", image), "two images", "got 1")
    assert_refused(dcal("explain", path, image, "--pair", image, image), "--pair", "images")
    assert_refused(dcal("explain", path, "--pair", image, image, "--layers"), "--pair", "layers")
    assert_refused(dcal("explain", path, image, "--method=pwca"), "--method", "--pair")
    assert_refused(dcal("explain", path, image, "--maps", "--layers"), "--maps", "--layers")
    assert_refused(dcal("explain", path, image, "--output", image, *ON_CPU), "--output", "a folder", "$1$.png")
    assert_refused(
        dcal("explain", path, "--pair", image, photos / "b" / "a.jpg", "--output", tmp_path, *ON_CPU), "a.jpg"
    )


def test_other_commands_do_not_import_matplotlib(make_model, photos):
    program = (
        "import sys\nfrom dual_cross_attention.cli import main\n"
        f"status = main(['predict', {str(make_model())!r}, {str(photos / 'a')!r}, '--device=cpu', '--num_workers=0'])\n"
        "sys.exit(status or 'matplotlib' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True)
    assert ended.returncode == 0, ended
