"""`dcal publish`: a trained model on the Hugging Face Hub."""

from dataclasses import dataclass
from typing import ClassVar

from dual_cross_attention.commands.inference_options import NamedModelOptions
from dual_cross_attention.commands.output import open_console
from dual_cross_attention.configs.arguments import positional, read_options
from dual_cross_attention.text import escape


@dataclass(kw_only=True)
class PublishOptions(NamedModelOptions):
    """Uploads a model to the Hugging Face Hub: model.safetensors, config.json and a model card, README.md. Commands
    then read it as hf:ORG/NAME or hf:ORG/NAME@REVISION. Log in first by `hf auth login`, or set HF_TOKEN."""

    EXAMPLE: ClassVar = "dcal publish runs/birds my-name/birds --dry_run"
    GROUPS: ClassVar = {"upload": "private dry_run"}

    repository: str = positional("ORG/NAME")
    """Repository on the Hub. It is created if it is not there."""
    private: bool = False
    """Create a repository that only members of ORG can read."""
    dry_run: bool = False
    """Say what would be uploaded, and upload nothing."""


def run(arguments: list[str]) -> None:
    """Uploads, and prints what."""
    options = read_options(PublishOptions, "publish", arguments)
    console = open_console()
    from dual_cross_attention.export.publishing import publish

    done = publish(options.model, options.repository, options.private, options.dry_run)
    style = None if done.is_free else "yellow"
    start = "" if done.is_free else "warning: check that the license of the initial weights permits this: "
    console.print(f"{start}{done.license}", style=style, soft_wrap=True)
    for name, size in done.files.items():
        console.print(f"  {name:20} {size:>14,} bytes")
    verb = "would be uploaded" if options.dry_run else "uploaded"
    visibility = "private" if options.private else "public"
    console.print(f"{verb} to {escape(done.url)} ({visibility})", soft_wrap=True)
