"""Evaluation of a trained model on a test split."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import Tensor

from dual_cross_attention.configs.hub_names import split_hub_name
from dual_cross_attention.configs.parse import choose_settings
from dual_cross_attention.data.fgvc import FGVC_DATASETS
from dual_cross_attention.data.fgvc.fine_grained import UnknownClasses
from dual_cross_attention.data.registry import names_where
from dual_cross_attention.data.reid.camera_names import CameraMode
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.devices import autocast, keep_freed_memory
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.calibration import Calibration
from dual_cross_attention.inference.evaluation_loop import run_eval_steps
from dual_cross_attention.inference.evaluation_rows import EvaluationRows, columns
from dual_cross_attention.inference.model_files import SavedModel, find_model_file, read_model, uses_cameras
from dual_cross_attention.inference.onnx_model import OnnxModel
from dual_cross_attention.inference.ranking_file import write_ranking
from dual_cross_attention.inference.row_files import SUFFIXES, check_suffix, write_rows
from dual_cross_attention.metrics.coarse import CoarseAccuracy, coarse_accuracy
from dual_cross_attention.progress import track
from dual_cross_attention.tasks.data_module import RunSetup
from dual_cross_attention.tasks.data_roots import with_data_root
from dual_cross_attention.tasks.registry import read_setup
from dual_cross_attention.tasks.task import Batch, Task
from dual_cross_attention.text import escape

NO_VIEWS = "none"
"""As `views` of `evaluate`."""


def evaluate(
    run_or_checkpoint: str | Path,
    dataset: str | None = None,
    data_root: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    feature: str | None = None,
    distance: str | None = None,
    normalize_features: bool | None = None,
    rerank: bool = False,
    save_ranking: str | Path | None = None,
    ranking_depth: int | None = None,
    console: Console | None = None,
    split: str | None = None,
    output: str | Path | None = None,
    unknown_classes: UnknownClasses = "refuse",
    cameras: CameraMode | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    views: str | None = None,
) -> dict[str, Any]:
    """Evaluates a trained model on a test split.

    A classifier needs the test images only: class names are those of the model, and training images are not read where
    the dataset has its test images in val or test. Images of a run with `val_fraction` are those that it validated on.

    Args:
        run_or_checkpoint: a run's folder (its best model is taken), or a model file of one.
        dataset: another dataset of the same task; None: that of the run.
        data_root: the dataset; None: where the run found it.
        device: "auto", "cpu", "cuda" or "mps".
        precision, batch_size, num_workers: as the settings of that name; None: as in the run.
        feature, distance, normalize_features: as the settings of re-identification; None: as in the run.
        rerank: of re-identification: by k-reciprocal re-ranking.
        save_ranking, ranking_depth: of re-identification: a file for the gallery as each query ranks it, and how much
            of it; see `write_ranking`.
        console: shows notes, warnings and progress; None: not shown.
        split: "val" or "test": the images to test on, where the data has both; None: val if it exists, else test.
        output: of classification: a file for one row per image, see `evaluation_rows`. Its probabilities are
            calibrated if the model is.
        unknown_classes: of test images of classes that the model does not know: "refuse" or "leave_out".
        cameras: of re-identification, as the setting of that name; None: as in the run.
        image_column, label_column: of classification from a table, as the settings of that name; None: as in the run.
        views: of re-identification: a CSV file with the views of the test images, or "none": all are unknown; None: as
            in the run.

    Returns:
        "checkpoint", "dataset", "images", "unreadable", the task's metrics in percent, and of re-identification
        "rerank" and "valid_queries"; where classes have coarse classes, "coarse_top1" in percent, "mistakes_inside" and
        "mistakes_across" coarse classes (numbers of images), and "coarse_classes", as of `coarse_accuracy`.

    Raises:
        InputError: no such model, or data that does not fit it.
    """
    keep_freed_memory()
    saved = read_model(run_or_checkpoint)
    chosen = saved.choose_device(device)
    chosen_precision = saved.choose_precision(chosen, precision)
    retrieval = {"feature": feature, "distance": distance, "normalize_features": normalize_features}
    retrieval |= {"cameras": cameras, "views": views}
    written = {"rerank": rerank or None, "save_ranking": save_ranking, "ranking_depth": ranking_depth}
    given = [name for name, value in (retrieval | written).items() if value is not None]
    if given and saved.config.task != "reid":
        raise InputError(f"--{given[0]} is for retrieval: this model is of task {saved.config.task}")
    columns_given = {"image_column": image_column, "label_column": label_column}
    for name in (name for name, value in columns_given.items() if value is not None and saved.config.task != "fgvc"):
        raise InputError(f"--{name} is for classification: this model is of task {saved.config.task}")
    if feature and isinstance(saved.model, OnnxModel) and feature != saved.config.feature:
        raise InputError(
            f"--feature {feature}: the exported graph gives the features {saved.config.feature}, as its run does: take "
            "the model that it was exported from"
        )
    if ranking_depth is not None and ranking_depth < 1:
        raise InputError(f"--ranking_depth: expected at least 1, got {ranking_depth}")
    if output is not None:
        if saved.config.task != "fgvc":
            raise InputError(f"--output is for classification: this model is of task {saved.config.task}")
        check_suffix(Path(output), SUFFIXES)
    if unknown_classes == "leave_out":
        entry = FGVC_DATASETS.get(dataset or saved.config.dataset) if saved.config.task == "fgvc" else None
        if not (entry and entry.may_have_other_classes):
            known = " or ".join(names_where(FGVC_DATASETS, "may_have_other_classes"))
            raise InputError(f"--unknown_classes leave_out is for classification of --dataset {known}")
    console = console or Console(quiet=True)
    changed = {
        "dataset": dataset,
        "data_root": data_root,
        "eval_batch_size": batch_size,
        "num_workers": num_workers,
        **retrieval,
        **columns_given,
    }
    setup = read_test_images(saved, changed, split, unknown_classes, console)
    config = setup.config
    differences = []
    if is_named_alike := saved.data is not None and config.dataset == saved.data.dataset:
        differences = saved.data.differences(setup.fingerprint(), setup.test_splits)
        for difference in differences:
            console.print(f"note: not the test data of the run: {difference}", style="yellow")
    choose_cameras(saved, setup, is_named_alike and not differences, console, views)
    unreadable = UnreadableImages(lambda message: console.print(f"warning: {message}", style="yellow"))
    task = setup.build_task(saved.model.to(chosen))
    write = save_ranking and partial(write_ranking, Path(save_ranking), depth=ranking_depth)
    file = output and Path(output)
    metrics = _score(task, setup, chosen_precision, unreadable, rerank, write, file, console, saved.calibration)
    return {
        "checkpoint": str(find_model_file(run_or_checkpoint)),
        "dataset": config.dataset,
        "images": setup.num_test - len(unreadable),
        "unreadable": len(unreadable),
        **({"rerank": rerank} if config.task == "reid" else {}),
        **metrics,
    }


def read_test_images(
    saved: SavedModel, changed: Mapping[str, Any], split: str | None, unknown_classes: UnknownClasses, console: Console
) -> RunSetup:
    """Reads the test images with a model's labels and preprocessing; prints notes and warnings.

    Args:
        saved: the model.
        changed: settings in place of those of the run; None: as in the run.
        split, unknown_classes: as of `evaluate`.

    Raises:
        InputError: there are none, or they do not fit the model.
    """
    dataset, data_root = split_hub_name(changed.get("dataset"), changed.get("data_root"))
    changed, config = {**changed, "dataset": dataset, "data_root": data_root}, saved.config
    if dataset and dataset != config.dataset:
        choose_settings({"task": config.task, "dataset": dataset})  # refuses a dataset of another task
        of_the_run: dict[str, Any] = {"data_root": None}
        if config.task == "fgvc":
            of_the_run |= dict.fromkeys(("val_fraction", "image_column", "label_column"))
        else:
            of_the_run |= {"views": None} | ({"cameras": "auto"} if config.cameras == "none" else {})
        config = replace(config, **of_the_run)
    config = replace(config, **{name: value for name, value in changed.items() if value is not None})
    setup = read_setup(with_data_root(config), train=False, split=split)
    setup.align_classes(saved.classes, unknown_classes)
    setup.saved_preprocessing = saved.preprocessing
    for note in setup.notes:
        console.print(note)
    for warning in setup.warnings:
        console.print(f"warning: {warning}", style="yellow")
    return setup


def choose_cameras(
    saved: SavedModel, setup: RunSetup, is_of_the_run: bool, console: Console, views: str | None = None
) -> None:
    """Decides whether a model with an embedding of cameras or views gets those of the test images, and says so.

    Cameras of other data may have the names of those of the training, and are others. Views are not, if they are given.

    Args:
        saved: the model.
        setup: of the test images.
        is_of_the_run: whether they are those of the run of the model.
        console: shows a line.
        views: what the user gives for them, see `evaluate`.
    """
    named = saved.config.side_information if uses_cameras(saved.config) else {}
    if views not in (None, NO_VIEWS) and "view" not in named:
        raise InputError("--views is for a model with an embedding of views (--sie view), and this one has none")
    if not uses_cameras(saved.config):
        return
    what = " and ".join(f"{kind}s" for kind in named)
    because = None
    if isinstance(saved.model, OnnxModel):
        because = f"the exported graph has no embedding of {what}"
    elif views == NO_VIEWS and "view" in named:
        because = "--views none"
    elif not is_of_the_run and ("camera" in named or views is None):
        because = "this is not the data of the run" + ("" if "camera" in named else ": give theirs by --views FILE.csv")
    elif views is None and "view" in named and not _is_absolute_file(setup.config.views):
        because = f"{escape(setup.config.views)}, which names them, is not here: give it by --views FILE.csv"
    setup.uses_test_cameras = because is None
    if because is not None:
        console.print(f"side information: all test images count as of unknown {what}, because {because}")
        return
    found = setup.test_views()
    counts = " and ".join(f"{len(names)} {kind}s" for kind, names in named.items())
    unknown = sum(view not in named.get("view", ()) for view in found)
    if views is not None and found and not any(found):
        raise InputError(f"--views: {escape(views)} lists none of the {len(found):,} test images")
    of_unknown = f"; {unknown:,} of {len(found):,} test images are of no such view" if found else ""
    console.print(f"side information: the embeddings of {counts} of the training are used{of_unknown}")


def _is_absolute_file(path: str) -> bool:
    """Whether a run's file is where the run found it; a published model has the name of the file alone."""
    return Path(path).is_absolute() and Path(path).is_file()


