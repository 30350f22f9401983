"""Pages that are served for tests, and Chromium."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dual_cross_attention.inference.reid_calibration import CalibratedDistance, ReIDCalibration

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LABELS = ["ant", "<script>document.title='bad'</script>", "${document.title='bad'}{{label}}", "Donaudampf" * 9]


def photo(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Random blocks of color."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with four images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(4):
        photo(seed).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def serve_model(monkeypatch):
    """`serve_model(path, **options)` serves the page of a model file until the test ends."""
    pytest.importorskip("gradio", reason="the page needs the extra [web]")
    from dual_cross_attention import load_model
    from dual_cross_attention.web.server import serve

    monkeypatch.setenv("GRADIO_TEMP_DIR", os.environ.get("GRADIO_TEMP_DIR", ""))  # restored afterwards
    servers = []

    def start(path: Path, **options):
        servers.append(serve(load_model(path, device="cpu"), **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def browser():
    """Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="tests of the page need Playwright")
    if CHROMIUM is None:
        pytest.skip("tests of the page need an installed Chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def reid_calibration(*thresholds: float, sizes=(3, 30)) -> ReIDCalibration:
    one = CalibratedDistance(thresholds, 4.0, -4.0)
    answers = {"together": one, "sa": one, "glca": one}
    return ReIDCalibration(answers, sizes, "euclidean", 0.05, 9, 9, 9, 18, "folder", "00", "2025-01-31")


@pytest.fixture
def gallery(tmp_path, make_model, dcal):
    """A calibrated re-ID model, an index of three identities with an image each, and an upload."""
    pytest.importorskip("gradio", reason="the page needs the extra [web]")
    from dual_cross_attention import load_model
    from dual_cross_attention.inference.model_files import write_calibration
    from dual_cross_attention.web.uploads import Upload

    model = make_model("reid")
    write_calibration(model, model, reid_calibration(0.5, 0.4), None)
    for seed, name in enumerate(("ann", "<b>bob</b>".replace("/", "_"), "cleo")):
        (tmp_path / "known" / name).mkdir(parents=True)
        photo(seed, (16, 32)).save(tmp_path / "known" / name / "a.png")
    photo(9, (16, 32)).save(tmp_path / "query.png")
    assert (
        dcal("index", "build", tmp_path / "i.index", tmp_path / "known", "--model", model, "--device=cpu").status == 0
    )
    return load_model(model, device="cpu"), tmp_path / "i.index", Upload(f"{tmp_path / 'query.png'}", "../../q.png")
