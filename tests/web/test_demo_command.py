"""`dcal demo`: its address, warnings, end, and that it connects to this machine only."""

import signal
import subprocess
import sys

import pytest
from rich.console import Console

from tests.helpers import assert_refused, assert_says

pytest.importorskip("gradio", reason="the page needs the extra [web]")

from dual_cross_attention.web.server import DemoServer, is_local, is_remote, read_password

# Reports each connection to another machine.
WATCHED = """
import sys
def watch(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in ("127.0.0.1", "::1"):
        print("connects to", arguments[1], flush=True)
    if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost", "0.0.0.0", None):
        print("looks up", arguments[0], flush=True)
sys.addaudithook(watch)
from dual_cross_attention.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_says_its_address_and_ends_with_ctrl_c(make_model):
    command = [sys.executable, "-c", WATCHED, "demo", f"{make_model()}", "--device=cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        printed = ""
        for line in process.stdout:
            printed += line
            if line.startswith("http://"):
                break
        process.send_signal(signal.SIGINT)
        printed += process.communicate(timeout=300)[0]
        assert process.returncode == 0
        assert_says(printed, "http://127.0.0.1:", "stopped")
        assert not any(word in printed for word in ("warning", "connects to", "looks up", "Traceback"))
    finally:
        process.kill()


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl-C as soon as the address is printed."""
    printed = Console.print

    def interrupt(console, text, **options):
        printed(console, text, **options)
        if text.startswith("http://"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Console, "print", interrupt)


def test_another_host_is_warned_of(make_model, dcal, interrupted):
    outcome = dcal("demo", make_model(), "--host", "0.0.0.0", "--device=cpu")
    assert outcome.status == 0
    (warning,) = (line for line in outcome.out.splitlines() if line.startswith("warning"))
    assert_says(warning, "0.0.0.0", "class names", "no password", "not encrypted")
    assert_says(outcome.out, "http://0.0.0.0:", "stopped")


def test_sigterm_ends_like_ctrl_c(make_model, dcal, monkeypatch):
    """So that uploaded files are deleted."""
    before, handlers = signal.getsignal(signal.SIGTERM), []

    def wait(server):
        handlers.append(signal.getsignal(signal.SIGTERM))
        raise KeyboardInterrupt

    monkeypatch.setattr(DemoServer, "wait", wait)
    try:
        assert dcal("demo", make_model(), "--device=cpu").status == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert handlers == [signal.default_int_handler]


def test_wrong_options_are_refused(dcal, make_model, tmp_path):
    (tmp_path / "empty").write_text("")
    assert_refused(dcal("demo", make_model(), "--auth", "anna"), "--auth", "USER:FILE")
    assert_refused(dcal("demo", make_model(), "--auth", f"anna:{tmp_path / 'empty'}"), "--auth", "password")
    assert_refused(dcal("demo", make_model(), "--auth", f"anna:{tmp_path / 'none'}"), "--auth", "none")
    assert_refused(dcal("demo", make_model(), "--index", tmp_path / "none"), "no index")
    assert_refused(dcal("demo", make_model(), "--examples", tmp_path / "a.png"), "a.png")


def test_password_is_the_first_line(tmp_path):
    (tmp_path / "password").write_text("a b:c\nmore\n")
    assert read_password(f"anna:{tmp_path / 'password'}") == ("anna", "a b:c")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_hosts_of_this_machine(host):
    assert is_local(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "example.org", ""])
def test_other_hosts(host):
    assert not is_local(host)


def test_remote_files_are_recognized():
    assert is_remote("/gradio_api/file=https://a.org/b") and is_remote("/gradio_api/proxy=x")
    assert not is_remote("/gradio_api/file=/tmp/a.png") and not is_remote("/")
