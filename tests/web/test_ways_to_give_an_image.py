"""Images that are pasted, taken with the camera, clicked on, or chosen with the keyboard alone."""

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the page needs the extra [web]")

from dual_cross_attention.web.answers import answer_image
from dual_cross_attention.web.uploads import Upload
from tests.web.conftest import photo

PASTE = """async (bytes) => {
    const blob = new Blob([new Uint8Array(bytes)], {type: "image/png"});
    await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
}"""


def answered(tab) -> str:
    """The label that the page shows, once it is there."""
    tab.page.wait_for_selector("#maps img")
    return tab.page.inner_text("#answer h2")


def test_an_example(served, opened):
    tab = opened(served.address)
    tab.page.get_by_role("button", name="example.png").click()  # the name that a screen reader reads
    assert answered(tab) == served.model.predict(served.example).label
    assert tab.is_clean()


def test_an_image_from_the_clipboard(served, opened, tmp_path):
    tab = opened(served.address, permissions=["clipboard-read", "clipboard-write"])
    photo(3).save(tmp_path / "a.png")
    tab.page.evaluate(PASTE, [*(tmp_path / "a.png").read_bytes()])
    tab.page.get_by_role("button", name="Paste from clipboard").click()
    assert answered(tab) == served.model.predict(tmp_path / "a.png").label
    assert tab.is_clean()


def test_a_photo_of_the_camera(served, opened):
    tab = opened(served.address, permissions=["camera"])
    tab.page.get_by_role("button", name="Capture from camera").click()
    tab.page.get_by_role("button", name="Click to Access Webcam").click()
    tab.page.wait_for_function("document.querySelector('#image video')?.readyState >= 2")
    tab.page.get_by_role("button", name="capture photo").click()
    assert answered(tab) in served.model.labels
    assert tab.is_clean()


def test_the_keyboard_alone(served, opened, photos):
    tab = opened(served.address)

    def press_until(selector: str) -> None:
        for _ in range(30):
            tab.page.keyboard.press("Tab")
            if tab.page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    choosers = []
    tab.page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(20):  # the page may be drawn again while it loads, which takes the focus away
        press_until("#image button[aria-label^=Drop]")
        tab.page.keyboard.press("Enter")
        tab.page.wait_for_timeout(1000)
        if choosers:
            break
    choosers[0].set_files(photos / "2.png")
    assert answered(tab) == served.model.predict(photos / "2.png").label
    press_until("#answer-as-json button")
    tab.page.keyboard.press("Enter")
    tab.page.locator("#answer-as-json", has_text="probability").wait_for()


def test_the_name_of_a_file_is_no_markup(served, opened, tmp_path):
    name = "<img src=x onerror=\"document.title='bad'\">.png"
    photo(1).save(tmp_path / name)
    tab = opened(served.address)
    tab.page.set_input_files("#image input[type=file]", tmp_path / name)
    assert answered(tab) in served.model.labels
    tab.page.get_by_role("tab", name="Several images").click()
    tab.page.set_input_files("#files input[type=file]", [tmp_path / name])
    shown = tab.page.locator("#table tbody td").first
    shown.wait_for()
    assert shown.inner_text().startswith("<img src=x onerror=") or shown.inner_text().endswith(".png")
    assert tab.page.title().startswith("DCAL") and tab.page.locator("#table img").count() == 0
    assert tab.is_clean()


def test_an_upload_is_answered_as_by_explain(served, tmp_path, dcal):
    photo(5).save(tmp_path / "a.png")
    found = answer_image(served.model, Upload(f"{tmp_path / 'a.png'}", "b.png"), top_k=3).explanation
    model, output = served.model.source, tmp_path / "maps"
    assert dcal("explain", model, tmp_path / "a.png", "--maps", "--output", output, "--device=cpu").status == 0
    with np.load(output / "a.maps.npz") as maps:
        for name in ("rollout", "local", "glca"):
            assert np.array_equal(getattr(found, name), maps[name])
    assert found.predictions.keys() == {"together", "sa", "glca"}
