"""`LoadedModel.demo`: what it returns in a script, in a notebook, and when it is called twice."""

import os
import sys
from pathlib import Path

import httpx
import pytest

pytest.importorskip("gradio", reason="the page needs the extra [web]")

from dual_cross_attention import load_model
from dual_cross_attention.errors import InputError
from dual_cross_attention.web import server
from dual_cross_attention.web.server import DemoServer
from dual_cross_attention.web.upload_folder import UploadFolder


@pytest.fixture
def model(make_model):
    return load_model(make_model(), device="cpu")


@pytest.fixture
def no_waiting(monkeypatch) -> list[DemoServer]:
    """The servers that were waited for; Ctrl-C comes at once."""
    waited = []

    def wait(server):
        waited.append(server)
        raise KeyboardInterrupt

    monkeypatch.setattr(DemoServer, "wait", wait)
    return waited


def test_a_script_waits_until_ctrl_c(model, no_waiting, capsys):
    stopped = model.demo()
    assert no_waiting == [stopped]
    assert stopped.address in capsys.readouterr().out
    with pytest.raises(httpx.ConnectError):
        httpx.get(stopped.address)


def test_a_notebook_does_not_wait(model, no_waiting, monkeypatch):
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    with model.demo() as started:
        assert httpx.get(started.address).status_code == 200
    assert no_waiting == []


def test_two_pages_of_a_process(model, no_waiting, monkeypatch):
    """They share the folder of uploads, which exists as long as one of them is served."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/somewhere")
    monkeypatch.setattr(server, "UPLOADS", UploadFolder())  # another test's page may be open
    first, second = model.demo(prevent_thread_lock=True), model.demo(prevent_thread_lock=True)
    assert no_waiting == [] and first.address != second.address
    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    first.close()
    first.close()
    assert uploads.is_dir()
    sent = httpx.post(f"{second.address}/gradio_api/upload", files={"files": ("a.png", b"a")})
    assert Path(sent.json()[0]).is_relative_to(uploads)
    second.close()
    assert not uploads.exists() and os.environ["GRADIO_TEMP_DIR"] == "/somewhere"


def test_what_is_refused_leaves_no_folder(model):
    before = os.environ.get("GRADIO_TEMP_DIR")
    for options in ({"index": "/nowhere"}, {"top_k": 0}, {"examples": ["/nowhere.png"]}, {"host": "192.0.2.1"}):
        with pytest.raises(InputError):
            model.demo(**options)
    assert os.environ.get("GRADIO_TEMP_DIR") == before
