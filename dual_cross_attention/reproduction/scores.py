"""Scores of a model on each test image, for intervals over images: `python -m … MODEL OUTPUT.npz [DATA_ROOT]`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.data.unreadable import UnreadableImages
from dual_cross_attention.devices import autocast, choose_device
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.evaluation import read_test_images
from dual_cross_attention.inference.evaluation_loop import run_eval_steps
from dual_cross_attention.inference.model_files import read_model
from dual_cross_attention.progress import make_console, track
from dual_cross_attention.tasks.reid import ReIDTask, retrieval_scores
from dual_cross_attention.tasks.task import Batch


@dataclass(frozen=True)
class TestScores:
    """Scores of a model on its test images.

    Args:
        images: (N,) 1 for a correct class, 0 for a wrong one; of re-identification, the average precision of each
            query, NaN of one without a match. NaN of an image that could not be read.
        metrics: of the whole split in percent, see `Task.compute_metrics`.
    """

    __test__ = False  # pytest takes it for a test wherever it is imported

    images: np.ndarray
    metrics: dict[str, float]

    def write(self, path: Path) -> None:
        """To an .npz file."""
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            names, values = [*self.metrics], [*self.metrics.values()]
            np.savez(file, images=self.images, names=names, values=values, format_version=FORMAT_VERSION)

    @classmethod
    def read(cls, path: Path) -> "TestScores":
        """What `write` wrote.

        Raises:
            InputError: it is something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["images"], dict(zip(file["names"].tolist(), file["values"].tolist(), strict=True)))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise InputError(
                f"'{path}' does not hold test scores ({error}): delete it, and the same command computes them again"
            ) from error


def test_scores(model: str | Path, data_root: str | None = None, console: Console | None = None) -> TestScores:
    """Evaluates a model file on its test split, with SA and GLCA together.

    Args:
        model: of a run.
        data_root: of the dataset; None: where the run found it.
        console: shows progress and warnings; None: not shown.

    Raises:
        InputError: as of `inference.evaluation.evaluate`.
    """
    console = console or Console(quiet=True)
    saved, device = read_model(model), choose_device("auto")
    setup = read_test_images(saved, {"data_root": data_root}, None, "refuse", console)
    task = setup.build_task(saved.model.to(device))
    loader = setup.test_loader(task.model, device)
    unreadable = UnreadableImages(lambda message: console.print(f"warning: {message}", style="yellow"))
    correct: list[Tensor] = []

    def keep(batch: Batch, logits: dict[str, Tensor]) -> None:
        found = task.probabilities(logits)[""].argmax(-1).cpu() == batch["labels"].cpu()
        correct.append(found.double().masked_fill(~batch["valid"].cpu(), torch.nan))

    is_retrieval = isinstance(task, ReIDTask)
    with autocast(device, saved.choose_precision(device)):
        batches = track(unreadable.watch(loader), "test scores", len(loader), console)
        run_eval_steps(task, batches, after_step=None if is_retrieval else keep)
    if not is_retrieval:
        return TestScores(torch.cat(correct).numpy(), task.compute_metrics())
    features = task.gather_features()
    found = task.retrieve(features)
    of_queries = torch.full((task.split.num_queries,), torch.nan, dtype=torch.float64)
    of_queries[features.positions[features.is_query]] = found[""].average_precisions
    return TestScores(of_queries.numpy(), retrieval_scores(found))


test_scores.__test__ = False


def main() -> int:
    """Evaluates the model of the command line, and writes its scores."""
    model, output, *data_root = sys.argv[1:]
    try:
        test_scores(model, *data_root, console=make_console()).write(Path(output))
    except InputError as error:
        print("dcal: error:", " ".join(f"{error}".split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
