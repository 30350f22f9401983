"""The model that a report is about, and the test split that it is evaluated on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from torch import Tensor

from dual_cross_attention.data.images import ImageSource
from dual_cross_attention.data.loaders import Batches
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.devices import (
    choose_device,
    keep_freed_memory,
    precision_setting,
)
from dual_cross_attention.errors import InputError
from dual_cross_attention.explanation.maps import MapName, default_map
from dual_cross_attention.inference.evaluation import choose_cameras, read_test_images
from dual_cross_attention.inference.loaded_model import LoadedModel
from dual_cross_attention.inference.model_files import read_model
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.tasks.data_module import RunSetup, reading_processes
from dual_cross_attention.tasks.task import Task
from dual_cross_attention.text import escape

WhichModel = Literal["best", "last"]


@dataclass(frozen=True)
class OpenedRun:
    """A loaded model with its task and the images to test it on.

    Args:
        loaded: the model.
        setup: data module; `setup.config` has the settings of this evaluation.
        task: of the model, on its device.
        loader: test batches, in the order of `images`.
        unreadable: collects the images that cannot be read.
        epoch: that the model is of.
        differences: from the test data that the run recorded, in words.
    """

    loaded: LoadedModel
    setup: RunSetup
    task: Task
    loader: Batches
    unreadable: UnreadableImages
    epoch: int | None
    differences: list[str]

    @property
    def images(self) -> Sequence[ImageSource]:
        """The test images; in re-identification, the queries, then the gallery."""
        return self.loader.dataset.image_list.images

    def name(self, position: int) -> str:
        """Path of a test image, or "image 3" of an image in memory."""
        return self.loader.dataset.name(position)

    @property
    def default_map(self) -> MapName:
        """The map of the model that the report shows and measures."""
        return default_map("glca" in self.loaded.model.predicting_branches)

    @property
    def num_workers(self) -> int:
        return reading_processes(self.setup.config, self.loaded.device)


def open_run(
    run: RunFolder,
    which: WhichModel,
    data_root: str | None,
    split: str | None,
    device: str,
    precision: str | None,
    batch_size: int | None,
    num_workers: int | None,
    console: Console,
) -> OpenedRun:
    """Loads a model of a run and finds its test images. Arguments as of `inference.evaluation.evaluate`.

    Raises:
        InputError: no such model, or test images that cannot be found or do not fit it.
    """
    files = {"best": run.best, "last": run.last}
    file = files.pop(which)
    if not file.is_file():
        other = [name for name, path in files.items() if path.is_file()]
        hint = f"give --model {other[0]}" if other else "it has no model yet"
        raise InputError(f"the run '{escape(run.path)}' has no {file.name}: {hint}")
    chosen = choose_device(device)
    keep_freed_memory()
    saved = read_model(file)
    mixed = saved.choose_precision(chosen, precision)
    changed = {"data_root": data_root, "eval_batch_size": batch_size, "num_workers": num_workers}
    try:
        setup = read_test_images(saved, changed, split, "refuse", console)
    except InputError as error:
        hint = "" if data_root else "; if the dataset has moved, give its folder: --data_root DIR"
        raise InputError(f"the test images of the run: {error}{hint}") from error
    differences = []
    if saved.data and setup.config.dataset == saved.data.dataset:
        differences = saved.data.differences(setup.fingerprint(), setup.test_splits)
    choose_cameras(saved, setup, not differences, console)
    loaded = LoadedModel(saved, chosen, precision_setting(mixed), f"{file}")
    unreadable = UnreadableImages(lambda message: console.print(f"warning: {message}", style="yellow"))
    task = setup.build_task(loaded.model)
    loader = setup.test_loader(loaded.model, loaded.device)
    epoch = saved.metrics.get("epoch")
    return OpenedRun(loaded, setup, task, loader, unreadable, epoch and int(epoch), differences)


def numpy(values: Tensor):
    """Float64 or integers, on the CPU."""
    values = values.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()


def short_path(name: str) -> str:
    """The last two parts of a path, which tell images apart."""
    return "/".join(name.split("/")[-2:])
