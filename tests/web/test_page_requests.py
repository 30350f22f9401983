"""What the server answers: the values of the command line, and refusals."""

import json

import httpx
import pytest
from PIL import Image

from tests.web.conftest import LABELS, photo


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


def test_answers_are_those_of_the_command_line(make_model, serve_model, client, photos, dcal):
    path = make_model(labels=LABELS)
    markup, maps, row = classify(client(serve_model(path).address), photos / "2.png")
    said = json.loads(dcal("predict", path, photos / "2.png", "--output", "-", "--device=cpu").out)
    del said["format_version"]
    assert row == said | {"path": "2.png"}
    assert "<script>" not in markup and "&lt;script&gt;" in markup
    assert maps.count("data:image/jpeg;base64,") == 4


def test_large_uploads_are_refused(make_model, serve_model, client, tmp_path):
    address = serve_model(make_model()).address
    large = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", b"0" * 60_000_000)}, timeout=60)
    assert large.status_code == 413
    Image.new("1", (12_000, 9_000)).save(tmp_path / "bomb.png")  # 108 million pixels in a few kB
    markup, maps, row = classify(client(address), tmp_path / "bomb.png")
    assert "pixels" in row["error"] and 'role="alert"' in markup and not maps


def test_an_animation_is_answered_as_its_first_frame(make_model, serve_model, client, tmp_path):
    frames = [photo(seed).quantize() for seed in range(8)]
    frames[0].save(tmp_path / "many.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "one.gif")
    asked = client(serve_model(make_model()).address)
    rows = [classify(asked, tmp_path / name)[2] for name in ("many.gif", "one.gif")]
    assert rows[0]["top"] == rows[1]["top"] and rows[0]["error"] is None


@pytest.mark.parametrize(
    "path",
    [
        "file=/etc/hostname",
        "file=../../../../etc/hostname",
        "file=%2e%2e/%2e%2e/etc/hostname",
        "file=https://example.org/a.png",
        "file=HTTP%3A//example.org/a.png",
        "proxy=https://example.hf.space/a",
    ],
)
def test_no_other_file_is_served(make_model, serve_model, path):
    answer = httpx.get(f"{serve_model(make_model()).address}/gradio_api/{path}")
    assert answer.status_code in (400, 403, 404)


def test_an_address_is_not_fetched(make_model, serve_model, client):
    address = serve_model(make_model()).address
    file = {"path": "http://127.0.0.1:1/a.png", "meta": {"_type": "gradio.FileData"}}
    started = httpx.post(f"{address}/gradio_api/call/classify", json={"data": [file]}).json()
    events = httpx.get(f"{address}/gradio_api/call/classify/{started['event_id']}", timeout=30).text
    assert "event: error" in events and "got an address" in events


def test_a_password_is_asked_for(make_model, serve_model):
    address = serve_model(make_model(), auth=[("anna", "secret")]).address
    assert httpx.get(f"{address}/config").status_code == 401
    for password, status in (("wrong", 400), ("secret", 200)):
        sent = {"username": "anna", "password": password}
        assert httpx.post(f"{address}/login", data=sent).status_code == status
