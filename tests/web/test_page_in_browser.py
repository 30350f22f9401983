"""The page in Chromium: answers, no request to elsewhere, no error, no horizontal scrolling."""

import re
import threading
from pathlib import Path

import pytest

from dual_cross_attention.gallery import GalleryIndex
from tests.web.conftest import UPLOAD

pytest.importorskip("gradio", reason="the page needs the extra [web]")

from dual_cross_attention.web.identification import identify_upload


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_uploaded_image_is_classified_and_explained(served, opened, photos, scheme):
    tab = opened(served.address, width=390, color_scheme=scheme)
    page = tab.page
    page.set_input_files(UPLOAD, photos / "1.png")
    page.wait_for_selector("#maps img")
    prediction = served.model.predict(photos / "1.png")
    assert page.inner_text("#answer h2") == prediction.label
    shown = page.locator("#answer table").first.locator("tbody tr").all_inner_texts()
    assert [line.split()[0] for line in shown] == [label.split()[0] for label, _ in prediction.top]
    assert page.locator("#maps img").count() == 4  # the image, product, rollout, GLCA
    assert all(page.locator("#maps img").nth(each).get_attribute("alt") for each in range(4))
    assert page.title().startswith("DCAL")  # no script in a class name was run
    assert min(contrast(page, each) for each in ("#answer h2", "#answer td", "#answer .note", "#maps figcaption")) > 4.5
    assert tab.is_clean()


def contrast(page, selector: str) -> float:
    """Contrast ratio of a text and the background of the page, as WCAG 2.2 defines it."""
    colors = page.eval_on_selector(
        selector,
        """element => {
            let opacity = 1, behind = "rgba(0, 0, 0, 0)";
            for (let each = element; each; each = each.parentElement) {
                opacity *= getComputedStyle(each).opacity;
                if (behind == "rgba(0, 0, 0, 0)") behind = getComputedStyle(each).backgroundColor;
            }
            return [getComputedStyle(element).color, behind, opacity];
        }""",
    )
    front, behind = ([float(each) for each in re.findall(r"[\d.]+", color)[:3]] for color in colors[:2])
    seen = [colors[2] * one + (1 - colors[2]) * other for one, other in zip(front, behind, strict=True)]
    darker, lighter = sorted((luminance(behind), luminance(seen)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: list[float]) -> float:
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (each / 255 for each in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_what_is_no_image_is_answered_with_the_reason(served, opened, tmp_path):
    (tmp_path / "no.png").write_text("no image")
    page = opened(served.address).page
    page.set_input_files(UPLOAD, tmp_path / "no.png")
    page.wait_for_selector("#answer [role=alert]")
    assert "it is no image of" in page.inner_text("#answer")


def test_a_file_of_60_mb_is_refused_with_a_message(served, opened, tmp_path):
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(60_000_000)
    page = opened(served.address).page
    page.set_input_files(UPLOAD, tmp_path / "large.png")
    page.locator("[role=alert], [data-testid=toast-body]", has_text="size").first.wait_for()
    assert page.inner_text("#answer") == ""


def test_a_second_user_waits_with_a_message(served, opened, photos, monkeypatch):
    release, entered, original = threading.Event(), threading.Event(), served.model.explain

    def wait(*arguments, **options):
        entered.set()
        assert release.wait(300)
        return original(*arguments, **options)

    first, second = (opened(served.address).page for _ in range(2))
    monkeypatch.setattr(served.model, "explain", wait)
    try:
        first.set_input_files(UPLOAD, photos / "0.png")
        while not entered.is_set():
            first.wait_for_timeout(50)
        second.set_input_files(UPLOAD, photos / "1.png")
        second.locator("#answer", has_text="queue").wait_for()
        assert second.locator("#maps img").count() == 0
    finally:
        release.set()
    for page in (first, second):
        page.wait_for_selector("#maps img")


def test_several_images_give_a_table_to_download(served, opened, photos, tmp_path, dcal):
    tab = opened(served.address)
    page = tab.page
    page.get_by_role("tab", name="Several images").click()
    page.set_input_files("#files input[type=file]", sorted(photos.iterdir()))
    page.wait_for_selector("#table table")
    assert page.locator("#table tbody tr").count() == 4
    with page.expect_download() as download:
        page.locator("#download-table").click()
    said = tmp_path / "said.csv"
    assert dcal("predict", served.model.source, photos, "--output", said, "--device=cpu").status == 0
    assert download.value.path().read_bytes() == said.read_bytes().replace(f"{photos}/".encode(), b"")
    assert download.value.suggested_filename == "predictions.csv"
    assert tab.is_clean()


def test_an_index_in_the_page(gallery, serve_model, opened, tmp_path, dcal):
    """The decision, its threshold, a table of identities, and enrolling."""
    model, index, upload = gallery
    tab = opened(serve_model(Path(model.source), index=index).address, width=390)
    page = tab.page
    page.set_input_files(UPLOAD, upload.path)
    page.wait_for_selector("#decision .decision")
    page.wait_for_selector("#matches img")
    found = identify_upload(model, index, upload)
    assert page.locator("#matches figcaption").first.inner_text().endswith(f"distance {found.matches[0].distance:.4f}")
    number = page.locator("#threshold input[type=number]")
    for threshold, decision in ((found.answer.distance * 1.1, found.answer.identity), (0, "new")):
        number.fill(f"{threshold}")
        number.blur()
        page.locator("#decision .decision", has_text=decision).wait_for()

    page.get_by_role("tab", name="Several images").click()
    page.set_input_files("#files input[type=file]", [upload.path])
    page.wait_for_selector("#identities table")
    with page.expect_download() as download:
        page.locator("#download-identities").click()
    said = tmp_path / "said.csv"
    assert dcal("identify", index, upload.path, "--output", said, "--device=cpu").status == 0
    assert download.value.path().read_text() == said.read_text().replace(upload.path, Path(upload.path).name)

    page.get_by_role("tab", name="One image").click()
    page.locator("#identity").get_by_role("textbox").fill("dan <i>")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#enrolled", has_text="Enrolled as dan <i>").wait_for()
    assert [row.identity for row in GalleryIndex.open(index).images()].count("dan <i>") == 1
    assert tab.is_clean()


def test_re_identification_without_an_index_says_what_it_shows(make_model, serve_model, opened, photos):
    tab = opened(serve_model(make_model("reid")).address)
    assert "--index" in tab.page.inner_text("body")
    assert tab.page.get_by_role("tab", name="Several images").count() == 0
    tab.page.set_input_files(UPLOAD, photos / "0.png")
    tab.page.wait_for_selector("#maps img")
    assert tab.is_clean()
