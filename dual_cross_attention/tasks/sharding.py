"""`dcal shard`: a dataset by its name, written into tar archives."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console

from dual_cross_attention.configs import CONFIGS
from dual_cross_attention.configs.hub_names import split_hub_name
from dual_cross_attention.configs.parse import check_fgvc_options, choose_settings
from dual_cross_attention.data.fgvc import FineGrainedData, load_fgvc
from dual_cross_attention.data.images import ImageSource
from dual_cross_attention.data.reid import ReIDData, load_reid
from dual_cross_attention.data.reid.camera_names import CameraMode
from dual_cross_attention.data.shards.discovery import DESCRIPTION, Description, read_description, write_description
from dual_cross_attention.data.shards.writing import ArchiveWriter, encode_all
from dual_cross_attention.data.unreadable import Unreadable, UnreadableImages, allowed_unreadable
from dual_cross_attention.data.validation import processes
from dual_cross_attention.errors import InputError
from dual_cross_attention.program import train_command
from dual_cross_attention.progress import ProgressBar
from dual_cross_attention.tasks.data_roots import is_synthetic

OURS = re.compile(r"(train|val|query|gallery|test)-(\d{6,}\.tar(\.tmp)?|[0-9a-f]{8}\.index(\.tmp)?)")


@dataclass(frozen=True)
class Split:
    """What is to be written of a split.

    Args:
        images: all of them.
        order: the numbers of the images, as they are to be written.
        labels: of each image.
        label_member: the suffix and the content of the member that says what an image shows, by its number.
    """

    images: Sequence[ImageSource]
    order: np.ndarray
    labels: Sequence[int]
    label_member: Callable[[int], tuple[str, bytes]]


def shard(
    task: str,
    dataset: str | None,
    data_root: str | None,
    output_dir: str,
    shard_mb: int,
    seed: int,
    num_workers: int | None,
    max_bad_images: int | None,
    console: Console,
    val_fraction: float | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    cameras: CameraMode = "auto",
) -> list[str]:
    """Writes a dataset into archives, and their index.

    Images to train on are in random order (of re-identification, identity by identity), the others as they come. The
    same dataset gives the same archives. What is unreadable is left out, up to a limit.

    Args:
        task: "fgvc" or "reid".
        dataset: a dataset of the task; None: its toy dataset.
        data_root: where it is; None: as it is found, see `find_data_root`.
        output_dir: the folder for the archives. If it has some of the same dataset, they are written again.
        shard_mb: largest size of an archive in 10⁶ bytes.
        seed: of the random order.
        num_workers: processes that read and decode; None: one per core.
        max_bad_images: how many images may be unreadable; None: 1 % of them, at least 10.
        console: where progress is shown.
        val_fraction: of a folder without a split, see `load_fgvc`.
        image_column, label_column: of classification from a table, see `load_fgvc`.
        cameras: of re-identification, see `load_reid`.

    Returns:
        What was written, and what to type next.

    Raises:
        InputError: the dataset cannot be used, too much of it is unreadable, or the folder holds something else or
            cannot be written.
    """
    for name, value, least in (("shard_mb", shard_mb, 1), ("num_workers", num_workers, 0), ("seed", seed, 0)):
        if value is not None and value < least:
            raise InputError(f"{name}: expected a number of at least {least}, got {value}")
    if max_bad_images is not None and max_bad_images < 0:
        raise InputError(f"max_bad_images: expected a number of at least 0, got {max_bad_images}")
    dataset, data_root = split_hub_name(dataset, data_root)
    name = dataset or choose_settings({"task": task}).dataset
    choose_settings({"task": task, "dataset": name})  # refuses what is not there
    given = {"val_fraction": val_fraction, "image_column": image_column, "label_column": label_column}
    check_fgvc_options(task, name, **given)
    data = load_fgvc(name, data_root, **given) if task == "fgvc" else load_reid(name, data_root, cameras=cameras)
    for note in data.notes:  # of re-ID: cameras become numbers in the archives
        console.print(note, soft_wrap=True, markup=False)
    for warning in (*data.warnings, *(_lost_files(data) if isinstance(data, ReIDData) else [])):
        console.print(f"warning: {warning}", style="yellow")
    splits = _fgvc(data, seed) if isinstance(data, FineGrainedData) else _reid(data)
    classes = data.classes if isinstance(data, FineGrainedData) else data.identities
    counts = {split: len(each.images) for split, each in splits.items()}
    settings = {"shard_mb": shard_mb, "seed": seed, "pictures": counts, "classes": len(classes)}
    settings |= {name: value for name, value in given.items() if value is not None}
    coarse = data.coarse_classes if isinstance(data, FineGrainedData) else None
    plan = Description(task, name, classes, None, settings, coarse)
    folder = Path(output_dir).expanduser()
    unreadable = UnreadableImages(
        lambda message: console.print(f"warning: {message}", style="yellow"),
        allowed_unreadable(max_bad_images, sum(counts.values())),
    )
    synthetic = is_synthetic(task, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".dcal-shards.lock", timeout=0):
            _claim(folder, plan)
            with ProgressBar("shard", sum(counts.values()), console) as advance:
                written, labels = _write(
                    folder, splits, shard_mb * 10**6, 0 if synthetic else processes(num_workers), unreadable, advance
                )
            kept = classes if task == "fgvc" else [classes[label] for label in range(len(classes)) if labels[label]]
            write_description(folder, replace(plan, classes=kept, archives=written))
            _remove_others(folder, written)
    except Timeout as error:
        raise InputError(f"'{folder}' is in use: another dcal shard is writing into it") from error
    except OSError as error:
        raise InputError(
            f"cannot write to '{folder}': {error.strerror or error}; once that is fixed, the same command begins again"
        ) from error
    # As a training does: it reads what was written, and leaves the index.
    (load_fgvc if task == "fgvc" else load_reid)("shards", folder)
    return _report(task, name, folder, written, counts, len(unreadable))


def _fgvc(data: FineGrainedData, seed: int) -> dict[str, Split]:
    def split(listed, order: np.ndarray) -> Split:
        return Split(listed.images, order, listed.labels, lambda number: ("cls", b"%d" % listed.labels[number]))

    shuffled = np.random.default_rng(seed).permutation(len(data.train))
    return {"train": split(data.train, shuffled), "val": split(data.test, np.arange(len(data.test)))}


def _reid(data: ReIDData) -> dict[str, Split]:
    if not data.leave_one_out and data.test_files is not None:
        queries, gallery = np.split(data.test_files, [len(data.query)])
        if own := int(np.isin(queries, gallery).sum()):
            raise InputError(
                f"{data.name}: expected queries that are not in the gallery, got {own:,} of {len(queries):,} that are: "
                "archives do not say which gallery image is the query itself; with all of them in test/ in place of "
                "query/ and gallery/, each is searched for among all others"
            )

    # A dataset may number the cameras of its training images apart; in archives, a number is one camera.
    camera_numbers = data.train_cameras_as_in_test()

    def split(listed, order: np.ndarray, names: Sequence[str] | None = None) -> Split:
        def label_member(number: int) -> tuple[str, bytes]:
            identity = int(listed.identities[number])
            said: dict[str, int | str] = {"identity": names[identity] if names else identity}
            if listed.cameras is not None:
                camera = int(listed.cameras[number])
                said["camera"] = camera_numbers[camera] if listed is data.train else camera
            return "json", json.dumps(said).encode()

        return Split(listed.images, order, listed.identities, label_member)

    by_identity = np.argsort(np.asarray(data.train.identities), kind="stable")
    sides = {"test": data.query} if data.leave_one_out else {"query": data.query, "gallery": data.gallery}
    return {"train": split(data.train, by_identity, data.identities)} | {
        name: split(side, np.arange(len(side))) for name, side in sides.items()
    }


def _lost_files(data: ReIDData) -> list[str]:
    """A warning if test images are crops of one file, which the archives do not say."""
    if not data.leave_one_out or data.test_files is None:
        return []
    _, counts = np.unique(data.test_files, return_counts=True)
    if not (shared := int(counts[counts > 1].sum())):
        return []
    return [
        f"{data.name}: {shared:,} of {len(data.query):,} test images are crops of a file that has others: archives do "
        "not say so, and a query finds those of its own file, which are left out where the files are read"
    ]


def _claim(folder: Path, plan: Description) -> None:
    """Marks the folder as one whose archives are being written.

    Raises:
        InputError: it holds archives of something else.
    """
    there = read_description(folder)
    if there is None:
        foreign = sorted(path.name for path in folder.glob("*.tar"))
        if foreign:
            raise InputError(
                f"'{folder}' holds archives that dcal shard did not write ({foreign[0]}): take another --output_dir"
            )
    else:
        may_differ = dict.fromkeys(("classes", "coarse_classes", "archives"))
        ours, theirs = (asdict(each) | may_differ for each in (plan, there))
        differ = [key for key in ours if ours[key] != theirs[key]]
        if differ:
            raise InputError(
                f"'{folder}' holds shards of something else ({differ[0]}: {theirs[differ[0]]} there, {ours[differ[0]]} "
                "here): take another --output_dir"
            )
    write_description(folder, plan)


def _write(
    folder: Path,
    splits: dict[str, Split],
    archive_bytes: int,
    num_workers: int,
    unreadable: UnreadableImages,
    advance: Callable[[], None],
) -> tuple[dict[str, list[str]], Counter[int]]:
    """All archives; returns their names by split, and how many training images of each label are in them."""
    archives: dict[str, list[str]] = {}
    counts: Counter[int] = Counter()

    def samples(name: str, split: Split):
        for number, (content, suffix, broken) in encode_all(split.images, split.order, num_workers):
            advance()
            if broken:
                unreadable.add(Unreadable(f"{split.images[number]}", broken, replaced=False))
                continue
            kind, label = split.label_member(number)
            counts[int(split.labels[number])] += name == "train"
            yield {suffix: content, kind: label}

    for name, split in splits.items():
        writer = ArchiveWriter(folder, name, archive_bytes)
        with closing(writer.write(samples(name, split))) as written:
            for _ in written:
                pass
        if not writer.archives:
            raise InputError(f"none of the {len(split.images):,} images of {name} can be read; the warnings say why")
        archives[name] = writer.archives
    return archives, counts


def _remove_others(folder: Path, written: dict[str, list[str]]) -> None:
    """Removes files of an earlier command: partial archives, surplus archives and their indexes."""
    names = {name for each in written.values() for name in each}
    for path in folder.iterdir():
        if OURS.fullmatch(path.name) and path.name not in names:
            path.unlink()


def _report(
    task: str, name: str, folder: Path, written: dict[str, list[str]], counts: dict[str, int], left_out: int
) -> list[str]:
    size = sum((folder / name).stat().st_size for each in written.values() for name in each)
    parts = [
        f"{counts[split]:,} of {split} in {len(each):,} archive{'s' * (len(each) > 1)}"
        for split, each in written.items()
    ]
    first, last = written["train"][0], written["train"][-1]
    numbers = [name.removeprefix("train-").removesuffix(".tar") for name in (first, last)]
    pattern = f"{folder}/train-{{{numbers[0]}..{numbers[1]}}}.tar" if first != last else f"{folder}/{first}"
    own, usual = (CONFIGS[task][each](dataset=each).img_size for each in (name, "shards"))
    more = f" --img_size {own[0]} {own[1]}" if own != usual else ""  # as of vehicles, which are square
    return [
        f"{folder}: {', '.join(parts)}; {size / 1e6:,.0f} MB"
        + (f"; {left_out:,} images cannot be read and were left out" if left_out else ""),
        f"the dataset is described in {folder / DESCRIPTION}",
        "next:",
        f"  {train_command()} --task {task} --dataset shards --data_root {shlex.quote(pattern)}{more}",
    ]
