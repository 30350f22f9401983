"""Pages that are served for tests, and Chromium."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dual_cross_attention.inference.reid_calibration import CalibratedDistance, ReIDCalibration
from tests.conftest import write_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
UPLOAD = "#image input[type=file]"
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
def serve_model():
    """`serve_model(path, **options)` serves the page of a model file until the test ends."""
    pytest.importorskip("gradio", reason="the page needs the extra [web]")
    from dual_cross_attention import load_model
    from dual_cross_attention.web.server import serve

    servers = []

    def start(path: Path, **options):
        servers.append(serve(load_model(path, device="cpu"), **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@dataclass
class Served:
    """The page of a classifier with `LABELS`.

    Args:
        model: the loaded model.
        address: of the page.
        page: of Gradio.
        example: an image to click on.
    """

    model: Any
    address: str
    page: Any
    example: Path


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """A page for all tests that need no other one: to start it takes longer than most of them."""
    pytest.importorskip("gradio", reason="the page needs the extra [web]")
    from dual_cross_attention import load_model
    from dual_cross_attention.web.server import serve

    folder = tmp_path_factory.mktemp("page")
    model = load_model(write_model(folder, labels=LABELS), device="cpu")
    photo(7).save(folder / "example.png")
    with serve(model, examples=[f"{folder / 'example.png'}"]) as server:
        yield Served(model, server.address, server.page, folder / "example.png")


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, with a camera that shows a test image. One per module: Playwright occupies the thread
    while it is started."""
    playwright = pytest.importorskip("playwright.sync_api", reason="tests of the page need Playwright")
    if CHROMIUM is None:
        pytest.skip("tests of the page need an installed Chromium")
    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@dataclass
class Opened:
    """A page in a browser.

    Args:
        page: of Playwright.
        requested: addresses that it asked for.
        errors: of its console.
    """

    page: Any
    requested: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def is_clean(self) -> bool:
        """Whether nothing was requested from elsewhere, no error was logged, and nothing is wider than the page."""
        local = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")
        assert self.requested and [each for each in self.requested if not each.startswith(local)] == []
        assert self.errors == []
        return self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture
def opened(browser):
    """`opened(address)` opens a page."""
    contexts = []

    def open_page(address: str, width: int = 1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        context.set_default_timeout(120_000)  # the machine may be busy
        tab = Opened(context.new_page())
        context.on("request", lambda request: tab.requested.append(request.url))
        tab.page.on("websocket", lambda socket: tab.requested.append(socket.url))
        tab.page.on("console", lambda said: tab.errors.append(said.text) if said.type == "error" else None)
        tab.page.on("pageerror", lambda error: tab.errors.append(f"{error}"))
        tab.page.goto(address)
        tab.page.wait_for_selector(UPLOAD, state="attached")
        return tab

    yield open_page
    for context in contexts:
        context.close()


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
