"""The header Host: a page on this machine answers under its own names, so no web site reads it by DNS rebinding."""

import httpx
import pytest

from dual_cross_attention.errors import InputError
from dual_cross_attention.web import server
from dual_cross_attention.web.server import accepted_hosts


def status(address: str, host: str, path: str = "/config") -> int:
    return httpx.get(f"{address}{path}", headers={"Host": host}, timeout=60).status_code


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info"])
def test_another_name_is_refused(served, path):
    for name in ("localhost", "127.0.0.1", "localhost:8080", "[::1]:7860", "LOCALHOST"):
        assert status(served.address, name, path) == 200, name
    for name in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", ""):
        assert status(served.address, name, path) == 400, name


def test_the_name_of_a_proxy_is_given(make_model, serve_model):
    address = serve_model(make_model(), allow_hosts=["birds.example", "*.inside.example"]).address
    for name, expected in (("birds.example", 200), ("a.inside.example", 200), ("evil.example", 400)):
        assert status(address, name) == expected


def test_names(monkeypatch):
    for name in server.HOSTED_NOTEBOOKS:
        monkeypatch.delenv(name, raising=False)
    assert {"localhost", "127.0.0.1", "[::1]", "127.0.0.2"} <= {*accepted_hosts("127.0.0.2")}
    assert "*" not in accepted_hosts("localhost", ["a.example"]) and "*" in accepted_hosts("localhost", ["*"])
    assert accepted_hosts("0.0.0.0") == accepted_hosts("192.168.1.5") == ["*"]
    restricted = accepted_hosts("0.0.0.0", ["Birds.example"])
    assert "birds.example" in restricted and "localhost" in restricted and "*" not in restricted
    for wrong in ("a*", "*a", "*.a.*", "", "birds.example:80", "http://birds.example", " a"):
        with pytest.raises(InputError, match="allow_hosts"):
            accepted_hosts("localhost", [wrong])
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert accepted_hosts("127.0.0.1") == ["*"]
    assert "*" not in accepted_hosts("127.0.0.1", ["birds.example"])
