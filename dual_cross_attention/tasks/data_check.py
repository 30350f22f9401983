"""`dcal check-data`: every image of a dataset is read and checked."""

from collections.abc import Mapping, Sequence

from rich.console import Console

from dual_cross_attention.configs.hub_names import split_hub_name
from dual_cross_attention.configs.parse import check_fgvc_options, choose_settings
from dual_cross_attention.data.fgvc import FineGrainedData, load_fgvc
from dual_cross_attention.data.images import ImageSource
from dual_cross_attention.data.labels import distinct
from dual_cross_attention.data.reid import load_reid
from dual_cross_attention.data.reid.camera_names import CameraMode
from dual_cross_attention.data.validation import (
    CONSTANT,
    DARK,
    DARK_BELOW,
    FEW,
    FEW_LEVELS,
    DataReport,
    Split,
    check_images,
    processes,
)
from dual_cross_attention.errors import InputError
from dual_cross_attention.progress import ProgressBar
from dual_cross_attention.tasks.data_roots import is_synthetic

Images = Mapping[str, Sequence[ImageSource]]
EXAMPLES = 4  # that are shown of what does not stop a training


def check_data(
    task: str,
    dataset: str | None,
    data_root: str | None,
    num_workers: int | None,
    console: Console,
    val_fraction: float | None = None,
    cameras: CameraMode = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
) -> DataReport:
    """Reads a dataset's labels and all of its images.

    Args:
        task: "fgvc" or "reid".
        dataset: a dataset of the task; None: its toy dataset.
        data_root: where it is; None: as it is found, see `find_data_root`.
        num_workers: processes; None: one per core.
        console: where progress is shown.
        val_fraction: of a folder without a split, see `load_fgvc`.
        cameras: of re-identification, see `load_reid`.
        image_column, label_column: of classification from a table, see `load_fgvc`.

    Raises:
        InputError: the dataset cannot be used at all.
    """
    if num_workers is not None and num_workers < 0:
        raise InputError(f"num_workers: expected a number of at least 0, got {num_workers}")
    dataset, data_root = split_hub_name(dataset, data_root)
    name = dataset or choose_settings({"task": task}).dataset
    choose_settings({"task": task, "dataset": name})  # refuses what is not there
    given = {"val_fraction": val_fraction, "image_column": image_column, "label_column": label_column}
    check_fgvc_options(task, name, **given)
    if task == "fgvc":
        images, report = _fgvc(load_fgvc(name, data_root, **given), console)
    else:
        images, report = _reid(name, data_root, cameras, console)
    total = sum(split.images for split in report.splits.values())
    synthetic = is_synthetic(task, name)
    with ProgressBar("check", total, console) as advance:
        check_images(images, report, 0 if synthetic else processes(num_workers), advance)
    return report


def as_lines(report: DataReport, shown: int) -> list[str]:
    """The report for a screen: bad images up to `shown`, and examples of the rest."""
    lines = [
        f"{name}: {split.images:,} images of {split.classes:,} classes or identities, {split.bad:,} cannot be read"
        for name, split in report.splits.items()
    ]
    lines += [f"warning: {warning}" for warning in report.warnings]
    odd: dict[str, list[str]] = {CONSTANT: [], FEW_LEVELS: [], DARK: [], "": []}
    for split, path, reason in report.odd:
        kind = reason.partition(":")[0]
        odd[kind if kind in odd else ""].append(f"{split}: {path}: {reason}")
    doubles = [" = ".join(f"{split}: {path}" for split, path in files) for files in report.duplicates]
    for what, names in (
        ("classes have no image to train on", report.without_training),
        ("classes have no image to test with", report.without_test),
        ("images are constant: every pixel has the same color", odd[CONSTANT]),
        (f"images have few levels, less than {FEW} in each channel", odd[FEW_LEVELS]),
        (
            f"images are dark, every value is below {DARK_BELOW} of 255 (as of 12 bits stored in 16; scale them first)",
            odd[DARK],
        ),
        ("oddities of images", odd[""]),
        ("files are in more than one split, byte for byte", doubles),
    ):
        lines += _some(f"warning: {len(names):,} {what}", names, EXAMPLES)
    bad = [f"{split}: {path}: {reason}" for split, path, reason in report.bad]
    return lines + _some(f"{len(bad):,} images cannot be read", bad, shown)


def _fgvc(data: FineGrainedData, console: Console) -> tuple[Images, DataReport]:
    for note in data.notes:
        console.print(note, soft_wrap=True, markup=False)
    splits = {"train": data.train, "test": data.test}
    report = DataReport({split: Split(len(each), len(distinct(each.labels))) for split, each in splits.items()})
    report.warnings = list(data.warnings)
    trained, tested = (set(distinct(split.labels).tolist()) for split in (data.train, data.test))
    report.without_test = [name for label, name in enumerate(data.classes) if label not in tested]
    report.without_training = [name for label, name in enumerate(data.classes) if label not in trained]
    return {split: each.images for split, each in splits.items()}, report


def _reid(name: str, data_root: str | None, cameras: CameraMode, console: Console) -> tuple[Images, DataReport]:
    data = load_reid(name, data_root, cameras=cameras)
    for note in data.notes:
        console.print(note, soft_wrap=True)
    test = {"test": data.query} if data.leave_one_out else {"query": data.query, "gallery": data.gallery}
    splits = {"train": data.train, **test}
    report = DataReport({split: Split(len(each), len(distinct(each.identities))) for split, each in splits.items()})
    report.warnings = list(data.warnings)
    return {split: each.images for split, each in splits.items()}, report


def _some(title: str, names: list[str], shown: int) -> list[str]:
    if not names:
        return []
    more = [f"  and {len(names) - shown:,} more: --json FILE has all of them"] if len(names) > shown else []
    return [f"{title}:", *(f"  {name}" for name in names[:shown]), *more]
