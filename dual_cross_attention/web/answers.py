"""What the page computes for an uploaded image: the answers of `dcal predict`, `dcal explain` and `dcal identify`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dual_cross_attention.errors import InputError
from dual_cross_attention.explanation.explanation import Explanation
from dual_cross_attention.inference.calibration import TOGETHER
from dual_cross_attention.inference.loaded_model import LoadedModel
from dual_cross_attention.inference.prediction import Prediction
from dual_cross_attention.inference.prediction_files import as_row
from dual_cross_attention.web.uploads import Progress, Upload, answer_each, check_size, no_progress


@dataclass(frozen=True)
class ImageAnswer:
    """What a model says of one image.

    Args:
        prediction: of `LoadedModel.predict`; None for a re-identification model.
        explanation: of `LoadedModel.explain`; None for an exported model.
        error: why the image cannot be read; None if it was.
        branches: predictions of each branch alone.
    """

    prediction: Prediction | None
    explanation: Explanation | None
    error: str | None = None
    branches: dict[str, Prediction] = field(default_factory=dict)

    @property
    def row(self) -> dict[str, Any]:
        """As `dcal predict --output -` writes it; of a re-identification model, the path and error alone."""
        if self.prediction is not None:
            return as_row(self.prediction)
        return {"path": self.explanation and self.explanation.path, "error": self.error}


def answer_image(model: LoadedModel, upload: Upload, top_k: int) -> ImageAnswer:
    """Classifies and explains an uploaded image. The path of the answers is the name of the upload."""
    try:
        check_size(upload)
    except InputError as error:
        return ImageAnswer(Prediction(upload.name, error=f"{error}"), None, f"{error}")
    prediction = None
    if model.task != "reid":
        prediction = replace(model.predict(upload.path, top_k), path=upload.name)
        if prediction.error:
            return ImageAnswer(prediction, None, prediction.error)
    if model.is_exported:
        names = model.model.test_branches if prediction is not None else ()
        return ImageAnswer(prediction, None, None, {name: model.predict(upload.path, 1, name) for name in names})
    explanation = replace(model.explain(upload.path, top_k), path=upload.name)
    branches = {name: each for name, each in explanation.predictions.items() if name != TOGETHER}
    return ImageAnswer(prediction, explanation, explanation.error, branches)


def predict_images(
    model: LoadedModel, uploads: Sequence[Upload], top_k: int, progress: Progress = no_progress
) -> list[Prediction]:
    """Classifies uploaded images, see `answer_each`."""
    return answer_each(uploads, lambda paths: model.predict(paths, top_k), Prediction, progress)
