"""What many tests share: small images, a small model, and the command line called in this process."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from dual_cross_attention.cli import main
from dual_cross_attention.configs import FGVCConfig, ReIDConfig
from dual_cross_attention.inference.calibration import CalibratedAnswer, Calibration
from dual_cross_attention.inference.model_files import build_model, save_model

# Tiny models: threads cost more than they give, and much more where other work runs beside the tests.
torch.set_num_threads(1)

CLASSES = {"ant": (200, 60, 60), "bee": (60, 200, 60), "cat": (60, 60, 200)}
TINY_VIT = [
    "--backbone=vit_tiny_patch16_224",
    '--backbone_kwargs={"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}',
    "--weights=none",
    "--img_size=32",
]

PEOPLE = {
    "anna": (200, 60, 60),
    "bob": (60, 200, 60),
    "cleo": (60, 60, 200),
    "dan": (200, 200, 60),
    "eva": (60, 60, 60),
}
SAVED_BACKBONE = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_kwargs": {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "precision": "fp32",
}
LABELS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
TRAINED, TESTED = ("anna", "bob", "cleo", "dan"), ("dan", "eva", "bob")


@dataclass
class Outcome:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps its device and precision for the whole process; every test starts without."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def no_data_elsewhere(monkeypatch):
    """The machine's own datasets are not found."""
    monkeypatch.delenv("DCAL_DATA", raising=False)


@pytest.fixture
def dcal(capsys) -> Callable[..., Outcome]:
    """`dcal("train", "--lr", 1e-4)` runs the command in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Outcome(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def make_images() -> Callable[[Path], Path]:
    """Makes a dataset of the `folder` kind: three classes by color, 12 and 6 images of 32 x 32 each."""

    def make(root: Path) -> Path:
        random = Random(0)
        for split, count in (("train", 12), ("val", 6)):
            for name, color in CLASSES.items():
                (root / split / name).mkdir(parents=True)
                for i in range(count):
                    varied = tuple(channel + random.randint(-50, 50) for channel in color)
                    Image.new("RGB", (32, 32), varied).save(root / split / name / f"{i:02}.png")
        return root

    return make


@pytest.fixture(scope="session")
def images(tmp_path_factory, make_images) -> Path:
    """A small dataset that no test changes."""
    return make_images(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def small(images) -> list[str]:
    """Flags of a training that takes a second: the small images, a tiny ViT, 2 epochs of 5 steps."""
    return [
        *TINY_VIT,
        "--dataset=folder",
        f"--data_root={images}",
        "--epochs=2",
        "--batch_size=8",
        "--lr=1e-3",
        "--num_workers=0",
        "--device=cpu",
        "--precision=fp32",
    ]


@pytest.fixture(scope="session")
def make_people() -> Callable[[Path], Path]:
    """Makes a dataset of the `folder` kind: people by color, 6 training, 1 query, 2 gallery images per camera."""

    def make(root: Path) -> Path:
        random = Random(0)
        for split, names, count in (("train", TRAINED, 3), ("query", TESTED, 1), ("gallery", TESTED, 2)):
            for name in names:
                (root / split / name).mkdir(parents=True)
                for camera in ("door", "hall"):
                    for i in range(count):
                        varied = tuple(channel + random.randint(-40, 40) for channel in PEOPLE[name])
                        Image.new("RGB", (16, 32), varied).save(root / split / name / f"{camera}_{i}.png")
        return root

    return make


@pytest.fixture(scope="session")
def people(tmp_path_factory, make_people) -> Path:
    """A small crowd that no test changes."""
    return make_people(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="session")
def small_reid(people) -> list[str]:
    """Flags of a re-identification that takes a second: 2 epochs of 3 steps or more."""
    return [
        *TINY_VIT[:3],
        "--task=reid",
        "--dataset=folder",
        f"--data_root={people}",
        "--img_size",
        "32",
        "16",
        "--padding=2",
        "--epochs=2",
        "--warmup_epochs=0",
        "--eval_every=1",
        "--batch_size=8",
        "--images_per_identity=2",
        "--num_workers=0",
        "--device=cpu",
        "--precision=fp32",
    ]


@pytest.fixture
def made(monkeypatch) -> Callable[..., dict[str, object]]:
    """`made((module, "name"), …)` → a dict that will hold what the functions and classes of these names return."""

    def watch(*places: tuple[object, str]) -> dict[str, object]:
        seen: dict[str, object] = {}

        def recording(name, original):
            def record(*arguments, **options):
                seen[name] = original(*arguments, **options)
                return seen[name]

            return record

        for where, name in places:
            monkeypatch.setattr(where, name, recording(name, getattr(where, name)))
        return seen

    return watch


@pytest.fixture
def calibration() -> Calibration:
    """Of a model with SA and GLCA."""
    answers = {
        "sa": CalibratedAnswer(1.5, "probability", 0.25, 0.95),
        "glca": CalibratedAnswer(0.8, "probability", 0.3, 0.95),
        "together": CalibratedAnswer(2.0, "probability", 0.2, 0.96),
    }
    return Calibration(answers, 0.95, 300, "folder", "val", "00ff", "2025-01-31")


def write_model(folder: Path, task: str = "fgvc", seed: int = 0, labels: list[str] = LABELS, **settings: Any) -> Path:
    """Writes a model file; its weights differ from seed to seed."""
    if task == "reid":
        config = ReIDConfig(**SAVED_BACKBONE, **{"img_size": [32, 16], "mean": MEAN, "std": STD} | settings)
    else:
        sizes = {"img_size": [32, 40], "resize_size": [36, 48]}
        config = FGVCConfig(**SAVED_BACKBONE, **sizes | {"mean": MEAN, "std": STD} | settings)
    torch.manual_seed(seed)
    model = build_model(config, len(labels), pretrained=False)
    with torch.no_grad():  # else timm's small initial weights make all images alike
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    path = folder / f"{task}-{len(list(folder.glob('*.safetensors')))}.safetensors"
    save_model(path, model.state_dict(), config, labels, {"epoch": config.epochs, "val/top1": 12.5})
    return path


@pytest.fixture
def make_model(tmp_path) -> Callable[..., Path]:
    """`make_model(task, **settings)` writes a model file, see `write_model`."""
    return partial(write_model, tmp_path)


@pytest.fixture
def refused(dcal, tmp_path, monkeypatch):
    """Runs a command that has to be refused, in an empty folder; returns the one line it is refused with."""
    empty = tmp_path / "working directory"
    empty.mkdir()
    monkeypatch.chdir(empty)

    def run(*arguments):
        outcome = dcal(*arguments)
        assert outcome.status == 2, (outcome.status, outcome.out, outcome.err)
        assert outcome.err.startswith("dcal: error: ")
        assert outcome.err.endswith("\n") and len(outcome.err.splitlines()) == 1
        assert "Traceback" not in outcome.err + outcome.out
        assert not list(empty.iterdir())  # no half-made run
        return outcome.err.removeprefix("dcal: error: ").strip()

    return run


@pytest.fixture
def shell(tmp_path):
    """`python train.py …` in a process of its own."""

    def run(*arguments):
        root = Path(__file__).parents[1]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        command = [sys.executable, root / "train.py", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run
