"""The page in Chromium: answers, no request to elsewhere, no error, no horizontal scrolling."""

from pathlib import Path

import pytest

from dual_cross_attention import load_model
from dual_cross_attention.gallery import GalleryIndex
from tests.web.conftest import LABELS, photo

pytest.importorskip("gradio", reason="the page needs the extra [web]")

from dual_cross_attention.web.identification import identify_upload

UPLOAD = "#image input[type=file]"


@pytest.fixture
def opened(browser):
    """`opened(address)` gives the page and two lists: addresses that were requested, and errors of the console."""

    def open_page(address: str, width: int = 1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        page, requested, errors = context.new_page(), [], []
        context.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(f"{error}"))
        page.goto(address)
        page.wait_for_selector(UPLOAD, state="attached")
        return page, requested, errors

    return open_page


def test_an_uploaded_image_is_classified_and_explained(make_model, serve_model, opened, photos):
    path = make_model(labels=LABELS)
    page, requested, errors = opened(serve_model(path).address, width=390, color_scheme="dark")
    page.set_input_files(UPLOAD, photos / "1.png")
    page.wait_for_selector("#maps img")
    prediction = load_model(path, device="cpu").predict(photos / "1.png")
    assert page.inner_text("#answer h2") == prediction.label
    shown = page.locator("#answer table").first.locator("tbody tr").all_inner_texts()
    assert [line.split()[0] for line in shown] == [label.split()[0] for label, _ in prediction.top]
    assert page.locator("#maps img").count() == 4  # the image, product, rollout, GLCA
    assert all(page.locator("#maps img").nth(each).get_attribute("alt") for each in range(4))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.title().startswith("DCAL")  # no script in a class name was run
    local = ("http://127.0.0.1", "data:", "blob:")
    assert requested and [each for each in requested if not each.startswith(local)] == []
    assert errors == []


def test_what_is_no_image_is_answered_with_the_reason(make_model, serve_model, opened, tmp_path):
    (tmp_path / "no.png").write_text("no image")
    page, _, _ = opened(serve_model(make_model(labels=LABELS)).address)
    page.set_input_files(UPLOAD, tmp_path / "no.png")
    page.wait_for_selector("#answer [role=alert]")
    assert "it is no image of" in page.inner_text("#answer")


def test_several_images_give_a_table_to_download(make_model, serve_model, opened, photos, tmp_path, dcal):
    path = make_model(labels=LABELS)
    page, _, errors = opened(serve_model(path).address)
    page.get_by_role("tab", name="Several images").click()
    page.set_input_files("#files input[type=file]", sorted(photos.iterdir()))
    page.wait_for_selector("#table table")
    assert page.locator("#table tbody tr").count() == 4
    with page.expect_download() as download:
        page.locator("#download").click()
    assert dcal("predict", path, photos, "--output", tmp_path / "said.csv", "--device=cpu").status == 0
    expected = (tmp_path / "said.csv").read_text().replace(f"{photos}/", "")
    assert download.value.path().read_text() == expected
    assert errors == []


def test_threshold_and_enrolling(gallery, serve_model, opened):
    model, index, upload = gallery
    page, requested, errors = opened(serve_model(Path(model.source), index=index).address, width=390)
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
    page.locator("#identity").get_by_role("textbox").fill("dan <i>")
    page.locator("#enroll").click()
    page.locator("#enrolled", has_text="Enrolled as dan <i>").wait_for()
    assert [row.identity for row in GalleryIndex.open(index).images()].count("dan <i>") == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert all(each.startswith(("http://127.0.0.1", "data:", "blob:")) for each in requested) and errors == []


def test_two_users_at_once(make_model, serve_model, opened, tmp_path):
    address = serve_model(make_model(labels=LABELS)).address
    pages = [opened(address)[0] for _ in range(2)]
    for seed, page in enumerate(pages):
        photo(seed).save(tmp_path / f"{seed}.png")
        page.set_input_files(UPLOAD, tmp_path / f"{seed}.png")
    for page in pages:
        page.wait_for_selector("#maps img")
