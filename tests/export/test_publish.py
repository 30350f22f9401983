"""`dcal publish` and `load_model("hf:ORG/NAME@REVISION")`, against a local server that speaks the Hub's protocol."""

import base64
import json
import pickle
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from dual_cross_attention import InputError, load_model
from dual_cross_attention.inference.hub import parse_name

COMMITS = {"main": "1" * 40, "v1": "2" * 40}


class Hub(BaseHTTPRequestHandler):
    """Serves `server.files`, {(revision, name): bytes}, and keeps what is committed in `server.committed`."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._resolve(with_body=False)

    def do_GET(self):
        if self.path.startswith("/api/models/org/name"):
            self._json({"id": "org/name", "private": self.server.private, "sha": COMMITS["main"], "siblings": []})
        else:
            self._resolve(with_body=True)

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(content))
            self._json({"url": f"{self.server.address}/org/name"})
        elif "/preupload/" in self.path:
            names = [each["path"] for each in json.loads(content)["files"]]
            self._json({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif "/commit/" in self.path:
            for line in content.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.committed[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._json({"commitUrl": f"{self.server.address}/org/name/commit/1", "commitOid": "1" * 40})
        else:
            self._json({})  # validate-yaml

    def _resolve(self, with_body):
        parts = self.path.split("?")[0].split("/")  # "", org, name, resolve, revision, file
        revision, name = parts[4], parts[5]
        if f"{parts[1]}/{parts[2]}" != "org/name":
            return self._error("RepoNotFound")
        if revision not in COMMITS:
            return self._error("RevisionNotFound")
        if (revision, name) not in self.server.files:
            return self._error("EntryNotFound", COMMITS[revision])
        content = self.server.files[revision, name]
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMITS[revision])
        self.send_header("ETag", f'"{revision}-{len(content)}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body and self.server.cut:
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif with_body:
            self.wfile.write(content)

    def _error(self, code, commit=None):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    server.files, server.committed, server.created, server.private, server.cut = {}, {}, [], False, False
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    if huggingface_hub.__version__.startswith("0."):  # reads HF_ENDPOINT when it is imported, alone
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)  # of huggingface_hub from 0.31
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None, raising=False)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_what_is_published_is_loaded_again(hub, make_model, dcal, tmp_path):
    source = make_model()
    outcome = dcal("publish", source, "org/name")
    assert outcome.status == 0, outcome.err
    assert hub.committed.keys() == {"model.safetensors", "config.json", "README.md"}
    assert "license" in outcome.out and f"{len(hub.committed['model.safetensors']):,}" in outcome.out
    assert str(tmp_path).encode() not in b"".join(hub.committed.values())
    hub.files = {("main", name): content for name, content in hub.committed.items()}
    found, pixels = load_model("hf:org/name", "cpu"), torch.randn(2, 3, 32, 40)
    assert torch.equal(found.model.predict(pixels), load_model(source, "cpu").model.predict(pixels))


def test_a_dry_run_contacts_no_address(hub, make_model, dcal):
    hub.shutdown()
    outcome = dcal("publish", make_model(), "org/name", "--dry_run")
    assert outcome.status == 0 and "would be uploaded" in outcome.out and "model.safetensors" in outcome.out
    assert not hub.created


def test_private_is_not_silently_public(hub, make_model, dcal):
    outcome = dcal("publish", make_model(), "org/name", "--private")
    assert outcome.status == 2 and "public" in outcome.err and not hub.committed
    hub.private = True
    assert dcal("publish", make_model(), "org/name", "--private").status == 0 and hub.committed
    assert hub.created[-1].get("private") or hub.created[-1].get("visibility") == "private"


def test_the_revision_that_is_asked_for(hub, make_model):
    first, second = make_model(seed=1), make_model(seed=2)
    hub.files = {("main", "model.safetensors"): first.read_bytes(), ("v1", "model.safetensors"): second.read_bytes()}
    for name, path in (("hf:org/name", first), ("hf:org/name@v1", second), ("hf:org/name@main", first)):
        assert load_model(name, "cpu").fingerprint() == load_model(path, "cpu").fingerprint()


def test_what_cannot_be_downloaded(hub, make_model, dcal, tmp_path):
    model = make_model().read_bytes()
    hub.files = {("v1", "pytorch_model.bin"): pickle.dumps({}), ("main", "model.safetensors"): model}
    for name, token in (
        ("hf:org/other", "no such model"),
        ("hf:org/name@v2", "v2"),
        ("hf:org/name@v1", "model.safetensors"),  # a pickle under another name alone
        ("hf:name", "ORG/NAME"),
        ("hf:org/name@../../x", "ORG/NAME"),
    ):
        with pytest.raises(InputError, match=token):
            load_model(name, "cpu")
    outcome = dcal("calibrate", "hf:org/name")
    assert outcome.status == 2 and "--output" in outcome.err
    hub.files["main", "model.safetensors"] = pickle.dumps({"weights": [1.0]})
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(InputError, match="safetensors"):
        load_model("hf:org/name", "cpu")


def test_an_interrupted_download_leaves_no_model(hub, make_model):
    hub.files, hub.cut = {("main", "model.safetensors"): make_model().read_bytes()}, True
    with pytest.raises(InputError, match="cannot download"):
        load_model("hf:org/name", "cpu")
    hub.cut = False
    assert load_model("hf:org/name", "cpu").labels


def test_names():
    assert parse_name("hf:a-b/c.d@refs/pr/1") == ("a-b/c.d", "refs/pr/1")
    assert parse_name("hf:a/b") == ("a/b", None)
    for name in ("hf:", "hf:a", "hf:a/b/c", "hf:a/b@", "hf:../b", "hf:a/..", "hf:a/b@-x"):
        with pytest.raises(InputError):
            parse_name(name)
