"""Finds the archives of a dataset: training archives by a pattern, test archives in the same folder."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.configs.versions import FORMAT_VERSION, check_version
from dual_cross_attention.data.folders import inner_folder_lines, unwrapped, what_is_in
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, short_repr
from dual_cross_attention.untrusted_files import read_text

DESCRIPTION = "dcal-shards.json"
"""Name of the description file that `dcal shard` writes next to the archives."""
MAX_ARCHIVES = 100_000
TRAINING = "train"


@dataclass(frozen=True)
class Description:
    """Description of archives, written by `dcal shard`.

    Args:
        task: "fgvc" or "reid".
        dataset: the source dataset.
        classes: names of the classes or training identities, by label.
        archives: the names of each split's archives; None while they are being written.
        settings: other settings that determine the content.
        coarse_classes: coarse class of each class; None: there are none.
    """

    task: str
    dataset: str
    classes: list[str]
    archives: dict[str, list[str]] | None
    settings: dict[str, object]
    coarse_classes: list[str] | None = None


@dataclass(frozen=True)
class Shards:
    """The archives of a dataset.

    Args:
        folder: that contains them.
        splits: the archives of each split, in order.
        classes: names of the labels; None without a description.
        coarse_classes: coarse class of each; None: there are none.
        warnings: warnings about archives that are not read.
        names: what the archives of each test split are called, of its alternative names.
    """

    folder: Path
    splits: dict[str, list[Path]]
    classes: list[str] | None
    coarse_classes: list[str] | None = None
    warnings: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)


def find_shards(data_root: Path, task: str, tests: Sequence[Sequence[str]], train: bool = True) -> Shards:
    """Finds the training archives that match a pattern, and the test archives in the same folder.

    Args:
        data_root: DIR/train-{000000..000127}.tar, a single archive, or DIR: all of its train-*.tar. A folder that
            contains only DIR is accepted in place of DIR.
        task: "fgvc" or "reid".
        tests: alternative names of each test split, one of which must exist: [["val", "test"]]. The archives are
            NAME-*.tar, or, where those to train on are called x-train-000000.tar, x-NAME-*.tar.
        train: False: the training archives need not exist.

    Raises:
        InputError: there are none, `dcal shard` has not finished them, or they are for another task.
    """
    warnings = []
    if os.path.isdir(data_root):
        inner = unwrapped(data_root, _has_archives) or data_root
        warnings += inner_folder_lines("shards", inner, data_root)
        data_root = inner
    named, folder, prefix = _training_archives(data_root)
    description = read_description(folder)
    if description and description.task != task:
        raise InputError(f"shards: {escape(folder)} has archives for --task {description.task}, not for {task}")
    if description and description.archives is None:
        raise InputError(
            f"shards: {escape(folder)} is unfinished: expected all archives, but dcal shard was interrupted; run it "
            "again"
        )
    splits: dict[str, list[Path]] = {}
    test_names: dict[str, str] = {}
    if train:
        found = named or _split(folder, prefix, TRAINING, description)
        if not found:
            raise InputError(f"shards: expected {prefix}{TRAINING}-*.tar in {escape(folder)}, but {what_is_in(folder)}")
        splits[TRAINING] = found
    for names in tests:
        there = ((name, files) for name in names if (files := _split(folder, prefix, name, description)))
        called, found = next(there, ("", None))
        if found is None:
            wanted = " or ".join(f"{prefix}{name}-*.tar" for name in names)
            raise InputError(f"shards: expected {wanted} in {escape(folder)}, to test on, but {what_is_in(folder)}")
        splits[names[0]], test_names[names[0]] = found, called
    warnings += _not_read(folder, prefix, splits, tests, named)
    classes, coarse_classes = (description.classes, description.coarse_classes) if description else (None, None)
    return Shards(folder, splits, classes, coarse_classes, warnings, test_names)


def read_description(folder: Path) -> Description | None:
    """Reads the description of the archives in a folder; None if there is none.

    Raises:
        InputError: it cannot be used.
    """
    path = folder / DESCRIPTION
    try:
        said = json.loads(read_text(path, "shards"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"shards: {escape(path)} cannot be read as JSON: {error}") from error
    if isinstance(said, dict):
        check_version(said.get("format_version"), f"shards: {escape(path)}")
    fields = (
        [said.get(name) for name in ("task", "dataset", "classes", "archives", "settings", "coarse_classes")]
        if isinstance(said, dict)
        else []
    )
    task, dataset, classes, archives, settings, coarse_classes = fields or [None] * 6
    names = [name for each in archives.values() for name in each] if _is_lists_of_names(archives) else []
    good = (
        isinstance(task, str)
        and isinstance(dataset, str)
        and _is_names(classes)
        and (coarse_classes is None or (_is_names(coarse_classes) and len(coarse_classes) == len(classes)))
        and (archives is None or _is_lists_of_names(archives))
        and all(name and os.path.basename(name) == name for name in names)
        and isinstance(settings, dict)
    )
    if not good:
        raise InputError(f"shards: {escape(path)}: expected what dcal shard writes, got {short_repr(said)}")
    return Description(task, dataset, classes, archives, settings, coarse_classes)


def write_description(folder: Path, description: Description) -> None:
    """Writes what `read_description` reads, atomically. Raises OSError if it cannot be written."""
    said = {"format_version": FORMAT_VERSION} | asdict(description)
    if description.coarse_classes is None:
        del said["coarse_classes"]
    with atomic_write(folder / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(said, indent=1) + "\n")


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def expand(pattern: str) -> list[str]:
    """Expands {first..last} and {one,other} in a pattern: "a-{08..10}" → ["a-08", "a-09", "a-10"].

    Raises:
        InputError: other braces, or more than `MAX_ARCHIVES` names.
    """
    parts = re.split(r"(\{[^{}]*\})", pattern)
    choices = [_choices(part, pattern) if part.startswith("{") else [part] for part in parts]
    total = 1
    for each in choices:
        total *= len(each)
    if total > MAX_ARCHIVES:
        raise InputError(f"shards: expected at most {MAX_ARCHIVES:,} archives, {escape(pattern)} names {total:,}")
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(braces: str, pattern: str) -> list[str]:
    inside = braces[1:-1]
    if numbers := re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", inside):
        first, last = numbers.groups()
        if int(first) <= int(last) < int(first) + MAX_ARCHIVES:
            return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    elif "," in inside:
        return inside.split(",")
    raise InputError(
        f"shards: {escape(pattern)}: expected braces like {{000000..000127}}, of at most {MAX_ARCHIVES:,} numbers, "
        f"got {escape(braces):.60}"
    )


def _training_archives(data_root: Path) -> tuple[list[Path], Path, str]:
    """Returns the named archives, their folder, and the prefix of their names before "train"."""
    if os.path.isdir(data_root):
        return [], data_root, ""
    paths = [data_root] if os.path.lexists(data_root) else [Path(name) for name in expand(f"{data_root}")]
    first = paths[0]
    if first.suffix != ".tar" or len({path.parent for path in paths}) > 1 or len({*paths}) < len(paths):
        there = what_is_in(data_root) if len(paths) == 1 else "it names several folders, other files, or one twice"
        raise InputError(
            "shards: expected archives of one folder, such as DIR/train-{000000..000127}.tar, or DIR, got "
            f"{escape(data_root)}: {there}"
        )
    return paths, first.parent, first.name.rpartition(TRAINING)[0]


def _split(folder: Path, prefix: str, name: str, description: Description | None) -> list[Path]:
    """Returns the archives of a split; empty if there are none."""
    if description and description.archives:
        return [folder / archive for archive in description.archives.get(name, [])]
    start = f"{prefix}{name}"
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except OSError as error:
        raise InputError(f"shards: cannot read the folder {escape(folder)}: {error.strerror}") from error
    # "train.tar", "train-000000.tar", "train_00.tar": not "trainset.tar"
    ours = re.compile(re.escape(start) + r"([-_.].*)?\.tar")
    return [folder / each for each in sorted(names) if ours.fullmatch(each)]


def _has_archives(folder: Path) -> bool:
    return os.path.lexists(folder / DESCRIPTION) or any(name.endswith(".tar") for name in os.listdir(folder))


def _not_read(
    folder: Path, prefix: str, splits: dict[str, list[Path]], tests: Sequence[Sequence[str]], named: list[Path]
) -> list[str]:
    """Warnings about archives that have the name of a split but are not read.

    There are none about training archives if some are named explicitly: the others are left out on purpose.
    """
    taken = {path.name for each in splits.values() for path in each}
    wanted = {name: splits[names[0]] for names in tests for name in names}
    if TRAINING in splits and not named:
        wanted |= {TRAINING: splits[TRAINING]}
    warnings = []
    for name, instead in wanted.items():
        ours = re.compile(re.escape(f"{prefix}{name}") + r"([-_.].*)?\.(tar(\.(gz|bz2|xz|zst))?|tgz|tzst)")
        others = sorted(each for each in os.listdir(folder) if ours.fullmatch(each) and each not in taken)
        if others:
            warnings.append(
                f"shards: {escape(folder)}: {len(others):,} archives of {name} are not read, such as "
                f"{escape(others[0])}; those that are read begin with {escape(instead[0].name)}"
            )
    return warnings


def _is_lists_of_names(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(each, list) and all(isinstance(name, str) for name in each) for each in value.values()
    )
