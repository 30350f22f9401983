"""`dcal shard`: writes a dataset into tar archives."""

from dataclasses import asdict, dataclass
from typing import Literal

from dual_cross_attention.commands.output import asks_for_help, show_log
from dual_cross_attention.configs.flags import describe, read_flags, split_flags
from dual_cross_attention.errors import InputError
from dual_cross_attention.progress import make_console
from dual_cross_attention.text import escape

SUMMARY = "write a dataset of very many images into tar archives, to train from"


@dataclass(kw_only=True)
class ShardOptions:
    """Options"""

    task: Literal["fgvc", "reid"] = "fgvc"
    """fgvc is fine-grained visual categorization, reid is object re-identification."""
    dataset: str | None = None
    """Name of the dataset, as of dcal train; unset: the built-in toy set."""
    data_root: str | None = None
    """The dataset's own folder, or the folder that holds it; unset: looked for in $DCAL_DATA and ./data."""
    val_fraction: float | None = None
    """Of a folder of class folders without a split (dataset folder): the share to validate on, as of dcal train."""
    output_dir: str | None = None
    """Folder for the archives; needed. The same command writes them again, as after an interruption."""
    shard_mb: int = 256
    """Largest size of an archive, in millions of bytes."""
    seed: int = 0
    """Of the random order of the training images; of re-identification, they come identity by identity."""
    num_workers: int | None = None
    """Processes that read and decode images; unset: one per core."""
    max_bad_images: int | None = None
    """Images that cannot be read are named and left out, so many at most; unset: 1 % of them, at least 10."""


def describe_options() -> str:
    """The text of --help."""
    return describe(
        ShardOptions,
        "dcal shard --output_dir DIR [--OPTION VALUE ...]",
        "Writes a dataset into plain tar archives by WebDataset's convention, for --dataset shards: the "
        "files' own bytes, with KEY.cls (class) or KEY.json (identity, camera) beside KEY.jpg; train-*.tar and "
        "val-*.tar or query-*.tar and gallery-*.tar. The same dataset gives the same archives. (Who writes "
        "such archives otherwise should put images of classes in random order: a training shuffles 65,536 "
        "of them at a time.)",
    )


def run(arguments: list[str]) -> None:
    if asks_for_help(arguments):
        print(describe_options())
        return
    words, flags = split_flags(arguments)
    more_words, values = read_flags(ShardOptions, flags)
    if words + more_words:
        raise InputError(f"dcal shard: unexpected word '{(words + more_words)[0]}': expected flags with a value")
    options = ShardOptions(**values)
    if not options.output_dir:
        raise InputError("dcal shard: expected --output_dir, a folder for the archives")
    console = make_console()
    show_log(console)
    from dual_cross_attention.tasks import sharding

    for line in sharding.shard(**asdict(options), console=console):
        console.print(escape(line), soft_wrap=True)
