"""Fixtures of training tests: a trainer of a tiny model, undisturbed runs, and comparisons of runs."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

from dual_cross_attention.cli import main
from dual_cross_attention.configs import FGVCConfig
from dual_cross_attention.data import draw_toy, test_transform
from dual_cross_attention.data.loaders import Batches
from dual_cross_attention.data.samplers import SequentialBatchSampler, ShuffledBatchSampler
from dual_cross_attention.inference.model_files import build_model
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.tasks import FGVCTask
from dual_cross_attention.tasks.branch_schedule import branch_schedule
from dual_cross_attention.training.run_context import RunContext
from dual_cross_attention.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
FAULTS = Path(__file__).with_name("faults.py")
MEASURED = {"train/images_per_second", "peak_memory_mb"}


@pytest.fixture(scope="session")
def birds():
    """80 toy images of ten species, as samples of a dataset."""
    drawn = draw_toy(train_per_species=8, test_per_species=1).train
    transform = test_transform((64, 64), (64, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return [
        {"image": transform(image), "label": label, "index": index, "valid": True, "unreadable": []}
        for index, (image, label) in enumerate(zip(drawn.images, drawn.labels, strict=True))
    ]


class Samples(list):
    """A dataset of samples that are there already, by key."""

    def __getitem__(self, key):
        return super().__getitem__(key.index)

    def name(self, index):
        return f"bird {index}"


@pytest.fixture
def make_trainer(birds, tmp_path):
    """A trainer of a tiny ViT on the toy images, which are also what it is evaluated on."""

    def make(images=birds, prepare=lambda task: None, resume_from=None, **settings):
        config = FGVCConfig(
            **{
                "backbone": "vit_tiny_patch16_224",
                "backbone_kwargs": {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
                "weights": "none",
                "img_size": 64,
                "epochs": 2,
                "pwca_start": 0.0,
                "batch_size": 16,
                "lr": 1e-3,
                "device": "cpu",
                "precision": "fp32",
                "output_dir": str(tmp_path),
                **settings,
            }
        )
        torch.manual_seed(config.seed)
        model = build_model(config, 10, pretrained=False)
        model.set_grad_checkpointing(config.use_gradient_checkpointing)
        options = {"schedule": branch_schedule(config), "loss_weights": config.loss_weights}
        task = FGVCTask(model, config.weight_bound, config.label_smoothing, **options)
        prepare(task)
        samples = images if isinstance(images, Samples) else Samples(images)
        batches = (
            Batches(samples, ShuffledBatchSampler(len(samples), config.batch_size, seed=config.seed)),
            Batches(samples, SequentialBatchSampler(len(samples), 40)),
        )
        folder = RunFolder(config.output_dir)
        classes = [f"{i}" for i in range(10)]
        return Trainer(task, *batches, RunContext(config, classes, folder, Console(quiet=True)), resume_from)

    return make


@pytest.fixture(scope="session")
def tasks(small, small_reid) -> dict[str, list[str]]:
    """Flags by task: 3 epochs, with all that is random in a run, and two micro-batches to a step.

    Without the sheet of training images, whose reading and writing would be among the events that tests count.
    """
    more = ["--epochs=3", "--drop_path_rate=0.2", "--gradient_accumulation_steps=2", "--batch_size=6"]
    more += ["--sample_images=0"]
    return {
        "fgvc": [*small, *more, "--lr=1e-5", "--seed=3"],  # seeds with which the second epoch is the best
        "reid": [*small_reid, *more, "--lr=1e-3", "--seed=2"],
    }


@pytest.fixture(scope="session")
def undisturbed(tasks, tmp_path_factory) -> Callable[[str], Path]:
    """An undisturbed run of a task, which no test changes; with checkpoints at the ends of epochs only."""
    runs: dict[str, Path] = {}

    def train(task: str) -> Path:
        if task not in runs:
            runs[task] = tmp_path_factory.mktemp(task) / "run"
            assert main(["train", *tasks[task], f"--output_dir={runs[task]}"]) == 0
        return runs[task]

    return train


@dataclass
class Ended:
    """How a training ended.

    Args:
        status: of exit; negative: the signal.
        out, err: what it said.
        events: how many it counted of each kind, if it came to its end.
    """

    status: int
    out: str
    err: str
    events: dict[str, int]


@pytest.fixture(scope="session")
def train_until(environment) -> Iterator[Callable[..., Ended]]:
    """`train_until(flags, folder, kind=…, number=…, does=…)`: a training that something happens to: `faults.py`."""
    # Root may write anywhere, unless it gives that up.
    without = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    server = subprocess.Popen(
        [*(without if os.geteuid() == 0 and shutil.which("setpriv") else ()), sys.executable, FAULTS],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def train(flags: list[str], folder: Path, **what: object) -> Ended:
        server.stdin.write(json.dumps({"flags": [*map(str, flags)], "folder": str(folder), **what}) + "\n")
        server.stdin.flush()
        return Ended(**json.loads(server.stdout.readline()))

    yield train
    server.stdin.close()
    server.wait()


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of a process that runs the command line of this very source."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def assert_same_results() -> Callable[[Path, Path], None]:
    """Weights to the bit, rows except for what is measured, and nothing half written lies about."""

    def measured_apart(row: str) -> dict[str, float]:
        return {name: value for name, value in json.loads(row).items() if name not in MEASURED}

    def row_in(path: Path) -> dict[str, float]:
        with safe_open(path, framework="pt") as file:
            return measured_apart(file.metadata()["metrics"])

    def compare(run: Path, expected: Path) -> None:
        for name in ("last.safetensors", "best.safetensors"):
            ours, theirs = load_file(run / name), load_file(expected / name)
            assert ours.keys() == theirs.keys()
            for tensor, value in ours.items():
                assert torch.equal(value, theirs[tensor]), (name, tensor)
            assert row_in(run / name) == row_in(expected / name)
        ours, theirs = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (run, expected))
        assert list(map(measured_apart, ours)) == list(map(measured_apart, theirs))
        assert not [path for path in run.rglob("*") if path.suffix in (".tmp", ".old", ".outdated")]

    return compare
