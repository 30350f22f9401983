"""`dcal explain`: what a model attends to in any images, as figures or arrays."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rich.console import Console

from dual_cross_attention.commands.inference_options import HARDWARE, ModelOptions, find_inputs, load_for_images
from dual_cross_attention.commands.output import show_log
from dual_cross_attention.configs.arguments import positional, read_options
from dual_cross_attention.errors import InputError
from dual_cross_attention.progress import make_console, track
from dual_cross_attention.text import escape

if TYPE_CHECKING:
    from dual_cross_attention.explanation.explanation import Explanation
    from dual_cross_attention.inference.loaded_model import LoadedModel


@dataclass(kw_only=True)
class ExplainOptions(ModelOptions):
    """Draws what a model attends to: for each image a figure with attention rollout, GLCA's local tokens, GLCA's
    attention, and the predictions; or for two images the regions that match. The exit status is 1 if an image cannot be
    read."""

    EXAMPLE: ClassVar = "dcal explain runs/birds photos/ --output figures\ndcal explain runs/people --pair a.jpg b.jpg"
    GROUPS: ClassVar = {
        "figures": "output compare layers gradient top_k maps",
        "two images": "pair method",
        "hardware and speed": HARDWARE,
    }

    images: list[str] = positional("IMAGE|FOLDER|PATTERN|-", default_factory=list)
    """Image files, folders (searched recursively), patterns such as 'photos/*.jpg'; - reads paths from standard input,
    one per line."""
    output: str = "explanations"
    """Folder of the figures, NAME.explained.png for an image NAME.jpg; figures that are there are replaced."""
    compare: str | None = None
    """Another model, which gets a row of its own in each figure."""
    layers: bool = False
    """Add the class token's attention in each layer to the figures."""
    gradient: bool = False
    """Add gradient × rollout, the most faithful map of a classifier, which takes a backward pass."""
    top_k: int = 3
    """Number of classes of each prediction, the most probable first."""
    maps: bool = False
    """Write the maps as arrays, NAME.maps.npz, instead of figures."""
    pair: tuple[str, ...] = ()
    """Two images, whose matching regions are drawn: FIRST SECOND."""
    method: Literal["pwca", "cosine"] | None = None
    """How regions are matched: by the attention to the other image in PWCA's joint softmax, or by the cosine similarity
    of tokens, weighted by rollout. null: the one that is more faithful."""


def run(arguments: list[str]) -> int:
    options = read_options(ExplainOptions, "explain", arguments)
    console = make_console()
    show_log(console)
    _check(options)
    images = None if options.pair else find_inputs(options.images, console)
    model, reading = load_for_images(options)
    models = [model]
    if options.compare:
        from dual_cross_attention.inference.loaded_model import load_model

        models.append(load_model(options.compare, options.device, options.precision))
    for each in models:
        each.check_is_pytorch("explain")
    output = Path(options.output)
    if output.exists() and not output.is_dir():
        raise InputError(f"--output: expected a folder for the figures, got the file '{escape(output)}'")
    try:
        output.mkdir(parents=True, exist_ok=True)
        if options.pair:
            return _explain_pair(model, options, output, console)
        reading |= {"top_k": options.top_k, "keep_image": not options.maps, "gradient": options.gradient}
        rows = track(_explain(models, images.paths, reading), "explain", images.total, console)
        return _write(rows, options, OutputNames(output), console)
    except OSError as error:
        raise InputError(f"--output: cannot write '{escape(error.filename or output)}': {error.strerror}") from error


def _check(options: ExplainOptions) -> None:
    if options.pair:
        if len(options.pair) != 2:
            raise InputError(f"--pair: expected two images, got {len(options.pair)}")
        for name in ("images", "compare", "layers", "maps", "gradient"):
            if getattr(options, name):
                raise InputError(f"--pair: expected two images and no {name}: leave {name} out")
    elif options.method:
        raise InputError("--method: expected --pair FIRST SECOND, which it is for")
    if options.maps and (options.compare or options.layers):
        raise InputError("--maps: expected no --compare and no --layers: arrays have all layers, of one model")


def _explain(
    models: list["LoadedModel"], paths: Iterable[str], reading: dict[str, Any]
) -> Iterator[tuple["Explanation", ...]]:
    """The explanations of each image by each model."""
    streams = tee(paths, len(models))
    return zip(*(model.explain(each, **reading) for model, each in zip(models, streams, strict=True)), strict=True)


def _write(
    rows: Iterable[tuple["Explanation", ...]], options: ExplainOptions, names: "OutputNames", console: Console
) -> int:
    """Writes a file an image; the exit status."""
    import numpy as np

    from dual_cross_attention.atomic_io import atomic_write
    from dual_cross_attention.explanation.figures import draw_explanations

    written = unreadable = 0
    for row in rows:
        first = row[0]
        if error := next((each.error for each in row if each.error), None):
            unreadable += 1
            console.print(f"{escape(first.path)} cannot be read: {error}", style="yellow")
            continue
        path, other = names.of(first.path, ".maps.npz" if options.maps else ".explained.png")
        if other:
            console.print(f"{escape(path)}: {escape(first.path)}, since {escape(other)} has the same name")
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            if options.maps:
                arrays = {name: getattr(first, name) for name in ("rollout", "layers", "local", "glca", "gradient")}
                np.savez(file, **{name: each for name, each in arrays.items() if each is not None})
            else:
                draw_explanations(row, options.layers).savefig(file, format="png")
        written += 1
    if not written and not unreadable:
        raise InputError("expected at least one image, got none")
    said = f", {unreadable:,} unreadable" if unreadable else ""
    console.print(f"{written:,} images{said}: {escape(names.folder)}")
    return 1 if unreadable else 0


def _explain_pair(model: "LoadedModel", options: ExplainOptions, output: Path, console: Console) -> int:
    from dual_cross_attention.atomic_io import atomic_write

    pair = model.explain_pair(*options.pair, options.method)
    stems = [Path(each).stem for each in options.pair]
    path = output / f"{stems[0]}-{stems[1]}.pair.png"
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        pair.figure().savefig(file, format="png")
    same = "" if pair.same is None else f", P(same identity) {100 * pair.same:.0f} %"
    console.print(f"{pair.distance_name} distance {pair.distance:.4f}{same}: {escape(path)}")
    return 0


@dataclass
class OutputNames:
    """Names of output files in a folder: of images with the same name, the second one gets "-2".

    Args:
        folder: of all.
    """

    folder: Path
    _taken: dict[str, str] = field(default_factory=dict)

    def of(self, image: str, suffix: str) -> tuple[Path, str | None]:
        """The output file of an image, and the earlier image that has the same name, or None."""
        stem = Path(image).stem
        other, number, name = None, 1, stem
        while name.casefold() in self._taken:  # a file system may not tell A from a
            other = other or self._taken[name.casefold()]
            number += 1
            name = f"{stem}-{number}"
        self._taken[name.casefold()] = image
        return self.folder / f"{name}{suffix}", other
