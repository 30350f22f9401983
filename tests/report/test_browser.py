"""Reports in a browser: headless Chromium, which the system has, through Playwright."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    if not CHROMIUM:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=180_000)
        yield started
        started.close()


@pytest.fixture(scope="module")
def comparison(hostile_run, tmp_path_factory):
    from dual_cross_attention.report.comparison import report_comparison

    path = tmp_path_factory.mktemp("comparison") / "comparison.html"
    report_comparison([hostile_run] * 6, path)
    return path


@pytest.mark.parametrize("name", ["hostile_report", "reid_report", "comparison"])
def test_a_page_on_a_phone(browser, name, request):
    """No request leaves the page, the console is empty, nothing scrolls sideways, and all images are drawn."""
    path = request.getfixturevalue(name)
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.set_default_timeout(180_000)
    requests, messages = [], []
    page.on("request", lambda each: requests.append(each.url))
    page.on("console", lambda each: messages.append(each.text))
    page.on("pageerror", lambda each: messages.append(f"{each}"))
    page.on("dialog", lambda each: messages.append(each.message))
    page.goto(path.as_uri())
    for details in page.query_selector_all("details"):
        details.evaluate("each => each.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert {each for each in requests if not each.startswith("data:")} == {path.as_uri()}
    assert messages == []
    assert page.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 28)"
    page.emulate_media(color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.close()
