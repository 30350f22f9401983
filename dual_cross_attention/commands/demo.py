"""`dcal demo`: a local web page that applies a model to images."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dual_cross_attention.commands.output import open_console
from dual_cross_attention.configs.arguments import positional, read_options


@dataclass(kw_only=True)
class DemoOptions:
    """Serves a web page on this machine: images that are dropped on it, pasted, or taken with the camera are classified
    and explained, and identified with an index. No request leaves the machine. Ctrl-C stops it."""

    EXAMPLE: ClassVar = "dcal demo runs/birds\ndcal demo runs/people --index people.index --port 8080"
    GROUPS: ClassVar = {
        "page": "index examples top_k",
        "access": "host port auth",
        "hardware and speed": "device precision",
    }

    model: str = positional("MODEL")
    """Run folder, whose best model is used, a .safetensors model file, or a directory of save_pretrained."""
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
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: CUDA, else MPS, else CPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """auto: bf16 if the device multiplies it in hardware, fp16 on older CUDA devices, else fp32. null: as in
    training."""


def run(arguments: list[str]) -> int:
    options = read_options(DemoOptions, "demo", arguments)
    console = open_console()
    from dual_cross_attention.inference.loaded_model import load_model
    from dual_cross_attention.text import escape
    from dual_cross_attention.web.server import is_local, read_password, serve

    auth = [read_password(word) for word in options.auth]
    model = load_model(options.model, options.device, options.precision)
    server = serve(model, options.index, options.examples, options.host, options.port, auth, options.top_k)
    with server:
        if not is_local(options.host):
            visible = "its class names" + (
                ", and the images, file paths and identities of the index" if options.index else ""
            )
            password = "" if auth else "; no password is asked for (--auth USER:FILE), so nothing can be enrolled"
            console.print(
                f"warning: every computer that reaches {escape(options.host)} can use the model and see {visible}"
                f"{password}; the connection is not encrypted",
                style="yellow",
                soft_wrap=True,
            )
        console.print(f"{server.address}  (Ctrl-C stops the page)", soft_wrap=True)
        try:
            server.wait()
        except KeyboardInterrupt:
            console.print("stopped")
    return 0
