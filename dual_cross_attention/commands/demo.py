"""`dcal demo`: a local web page that applies a model to images."""

import signal
from dataclasses import dataclass
from typing import ClassVar

from dual_cross_attention.commands.inference_options import DeviceOptions, NamedModelOptions
from dual_cross_attention.commands.output import open_console
from dual_cross_attention.configs.arguments import read_options


@dataclass(kw_only=True)
class DemoOptions(NamedModelOptions, DeviceOptions):
    """Serves a web page on this machine: images that are dropped on it, pasted, or taken with the camera are classified
    and explained, and identified with an index. No request leaves the machine. Ctrl-C stops it. An exported .onnx file
    classifies and identifies, and explains nothing."""

    EXAMPLE: ClassVar = "dcal demo runs/birds\ndcal demo runs/people --index people.index --port 8080"
    GROUPS: ClassVar = {
        "page": "index examples top_k",
        "access": "host port auth allow_hosts",
        "hardware and speed": "device precision",
    }

    index: str | None = None
    """Folder of an index of this model, in which the page finds the nearest images and identities."""
    examples: tuple[str, ...] = ()
    """Image files that the page offers to click on."""
    top_k: int = 5
    """Number of classes per image, the most probable first."""
    host: str = "127.0.0.1"
    """Address to listen at. With another one than that of this machine, other computers reach the page."""
    port: int | None = None
    """Port to listen at. null: the first free one from 7860 on."""
    auth: tuple[str, ...] = ()
    """Users who may open the page: USER:FILE, where the first line of the file is the password."""
    allow_hosts: tuple[str, ...] = ()
    """Names of this machine, or of a proxy, under which browsers may open a page that listens at this machine alone;
    other names than localhost are refused, since a web site could send them. *: any name."""


def run(arguments: list[str]) -> int:
    options = read_options(DemoOptions, "demo", arguments)
    console = open_console()
    from dual_cross_attention.inference.loaded_model import load_model
    from dual_cross_attention.web.server import read_password, serve

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploaded files are deleted then, too
    auth = [read_password(word) for word in options.auth]
    model = load_model(options.model, options.device, options.precision)
    where = options.host, options.port, auth, options.top_k
    server = serve(model, options.index, options.examples, *where, allow_hosts=options.allow_hosts)
    try:  # around the address, too: a user may stop the page as soon as it is printed
        with server:
            console.print(f"{server.address}  (Ctrl-C stops the page)", soft_wrap=True)
            server.wait()
    except KeyboardInterrupt:
        console.print("stopped")
    return 0
