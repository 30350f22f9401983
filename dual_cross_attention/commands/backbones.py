"""`dcal backbones`: what `--backbone` takes."""

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from dual_cross_attention.commands.output import open_console, write_json
from dual_cross_attention.configs.arguments import read_options
from dual_cross_attention.errors import InputError

HEADINGS = ("backbone", "family", "parameters", "input", "patch", "classifies", "branches", "license of the weights")


@dataclass(kw_only=True)
class BackbonesOptions:
    """Lists the models of timm that --backbone takes: parameters, the input size of timm's default weights, patch size,
    what is classified, the branches that it can have, and the license of timm's weights. Nothing is downloaded."""

    EXAMPLE: ClassVar = "dcal backbones --family eva --name dinov3"

    family: Literal["vit", "hybrid", "eva", "swin", "cait"] | None = None
    """Only those of a family: vit, plain Vision Transformers; hybrid, those over a ResNet; eva, timm's Eva: EVA-02,
    DINOv3, RoPE-ViTs, Perception Encoder; swin, Swin Transformers; cait, CaiT."""
    name: str = ""
    """Only those whose name contains this."""
    refused: bool = False
    """List the models of the families that are refused, too, and why."""
    json: str | None = None
    """Write the list as JSON to this file; - writes it to standard output, and nothing else."""


def run(arguments: list[str]) -> None:
    options = read_options(BackbonesOptions, "backbones", arguments)
    console = open_console(options.json)
    from dual_cross_attention.backbones.catalog import describe
    from dual_cross_attention.backbones.registry import list_backbones

    names = [name for name in list_backbones(options.family) if options.name in name]
    if not names:
        raise InputError(f"--name {options.name}: no backbone has that in its name; leave it out to see all")
    width = max(len(name) for name in names)
    widths = (width, 6, 10, 9, 7, 14, 12, 0)

    def show(*cells: str) -> None:
        row = "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True))
        console.print(row.rstrip(), soft_wrap=True, markup=False, highlight=False)

    if options.json != "-":
        show(*HEADINGS)
    listed = []
    for name in names:
        info = describe(name)
        if info.refused and not options.refused:
            continue
        listed.append(asdict(info))
        if options.json == "-":
            continue
        size, patch = (_by(sides) for sides in (info.input_size, info.patch_size))
        branches = ", ".join(info.branches)
        licenses = ", ".join(info.licenses) or "no weights"
        what = (info.feature, branches, licenses) if not info.refused else ("refused", "", info.refused)
        show(info.name, info.family, f"{info.parameters / 1e6:,.1f} M", size, patch, *what)
    write_json({"backbones": listed}, options.json)


def _by(sides: tuple[int, int] | None) -> str:
    return "" if sides is None else f"{sides[0]}x{sides[1]}"
