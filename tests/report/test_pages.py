"""Pages of `dcal report`: they load nothing, names of files and classes stay text, images and tables are described."""

import pytest

from dual_cross_attention.report.page import duration, render

CLASSES = ("<script>alert(1)", '"><img src=x onerror=alert(1)>', "a & b")
"""Of the dataset `hostile_images`."""


@pytest.fixture(params=["hostile_report", "reid_report"])
def page(request, read_page):
    return read_page(request.getfixturevalue(request.param))


def test_names_stay_text(hostile_report, read_page):
    page = read_page(hostile_report)
    assert not {"script", "iframe", "object", "u", "i"} & set(page.tags)
    assert not [each for each in page.attributes if each[1].startswith("on")]
    for name in (*CLASSES, "<b onclick=x>", "<i>broken.png", "<u>run"):
        assert name in page.text
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert sources and all(each.startswith("data:image/jpeg") for each in sources)


def test_nothing_is_loaded(page):
    loaded = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "poster", "xlink:href")]
    assert loaded and all(value.startswith(("data:", "#")) for value in loaded)
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'")
    assert "@import" not in page.text and "url(http" not in page.text


def test_a_screen_reader_gets_descriptions(page):
    assert ("html", "lang", "en") in page.attributes
    assert page.tags.count("h1") == 1 and page.tags.count("main") == 1
    assert page.tags.count("img") == len([each for each in page.attributes if each[:2] == ("img", "alt") and each[2]])
    assert page.tags.count("table") == page.tags.count("caption") > 1
    assert page.tags.count("svg") == len([each for each in page.attributes if each[:2] == ("svg", "aria-label")]) > 2
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    targets = {value for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert targets and {each.removeprefix("#") for each in targets} <= set(identifiers)


def test_light_and_dark_and_print(page):
    assert "prefers-color-scheme: dark" in page.text and "@media print" in page.text
    assert ("meta", "name", "viewport") in page.attributes


def test_names_that_utf8_cannot_encode(tmp_path):
    text = render(
        "comparison.html.j2",
        runs=["bytes \udcff", "line\nbreak"],
        what="",
        notes=[],
        differences=[],
        overview=[],
        last=[],
        best=[],
        history=[],
    )
    text.encode("utf-8")
    assert r"bytes \udcff" in text and r"line\nbreak" in text


@pytest.mark.parametrize(("seconds", "said"), [(7.4, "7 s"), (125, "2 min 05 s"), (7500, "2 h 05 min")])
def test_duration(seconds, said):
    assert duration(seconds) == said
