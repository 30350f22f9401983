"""`dcal demo`: its address, warnings, end, and that it connects to this machine only."""

import os
import signal
import subprocess
import sys

import pytest

from tests.helpers import assert_refused, assert_says

pytest.importorskip("gradio", reason="the page needs the extra [web]")

from dual_cross_attention.web.server import is_local, is_remote, read_password

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


def run_demo(*arguments: object) -> tuple[list[str], int]:
    """The lines of the command up to its address, and its exit status after Ctrl-C."""
    command = [sys.executable, "-c", WATCHED, "demo", *map(str, arguments), "--device=cpu"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": os.environ}
    process, lines = subprocess.Popen(command, **options), []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("http://"):
                break
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        return [*lines, *rest.splitlines(keepends=True)], process.returncode
    finally:
        process.kill()


def test_says_its_address_and_ends_with_ctrl_c(make_model):
    lines, status = run_demo(make_model())
    assert status == 0
    assert_says("".join(lines), "http://127.0.0.1:", "stopped")
    assert not any(word in "".join(lines) for word in ("warning", "connects to", "looks up", "Traceback"))


def test_another_host_is_warned_of(make_model):
    lines, status = run_demo(make_model(), "--host", "0.0.0.0")
    assert status == 0
    (warning,) = (line for line in lines if line.startswith("warning"))
    assert_says(warning, "0.0.0.0", "class names", "no password", "not encrypted")


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
