"""Serves a page on this machine: address, password, what is refused, and how it ends."""

import ipaddress
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.loaded_model import LoadedModel
from dual_cross_attention.text import escape
from dual_cross_attention.untrusted_files import open_regular
from dual_cross_attention.web.upload_folder import UPLOADS

LOCALHOST = "127.0.0.1"
HOST_NAME = re.compile(r"(\*\.)?[\w-]+(\.[\w-]+)*")
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1", "[::1]")
HOSTED_NOTEBOOKS = ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "JUPYTERHUB_API_TOKEN")
"""Environment variables of Google Colab, Kaggle and JupyterHub."""
FIRST_PORT, PORTS = 7860, 100
WAITING = 64
"""Requests that wait at most; further ones are refused with a message."""
MAX_PASSWORD = 1024
LOGGER = logging.getLogger(__name__)


class DemoServer:
    """A page that is being served. Made by `serve`; a context manager that stops it.

    Attributes:
        page: of Gradio.
        address: of the page.
    """

    def __init__(self, page: Any, address: str):
        self.page, self.address, self._is_open = page, address, True

    def wait(self) -> None:
        """Blocks until Ctrl-C, which raises KeyboardInterrupt."""
        threading.Event().wait()

    def close(self) -> None:
        """Stops serving; the last server of the process deletes the uploaded files."""
        if self._is_open:
            self._is_open = False
            self.page.close(verbose=False)
            UPLOADS.release()

    def __enter__(self) -> "DemoServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(
    model: LoadedModel,
    index: str | Path | None = None,
    examples: Sequence[str] = (),
    host: str = LOCALHOST,
    port: int | None = None,
    auth: Sequence[tuple[str, str]] = (),
    top_k: int = 5,
    inline: bool | None = False,
    allow_hosts: Sequence[str] = (),
) -> DemoServer:
    """Serves the page of a model. Warns of what other computers can see.

    Args:
        model: of the page.
        index: folder of an index of its features, which the page then searches.
        examples: image files that the page offers.
        host: address to listen at; other than of this machine, other computers reach the page.
        port: None: the first free one from 7860 on.
        auth: users and their passwords; empty: no password is asked for.
        top_k: number of classes.
        inline: show the page in a notebook; None: in one.
        allow_hosts: names that the header Host of a request may have beside those of this machine, as of a proxy in
            front of the page; "*": any. Without a local `host`, any name is accepted.

    Raises:
        InputError: Gradio is missing, the port is taken, or the index is not of this model.
    """
    for each in examples:
        if not Path(each).is_file():
            raise InputError(f"examples: no image file '{escape(each)}'")
    if top_k < 1:
        raise InputError(f"top_k: expected at least 1, got {top_k}")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError(f"the page needs Gradio ({error}): pip install 'dual-cross-attention[web]'") from error
    from dual_cross_attention.web.page import build_page

    UPLOADS.acquire()
    try:
        page = build_page(model, index, examples, top_k, may_enroll=is_local(host) or bool(auth))
        _launch(page, host, port, auth, inline, accepted_hosts(host, allow_hosts))
    except BaseException:
        UPLOADS.release()
        raise
    if not is_local(host):
        visible = "its class names" + (", and the images, file paths and identities of the index" if index else "")
        password = "" if auth else "; no password is asked for (--auth USER:FILE), so nothing can be enrolled"
        LOGGER.warning(
            f"every computer that reaches {escape(host)} can use the model and see {visible}{password}; the connection "
            "is not encrypted"
        )
    shown = f"[{host}]" if ":" in host else host
    return DemoServer(page, f"http://{shown}:{page.server_port}")


def accepted_hosts(host: str, allowed: Sequence[str] = ()) -> list[str]:
    """Names in the header Host of the requests that a page answers.

    A web site could have its own name resolve to this machine (DNS rebinding) and read a page that has no password, but
    its requests name the site. Hosted notebooks serve the page through a proxy, under a name that is not known here.

    Args:
        host: address that the page listens at.
        allowed: further names, without ports; "*": any. Not given: any for a page that other machines reach.
    """
    for name in allowed:
        if name != "*" and not HOST_NAME.fullmatch(name):
            raise InputError(f"allow_hosts: expected a name without a port, *.NAME or *, got '{escape(name)}'")
    is_hosted = any(name in os.environ for name in HOSTED_NOTEBOOKS)
    if not allowed and (not is_local(host) or is_hosted):
        return ["*"]
    return [*LOCAL_NAMES, host.lower(), f"[{host}]", *(name.lower() for name in allowed)]


def _launch(
    page: Any, host: str, port: int | None, auth: Sequence[tuple[str, str]], inline: bool | None, hosts: list[str]
) -> None:
    """Starts to serve a page, without waiting."""
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from dual_cross_attention.web.markup import CSS
    from dual_cross_attention.web.uploads import MAX_BYTES

    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    # Fonts of the system: Gradio's themes would load theirs from another server.
    theme = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
    try:
        _check_address(host)
        page.queue(max_size=WAITING).launch(
            inline=inline,
            share=False,
            _frontend=False,  # else a machine that needs more than 3 s for the page is refused
            auth=[*auth] or None,
            prevent_thread_lock=True,
            quiet=True,
            server_name=host,
            server_port=port,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            max_file_size=MAX_BYTES,
            app_kwargs={"middleware": [trusted, Middleware(LocalFilesOnly)]},
            theme=theme,
            css=CSS,
        )
    except OSError as error:
        where = f"port {port}" if port else f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
        raise InputError(
            f"cannot listen at {escape(host)}, {where}: the port is taken, or the address is not of this "
            "machine: give another --port or --host"
        ) from error


def _check_address(host: str) -> None:
    """Raises OSError if the address is not of this machine: Gradio would try it at each port, for minutes."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as tried:
        tried.bind(address)


def wait_in_script(server: DemoServer) -> None:
    """Waits until Ctrl-C and closes the server; in a notebook or an interactive Python, does nothing."""
    if getattr(sys, "ps1", sys.flags.interactive):
        return
    with server, suppress(KeyboardInterrupt):
        server.wait()


class LocalFilesOnly:
    """ASGI middleware that refuses Gradio's routes which fetch an address that the client names."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http" and is_remote(scope["path"]):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"files of other machines are not served"})
            return
        await self.app(scope, receive, send)


def is_remote(path: str) -> bool:
    """Whether a request for this path would have the server fetch a file of another machine."""
    path = unquote(path).lower()
    return "/proxy=" in path or "/file=http" in path


def is_local(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_password(word: str) -> tuple[str, str]:
    """The user and the password of USER:FILE; the password is the first line of the file.

    Raises:
        InputError: another form, or a file that cannot be read or has no password.
    """
    user, colon, file = word.partition(":")
    if not (user and colon and file):
        raise InputError("--auth: expected USER:FILE, a file that has the password in its first line")
    try:
        with open_regular(file) as opened:
            lines = opened.read(MAX_PASSWORD).decode().splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"--auth: cannot read '{escape(file)}': {reason}") from error
    if not lines or not lines[0]:
        raise InputError(f"--auth: expected a password in the first line of '{escape(file)}', got none")
    return user, lines[0]
