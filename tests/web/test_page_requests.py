"""What the server answers: the values of the command line, and refusals."""

import json
import os
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.web.conftest import photo


@pytest.fixture
def client():
    """`client(address)`, of gradio_client."""
    gradio_client = pytest.importorskip("gradio_client", reason="the page needs the extra [web]")
    return lambda address, **options: gradio_client.Client(
        address, verbose=False, analytics_enabled=False, download_files=False, **options
    )


def classify(client, path):
    from gradio_client import handle_file

    return client.predict(handle_file(f"{path}"), api_name="/classify")


def test_answers_are_those_of_the_command_line(served, client, photos, dcal):
    markup, maps, row = classify(client(served.address), photos / "2.png")
    said = json.loads(dcal("predict", served.model.source, photos / "2.png", "--output", "-", "--device=cpu").out)
    del said["format_version"]
    assert row == said | {"path": "2.png"}
    assert "<script>" not in markup and "&lt;script&gt;" in markup
    assert maps.count("data:image/jpeg;base64,") == 4


def test_large_uploads_are_refused(served, client, tmp_path):
    large = httpx.post(f"{served.address}/gradio_api/upload", files={"files": ("a.png", b"0" * 60_000_000)}, timeout=60)
    assert large.status_code == 413
    Image.new("1", (12_000, 9_000)).save(tmp_path / "bomb.png")  # 108 million pixels in a few kB
    markup, maps, row = classify(client(served.address), tmp_path / "bomb.png")
    assert "pixels" in row["error"] and 'role="alert"' in markup and not maps


def test_an_animation_is_answered_as_its_first_frame(served, client, tmp_path):
    frames = [photo(seed).quantize() for seed in range(8)]
    frames[0].save(tmp_path / "many.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "one.gif")
    rows = [classify(client(served.address), tmp_path / name)[2] for name in ("many.gif", "one.gif")]
    assert rows[0]["top"] == rows[1]["top"] and rows[0]["error"] is None


def status_of(address: str, path: str) -> int:
    """HTTP status of a path as it is written: libraries would remove its dots before they send it."""
    host, _, port = address.removeprefix("http://").partition(":")
    connection = HTTPConnection(host, int(port), timeout=60)
    connection.putrequest("GET", path, skip_host=False)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize(
    "path",
    [
        "file=/etc/hostname",
        "file=../../../../../../etc/hostname",
        "file=%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/hostname",
        "file=..%2f..%2f..%2f..%2fetc/hostname",
        "file=https://example.org/a.png",
        "file=HTTP%3A//example.org/a.png",
        "proxy=https://example.hf.space/a",
    ],
)
def test_no_other_file_is_served(served, path):
    assert status_of(served.address, f"/gradio_api/{path}") in (400, 403, 404)


def test_files_beside_the_uploads_are_not_served(served, client, tmp_path, monkeypatch):
    """Neither those of the current folder, nor of the model, nor above an upload that is there."""
    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.chdir(tmp_path)
    sent = httpx.post(f"{served.address}/gradio_api/upload", files={"files": ("a.png", b"a")}).json()[0]
    assert status_of(served.address, f"/gradio_api/file={sent}") == 200
    for path in (
        tmp_path / "secret.txt",
        "secret.txt",
        served.model.source,
        f"{sent}/../../../../../../../..{tmp_path}/secret.txt",
    ):
        assert status_of(served.address, f"/gradio_api/file={path}") in (400, 403, 404)


def events_of(address: str, name: str, *inputs: object) -> str:
    """What a call of the API is answered with, whatever its inputs are."""
    started = httpx.post(f"{address}/gradio_api/call/{name}", json={"data": [*inputs]}).json()
    return httpx.get(f"{address}/gradio_api/call/{name}/{started['event_id']}", timeout=60).text


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
@pytest.mark.parametrize("key", ["path", "url"])
@pytest.mark.parametrize("name", ["classify", "classify_several"])
def test_only_uploaded_files_are_answered(served, tmp_path, name, key, meta):
    photo(2).save(tmp_path / "elsewhere.png")
    for place in (f"{tmp_path / 'elsewhere.png'}", "http://127.0.0.1:1/a.png"):
        file = {"path": place, key: place, "orig_name": "a.png"} | meta
        events = events_of(served.address, name, file if name == "classify" else [file])
        assert "event: error" in events and "event: complete" not in events


def test_uploads_are_deleted_after_an_hour_and_examples_stay(served, client, photos):
    from gradio.route_utils import delete_files_created_by_app

    classify(client(served.address), photos / "1.png")
    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    assert [*uploads.rglob("1.png")]
    assert served.page.delete_cache == (600, 3600)
    delete_files_created_by_app(served.page, age=-1)  # as Gradio calls it, of any age
    assert not [*uploads.rglob("1.png")] and [*uploads.rglob("example.png")]


def test_a_password_is_asked_for(make_model, serve_model):
    address = serve_model(make_model(), auth=[("anna", "secret")]).address
    assert httpx.get(f"{address}/config").status_code == 401
    for password, status in (("wrong", 400), ("secret", 200)):
        sent = {"username": "anna", "password": password}
        assert httpx.post(f"{address}/login", data=sent).status_code == status