def _score(
    task: Task,
    setup: RunSetup,
    precision: str,
    unreadable: UnreadableImages,
    rerank: bool,
    write: Callable | None,
    output: Path | None,
    console: Console,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """Computes the task's metrics on the model's device; the DataLoader workers end with this function."""
    device = task.device
    loader = setup.test_loader(task.model, device)
    batches = track(unreadable.watch(loader), "evaluate", len(loader), console)

    def progress(blocks: list) -> Iterator:
        return track(blocks, "retrieve", len(blocks), console)

    with autocast(device, precision), ExitStack() as files:
        rows, answers = None, []
        if output:
            suffixes = ["", *(f"_{branch}" for branch in task.test_branches)]
            to_file = files.enter_context(write_rows(output, columns(suffixes, setup.coarse_classes is not None)))
            rows = EvaluationRows(to_file, loader.dataset, setup.classes, unreadable, setup.coarse_classes)

        def after_step(batch: Batch, logits: dict[str, Tensor]) -> None:
            probabilities = task.probabilities(logits)
            if setup.coarse_classes:
                valid = batch["valid"].cpu()
                answers.append((batch["labels"].cpu()[valid], probabilities[""].argmax(dim=-1).cpu()[valid]))
            if calibration:
                of = calibration.of_probabilities
                probabilities = {suffix: of(each, suffix[1:]) for suffix, each in probabilities.items()}
            if rows:
                rows.add(batch, probabilities)

        run_eval_steps(task, batches, after_step=after_step if rows or setup.coarse_classes else None)
        options = {"rerank": True} if rerank else {}  # of retrieval alone, as `write`
        if write:
            write(setup.data, task.rank(task.gather_features(), rerank, progress))
        metrics = task.compute_metrics(progress, **options)
    if setup.coarse_classes:
        labels, predicted = (np.concatenate(each) for each in zip(*answers, strict=True))
        metrics |= _coarse_metrics(coarse_accuracy(labels, predicted, setup.coarse_classes))
    return metrics


def _coarse_metrics(accuracy: CoarseAccuracy) -> dict[str, Any]:
    return {
        "coarse_top1": accuracy.top1,
        "mistakes_inside": accuracy.mistakes_inside,
        "mistakes_across": accuracy.mistakes_across,
        "coarse_classes": [each._asdict() for each in accuracy.by_class],
    }
