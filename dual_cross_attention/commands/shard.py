"""`dcal shard`: writes a dataset into tar archives."""

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from dual_cross_attention.commands.dataset_options import DatasetOptions
from dual_cross_attention.commands.output import open_console
from dual_cross_attention.configs.arguments import read_options
from dual_cross_attention.text import escape


@dataclass(kw_only=True)
class ShardOptions(DatasetOptions):
    """Writes a dataset into plain tar archives by WebDataset's convention, for --dataset shards: the bytes of the image
    files, with KEY.cls (class) or KEY.json (identity, and camera if there are any) next to KEY.jpg, in train-*.tar and
    val-*.tar, or query-*.tar and gallery-*.tar (test-*.tar if each test image is searched for among all others). The
    same dataset gives the same archives, so the command can be repeated after an interruption. (In archives from other
    tools, training images should be in random order: training shuffles within blocks of 65,536 images.)"""

    EXAMPLE: ClassVar = "dcal shard --dataset cub --data_root DIR --output_dir DIR/shards"

    output_dir: str
    """Folder for the archives; required."""
    cameras: Literal["auto", "none", "name"] = "auto"
    """Re-identification, dataset folder: as for dcal train. Archives of images without cameras name none."""
    shard_mb: int = 256
    """Largest size of an archive, in millions of bytes."""
    seed: int = 0
    """Seed of the random order of the training images; with reid, images of an identity stay together."""
    max_bad_images: int | None = None
    """Number of unreadable images that are reported and left out, at most. null: 1 % of the images, at least 10."""


def run(arguments: list[str]) -> None:
    """Prints what was written, and the command that trains from it."""
    options = read_options(ShardOptions, "shard", arguments)
    console = open_console()
    from dual_cross_attention.tasks import sharding

    for line in sharding.shard(**asdict(options), console=console):
        console.print(escape(line), soft_wrap=True)
