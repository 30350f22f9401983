"""Small models exported once for all tests of this folder: an export takes seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dual_cross_attention.inference.model_files import SavedModel, read_model
from tests.export.models import CALIBRATION, write_model


@dataclass
class Exported:
    """A model file, and the .onnx file that was exported from it."""

    source: Path
    file: Path

    @property
    def saved(self) -> SavedModel:
        return read_model(self.source)


@pytest.fixture(scope="session")
def export_of(tmp_path_factory) -> Callable[..., Exported]:
    """`export_of(name, task, labels, branch, …)` writes a model as `write_model`, and exports it."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from dual_cross_attention.export.exporting import export_model

    def export(name: str, task: str, labels: list[str], branch: str | None = None, **settings: Any) -> Exported:
        folder = tmp_path_factory.mktemp(name)
        source, file = write_model(folder / f"{name}.safetensors", task, labels, **settings), folder / f"{name}.onnx"
        export_model(source, "onnx", branch, file)
        return Exported(source, file)

    return export


@pytest.fixture(scope="session")
def classifier(export_of, images) -> Exported:
    """SA and GLCA of the three classes of `images`, calibrated."""
    labels, root = ["ant", "bee", "cat"], str(images)
    return export_of("classifier", "fgvc", labels, calibration=CALIBRATION, data_root=root, resize_size=[36, 40])


@pytest.fixture(scope="session")
def reid(export_of, people) -> Exported:
    """SA and GLCA of the identities of `people`, after the neck."""
    labels = ["anna", "bob", "cleo", "dan"]
    return export_of("reid", "reid", labels, feature="after_neck", data_root=str(people))
